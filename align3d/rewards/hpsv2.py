"""Which pictures people prefer for a prompt: CLIP ViT-H/14s trained on 800,000 choices (v2), and on better ones (v2.1).

Source: Wu et al. 2023 (arXiv 2306.09341), github.com/tgxs002/HPSv2 (866735e), as Nabla-R2D3 (77483e6) calls it: the
longer side of the picture to 224 with antialias, the rest black; the cosine, without a factor. The published files have
OpenCLIP's names and 16-bit numbers. `convert`, which `align3d download` calls, writes them once as safetensors in the
names of transformers; where such a file lies beside the published one, it is read in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.pretrained import legacy
from align3d.pretrained.clip import END, Clip, Sizes, sizes_of
from align3d.rewards.clip_scores import (
    MEAN,
    STD,
    cosine,
    device_of,
    image_size,
    require_prompts,
    score_views,
    text_features,
)
from align3d.rewards.preprocess import normalize, resize
from align3d.rewards.published import TOKENIZER_FILES, files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views
    from align3d.weights import Weights

V2, V21 = "HPS_v2_compressed", "HPS_v2.1_compressed"
QUOTES = str.maketrans("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", 4 * "'" + 4 * '"')  # curly to straight
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what both were trained from
SIZES: Sizes = {  # of OpenCLIP's ViT-H-14
    "model_type": "clip",
    "projection_dim": 1024,
    "vision_config": {
        **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16},
        **{"image_size": 224, "patch_size": 14, "hidden_act": "gelu"},
    },
    "text_config": {
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "gelu", "eos_token_id": END},
    },
}


@dataclass(frozen=True)
class _HPS:
    """What both versions have in common."""

    weights: Path | None = None  # folder with the published HPS_v2..._compressed.pt, and the tokenizer of CLIP
    antialias: bool = True  # whether the picture is smoothed when it shrinks; the published code: as torchvision is

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    name: ClassVar[str]
    file: ClassVar[str]
    opener: ClassVar[Any]  # from a folder to the sizes and weights in it
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; warns of prompts that are not read to their end.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of(self.name, self.weights, self.sources) as folder:
            require_prompts(Clip(folder, type(self).opener), cleaned(prompts))

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The cosine of each view and its prompt, in [-1, 1].

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        with files_of(self.name, self.weights, self.sources) as folder:
            clip = Clip(folder, type(self).opener)
            size = image_size(clip)
            texts = text_features(clip, cleaned(prompts), device_of(views, self.name))

            def prepare(images: Tensor) -> Tensor:
                return normalize(fit(images, size, self.antialias), MEAN, STD)

            return score_views(views, clip, self.name, prepare, cosine, texts)

    @classmethod
    def convert(cls, folder: Path) -> Path | None:
        """Write the weights as safetensors beside the published file; see `legacy.convert`."""
        return legacy.convert(folder, cls.file, _published, lambda folder: sizes_of(Clip(folder, cls.opener)))


def open_v2(folder: Path) -> tuple[Sizes, Weights]:
    """Sizes and weights of version 2, from either file; errors as of `read_legacy`."""
    return _open(folder, V2)


def open_v21(folder: Path) -> tuple[Sizes, Weights]:
    """Sizes and weights of version 2.1, from either file; errors as of `read_legacy`."""
    return _open(folder, V21)


def _sources(file: str) -> dict[str, Any]:
    return {"weights": {"xswu/HPSv2": (f"{file}.pt",), TOKENIZER: TOKENIZER_FILES}}


@dataclass(frozen=True)
class HPSv2(_HPS):
    """Which pictures people prefer for a prompt: Human Preference Score v2, a cosine of 0.2 to 0.32. ViT-H/14."""

    name, file, opener, sources = "hpsv2", V2, open_v2, _sources(V2)


@dataclass(frozen=True)
class HPSv21(_HPS):
    """Which pictures people prefer for a prompt: Human Preference Score v2.1, a cosine of 0.2 to 0.35. ViT-H/14."""

    name, file, opener, sources = "hpsv2.1", V21, open_v21, _sources(V21)


def fit(images: Float[Tensor, "n 3 h w"], size: int, antialias: bool = True) -> Float[Tensor, "n 3 s s"]:
    """Whole pictures in a square, the longer side as long as it, with as much black on either side of the shorter.

    Args:
        images: In [0, 1].
        size: Pixels of the square.
        antialias: Whether pictures are smoothed when they shrink.

    Gradient: to the images.
    """
    import torch.nn.functional as F

    scale = size / max(images.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    images = resize(images, (height, width), antialias=antialias)
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def cleaned(prompts: Sequence[str]) -> list[str]:
    """Prompts with plain quotes and without the marks of HTML, as OpenCLIP reads them.

    It has ftfy do that, which also repairs text in a wrong encoding, ligatures and wide letters; that is not done.
    """
    import html

    return [html.unescape(html.unescape(prompt)).translate(QUOTES).strip() for prompt in prompts]


def _open(folder: Path, file: str) -> tuple[Sizes, Weights]:
    return SIZES, legacy.converted_or_published(folder, file, _published)


def _published(path: Path) -> dict[str, Tensor]:
    from align3d.pretrained.openclip import renamed

    return renamed(legacy.read_legacy(path, "state_dict"))
