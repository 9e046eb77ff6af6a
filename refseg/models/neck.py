"""The neck: three feature maps to one at stride 16 that knows its coordinates, gated by a sentence where wanted."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; the size is kept."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_dim, out_dim, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
            nn.BatchNorm2d(out_dim),
            nn.ReLU(inplace=True),
        )


class NeckLevels(NamedTuple):
    """What a neck makes of I images before the gate: the image state of LTS and CRIS, where a sentence gates it."""

    level3: Float[Tensor, "I C3 h w"]
    """From stride 8, pooled to stride 16."""
    level4: Float[Tensor, "I C4 h w"]
    """From stride 16."""
    level5: Float[Tensor, "I C5 h2 w2"]
    """From stride 32; the level that is gated."""


class TextGate(nn.Module):
    """The sentence opens and shuts channels: ReLU(BN(x * ReLU(BN(W s)))).

    Source: the cross-modal neck of CRIS (Wang et al. 2022, "CRIS: CLIP-Driven Referring Image Segmentation", F_m4), by
    its code (`FPN.txt_proj`, `FPN.norm_layer`). There W takes as many numbers as the last map has channels, which is
    the sentence's width for CLIP's ResNets alone; here the sentence's own width. In training, batch norm needs two
    sentences or more in a process.
    """

    def __init__(self, *, sentence_dim: int, dim: int) -> None:
        """Build.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: Channels of the map that is gated.
        """
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(sentence_dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)
        )
        self.norm = nn.Sequential(nn.BatchNorm2d(dim), nn.ReLU(inplace=True))

    def forward(self, x: Float[Tensor, "B C h w"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B C h w"]:
        """Gate each channel of a map by the sentence."""
        return self.norm(x * self.project(sentence)[:, :, None, None])


class VisionNeck(nn.Module):
    """Fuses the maps at strides 8, 16, 32 into one at stride 16.

    Source: FCNet Sec. 3.2, Eqs. (1) to (3), with the widths and the batch norms of CRIS's code, from which CRIS's
    text gate is removed (Eq. 1 has no text). F_m4 is 2C wide: only that fits the published counts. With `gate` it is
    CRIS's own neck: `levels` is the image's part (8.6 of 19.9 GMAC at 480 px), and `fuse` the sentence's.
    """

    gate: TextGate | None

    def __init__(self, *, in_dims: tuple[int, int, int], dim: int, gate: TextGate | None = None) -> None:
        """Build.

        Args:
            in_dims: Channels of the maps at strides 8, 16 and 32.
            dim: C, channels of the fused map.
            gate: Lets a sentence weigh the 2C channels of the level at stride 32; None for FCNet's neck.
        """
        super().__init__()
        self.gate = gate
        self.reduce5 = ConvNormReLU(in_dims[2], 2 * dim, 1)
        self.reduce4 = ConvNormReLU(in_dims[1], dim, 3)
        self.merge4 = ConvNormReLU(3 * dim, dim, 1)
        self.reduce3 = ConvNormReLU(in_dims[0], dim // 2, 3)
        self.merge3 = ConvNormReLU(dim // 2 + dim, dim, 1)
        self.smooth5 = ConvNormReLU(2 * dim, dim, 3)
        self.smooth4 = ConvNormReLU(dim, dim, 3)
        self.smooth3 = ConvNormReLU(dim, dim, 3)
        self.aggregate = ConvNormReLU(3 * dim, dim, 1)
        self.coordinates = nn.Sequential(ConvNormReLU(dim + 2, dim, 3), ConvNormReLU(dim, dim, 3))

    def forward(
        self,
        c2: Float[Tensor, "I C2 h2 w2"],
        c3: Float[Tensor, "I C3 h w"],
        c4: Float[Tensor, "I C4 h4 w4"],
    ) -> Float[Tensor, "I C h w"]:
        """Fuse without a sentence; the sides of `c3` are twice those of `c4` (input sides are multiples of 32)."""
        return self.fuse(self.levels(c2, c3, c4))

    def levels(
        self,
        c2: Float[Tensor, "I C2 h2 w2"],
        c3: Float[Tensor, "I C3 h w"],
        c4: Float[Tensor, "I C4 h4 w4"],
    ) -> NeckLevels:
        """All that comes before a gate; arguments as of `forward`."""
        return NeckLevels(level3=F.avg_pool2d(self.reduce3(c2), 2), level4=self.reduce4(c3), level5=self.reduce5(c4))

    def fuse(self, levels: NeckLevels, sentence: Float[Tensor, "B S"] | None = None) -> Float[Tensor, "B C h w"]:
        """The rest.

        Args:
            levels: Of each sentence's image.
            sentence: Features of the B sentences, for a neck with a gate.
        """
        f5 = levels.level5 if self.gate is None else self.gate(levels.level5, sentence)
        f4 = self.merge4(torch.cat([levels.level4, upsample(f5)], dim=1))
        f3 = self.merge3(torch.cat([levels.level3, f4], dim=1))
        maps = [self.smooth3(f3), self.smooth4(f4), upsample(self.smooth5(f5))]
        fused = self.aggregate(torch.cat(maps, dim=1))
        return self.coordinates(torch.cat([fused, coordinate_maps(fused)], dim=1))


def upsample(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 2*h 2*w"]:
    """Bilinear, twice as large, corners not aligned."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def coordinate_maps(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 2 h w"]:
    """Horizontal, then vertical place of each position, -1 to 1 from edge to edge, both included (CRIS's CoordConv)."""
    h, w = x.shape[2:]
    y, xs = torch.meshgrid(
        torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype),
        torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype),
        indexing="ij",
    )
    return torch.stack([xs, y]).expand(x.shape[0], -1, -1, -1)
