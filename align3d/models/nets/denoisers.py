"""The three denoisers of DiffSplat behind one call: PixArt-Sigma, the UNet of Stable Diffusion 1.5, SD3.

Each is the stock diffusers network with attention over the views of an object and an input layer that takes the
Plucker channels as well; names and shapes of the weights are those of the published checkpoints. This module does
not import diffusers: networks come from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align3d.models.text import Text

Softmax = Literal["network", "float32"]
PLUCKER = 6  # channels of the rays, after those of the latents
TOKENS = 32  # texts are cut to multiples of this: few shapes, for which a GPU's kernels are chosen anew


class Denoiser:
    """A stock network that denoises the views of an object together."""

    stock: ClassVar[str]  # name of the class in diffusers
    folder: ClassVar[str]  # of its weights in a published checkpoint
    entry: ClassVar[str]  # the weight that widens with the input channels

    def __init__(
        self,
        network: nn.Module,
        num_views: int,
        label: Callable[[Float[Tensor, "B"]], Tensor],
        softmax: Softmax = "network",
    ):
        """Joins the network's attention over views.

        Args:
            network: Of class `stock`, with its weights; changed in place, but for names and weights.
            num_views: Views of an object.
            label: Times in [0, 1], 0 = data, to what the network was trained to read as time; `index` of a discrete
                schedule.
            softmax: "float32" computes self-attention and the layer norms before each feed-forward and before the
                output in that type; the released code had it for its bfloat16 PixArt. "network": in the network's own.

        Raises:
            ValueError: If the network is another, or has an attention that is not known here.
        """
        from align3d.models.nets.multiview import set_multiview

        if type(network).__name__ != self.stock:
            raise ValueError(f"{type(self).__name__} takes a {self.stock}, got a {type(network).__name__}")
        self.network = set_multiview(network, num_views, softmax)
        self.num_views = num_views
        self.label = label

    def __call__(self, x: Float[Tensor, "B V C h w"], t: Float[Tensor, "B"], text: Text) -> Float[Tensor, "B V Cl h w"]:
        """The network's raw output for the latent channels, float32: noise, v or velocity, whatever it was trained for.

        Args:
            x: States with the Plucker channels after those of the latents.
            t: Times in [0, 1], 0 = data.
            text: A row for each object.

        Raises:
            ValueError: If there are not `num_views` views, or the text lacks what the network needs.

        Gradient: to x, to weights and adapters that require it, to the text.
        """
        B, V, C = x.shape[:3]
        if self.num_views != V:
            raise ValueError(f"this denoiser joins {self.num_views} views of an object, got {V}")
        states = text.states.to(self.dtype)
        out = self.rows(x.flatten(0, 1).to(self.dtype), self.label(t), states, text)
        return out.float().unflatten(0, (B, V))[:, :, : C - PLUCKER]

    def rows(self, x: Float[Tensor, "BV C h w"], label: Tensor, states: Float[Tensor, "B T D"], text: Text) -> Tensor:
        """The output of the network, rows (b v)."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in: that of its weights, whatever that of an adapter."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device


class PixArt(Denoiser):
    """PixArtTransformer2DModel: text with padding masked out, no size or aspect ratio among its conditions.

    The published network has 8 output channels; the last 4 say the variance of a reverse step, and are left out here.
    """

    stock = "PixArtTransformer2DModel"
    folder = "transformer_ema"
    entry = "pos_embed.proj.weight"

    def rows(self, x: Float[Tensor, "BV C h w"], label: Tensor, states: Float[Tensor, "B T D"], text: Text) -> Tensor:
        """The output of the network, rows (b v); without the padding that no row needs, it makes no difference."""
        V, tokens = self.num_views, longest(text)
        return self.network(
            x,
            encoder_hidden_states=states[:, :tokens].repeat_interleave(V, 0),
            timestep=label.repeat_interleave(V),
            encoder_attention_mask=text.keep[:, :tokens].repeat_interleave(V, 0),
            return_dict=False,
        )[0]


def longest(text: Text) -> int:
    """The number of tokens of the longest text, up to the next multiple of TOKENS; tokens come before padding."""
    most = text.counted().most if text.most is None else text.most
    return -(-max(1, most) // TOKENS) * TOKENS


class UNet(Denoiser):
    """UNet2DConditionModel of Stable Diffusion 1.5: padding of the text is read like its words."""

    stock = "UNet2DConditionModel"
    folder = "unet_ema"
    entry = "conv_in.weight"

    def rows(self, x: Float[Tensor, "BV C h w"], label: Tensor, states: Float[Tensor, "B T D"], text: Text) -> Tensor:
        """The output of the network, rows (b v)."""
        V = self.num_views
        return self.network(
            x, label.repeat_interleave(V), encoder_hidden_states=states.repeat_interleave(V, 0), return_dict=False
        )[0]


def thousands(t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Times in [0, 1] as networks for flow matching read them, in 0 to 1000, any number between."""
    return 1000 * t


class SD3(Denoiser):
    """SD3Transformer2DModel: one row of text an object, padding read like its words, and one pooled vector."""

    stock = "SD3Transformer2DModel"
    folder = "transformer_ema"
    entry = "pos_embed.proj.weight"

    def __init__(
        self,
        network: nn.Module,
        num_views: int,
        label: Callable[[Float[Tensor, "B"]], Tensor] = thousands,
        softmax: Softmax = "network",
    ):
        super().__init__(network, num_views, label, softmax)

    def rows(self, x: Float[Tensor, "BV C h w"], label: Tensor, states: Float[Tensor, "B T D"], text: Text) -> Tensor:
        """The output of the network, rows (b v)."""
        if text.pooled is None:
            raise ValueError("SD3 needs the pooled states of its text, got none; encode the prompts with its encoders")
        return self.network(
            x,
            encoder_hidden_states=states,
            pooled_projections=text.pooled.to(states.dtype),
            timestep=label,
            return_dict=False,
        )[0]


def stock_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A published config.json with blocks by the names that diffusers has for them.

    The released code has classes of its own for a UNet's blocks, the same but for attention (...BlockMV2D for
    ...Block2D); keys that no stock class knows, as those of the moving average, stay.
    """

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return value.replace("MV2D", "2D") if isinstance(value, str) else value

    return {
        key: renamed(value) if key.endswith(("block_type", "block_types")) else value for key, value in values.items()
    }


def widened(tensors: Mapping[str, Tensor], entry: str, channels: int) -> dict[str, Tensor]:
    """Weights of a network for `channels` input channels, from those for fewer.

    The output does not change at first: old channels keep their weights, new ones have zero.

    Args:
        tensors: State dict of the stock network.
        entry: Name of the input layer's weight, (out, in, kh, kw); `entry` of a Denoiser.
        channels: Input channels of the wider one.

    Raises:
        ValueError: If it has more already.

    Source: the released code of DiffSplat (zero_init_conv_in).
    """
    old = tensors[entry]
    if channels < old.shape[1]:
        raise ValueError(f"{entry} has {old.shape[1]} input channels already, cannot be widened to {channels}")
    new = old.new_zeros(old.shape[0], channels, *old.shape[2:])
    new[:, : old.shape[1]] = old
    return {**tensors, entry: new}
