"""What rewards made of a CLIP share: its preprocessing of images, and the features of views and prompts."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.pretrained import clip as pretrained
from align3d.pretrained.once import read_once
from align3d.pretrained.tokens import cut
from align3d.rewards.preprocess import normalize, per_image, require_colours, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.pretrained.clip import Clip
    from align3d.types import Views

STEPS = "preprocessor_config.json"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
MAX_SIZE = 4096  # pixels that are believed of a file
ROUNDING = 1e-5  # beyond [0, 1]: what is white but for rounding keeps its gradient
CHUNK = {"cpu": 4}  # images whose graph is held at a time, 0.39 GB each of a ViT-L/14 and 0.47 GB of a ViT-H/14
CHUNK_ELSEWHERE = 16


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint wants done to its images, as transformers does it with PIL, but for the rounding to 8 bit."""

    resized: int | tuple[int, int] | None  # pixels of the shorter side, or height and width
    mode: str = "bicubic"  # of the resizing
    crop: tuple[int, int] | None = None  # height and width
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h2 w2"]:
        """The network's input from images in [0, 1]; gradient to the images.

        Raises:
            ValueError: If an image is smaller than the crop.
        """
        height, width = images.shape[-2:]
        if isinstance(self.resized, tuple):
            size = self.resized
        elif self.resized is not None:  # the longer side is rounded down, as transformers does
            short = min(height, width)
            size = (int(self.resized * height / short), int(self.resized * width / short))
        if self.resized is not None:  # PIL resizes rows, cuts off what leaves the range of 8 bit, then columns
            rows = resize(images, (height, size[1]), self.mode).clamp(-ROUNDING, 1 + ROUNDING)
            images = resize(rows, size, self.mode).clamp(-ROUNDING, 1 + ROUNDING)
        if self.crop is not None:
            (h, w), (height, width) = self.crop, images.shape[-2:]
            if h > height or w > width:
                raise ValueError(f"images of {height} x {width} pixels are too small for a crop of {h} x {w}")
            top, left = (height - h) // 2, (width - w) // 2
            images = images[..., top : top + h, left : left + w]
        return normalize(images, self.mean, self.std)


@read_once(16)
def preprocessing(folder: Path) -> Preprocessing:
    """What preprocessor_config.json says.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it asks for something that is not known here.
    """
    path = folder / STEPS
    values = pretrained.read_json(path)
    resized = _size(path, values, "size") if values.get("do_resize", True) else None
    told = "do_center_crop" in values or "crop_size" in values  # SigLIP's files say neither, and mean none
    wanted = values.get("do_center_crop", told or not isinstance(resized, tuple))
    crop = _size(path, values, "crop_size") if wanted else None
    if isinstance(crop, int):
        crop = (crop, crop)
    mode = MODES.get(values.get("resample", 3))
    if mode is None:
        raise ValueError(f"{path}: resample {values['resample']!r} is not known, only 2 (bilinear) and 3 (bicubic)")
    if not values.get("do_rescale", True) or abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"{path}: only networks whose images are rescaled by 1/255 can be used")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if values.get("do_normalize", True):
        mean, std = _three(path, values, "image_mean"), _three(path, values, "image_std")
    if min(std) <= 0:
        raise ValueError(f"{path}: image_std must be positive, got {list(std)}")
    return Preprocessing(resized, mode, crop, mean, std)


def steps_of(clip: Clip) -> Preprocessing:
    """The preprocessing of a CLIP: its own, or what all published ones have where it says nothing.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or makes pictures that the network does not take.
    """
    side = image_size(clip)
    if not (clip.folder / STEPS).is_file():
        return Preprocessing(side, crop=(side, side))
    steps = preprocessing(clip.folder)
    made = steps.crop if steps.crop is not None else steps.resized
    if made is not None and made != (side, side):
        raise ValueError(f"{clip.folder / STEPS} makes pictures of {made} pixels, the network takes {side} x {side}")
    return steps


def image_size(clip: Clip) -> int:
    """Pixels of a side of what the network takes.

    Raises:
        FileNotFoundError, ValueError: As `pretrained.clip.check` does.
    """
    return pretrained.sizes_of(clip)["vision_config"].get("image_size", 224)


def score_views(
    views: Views, clip: Clip, by: str, prepare: Callable[[Tensor], Tensor], score: Callable[..., Tensor], *rows: Tensor
) -> Float[Tensor, "B V"]:
    """One number for each view from the image features of a CLIP, in float32 whatever autocast says.

    Args:
        views: With colours in [0, 1].
        clip: The network.
        by: Name of the reward, for errors.
        prepare: From images in [0, 1] to the network's input.
        score: From unit features (n, d), and as many of `rows`, to n numbers.
        *rows: Constants, one row for each object.

    Raises:
        FileNotFoundError, ValueError: If the network cannot be read, or a colour is outside [0, 1].

    Gradient: to the colours.
    """
    import torch

    device, rgb = device_of(views, by), views.rgb
    require_colours(rgb, by)
    net = pretrained.network(clip, "image", device)

    def of_images(images: Tensor, *rows: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return score(pretrained.look(net, prepare(images.float())), *rows)

    num, chunk = rgb.shape[:2], CHUNK.get(device.type, CHUNK_ELSEWHERE)
    repeated = (row.repeat_interleave(num[1], 0) for row in rows)
    return per_image(of_images, rgb.flatten(0, 1), *repeated, chunk=chunk).unflatten(0, num)


def device_of(views: Views, by: str) -> torch.device:
    """Where the colours are.

    Raises:
        ValueError: If there are none; `by` is the reward that needs them.
    """
    views.require("rgb", by=f"reward {by}")
    return views.rgb.device


def cosine(features: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """The cosine of the angle between unit vectors."""
    return (features * texts).sum(-1)


def text_features(clip: Clip, prompts: Sequence[str], device: torch.device) -> Float[Tensor, "B d"]:
    """Unit features of prompts, each encoded once and by itself: the same bits in any batch; no gradient."""
    import torch

    return torch.stack([_text_feature(clip, prompt, device) for prompt in prompts])


@read_once(4096)
def _text_feature(clip: Clip, prompt: str, device: torch.device) -> Float[Tensor, "d"]:
    import torch

    require_prompts(clip, [prompt])
    (ids,) = _ids(clip, [prompt])
    net = pretrained.network(clip, "text", device)
    with torch.autocast(device.type, enabled=False):
        return pretrained.read(net, torch.tensor([cut(ids, _most_tokens(clip))], device=device))[0]


def require_prompts(clip: Clip, prompts: Sequence[str]) -> None:
    """Check that a CLIP can read texts, and warn once about prompts that it does not read to their end.

    Raises:
        FileNotFoundError, ValueError: As `pretrained.clip.check` does.
    """
    pretrained.check(clip, texts=True)
    if not (told := _told(clip)):
        warn_of_cut(clip.folder.name, prompts, _ids(clip, prompts), _most_tokens(clip), told)


def warn_of_cut(name: str, prompts: Sequence[str], rows: Sequence[list[int]], most: int, told: list[str]) -> None:
    """Warn of prompts that a network does not read to their end, if nobody has been told yet.

    Args:
        name: Of the network.
        prompts: Texts.
        rows: The tokens of each with start and end, uncut.
        most: Tokens that it reads, with start and end.
        told: The prompt that an earlier warning has named, if there was one; this one is added.
    """
    lost = [prompt for prompt, ids in zip(prompts, rows, strict=True) if len(ids) > most]
    if lost and not told:
        told.append(lost[0])
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        message = f"{name} reads {most - 2} tokens of a prompt; the rest of {lost[0][:40]!r}...{more} is lost"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


@functools.lru_cache(maxsize=64)
def _told(clip: Clip) -> list[str]:
    """The prompt that a warning has named, if there was one; a list to be filled."""
    return []


def _ids(clip: Clip, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts with start and end, uncut."""
    with pretrained.quiet():  # of texts that are too long
        return pretrained.tokenizer_of(clip)(list(prompts))["input_ids"] if prompts else []


def _most_tokens(clip: Clip) -> int:
    return pretrained.sizes_of(clip)["text_config"].get("max_position_embeddings", 77)


def _size(path: Path, values: dict[str, object], name: str) -> int | tuple[int, int]:
    """Pixels of the shorter side, or height and width; CLIP's 224 if nothing is said."""
    value = values.get(name, 224)
    if isinstance(value, dict) and value.keys() == {"shortest_edge"}:
        value = value["shortest_edge"]
    pair = [value.get("height"), value.get("width")] if isinstance(value, dict) else [value]
    if not all(isinstance(v, int) and 0 < v <= MAX_SIZE for v in pair):
        raise ValueError(f"{path}: {name} must be shortest_edge or height and width, got {values.get(name)!r}")
    return (pair[0], pair[1]) if len(pair) == 2 else pair[0]


def _three(path: Path, values: dict[str, object], name: str) -> tuple[float, ...]:
    found = values.get(name)
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(v, (int, float)) for v in found):
        raise ValueError(f"{path}: {name} must be three numbers, got {found!r}")
    return tuple(map(float, found))
