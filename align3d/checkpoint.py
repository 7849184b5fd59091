"""A run's folder: its configuration, its checkpoints, and going on from them to the last bit.

    config.json                         what was run; written before the first update
    metrics.jsonl                       exists only once a checkpoint does
    checkpoints/step-NNNNNN/state.safetensors, state.json     after NNNNNN updates; step 0 included
    adapter/                            the newest adapter, in the model's own layout
    watch/, best/                       of runs that are watched; see watch.py
    .lock                               while a process trains here; without meaning afterwards

Everything appears whole or not at all, in that order of trust: metrics.jsonl implies a checkpoint, a checkpoint implies
config.json. So whenever a run is killed, what is there says exactly where to go on. A checkpoint that cannot be read
is an error, never a reason to take an older one in silence: the error says which folder to delete for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from align3d.files import LOCK, TEMPORARY, atomic_write, locked, sync_folder, temporary, writing
from align3d.log import plain, provenance, read_json
from align3d.state import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from align3d.state import State

MAY_CHANGE = (  # without changing an update, but for its last digits where memory is saved
    *("loop.updates", "loop.minutes", "loop.checkpoint_every", "loop.keep", "loop.sample_every"),
    *("method.explore.chunk", "prior.rows", "prior.recompute", "model.recompute"),
    *("watch.stop_when", "watch.go_on", "film.frames", "film.size", "scene.mesh", "scene.texture"),
)
NOT_COMPARED = ("out", "resume")  # where a run lies and how it was called is no part of what it computes
WORDS = {"inputs.start_blake2b": "the content of the file of --scene.start"}  # for what is no option
SHOWN = 6  # differing fields, or tensors, that an error names before it says how many more


class BusyError(ValueError):
    """Another process is training in a folder."""


def steps(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = (out / "checkpoints").glob("step-*")
    return sorted((path for path in found if re.fullmatch(r"step-\d{6,12}", path.name) and path.is_dir()), key=step_of)


def latest(out: Path) -> Path | None:
    """The folder of a run's newest checkpoint, unread; None if there is none."""
    return next(reversed(steps(out)), None)


def step_of(path: Path) -> int:
    """The number of updates after which a checkpoint was made, from its name."""
    return int(path.name.removeprefix("step-"))


def save(out: Path, step: int, state: State, keep: int) -> Path:
    """Write a checkpoint, then delete old ones.

    Args:
        out: The run's folder.
        step: Updates done.
        state: What to write.
        keep: How many checkpoints stay, this one included; 0 keeps all.

    Returns:
        The checkpoint's folder. It must not exist yet.
    """
    final = out / "checkpoints" / f"step-{step:06}"
    temp = temporary(final)
    shutil.rmtree(temp, ignore_errors=True)
    data = to_bytes(state.tensors(), metadata={"format": "pt"})
    about = {"step": step, "bytes": len(data), "blake2b": hashlib.blake2b(data).hexdigest()}
    about |= {name: getattr(state, name) for name in NUMBERS}
    try:
        with writing(final):
            temp.mkdir(parents=True)
            atomic_write(temp / "state.safetensors", data)
            atomic_write(temp / "state.json", dump(about))
            temp.rename(final)
            sync_folder(final.parent)
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)  # a full disk needs the room
        raise
    prune(out, keep)
    return final


def prune(out: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest; 0 keeps all."""
    for old in steps(out)[:-keep] if keep else []:
        gone = temporary(old)  # renamed first: a half-deleted folder must not look like a checkpoint
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def load(path: Path, state: State) -> int:
    """Take over a checkpoint.

    Args:
        path: Its folder, as `latest` gives it.
        state: What to overwrite; untouched if there is an error.

    Returns:
        The number of updates done.

    Raises:
        ValueError: If a file is missing, cut short, altered or made by another model; one line that names the file and
            what to do.
    """
    try:
        step, tensors, numbers = read(path, state)
    except ValueError as error:
        older = [step_of(other) for other in steps(path.parent.parent) if step_of(other) < step_of(path)]
        remedy = (
            f"delete {path} to go on from update {older[-1]}" if older else "no older one is left, start anew elsewhere"
        )
        raise ValueError(f"{error}; {remedy}") from None
    state.restore(tensors)
    for name, values in numbers.items():
        getattr(state, name).update(values)
    return step


def read(path: Path, state: State) -> tuple[int, dict[str, Tensor], dict[str, dict[str, float]]]:
    """The step, the tensors and the numbers of a checkpoint, checked before anything of their size is allocated."""
    about, file = verified(path)
    try:
        with safe_open(file, framework="pt") as content:
            have = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
            check_shapes(file, have, state)
            tensors = {name: content.get_tensor(name) for name in have}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({error})") from None
    numbers = {name: about.get(name) for name in NUMBERS}
    for name, values in numbers.items():
        if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
            raise ValueError(f"{path / 'state.json'}: damaged, {name} is {values!r}")
    return about["step"], tensors, numbers


def verified(path: Path) -> tuple[dict[str, Any], Path]:
    """What state.json says of a checkpoint, and the file of its tensors, which is as it was written.

    Raises:
        ValueError: If it is not; names the file.
    """
    about, file = read_json(path / "state.json"), path / "state.safetensors"
    if about.get("step") != step_of(path):
        raise ValueError(f"{path / 'state.json'}: says update {about.get('step')!r}, its folder says {step_of(path)}")
    if not file.is_file():
        raise ValueError(f"{file}: missing")
    if file.stat().st_size != about.get("bytes"):
        raise ValueError(
            f"{file}: {file.stat().st_size} bytes instead of {about.get('bytes')}, cut short or overwritten"
        )
    with file.open("rb") as handle:
        if hashlib.file_digest(handle, "blake2b").hexdigest() != about.get("blake2b"):
            raise ValueError(f"{file}: damaged, its checksum is not the one in state.json")
    return about, file


def check_shapes(file: Path, have: dict[str, tuple[int, ...]], state: State) -> None:
    """Refuse tensors that are not exactly those of the run."""
    require_same(file, have, state.shapes(have))


def require_same(file: Path, have: dict[str, tuple[int, ...]], want: dict[str, tuple[int, ...]]) -> None:
    """Refuse names or shapes of tensors that are not the wanted ones."""
    wrong = [f"{name} is missing" for name in want.keys() - have.keys()]
    wrong += [f"{name} is unknown" for name in have.keys() - want.keys()]
    wrong += [
        f"{n} is {list(have[n])} instead of {list(want[n])}" for n in want.keys() & have.keys() if have[n] != want[n]
    ]
    if wrong:
        raise ValueError(f"{file}: made by another model, {listed(sorted(wrong))}")


def told_apart(prompts: Sequence[str]) -> dict[str, Any]:
    """What tells a list of prompts from others: their number and a hash."""
    digest = hashlib.blake2b("\n".join(prompts).encode(), digest_size=16).hexdigest()
    return {"prompts": len(prompts), "prompts_blake2b": digest}


def record(
    config: dict[str, Any], prompts: Sequence[str], processes: int, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What config.json holds: the configuration as JSON has it, what the updates depend on besides, and provenance.

    `more` of what they depend on are hashes of files, by name.
    """
    inputs = {**told_apart(prompts), "processes": processes, **(more or {})}
    return {"config": plain(config), "inputs": inputs, **provenance()}


@contextlib.contextmanager
def claim(out: Path, wanted: dict[str, Any], resume: bool) -> Iterator[None]:
    """Have a run's folder, examined, for this process; when that ends before anything was written, it leaves no folder.

    Args:
        out: The run's folder.
        wanted: What `record` gave for this run.
        resume: Whether the folder should hold an earlier start of the same run.

    Raises:
        BusyError: If another process is training in it; nothing is changed.
        Exception: What `examine` raises.
    """
    occupied(out, resume)
    with writable(out), contextlib.ExitStack() as stack:
        made = [path for path in (out, *out.parents) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(locked(out))
        except BlockingIOError:
            raise BusyError(
                f"another process is training in {out}; wait for it to end, or choose another folder"
            ) from None
        claimed = stack.pop_all()
    with claimed:
        try:
            examine(out, wanted, resume)
            yield
        finally:
            withdraw(out, made)


def withdraw(out: Path, made: list[Path]) -> None:
    """Remove the folders that a start has made, the deepest first, if it left nothing there that is worth keeping."""
    files = [path.relative_to(out) for path in out.rglob("*") if not path.is_dir()]
    kept = [path for path in files if not any(part.startswith(TEMPORARY) for part in path.parts)]
    if out in made and {path.as_posix() for path in kept} <= {LOCK, "config.json"}:
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.suppress(OSError):  # something else is in it
            for path in made[1:]:
                path.rmdir()


def entries(out: Path) -> list[Path]:
    """What is in a folder, less what unfinished work or a lock leaves there."""
    found = out.iterdir() if out.is_dir() else ()
    return [path for path in found if path.name != LOCK and not path.name.startswith(TEMPORARY)]


def occupied(out: Path, resume: bool) -> bool:
    """Whether there is something in a folder; refuses it if that is not as `resume` has it.

    Raises:
        FileExistsError: If there is something in it already, without `resume`.
        FileNotFoundError: If it is not there, with `resume`.
        ValueError: If it cannot be looked into.
    """
    with writable(out):
        there = bool(entries(out))
        run, exists = (out / "config.json").exists(), out.exists()
    if resume and not exists:
        raise FileNotFoundError(f"{out} is not there, so there is no run to resume; check the path, or drop --resume")
    if there and not resume:
        if run:
            raise FileExistsError(f"{out} exists already; resume the run in it (--resume), or choose another folder")
        raise FileExistsError(f"{out} holds files but no run; choose another folder")
    return there


@contextlib.contextmanager
def writable(out: Path) -> Iterator[None]:
    """Within, a folder that cannot be used is a ValueError that names it."""
    try:
        yield
    except (FileExistsError, FileNotFoundError) as error:
        raise ValueError(f"cannot make the folder {out}: {error.strerror}; choose another") from None
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from None


def examine(out: Path, wanted: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that a run cannot use, before any work; makes the folder, writes nothing over.

    Args:
        out: The run's folder.
        wanted: What `record` gave for this run.
        resume: Whether the folder should hold an earlier start of the same run.

    Raises:
        FileExistsError: If there is something in it already, without `resume`.
        FileNotFoundError: If it is not there, with `resume`.
        ValueError: If it cannot be written, holds no run, or one of another configuration, whose fields are named.
    """
    there = occupied(out, resume)
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out, prefix=TEMPORARY):
            pass
    if there:
        if not (out / "config.json").exists():
            raise ValueError(f"{out} holds no config.json, so it is no run that can be resumed; choose another folder")
        try:
            had = read_json(out / "config.json")
        except ValueError as error:
            raise ValueError(f"{error}; restore the file, or start anew in another folder") from None
        compare(out, had, wanted)
    if (out / "metrics.jsonl").exists() and latest(out) is None:
        raise ValueError(
            f"{out / 'checkpoints'} holds no checkpoint, so the run cannot be resumed; start anew elsewhere"
        )


def compare(out: Path, had: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a configuration that would not give the updates that the run in `out` was giving."""
    old, new = ({**flat(r.get("config")), **flat(r.get("inputs"), "inputs.")} for r in (had, wanted))
    differ = [
        f"{WORDS.get(key, key)} was {old.get(key, 'absent')!r}, now {new.get(key, 'absent')!r}"
        for key in differences(old, new)
        if key not in MAY_CHANGE and key not in NOT_COMPARED
    ]
    if differ:
        raise ValueError(f"{out} has another configuration: {listed(differ)}; give the same, or choose another folder")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys of flat configurations that differ; of a part with another name, the name alone."""
    differ = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    renamed = {key.partition(".")[0] for key in differ if key.endswith(".name")}
    return [key for key in differ if key.endswith(".name") or key.partition(".")[0] not in renamed]


def begin(out: Path, wanted: dict[str, Any]) -> None:
    """Write config.json and clear away what a killed start left unfinished.

    A resumed run keeps the provenance of its first start; of the configuration, what may change is brought up to date.
    """
    clear(out)
    path = out / "config.json"
    had = read_json(path) if path.exists() else {}
    if had.get("config") != wanted["config"]:
        atomic_write(path, dump({**wanted, **had, "config": wanted["config"]}))


def clear(out: Path) -> None:
    """Remove what killed starts left unfinished."""
    for path in (*out.glob(f"{TEMPORARY}*"), *out.glob(f"*/{TEMPORARY}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; anything else as nothing."""
    found: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, dict) else ():
        found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return found


def listed(items: list[str]) -> str:
    """The first few, and how many more."""
    return "; ".join(items[:SHOWN]) + (f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def dump(value: dict[str, Any]) -> str:
    """JSON that people can read."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
