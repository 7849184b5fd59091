"""The published generators at full size, without a file: stock networks of their sizes with random weights.

Beside them a reward as dear as the aesthetic one. `tiny` is the same in layout, of some thousand parameters.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.models.gaussiancube_files import Objaverse
from align3d.models.nets.gaussiancube_unet import Architecture
from align3d.models.published import DiffSplatPAS, DiffSplatSD15, DiffSplatSD35m
from align3d.rewards.aesthetic import WIDTHS
from align3d.rewards.clip_scores import MEAN, STD

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from align3d.models.diffsplat import DiffSplat
    from align3d.models.gaussiancube import GaussianCube
    from align3d.models.published import Published
    from align3d.models.text import Text
    from align3d.types import Views

MODELS = {"pas": DiffSplatPAS, "sd15": DiffSplatSD15, "sd35m": DiffSplatSD35m, "cube": Objaverse}
NETWORKS: dict[str, dict[str, Any]] = {  # what a published config.json has that is not the stock class's default
    "pas": {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "num_layers": 28,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
        "in_channels": 10,
        "out_channels": 8,
        "sample_size": 32,
        "interpolation_scale": 1,
        "use_additional_conditions": False,
    },
    "sd15": {"in_channels": 10, "cross_attention_dim": 768, "sample_size": 32},
    "sd35m": {
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "num_layers": 24,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "in_channels": 22,
        "out_channels": 16,
        "sample_size": 32,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
}
TINY: dict[str, dict[str, Any]] = {
    "pas": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 4,
    },
    "sd15": {
        "block_out_channels": (8, 16, 16, 16),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "sample_size": 4,
    },
    "sd35m": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 3,
        "caption_projection_dim": 16,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "sample_size": 4,
        "pos_embed_max_size": 24,
        "dual_attention_layers": (0, 1),
    },
}
CODECS: dict[str, dict[str, Any]] = {"pas": {}, "sd15": {}, "sd35m": {"latent_channels": 16, "quant_conv": False}}
TINY_CODEC = {"block_out_channels": (32,) * 4, "layers_per_block": 1, "tiny_channels": 8}
CUBE = Architecture((128, 256, 384, 512), 3, (False, False, True, True), 128, 14, text=768, text_width=512)
TINY_CUBE = Architecture((32, 64), 1, (False, True), 32, 14, text=64, text_width=32)
SIDES = {CUBE: 32, TINY_CUBE: 8}  # voxels
VOXEL = [0.0] * 3 + [0.0] * 3 + [0.1] + [0.02] * 3 + [1.0, 0.0, 0.0, 0.0]  # what a voxel is, about: its mean
SPREAD = [0.01] * 3 + [1.0] * 3 + [0.1] + [0.005] * 3 + [0.1] * 4  # and its deviation
TOKENS = {"pas": 300, "sd15": 77, "sd35m": 77 + 256, "cube": 77}
SHORTEST, LONGEST = 12, 40  # tokens of a caption, where the others are padding that is masked: pas
CLIP = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CLIP |= {"patch_size": 14, "image_size": 224, "projection_dim": 768}  # ViT-L/14
TINY_CLIP = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TINY_CLIP |= {"patch_size": 8, "image_size": 16, "projection_dim": 8}
SPLATS = {3: 0.7, 4: 0.7, 5: 0.7, 6: 1.0, 10: 0.5}  # channel of a splat map -> its mean: small, upright, rather opaque


def generator(
    variant: str, device: str = "cpu", precision: torch.dtype | None = None, tiny: bool = False, **options: Any
) -> DiffSplat | GaussianCube:
    """A generator of random weights.

    Args:
        variant: A key of MODELS.
        device: Where it is made.
        precision: Of the denoiser; None is float32.
        tiny: Whether it is a tiny one.
        **options: Of the dataclass in MODELS.
    """
    if variant == "cube":
        return cube(device, precision, tiny, **options)
    import diffusers

    from align3d.models.nets import denoisers
    from align3d.models.nets.gs_vae import GSVAE

    model: Published = MODELS[variant](**options)
    stock = getattr(diffusers, getattr(denoisers, model.denoiser).stock)
    sizes = NETWORKS[variant] | (TINY[variant] if tiny else {})
    network = filled(partial(stock, **sizes), device, precision)
    own = {"scaling": model.scaling, "shift": model.shift, "decoder": model.decoder}
    own |= {"chunk": model.decode_rows, "recompute": model.recompute} | (TINY_CODEC if tiny else {})
    codec = filled(partial(GSVAE, **CODECS[variant] | own), device)
    shape_splats(codec)
    texts = partial(words, variant, sizes[model.width], sizes.get("pooled_projection_dim", 0), device)
    return model.assemble(network, codec, texts, device)


def cube(device: str, precision: torch.dtype | None, tiny: bool, **options: Any) -> GaussianCube:
    """GaussianCube of texts, of random weights; arguments as of `generator`."""
    import torch

    from align3d.models.gaussiancube import Space
    from align3d.models.nets.gaussiancube_unet import CubeUNet

    model, own = Objaverse(**options), TINY_CUBE if tiny else CUBE
    network = filled(partial(CubeUNet, own, model.recompute), device, precision)
    mean, std = (
        torch.tensor(x, device=device)[:, None, None, None].expand(-1, *[SIDES[own]] * 3) for x in (VOXEL, SPREAD)
    )
    texts = partial(words, "cube", own.text, 0, device)
    return model.assemble(network, Space(mean, std, model.bound, model.scale), texts, device)


def filled(make: Any, device: str, dtype: torch.dtype | None = None) -> nn.Module:
    """What `make` gives, with random weights that were never anywhere but on the device, always the same.

    Matrices keep the size of what they multiply, halved, so that no activation grows from layer to layer.
    """
    import torch

    from align3d.weights import parameters_on_meta

    if device == "meta":  # sizes alone
        with torch.device(device):
            return torch.nn.Module.to(make(), dtype).requires_grad_(False).eval()  # diffusers' own would warn
    with torch.random.fork_rng(devices=[]), parameters_on_meta():
        network = make()
    rng, tensors = torch.Generator(device).manual_seed(0), {}
    for name, like in network.state_dict().items():
        kind = dtype if dtype is not None and like.is_floating_point() else like.dtype
        if not like.is_meta:  # a buffer
            tensors[name] = like.to(device, kind)
        elif like.ndim > 1:
            scale = 0.5 * like[0].numel() ** -0.5
            tensors[name] = torch.empty(like.shape, dtype=kind, device=device).normal_(0, scale, generator=rng)
        else:
            tensors[name] = torch.full(like.shape, float(name.endswith("weight")), dtype=kind, device=device)
    network.load_state_dict(tensors, assign=True)
    return network.to(device).requires_grad_(False).eval()  # buffers that no file has are still elsewhere


def shape_splats(codec: nn.Module) -> None:
    """Have the decoders give splats as of a trained one, by their last layers: those of noise are far too large."""
    import torch

    last = codec.vae.decoder.conv_out, codec.tiny_decoder.layers[-1]
    with torch.no_grad():
        for layer, mean in zip(last, (lambda value: value, lambda value: (value + 1) / 2), strict=True):
            layer.weight.mul_(0.3)
            for channel in range(len(layer.bias)):
                layer.bias[channel] = mean(SPLATS.get(channel, 0.0))


def words(variant: str, width: int, pooled: int, device: str, prompts: Sequence[str]) -> Text:
    """A text source: random states, padded to what the generator was trained with."""
    import torch

    from align3d.models.text import Text
    from align3d.rng import Streams

    rng, total = Streams((), tuple((prompt,) for prompt in prompts)), TOKENS[variant]
    lengths = rng.uniform("length") * (LONGEST - SHORTEST) + SHORTEST
    lengths = torch.tensor([1.0 if not p else float(n) for p, n in zip(prompts, lengths, strict=True)])
    keep = (torch.arange(total) < lengths[:, None]).float() if variant == "pas" else torch.ones(len(prompts), total)
    states = rng.normal("states", (total, width)) * keep[..., None]
    return Text(states, keep, rng.normal("pooled", (pooled,)) if pooled else None).to(device)


@dataclass(frozen=True, eq=False)
class Judge:
    """A reward of the cost of the aesthetic one: CLIP ViT-L/14 and a few linear layers, float32, random weights."""

    network: nn.Module
    head: nn.Module

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})

    @classmethod
    def make(cls, device: str, tiny: bool = False) -> Judge:
        """On a device."""
        from torch import nn
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(**TINY_CLIP if tiny else CLIP)
        sizes = (config.projection_dim, *WIDTHS)
        head = filled(lambda: nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))), device)
        return cls(filled(partial(CLIPVisionModelWithProjection, config), device), head)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Tensor:
        """One number per view. Gradient: to the colours."""
        from align3d.rewards.preprocess import normalize, resize

        B, V = views.rgb.shape[:2]
        images = resize(views.rgb.flatten(0, 1).float(), self.network.config.image_size, antialias=False)
        features = self.network(pixel_values=normalize(images, MEAN, STD)).image_embeds
        return self.head(features / features.norm(dim=1, keepdim=True)).reshape(B, V)
