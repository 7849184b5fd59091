"""How well each view fits the prompt, by any CLIP: the cosine of the angle between their features.

Source: Hessel et al. 2021 (CLIPScore), without its factor of 2.5 and its cut at 0, in which there is no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from align3d.pretrained.clip import Clip
from align3d.rewards.clip_scores import cosine, device_of, require_prompts, score_views, steps_of, text_features
from align3d.rewards.published import CLIP_FILES, files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views


@dataclass(frozen=True)
class ClipScore:
    """How well a view fits its prompt, by any CLIP: cosine, 0.15 to 0.35 with OpenAI's ViT-L/14."""

    weights: Path | None = None  # folder of a CLIP as it was published; downloads are of OpenAI's ViT-L/14

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {
        "weights": {"openai/clip-vit-large-patch14": CLIP_FILES}
    }

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; warns of prompts that are not read to their end.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of("clip", self.weights, self.sources) as folder:
            steps_of(Clip(folder))
            require_prompts(Clip(folder), prompts)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The cosine of each view and its prompt, in [-1, 1].

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        with files_of("clip", self.weights, self.sources) as folder:
            clip = Clip(folder)
            texts = text_features(clip, prompts, device_of(views, "clip"))
            return score_views(views, clip, "clip", steps_of(clip), cosine, texts)
