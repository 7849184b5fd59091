"""Densities and colours at points: features of a hash grid or of three planes, and small networks without biases.

Points are in [-1, 1]^3. Each lookup has a slow twin in plain gathers, which can be differentiated twice; normals need
that. It is also the one on a GPU, where the fast ones add up in no fixed order.

Source: hash grid: Mueller et al. 2022 (arXiv 2201.05989), with the conventions of tiny-cuda-nn; density and
colour: threestudio's implicit volume, with the bias "blob_magic3d".
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.scenes.nerf import options

PRIMES = (1, 2654435761, 805459861)
START = 1e-4  # features begin within this


class HashGrid(nn.Module):
    """Features of grids from coarse to fine, interpolated between the 8 entries around a point."""

    def __init__(self, options: options.HashGrid) -> None:
        """As large as the options say, without values."""
        super().__init__()
        last = max(1, options.levels - 1)
        growth = math.exp(math.log(options.finest / options.coarsest) / last)
        self.scales = [options.coarsest * growth**level - 1 for level in range(options.levels)]
        self.sides = [math.ceil(scale) + 1 for scale in self.scales]
        most = 1 << options.log2_size
        self.sizes = [min((side**3 + 7) // 8 * 8, most) for side in self.sides]
        self.table = nn.Parameter(torch.empty(sum(self.sizes), options.features))
        self.width = options.levels * options.features

    def forward(self, x: Float[Tensor, "M 3"], twice: bool = False) -> Float[Tensor, "M F"]:
        """Features. Gradient: to the table, and to x; `twice` if the latter is to be differentiated again."""
        y, found = (x + 1) / 2, []
        for level, table in enumerate(self.table.split(self.sizes)):
            place, weight = self.corners(y, level)
            if twice or x.is_cuda:
                found.append((F.embedding(place, table) * weight[..., None]).sum(1))
            else:
                found.append(F.embedding_bag(place, table, per_sample_weights=weight, mode="sum"))
        return torch.cat(found, 1)

    def corners(self, y: Float[Tensor, "M 3"], level: int) -> tuple[Int[Tensor, "M 8"], Float[Tensor, "M 8"]]:
        """The 8 entries of a level around points in [0, 1]^3, and their weights."""
        scaled = y * self.scales[level] + 0.5
        low = scaled.detach().floor()
        high = scaled - low
        near = torch.stack([1 - high, high], -1)  # (M, 3, 2)
        weight = near[:, 0, :, None, None] * near[:, 1, None, :, None] * near[:, 2, None, None, :]
        index = low.long()[..., None] + torch.arange(2, device=y.device)
        side, size = self.sides[level], self.sizes[level]
        if side**3 <= size:
            a, b, c = (index[:, i] * side**i for i in range(3))
            place = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
        else:
            a, b, c = (index[:, i] * PRIMES[i] for i in range(3))
            place = a[:, :, None, None] ^ b[:, None, :, None] ^ c[:, None, None, :]
        return (place % size).flatten(1), weight.flatten(1)


class TriPlane(nn.Module):
    """Features of three planes, interpolated between the 4 entries around a point, side by side."""

    def __init__(self, options: options.TriPlane) -> None:
        """As large as the options say, without values."""
        super().__init__()
        self.planes = nn.Parameter(torch.empty(3, options.features, options.side, options.side))
        self.width = 3 * options.features

    def forward(self, x: Float[Tensor, "M 3"], twice: bool = False) -> Float[Tensor, "M F"]:
        """Features. Gradient: to the planes, and to x; `twice` if the latter is to be differentiated again."""
        at = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]])  # (3, M, 2): column, row
        if twice or x.is_cuda:
            found = self.gathered(at)
        else:
            found = F.grid_sample(self.planes, at[:, None], padding_mode="border", align_corners=True)[:, :, 0]
        return found.movedim(2, 0).flatten(1)

    def gathered(self, at: Float[Tensor, "3 M 2"]) -> Float[Tensor, "3 F M"]:
        """The same by gathers."""
        side = self.planes.shape[-1]
        scaled = (at.clamp(-1, 1) + 1) / 2 * (side - 1)
        low = scaled.detach().floor().clamp(max=side - 2)
        high = scaled - low
        near = torch.stack([1 - high, high], -1)  # (3, M, 2, 2): column or row, low or high
        weight = (near[:, :, 1, :, None] * near[:, :, 0, None, :]).flatten(2)
        index = low.long()[..., None] + torch.arange(2, device=at.device)
        place = (index[:, :, 1, :, None] * side + index[:, :, 0, None, :]).flatten(2)  # (3, M, 4)
        tables = self.planes.flatten(2).mT  # (3, side * side, F)
        found = [(F.embedding(i, t) * w[..., None]).sum(1) for i, t, w in zip(place, tables, weight, strict=True)]
        return torch.stack(found).mT


class Mlp(nn.Module):
    """Linear layers without biases, ReLU between them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Layers from each size to the next, without values."""
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.empty(after, before)) for before, after in pairwise(sizes))

    def forward(self, x: Float[Tensor, "M F"]) -> Float[Tensor, "M G"]:
        """The last layer's values."""
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(F.linear(x, layer))
        return F.linear(x, last)


class Field(nn.Module):
    """Density and colour."""

    def __init__(self, options: options.NerfOptions) -> None:
        """As large as the options say, without values."""
        super().__init__()
        self.height, self.radius = options.blob
        self.grid = HashGrid(options.hash) if options.grid == "hash" else TriPlane(options.triplane)
        self.density_net = Mlp([self.grid.width, options.hidden, 1])
        self.color_net = Mlp([self.grid.width, options.hidden, 3])

    def density(self, x: Float[Tensor, "M 3"], twice: bool = False) -> tuple[Float[Tensor, "M"], Float[Tensor, "M F"]]:
        """How much light is taken per unit of the field, 0 or more, and the features that `color` takes."""
        code = self.grid(x, twice)
        far = (x.square().sum(1) + 1e-12).sqrt()  # its second derivative at 0 is finite
        blob = self.height * (1 - far / self.radius)
        return F.softplus(self.density_net(code)[:, 0] + blob), code

    def color(self, code: Float[Tensor, "M F"]) -> Float[Tensor, "M 3"]:
        """RGB in (0, 1)."""
        return self.color_net(code).sigmoid()


def begin(module: nn.Module, generator: torch.Generator) -> None:
    """Give a field or a background its first values: small features, weights as of torch's linear layers."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            reach = START if name.rpartition(".")[2] in ("table", "planes") else parameter.shape[1] ** -0.5
            parameter.copy_(reach * (2 * torch.rand(parameter.shape, generator=generator) - 1))
