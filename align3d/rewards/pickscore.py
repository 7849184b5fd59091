"""Which of some pictures for a prompt people would pick: a CLIP ViT-H/14 trained on half a million choices.

Source: Kirstain et al. 2023 (arXiv 2305.01569), github.com/yuvalkirstain/PickScore (f79607f).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from align3d.pretrained.clip import Clip, network, sizes_of
from align3d.rewards.clip_scores import cosine, device_of, require_prompts, score_views, steps_of, text_features
from align3d.rewards.published import CLIP_FILES, files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rewards.clip_scores import Preprocessing
    from align3d.types import Views


@dataclass(frozen=True)
class PickScore:
    """Which pictures people pick for a prompt: a log-odds, 17 to 24; one more means e times as often. ViT-H/14."""

    weights: Path | None = None  # folder with the published files of yuvalkirstain/PickScore_v1

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {"weights": {"yuvalkirstain/PickScore_v1": CLIP_FILES}}
    widths: ClassVar[tuple[int, int]] = (1280, 1024)  # of a ViT-H's tokens, and of its features

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; warns of prompts that are not read to their end.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of("pickscore", self.weights, self.sources) as folder:
            self._fits(Clip(folder))
            require_prompts(Clip(folder), prompts)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The cosine of each view and its prompt, times exp(logit_scale), which is 100.

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        with files_of("pickscore", self.weights, self.sources) as folder:
            clip, device = Clip(folder), device_of(views, "pickscore")
            steps = self._fits(clip)
            texts = text_features(clip, prompts, device) * network(clip, "text", device).logit_scale.exp()
            return score_views(views, clip, "pickscore", steps, cosine, texts)

    def _fits(self, clip: Clip) -> Preprocessing:
        """The preprocessing of the network, if it has the published sizes; another CLIP's scores mean something else.

        Raises:
            ValueError: If it has others.
        """
        steps, sizes = steps_of(clip), sizes_of(clip)
        found = (sizes["vision_config"].get("hidden_size", 768), sizes["projection_dim"])
        if found != self.widths:
            raise ValueError(
                f"{clip.folder} is not PickScore: its pictures' tokens and features have {found[0]} and {found[1]} "
                f"numbers, expected {self.widths[0]} and {self.widths[1]}; for any CLIP, take --reward clip"
            )
        return steps
