"""Pictures to the latents of Stable Diffusion and back: its VAE, a tiny decoder, or a linear map of colours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# latents of Stable Diffusion 1 to red, green and blue in [-1, 1], an eighth of the size; found by regression:
# https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204/2
COLOURS = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))


class Codec:
    """Pictures in [0, 1] and latents of about unit variance, each by itself.

    Args:
        vae: Frozen; its configuration says how latents are scaled.
        tiny: TAESD, for pictures that are wanted fast; None = the linear map.
        rows: Pictures at a time, for memory; 0 = all.
        recompute: Whether the way back computes each part again, rather than all activations being kept.
    """

    def __init__(self, vae: AutoencoderKL, tiny: AutoencoderTiny | None = None, rows: int = 0, recompute: bool = False):
        self.vae, self.tiny, self.rows, self.recompute = vae, tiny, rows, recompute
        self.scaling = float(vae.config.scaling_factor)

    @property
    def factor(self) -> int:
        """Pixels of a picture for one of the latents, along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(
        self, rgb: Float[Tensor, "B V 3 H W"], side: int, noise: Float[Tensor, "B V c h w"] | None = None
    ) -> Float[Tensor, "B V c h w"]:
        """Latents of pictures that are made `side` pixels wide and high first.

        Args:
            rgb: In [0, 1].
            side: In pixels.
            noise: Standard normal; draws from what the encoder says latents may be. None = their mean.

        Gradient: to the pictures.
        """
        x = rgb.flatten(0, 1)
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        x = 2 * x - 1
        rest = () if noise is None else (noise.flatten(0, 1),)
        return self._parts(self._encode, x, *rest).to(rgb.dtype).unflatten(0, rgb.shape[:2])

    def decode(self, latents: Float[Tensor, "B V c h w"], fast: bool = False) -> Float[Tensor, "B V 3 H W"]:
        """Pictures in [0, 1].

        Args:
            latents: Clean.
            fast: By the tiny decoder; without one, by the linear map, at the size of the latents.

        Gradient: to the latents, where pictures are within [0, 1].
        """
        rows = latents.flatten(0, 1)
        if fast and self.tiny is None and rows.shape[1] == len(COLOURS):
            x = torch.einsum("bchw,cd->bdhw", rows, rows.new_tensor(COLOURS))
        else:
            x = self._parts(self._decode_tiny if fast and self.tiny is not None else self._decode, rows)
        return ((x.to(latents.dtype) + 1) / 2).clamp(0, 1).unflatten(0, latents.shape[:2])

    def _encode(self, x: Float[Tensor, "R 3 H W"], noise: Float[Tensor, "R c h w"] | None = None) -> Tensor:
        seen = self.vae.encode(x.to(self.vae.dtype)).latent_dist
        return self.scaling * (seen.mean if noise is None else seen.mean + seen.std * noise.to(seen.std))

    def _decode(self, x: Float[Tensor, "R c h w"]) -> Float[Tensor, "R 3 H W"]:
        return self.vae.decode((x / self.scaling).to(self.vae.dtype)).sample

    def _decode_tiny(self, x: Float[Tensor, "R c h w"]) -> Float[Tensor, "R 3 H W"]:
        return self.tiny.decode(x.to(self.tiny.dtype)).sample

    def _parts(self, function: Any, x: Tensor, *rest: Tensor) -> Tensor:
        again = self.recompute and torch.is_grad_enabled() and x.requires_grad
        size = self.rows or len(x)
        parts = zip(*(tensor.split(size) for tensor in (x, *rest)), strict=True)
        return torch.cat(
            [
                checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) if again else function(*part)
                for part in parts
            ]
        )
