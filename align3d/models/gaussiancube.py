"""GaussianCube: a diffusion model of cubes of Gaussians, one in each of 32 x 32 x 32 voxels (Zhang et al. 2024).

A state is (14, X, Y, Z), normalised. The network (nets/gaussiancube_unet.py) predicts the clean cube; this file adapts
it to the BaseModel contract, and its world to ours. Files and data sets: gaussiancube_files.py. Source: arXiv
2403.19655 and the released code.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from align3d.diffusion.guidance import guide
from align3d.diffusion.schedule import eps_from_x0
from align3d.models.text import CLIP_TOKENS, Memory, check_known
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.raster import RasterConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.diffusion.dpm_solver import Levels
    from align3d.models.lora import Adapter
    from align3d.models.nets.gaussiancube_unet import CubeUNet
    from align3d.models.text import TextSource

CHANNELS = 14  # offset from the voxel 3, colour 3, opacity, scales 3, quaternion wxyz 4
SH0 = 0.28209479177387814  # what a spherical harmonic of degree 0 is, everywhere
RASTER = RasterConfig(eps2d=0.3, near=0.2)  # as the published renderer
NOTHING = "unconditional"  # the prompt of no condition; with a number behind, as another one


@dataclass(frozen=True)
class CubeCond:
    """What each row is conditioned on; both None: nothing."""

    text: Float[Tensor, "B T D"] | None = None  # states of the tokens, padding included
    classes: Int[Tensor, "B"] | None = None

    def rows(self, chosen: Int[Tensor, "R"]) -> CubeCond:
        """Some of the rows."""
        return CubeCond(*(None if value is None else value[chosen] for value in (self.text, self.classes)))


@dataclass(frozen=True)
class Space:
    """How normalised cubes become Gaussians."""

    mean: Float[Tensor, "C X Y Z"]
    std: Float[Tensor, "C X Y Z"]
    bound: float  # voxels lie at -bound to bound, both included
    size: float = 1.0  # of the scene that comes out, times its own

    def gaussians(self, x0: Float[Tensor, "B C X Y Z"]) -> Gaussians:
        """The Gaussians, voxels in order, Z fastest. Gradient: to x0, zero where values are clamped.

        Opacities, scales and colours are clamped to [0, 1]; the published renderer clamps colours from below alone,
        and pictures from above.
        """
        import torch
        import torch.nn.functional as F

        value = (x0 * self.std + self.mean).flatten(2).mT  # (B, N, C)
        offset, colour, opacity, scale, quat = value.split((3, 3, 1, 3, 4), -1)
        axes = [torch.linspace(-self.bound, self.bound, n, device=x0.device) for n in x0.shape[2:]]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        x, y, z = (self.size * (voxels + offset)).unbind(-1)  # Z up; from there what faces -Y faces +Z here, Y up
        q = (0.5**0.5 * F.normalize(quat, dim=-1)).unbind(-1)
        turned = [q[0] + q[1], q[1] - q[0], q[2] + q[3], q[3] - q[2]]  # with them: (1, -1, 0, 0) / sqrt 2 times q
        return Gaussians(
            means=torch.stack([x, z, -y], -1),
            quats=torch.stack(turned, -1),
            scales=self.size * scale.clamp(0, 1),
            opacities=opacity[..., 0].clamp(0, 1),
            colors=(SH0 * colour + 0.5).clamp(0, 1),
            raster=RASTER,
        )


def is_nothing(prompt: str) -> bool:
    """Whether a prompt asks for no condition, which all networks know."""
    return re.fullmatch(rf"({NOTHING}( [0-9]+)?)?", prompt) is not None


@dataclass(eq=False)
class GaussianCube:
    """A GaussianCube generator behind the BaseModel contract."""

    network: CubeUNet
    schedule: Any  # all 1000 levels
    space: Space
    latent_shape: tuple[int, ...]  # (14, X, Y, Z)
    levels: Levels  # those of the deterministic sampler
    steps: int  # of ancestral sampling
    guidance: float
    solver: Callable[..., Tensor] | None  # one of diffusion/dpm_solver.py, of what is not trained on: pictures
    labels: Literal["exact", "published"] = "exact"  # of noise levels, in the deterministic sampler
    adapter: Adapter | None = None
    text: TextSource | None = None
    classes: Mapping[str, int] | None = None  # names of classes; their numbers do as well
    options: Any = None  # the dataclass that it was loaded from, for config.json
    memory: Memory | None = field(init=False, default=None)  # of texts

    def __post_init__(self) -> None:
        if self.text is not None:
            self.memory = Memory(self.text, self.device)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.space.mean.device

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that cannot be followed.

        Raises:
            ValueError: If one is no class of a network that knows classes, not in the cache of texts, or a text for a
                network that knows neither.
        """
        own, conditions = self.network.architecture, [prompt for prompt in prompts if not is_nothing(prompt)]
        if own.text:
            check_known(self.text, conditions)
        elif own.classes:
            for prompt in conditions:
                self._class(prompt)
        elif conditions:
            raise ValueError(
                f"the weights have no layers for texts, so the model follows none; got {conditions[0]!r}, its prompts "
                f'are "{NOTHING}", "{NOTHING} 2" and so on (the list {NOTHING}, as in --prompts {NOTHING})'
            )

    def encode(self, prompts: Sequence[str]) -> CubeCond:
        """Text states, or classes. No gradient: the text encoder is frozen.

        Raises:
            ValueError: As `check` does.
        """
        import torch

        own = self.network.architecture
        if own.text:
            rows = [self._null(1) if is_nothing(p) else self.memory(p).states.float() for p in prompts]
            return CubeCond(text=torch.cat(rows))
        if own.classes:
            numbers = [own.classes if is_nothing(p) else self._class(p) for p in prompts]
            return CubeCond(classes=torch.tensor(numbers, device=self.device))
        self.check(prompts)
        return CubeCond()

    def _null(self, rows: int) -> Float[Tensor, "B T D"]:
        """No text: zeros, which the network was trained to know."""
        import torch

        return torch.zeros(rows, CLIP_TOKENS, self.network.architecture.text, device=self.device)

    def _class(self, prompt: str) -> int:
        """The number of a class, by its name or its number."""
        most, known = self.network.architecture.classes, self.classes or {}
        number = known.get(prompt, int(prompt) if re.fullmatch("0|[1-9][0-9]{0,7}", prompt) else -1)
        if not 0 <= number < most:
            named = f"a name of {len(known)}, such as {next(iter(known))!r}" if known else "a name of --model.classes"
            raise ValueError(
                f"this model knows classes, not texts: a prompt is a number 0 to {most - 1}, or {named}; got {prompt!r}"
            )
        return number

    def predict(self, x: Float[Tensor, "B *L"], t: Float[Tensor, "B"], cond: CubeCond) -> Float[Tensor, "B *L"]:
        """The noise in x, with guidance; float64, as the noisiest states say hardly anything about the data.

        Where alpha is 5e-5, as in the first step, float32 would keep one digit of how two clean cubes differ.

        Args:
            x: States at times t.
            t: Times in [0, 1], 0 = data.
            cond: From encode, a row for each row of x.

        Gradient: to x and to the adapter.
        """
        x0 = self.clean(x, self.schedule.index(t).float(), cond)
        return eps_from_x0(self.schedule, x.double(), x0.double(), t)

    def clean(self, x: Float[Tensor, "B *L"], labels: Float[Tensor, "B"], cond: CubeCond) -> Float[Tensor, "B *L"]:
        """The clean cube that the network sees in x, with guidance, float32.

        Guidance of the noise is guidance of the data: at one x and t, each is a straight function of the other.
        """
        import torch

        own = self.network.architecture
        if self.guidance == 1 or not (own.text or own.classes):
            return self._network(x, labels, cond)
        B = len(x)
        text = None if cond.text is None else torch.cat([cond.text, self._null(B)])
        classes = (
            None if cond.classes is None else torch.cat([cond.classes, torch.full_like(cond.classes, own.classes)])
        )
        both = self._network(torch.cat([x, x]), torch.cat([labels, labels]), CubeCond(text, classes))
        return guide(both[:B], both[B:], self.guidance)

    def _network(self, x: Tensor, labels: Tensor, cond: CubeCond) -> Tensor:
        dtype = self.network.out[2].weight.dtype
        text = None if cond.text is None else cond.text.to(dtype)
        return self.network(x.to(dtype), labels, text, cond.classes).float()

    def solve(
        self, noise: Float[Tensor, "B *L"], cond: CubeCond, tell: Callable[[float], None] | None = None
    ) -> Float[Tensor, "B *L"] | None:
        """The clean cubes of standard normal noise, by the deterministic sampler; None: there is none, steps it is.

        `tell` is called before each step with the share of the way that lies behind the slowest row.
        """

        def denoise(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            return self.clean(x, self.label(t), cond.rows(rows))

        return None if self.solver is None else self.solver(denoise, noise, self.levels, tell=tell)

    def label(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """What the network is told of times of the deterministic sampler.

        The published code counts them as if all 1000 levels were there, though the noisiest are left out, so that the
        network is told of more noise than there is.
        """
        num = self.levels.num
        return ((t * num - 1).clamp_min(0) if self.labels == "exact" else (t - 1 / num) * 1000).float()

    def decode(self, x0: Float[Tensor, "B *L"]) -> Gaussians:
        """The Gaussians of clean cubes. Gradient: to x0."""
        return self.space.gaussians(x0)

    def reference(self) -> AbstractContextManager[None]:
        """Within, the model is the one before training, and no graph is built."""
        from align3d.models.lora import untuned

        return untuned(self.adapter)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT layout."""
        self.adapter.save(folder)
