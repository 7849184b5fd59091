"""Image features of a CLIP checkpoint in a folder of the user's, with its own preprocessing made differentiable.

Source: Radford et al. 2021 (arXiv 2103.00020); the network is that of transformers. Its image processor works on 8-bit
PIL images; here the same steps are taken on tensors, and agree up to the rounding to 8 bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align3d.pretrained.clip import Clip, look, network, sizes_of
from align3d.rewards.clip_scores import preprocessing, steps_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rewards.clip_scores import Preprocessing

CHUNK = 32  # images that go through the network together


@dataclass(frozen=True)
class ClipFeatures:
    """Unit image features of a CLIP checkpoint, from a folder in the layout of transformers."""

    folder: Path  # with config.json, preprocessor_config.json and model.safetensors (or its parts and their index)

    @property
    def dims(self) -> int:
        """Length of the features.

        Raises:
            FileNotFoundError, ValueError: As `check` does.
        """
        return sizes_of(Clip(self.folder))["projection_dim"]

    def check(self) -> None:
        """Refuse early.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one is damaged, or the folder holds another kind of model.
        """
        self._steps()

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features of each image in [0, 1], 0 or more; gradient to the images, in float32 whatever autocast says.

        Raises:
            FileNotFoundError, ValueError: As `check` does.
        """
        import torch

        steps, net = self._steps(), network(Clip(self.folder), "image", images.device)
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([look(net, steps(part)) for part in images.float().split(CHUNK)])

    def _steps(self) -> Preprocessing:
        """The preprocessing that the folder has, if it makes what the network takes."""
        preprocessing(self.folder)  # here it must be there
        return steps_of(Clip(self.folder))
