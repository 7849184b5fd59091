"""Which of some pictures for a prompt people would pick: a CLIP ViT-H/14 trained on half a million choices.

Source: Kirstain et al. 2023 (arXiv 2305.01569), github.com/yuvalkirstain/PickScore (f79607f).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from align3d.pretrained.clip import Clip, network
from align3d.rewards.clip_scores import cosine, device_of, require_prompts, score_views, steps_of, text_features
from align3d.rewards.published import CLIP_FILES, files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.types import Views


@dataclass(frozen=True)
class PickScore:
    """Which pictures people pick for a prompt: a log-odds, 17 to 24; one more means e times as often. ViT-H/14."""

    weights: Path | None = None  # folder with the published files of yuvalkirstain/PickScore_v1

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {"weights": {"yuvalkirstain/PickScore_v1": CLIP_FILES}}

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; warns of prompts that are not read to their end.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of("pickscore", self.weights, self.sources) as folder:
            steps_of(Clip(folder))
            require_prompts(Clip(folder), prompts)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The cosine of each view and its prompt, times exp(logit_scale), which is 100.

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        with files_of("pickscore", self.weights, self.sources) as folder:
            clip, device = Clip(folder), device_of(views, "pickscore")
            texts = text_features(clip, prompts, device) * network(clip, "text", device).logit_scale.exp()
            return score_views(views, clip, "pickscore", steps_of(clip), cosine, texts)
