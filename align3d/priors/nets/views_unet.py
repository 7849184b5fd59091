"""The network of the embedded prior: a small UNet that sees the pictures of several views of an object together.

Pictures are pixel-unshuffled, so that it works at half, a quarter and an eighth of their size. Convolutions see each
view by itself; at a quarter and an eighth, self-attention joins the views (MVDream, Shi et al. 2023, arXiv 2308.16512)
and cross-attention reads the words. Where a view is seen from, it is told twice: by the rays of its pixels (moment and
direction) as channels, and by its pose in what modulates every block. Views have no number: in another order, with
their cameras, they come out in that order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from align3d.models.diffsplat import plucker_rays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Cameras

RAYS, POSE = 6, 12  # numbers of a ray, and of a pose


def rays_and_poses(cameras: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What the network is told of the cameras.

    Returns:
        Moment and unit direction (B, V, 6, height, width) of the rays through the middles of so many pixels, world
        frame; the first three rows (B, V, 12) of the camera-to-world matrices.
    """
    return plucker_rays(cameras, height, width), cameras.c2w[..., :3, :].flatten(2)


def sinusoids(t: Float[Tensor, "n"], width: int) -> Float[Tensor, "n width"]:
    """Cosines and sines of times in [0, 1] at `width` / 2 frequencies."""
    frequency = 1000 * torch.exp(torch.arange(width // 2, device=t.device) * (-math.log(1e4) / (width // 2)))
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class Modulated(nn.Module):
    """LayerNorm over the channels, scaled and shifted as the time, the camera and the text ask for."""

    def __init__(self, width: int, embed: int):
        super().__init__()
        self.ask = nn.Linear(embed, 2 * width)
        nn.init.zeros_(self.ask.weight)
        nn.init.zeros_(self.ask.bias)

    def forward(self, x: Float[Tensor, "n h w c"], embed: Float[Tensor, "n e"]) -> Float[Tensor, "n h w c"]:
        """The map, each pixel normalised."""
        scale, shift = self.ask(embed)[:, None, None].chunk(2, -1)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class Conv(nn.Conv2d):
    """A 3 x 3 convolution of maps whose channels come last."""

    def __init__(self, source: int, width: int):
        super().__init__(source, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w d"]:
        """The map of the same size."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Residual(nn.Module):
    """What a map lacks, by convolutions: two, or one and a linear layer."""

    def __init__(self, width: int, embed: int, second: bool):
        super().__init__()
        self.norm = Modulated(width, embed)
        self.mix = Conv(width, width)
        self.out = Conv(width, width) if second else nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "n h w c"], embed: Float[Tensor, "n e"]) -> Float[Tensor, "n h w c"]:
        """The map."""
        return x + self.out(F.silu(self.mix(self.norm(x, embed))))


class Attention(nn.Module):
    """Pixels look at each other, or at the words."""

    def __init__(self, width: int, heads: int, source: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(source or width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Float[Tensor, "n h w c"],
        views: int,
        words: Float[Tensor, "b t d"] | None = None,
        bias: Float[Tensor, "b 1 1 t"] | None = None,
    ) -> Float[Tensor, "n h w c"]:
        """The map. Rows are those of the views of an object, one after the other, which are looked at together.

        Args:
            x: Map of n = b * views rows.
            views: Of an object.
            words: To look at; without them, the pixels of all views of the object.
            bias: Of the logits, -inf where there is no word.
        """
        seen = self.norm(x).unflatten(0, (-1, views)).flatten(1, 3)
        q = self.q(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(seen if words is None else words).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        # not scaled_dot_product_attention, whose gradient takes twice as long in bfloat16 on a CPU
        logits = (q * q.shape[-1] ** -0.5) @ k.mT
        y = (logits if bias is None else logits + bias.to(logits)).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2)).view(x.shape)


class Block(nn.Module):
    """The views look at each other and at the words; then each pixel at its neighbours, or (`wide`) at itself alone."""

    def __init__(self, width: int, embed: int, text: int, heads: int, wide: bool):
        super().__init__()
        self.views, self.words = Attention(width, heads), Attention(width, heads, text)
        self.local = Wide(width, embed) if wide else Residual(width, embed, second=False)

    def forward(
        self, x: Float[Tensor, "n h w c"], embed: Float[Tensor, "n e"], views: int, words: Tensor, bias: Tensor
    ) -> Float[Tensor, "n h w c"]:
        """The map."""
        return self.local(self.words(self.views(x, views), views, words, bias), embed)


class Wide(nn.Module):
    """What a pixel lacks, by two linear layers."""

    def __init__(self, width: int, embed: int, factor: int = 2):
        super().__init__()
        self.norm = Modulated(width, embed)
        self.up, self.down = nn.Linear(width, factor * width), nn.Linear(factor * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Float[Tensor, "n h w c"], embed: Float[Tensor, "n e"]) -> Float[Tensor, "n h w c"]:
        """The map."""
        return x + self.down(F.silu(self.up(self.norm(x, embed))))


def halve(x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h2 w2 c4"]:
    """Squares of 2 x 2 pixels as one."""
    n, h, w, c = x.shape
    return x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(n, h // 2, w // 2, 4 * c)


def double(x: Float[Tensor, "n h w c4"]) -> Float[Tensor, "n h2 w2 c"]:
    """The inverse of `halve`."""
    n, h, w, c = x.shape
    return x.view(n, h, w, 2, 2, c // 4).transpose(2, 3).reshape(n, 2 * h, 2 * w, c // 4)


class ViewsUNet(nn.Module):
    """The network; `from_config` makes it from what config.json holds."""

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        widths: Sequence[int] = (48, 112, 160),
        heads: Sequence[int] = (2, 4),
        text: int = 128,
        embed: int = 128,
    ):
        """Build.

        Args:
            size: Of a picture, pixels; a multiple of 8.
            channels: Of a picture.
            widths: Of the maps of half, a quarter and an eighth of the size.
            heads: Of the attention at a quarter and at an eighth.
            text: Numbers a word.
            embed: Width of what modulates the blocks, even.

        Raises:
            ValueError: If the numbers do not fit together.
        """
        super().__init__()
        self.config: dict[str, Any] = {
            "size": size, "channels": channels, "widths": list(widths), "heads": list(heads), "text": text,
            "embed": embed,
        }  # fmt: skip
        if size % 8 or embed % 2 or len(widths) != 3 or len(heads) != 2:
            raise ValueError(f"size {size}, embed {embed}, {len(widths)} widths or {len(heads)} heads do not do")
        if widths[1] % heads[0] or widths[2] % heads[1]:
            raise ValueError(f"widths {widths[1:]} are no multiples of the heads {heads}")
        fine, middle, coarse = widths
        self.size, self.channels = size, channels
        self.time = nn.Sequential(nn.Linear(embed, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.pose = nn.Sequential(nn.Linear(POSE, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.topic = nn.Linear(text, embed)
        self.stem = Conv(4 * channels + RAYS, fine)
        self.before = Residual(fine, embed, second=True)
        self.down1 = nn.Linear(4 * fine, middle)
        self.block1 = Residual(middle, embed, second=False)
        self.down2 = nn.Linear(4 * middle, coarse)
        self.place = nn.Parameter(torch.zeros(size // 8, size // 8, coarse))
        self.block2 = Block(coarse, embed, text, heads[1], wide=True)
        self.up2 = nn.Linear(coarse, 4 * middle)
        self.block3 = Block(middle, embed, text, heads[0], wide=False)
        self.up1 = nn.Linear(middle, 4 * fine)
        self.after = Residual(fine, embed, second=True)
        self.norm = Modulated(fine, embed)
        self.out = nn.Linear(fine, 4 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def from_config(cls, values: dict[str, Any]) -> ViewsUNet:
        """The network of a configuration."""
        return cls(**values)

    def forward(
        self,
        x: Float[Tensor, "B V C S S"],
        t: Float[Tensor, "B"],
        words: Float[Tensor, "B T D"],
        keep: Float[Tensor, "B T"],
        rays: Float[Tensor, "B V 6 s s"],
        poses: Float[Tensor, "B V 12"],
    ) -> Float[Tensor, "B V C S S"]:
        """The prediction v = alpha eps - sigma x0.

        Args:
            x: Noisy pictures of V views of B objects.
            t: Times in [0, 1].
            words: States of the words.
            keep: 1 = word, 0 = nothing.
            rays: Of the pixels of half the size, as `rays_and_poses` gives them.
            poses: As `rays_and_poses` gives them.

        Gradient: to x, and to the parameters.
        """
        V = x.shape[1]
        topic = self.topic((words * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp_min(1))
        of_row = self.time(sinusoids(t, self.config["embed"])) + topic
        embed = F.silu(of_row[:, None] + self.pose(poses)).flatten(0, 1)
        bias = torch.zeros_like(keep).masked_fill(keep == 0, -math.inf)[:, None, None]

        pictures = torch.cat([F.pixel_unshuffle(x, 2), rays], 2).flatten(0, 1)
        fine = self.before(self.stem(pictures.permute(0, 2, 3, 1).contiguous()), embed)
        middle = self.block1(self.down1(halve(fine)), embed)
        coarse = self.block2(self.down2(halve(middle)) + self.place, embed, V, words, bias)
        middle = self.block3(middle + double(self.up2(coarse)), embed, V, words, bias)
        fine = self.after(fine + double(self.up1(middle)), embed)
        out = self.out(F.silu(self.norm(fine, embed)))
        return F.pixel_shuffle(out.permute(0, 3, 1, 2), 2).unflatten(0, (-1, V))
