"""A one-step estimator of normals from a picture: YOSO, the fast branch of StableNormal.

Source: Ye et al. 2024 (arXiv 2406.16864), weights Stable-X/yoso-normal-v1-7; the steps are those of the pipeline that
Nabla-R2D3 (arXiv 2506.15684) keeps of it. The latent of the picture itself, not noise, goes through the U-Net once, at
time 0; a second branch of the same form looks at the latent as well and adds to the U-Net's inner states. It is a
ControlNet by its weights, but not in what it does: see `side_states`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from align3d.pretrained.once import read_once
from align3d.weights import check_part, load_part

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

TIME = 0  # of the training's 1000; the U-Net sees a clean latent
PARTS = {"vae": "AutoencoderKL", "controlnet": "ControlNetModel", "unet": "UNet2DConditionModel"}  # folder -> class


class Yoso(nn.Module):
    """The three networks behind one call."""

    def __init__(self, vae: nn.Module, controlnet: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.vae, self.controlnet, self.unet = vae, controlnet, unet

    @property
    def factor(self) -> int:
        """Pixels of a latent's side; sides of pictures are multiples of it."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Unit normals in camera axes x left, y up, z towards the camera, everywhere, also where no object is.

        Args:
            images: In [0, 1]; sides are multiples of `factor`. The published use has a white background and 256 pixels.

        Gradient: to the images, through the U-Net alone; what the side branch adds is a constant, as published.
        """
        scale = self.vae.config.scaling_factor
        latent = scale * self.vae.encode(2 * images - 1).latent_dist.mode()
        latent = latent.to(self.unet.dtype)
        # Zero vectors stand for the text: their keys and values are zero (no bias), however many there are.
        text = latent.new_zeros(len(latent), 1, self.unet.config.cross_attention_dim)
        with torch.no_grad():
            down, middle = side_states(self.controlnet, latent, text)
        clean = self.unet(
            latent,
            TIME,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return F.normalize(self.vae.decode(clean.to(images.dtype) / scale, return_dict=False)[0], dim=1, eps=1e-6)


def side_states(
    controlnet: Any, latent: Float[Tensor, "n c h w"], text: Float[Tensor, "n t d"]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """What the side branch adds to the states of the U-Net's way down, and to its middle.

    The class ControlNetVAEModel that the published weights come with is a ControlNetModel without a picture to look at
    (its `controlnet_cond_embedding` is in the file, unused) and without the zero convolutions at its outputs (also in
    the file, unused): its inner states are added as they are. Confirm with the weights of v1-7: the code that was
    read is that of v1-8-1.
    """
    times = torch.full((len(latent),), TIME, device=latent.device)
    time = controlnet.time_embedding(controlnet.time_proj(times).to(latent.dtype))
    state = controlnet.conv_in(latent)
    found = (state,)
    for block in controlnet.down_blocks:
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        state, states = block(hidden_states=state, temb=time, **more)
        found += states
    return found, controlnet.mid_block(state, time, encoder_hidden_states=text)


def load(folder: Path, device: torch.device, precision: torch.dtype) -> Yoso:
    """The estimator from the folders vae/, controlnet/ and unet/; frozen.

    The VAE computes in float32. Its numbers are those of its file, which has 16 bits if it is the fp16 one.

    Args:
        folder: The published files.
        device: Where the networks live.
        precision: Of the U-Net and of its side branch; float16 in the published use.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    kinds = {part: torch.float32 if part == "vae" else precision for part in PARTS}
    network = Yoso(**{part: load_part(network_class(part), folder / part, kinds[part]) for part in PARTS})
    return network.requires_grad_(False).eval().to(device)


@read_once(4, *PARTS)
def check(folder: Path) -> None:
    """Compare the files with the networks once, without reading the weights. Errors are those of `load`."""
    values = {part: check_part(network_class(part), folder / part) for part in PARTS}
    unet, side, latent = values["unet"], values["controlnet"], values["vae"]["latent_channels"]
    shape = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "down_block_types")
    if any(unet[key] != side[key] for key in shape) or not unet["in_channels"] == unet["out_channels"] == latent:
        raise ValueError(f"{folder} holds networks that do not belong together; copy the published folder again")


def network_class(part: str) -> type:
    """The class of one of PARTS, from diffusers."""
    import diffusers

    return getattr(diffusers, PARTS[part])
