"""What a published generator keeps for its backward pass: counted, without a GPU or memory for it.

    python benchmarks/activations.py [--variant pas|sd15|sd35m|cube] [--batch-size 4] [--tokens N]

The networks have their published sizes, the denoiser in bfloat16, its adapter, on all layers that the public code
adapts, in float32, the GS-VAE in float32; tensors are on torch's device "meta", where they have shapes and no numbers.
Counted are the different storages that autograd is given for the backward pass, weights left out. Attention counts as
a fused kernel has it, which keeps its inputs, its output and a float32 number for each row of scores, and no scores.
What a kernel needs for itself while it runs, and gradients, are not counted.

Rows: the denoiser for a batch with guidance; with the layers of peft in the place of WideLinear; with
`--model.recompute`, which in the backward pass needs what one block keeps on top; both decoders, for one object. Of
GaussianCube (cube), which has no decoder to speak of, with attention alone adapted and with all layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from full_size import MODELS, TOKENS, generator

from align3d.models.nets.wide_linear import WideLinear
from align3d.models.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from align3d.models.diffsplat import DiffSplat
    from align3d.models.gaussiancube import GaussianCube

GIB = 2**30
ATTENTION = F.scaled_dot_product_attention


def kept(function: Callable[[], Any], frozen: Iterable[Tensor]) -> int:
    """The bytes that a function leaves for the backward pass, frozen tensors not counted."""
    own = {tensor.untyped_storage()._cdata for tensor in frozen}  # storages of "meta" have no address in memory
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with (
        patch.object(F, "scaled_dot_product_attention", attention),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        out = function()
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Attention; where there are no numbers, only what is kept of it: torch would take the one that keeps scores."""
    if not q.is_meta:
        return ATTENTION(q, k, v, attn_mask=attn_mask, **options)
    return Fused.apply(q, k, v, attn_mask)


class Fused(torch.autograd.Function):
    """What fused kernels keep."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes alone."""
        out = torch.empty_like(q)  # laid out like q, so that joining the heads copies nothing
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def denoiser(model: DiffSplat, batch_size: int, tokens: int) -> int:
    """Bytes of one prediction with guidance, for texts of at most so many tokens."""
    rows, config = 2 * batch_size, model.network.config
    make = partial(torch.ones, device=model.device)
    width, pooled = config[model.options.width], config.get("pooled_projection_dim", 0)
    text = Text(make(rows, tokens, width), make(rows, tokens), make(rows, pooled) if pooled else None, most=tokens)
    views, _, *sides = model.latent_shape
    x = make(rows, views, config.in_channels, *sides)
    frozen = [*model.network.parameters(), *model.network.buffers()]
    return kept(lambda: model.denoiser(x, make(rows), text), frozen)


def cube(model: GaussianCube, batch_size: int, tokens: int) -> int:
    """The same of GaussianCube."""
    from align3d.models.gaussiancube import CubeCond

    make = partial(torch.ones, device=model.device)
    text = CubeCond(text=make(batch_size, tokens, model.network.architecture.text))
    weights = [*model.network.parameters(), *model.network.buffers()]
    return kept(lambda: model.clean(make(batch_size, *model.latent_shape), make(batch_size), text), weights)


def decoder(model: DiffSplat) -> int:
    """Bytes of one object's decoding."""
    x0 = torch.empty(1, *model.latent_shape, device="meta", requires_grad=True)
    return kept(lambda: model.codec.decode(x0), [*model.codec.parameters(), *model.codec.buffers()])


def as_peft_has_it(model: DiffSplat) -> DiffSplat:
    """With the layers of peft in the place of WideLinear."""
    for layer in model.adapter.layers:
        if isinstance(layer.lora_A["default"], WideLinear):
            layer.lora_A["default"].__class__, layer.cast_input_dtype_enabled = torch.nn.Linear, True
    return model


def rows(variant: str, batch_size: int, tokens: int, tiny: bool = False) -> dict[str, int]:
    """The table: what, and its bytes."""
    if variant == "cube":
        make = partial(generator, variant, "meta", torch.bfloat16, tiny)
        return {
            f"{what}{how}": cube(make(layers=layers, recompute=bool(how)), batch_size, tokens)
            for what, layers in (("denoiser", "attention"), ("all layers", "all"))
            for how in ("", ", recomputed")
        }
    make = partial(generator, variant, "meta", torch.bfloat16, tiny, layers="all")
    return {
        "denoiser": denoiser(make(), batch_size, tokens),
        "denoiser, layers of peft": denoiser(as_peft_has_it(make()), batch_size, tokens),
        "denoiser, recomputed": denoiser(make(recompute=True), batch_size, tokens),
        "full decoder": decoder(make()),
        "tiny decoder": decoder(make(decoder="tiny")),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=MODELS, default="pas")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, help="of the longest text; default: 32 of pas, else with all padding")
    options = parser.parse_args()
    tokens = options.tokens or {"pas": 32}.get(options.variant, TOKENS[options.variant])
    for name, size in rows(options.variant, options.batch_size, tokens).items():
        print(f"{name:<26}{size / GIB:7.2f} GiB")


if __name__ == "__main__":
    main()
