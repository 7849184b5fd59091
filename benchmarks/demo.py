"""How long the demo takes, phase by phase, and how much memory.

    python benchmarks/demo.py [--clone] [options of `align3d demo`, such as --updates 5]

Runs `align3d demo` into a temporary folder, in a process of its own. With --clone, does instead what a newcomer does:
clones this repository (what is committed) and types `make demo` there; that installs everything anew, TORCH and other
variables of the Makefile come from the environment.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
MARK = re.compile(r" *\d+ s  ([^:]+)")  # the demo says what it begins, after the seconds since its own start


def phases(lines: Sequence[tuple[float, str]], end: float) -> list[tuple[str, float]]:
    """Seconds by phase.

    Args:
        lines: What the demo printed, and after how many seconds.
        end: Seconds until it was over.

    Returns:
        Names and seconds; the first is what came before the demo began to say what it does.
    """
    marks = [("start", 0.0)] + [(found[1], when) for when, line in lines if (found := MARK.match(line))]
    stops = [when for _, when in marks[1:]] + [end]
    return [(name, stop - when) for (name, when), stop in zip(marks, stops, strict=True)]


def watch(command: Sequence[str], folder: Path) -> tuple[list[tuple[float, str]], float]:
    """Runs a command; its lines on standard output with the seconds when they came, and the seconds it took.

    Raises:
        SystemExit: If it fails.
    """
    start, lines = time.perf_counter(), []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip("\n")))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return lines, time.perf_counter() - start


def main(args: Sequence[str] | None = None) -> None:
    """Runs and prints."""
    args = list(sys.argv[1:] if args is None else args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "--clone" in args:
            clone = ["git", "clone", "--quiet", str(ROOT), str(folder / "align3d")]
            script = f"{' '.join(clone)} && cd {folder / 'align3d'} && make --silent demo"
            lines, end = watch(["bash", "-c", script], folder)
            first = "clone, installation, start of the demo"
        else:
            lines, end = watch([sys.executable, "-m", "align3d", "demo", "--out", str(folder / "run"), *args], ROOT)
            first = "start"
    print(f"on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end\n\n| phase | seconds |\n|---|--:|")
    rows = phases(lines, end)
    for name, seconds in [(first, rows[0][1]), *rows[1:], ("**all**", end)]:  # the last phase is "done": ending
        print(f"| {name} | {seconds:.0f} |")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nPeak memory {memory:.0f} MiB.\n")
    print("\n".join(line for _, line in lines if line.startswith("|") or " paired" in line))


if __name__ == "__main__":
    main()
