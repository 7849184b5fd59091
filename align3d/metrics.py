"""How far apart two sets of images are, and how varied one is, from features of a network. Pure maths, in float64."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

BLOCKS = 10  # of the jackknife


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """The squared Frechet distance of the Gaussians fitted to two sets of features; of Inception's, the FID.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with unbiased covariances. The last trace is the sum of the
    singular values of A B^T, where A^T A = C_a and B^T B = C_b: no square root of a singular matrix, so any number of
    rows will do and nothing is added to the diagonal.

    It is biased: two sets from one distribution differ by a number that falls with their size. Compare sets of equal
    size, and with the distance between two sets of the base model.

    Source: Heusel et al. 2017, eq. 6.

    Raises:
        ValueError: If a set has fewer than two rows, or a feature is not finite.
    """
    for name, x in (("first", a), ("second", b)):
        if len(x) < 2:
            raise ValueError(f"a Frechet distance needs two images or more in each set, the {name} has {len(x)}")
        if not bool(x.isfinite().all()):
            raise ValueError(f"a feature of the {name} set is not finite")
    a, b = a.double(), b.double()
    A, B = _root(a), _root(b)
    cross = float(torch.linalg.svdvals(A @ B.T).sum())
    between = float((a.mean(0) - b.mean(0)).square().sum())
    return max(0.0, between + float(A.square().sum() + B.square().sum()) - 2 * cross)


def _root(x: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """A with A^T A = the covariance of x, and no more rows than needed."""
    centred = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def leave_out(a: Float[Tensor, "P n d"], b: Float[Tensor, "P m d"], blocks: int = BLOCKS) -> list[float]:
    """The Frechet distances without one block of prompts and then the next, left out of both sets.

    The bootstrap would not do: images that it draws twice make the covariances smaller, which the distance takes for a
    difference.

    Args:
        a: Features of n images for each of P prompts.
        b: Of m images for each of the same prompts.
        blocks: How many to form, at most P.

    Returns:
        One distance per block; none with fewer than two prompts.
    """
    return [frechet_distance(a[keep].flatten(0, 1), b[keep].flatten(0, 1)) for keep in without_blocks(len(a), blocks)]


def without_blocks(prompts: int, blocks: int = BLOCKS) -> list[Bool[Tensor, "P"]]:
    """Which of the prompts are left without one block and then the next; none with fewer than two prompts."""
    G = min(blocks, prompts) if prompts > 1 else 0
    block = torch.arange(prompts) * G // prompts
    return [block != g for g in range(G)]


class Reference:
    """A set that others are measured against by the Frechet distance, and the floor: what the base model has to it.

    The floor and its jackknife are computed once, when first asked for.

    Args:
        features: Of n images of the base model for each of P prompts.
        base: Of m other images of the base model for each of the same prompts.
    """

    def __init__(self, features: Float[Tensor, "P n d"], base: Float[Tensor, "P m d"]):
        self.features, self.base = features, base

    def distance(self, features: Float[Tensor, "P m d"]) -> tuple[float, list[float]]:
        """The distance of a set to this one, and without each block of prompts."""
        return frechet_distance(features.flatten(0, 1), self.features.flatten(0, 1)), leave_out(features, self.features)

    @functools.cached_property
    def floor(self) -> tuple[float, list[float]]:
        """The distance of the base model's set."""
        return self.distance(self.base)


def needed(dims: int) -> int:
    """The images that a set must have for a Frechet distance to be more than the bias: a quarter of the features.

    Covariances of fewer images span a small corner of the features, each set another one: two sets from one
    distribution are then nearly as far apart as two from different ones.
    """
    return -(-dims // 4)


def diversity(features: Float[Tensor, "P S V d"]) -> Float[Tensor, "P"]:
    """How much the samples of each prompt differ: mean cosine distance over pairs of seeds, seen by the same camera.

    Args:
        features: Of P prompts, S seeds (2 or more) and V views.

    Returns:
        In [0, 2], float64; 0 where all samples look the same to the network.

    Raises:
        ValueError: If there is one seed only.
    """
    if features.shape[1] < 2:
        raise ValueError("diversity needs two samples or more of each prompt")
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    pairs = itertools.combinations(range(features.shape[1]), 2)
    return torch.stack([1 - (unit[:, i] * unit[:, j]).sum(-1).mean(1) for i, j in pairs]).mean(0)
