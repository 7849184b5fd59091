"""What rewards say of results; answers are kept as they come, so that a start that was cut off goes on.

    OUT/scores.jsonl            one line for each result and reward: a number for each view, or one for the whole
    OUT/pictures/*.webp         small pictures for the page

A line is kept under a digest of all that its numbers depend on: the contents of the files, the prompt, the reward with
its options (and the source, of one from outside this package), the version of this package, the cameras. So whatever is
added or changed between two starts, no more than that is judged anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d import __version__
from align3d.files import atomic_write, replacing, writing
from align3d.scenes.files import read_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.judged.pieces import Piece
    from align3d.types import Reward, Views

SCORES, PICTURES = "scores.jsonl", "pictures"
AT_A_TIME = 8  # results that go through a reward together; a judge behind an endpoint is asked about several at once
MAX_PIXELS = 1 << 24  # of them
SIDE = 256  # pixels of a small picture, at most
SQUARES = (2, 3)  # pictures side by side in a row of threestudio

Shape = tuple[int, int, int, bool]  # views, height, width, and whether it has to be rendered


@dataclass(frozen=True)
class Judges:
    """Who judges, and what they are shown."""

    rewards: Mapping[str, Reward]
    about: Mapping[str, Mapping[str, Any]]  # of each: name and options, as far as they change its numbers
    views: int  # cameras around a scene
    size: int  # pixels, side of a view of a scene
    background: tuple[float, float, float]
    eps2d: float  # pixels^2 added to projected Gaussians
    device: str

    def check(self, pieces: Sequence[Piece]) -> list[Shape]:
        """Read every file once, so that a bad one is known before any work; what each will look like.

        Raises:
            ValueError: If files cannot be read, or lack what a reward needs; says how many and which are the first.
        """
        for label, reward in self.rewards.items():
            lacking = sorted(reward.needs - {"rgb"})
            flat = [piece.files[0] for piece in pieces if not piece.is_scene]
            if lacking and flat:
                raise ValueError(
                    f"reward {label} needs {', '.join(lacking)}, and {flat[0]} is a picture, which has colours alone"
                )
        shapes, bad = [], []
        for piece in pieces:
            try:
                if piece.is_scene:
                    read_scene(piece.files[0], self.eps2d)
                    shapes.append((self.views, self.size, self.size, True))
                else:
                    pictures = read_views(piece, self.background)
                    shapes.append((len(pictures), *pictures.shape[2:], False))
            except ValueError as error:
                bad.append(str(error))
        if len(bad) > 1:
            raise ValueError(f"{len(bad)} of {len(pieces)} results cannot be judged, the first: {bad[0]}")
        if bad:
            raise ValueError(bad[0])
        return shapes

    def views_of(self, pieces: Sequence[Piece]) -> Views:
        """What is to be seen of results of one shape, with all channels that a reward needs."""
        import torch

        from align3d.evaluate import evaluation_cameras
        from align3d.scenes.cameras import orbit
        from align3d.types import CHANNELS, Views

        if not pieces[0].is_scene:
            rgb = torch.stack([read_views(piece, self.background) for piece in pieces]).to(self.device)
            angles = torch.zeros(rgb.shape[:2])  # nobody knows; a reward of pictures alone does not ask
            return Views(orbit(angles, angles, height=rgb.shape[3], width=rgb.shape[4]), rgb=rgb)
        needed = {"rgb"}.union(*(reward.needs for reward in self.rewards.values()))
        azimuths = [(i + 0.5) * 360 / self.views for i in range(self.views)]
        cameras = evaluation_cameras(self.size, azimuths)
        seen = []
        for piece in pieces:
            scene = read_scene(piece.files[0], self.eps2d).to(self.device)
            seen.append(scene.render(cameras, want=[c for c in CHANNELS if c in needed], background=self.background))
        joined = {name: torch.cat([getattr(one, name) for one in seen]) for name in CHANNELS if name in needed}
        own = seen[0].cameras  # on the device of the scene
        c2w, K = (x.expand(len(pieces), *x.shape[1:]) for x in (own.c2w, own.K))
        return Views(replace(own, c2w=c2w, K=K), **joined)

    def shown(self, piece: Piece) -> str:
        """A digest of what the rewards get to see."""
        cameras = [self.views, self.size, self.eps2d] if piece.is_scene else []
        return digest([piece.digest(), piece.prompt, list(self.background), *cameras])


def read_views(piece: Piece, background: Sequence[float]) -> Float[Tensor, "V 3 H W"]:
    """The pictures of a result.

    Raises:
        ValueError: If one cannot be read, or they are of different sizes.
    """
    import torch

    from align3d.scenes.picture_files import read_picture

    found = [read_picture(path, background) for path in piece.files]
    if piece.rows:
        for path, picture in zip(piece.files, found, strict=True):
            height, width = picture.shape[1:]
            if width != height and width not in [height * n for n in SQUARES]:
                raise ValueError(
                    f"{path} of {width} x {height} pixels is no row of square pictures, as threestudio's are"
                )
        found = [picture[:, :, : picture.shape[1]] for picture in found]
    sizes = {tuple(picture.shape): path for picture, path in zip(found, piece.files, strict=True)}
    if len(sizes) > 1:
        (a, first), (b, other) = list(sizes.items())[:2]
        raise ValueError(
            f"{first} has {a[2]} x {a[1]} pixels and {other} {b[2]} x {b[1]}; views of one result must have one size"
        )
    return torch.stack(found)


@dataclass
class Book:
    """The numbers that are there already, in a folder."""

    out: Path
    rows: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path) -> Book:
        """What the folder has; a line that was cut off is forgotten."""
        path, book = out / SCORES, cls(out)
        data = path.read_bytes() if path.is_file() else b""
        kept = []
        for line in data.splitlines(keepends=True):
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                row = json.loads(line)
                book.rows[str(row["key"])] = [float(value) for value in row["views"]]
                kept.append(line)
        if b"".join(kept) != data or not data.endswith(b"\n"):
            text = b"".join(line.rstrip(b"\n") + b"\n" for line in kept)
            atomic_write(path, text)
        return book

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep some more, all at once.

        Raises:
            WriteError: If the disk is full.
        """
        path = self.out / SCORES
        with writing(path), path.open("ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["key"]: row["views"] for row in rows}

    def picture(self, shown: str) -> Path:
        """Where the small picture of a result is."""
        return self.out / PICTURES / f"{shown}.webp"


def judge(
    judges: Judges,
    pieces: Sequence[Piece],
    shapes: Sequence[Shape],
    book: Book,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, list[list[float]]]:
    """Reward -> for each result a number for each view, or one for the whole; what is not in the book is judged.

    Which results go through a reward together depends on the list alone, so that numbers do not depend on where an
    earlier start was cut off.

    Raises:
        ValueError: As `call_reward` does.
    """
    import torch

    shown = [judges.shown(piece) for piece in pieces]
    keys = {label: [digest([one, told(judges, label)]) for one in shown] for label in judges.rewards}
    done = 0
    for part in batches(shapes):
        missing = [label for label in judges.rewards if any(keys[label][i] not in book.rows for i in part)]
        if missing or not all(book.picture(shown[i]).is_file() for i in part):
            prompts = [pieces[i].prompt for i in part]
            with torch.no_grad():
                views = judges.views_of([pieces[i] for i in part])
                for label in missing:
                    values = scored(judges.rewards[label], label, views, prompts)
                    told_of = [
                        {"key": keys[label][i], "prompt": p, "reward": label}
                        for i, p in zip(part, prompts, strict=True)
                    ]
                    book.add([row | {"views": v} for row, v in zip(told_of, values, strict=True)])
            for row, i in enumerate(part):
                draw(book.picture(shown[i]), views.rgb[row])
        done += len(part)
        if tell is not None:
            tell(done, len(pieces))
    return {label: [book.rows[one] for one in own] for label, own in keys.items()}


def scored(reward: Reward, label: str, views: Views, prompts: Sequence[str]) -> list[list[float]]:
    """What a reward says of each object; it is shown what it asked for and no more, as in training."""
    from align3d.rewards.score import call_reward
    from align3d.types import CHANNELS

    views.require(*sorted(reward.needs), by=f"reward {label}")
    seen = replace(views, **{name: None for name in CHANNELS if name not in reward.needs})
    return call_reward(reward, label, seen, list(prompts)).tolist()


def batches(shapes: Sequence[Shape]) -> Iterator[list[int]]:
    """Neighbours of one shape, a few at a time."""
    part: list[int] = []
    for i, shape in enumerate(shapes):
        V, H, W, _ = shape
        most = max(1, min(AT_A_TIME, MAX_PIXELS // (V * H * W)))
        if part and (shapes[part[0]] != shape or len(part) >= most):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def told(judges: Judges, label: str) -> list[Any]:
    """What the numbers of a reward depend on."""
    reward = judges.rewards[label]
    terms = [term.reward for term in getattr(reward, "terms", {}).values()]
    return [__version__, dict(judges.about[label]), *(source(one) for one in terms or [reward])]


def source(reward: Reward) -> str | None:
    """What tells the file of a reward from what it was before it was edited; None of one of this package."""
    written = getattr(reward, "function", reward)
    thing = written if inspect.isroutine(written) else type(written)
    if not str(getattr(thing, "__module__", "")).startswith("align3d."):
        with contextlib.suppress(TypeError, OSError):
            return hashlib.blake2b(Path(inspect.getsourcefile(thing) or "").read_bytes(), digest_size=16).hexdigest()
    return None


def digest(value: Any) -> str:
    """What tells a value of JSON from others."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def draw(path: Path, rgb: Float[Tensor, "V 3 H W"]) -> None:
    """Write a small picture of a result: its one view, or four of them in a square."""
    import torch
    from PIL import Image

    from align3d.evaluate import spread
    from align3d.scenes.pictures import to_uint8

    if len(rgb) >= 4:
        a, b, c, d = rgb[spread(len(rgb), 5)[:4] if len(rgb) > 4 else range(4)]
        picture = torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)
    else:
        picture = torch.cat(list(rgb), 2)
    image = Image.fromarray(to_uint8(picture))
    image.thumbnail((SIDE * max(1, len(rgb) if len(rgb) < 4 else 1), SIDE), Image.Resampling.LANCZOS)
    with replacing(path) as temporary:
        image.save(temporary, "WEBP", quality=88, method=4)
