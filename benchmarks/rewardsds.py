"""Does it help to let a reward choose the noises of score distillation? RewardSDS against SDS, on the embedded prior.

    python benchmarks/rewardsds.py --out runs/rewardsds [--quick] [--docs FOLDER]

Every prompt is optimised with every seed by every setting; the same seed has the same start, cameras, noise levels and
first noise in all of them. Finished scenes are judged from eight sides that training does not favour: by the reward
that chose, and by judges that had no part in it. What is compared are the scenes of the same prompt and seed, one by
one. Two optimisations run at once, a core each; a second start goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = ("a red chair", "a blue mug", "a red teapot", "a green guitar", "a purple umbrella", "a gold pizza")
USED, JUDGES = "clip-tiny", ("imagenet", "dnc")
UPDATES, GUIDANCE = 150, 5.0
SETTINGS = {  # name -> weighting, candidates, steps of exploration, updates
    "sds": ("none", 1, 1, UPDATES),
    "sds, 4 times as long": ("none", 1, 1, 4 * UPDATES),
    "mean of 4": ("mean", 4, 1, UPDATES),  # less noise in the gradient, and no choice
    "best of 4": ("best", 4, 1, UPDATES),
    "weighted 4": ("weighted", 4, 1, UPDATES),
    "min-max 4": ("min-max", 4, 1, UPDATES),
    "best of 8": ("best", 8, 1, UPDATES),
    "weighted 8": ("weighted", 8, 1, UPDATES),
    "min-max 8": ("min-max", 8, 1, UPDATES),
    "best of 4, 2 steps": ("best", 4, 2, UPDATES),
}


@dataclass(frozen=True)
class Job:
    """One optimisation."""

    setting: str
    prompt: str
    seed: int
    weights: str | None = None  # folder of the prior; None = the shipped one

    @property
    def key(self) -> str:
        """What tells it from others."""
        return f"{self.setting} | {self.prompt} | {self.seed}"


def optimise(job: Job) -> dict[str, Any]:
    """Make the scene and judge it."""
    import torch

    from align3d.evaluate import evaluation_cameras
    from align3d.loop import Loop, fit
    from align3d.methods.candidates import Explore
    from align3d.methods.sds import SDS
    from align3d.methods.weighting import Weighting
    from align3d.priors.embedded import Embedded
    from align3d.registry import load
    from align3d.rewards import REWARDS
    from align3d.rewards.score import Scorer, as_reward, call_reward
    from align3d.scenes.rings import Ring
    from align3d.starts import GaussianStart
    from align3d.types import CHANNELS

    torch.set_num_threads(1)
    kind, candidates, steps, updates = SETTINGS[job.setting]
    rewards = {name: as_reward(load(REWARDS, name, "reward")) for name in (USED, *JUDGES)}
    prior = Embedded(None if job.weights is None else Path(job.weights)).load()
    ring = Ring()
    subject = GaussianStart().subject(prior, ring, (1.0, 1.0, 1.0), job.seed, "cpu")
    even = Weighting("weighted", temperature=1e6)
    weighting = even if kind == "mean" else Weighting(kind)
    method = SDS(guidance=GUIDANCE, weighting=weighting, explore=Explore(candidates, steps=steps))
    loop = Loop(
        updates=updates, batch_size=1, learning_rate=1e-2, betas=(0.9, 0.99), eps=1e-15, warmup=0, weight_decay=0.0,
        max_grad_norm=0.0, seed=job.seed,
    )  # fmt: skip
    begun = time.process_time()
    rows = fit(subject, method, Scorer(rewards[USED], ring), [job.prompt], loop, progress=False)
    seconds = time.process_time() - begun
    cameras = evaluation_cameras(128, [22.5 + 45 * i for i in range(8)], elevation=15.0)
    with torch.no_grad():
        views = subject.scene().render(cameras, want=[c for c in CHANNELS if c != "median_depth"])
        scores = {
            name: float(call_reward(reward, name, views, [job.prompt]).mean()) for name, reward in rewards.items()
        }
        small = (views.rgb[0, ::2] * 255 + 0.5).byte()
    return {
        "key": job.key,
        "scores": scores,
        "seconds": seconds,
        "evaluations": sum(row["evaluations"] for row in rows) / len(rows),
        "picture": small[0].tolist() if job.seed == 0 else None,
    }


def run(jobs: Sequence[Job], out: Path, workers: int) -> dict[str, dict[str, Any]]:
    """The results of all jobs by their keys; those in the folder are not made again."""
    path = out / "results.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    found = {row["key"]: row for row in map(json.loads, lines)}
    todo = [job for job in jobs if job.key not in found]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers) as pool, path.open("a") as file:
        begun = time.monotonic()
        for i, future in enumerate(as_completed([pool.submit(optimise, job) for job in todo])):
            row = future.result()
            found[row["key"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            if i % 20 == 19:
                left = (time.monotonic() - begun) / (i + 1) * (len(todo) - i - 1)
                print(f"{i + 1}/{len(todo)}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
    return found


def compared(
    found: Mapping[str, Mapping[str, Any]], settings: Sequence[str], prompts: Sequence[str], seeds: int
) -> Iterator[str]:
    """The rows of the table: means, and differences from plain SDS with 95 % intervals over the pairs."""
    from align3d.intervals import mean_interval

    names = (USED, *JUDGES)
    heads = ["", *names, *(f"{name}, less sds" for name in names), "evaluations an update", "seconds"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'--:|' * (len(heads) - 1)}"
    pairs = [(prompt, seed) for prompt in prompts for seed in range(seeds)]
    for setting in settings:
        rows = [found[Job(setting, *pair).key] for pair in pairs]
        plain = [found[Job("sds", *pair).key] for pair in pairs]
        cells = [f"{sum(r['scores'][name] for r in rows) / len(rows):.3f}" for name in names]
        for name in names:
            mean, _, low, high = mean_interval(
                [r["scores"][name] - p["scores"][name] for r, p in zip(rows, plain, strict=True)]
            )
            cells.append("" if setting == "sds" else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        cells += [f"{sum(r[name] for r in rows) / len(rows):.1f}" for name in ("evaluations", "seconds")]
        yield f"| {setting} | {' | '.join(cells)} |"


def sheet(found: Mapping[str, Mapping[str, Any]], settings: Sequence[str], prompts: Sequence[str], path: Path) -> None:
    """A picture of each prompt by each setting, of the first seed."""
    import torch

    from align3d.scenes.pictures import save_sheet

    pictures, labels = [], []
    for setting in settings:
        for prompt in prompts:
            pictures.append(torch.tensor(found[Job(setting, prompt, 0).key]["picture"]).float() / 255)
            labels.append(setting if prompt == prompts[0] else "")
    save_sheet(path, torch.stack(pictures), len(prompts), labels)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--seeds", type=int, default=8, help="of each prompt")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--weights", help="folder of the prior; without, the shipped one")
    parser.add_argument("--workers", type=int, default=2, help="optimisations at once")
    parser.add_argument("--quick", action="store_true", help="two prompts, two seeds, three settings")
    options = parser.parse_args()
    settings, prompts, seeds = options.settings, PROMPTS, options.seeds
    if options.quick:
        settings, prompts, seeds = ["sds", "best of 4", "weighted 4"], PROMPTS[:2], 2
    settings = list(dict.fromkeys(["sds", *settings]))
    jobs = [Job(s, p, seed, options.weights) for seed in range(seeds) for p in prompts for s in settings]
    found = run(jobs, options.out, options.workers)
    text = "\n".join(compared(found, settings, prompts, seeds)) + "\n"
    (options.out / "table.md").write_text(text)
    sheet(found, settings, prompts, options.out / "sheet.webp")
    print(text, end="")


if __name__ == "__main__":
    main()
