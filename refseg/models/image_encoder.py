"""Image encoders compute three feature maps at strides 8, 16 and 32 from images. All backbones are timm's."""

import timm
from jaxtyping import Float
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

FeatureMaps = tuple[Float[Tensor, "I C2 h2 w2"], Float[Tensor, "I C3 h3 w3"], Float[Tensor, "I C4 h4 w4"]]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module):
    """The interface of an image encoder. It computes three maps at once or stage by stage.

    `forward` calls `to_c2`, `to_c3`, `to_c4` and `finish`. A model that changes a map before the next stage reads it
    calls these methods itself.

    Attributes:
        channels: Numbers of channels of the maps at strides 8, 16 and 32.
        image_mean: RGB mean that is subtracted from images with values from 0 to 1.
        image_std: RGB standard deviation by which images are then divided.
    """

    channels: tuple[int, int, int]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def to_c2(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C2 h2 w2"]:
        """Compute the map at stride 8 from normalised images. Their sides must be multiples of 32."""
        raise NotImplementedError

    def to_c3(self, c2: Float[Tensor, "I C2 h2 w2"]) -> Float[Tensor, "I C3 h3 w3"]:
        """Compute the map at stride 16 from the map at stride 8."""
        raise NotImplementedError

    def to_c4(self, c3: Float[Tensor, "I C3 h3 w3"]) -> Float[Tensor, "I C4 h4 w4"]:
        """Compute the map at stride 32 from the map at stride 16."""
        raise NotImplementedError

    def finish(self, maps: FeatureMaps) -> FeatureMaps:
        """Return the maps as outputs of the encoder, for example normalised. No stage reads these outputs."""
        return maps

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> FeatureMaps:
        """Encode normalised images whose sides are multiples of 32."""
        c2 = self.to_c2(images)
        c3 = self.to_c3(c2)
        return self.finish((c2, c3, self.to_c4(c3)))


class DenseAttentionPool(nn.Module):
    """CLIP's attention pool with one output per position instead of one per image, and a new residual branch.

    Source: Radford et al. 2021 (CLIP), Sec. 2.4, for the pool; CRIS's code for the dense form. In it, every position
    attends to all positions, and there is no class token. A 1x1 convolution of the input with batch norm is added, and
    a ReLU follows. The position table keeps CLIP's unused row of the class token, so that CLIP's weights can be loaded
    unchanged.
    """

    def __init__(self, *, in_dim: int, out_dim: int, num_heads: int, table_side: int = 7) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.table_side = table_side
        self.positional_embedding = nn.Parameter(Tensor(table_side**2 + 1, in_dim))
        nn.init.normal_(self.positional_embedding, std=in_dim**-0.5)
        self.q_proj = nn.Linear(in_dim, in_dim)
        self.k_proj = nn.Linear(in_dim, in_dim)
        self.v_proj = nn.Linear(in_dim, in_dim)
        self.c_proj = nn.Linear(in_dim, out_dim)
        self.connect = nn.Sequential(nn.Conv2d(in_dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim))

    def forward(self, x: Float[Tensor, "I C h w"]) -> Float[Tensor, "I D h w"]:
        """Return the pooled map. The position table is resized bicubically from 7 x 7 to h x w."""
        grid = x.shape[2:]
        table = self.positional_embedding[1:].T.unflatten(1, (self.table_side, self.table_side))
        positions = F.interpolate(table[None], size=grid, mode="bicubic", align_corners=False)
        tokens = (x + positions.to(x.dtype)).flatten(2).transpose(1, 2)  # (I, h*w, C)
        attended = F.scaled_dot_product_attention(
            *(
                p(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for p in (self.q_proj, self.k_proj, self.v_proj)
            )
        )
        pooled = self.c_proj(attended.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, tuple(grid))
        return F.relu(pooled + self.connect(x))


class ClipResNet(ImageEncoder):
    """CLIP's modified ResNet-50 or -101. The last map is the output of the dense attention pool.

    Source: Radford et al. 2021, Sec. 2.4; FCNet Sec. 3.1 (stages 2 to 4). The pool is kept as in CRIS's code: without
    it, FCNet's parameter count would differ from the published one by 7 %.
    """

    image_mean, image_std = CLIP_MEAN, CLIP_STD

    def __init__(self, *, depth: int) -> None:
        """Create the backbone and the pool with random weights.

        Args:
            depth: Depth of the ResNet, 50 or 101.
        """
        super().__init__()
        self.backbone = timm.create_model(f"resnet{depth}_clip", features_only=True, out_indices=(2, 3, 4))
        self.attnpool = DenseAttentionPool(in_dim=2048, out_dim={50: 1024, 101: 512}[depth], num_heads=32)
        self.channels = (512, 1024, {50: 1024, 101: 512}[depth])

    def to_c2(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C2 h2 w2"]:
        """Run the stem and the first two stages."""
        net, x = self.backbone, images
        for part in ("stem_conv1", "stem_conv2", "stem_conv3", "stem_pool", "stages_0", "stages_1"):
            x = net[part](x)
        return x

    def to_c3(self, c2: Float[Tensor, "I C2 h2 w2"]) -> Float[Tensor, "I C3 h3 w3"]:
        """Run the third stage."""
        return self.backbone["stages_2"](c2)

    def to_c4(self, c3: Float[Tensor, "I C3 h3 w3"]) -> Float[Tensor, "I C4 h4 w4"]:
        """Run the fourth stage and the dense attention pool."""
        net = self.backbone
        return self.attnpool(net["final_conv"](net["stages_3"](c3)))


class SwinBase(ImageEncoder):
    """Swin-Base with window 12 and a newly initialised LayerNorm on each output.

    Source: Liu et al. 2021, "Swin Transformer". Window, pretraining (ImageNet-22k at 384 px), output norms and a drop
    path of 0.3 are as in LAVT's code. timm shifts a map before padding it, LAVT's copy pads it first. At 480 px the
    last two stages pad (15 x 15 to 24 x 24), so that weights trained with LAVT's code give other results here.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    channels = (256, 512, 1024)

    def __init__(self, *, input_size: tuple[int, int], pretrained: bool = False, drop_path: float = 0.3) -> None:
        """Create the backbone for one input size. Other sizes are accepted at run time.

        Args:
            input_size: `(height, width)` in pixels.
            pretrained: Load timm's ImageNet-22k weights, which timm downloads.
            drop_path: Stochastic depth rate of the last block. The rate grows linearly from 0 at the first block.
        """
        super().__init__()
        self.backbone = timm.create_model(
            "swin_base_patch4_window12_384.ms_in22k",
            pretrained=pretrained,
            features_only=True,
            out_indices=(1, 2, 3),
            img_size=input_size,
            strict_img_size=False,
            drop_path_rate=drop_path,
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.channels)

    def to_c2(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C2 h2 w2"]:
        """Run the patch embedding and the first two stages. In timm, each later stage begins by merging patches."""
        net = self.backbone
        return _channels_first(net["layers_1"](net["layers_0"](net["patch_embed"](images))))

    def to_c3(self, c2: Float[Tensor, "I C2 h2 w2"]) -> Float[Tensor, "I C3 h3 w3"]:
        """Run the third stage."""
        return _channels_first(self.backbone["layers_2"](_channels_last(c2)))

    def to_c4(self, c3: Float[Tensor, "I C3 h3 w3"]) -> Float[Tensor, "I C4 h4 w4"]:
        """Run the fourth stage."""
        return _channels_first(self.backbone["layers_3"](_channels_last(c3)))

    def finish(self, maps: FeatureMaps) -> FeatureMaps:
        """Normalise each map for the output. The next stage reads the map without this norm."""
        c2, c3, c4 = (_channels_first(norm(_channels_last(x))) for norm, x in zip(self.norms, maps, strict=True))
        return c2, c3, c4


class DarkNet53(ImageEncoder):
    """DarkNet-53. The last three stages give the maps, and the backbone is timm's.

    Source: Redmon and Farhadi 2018, "YOLOv3". Later papers report that LTS starts from a detector trained on COCO. Such
    a start leaks evaluation data: the pictures of RefCOCO, RefCOCO+ and RefCOCOg are those of COCO's train2014, so a
    detector trained on all of COCO has seen the pictures and boxes of val and test. MCN's code (Luo et al. 2020)
    therefore trains a detector without them. Here the weights start random.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    channels = (256, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("darknet53", features_only=True, out_indices=(3, 4, 5))

    def to_c2(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C2 h2 w2"]:
        """Run the stem and the stages up to stride 8."""
        x = images
        for part in ("stem_conv1", "stages_0", "stages_1", "stages_2"):
            x = self.backbone[part](x)
        return x

    def to_c3(self, c2: Float[Tensor, "I C2 h2 w2"]) -> Float[Tensor, "I C3 h3 w3"]:
        """Run the fourth stage."""
        return self.backbone["stages_3"](c2)

    def to_c4(self, c3: Float[Tensor, "I C3 h3 w3"]) -> Float[Tensor, "I C4 h4 w4"]:
        """Run the fifth stage."""
        return self.backbone["stages_4"](c3)


class TinyResNet(ImageEncoder):
    """A narrow ResNet-10 for the toy recipes. It trains from scratch on a CPU in minutes. It is not from a paper."""

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    channels = (48, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(
            BasicBlock, (1, 1, 1, 1), channels=(24, *self.channels), stem_width=16, stem_type="deep", num_classes=0
        )
        del self.backbone.global_pool, self.backbone.fc

    def to_c2(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C2 h2 w2"]:
        """Run the stem and the first two stages."""
        net = self.backbone
        return net.layer2(net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images))))))

    def to_c3(self, c2: Float[Tensor, "I C2 h2 w2"]) -> Float[Tensor, "I C3 h3 w3"]:
        """Run the third stage."""
        return self.backbone.layer3(c2)

    def to_c4(self, c3: Float[Tensor, "I C3 h3 w3"]) -> Float[Tensor, "I C4 h4 w4"]:
        """Run the fourth stage."""
        return self.backbone.layer4(c3)


def build_image_encoder(name: str, input_size: tuple[int, int]) -> ImageEncoder:
    """Build an image encoder with random weights.

    Args:
        name: A name of `refseg.model_config.ImageEncoderName`.
        input_size: Input `(height, width)` in pixels. Both must be multiples of 32.

    Raises:
        ValueError: If the name is unknown.
    """
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


def _channels_first(x: Float[Tensor, "I h w C"]) -> Float[Tensor, "I C h w"]:
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Float[Tensor, "I C h w"]) -> Float[Tensor, "I h w C"]:
    return x.permute(0, 2, 3, 1)
