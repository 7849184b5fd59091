"""Which method is better: reward at equal FID, on the embedded model, in equal time on every core.

    python benchmarks/methods.py --out runs/methods [--quick] [--rewards R ...] [--methods M ...] [--seeds N]

Trains each method with each reward and several seeds, all for the same time and two runs at once, a core each; then
`align3d compare` measures their checkpoints on held-out prompts. Prompts name two colours each ("a blue chair with red
legs"), of which the base model has one wrong in a quarter of its samples. All of it is done by the commands that a user
types; a second start with the same arguments goes on where the first one ended. On two cores a full run trains for an
hour and a half and measures for about two; --quick takes one reward, one seed and three methods. --docs FOLDER writes
benchmark.md and its pictures there (methods_page.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from methods_page import PROTOCOL, Study, at_level, verdict, write

HERE = Path(__file__).parent
PROMPTS = {"train": HERE / "prompts" / "two-colours-train.txt", "heldout": HERE / "prompts" / "two-colours-heldout.txt"}
METHODS = {  # name -> what `align3d train` is told
    "nabla": ["--method", "nabla"],
    "nabla-x0": ["--method", "nabla", "--method.gradient-at", "x0", "--method.transitions", "8", "--method.chunk", "0"],
    "nabla-paper": ["--method", "nabla", "--method.weight", "paper"],
    "refl": ["--method", "refl", "--loop.learning-rate", "1e-3"],
    "draft": ["--method", "draft", "--loop.learning-rate", "1e-3"],
    "ddpo": ["--method", "ddpo", "--loop.group", "4"],
}
REWARDS = ("colorfulness", "imagenet", "clip-tiny")
MOST = 100_000  # updates; the time ends before
BESIDE = ("clip-tiny", "dnc")  # shown beside every reward
GROUP = ("method.name", "method.weight", "method.gradient_at")  # tells the runs of one method from another's


@dataclass(frozen=True)
class Size:
    """How much of it."""

    rewards: Sequence[str]
    methods: Sequence[str]
    seeds: int  # of the training
    minutes: float  # of training for each run
    points: int  # checkpoints of each run that are measured
    refine: int  # and further ones, near the level where runs are compared
    prompts: int  # held-out prompts
    num: int  # samples of each


FULL = Size(REWARDS, tuple(METHODS), seeds=3, minutes=2.5, points=3, refine=2, prompts=25, num=4)
QUICK = Size(("colorfulness",), ("nabla", "refl", "draft"), seeds=1, minutes=1.0, points=2, refine=2, prompts=20, num=4)


def training(size: Size, out: Path) -> Iterator[tuple[Path, list[str]]]:
    """The runs: folder, and the arguments of `align3d train`."""
    for seed in range(size.seeds):  # outermost, so that what an interrupted benchmark has is whole
        for reward in size.rewards:
            for method in size.methods:
                folder = out / reward / f"{method}-s{seed}"
                flags = {
                    "reward": reward,
                    "prompts": PROMPTS["train"],
                    "loop.minutes": size.minutes,
                    "loop.updates": MOST,
                    "loop.checkpoint-every": 2,
                    "loop.keep": 0,
                    "seed": seed,
                    "out": folder,
                }
                yield folder, ["train", *METHODS[method], *spelled(flags)]


def spelled(flags: Mapping[str, object]) -> list[str]:
    """Flags and their values as a command line has them; a list stands for several values."""
    words = []
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return words


def comparing(size: Size, out: Path, reward: str) -> list[str]:
    """The arguments of `align3d compare` for the runs of one reward."""
    runs = [str(folder) for folder, _ in training(size, out) if folder.parent.name == reward]
    rewards = list(dict.fromkeys((reward, *size.rewards, *BESIDE)))
    flags = {
        "rewards": rewards,
        "group": GROUP,
        "points": size.points,
        "refine": 0,
        "prompts": PROMPTS["heldout"],
        "max-prompts": size.prompts,
        "num": size.num,
        "out": out / reward / "compare",
    }
    return ["compare", *runs, *spelled(flags)]


def run(words: Sequence[str], log: Path, cores: int = 1) -> float:
    """Run one command of align3d, what it says going to a file; returns the seconds that it took.

    Raises:
        SystemExit: If it fails.
    """
    start = time.perf_counter()
    many = ["-m", "torch.distributed.run", "--nproc-per-node", str(cores)] if cores > 1 else []
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, *many, "-m", *(["--"] if many else []), "align3d", *words]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"align3d {words[0]} failed with exit code {code}; {log} says why")
    return time.perf_counter() - start


def train(folder: Path, words: Sequence[str]) -> None:
    """One run, unless it is there; goes on with one that was interrupted."""
    begun = (folder / "config.json").exists()
    seconds = run([*words, "--resume"] if begun else words, folder.with_suffix(".log"))
    print(f"{folder.parent.name:<14} {folder.name:<16} {seconds:6.0f} s", flush=True)


def finished(folder: Path, size: Size) -> bool:
    """Whether a run has had its time, and has written its page."""
    if not (folder / "report.html").is_file():
        return False
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(row)["seconds"] for row in rows) >= 60 * size.minutes


def measure(size: Size, out: Path, reward: str, cores: int) -> Study:
    """Measure the runs of one reward: a few checkpoints of each, then further ones near the level of the claim."""
    log, folder = out / reward / "compare.log", out / reward / "compare"
    seconds = run(comparing(size, out, reward), log, cores)
    levels = Study.read(reward, folder).levels
    seconds += run([*comparing(size, out, reward), *spelled({"levels": levels, "refine": size.refine})], log, cores)
    print(f"{reward:<14} compared         {seconds:6.0f} s", flush=True)
    return Study.read(reward, folder)


def about(size: Size) -> str:
    """What was run, in words."""
    from importlib.metadata import version

    said = ", ".join(f"`{name}` ({' '.join(words)})" for name, words in METHODS.items() if name in size.methods)
    train, heldout = (PROMPTS[name].name for name in ("train", "heldout"))
    return (
        f"Written by `benchmarks/methods.py`. {said}; each trained for {size.minutes:g} minutes of one core, two runs "
        f"at once, with each reward and {size.seeds} seeds: batches of 8, learning rate 3e-3 where no other is said, "
        f"prompts of {train}; measuring beta is part of nabla's time. {size.points} checkpoints of each run and up to "
        f"{size.refine} near the level, on {size.prompts} prompts of {heldout}, {size.num} seeds and 4 views of each. "
        f"{os.cpu_count()} cores, torch {version('torch')}.\n\n{PROTOCOL}"
    )


def main(args: Sequence[str] | None = None) -> None:
    """Train, compare, write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rewards", nargs="+", choices=REWARDS)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--points", type=int)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a core each")
    options = parser.parse_args(args)
    size = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in ("rewards", "methods", "seeds", "minutes", "points")}
    size = Size(**{**vars(size), **{name: value for name, value in given.items() if value is not None}})

    with ThreadPoolExecutor(options.jobs) as pool:
        open_ = [job for job in training(size, options.out) if not finished(job[0], size)]
        list(pool.map(lambda job: train(*job), open_))
    studies = [measure(size, options.out, reward, options.jobs) for reward in size.rewards]
    for study in studies:
        print(f"\n{verdict(study)[0]}\n")
        print("\n".join(at_level(study, study.levels[1])), flush=True)
    if options.docs is not None:
        folders = {reward: options.out / reward / "compare" for reward in size.rewards}
        print(f"\nwritten: {write(studies, folders, options.docs, about(size))}")


if __name__ == "__main__":
    main()
