"""Linear layers with nothing between them, which are one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float
    from torch import Tensor


def affine(layers: Iterable[tuple[Tensor, Tensor]]) -> tuple[Float[Tensor, "o i"], Float[Tensor, "o"]]:
    """Slope and offset of weights (o, i) and biases (o) in the order in which they are applied, in float64.

    Gradient: to them.
    """
    (slope, offset), *others = ((weight.double(), bias.double()) for weight, bias in layers)
    for weight, bias in others:
        slope, offset = weight @ slope, weight @ offset + bias
    return slope, offset
