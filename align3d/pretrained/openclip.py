"""OpenCLIP's names of a CLIP's tensors, in those of transformers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

PLAIN = {  # tensors, and modules with a weight and a bias
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}  # inputs first
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
JOINED = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")  # query, key and value


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under transformers' names; what is not known keeps its name."""
    return {name: value for key, tensor in state.items() for name, value in _pieces(key, tensor)}


def _pieces(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Names and values that one tensor becomes."""
    if found := JOINED.fullmatch(key):
        if tensor.ndim and len(tensor) % 3 == 0:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{_layer(found[1], found[2])}.self_attn.{part}_proj.{found[3]}", piece
            return
    elif (found := BLOCK.fullmatch(key)) and found[3] in INSIDE:
        yield f"{_layer(found[1], found[2])}.{INSIDE[found[3]]}.{found[4]}", tensor
        return
    elif key in TURNED and tensor.ndim == 2:
        yield TURNED[key], tensor.T.contiguous()  # laid out as others are, for the same bits
        return
    head, _, end = key.rpartition(".")
    if key in PLAIN:
        key = PLAIN[key]
    elif head in PLAIN:
        key = f"{PLAIN[head]}.{end}"
    yield key, tensor


def _layer(visual: str | None, number: str) -> str:
    return f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
