"""The vision neck: three feature maps to one at stride 16 that knows its coordinates."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; the size is kept."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_dim),
            nn.ReLU(inplace=True),
        )


class VisionNeck(nn.Module):
    """Fuses the maps at strides 8, 16, 32 into F_v at stride 16.

    Source: FCNet Sec. 3.2, Eqs. (1) to (3), with the widths and the batch norms of CRIS's code, from which CRIS's
    text gate is removed (Eq. 1 has no text). F_m4 is 2C wide: only that fits the published counts.
    """

    def __init__(self, *, in_dims: tuple[int, int, int], dim: int) -> None:
        """Build.

        Args:
            in_dims: Channels of the maps at strides 8, 16 and 32.
            dim: C, channels of F_v.
        """
        super().__init__()
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
        """Fuse; the sides of `c3` are twice those of `c4` (input sides are multiples of 32)."""
        f5 = self.reduce5(c4)
        f4 = self.merge4(torch.cat([self.reduce4(c3), upsample(f5)], dim=1))
        f3 = self.merge3(torch.cat([F.avg_pool2d(self.reduce3(c2), 2), f4], dim=1))
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
    return torch.stack([xs, y]).expand(len(x), -1, -1, -1)
