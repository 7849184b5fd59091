"""CLIPs of a few thousand numbers in the published layouts, and pictures for them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_text import write_tokenizer

from align3d.rng import stream

WIDTH, DIM, LAYERS, SIDE, PATCH, TOKENS = 32, 768, 2, 224, 112, 77  # the originals have 768, 224 and 77 in their code
VOCABULARY = 56  # of tiny_text's tokenizer
VISION = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 16}
TEXT = VISION | {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "eos_token_id": 2}
VISION = VISION | {"image_size": SIDE, "patch_size": PATCH}
SIZES = {"model_type": "clip", "projection_dim": DIM, "vision_config": VISION, "text_config": TEXT}
STEPS = {
    "crop_size": SIDE, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": SIDE,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
PROMPTS = ("a red mug", "two dogs on a chair")


def gelu(sizes: dict) -> dict:
    """The same sizes with the activation that OpenCLIP has."""
    half = ("vision_config", "text_config")
    return {key: value | {"hidden_act": "gelu"} if key in half else value for key, value in sizes.items()}


def numbers(key: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Random numbers of a name."""
    return scale * torch.randn(shape, generator=stream("tiny clip", key))


def images(h: int = 40, w: int = 64) -> torch.Tensor:
    """(2, 3, 3, h, w): discs on waves, between 0.15 and 0.85, so that no resizing leaves [0, 1]."""
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    made = []
    for i in range(6):
        disc = ((y - 0.3 - 0.05 * i) ** 2 + (x - 0.5) ** 2 < 0.08 + 0.01 * i)[None]
        waves = torch.stack([torch.sin((3 + i) * x), y, torch.cos((7 + 2 * i) * x * y)]) / 2 + 0.5
        made.append(torch.where(disc, 1 - waves.flip(0), waves))
    return 0.15 + 0.7 * torch.stack(made).clamp(0, 1).reshape(2, 3, 3, h, w)


def openclip_state() -> dict[str, torch.Tensor]:
    """A checkpoint under OpenCLIP's names."""
    state = {
        "visual.class_embedding": numbers("class", WIDTH),
        "visual.positional_embedding": numbers("places", (SIDE // PATCH) ** 2 + 1, WIDTH, scale=0.3),
        "visual.proj": numbers("proj", WIDTH, DIM, scale=WIDTH**-0.5),
        "visual.conv1.weight": numbers("conv", WIDTH, 3, PATCH, PATCH, scale=0.01),
        "positional_embedding": numbers("order", TOKENS, WIDTH, scale=0.3),
        "token_embedding.weight": numbers("words", VOCABULARY, WIDTH),
        "text_projection": numbers("text proj", WIDTH, DIM, scale=WIDTH**-0.5),
        "logit_scale": torch.tensor(4.6052),
    }
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
    for block in (f"{half}transformer.resblocks.{i}" for half in ("visual.", "") for i in range(LAYERS)):
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        layers = {"attn.in_proj_": (3 * WIDTH, WIDTH), "attn.out_proj.": (WIDTH, WIDTH)}
        for name, (out, into) in (
            layers | {"mlp.c_fc.": (4 * WIDTH, WIDTH), "mlp.c_proj.": (WIDTH, 4 * WIDTH)}
        ).items():
            state[f"{block}.{name}weight"] = numbers(f"{block}{name}w", out, into, scale=1.5 * into**-0.5)
            state[f"{block}.{name}bias"] = numbers(f"{block}{name}b", out, scale=0.1)
    for name in norms:
        state[f"{name}.weight"] = 1 + numbers(f"{name} w", WIDTH, scale=0.2)
        state[f"{name}.bias"] = numbers(f"{name} b", WIDTH, scale=0.1)
    return state


def write_clip(folder: Path, act: str = "quick_gelu") -> Path:
    """The folder of a CLIP as they were published: old entries in config.json, a buffer among the weights."""
    from align3d.pretrained.openclip import renamed

    folder.mkdir(parents=True, exist_ok=True)
    state = renamed(openclip_state())
    state["vision_model.embeddings.position_ids"] = torch.arange((SIDE // PATCH) ** 2 + 1)[None]
    state["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    old = {
        "_name_or_path": "clip/",
        "architectures": ["CLIPModel"],
        "torch_dtype": "float32",
        "initializer_factor": 1.0,
    }
    half = {"hidden_act": act, "chunk_size_feed_forward": 0, "bad_words_ids": None, "attention_dropout": 0.0}
    config = {**old, **SIZES, "logit_scale_init_value": 2.6592, "transformers_version": None}
    config["vision_config"], config["text_config"] = VISION | half, TEXT | half | {"bos_token_id": 0, "pad_token_id": 1}
    if act == "quick_gelu":
        config["vision_config_dict"] = VISION  # as in older files; transformers fills it up with this activation
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(STEPS))
    write_tokenizer(folder)
    return folder


def write_hps(folder: Path, name: str = "HPS_v2.1_compressed.pt") -> Path:
    """The folder of a Human Preference Score: 16 bits, OpenCLIP's names, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {key: value.half() for key, value in openclip_state().items()}}, folder / name)
    write_tokenizer(folder)
    return folder


def aesthetic_stack() -> dict[str, torch.Tensor]:
    """The five layers of the aesthetic predictor, for these features."""
    state, width = {}, DIM
    for name, out in (("layers.0", 1024), ("layers.2", 128), ("layers.4", 64), ("layers.6", 16), ("layers.7", 1)):
        state[f"{name}.weight"] = numbers(f"{name} w", out, width, scale=2 * width**-0.5)
        state[f"{name}.bias"], width = numbers(f"{name} b", out, scale=0.1), out
    return state


def aesthetic_linear() -> dict[str, torch.Tensor]:
    """The linear aesthetic predictor, for these features."""
    return {"weight": numbers("linear w", 1, DIM), "bias": torch.tensor([5.0])}
