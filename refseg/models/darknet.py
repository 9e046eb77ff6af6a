"""DarkNet-53, the image encoder of LTS's time."""

import timm
from jaxtyping import Float
from torch import Tensor

from refseg.models.image_encoder import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder


class DarkNet53(ImageEncoder):
    """DarkNet-53 with its last three stages as maps; timm's.

    Source: Redmon and Farhadi 2018, "YOLOv3". LTS is said to start from a detector trained on COCO. A trap: the
    pictures of RefCOCO, RefCOCO+ and RefCOCOg are COCO's train2014, so a detector of all COCO has seen the pictures,
    and the boxes, that val and test ask about. MCN's code (Luo et al. 2020) therefore trains one without them. Here
    the weights start random.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    channels = (256, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("darknet53", features_only=True, out_indices=(3, 4, 5))

    def to_c2(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C2 h2 w2"]:
        """Stem and the stages to stride 8."""
        x = images
        for part in ("stem_conv1", "stages_0", "stages_1", "stages_2"):
            x = self.backbone[part](x)
        return x

    def to_c3(self, c2: Float[Tensor, "I C2 h2 w2"]) -> Float[Tensor, "I C3 h3 w3"]:
        """The fourth stage."""
        return self.backbone["stages_3"](c2)

    def to_c4(self, c3: Float[Tensor, "I C3 h3 w3"]) -> Float[Tensor, "I C4 h4 w4"]:
        """The fifth stage."""
        return self.backbone["stages_4"](c3)
