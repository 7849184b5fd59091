"""Methods and looks in two processes: the same run as in one with twice the batch, and both end together."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import steady
from pairs import alone_and_in_pair, run_script
from safetensors.torch import load_file
from toy import ToyModel as Gaussian
from toy import toy_score
from user_parts import ToyModel, redness

from align3d.conditions import Condition
from align3d.evaluate import evaluation_cameras
from align3d.loop import Loop, fit
from align3d.methods.ddpo import DDPO
from align3d.methods.draft import Draft
from align3d.methods.refl import ReFL
from align3d.rewards.combined import Combined, Term
from align3d.rewards.score import Scorer
from align3d.scenes.cameras import CameraSampling
from align3d.watch import Watching, best

PROMPTS = ["a red cube", "a longer prompt of a blue ball", "a cone"]
LOOP = Loop(updates=3, batch_size=8, learning_rate=0.05, warmup=0)
METHODS = {
    "draft": (Draft(last=2), 1),
    "draft copies": (Draft(copies=2), 1),
    "refl": (ReFL(), 1),
    "ddpo": (DDPO(inner_epochs=2, transitions=0.5, kl=0.1), 2),
}
OF_BATCH = ("reward_std", "dead", "ratio_min", "ratio_max")  # numbers of a batch that are no means over its samples


def learn(name: str, world: int) -> dict:
    """What a method makes of a toy with 16 numbers, on 8 rows in all."""
    method, group = METHODS[name]
    model, loop = Gaussian(steps=6, dtype=torch.float64), replace(LOOP, batch_size=8 // world, group=group)
    rows = fit(model, method, toy_score, PROMPTS, loop, progress=False)
    return {"weights": torch.cat([p.detach() for p in model.adapter.parameters()]).tolist(), "rows": steady(rows)}


def summed(world: int) -> dict:
    """What is made of a sum of rewards that is normalised by what all processes have seen."""
    model, loop = ToyModel(), replace(LOOP, batch_size=8 // world, learning_rate=0.02, group=2)
    model.steps = 4
    terms = {
        "red": Term(reward=redness, normalise="running", span=2.0, subset=1),
        "dark": Term(reward=darkness, weight=0.2, normalise="candidates", warmup=2),
    }
    score = Scorer(Combined(terms), CameraSampling(views=3, size=(12, 16)))
    rows = fit(model, Draft(), score, PROMPTS, loop, progress=False)
    weights = torch.cat([p.detach().flatten() for p in model.adapter.parameters()]).tolist()
    return {"weights": weights, "rows": steady(rows), "numbers": score.reward.numbers}


def darkness(views, prompts):
    """Minus the brightness."""
    return -views.rgb.mean((-3, -2, -1))


class Counted(Watching):
    """Knows how often it has sampled."""

    looks = 0

    def measured(self, model, seeds):
        self.looks += 1
        return super().measured(model, seeds)


def watched(out: Path, world: int, limit: float | None = None, resume: bool = False) -> dict:
    """A run with a look after every update, until one sees more red than the limit."""
    model, score = ToyModel(), Scorer(redness, CameraSampling(views=3, size=16))
    model.steps = 4
    stop = () if limit is None else (Condition("redness", ">", limit),)
    cameras = evaluation_cameras(16, [60.0, 180.0, 300.0])
    watch = Counted(out, tuple(PROMPTS), (0, 1), {"redness": score.reward}, None, cameras, every=1, conditions=stop)
    loop = replace(LOOP, updates=4, batch_size=4 // world, learning_rate=0.02)
    rows = fit(model, Draft(), score, PROMPTS, loop, out=out, watch=watch, resume=resume, progress=False)
    return {"rows": steady(rows), "looks": watch.looks}


def process(root: Path, rank: int, world: int) -> None:
    """One of `world` processes."""
    found = {name: learn(name, world) for name in METHODS} | {"summed": summed(world)}
    if world == 1:
        reds = [row["watch_redness"] for row in watched(root / "free", world)["rows"]]
        (root / "limit").write_text(str((reds[1] + reds[2]) / 2))
    limit = float((root / "limit").read_text())
    found["watched"] = watched(root / f"watched-{world}", world, limit)
    found["again"] = watched(root / f"watched-{world}", world, limit, resume=True)
    (root / f"{world}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder with all that came of it."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    folder = tmp_path_factory.mktemp("processes")
    run_script(__file__, folder)
    return folder


@pytest.fixture
def found(root):
    """By name of what was done: what one process says, and each of two."""
    each = [json.loads((root / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json")]
    return {name: [one[name] for one in each] for name in each[0]}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_as_in_one_process_with_twice_the_batch(found, name):
    one, first, second = found[name]
    assert first == second and len(first["rows"]) == LOOP.updates
    assert first["weights"] == pytest.approx(one["weights"], abs=1e-6)
    assert all(abs(weight) > 1e-3 for weight in one["weights"])
    for row, other in zip(one["rows"], first["rows"], strict=True):
        assert other.keys() == row.keys() and row["grad_norm"] > 0
        if name == "refl":  # a batch goes on until its last sample has stopped, so small ones have fewer steps
            assert 0 < other.pop("evaluations") <= row.pop("evaluations")
        means = {key: value for key, value in row.items() if key not in OF_BATCH}
        assert {key: other[key] for key in means} == pytest.approx(means, rel=1e-4, abs=1e-6)


def test_a_sum_is_normalised_by_what_all_processes_have_seen(found):
    one, first, second = found["summed"]
    assert first == second
    assert first["numbers"] == pytest.approx(one["numbers"], rel=1e-5)
    assert first["weights"] == pytest.approx(one["weights"], abs=1e-5)
    assert [row["term_red"] for row in first["rows"]] == pytest.approx([row["term_red"] for row in one["rows"]])
    assert first["numbers"]["red/mean"] != first["numbers"]["red/first_mean"]


def test_the_first_process_alone_looks(found):
    assert [run["looks"] for run in found["watched"]] == [2 + 3, 2 + 3, 0], "twice at the base model"


def test_a_condition_ends_both_processes_after_the_same_update(found):
    one, first, second = (run["rows"] for run in found["watched"])
    assert len(one) == len(first) == len(second) == 3
    for row, other in zip(one, first, strict=True):
        assert other["watch_redness"] == pytest.approx(row["watch_redness"], abs=1e-5)
        assert other["watch_diversity"] == pytest.approx(row["watch_diversity"], rel=1e-2)
    assert second == [{key: row[key] for key in row if not key.startswith("watch_")} for row in first]
    one, first, second = found["again"]
    assert [len(run["rows"]) for run in (one, first, second)] == [3, 3, 0]  # it has them in memory alone
    assert not any(run["looks"] for run in (one, first, second))


def test_the_best_adapter_is_the_same_in_any_number_of_processes(found, root):
    one, first = (root / f"watched-{world}" for world in (1, 2))
    rows = found["watched"][1]["rows"]
    assert best(one)["step"] == best(first)["step"] == 2, "the look that ended the run is out"
    assert best(first)["value"] == rows[1]["watch_redness"] > rows[0]["watch_redness"]
    for folder in ("best", "adapter"):
        mine, other = (load_file(out / folder / "adapter_model.safetensors") for out in (one, first))
        for name in mine:
            torch.testing.assert_close(other[name], mine[name], rtol=0, atol=1e-5)
    kept = load_file(first / "best/adapter_model.safetensors")
    assert all((kept[name] - other[name]).abs().max() > 1e-3 for name in kept)


if __name__ == "__main__":
    alone_and_in_pair(process, Path(sys.argv[1]))
