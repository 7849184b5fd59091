"""How well each view fits the whole prompt, by a small image-text network trained on the embedded model's objects.

The network (clip_net.py) is made by embedded/train_clip.py; embedded/CLIP_CARD.md says what it has seen and how often
it is right. It knows the embedded generator's things, colours, coloured parts, sizes, numbers and relations, in
renders of 64 pixels, and little else: as a judge of photographs or of rare words it is worthless.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from align3d.pretrained.once import read_once
from align3d.rewards.preprocess import per_image, resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.rewards.clip_net import ClipTiny as Network
    from align3d.types import Views

ASSETS = Path(__file__).parent.parent / "assets" / "clip_tiny"
CHUNK = 32  # images that go through the network together


@dataclass(frozen=True)
class ClipTiny:
    """Agreement of a view with the whole prompt, by a small image-text network: 0.8 is right, 0 is something else."""

    weights: Path | None = None  # folder with config.json and model.safetensors; none = the shipped network

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early what cannot be scored; any prompt can, if the weights are there.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged.
        """
        import torch

        network(self.weights or ASSETS, torch.device("cpu"))

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The cosine of the angle between the features of a view and of its prompt, in [-1, 1].

        On splats of held-out objects: 0.77 to 0.88 (deciles) with their own prompt, -0.28 to 0.25 with another's, and
        -0.07 to 0.41 where the object is broken. Above 0.9, more is no better picture (embedded/CLIP_CARD.md).

        Raises:
            FileNotFoundError, ValueError: As `check` does.

        Gradient: to the colours, in float32.
        """
        import torch

        views.require("rgb", by="reward clip-tiny")
        rgb = views.rgb
        with torch.no_grad():
            texts = text_features(prompts, self.weights, rgb.device)

        def score(images: Tensor, texts: Tensor) -> Tensor:
            return (image_features(images, self.weights) * texts).sum(-1)

        batch = rgb.shape[:2]
        return per_image(score, rgb.flatten(0, 1), texts.repeat_interleave(batch[1], 0)).unflatten(0, batch)


def image_features(images: Float[Tensor, "n 3 h w"], weights: Path | None = None) -> Float[Tensor, "n d"]:
    """Unit features of images, for similarity with texts or with other images.

    Args:
        images: In [0, 1]; resized to 64 pixels, squeezed to a square.
        weights: Folder of another network than the shipped one.

    Gradient: to the images, in float32 whatever autocast says.
    """
    import torch

    net = network(weights or ASSETS, images.device)
    with torch.autocast(images.device.type, enabled=False):
        parts = [net.look(resize(part, net.size).clamp(0, 1)) for part in images.float().split(CHUNK)]
    return torch.cat(parts)


def text_features(
    prompts: Sequence[str], weights: Path | None = None, device: torch.device | None = None
) -> Float[Tensor, "n d"]:
    """Unit features of any strings; the same string has the same row, whatever stands beside it, up to rounding.

    Args:
        prompts: Texts.
        weights: Folder of another network than the shipped one.
        device: Where to compute; by default the CPU.
    """
    import torch

    device = device or torch.device("cpu")
    net = network(weights or ASSETS, device)
    with torch.autocast(device.type, enabled=False):
        return net.read(prompts)


@read_once(4)
def network(folder: Path, device: torch.device) -> Network:
    """The network, read once for each folder and device; frozen, float32."""
    from align3d.rewards.clip_net import load

    return load(folder, device)
