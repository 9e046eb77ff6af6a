"""The encoders of a recipe, by name, with random weights."""

from torch import nn

from refseg.models.darknet import DarkNet53
from refseg.models.image_encoder import ClipResNet, ImageEncoder, SwinBase, TinyResNet
from refseg.models.text_encoder import ClipTextEncoder


def build_image_encoder(name: str, input_size: tuple[int, int]) -> ImageEncoder:
    """The image encoder of this name, made for `(height, width)` pixels."""
    match name:
        case "clip_resnet50":
            return ClipResNet(depth=50)
        case "clip_resnet101":
            return ClipResNet(depth=101)
        case "swin_base":
            return SwinBase(input_size=input_size)
        case "darknet53":
            return DarkNet53()
        case "tiny":
            return TinyResNet()
    raise ValueError(f"no image encoder is named {name!r}")


def build_text_encoder(image_encoder: str, dim: int) -> ClipTextEncoder:
    """The text transformer that goes with an image encoder: FCNet does not name Swin's, we take ResNet-101's."""
    match image_encoder:
        case "tiny":
            encoder = ClipTextEncoder(width=dim, num_layers=2, num_heads=4, output_dim=dim)
            # Random words, far apart, and kept so. From CLIP's small start (0.02) a large learning rate moves all
            # colours alike before the pixels tell them apart, and then neither side ever does.
            nn.init.normal_(encoder.token_embedding.weight)
            encoder.token_embedding.requires_grad_(False)
            return encoder
        case "clip_resnet50":
            return ClipTextEncoder(output_dim=1024)
    return ClipTextEncoder(output_dim=512)
