"""A tiny ImageReward in the layout of the published file, with the same weights everywhere, and a vocabulary for it."""

import math
from pathlib import Path

import torch
from tiny_yoso import noise, pictures
from torch import Tensor

from align3d.pretrained.blip import Sizes

WORDS = (  # of bert-base-uncased there are as many unused ones between the first
    *("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", ",", ".", "-", "a", "b", "c", "d", "##s", "##e"),
    *("red", "mug", "dog", "chair", "blue", "the", "on", "of", "with", "two", "cafe", "##d", "##ing", "un", "##afford"),
    *("##able", "paint", "'", "2", "##0", "very"),
)
SIZES = Sizes(32, 8, 16, 2, 2, len(WORDS) + 2, 40, 24, 2, 2)
PROMPTS = (
    "A RED mug, café-painted; two dogs!",
    "the unaffordable chair of a dog with  the 20 blues\ton it " + "very " * 30 + "blue",
    "",
    "[ENC] a\u4e2db zebra's [SEP] painting",
)


def shapes(sizes: Sizes = SIZES) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, of any size, in no order."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, into: int) -> None:
        found.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        found.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    w, v, image, text = sizes.width, sizes.text_width, "blip.visual_encoder", "blip.text_encoder"
    found[f"{image}.cls_token"] = (1, 1, w)
    found[f"{image}.pos_embed"] = (1, (sizes.side // sizes.patch) ** 2 + 1, w)
    found[f"{image}.patch_embed.proj.weight"] = (w, 3, sizes.patch, sizes.patch)
    found[f"{image}.patch_embed.proj.bias"] = (w,)
    norm(f"{image}.norm", w)
    for i in range(sizes.blocks):
        for name in ("norm1", "norm2"):
            norm(f"{image}.blocks.{i}.{name}", w)
        for name, out, into in (
            ("attn.qkv", 3 * w, w),
            ("attn.proj", w, w),
            ("mlp.fc1", 4 * w, w),
            ("mlp.fc2", w, 4 * w),
        ):
            linear(f"{image}.blocks.{i}.{name}", out, into)
    found[f"{text}.embeddings.position_ids"] = (1, sizes.places)
    found[f"{text}.embeddings.word_embeddings.weight"] = (sizes.words, v)
    found[f"{text}.embeddings.position_embeddings.weight"] = (sizes.places, v)
    norm(f"{text}.embeddings.LayerNorm", v)
    for i in range(sizes.text_layers):
        layer = f"{text}.encoder.layer.{i}"
        for part, seen in (("attention", v), ("crossattention", w)):
            for name, into in (("query", v), ("key", seen), ("value", seen)):
                linear(f"{layer}.{part}.self.{name}", v, into)
            linear(f"{layer}.{part}.output.dense", v, v)
            norm(f"{layer}.{part}.output.LayerNorm", v)
        linear(f"{layer}.intermediate.dense", 4 * v, v)
        linear(f"{layer}.output.dense", v, 4 * v)
        norm(f"{layer}.output.LayerNorm", v)
    linear("blip.vision_proj", 256, w)
    linear("blip.text_proj", 256, v)
    before = v
    for name, after in (("0", 1024), ("2", 128), ("4", 64), ("6", 16), ("7", 1)):
        linear(f"mlp.layers.{name}", after, before)
        before = after
    return found


def state() -> dict[str, Tensor]:
    """Weights of about the right size for states to keep theirs."""
    made = {}
    for i, (name, shape) in enumerate(sorted(shapes().items())):
        values = noise(math.prod(shape), 31 * i).reshape(shape)
        if "position_ids" in name:
            made[name] = torch.arange(shape[1])[None]
            continue
        if len(shape) == 1:
            values = 0.1 * values + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
        elif "embed" not in name or "proj" in name:
            values = values * math.sqrt(3 / math.prod(shape[1:]))
        made[name] = values.float()
    return made


def write(folder: Path, changed: dict[str, Tensor | None] | None = None) -> Path:
    """The published files; `changed` replaces tensors, or removes those that are None."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {key: value for key, value in {**state(), **(changed or {})}.items() if value is not None}
    torch.save(made, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def pixels() -> Tensor:
    """Four pictures of 8 bits, 40 x 56, in [0.15, 0.85], so that no resizing leaves [0, 1]."""
    return (255 * (0.15 + 0.7 * pictures(4, 40, 56))).round().to(torch.uint8)
