"""What is in a folder of results: for each prompt, a scene or the pictures of its views.

    runs of `align3d optimize`      FOLDER itself, or its subfolders: config.json has the prompt; scene.ply or of
                                    another kind (scenes.files.READERS), or picture*.png
    samples of `align3d sample`     samples.jsonl has prompts, seeds and .ply files
    pictures                        FOLDER/NAME.png: a picture, or several views, of each prompt (judged.names)
    folders of pictures             FOLDER/NAME/image.png, as generate.py of RewardSDS has it, or FOLDER/NAME/0.png, ...
    trials of threestudio           FOLDER/NAME@WHEN/save/it10000-test/0.png, ...: rows of colours, normals, opacity

Nothing is read here but names and configurations.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align3d.files import read_json, read_lines
from align3d.judged.names import NUMBER, assign, some
from align3d.log import count
from align3d.prompt_lists import PromptList
from align3d.runs import Run
from align3d.scenes.files import MAIN, READERS, is_scene, known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
OWN = (
    "config.json",
    "done.json",
    "metrics.jsonl",
    "report.html",
    "views.png",
    "turntable.webp",
)  # of any run, beside its scene
SAMPLES = "samples.jsonl"
TESTS = re.compile(r"it(\d+)-test")
AROUND = 4  # views of a scene, unless another number is asked for
MAX_SAMPLES = 1 << 26  # bytes of samples.jsonl


@dataclass(frozen=True)
class Piece:
    """One result."""

    prompt: str
    files: tuple[Path, ...]  # a scene, or the pictures of its views
    rows: bool = False  # whether each picture is a row of several, the first of which counts
    updates: tuple[int, int] | None = None  # that were made, and asked for, where that is known

    @property
    def is_scene(self) -> bool:
        """Whether it has to be rendered."""
        return self.files[0].suffix.lower() not in PICTURES

    def digest(self) -> str:
        """What tells its files' contents from others."""
        found = hashlib.blake2b(b"rows" if self.rows else b"", digest_size=16)
        for path in self.files:
            with path.open("rb") as handle:
                found.update(hashlib.file_digest(handle, "blake2b").digest())
        return found.hexdigest()


@dataclass(frozen=True)
class Method:
    """Results that belong together: of each prompt as many, with different seeds."""

    name: str
    folders: tuple[Path, ...]
    pieces: tuple[tuple[Piece, ...], ...] = field(repr=False)  # of each prompt

    @property
    def all_pieces(self) -> list[Piece]:
        """Prompt by prompt."""
        return [piece for several in self.pieces for piece in several]


def found_in(folder: Path, prompts: PromptList | None, views: int) -> dict[str, list[Piece]]:
    """The results in a folder, by prompt.

    Args:
        folder: Of one of the layouts.
        prompts: Each once; all must be there, and no others. None takes those that the folder has, if it tells.
        views: That a prompt must have pictures of, or that are taken of threestudio's; 0: as many as most have, and 4.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If results are missing, superfluous or unclear; says how many and which are the first.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; give NAME=FOLDER of runs or of pictures")
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    runs = [folder] if (folder / "config.json").is_file() else [p for p in inside if (p / "config.json").is_file()]
    if runs or (folder / SAMPLES).is_file():
        pieces = [_of_run(run, views) for run in runs] if runs else _of_samples(folder)
        return _checked(folder, pieces, prompts, runs=bool(runs))
    pictures = [path for path in inside if path.suffix.lower() in PICTURES and path.is_file()]
    folders = [path for path in inside if path.is_dir()]
    if not pictures and not folders:
        raise ValueError(f"{folder} has no results: no runs of `align3d optimize`, no pictures ({', '.join(PICTURES)})")
    if prompts is None:
        raise ValueError(f"{folder} holds pictures, which do not tell their prompts; give --prompts FILE")
    if pictures:
        names = {str(path.relative_to(folder)): path.stem for path in pictures}
        found = assign(names, prompts, views, str(folder), "picture")
        return {p: [Piece(p, tuple(folder / n for n in own))] for p, own in zip(prompts.prompts, found, strict=True)}
    found = assign({path.name: path.name for path in folders}, prompts, 1, str(folder), "folder")
    pieces = {p: _of_folder(p, folder / name, views) for p, (name,) in zip(prompts.prompts, found, strict=True)}
    _same_views(folder, list(pieces.values()))
    return {prompt: [piece] for prompt, piece in pieces.items()}


def _of_run(run: Path, views: int) -> Piece:
    """What a run of `align3d optimize` ended in."""
    told = Run(config=read_json(run / "config.json"))
    prompt = told.settings.get("prompt")
    if not isinstance(prompt, str):
        remedy = "a tuned generator is for `align3d evaluate --runs`"
        raise ValueError(f"{run} is no run of `align3d optimize`, its config.json has no prompt; {remedy}")
    pictures = sorted(run.glob("picture*.png"), key=lambda path: (len(path.name), path.name))
    updates = _updates(run, told)
    kinds = [(path,) for path in sorted(run.glob(f"{MAIN}.*")) if is_scene(path) and path.is_file()]
    kinds += [tuple(pictures)] if pictures else []
    if len(kinds) != 1:
        got = " and ".join(files[0].name for files in kinds) or _instead(run, updates)
        names = ", ".join(f"{MAIN}{end}" for end in READERS)
        raise ValueError(f"{run} must hold one scene ({names} or picture.png), and has {got}")
    (files,) = kinds
    if files[0].suffix == ".png" and views and len(files) != views:
        raise ValueError(f"{run} has {count(len(files), 'picture')}, not {views} views")
    return Piece(prompt, files, updates=updates)


def _updates(run: Path, told: Run) -> tuple[int, int] | None:
    """The updates that a run has made, and was to make; None if that is not known."""
    loop = told.settings.get("loop")
    wanted = loop.get("updates") if isinstance(loop, dict) else None
    made = Run.read(run).metrics
    return (int(made[-1]["step"]), wanted) if isinstance(wanted, int) and made else None


def _instead(run: Path, updates: tuple[int, int] | None) -> str:
    """What a run has that ends in no scene which can be read, and what to do."""
    files = sorted(path for path in run.iterdir() if path.is_file() and not path.name.startswith("."))
    other = [path.name for path in files if path.name not in OWN and path.stem != "optimization"]
    scenes = [name for name in other if name.startswith(f"{MAIN}.")]
    if scenes or (other and updates and updates[0] >= updates[1]):
        remedy = f"those that can be read: {known()}; docs/extending.md says how to add one"
        return f"{some(scenes or other)}, which is no scene by its name; {remedy}"
    return "none; `align3d optimize --resume` goes on with a run that was cut off"


def _of_samples(folder: Path) -> list[Piece]:
    """What `align3d sample` has written."""
    found = []
    for number, line in enumerate(read_lines(folder / SAMPLES, MAX_SAMPLES), 1):
        try:
            row = json.loads(line)
            prompt, files = row["prompt"], row["files"]
            (scene,) = (name for name in files if name.lower().endswith(tuple(READERS)))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{folder / SAMPLES}, line {number} is damaged; sample again") from None
        if not isinstance(prompt, str) or "/" in scene or "\\" in scene or not (folder / scene).is_file():
            raise ValueError(f"{folder / SAMPLES}, line {number}: no scene {scene!r} for {prompt!r}")
        found.append(Piece(prompt, (folder / scene,)))
    return found


def _checked(folder: Path, pieces: Sequence[Piece], prompts: PromptList | None, runs: bool) -> dict[str, list[Piece]]:
    """By prompt; of the wanted prompts all and no others, of each as many."""
    held: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        held[piece.prompt].append(piece)
    wanted = list(held) if prompts is None else list(prompts.prompts)
    missing, extra = [p for p in wanted if p not in held], [p for p in held if p not in set(wanted)]
    counts = {len(own) for own in held.values()}
    what = "run" if runs else "sample"
    wrong = [f"{len(missing)} of {count(len(wanted), 'prompt')} have no {what}: {some(list(map(repr, missing)))}"]
    wrong += [f"{count(len(extra), what)} of other prompts: {some(list(map(repr, extra)))}"]
    wrong = [text for text, names in zip(wrong, (missing, extra), strict=True) if names]
    if not missing and not extra and len(counts) > 1:
        fewest = [repr(prompt) for prompt, own in held.items() if len(own) == min(counts)]
        wrong = [f"prompts have {min(counts)} to {max(counts)} {what}s, and must have as many each: {some(fewest)}"]
    if wrong:
        raise ValueError(f"{folder}: {'; '.join(wrong)}")
    return {prompt: held[prompt] for prompt in wanted}


def _of_folder(prompt: str, folder: Path, views: int) -> Piece:
    """The pictures in a prompt's own folder: one, or views that are numbered, or a test of threestudio."""
    tests = [(int(match[1]), path) for path in folder.glob("save/it*-test") if (match := TESTS.fullmatch(path.name))]
    home = max(tests)[1] if tests else folder
    pictures = [p for p in home.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    if not pictures:
        raise ValueError(f"{folder} has no pictures, of {prompt!r}")
    if len(pictures) == 1 and not tests:
        return Piece(prompt, (pictures[0],))
    numbered: dict[int, Path] = {}
    for path in pictures:
        match = NUMBER.fullmatch(path.stem)
        if match is None or match[2] is not None or int(match[1]) in numbered:
            raise ValueError(f"{path} is not clear: several pictures of {prompt!r} must be 0.png, 1.png, ...")
        numbered[int(match[1])] = path
    first = min(1, min(numbered))
    missing = [i for i in range(first, first + len(numbered)) if i not in numbered]
    if missing:
        raise ValueError(
            f"{home}: view {missing[0]} of {prompt!r} is missing, there are {min(numbered)} to {max(numbered)}"
        )
    files = [numbered[i] for i in sorted(numbered)]
    if tests:  # all around, the last frame as the first
        num = views or AROUND
        if len(files) < num:
            raise ValueError(f"{home}: {num} views of {prompt!r} are wanted, there are {len(files)}")
        files = [files[round(i * (len(files) - 1) / num)] for i in range(num)] if num < len(files) else files
    elif views and len(files) != views:
        raise ValueError(f"{home} has {count(len(files), 'view')} of {prompt!r}, not {views}")
    return Piece(prompt, tuple(files), rows=bool(tests))


def _same_views(folder: Path, pieces: Sequence[Piece]) -> None:
    """Refuse prompts with different numbers of views."""
    by_number: dict[int, list[str]] = defaultdict(list)
    for piece in pieces:
        by_number[len(piece.files)].append(repr(piece.prompt))
    if len(by_number) > 1:
        most = max(by_number, key=lambda n: len(by_number[n]))
        odd = [f"{name} ({n})" for n, names in by_number.items() for name in names if n != most]
        raise ValueError(
            f"{folder}: most prompts have {count(most, 'view')}, and {len(odd)} another number: {some(odd)}"
        )


def methods(
    texts: Mapping[str, Sequence[Path]], prompts: PromptList | None, views: int
) -> tuple[PromptList, list[Method]]:
    """The results of several methods, paired by prompt.

    Args:
        texts: Name -> folders, each with all prompts; several are different seeds.
        prompts: As for `found_in`; None takes those of the first folder.
        views: As for `found_in`.

    Returns:
        The prompts, each once, and the methods.

    Raises:
        ValueError: As `found_in`.
    """
    wanted, found = None if prompts is None else prompts.unique(), []
    for name, folders in texts.items():
        held: list[dict[str, list[Piece]]] = []
        for folder in folders:
            held.append(found_in(folder, wanted, views))
            wanted = wanted or PromptList(tuple(held[0]))
        pieces = tuple(tuple(piece for one in held for piece in one[p]) for p in wanted.prompts)
        found.append(Method(name, tuple(folders), pieces))
    return wanted, found


def unfinished(found: Sequence[Method]) -> list[str]:
    """Runs that made fewer updates than they were to, in words."""
    each = [piece for method in found for piece in method.all_pieces if piece.updates]
    short: list[Any] = [piece for piece in each if piece.updates[0] < piece.updates[1]]
    return [f"{piece.files[0].parent} ({piece.updates[0]} of {piece.updates[1]})" for piece in short]
