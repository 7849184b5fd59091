"""What a run writes while it goes: files that appear whole, one line of numbers per update, progress for people."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.files import atomic_write, writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PACKAGES = ("torch", "numpy", "safetensors", "diffusers", "transformers", "peft")  # whose versions a run records
MAX_JSON = 1 << 24  # bytes of a JSON file, or of one line of metrics, that we are willing to read
TERM = "term_"  # how the columns of the terms of a combined reward begin
WATCHED = "watch_"  # how the columns of a look begin; some have an error beside them, ..._error
EVERY = 10.0  # seconds between lines of progress
MAX_SHOWN = 1e9  # seconds; a longer time left is not worth a number


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        ValueError: If it is missing, too large, or no JSON object; one line that names the file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise ValueError(f"{path}: {size} bytes, more than the {MAX_JSON} that such a file may have")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged, holds {type(value).__name__} instead of an object")
    return value


def plain(value: Any) -> Any:
    """The same value as JSON would give it back: tuples as lists, paths and other objects as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def provenance() -> dict[str, Any]:
    """What made this run: versions of the packages, git commit of this package (or None), command line (or None)."""
    import align3d

    versions = {"align3d": align3d.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "git": git_commit(Path(align3d.__file__).parent.parent), "command": command_line()}


def command_line() -> list[str] | None:
    """The words that started this process; None where they start nothing again: `python -`, `-c`, a notebook."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return None if name in ("", "-", "-c", "ipykernel_launcher.py") else list(sys.argv)


def git_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`, with "-dirty" after it if files differ; None if it is no checkout."""
    if not (folder / ".git").exists():  # else an installed copy would report the repository around it
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def read_metrics(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, their steps ascending; some may be lost, and a last line that was cut short is.

    Args:
        path: The file; may be missing, which means no rows.
        last: Stop after the row of this step; what follows is not looked at. None reads to the end.

    Raises:
        ValueError: If a row is damaged or out of order; names the file and the line.
    """
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    number, step = 0, 0
    with path.open("rb") as handle:
        while (last is None or step < last) and (line := handle.readline(MAX_JSON)):
            number += 1
            row = parsed(line)
            if row is None or row["step"] <= step:
                if row is None and not handle.read(1):
                    break
                raise ValueError(f"{path}: line {number} is damaged; restore the file, or delete it to go on without")
            step = row["step"]
            if last is None or step <= last:
                found.append(row)
    return found


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, whose step is a whole number; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and type(row.get("step")) is int else None


class Metrics:
    """The rows of a run, each on disk as soon as it is known.

    Args:
        path: metrics.jsonl; None keeps the rows in memory only.
        done: The step up to which the rows already in the file stand; the rest, written after the last checkpoint,
            goes. If some of them are missing, a line on standard error says so.

    Raises:
        ValueError: If one of the rows that stand is damaged.
        WriteError: If the disk is full.
    """

    def __init__(self, path: Path | None, done: int = 0):
        self.rows: list[dict[str, Any]] = []
        self.handle, self.path = None, path
        if path is not None:
            self.rows = read_metrics(path, done)
            if len(self.rows) < done:
                lost = f"{done - len(self.rows)} of the {done} rows before the checkpoint are lost"
                print(f"align3d: warning: {path}: {lost}; the run goes on without them", file=sys.stderr)
            atomic_write(path, "".join(map(as_line, self.rows)))
            self.handle = path.open("ab", buffering=0)  # a row is one write: the kernel keeps it if we are killed

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(row)
        if self.handle is not None:
            data = as_line(row).encode()
            with writing(self.path):
                while data:  # a disk that is nearly full takes a part, and refuses the rest
                    data = data[self.handle.write(data) :]

    def sync(self) -> None:
        """Make all rows survive a power cut; called before the checkpoint that counts on them."""
        if self.handle is not None:
            with writing(self.path):
                os.fsync(self.handle.fileno())


def as_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON; a number that is not finite becomes null."""
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}) + "\n"


def peak_memory(like: Tensor) -> float:
    """The most memory in use so far, in MiB: of the GPU if `like` lies on one, else of this process."""
    import torch

    if like.is_cuda:
        return torch.cuda.max_memory_allocated(like.device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def count(number: int, what: str) -> str:
    """A number of things in words: 1 view, 3 views."""
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3:05, 2:03:05."""
    if not seconds < MAX_SHOWN:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def counting(name: str, what: str = "samples", brief: bool = False) -> Callable[[float, int], None]:
    """Lines on standard error, of how many of some things are done: the first, the last, and one now and then.

    Args:
        name: What is under way.
        what: The things.
        brief: Whether to say nothing of what takes less than EVERY seconds.

    Returns:
        To be called with the number done, which may end in a part of one, and their total.
    """
    begun = shown = time.monotonic()
    silent = True

    def tell(done: float | int, total: int) -> None:
        nonlocal shown, silent
        now = time.monotonic()
        worth = done % 1 == 0 if silent and not brief else done == total and not silent
        if done > 0 and (worth or now - shown >= EVERY):
            shown, silent = now, False
            left = duration((now - begun) / done * (total - done))
            number = f"{done:.1f}".removesuffix(".0")
            print(f"{name}: {number}/{total} {what}, {left} left", file=sys.stderr, flush=True)

    return tell


class Progress:
    """How far a run is: a bar on a terminal, elsewhere a plain line now and then.

    Args:
        total: Updates in all.
        done: Updates done before this start.
        show: False shows nothing.
        every: Seconds between plain lines, at least; the first and the last update always get one.
        stream: A text stream; None is standard error.
        minutes: Of updates, after which the run ends whatever `total` says; 0 is no limit.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        show: bool = True,
        every: float = EVERY,
        stream: Any = None,
        minutes: float = 0.0,
    ):
        self.total, self.done, self.show, self.every = total, done, show, every
        self.budget = 60 * minutes or math.inf
        self.stream = sys.stderr if stream is None else stream
        self.times = deque(
            [time.perf_counter()], maxlen=21
        )  # when the last updates ended: their pace, pictures and all
        self.printed = -math.inf
        self.bar: Any = None
        self.seen: list[str] = []  # of the last look

    def __enter__(self) -> Progress:
        if self.show and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("update"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=Console(file=self.stream), refresh_per_second=2)
            self.bar.add_task("", total=self.total, completed=self.done)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def row(self, row: dict[str, Any]) -> None:
        """Show a finished update: its reward if it has one, its seconds, the time left, and what was watched last."""
        self.done, now = row["step"], time.perf_counter()
        self.times.append(now)
        pace = (now - self.times[0]) / (len(self.times) - 1)
        parts = [f"reward {row['reward']:.4g}"] if "reward" in row else []
        self.budget -= row["seconds"]
        left = max(0.0, min(pace * (self.total - self.done), self.budget))
        parts += [f"{row['seconds']:.2f} s/step", f"{duration(left)} left"]
        seen = [name for name in row if name.startswith(WATCHED) and not name.endswith("_error")]
        self.seen = [f"{name.removeprefix(WATCHED)} {row[name]:.4g}" for name in seen] or self.seen
        if self.bar is not None or seen:  # plain lines tell it once, and then at once
            parts += ["watched:", *self.seen] if self.seen else []
        text = "  ".join(parts)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done, description=text)
        elif self.show and (seen or now - self.printed >= self.every or self.done == self.total or self.budget <= 0):
            self.printed = now
            print(f"update {self.done}/{self.total}  {text}", file=self.stream, flush=True)
