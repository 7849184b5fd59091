"""Tiny random checkpoints in the layout of the published generators, to the last key of config.json.

The keys are those that the released code writes (its commit a99d757, diffusers 0.32.0): all arguments of the network,
what was changed of a stock one, and the bookkeeping of its moving average. Text encoders are not written here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_unet import WEIGHTS, WHOLE, write_config, write_weights

MOVING_AVERAGE = {
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 13020,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": True,
}
VIEWS = {
    "_diffusers_version": "0.32.0",
    "input_concat_binary_mask": False,
    "input_concat_plucker": True,
    "view_concat_condition": False,
}
PIXART = {
    "_class_name": "PixArtTransformerMV2DModel",
    "_name_or_path": "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 8,
    "attention_type": "default",
    "caption_channels": 12,
    "cross_attention_dim": 16,
    "dropout": 0.0,
    "in_channels": 10,
    "interpolation_scale": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 2,
    "num_embeds_ada_norm": 1000,
    "num_layers": 2,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 4,
    "upcast_attention": False,
    "use_additional_conditions": False,
}
UNET = {
    **WHOLE,
    "_class_name": "UNetMV2DConditionModel",
    "_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "down_block_types": [*["CrossAttnDownBlockMV2D"] * 3, "DownBlock2D"],
    "in_channels": 10,
    "mid_block_type": "UNetMidBlockMV2DCrossAttn",
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlockMV2D"] * 3],
    "upcast_attention": False,
    "use_linear_projection": False,
}
SD3 = {
    "_class_name": "SD3TransformerMV2DModel",
    "_name_or_path": "stabilityai/stable-diffusion-3.5-medium",
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "dual_attention_layers": [0, 1],
    "in_channels": 22,
    "joint_attention_dim": 12,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 24,
    "qk_norm": "rms_norm",
    "sample_size": 4,
}


@dataclass(frozen=True)
class Family:
    """What is published of a generator, at a tiny size."""

    denoiser: str  # class in align3d.models.nets.denoisers
    config: dict[str, Any]
    path: str  # of the denoiser, below the root
    gs_vae: dict[str, Any]  # arguments of GSVAE
    gs_vae_path: str

    @property
    def text(self) -> tuple[int, int]:
        """Numbers of a token, and of a pooled text."""
        width = [self.config.get(name) for name in ("caption_channels", "joint_attention_dim", "cross_attention_dim")]
        return next(filter(None, width)), self.config.get("pooled_projection_dim", 0)


def _family(denoiser: str, config: dict[str, Any], name: str, folder: str, gs_vae: str, **vae: Any) -> Family:
    widths = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "tiny_channels": 8}
    path = f"gsdiff_gobj83k_{name}__render/checkpoints/013020/{folder}"
    return Family(denoiser, config, path, widths | vae, f"gsvae_gobj265k_{gs_vae}/checkpoints/039030")


FAMILIES = {
    "pas": _family("PixArt", PIXART, "pas_fp16", "transformer_ema", "sdxl_fp16", scaling=0.13025),
    "sd15": _family("UNet", UNET, "sd15", "unet_ema", "sd", scaling=0.18215),
    "sd35m": _family(
        *("SD3", SD3, "sd35m", "transformer_ema", "sd3"),
        **{"latent_channels": 16, "quant_conv": False, "scaling": 1.5305, "shift": 0.0609},
    ),
}


def published_config(family: str) -> dict[str, Any]:
    """Its config.json."""
    return dict(sorted((FAMILIES[family].config | VIEWS | MOVING_AVERAGE).items()))


def tiny_network(family: str, **options: Any) -> torch.nn.Module:
    """A stock network of that configuration, with other options, without views joined."""
    import diffusers

    from align3d.models.nets import denoisers

    stock = getattr(diffusers, getattr(denoisers, FAMILIES[family].denoiser).stock)
    with torch.random.fork_rng(devices=[]):
        return randomised(stock.from_config(denoisers.stock_config(FAMILIES[family].config | options)))


def tiny_gs_vae(family: str, **options: Any) -> torch.nn.Module:
    """A GS-VAE of that family."""
    from align3d.models.nets.gs_vae import GSVAE

    with torch.random.fork_rng(devices=[]):
        return randomised(GSVAE(**FAMILIES[family].gs_vae, **options))


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """The network with random numbers in every parameter, the same for any version of the libraries.

    Fresh networks have many zeros and ones, which hide what is done with them.
    """
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.randn(parameter.shape, generator=rng)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # of a norm, or a bias
                parameter.copy_(0.2 * noise + name.endswith("weight"))
    return network.requires_grad_(False).eval()


def write_denoiser(folder: Path, family: str, sharded: bool = False) -> Path:
    """config.json and the weights, float32, of one network; returns the folder."""
    write_config(folder, published_config(family))
    network = tiny_network(family)
    if not sharded:
        write_weights(folder / f"{WEIGHTS}.safetensors", network)
        return folder
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    places: dict[str, str] = {}
    for i, half in enumerate(halves, 1):
        shard = f"{WEIGHTS}-{i:05d}-of-{len(halves):05d}.safetensors"
        save_file({name: tensors[name] for name in half}, folder / shard, {"format": "pt"})
        places |= dict.fromkeys(half, shard)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def write_gs_vae(folder: Path, family: str) -> Path:
    """model.safetensors with `vae.` and `tiny_decoder.`, and nothing beside it; returns the folder."""
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", tiny_gs_vae(family))
    return folder


def write_published(root: Path, family: str, sharded: bool = False) -> Path:
    """Denoiser and GS-VAE where they are below the root of the published files; returns the root."""
    write_denoiser(root / FAMILIES[family].path, family, sharded)
    write_gs_vae(root / FAMILIES[family].gs_vae_path, family)
    return root
