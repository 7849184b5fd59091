"""A DiffSplat checkpoint of a few thousand parameters in the layout of the shipped one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from align3d.models.diffsplat import DiffSplat
from align3d.models.embedded import Embedded


def write_checkpoint(folder: Path, channels: int = 4, views: int = 2, size: int = 16) -> Path:
    from diffusers import PixArtTransformer2DModel

    from align3d.models.nets.codec import PatchCodec
    from align3d.models.nets.text import TextEncoder

    torch.manual_seed(0)
    parts = {
        "transformer": PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=channels + 6,
            out_channels=channels,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=size // 8,
            patch_size=2,
            caption_channels=8,
            interpolation_scale=1,
            use_additional_conditions=False,
        ),
        "gs_vae": PatchCodec(
            latent_channels=channels,
            num_views=views,
            sample_size=size,
            encoder_channels=(8, 8),
            decoder_dim=16,
            decoder_layers=1,
            decoder_heads=2,
            decoder_channels=8,
        ),
        "text_encoder": TextEncoder(("red", "mug"), buckets=16, max_words=6, max_pieces=4, dim=8, layers=1, heads=2),
    }
    for name, part in parts.items():
        (folder / name).mkdir(parents=True)
        part.save_config(folder / name)
        tensors = {k: v.half().contiguous() for k, v in part.state_dict().items()}
        save_file(tensors, folder / name / "diffusion_pytorch_model.safetensors")
    return folder


def tiny(weights: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> DiffSplat:
    """The generator of such a checkpoint, which has two views."""
    monkeypatch.setattr("align3d.models.embedded.AZIMUTHS", (0.0, 90.0))
    return Embedded(weights=weights, **{"rank": 2, "precision": "float32"} | options).load()


def noise(model: DiffSplat, num: int = 2) -> Tensor:
    """States at time 1."""
    return torch.randn(num, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def shake(model: DiffSplat, size: float = 0.3) -> None:
    """Move the adapter away from where it begins, in every weight."""
    with torch.no_grad():
        for i, p in enumerate(model.adapter.parameters()):
            p.add_(size * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
