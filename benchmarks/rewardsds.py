"""Does it help to let a reward choose the noises of score distillation? RewardSDS against SDS, on the embedded prior.

    python benchmarks/rewardsds.py --out runs/rewardsds [--quick] [--reward imagenet]

Every prompt is optimised with every seed by every setting; the same seed has the same start, cameras, noise levels and
first noise in all of them. Finished scenes are judged from eight sides: by the reward that chose, and by judges that
had no part in it. What is compared are the scenes of the same prompt and seed, one by one: with plain SDS, and with as
many noises of which none is chosen, as their mean alone is less noisy. Two optimisations run at once, a core each, for
20 to 25 minutes; a second start goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

PROMPTS = ("a red chair", "a blue mug", "a red teapot", "a green guitar", "a purple umbrella", "a gold pizza")
REWARDS = ("clip-tiny", "imagenet", "dnc")  # the first chooses, unless told otherwise; the others judge
UPDATES, GUIDANCE = 100, 5.0
SETTINGS = {  # name -> weighting, candidates, steps of exploration, updates
    "sds": ("none", 1, 1, UPDATES),
    "sds, 4 times as long": ("none", 1, 1, 4 * UPDATES),
    "mean of 4": ("mean", 4, 1, UPDATES),  # less noise in the gradient, and no choice
    "best of 4": ("best", 4, 1, UPDATES),
    "weighted 4": ("weighted", 4, 1, UPDATES),
    "min-max 4": ("min-max", 4, 1, UPDATES),
    "mean of 8": ("mean", 8, 1, UPDATES),
    "best of 8": ("best", 8, 1, UPDATES),
    "weighted 8": ("weighted", 8, 1, UPDATES),
    "min-max 8": ("min-max", 8, 1, UPDATES),
    "weighted 4, 2 steps": ("weighted", 4, 2, UPDATES),
}
DEFAULT = ("sds", "mean of 4", "best of 4", "weighted 4", "min-max 4", "weighted 8", "weighted 4, 2 steps")


@dataclass(frozen=True)
class Job:
    """One optimisation."""

    setting: str
    prompt: str
    seed: int
    reward: str = REWARDS[0]  # that chooses

    @property
    def key(self) -> str:
        """What tells it from others."""
        chooser = self.reward if SETTINGS[self.setting][0] not in ("none", "mean") else "none"
        return f"{self.setting} | {self.prompt} | {self.seed} | {chooser}"


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
    from align3d.rewards import REWARDS as TABLE
    from align3d.rewards.score import Scorer, as_reward, call_reward
    from align3d.scenes.density.base import Density
    from align3d.scenes.rings import Ring
    from align3d.starts import GaussianStart, Stage
    from align3d.types import CHANNELS

    torch.set_num_threads(1)
    kind, candidates, steps, updates = SETTINGS[job.setting]
    rewards = {name: as_reward(load(TABLE, name, "reward")) for name in REWARDS}
    prior = Embedded().load()
    ring = Ring()
    subject = GaussianStart(density=Density()).subject(Stage(prior, ring, prompt=job.prompt, seed=job.seed))
    even = Weighting("weighted", temperature=1e6)
    weighting = even if kind == "mean" else Weighting(kind)
    method = SDS(guidance=GUIDANCE, weighting=weighting, explore=Explore(candidates, steps=steps))
    loop = Loop(
        updates=updates, batch_size=1, learning_rate=1e-2, betas=(0.9, 0.99), eps=1e-15, warmup=0, weight_decay=0.0,
        max_grad_norm=0.0, seed=job.seed,
    )  # fmt: skip
    begun = time.process_time()
    rows = fit(subject, method, Scorer(rewards[job.reward], ring), [job.prompt], loop, progress=False)
    seconds = time.process_time() - begun
    cameras = evaluation_cameras(128, [22.5 + 45 * i for i in range(8)], elevation=15.0)
    with torch.no_grad():
        views = subject.scene().render(cameras, want=[c for c in CHANNELS if c != "median_depth"])
        scores = {
            name: float(call_reward(reward, name, views, [job.prompt]).mean()) for name, reward in rewards.items()
        }
    return {
        "key": job.key,
        "scores": scores,
        "seconds": seconds,
        "evaluations": sum(row["evaluations"] for row in rows) / len(rows),
        "picture": (views.rgb[0, 0] * 255 + 0.5).byte().tolist() if job.seed == 0 else None,
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


def compared(found: Mapping[str, Mapping[str, Any]], pairs: Sequence[Job], settings: Sequence[str]) -> Iterator[str]:
    """The rows of the table: means, and differences from plain SDS and from the mean of as many noises.

    Args:
        found: Results by the keys of their jobs.
        pairs: The jobs of plain SDS.
        settings: To be compared with them.
    """
    heads = ["", *REWARDS, *(f"{name}, less sds" for name in REWARDS), *(f"{name}, less mean" for name in REWARDS)]
    yield f"| {' | '.join([*heads, 'evaluations an update', 'seconds'])} |"
    yield f"|---|{'--:|' * (len(heads) + 1)}"
    for setting in settings:
        rows = results(found, pairs, setting)
        cells = [f"{fmean(row['scores'][name] for row in rows):.3f}" for name in REWARDS]
        even = f"mean of {SETTINGS[setting][1]}"
        for other in ("sds", even):
            apart = setting not in ("sds", other) and other in settings
            cells += lifts(rows, results(found, pairs, other)) if apart else [""] * len(REWARDS)
        cells += [f"{fmean(row[name] for row in rows):.1f}" for name in ("evaluations", "seconds")]
        yield f"| {setting} | {' | '.join(cells)} |"


def results(found: Mapping[str, Mapping[str, Any]], pairs: Sequence[Job], setting: str) -> list[Mapping[str, Any]]:
    """What a setting made of each prompt and seed."""
    return [found[replace(job, setting=setting).key] for job in pairs]


def lifts(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much more each reward gives to the first than to the second, with a 95 % interval over the pairs."""
    from align3d.intervals import mean_interval

    cells = []
    for name in REWARDS:
        pairs = zip(rows, others, strict=True)
        mean, _, low, high = mean_interval([row["scores"][name] - other["scores"][name] for row, other in pairs])
        cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return cells


def sheet(found: Mapping[str, Mapping[str, Any]], pairs: Sequence[Job], settings: Sequence[str], path: Path) -> None:
    """A picture of each prompt by each setting, of the first seed."""
    import torch

    from align3d.scenes.pictures import save_sheet

    first = [job for job in pairs if job.seed == 0]
    rows = [row for setting in settings for row in results(found, first, setting)]
    labels = [setting if i == 0 else "" for setting in settings for i in range(len(first))]
    save_sheet(path, torch.stack([torch.tensor(row["picture"]).float() / 255 for row in rows]), len(first), labels)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--seeds", type=int, default=8, help="of each prompt")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(DEFAULT))
    parser.add_argument("--reward", choices=REWARDS[:2], default=REWARDS[0], help="that chooses")
    parser.add_argument("--workers", type=int, default=2, help="optimisations at once")
    parser.add_argument("--quick", action="store_true", help="two prompts, two seeds, three settings")
    options = parser.parse_args()
    settings, prompts, seeds = options.settings, PROMPTS, options.seeds
    if options.quick:
        settings, prompts, seeds = ["sds", "mean of 4", "weighted 4"], PROMPTS[:2], 2
    settings = list(dict.fromkeys(["sds", *settings]))
    pairs = [Job("sds", prompt, seed, options.reward) for seed in range(seeds) for prompt in prompts]
    found = run([replace(job, setting=s) for job in pairs for s in settings], options.out, options.workers)
    text = "\n".join(compared(found, pairs, settings)) + "\n"
    (options.out / f"table-{options.reward}.md").write_text(text)
    sheet(found, pairs, settings, options.out / f"sheet-{options.reward}.webp")
    print(text, end="")


if __name__ == "__main__":
    main()
