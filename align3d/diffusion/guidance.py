"""Classifier-free guidance (Ho and Salimans 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def guide(cond: Float[Tensor, "*D"], uncond: Float[Tensor, "*D"], scale: float) -> Float[Tensor, "*D"]:
    """The guided prediction: scale 0 is unconditional, 1 conditional, more goes beyond.

    The same formula serves eps, v, x0 and flow predictions: for fixed x they are affine in one another.
    """
    return uncond + scale * (cond - uncond)
