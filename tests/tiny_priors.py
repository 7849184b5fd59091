"""Priors of a few million numbers and fewer, in the layouts of the published files."""

import gzip
import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_text import write_clip, write_tokenizer
from torch import Tensor

from align3d.priors import mvdream
from align3d.rng import stream

DATA = Path(__file__).parent / "data" / "mvdream"
V21, V15 = mvdream.V21, mvdream.V15
WIDTH, WORDS, SIDE = 32, 56, 8  # of a text's token, of tiny_text's tokenizer, of latents
UNET = {**mvdream.UNET, "block_out_channels": [32, 64, 128, 128], "cross_attention_dim": WIDTH}
VAE = {**mvdream.VAE, "block_out_channels": [32, 64, 128, 128]}
TEXT = {"vocab_size": WORDS, "bos_token_id": 54, "eos_token_id": 55, "hidden_size": WIDTH, "intermediate_size": 128}
TEXT |= {"num_attention_heads": 2, "projection_dim": WIDTH}
LAYOUTS = {
    V21: mvdream.Layout(
        unet=mvdream.LAYOUTS[V21].unet | UNET | {"attention_head_dim": [4, 8, 16, 16]},
        vae=VAE,
        text=mvdream.LAYOUTS[V21].text | TEXT,
        openclip=True,
    ),
    V15: mvdream.Layout(
        unet=mvdream.LAYOUTS[V15].unet | UNET, vae=VAE, text=mvdream.LAYOUTS[V15].text | TEXT, openclip=False
    ),
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # in published VAEs


def numbers(key: str, *shape: int) -> Tensor:
    """Random numbers of a name."""
    return torch.randn(shape, generator=stream("tiny prior", key))


@cache
def published_shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, as the original classes give them (bytedance/MVDream 618f844)."""
    with gzip.open(DATA / "names.json.gz") as data:
        return {key: tuple(shape) for key, shape in json.load(data)[file].items()}


def tiny_shape(key: str, shape: tuple[int, ...], file: str) -> tuple[int, ...]:
    """The shape that a tensor has here."""
    width = 1024 if file == V21 else 768  # of the text encoder

    def small(size: int) -> int:
        if key.startswith("model."):
            return WIDTH if size == width else size // 10 if size % 320 == 0 else size
        if key.startswith("first_stage_model."):
            return size // 4 if size % 128 == 0 else size
        return WORDS if size == 49408 else size * WIDTH // width if size % width == 0 else size

    return tuple(map(small, shape))


@cache
def mvdream_state(file: str) -> dict[str, Tensor]:
    """A file's tensors; networks that pass signals on at about their size."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    state = {}
    for key, full in published_shapes(file).items():
        shape = tiny_shape(key, full, file)
        value = numbers(key, *shape)
        if key.endswith("position_ids"):
            value = torch.arange(77)[None]
        elif key == "betas":
            value = betas.float()
        elif len(shape) == 1 and key.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) < 2:
            value = 0.1 * value
        elif "embedding" not in key:
            value = value * value[0].numel() ** -0.5
        state[key] = value
    return state


def write_mvdream(folder: Path, file: str = V21, state: dict[str, Tensor] | None = None) -> Path:
    """FILE.pt and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(mvdream_state(file) if state is None else state, folder / f"{file}.pt")
    write_tokenizer(folder)
    return folder


def write_stable_diffusion(folder: Path, prediction: str | None = "epsilon", old: bool = False) -> Path:
    """A folder of diffusers; latents are half as wide as pictures.

    Args:
        folder: Made here.
        prediction: Of the UNet; None = not said, as in version 1.
        old: Whether the VAE's attention has its older names, and no scaling is said.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            cross_attention_dim=4,
            norm_num_groups=8,
            use_linear_projection=not old,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    for part, network in (("unet", unet), ("vae", vae)):
        network.save_config(folder / part)
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        if old and part == "vae":
            state = {older(key): value for key, value in state.items()}
            config = json.loads((folder / part / "config.json").read_text())
            del config["scaling_factor"]
            (folder / part / "config.json").write_text(json.dumps(config))
        save_file(state, folder / part / "diffusion_pytorch_model.safetensors")
    for part in ("tokenizer", "text_encoder", "scheduler"):
        (folder / part).mkdir()
    write_clip(folder, "", "clip", hidden=4)
    told = {key: value for key, value in SCHEDULER.items() if key != "prediction_type"}
    told |= {} if prediction is None else {"prediction_type": prediction}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    return folder


def older(key: str) -> str:
    """The older name of a tensor of a VAE."""
    for new, name in OLD.items():
        if ".attentions." in key and f".{new}." in key:
            return key.replace(f".{new}.", f".{name}.")
    return key


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """A TAESD for the folders of `write_stable_diffusion`."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
        network = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    network.save_config(folder)
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


def pictures(B: int = 2, V: int = 3, H: int = 40, W: int = 56, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth pictures between 0.2 and 0.8."""
    y, x = torch.meshgrid(torch.arange(H) / H, torch.arange(W) / W, indexing="ij")
    rows = [
        torch.stack([torch.sin((2 + i) * x + y), torch.cos((3 + i) * y), torch.sin(5 * x * y + i)])
        for i in range(B * V)
    ]
    return (0.5 + 0.3 * torch.stack(rows)).unflatten(0, (B, V)).to(dtype)
