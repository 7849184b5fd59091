"""DiffSplat: a multi-view latent diffusion model whose views are splat maps (Lin et al. 2025).

The networks are stock diffusers classes with multi-view attention (nets/denoisers.py); this file adapts them to the
BaseModel contract. Latents are (B, V, C, h, w). What differs between the published generators and the embedded one is
in the parts, and in the options of the files that load them: embedded.py, published.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from align3d.diffusion.guidance import guide
from align3d.diffusion.schedule import eps_from_flow, eps_from_v
from align3d.models.splat_maps import quaternion
from align3d.models.text import Memory, Text, check_known

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from jaxtyping import Float
    from torch import Tensor, nn

    from align3d.models.lora import Adapter
    from align3d.models.splat_maps import SplatMaps
    from align3d.models.text import TextSource
    from align3d.scenes.gaussians import Gaussians
    from align3d.types import Cameras


@dataclass(frozen=True)
class TextCond:
    """Encoded prompts, one row each, and the encoded empty prompt, one row."""

    text: Text
    empty: Text


@dataclass(eq=False)
class DiffSplat:
    """A DiffSplat generator behind the BaseModel contract."""

    denoiser: Any  # a multi-view network behind one call: one of nets.denoisers
    codec: nn.Module  # decode(latents) -> maps (B, V, 12, H, W)
    text: TextSource  # prompts -> Text; "" is the negative prompt
    schedule: Any
    cameras: Cameras  # one set of V cameras, those of the maps; on the device of the networks
    maps: SplatMaps
    latent_shape: tuple[int, ...]
    adapter: Adapter | None  # None: a generator that is not trained
    steps: int  # sampling steps
    guidance: float
    prediction: Literal["epsilon", "v", "flow"] = "v"
    precision: torch.dtype | None = None  # of matrix products inside the denoiser; None = that of its weights
    plucker: Tensor | None = None  # (1, V, 6, h, w), a part of the denoiser's input; None = through latent pixels
    options: Any = None  # the dataclass that it was loaded from, for config.json
    turns: Tensor = field(init=False)  # (1, V, 4), quaternions of the cameras' rotations
    memory: Memory = field(init=False)  # of texts

    def __post_init__(self) -> None:
        if self.plucker is None:
            self.plucker = plucker_rays(self.cameras, *self.latent_shape[-2:])
        self.turns = quaternion(self.cameras.c2w[..., :3, :3])
        self.memory = Memory(self.text, self.device)

    @property
    def network(self) -> nn.Module:
        """The denoiser's network."""
        return self.denoiser.network

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.denoiser.device

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that a cache of texts lacks.

        Raises:
            ValueError: Names one.
        """
        check_known(self.text, prompts)

    def encode(self, prompts: Sequence[str]) -> TextCond:
        """Text states, those of the latest texts from memory. No gradient: the text encoder is frozen."""
        empty, *rows = map(self.memory, ["", *prompts])
        return TextCond(Text.cat(rows), empty)

    def predict(self, x: Float[Tensor, "B *L"], t: Float[Tensor, "B"], cond: TextCond) -> Float[Tensor, "B *L"]:
        """The noise in x, with guidance, float32.

        Args:
            x: States at times t.
            t: Times in [0, 1], 0 = data.
            cond: From encode, a row for each row of x.

        Gradient: to x and to the adapter.
        """
        import torch

        B = len(x)
        if self.guidance == 1:
            out = self.output(x, t, cond.text)
        else:
            both = Text.cat([cond.text, *[cond.empty] * B])
            out = self.output(torch.cat([x, x]), torch.cat([t, t]), both)
            out = guide(out[:B], out[B:], self.guidance)
        convert = {"v": eps_from_v, "flow": eps_from_flow}.get(self.prediction)
        return out if convert is None else convert(self.schedule, x, out, t)

    def output(self, x: Float[Tensor, "B *L"], t: Float[Tensor, "B"], text: Text) -> Float[Tensor, "B *L"]:
        """What the denoiser says, without guidance, float32."""
        import torch

        rays = self.plucker.to(x).expand(len(x), -1, -1, -1, -1)
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            return self.denoiser(torch.cat([x, rays], 2), t, text)

    def decode(self, x0: Float[Tensor, "B *L"]) -> Gaussians:
        """The Gaussians of clean latents, in the codec's own precision. Gradient: to x0.

        Not in `precision`: with bfloat16 maps, the gradient of a reward has a cosine of 0.5 to 0.98 with the true one.
        """
        return self.maps.gaussians(self.codec.decode(x0).float(), self.cameras, self.turns)

    def reference(self) -> AbstractContextManager[None]:
        """Within, the model is the one before training, and no graph is built."""
        from align3d.models.lora import untuned

        return untuned(self.adapter)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT layout."""
        self.adapter.save(folder)


def plucker_rays(cameras: Cameras, height: int, width: int) -> Float[Tensor, "B V 6 h w"]:
    """Moment o x d and unit direction d of the ray through the centre of every latent pixel, world frame."""
    from align3d.scenes.cameras import pixel_rays

    shrink = cameras.K.new_tensor([[width / cameras.width], [height / cameras.height], [1.0]])
    return plucker(*pixel_rays(replace(cameras, K=cameras.K * shrink, height=height, width=width)))


def plucker_rays_published(cameras: Cameras, height: int, width: int) -> Float[Tensor, "B V 6 h w"]:
    """The maps that the published weights were trained with, defect included.

    Rays of the pixels of the picture on a grid that includes both end points, x / (W - 1), but with half a picture
    added, so that they cover 0 to 0.72 instead of -0.36 to 0.36; then resized, bilinear, without antialiasing.

    Source: the released code of DiffSplat.
    """
    import torch
    import torch.nn.functional as F

    size = cameras.K.new_tensor([cameras.width, cameras.height])
    focal, centre = (cameras.K[..., [0, 1], k] / size for k in ([0, 1], [2, 2]))  # in units of the picture
    axes = (torch.linspace(0, 1, n, device=size.device, dtype=size.dtype) for n in (cameras.width, cameras.height))
    x, y = torch.meshgrid(*axes, indexing="xy")
    grid = torch.stack([x, y]) + 0.5  # (2, H, W)
    slopes = (grid - centre[..., None, None]) / focal[..., None, None]
    rays = torch.cat([slopes, torch.ones_like(slopes[:, :, :1])], 2)
    direction = torch.einsum("bvij,bvjhw->bvihw", cameras.c2w[..., :3, :3], rays)
    full = plucker(cameras.c2w[..., :3, 3, None, None], direction)
    small = F.interpolate(full.flatten(0, 1), (height, width), mode="bilinear", align_corners=False)
    return small.unflatten(0, full.shape[:2])


def plucker(origin: Float[Tensor, "B V 3 *1"], direction: Float[Tensor, "B V 3 h w"]) -> Float[Tensor, "B V 6 h w"]:
    """Moment and unit direction of rays."""
    import torch
    import torch.nn.functional as F

    d = F.normalize(direction, dim=2)
    return torch.cat([torch.linalg.cross(origin.expand_as(d), d, dim=2), d], 2)
