"""Gradients of rows that do not mix, taken a few rows at a time and at once, so that no graph waits to be run back.

A row is an object or a picture: its values depend on nothing else.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor


def in_parts(
    function: Callable[[Float[Tensor, "m *i"], slice], Float[Tensor, "m"]], x: Float[Tensor, "n *i"], size: int = 0
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n *i"] | None]:
    """One number per row and its slope, the gradient by that row, with the graph of one part held at a time.

    Args:
        function: From some rows, and which of all they are, to one number each.
        x: Rows.
        size: Rows in a part; the last has what is left. 0: all in one.

    Returns:
        Numbers and slopes, both without a graph; slopes are None if `x` wants no gradient or no number has one.
    """
    import torch

    wanted, found = torch.is_grad_enabled() and x.requires_grad, False
    values, slopes, total = [], [], max(len(x), 1)
    for first in range(0, total, size or total):
        rows = slice(first, first + (size or total))
        part = x[rows].detach().requires_grad_(wanted)
        value = function(part, rows)
        slope = None
        if wanted and value.requires_grad:
            with torch.autocast(x.device.type, enabled=False):  # else it would round the products of the way back
                (slope,) = torch.autograd.grad(value.sum(), part, allow_unused=True)
        found = found or slope is not None
        if wanted:
            slopes.append(torch.zeros_like(part) if slope is None else slope)
        values.append(value.detach())
    return torch.cat(values), torch.cat(slopes) if found else None


def with_slopes(
    x: Float[Tensor, "n *i"], values: Float[Tensor, "n"], slopes: Float[Tensor, "n *i"]
) -> Float[Tensor, "n"]:
    """The values as a function of x, whose gradient is known already. A second derivative is not to be had."""
    return _with_slopes().apply(x, values, slopes)


def clipped(gradient: Float[Tensor, "n *i"], max_norm: float) -> Float[Tensor, "n *i"]:
    """The same, each row no longer than `max_norm` in L2; the direction stays."""
    exact = gradient.double()  # squares of large numbers overflow
    factor = (max_norm / exact.flatten(1).norm(dim=1).clamp_min(1e-300)).clamp_max(1)
    return (exact * factor.reshape(-1, *(1,) * (exact.ndim - 1))).to(gradient.dtype)


def dead(gradient: Float[Tensor, "n *i"]) -> Bool[Tensor, "n"]:
    """Which rows are 0 throughout."""
    return ~gradient.flatten(1).any(1)


@functools.cache
def _with_slopes() -> type[torch.autograd.Function]:
    """A class made on first use, as this module does not load torch."""
    import torch

    class WithSlopes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
            ctx.save_for_backward(slopes)
            return values.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
            (slopes,) = ctx.saved_tensors
            return grad.reshape(-1, *(1,) * (slopes.ndim - 1)) * slopes, None, None

    return WithSlopes
