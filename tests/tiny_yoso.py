"""A tiny estimator of normals in the layout of Stable-X/yoso-normal, with the same weights everywhere.

The keys of the configurations are those published with v1-8-1 (diffusers 0.28.0); v1-7 has the same folders.
"""

import math
from pathlib import Path
from typing import Any

import torch
from tiny_unet import HALF, WEIGHTS, WHOLE, write_config, write_weights
from torch import Tensor, nn

BRANCH = {
    **HALF,
    "attention_head_dim": [1, 2, 2, 2],
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "in_channels": 4,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "upcast_attention": True,
    "use_linear_projection": True,
}
CONTROL = {
    **BRANCH,
    "_class_name": "ControlNetVAEModel",
    "_diffusers_version": "0.28.0",
    "_name_or_path": "weights/yoso-normal-v1-8-1/controlnet",
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [4, 8, 8, 8],
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
UNET = {
    **WHOLE,
    **BRANCH,
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.28.0",
    "_name_or_path": "weights/yoso-normal-v1-8-1/unet",
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.28.0",
    "_name_or_path": "weights/yoso-normal-v1-8-1/vae",
    "act_fn": "silu",
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CONFIGS = {"vae": VAE, "controlnet": CONTROL, "unet": UNET}


def noise(count: int, seed: int) -> Tensor:
    """Numbers between -1 and 1 that look random and do not depend on the version of a library."""
    k = torch.arange(1, count + 1, dtype=torch.float64)
    return 2 * torch.frac(torch.sin(12.9898 * k + 78.233 * seed) * 43758.5453).abs() - 1


def give_weights(network: nn.Module, seed: int = 0) -> None:
    """Weights of about the right size for states to keep theirs, norms near 1, biases small."""
    state = network.state_dict()
    for i, (name, old) in enumerate(sorted(state.items())):
        values = noise(old.numel(), seed + i).reshape(old.shape)
        if old.ndim == 1:
            values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            values = values * math.sqrt(3 / old[0].numel())
        state[name] = values.float()
    network.load_state_dict(state)


def networks() -> dict[str, nn.Module]:
    """VAE, side branch and U-Net, of the stock classes."""
    import diffusers

    from align3d.rewards.yoso import PARTS

    made = {}
    for i, (part, config) in enumerate(CONFIGS.items()):
        made[part] = getattr(diffusers, PARTS[part]).from_config(config)
        give_weights(made[part], 1000 * i)
    return made


def write(folder: Path, fp16: bool = True) -> dict[str, nn.Module]:
    """The published folder; by default with the names, not the precision, of files in 16 bits."""
    made = networks()
    for part, network in made.items():
        save(folder / part, CONFIGS[part], network, fp16)
    return made


def save(folder: Path, config: dict[str, Any], network: nn.Module, fp16: bool = True) -> None:
    """One network."""
    write_config(folder, config)
    write_weights(folder / f"{WEIGHTS}{'.fp16' if fp16 else ''}.safetensors", network)


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth coloured pictures in [0, 1], float32."""
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()[None]
    made = [
        0.5 + 0.5 * torch.sin(0.13 * (c + 1) * x + 0.09 * (i + 3 - c) * y + c + i)
        for i in range(count)
        for c in range(3)
    ]
    return torch.stack(made).reshape(count, 3, height, width).float()


def normals(count: int, height: int, width: int) -> Tensor:
    """Unit normals in OpenCV camera axes that face the camera (z < 0), float32."""
    wild = 2 * pictures(count, height, width).double().roll(1, 1) - 1
    wild[:, 2] = -0.4 - wild[:, 2].abs()
    return torch.nn.functional.normalize(wild, dim=1).float()


def alphas(count: int, height: int, width: int) -> Tensor:
    """Coverage, soft at its edges: a disc that moves from picture to picture."""
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()[None]
    discs = [1 - ((y - height / 2) ** 2 + (x - width / 3 - 2 * i) ** 2).sqrt() / height for i in range(count)]
    return torch.stack(discs).reshape(count, 1, height, width).clamp(0, 1).float()


def depths(count: int, height: int, width: int) -> Tensor:
    """A wavy surface about 1.4 away that covers the whole picture, camera z, float32."""
    return (1.4 + 0.1 * (pictures(count, height, width).double()[:, :1] - 0.5)).float()
