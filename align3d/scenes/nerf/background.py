"""What is behind the object while it is optimised: a plain colour, a random one, or a network of the direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from align3d.scenes.nerf.fields import Mlp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.scenes.nerf.options import Backdrop

WIDTH = 16  # of the network


def harmonics(d: Float[Tensor, "R 3"]) -> Float[Tensor, "R 9"]:
    """The real spherical harmonics up to degree 2 at unit directions, as tiny-cuda-nn has them for "degree 3"."""
    x, y, z = d.unbind(1)
    return torch.stack(
        [
            *(torch.full_like(x, 0.28209479177387814), -0.48860251190291987 * y, 0.48860251190291987 * z),
            *(-0.48860251190291987 * x, 1.0925484305920792 * x * y, -1.0925484305920792 * y * z),
            *(0.94617469575755997 * z * z - 0.31539156525251999, -1.0925484305920792 * x * z),
            0.54627421529603959 * (x * x - y * y),
        ],
        1,
    )


class Background(nn.Module):
    """Colours by direction."""

    def __init__(self) -> None:
        """Without values."""
        super().__init__()
        self.net = Mlp([9, WIDTH, WIDTH, 3])

    def forward(self, direction: Float[Tensor, "R 3"]) -> Float[Tensor, "R 3"]:
        """RGB in (0, 1). Gradient: to the network."""
        return self.net(harmonics(direction)).sigmoid()


def behind(
    options: Backdrop,
    network: Background | None,
    direction: Float[Tensor, "R 3"],
    rng: Streams,
    plain: Sequence[float],
) -> Float[Tensor, "R 3"]:
    """The colours behind the object in an update; a random one is shared by all that see it."""
    toss = torch.rand(4, generator=rng.common("backdrop"))
    if float(toss[0]) < options.random:
        return toss[1:].to(direction).expand(len(direction), 3)
    return direction.new_tensor(plain).expand(len(direction), 3) if network is None else network(direction)
