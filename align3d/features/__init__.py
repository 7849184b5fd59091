"""Networks that give images features, to measure how far apart images and sets of them are.

A feature network is a frozen dataclass of options; FeatureNetwork says what it can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FEATURES = {
    "efficientnet": "align3d.features.efficientnet:EfficientNetFeatures",
    "inception": "align3d.features.inception:InceptionFeatures",
    "clip": "align3d.features.clip:ClipFeatures",
    "none": "align3d.features.nothing:Nothing",
}


def require(network: object, name: str) -> None:
    """Refuse what is no feature network.

    Raises:
        ValueError: Says what it lacks.
    """
    dims = getattr(network, "dims", None)
    lacks = [what for what in ("check", "__call__") if not callable(getattr(network, what, None))]
    lacks += [] if type(dims) is int and dims >= 0 else [f"dims, a whole number (got {dims!r})"]
    if lacks:
        raise ValueError(f"features {name!r} lack {', '.join(lacks)}; docs/evaluation.md says what they need")


@runtime_checkable
class FeatureNetwork(Protocol):
    """A frozen network that looks at images."""

    dims: int  # how many features it gives

    def check(self) -> None:
        """Raises a ValueError, before any work is done, if it cannot be used: a file or a package is missing."""
        ...

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """`dims` features of each image in [0, 1], float32; gradient to the images."""
        ...
