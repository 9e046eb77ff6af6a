"""Image encoders: pictures to three feature maps at strides 8, 16 and 32. All backbones are timm's."""

import timm
from jaxtyping import Float
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

FeatureMaps = tuple[Float[Tensor, "I C2 h2 w2"], Float[Tensor, "I C3 h3 w3"], Float[Tensor, "I C4 h4 w4"]]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module):
    """What every encoder promises.

    Attributes:
        channels: Of the maps at strides 8, 16 and 32.
        image_mean: RGB mean the pictures are normalised with, of a range of 0 to 1.
        image_std: RGB standard deviation they are normalised with.
    """

    channels: tuple[int, int, int]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> FeatureMaps:
        """Encode normalised images whose sides are multiples of 32."""
        raise NotImplementedError


class DenseAttentionPool(nn.Module):
    """CLIP's attention pool with one output per position instead of one per image, and a new residual branch.

    Source: Radford et al. 2021 (CLIP) Sec. 2.4 for the pool; CRIS's code for the dense form: every position
    queries all positions, no class token, plus a 1x1 convolution with batch norm of the input, then ReLU.
    The position table keeps CLIP's class row, unused, so that CLIP's weights load as they are.
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
        """Pool densely; positions are resized (bicubic) from 7 x 7 to h x w."""
        grid = x.shape[2:]
        table = self.positional_embedding[1:].T.unflatten(1, (self.table_side, self.table_side))
        positions = F.interpolate(table[None], size=grid, mode="bicubic", align_corners=False)
        tokens = (x + positions.to(x.dtype)).flatten(2).transpose(1, 2)  # (I, h*w, C)
        heard = F.scaled_dot_product_attention(
            *(
                p(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
                for p in (self.q_proj, self.k_proj, self.v_proj)
            )
        )
        pooled = self.c_proj(heard.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, tuple(grid))
        return F.relu(pooled + self.connect(x))


class ClipResNet(ImageEncoder):
    """CLIP's modified ResNet-50 or -101 with the dense attention pool as its last map.

    Source: Radford et al. 2021 Sec. 2.4; FCNet Sec. 3.1 (stages 2 to 4), the pool kept as in CRIS's code:
    without it FCNet's parameter count misses the published one by 7 %.
    """

    image_mean, image_std = CLIP_MEAN, CLIP_STD

    def __init__(self, *, depth: int) -> None:
        """Build with random weights.

        Args:
            depth: 50 or 101.
        """
        super().__init__()
        self.backbone = timm.create_model(f"resnet{depth}_clip", features_only=True, out_indices=(2, 3, 4))
        self.attnpool = DenseAttentionPool(in_dim=2048, out_dim={50: 1024, 101: 512}[depth], num_heads=32)
        self.channels = (512, 1024, {50: 1024, 101: 512}[depth])

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> FeatureMaps:
        """Encode normalised images whose sides are multiples of 32."""
        c2, c3, c4 = self.backbone(images)
        return c2, c3, self.attnpool(c4)


class SwinBase(ImageEncoder):
    """Swin-Base, window 12, with a fresh LayerNorm on each output.

    Source: Liu et al. 2021; window, pretraining (ImageNet-22k at 384), output norms and drop path 0.3 as in
    LAVT's code. timm rolls before it pads, LAVT's copy pads before it rolls: at 480 px the last two stages are
    not equal between the two (15 x 15 padded to 24), so LAVT-style weights do not carry over exactly.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    channels = (256, 512, 1024)

    def __init__(self, *, input_size: tuple[int, int], pretrained: bool = False, drop_path: float = 0.3) -> None:
        """Build for one input size; others are accepted at run time.

        Args:
            input_size: `(height, width)` in pixels.
            pretrained: Load timm's ImageNet-22k weights (downloaded by timm).
            drop_path: Stochastic depth rate of the last block, growing linearly from 0.
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

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> FeatureMaps:
        """Encode normalised images whose sides are multiples of 32."""
        c2, c3, c4 = (norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, self.backbone(images), strict=True))
        return c2, c3, c4


class TinyResNet(ImageEncoder):
    """A ResNet-10 of narrow stages: trains from scratch on a CPU in minutes. Ours, for the toy recipes."""

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    channels = (48, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(
            BasicBlock, (1, 1, 1, 1), channels=(24, *self.channels), stem_width=16, stem_type="deep", num_classes=0
        )
        del self.backbone.global_pool, self.backbone.fc

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> FeatureMaps:
        """Encode normalised images whose sides are multiples of 32."""
        net = self.backbone
        x = net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images)))))
        c2 = net.layer2(x)
        c3 = net.layer3(c2)
        return c2, c3, net.layer4(c3)
