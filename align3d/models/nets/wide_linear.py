"""A float32 linear layer for bfloat16 inputs, which remembers them as they came.

peft casts the input of an adapter's first matrix to float32, and autograd keeps that copy for the matrix's gradient:
three of them where q, k and v read the same tokens. In the PixArt denoiser of 0.6 billion parameters, all its linear
layers adapted, float32 tensors are 11.0 of the 19.0 GiB that a batch of 4 with guidance keeps. Here the cast is made
again in the backward pass instead, which leaves 11.5 GiB (counted by benchmarks/activations.py); numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class WideLinear(nn.Linear):
    """A linear layer without bias, in the type of its weights; its output is in it too."""

    def forward(self, input: Float[Tensor, "*S i"]) -> Float[Tensor, "*S o"]:
        """The product. Under autocast, which casts by itself, that of nn.Linear."""
        if input.dtype == self.weight.dtype or _casts(input.device.type):
            return super().forward(input)
        return _Product.apply(input, self.weight)


def _casts(device: str) -> bool:
    """Whether autocast is on; on "meta", which has none, torch would raise."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to(weight.dtype), weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = (grad @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        of_weight = grad.flatten(0, -2).mT @ x.flatten(0, -2).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_weight
