"""Networks of diffusers and transformers from one file under the names of the latent-diffusion code.

    model.diffusion_model.   UNet              first_stage_model.   VAE
    cond_stage_model.        text encoder: `model.` in OpenCLIP's names, `transformer.` in those of transformers

Every tensor of a file has to be known, and every one that is needed has to be there, in its shape, before memory of its
size is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from align3d.pretrained.clip import quiet
from align3d.weights import NAMED, NotItsWeights, Weights, parameters_on_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float
    from torch import Tensor, nn

    from align3d.diffusion.schedule import DiscreteVP

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
SCHEDULE = (  # what the code that wrote the files keeps of its noise levels
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)
POSITIONS = f"{TEXT}transformer.text_model.embeddings.position_ids"  # of older libraries, for nothing
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Place:
    """Where a tensor of a network is."""

    key: str  # name in the file
    third: int | None = None  # which third of it, where query, key and value are one


def unet_place(config: Mapping[str, Any], name: str) -> Place:
    """The place of a tensor of UNet2DConditionModel."""
    each, types = config["layers_per_block"], config["up_block_types"]
    head, _, end = name.rpartition(".")
    if head in UNET_ENDS:
        return Place(f"{UNET}{UNET_ENDS[head]}.{end}")
    if found := MIDDLE.fullmatch(name):
        kind, number, rest = found[1], int(found[2]), found[3]
        return Place(f"{UNET}middle_block.{1 if kind == 'attentions' else 2 * number}.{_inside(kind, rest)}")
    found = BLOCK.fullmatch(name)
    assert found, name
    side, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if side == "down":
        block = (each + 1) * level + 1 + (each if kind == "downsamplers" else number)
        return Place(f"{UNET}input_blocks.{block}.{int(kind == 'attentions')}.{_inside(kind, rest)}")
    block = (each + 1) * level + (each if kind == "upsamplers" else number)
    attends = "CrossAttn" in types[level]
    part = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attends}[kind]
    return Place(f"{UNET}output_blocks.{block}.{part}.{_inside(kind, rest)}")


def _inside(kind: str, rest: str) -> str:
    """The name of a tensor within its block of a UNet."""
    head, _, end = rest.rpartition(".")
    if kind == "resnets":
        return f"{RESIDUAL[head]}.{end}"
    return f"op.{end}" if kind == "downsamplers" else rest


def vae_place(config: Mapping[str, Any], name: str) -> Place:
    """The place of a tensor of AutoencoderKL."""
    half, _, rest = name.partition(".")
    if half in ("quant_conv", "post_quant_conv"):
        return Place(VAE + name)
    head, _, end = rest.rpartition(".")
    if found := MIDDLE.fullmatch(rest):
        kind, number, inner = found[1], int(found[2]), found[3].rpartition(".")
        if kind == "attentions":
            return Place(f"{VAE}{half}.mid.attn_1.{VAE_ATTENTION[inner[0]]}.{end}")
        return Place(f"{VAE}{half}.mid.block_{number + 1}.{VAE_ENDS.get(inner[0], inner[0])}.{end}")
    if found := BLOCK.fullmatch(rest):
        side, kind, number, inner = found[1], found[3], found[4], found[5].rpartition(".")[0]
        level = int(found[2]) if side == "down" else len(config["block_out_channels"]) - 1 - int(found[2])
        if kind == "resnets":
            return Place(f"{VAE}{half}.{side}.{level}.block.{number}.{VAE_ENDS.get(inner, inner)}.{end}")
        return Place(f"{VAE}{half}.{side}.{level}.{side}sample.{inner}.{end}")
    return Place(f"{VAE}{half}.{VAE_ENDS.get(head, head)}.{end}")


def openclip_place(name: str) -> Place:
    """The place of a tensor of CLIPTextModel, in OpenCLIP's names."""
    name = name.removeprefix("text_model.")
    if name in TEXT_ENDS:
        return Place(f"{TEXT}model.{TEXT_ENDS[name]}")
    _, _, number, *inner, end = name.split(".")
    middle, block = ".".join(inner), f"{TEXT}model.transformer.resblocks.{number}"
    if middle in LAYER:
        return Place(f"{block}.{LAYER[middle]}.{end}")
    return Place(f"{block}.attn.in_proj_{end}", "qkv".index(middle.removeprefix("self_attn.")[0]))


def clip_place(name: str) -> Place:
    """The place of a tensor of CLIPTextModel, in its own names."""
    return Place(f"{TEXT}transformer.text_model.{name.removeprefix('text_model.')}")


def unread_openclip(layers: int, width: int, projection: int) -> dict[str, tuple[int, ...]]:
    """What a file has of OpenCLIP's text tower beyond the `layers` that are used: one layer more, and the end."""
    block = f"{TEXT}model.transformer.resblocks.{layers}."
    wide = 4 * width
    return {
        f"{TEXT}model.text_projection": (width, projection),
        f"{TEXT}model.logit_scale": (),
        **{f"{block}ln_{i}.{end}": (width,) for i in (1, 2) for end in ("weight", "bias")},
        f"{block}attn.in_proj_weight": (3 * width, width),
        f"{block}attn.in_proj_bias": (3 * width,),
        f"{block}attn.out_proj.weight": (width, width),
        f"{block}attn.out_proj.bias": (width,),
        f"{block}mlp.c_fc.weight": (wide, width),
        f"{block}mlp.c_fc.bias": (wide,),
        f"{block}mlp.c_proj.weight": (width, wide),
        f"{block}mlp.c_proj.bias": (width,),
    }


def empty(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose parameters have no memory; its buffers do."""
    with quiet(), torch.random.fork_rng(devices=[]), parameters_on_meta():
        return make()


@dataclass(frozen=True)
class Part:
    """A network without memory, and where its tensors are."""

    network: nn.Module
    place: Callable[[str], Place]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What a file has to have for it."""
        found = {}
        for name, like in self.network.state_dict().items():
            place, shape = self.place(name), tuple(like.shape)
            if place.third is not None:
                shape = (3 * shape[0], *shape[1:])
            if f"{VAE}" in place.key and ".mid.attn_1." in place.key and len(shape) == 2:
                shape = (*shape, 1, 1)  # a convolution there, a linear layer here
            found[place.key] = shape
        return found

    def fill(self, weights: Weights, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network with its weights, frozen, on the CPU.

        Raises:
            ValueError: If a tensor is damaged.
        """
        tensors = {}
        for name, like in self.network.state_dict().items():
            place = self.place(name)
            value = weights.tensor(place.key)
            if place.third is not None:
                value = value.chunk(3)[place.third]
            tensors[name] = value.reshape(like.shape).to(dtype if like.is_floating_point() else like.dtype)
        self.network.load_state_dict(tensors, assign=True)
        return self.network.requires_grad_(False).eval()


def require_all(have: Mapping[str, tuple[int, ...]], need: Mapping[str, tuple[int, ...]], optional: set[str]) -> None:
    """Compare the tensors of a file with those that it has to have.

    Raises:
        NotItsWeights: Says how many differ, and names the first, as the file names them.
    """
    missing = sorted(need.keys() - have.keys())
    unknown = sorted(have.keys() - need.keys() - optional)
    other = sorted(f"{key} {list(have[key])}" for key in need.keys() & have.keys() if need[key] != have[key])
    found = [("missing", missing), ("unknown", unknown), ("of another shape", other)]
    said = [f"{len(keys)} {what}, such as {', '.join(keys[:NAMED])}" for what, keys in found if keys]
    if said:
        raise NotItsWeights("; ".join(said))


def require_schedule(betas: Float[Tensor, "n"], schedule: DiscreteVP) -> None:
    """Compare the noise levels in a file with those that are used.

    Raises:
        NotItsWeights: If they are others.
    """
    own = (1 - betas.double()).cumprod(0)
    times = torch.arange(schedule.num_steps, dtype=torch.float64) / (schedule.num_steps - 1)
    if not torch.allclose(own, schedule.alpha(times) ** 2, atol=1e-5):
        raise NotItsWeights("its noise levels (betas) are not those of Stable Diffusion")
