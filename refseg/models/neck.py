"""The neck fuses three feature maps into one at stride 16 and adds coordinates. LTS and CRIS add a sentence gate."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormReLU(nn.Sequential):
    """A convolution without bias, a batch norm and a ReLU. The map keeps its size."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_dim, out_dim, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
            nn.BatchNorm2d(out_dim),
            nn.ReLU(inplace=True),
        )


class NeckLevels(NamedTuple):
    """Three levels that a neck computes from I images before the gate. They are the image state of LTS and CRIS."""

    level3: Float[Tensor, "I C3 h w"]
    """Level from the map at stride 8, pooled to stride 16."""
    level4: Float[Tensor, "I C4 h w"]
    """Level from the map at stride 16."""
    level5: Float[Tensor, "I C5 h2 w2"]
    """Level from the map at stride 32, which the sentence gates."""


class TextGate(nn.Module):
    """Multiplies each channel of a map with a gate computed from the sentence, ReLU(BN(x * ReLU(BN(W s)))).

    Source: the cross-modal neck of CRIS (Wang et al. 2022, "CRIS: CLIP-Driven Referring Image Segmentation", F_m4),
    after its code (`FPN.txt_proj`, `FPN.norm_layer`). There the input width of W is the number of channels of the last
    map, which equals the sentence's width only for CLIP's ResNets; here it is the sentence's width. In training, batch
    norm needs at least two sentences per process.
    """

    def __init__(self, *, sentence_dim: int, dim: int) -> None:
        """Create the projection of the sentence and the norms.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: Number of channels of the gated map.
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
    """Fuses the maps at strides 8, 16 and 32 into one at stride 16.

    Source: FCNet Sec. 3.2, Eqs. (1) to (3), with the widths and batch norms of CRIS's code but without its text gate,
    because Eq. (1) has no text. F_m4 is 2C wide, the only width that fits the published parameter counts. With `gate`
    this is CRIS's own neck: `levels` depends on the image alone (8.6 of 19.9 GMAC at 480 px), and `fuse` also on the
    sentence.
    """

    gate: TextGate | None

    def __init__(self, *, in_dims: tuple[int, int, int], dim: int, gate: TextGate | None = None) -> None:
        """Create the convolutions that reduce, merge and aggregate the maps.

        Args:
            in_dims: Numbers of channels of the maps at strides 8, 16 and 32.
            dim: C, number of channels of the fused map.
            gate: Gate with which a sentence weights the 2C channels of the level at stride 32. None for FCNet's neck.
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
        """Fuse the maps without a sentence.

        Args:
            c2: Map at stride 8.
            c3: Map at stride 16. Height and width are twice those of `c4`, because input sides are multiples of 32.
            c4: Map at stride 32.
        """
        return self.fuse(self.levels(c2, c3, c4))

    def levels(
        self,
        c2: Float[Tensor, "I C2 h2 w2"],
        c3: Float[Tensor, "I C3 h w"],
        c4: Float[Tensor, "I C4 h4 w4"],
    ) -> NeckLevels:
        """Compute the feature-pyramid levels from the image alone. `forward` describes the arguments."""
        return NeckLevels(level3=F.avg_pool2d(self.reduce3(c2), 2), level4=self.reduce4(c3), level5=self.reduce5(c4))

    def fuse(self, levels: NeckLevels, sentence: Float[Tensor, "B S"] | None = None) -> Float[Tensor, "B C h w"]:
        """Gate the level at stride 32 if there is a gate, fuse the levels, and add coordinates.

        Args:
            levels: Levels of each sentence's image.
            sentence: Features of the B sentences, for a neck with a gate.
        """
        f5 = levels.level5 if self.gate is None else self.gate(levels.level5, sentence)
        f4 = self.merge4(torch.cat([levels.level4, upsample(f5)], dim=1))
        f3 = self.merge3(torch.cat([levels.level3, f4], dim=1))
        maps = [self.smooth3(f3), self.smooth4(f4), upsample(self.smooth5(f5))]
        fused = self.aggregate(torch.cat(maps, dim=1))
        return self.coordinates(torch.cat([fused, coordinate_maps(fused)], dim=1))


def upsample(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 2*h 2*w"]:
    """Double the size of a map by bilinear interpolation without aligned corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def coordinate_maps(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 2 h w"]:
    """Return the x and y coordinate of each position, from -1 at the first to 1 at the last (CRIS's CoordConv)."""
    h, w = x.shape[2:]
    y, xs = torch.meshgrid(
        torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype),
        torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype),
        indexing="ij",
    )
    return torch.stack([xs, y]).expand(x.shape[0], -1, -1, -1)
