"""How much people would like a picture as such, by LAION's predictors: an affine map of a CLIP's image feature.

`aesthetic` is what DDPO, AlignProp, Nabla-R2D3 and others train on. Source: github.com/christophschuhmann/
improved-aesthetic-predictor (6934dd8), as Nabla-R2D3 (77483e6) calls it: the whole picture squeezed to a square, by
sampling without antialias. Its five linear layers have nothing between them, so they are one affine map.

`aesthetic-linear` is the first predictor, which RewardSDS has. Source: github.com/LAION-AI/aesthetic-predictor
(6d122ad), with CLIP's own preprocessing: shorter side to 224 with antialias, and the middle of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from align3d.pretrained import clip as pretrained
from align3d.pretrained.affine import affine
from align3d.pretrained.clip import Clip
from align3d.pretrained.once import read_once
from align3d.rewards.clip_scores import MEAN, STD, device_of, image_size, score_views, steps_of
from align3d.rewards.preprocess import normalize, resize
from align3d.rewards.published import CLIP_FILES, files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views

CLIP = "openai/clip-vit-large-patch14"
STACK, LINEAR = "sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth"
LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")  # of the stack: the rest is dropout
WIDTHS = (1024, 128, 64, 16, 1)  # of their outputs


@dataclass(frozen=True)
class Aesthetic:
    """How much people like such pictures, about 1 to 10; usual renders 4 to 6. LAION's predictor; reads no prompt."""

    weights: Path | None = None  # folder with the published files of CLIP ViT-L/14, and the predictor's .pth
    antialias: bool = False  # whether the picture is smoothed when it shrinks; published runs have it aliased

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {
        "weights": {CLIP: CLIP_FILES[:3], "github.com/christophschuhmann/improved-aesthetic-predictor": (STACK,)}
    }

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; any prompt can be scored.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of("aesthetic", self.weights, self.sources) as folder:
            pretrained.check(Clip(folder))
            stack(folder / STACK, _width(folder))

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The predicted mark of each view.

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        with files_of("aesthetic", self.weights, self.sources) as folder:
            clip, (weight, bias) = Clip(folder), stack(folder / STACK, _width(folder))
            size, slope = image_size(clip), weight.to(device_of(views, "aesthetic"))

            def prepare(images: Tensor) -> Tensor:
                return normalize(resize(images, size, antialias=self.antialias), MEAN, STD)

            return score_views(views, clip, "aesthetic", prepare, lambda features: features @ slope + bias)


@dataclass(frozen=True)
class AestheticLinear:
    """How much people like such pictures, about 1 to 10, by the first, linear predictor of LAION; reads no prompt."""

    weights: Path | None = None  # folder with the published files of CLIP ViT-L/14, and the predictor's .pth

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {
        "weights": {CLIP: CLIP_FILES[:3], "github.com/LAION-AI/aesthetic-predictor": (LINEAR,)}
    }

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; any prompt can be scored.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of("aesthetic-linear", self.weights, self.sources) as folder:
            steps_of(Clip(folder))
            linear(folder / LINEAR, _width(folder))

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The predicted mark of each view.

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        with files_of("aesthetic-linear", self.weights, self.sources) as folder:
            clip, (weight, bias) = Clip(folder), linear(folder / LINEAR, _width(folder))
            slope, prepare = weight.to(device_of(views, "aesthetic-linear")), steps_of(clip)
            return score_views(views, clip, "aesthetic-linear", prepare, lambda features: features @ slope + bias)


@read_once(4)
def stack(path: Path, width: int) -> tuple[Float[Tensor, "d"], float]:
    """The slope and the offset of the five layers, multiplied in float64 and given in float32.

    Args:
        path: The published file.
        width: Numbers of an image feature.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged or does not fit.
    """
    shapes, before = {}, width
    for name, after in zip(LAYERS, WIDTHS, strict=True):
        shapes |= {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
        before = after
    state = _read(path, shapes)
    slope, offset = affine((state[f"{name}.weight"], state[f"{name}.bias"]) for name in LAYERS)
    return slope[0].float(), float(offset)


@read_once(4)
def linear(path: Path, width: int) -> tuple[Float[Tensor, "d"], float]:
    """The slope and the offset of the linear predictor; arguments and errors as of `stack`."""
    state = _read(path, {"weight": (1, width), "bias": (1,)})
    return state["weight"][0].float(), float(state["bias"])


def _width(folder: Path) -> int:
    """Numbers of an image feature."""
    return pretrained.sizes_of(Clip(folder))["projection_dim"]


def _read(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a predictor, all of them and no others."""
    from align3d.pretrained.legacy import read_legacy

    state = read_legacy(path)
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))
    if wrong:
        said = f"{wrong[0]} is {found.get(wrong[0], 'missing')}, expected {shapes.get(wrong[0], 'none')}"
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"{path} is no aesthetic predictor for this CLIP: {said}{more}; copy both again")
    bad = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{path} is damaged, {bad[0]} has NaN or infinity in it; copy it again")
    return state
