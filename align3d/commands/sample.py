"""`align3d sample`: scenes from prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from align3d.commands.inputs import MAX_SEED, check_pictures, check_range, gather, load_model, new_folder, slug
from align3d.commands.listed import listed
from align3d.models.lora_files import adapter_folder

if TYPE_CHECKING:
    from align3d.generate import Batch
    from align3d.types import Score


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample scenes from prompts: a .ply file, views and a turntable of each.

    Every prompt is sampled with every seed, and a sample depends on its prompt and seed alone, so two models or
    adapters can be compared pair by pair.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # a prompt; may be given several times
    prompts: Path | None = None  # a prompt per line; train, heldout = the embedded generator's lists, or the model's
    adapter: Path | None = None  # a run's folder, whose model options become the defaults, or an adapter's; none = base
    num: int = 1  # samples per prompt, with the seeds SEED, SEED + 1, ...
    seed: int = 0  # first seed, 0 to 2^63 - 1
    rewards: tuple[str, ...] = ()  # rewards to report in samples.jsonl: dnc, "dnc(alpha=0.5)", "mine=dnc(alpha=0.5)"
    size: int = 256  # side of a view in pixels, at most 8192
    frames: int = 36  # frames of the turntables; 0 = no turntables
    batch_size: int = 4  # samples at a time; more needs more memory
    out: Path  # folder to write to; must be new or empty
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one

    parts: ClassVar[dict[str, str | None]] = {"model": "embedded"}
    earlier: ClassVar[str] = "--adapter"
    shorthands: ClassVar[dict[str, str]] = {"--weights": "--model.weights"}

    def __post_init__(self) -> None:
        for name, least in (("num", 1), ("frames", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        check_pictures(self.size, "frames", max(self.frames, 4))  # and the four views
        check_range("seed", self.seed, 0, MAX_SEED - self.num)


def run(options: Sample, *, names: dict[str, str], model: Any) -> None:
    """Sample, and write each sample as soon as it is there."""
    from align3d.files import replacing
    from align3d.generate import generate
    from align3d.log import counting

    prompts = gather(options.prompt, options.prompts, model)
    new_folder(options.out)
    if options.adapter is not None:
        if not hasattr(model, "adapter"):
            raise ValueError(f"model {names['model']!r} takes no adapter; leave --adapter out")
        if model.adapter is not None:
            raise ValueError(f"got --adapter {options.adapter} and --model.adapter {model.adapter}; give one of them")
        model = replace(model, adapter=adapter_folder(options.adapter))
    scores = scorers(options.rewards, prompts)
    generator = load_model(model, names["model"], options.device)
    seeds = range(options.seed, options.seed + options.num)
    rows: list[dict[str, Any]] = []
    progress = counting("sampling", brief=True)
    for batch in generate(generator, prompts, seeds, options.batch_size, progress):
        rewards = judge(batch, scores)
        for i, prompt in enumerate(batch.prompts):
            number = len(rows) // options.num  # of the prompt
            stem = f"{number:03}-{slug(prompt)}-s{batch.seeds[i]}"
            files = save(batch.scene.index(i), options, stem)
            rows.append({"prompt": prompt, "seed": batch.seeds[i], "files": files, "rewards": rewards[i]})
            print(f"{len(rows)}/{len(prompts) * options.num}  {stem}  {shown(rewards[i])}".rstrip(), flush=True)
        with replacing(options.out / "samples.jsonl") as path:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def scorers(names: tuple[str, ...], prompts: list[str]) -> dict[str, Score]:
    """Rewards by name, each seen by the four canonical cameras, so that the numbers do not depend on chance."""
    from align3d.rewards.score import Scorer, as_reward
    from align3d.scenes.cameras import four_sides

    scores = {label: Scorer(as_reward(one.part), four_sides()) for label, one in listed("reward", names).items()}
    for score in scores.values():
        score.check(prompts)
    return scores


def judge(batch: Batch, scores: dict[str, Score]) -> list[dict[str, float]]:
    """The rewards of each sample of a batch."""
    import torch

    with torch.no_grad():
        columns = {name: score(batch.scene, batch.prompts, batch.rng).tolist() for name, score in scores.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(batch.prompts))]


def save(scene: Any, options: Sample, stem: str) -> list[str]:
    """Write one scene's files; returns their names."""
    return [path.name for path in _written(scene.to("cpu"), options, options.out / stem)]


def _written(scene: Any, options: Sample, stem: Path) -> Iterator[Path]:
    from align3d.scenes.pictures import save_turntable, save_views, turntable
    from align3d.scenes.ply import write_ply

    def named(suffix: str) -> Path:
        return stem.with_name(stem.name + suffix)

    write_ply(named(".ply"), scene)
    yield named(".ply")
    save_views(named(".png"), scene, size=options.size)
    yield named(".png")
    if options.frames:
        save_turntable(named(".webp"), turntable(scene, options.frames, options.size))
        yield named(".webp")


def shown(rewards: dict[str, float]) -> str:
    """Rewards for people to read."""
    return "  ".join(f"{name} {value:.4g}" for name, value in rewards.items())
