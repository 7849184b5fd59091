"""`align3d score`: rewards of pictures and scenes that are there already, to try a reward by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from align3d.commands.inputs import MAX_SEED, check_pictures, check_range, choose_device, read_prompts
from align3d.commands.listed import listed
from align3d.scenes.files import READERS, is_scene, read_scene

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align3d.types import Reward, Views

NUM_VIEWS = 4  # of a scene: the canonical azimuths
WIDTH = 12  # characters of a column of numbers, or more where its title is longer
MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score pictures and scenes by any rewards: a table of files and rewards; or compare folders of results.

    A scene is seen by the four canonical cameras, as `align3d sample` has it, and its score is the mean over them. A
    picture is one view, of its own size; of an animation, the first frame. All files are read, and all rewards asked
    whether they can judge them, before the first is scored.

    --results compares methods, a folder each, over a list of prompts: runs of `align3d optimize --prompts`, or pictures
    from elsewhere. Scenes are seen by cameras between those of training. --out gets table.json, table.md, report.html.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """pictures (.png, .jpg, .webp) and scenes (.ply, .safetensors)"""
    rewards: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """rewards: dnc, "dnc(alpha=0.5)", "mine=dnc(alpha=0.5)", package.module:function; may be given several times"""
    prompt: str | None = None  # what all the files should show; rewards that do not read it take any
    prompts: Path | None = None  # instead: a line for each of the files, in their order; of --results, the prompts
    results: tuple[str, ...] = ()  # instead of files: NAME=FOLDER ..., the first is what the others are compared with
    out: Path | None = None  # of --results: folder to write to: new, empty, or an earlier start, which goes on
    num_views: int = 0  # of --results: cameras around a scene, pictures of a prompt; 0 = 4, and as many as there are
    skip_unknown: bool = False  # of --results: leave out prompts that a reward cannot judge, instead of refusing them
    interval: Literal["percentile", "bca"] = "percentile"  # of --results: bootstrap; bca corrects for skew
    seed: int = 0  # of the bootstrap
    views: bool = False  # also the number of every view
    json: bool = False  # a JSON object for each file, in the place of the table
    size: int = 256  # side of a scene's views in pixels, at most 8192; `align3d sample` scores at 64
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB in [0, 1], behind scenes and transparent pictures
    eps2d: float = 0.0  # pixels^2 added to every projected Gaussian; scenes trained elsewhere usually want 0.3
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one

    shorthands: ClassVar[dict[str, str]] = {"--reward": "--rewards"}

    def __post_init__(self) -> None:
        check_range("num_views", self.num_views, 0, 1000)
        check_range("seed", self.seed, 0, MAX_SEED)
        check_pictures(self.size, "views", max(NUM_VIEWS, self.num_views))
        self.check_kind()
        check_range("eps2d", self.eps2d, 0, 1000)
        for value in self.background:
            check_range("background", value, 0, 1)

    def check_kind(self) -> None:
        """Refuse options of files and of results together.

        Raises:
            ValueError: Names them.
        """
        own = {"files": self.files, "--prompt": self.prompt is not None, "--views": self.views, "--json": self.json}
        theirs = {"--out": self.out is not None, "--num-views": self.num_views, "--skip-unknown": self.skip_unknown}
        theirs |= {"--interval": self.interval != "percentile"}
        wrong = [name for name, given in (own if self.results else theirs).items() if given]
        if self.results and wrong:
            raise ValueError(f"--results goes without {', '.join(wrong)}; table.json has the number of every view")
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} say{'s' * (len(wrong) == 1)} nothing without --results NAME=FOLDER ..."
            )
        if self.results and self.out is None:
            raise ValueError("--results needs --out FOLDER, for table.json, table.md and report.html")


def run(options: Score) -> None:
    """Check everything, then score file by file and say so at once."""
    import torch

    from align3d.commands import score_results
    from align3d.rewards.score import as_reward, check_prompts

    if not options.files and not options.results:
        raise ValueError("no files; `align3d score a.png b.ply --rewards NAME --prompt TEXT` scores two")
    if not any(options.rewards):
        raise ValueError("no rewards; give --rewards NAME ... (`align3d list rewards` says which there are)")
    if options.results:
        return score_results.run(options)
    prompts = prompts_of(options)
    asked = listed("reward", [text for texts in options.rewards for text in texts])
    rewards = {label: as_reward(one.part) for label, one in asked.items()}
    device = choose_device(options.device)
    check_files(options, rewards)
    for reward in rewards.values():
        check_prompts(reward, list(dict.fromkeys(prompts)))
    table = None if options.json else Table(tuple(rewards), max(len(shown(path)) for path in options.files))
    for path, prompt in zip(options.files, prompts, strict=True):
        with torch.no_grad():
            scores = judge(look(path, options, rewards, device), prompt, rewards)
        if table is None:
            print(json.dumps(as_json(path, prompt, scores, options.views)), flush=True)
        else:
            table.add(shown(path), scores, options.views)


def prompts_of(options: Score) -> list[str]:
    """A prompt for each file.

    Raises:
        FileNotFoundError: If there is no such file of prompts.
        ValueError: If there is not one prompt, or one for each file.
    """
    num = len(options.files)
    if (options.prompt is None) == (options.prompts is None):
        got = "neither" if options.prompt is None else "both"
        raise ValueError(f"give --prompt TEXT for all files or --prompts FILE with a line for each, got {got}")
    if options.prompts is None:
        if not options.prompt.strip():
            raise ValueError("got an empty --prompt; give some words")
        return [options.prompt] * num
    prompts = read_prompts(options.prompts)
    if len(prompts) != num:
        raise ValueError(f"{options.prompts} must have a prompt for each of the {num} files, got {len(prompts)}")
    return prompts


def check_files(options: Score, rewards: Mapping[str, Reward]) -> None:
    """Read every file once, so that a bad one is known before any work; nothing is kept.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is damaged, of an unknown kind, or lacks what a reward needs.
    """
    from align3d.scenes.picture_files import PICTURES

    kinds = ", ".join((*PICTURES, *READERS))
    for path in options.files:
        suffix = path.suffix.lower()
        if suffix not in (*PICTURES, *READERS):
            raise ValueError(f"{shown(path)} is no picture and no scene by its name; known: {kinds}")
        if not path.is_file():
            raise FileNotFoundError(f"no file {shown(path)}; give pictures or scenes ({kinds})")
        for label, reward in rewards.items():
            lacking = sorted(reward.needs - {"rgb"})
            if lacking and not is_scene(path):
                raise ValueError(
                    f"reward {label} needs {', '.join(lacking)}, and {shown(path)} is a picture, which has colours "
                    f"alone; give it {next(iter(READERS))} scenes"
                )
    for path in options.files:
        read(path, options)


def read(path: Path, options: Score) -> Any:
    """A scene, or a picture (3, H, W)."""
    from align3d.scenes.picture_files import read_picture

    if is_scene(path):
        return read_scene(path, options.eps2d)
    return read_picture(path, options.background)


def look(path: Path, options: Score, rewards: Mapping[str, Reward], device: str) -> Views:
    """The views of a file, with the channels that the rewards need."""
    import torch

    from align3d.rng import Streams
    from align3d.scenes.cameras import four_sides, orbit
    from align3d.types import CHANNELS, Views

    thing = read(path, options).to(device)
    if isinstance(thing, torch.Tensor):  # from nobody knows where; a reward of pictures alone does not ask
        height, width = thing.shape[1:]
        cameras = orbit(torch.zeros(1, 1), torch.zeros(1, 1), height=height, width=width)
        return Views(cameras, rgb=thing[None, None])
    needed = frozenset().union(*(reward.needs for reward in rewards.values()))
    wanted = [name for name in CHANNELS if name in needed]
    return thing.render(four_sides(options.size)(Streams.batch(0, 0, 0, 1)), want=wanted, background=options.background)


def judge(views: Views, prompt: str, rewards: Mapping[str, Reward]) -> dict[str, list[float]]:
    """What each reward says of one object: a number for each view, or one for the whole."""
    from align3d.rewards.score import call_reward

    return {label: call_reward(reward, label, views, [prompt])[0].tolist() for label, reward in rewards.items()}


def as_json(path: Path, prompt: str, scores: Mapping[str, Sequence[float]], views: bool) -> dict[str, Any]:
    """A line of --json."""
    row: dict[str, Any] = {"file": str(path), "prompt": prompt}
    row["rewards"] = {label: mean(values) for label, values in scores.items()}
    return row | ({"views": {label: list(values) for label, values in scores.items()}} if views else {})


@dataclass(frozen=True)
class Table:
    """A table on standard output that grows by the rows of one file at a time."""

    labels: tuple[str, ...]  # of the rewards
    width: int  # of the longest name of a file

    def __post_init__(self) -> None:
        self.line("file", "view", self.labels)

    def add(self, name: str, scores: Mapping[str, Sequence[float]], views: bool) -> None:
        """The mean of a file, and below it, if wanted, its views; a reward of whole objects has nothing there."""
        self.line(name, MEAN, [f"{mean(scores[label]):.4g}" for label in self.labels])
        num = max(len(values) for values in scores.values())
        for i in range(num if views else 0):
            own = [scores[label] if len(scores[label]) == num else () for label in self.labels]
            self.line("", str(i + 1), [f"{values[i]:.4g}" if values else "-" for values in own])

    def line(self, name: str, view: str, cells: Sequence[str]) -> None:
        """One row."""
        widths = [max(WIDTH, len(label)) for label in self.labels]
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print(f"{name:<{max(self.width, len('file'))}}  {view:<{len(MEAN)}}  {numbers}", flush=True)


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def shown(path: Path) -> str:
    """A file's name for a terminal, which characters for its control would disturb."""
    return str(path) if str(path).isprintable() else ascii(str(path))
