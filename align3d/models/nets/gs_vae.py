"""The GS-VAE of DiffSplat: diffusers' AutoencoderKL for 12-channel splat maps, with a second, tiny decoder.

Names of the weights are those of the published checkpoints: `vae.` and `tiny_decoder.`, one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderTiny
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAPS = 12  # channels of a splat map
TINY_BLOCKS = (3, 3, 3, 1)  # of AutoencoderTiny: its layers 1, 5, 10 and 15 have no weights


class GSVAE(ModelMixin, ConfigMixin):
    """Splat maps (B, V, 12, H, W) to latents (B, V, C, H/8, W/8) and back, every view for itself.

    Latents are those of the denoiser: (z - shift) * scaling, of about unit variance.

    Source: DiffSplat (Lin et al. 2025), section 3.2, and its released code (GSAutoencoderKL).
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        quant_conv: bool = True,
        tiny_channels: int = 64,
        scaling: float | None = None,
        shift: float | None = None,
        decoder: Literal["full", "tiny"] = "full",
        chunk: int = 0,
        recompute: bool = False,
    ):
        """Defaults: Stable Diffusion 1.5 and XL, but for the scaling.

        Args:
            latent_channels: C; 16 for SD3.
            block_out_channels: Widths; each but the last halves the sides.
            layers_per_block: Residual blocks a width.
            norm_num_groups: Of the group norms.
            quant_conv: Whether there are convolutions around the latents; SD3 has none.
            tiny_channels: Width of the tiny decoder; 0 = there is none.
            scaling: Factor of the latents; none = 1. SD1.5 0.18215, SDXL 0.13025, SD3 1.5305.
            shift: Mean of the encoder's latents, before scaling; none = 0. SD3 0.0609.
            decoder: "tiny" has 6 % of the cost and less detail.
            chunk: Rows (views of objects) at a time, for memory; 0 = all at once.
            recompute: Whether the backward pass computes each chunk again, rather than all activations being kept.

        Raises:
            ValueError: If there is no such decoder.
        """
        super().__init__()
        depth = len(block_out_channels)
        self.vae = AutoencoderKL(
            in_channels=MAPS,
            out_channels=MAPS,
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            use_quant_conv=quant_conv,
            use_post_quant_conv=quant_conv,
        )
        self.tiny_decoder = tiny_decoder(latent_channels, tiny_channels) if tiny_channels else None
        if decoder == "tiny" and self.tiny_decoder is None:
            raise ValueError("this GS-VAE has no tiny decoder; use the full one")
        self.scaling = 1.0 if scaling is None else scaling
        self.shift = 0.0 if shift is None else shift
        self.decoder, self.chunk, self.recompute = decoder, chunk, recompute

    @property
    def factor(self) -> int:
        """Pixels of a map for one of the latents, along a side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, maps: Float[Tensor, "B V 12 H W"]) -> Float[Tensor, "B V C h w"]:
        """Latents, the mode of the posterior, float32. Gradient: to the maps, in chunks as for decode."""
        return self._by_chunks(self._encode, maps)

    def decode(self, latents: Float[Tensor, "B V C h w"]) -> Float[Tensor, "B V 12 H W"]:
        """Splat maps, float32, not clamped: SplatMaps does that.

        Computed in the type of the weights. Gradient: to the latents, the same for any chunk up to rounding.
        """
        return self._by_chunks(self._decode_tiny if self.decoder == "tiny" else self._decode, latents)

    def _encode(self, maps: Float[Tensor, "R 12 H W"]) -> Float[Tensor, "R C h w"]:
        return (self.vae.encode(maps.to(self.dtype)).latent_dist.mode().float() - self.shift) * self.scaling

    def _decode(self, latents: Float[Tensor, "R C h w"]) -> Float[Tensor, "R 12 H W"]:
        return self.vae.decode((latents / self.scaling + self.shift).to(self.dtype)).sample

    def _decode_tiny(self, latents: Float[Tensor, "R C h w"]) -> Float[Tensor, "R 12 H W"]:
        """It reads scaled latents, though the convolution before it was made for unscaled ones: so it was trained."""
        first = self.vae.post_quant_conv
        z = latents.to(self.dtype)
        return self.tiny_decoder(z if first is None else first(z))

    def _by_chunks(self, function: Any, x: Float[Tensor, "B V *X"]) -> Float[Tensor, "B V *Y"]:
        rows = x.flatten(0, 1)
        again = self.recompute and torch.is_grad_enabled() and rows.requires_grad
        parts = [
            checkpoint(function, part, use_reentrant=False, preserve_rng_state=False) if again else function(part)
            for part in rows.split(self.chunk or len(rows))
        ]
        return torch.cat(parts).float().unflatten(0, x.shape[:2])


def tiny_decoder(latent_channels: int, channels: int) -> nn.Module:
    """The decoder of AutoencoderTiny (TAESD) for splat maps, (R, C, h, w) to (R, 12, 8 h, 8 w).

    Its latents go through 3 tanh(z / 3) first; its output o becomes 2 o - 1.
    """
    return DecoderTiny(
        in_channels=latent_channels,
        out_channels=MAPS,
        num_blocks=TINY_BLOCKS,
        block_out_channels=(channels,) * len(TINY_BLOCKS),
        upsampling_scaling_factor=2,
        act_fn="relu",
        upsample_fn="nearest",
    )


def gs_vae_config(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The sizes of a GSVAE, as its constructor takes them, from the shapes of its weights, which have no config.json.

    Args:
        shapes: Tensor -> shape, of a published file.

    Raises:
        ValueError: If they are not of a GS-VAE.
    """
    try:
        depth = len({name.split(".")[3] for name in shapes if name.startswith("vae.encoder.down_blocks.")})
        blocks = [f"vae.encoder.down_blocks.{i}.resnets." for i in range(depth)]
        return {
            "latent_channels": shapes["vae.decoder.conv_in.weight"][1],
            "block_out_channels": [shapes[f"{block}0.conv1.weight"][0] for block in blocks],
            "layers_per_block": len({name.split(".")[5] for name in shapes if name.startswith(blocks[0])}),
            "quant_conv": "vae.quant_conv.weight" in shapes,
            "tiny_channels": shapes.get("tiny_decoder.layers.0.weight", [0])[0],
        }
    except (KeyError, IndexError) as error:
        raise ValueError(f"no weights of a GS-VAE: {error} is missing or has another shape") from error
