"""Sums of rewards in training: statistics along a run, going on from a checkpoint, what cannot be trained on."""

import json
import math
from dataclasses import replace

import pytest
import torch
from closed_prior import PixelSubject
from fakes import steady
from user_parts import ToyModel, redness

from align3d.log import read_metrics
from align3d.loop import Loop, fit
from align3d.methods.candidates import Explore
from align3d.methods.ddpo import DDPO
from align3d.methods.draft import Draft
from align3d.methods.nabla import Nabla
from align3d.methods.sds import SDS
from align3d.methods.weighting import Weighting
from align3d.reward_memory import MEASURED
from align3d.rewards.combined import Combined, Term
from align3d.rewards.jpeg import JPEGCompress
from align3d.rewards.score import Scorer
from align3d.scenes.cameras import CameraSampling

PROMPTS = ["a red cup", "a blue cup"]


NORMALISED = {
    "red": Term(reward=redness, normalise="running", span=3.0, subset=2),
    "green": Term(reward=lambda views, prompts: views.rgb[:, :, 1].mean((-2, -1)), weight=0.1, warmup=3),
}
CAMERAS = CameraSampling(views=3, size=(12, 16))
LOOP = Loop(updates=4, batch_size=4, learning_rate=0.02, warmup=0, checkpoint_every=1)


def toy():
    model = ToyModel()
    model.steps = 4
    return model


def train(loop, terms=NORMALISED, method=None, **options):
    model = toy()
    score = Scorer(Combined(terms), CameraSampling(views=3, size=(12, 16)))
    rows = fit(model, method or Draft(), score, ["a red cube", "a cone"], loop, progress=False, **options)
    return score.reward, rows, model


def test_a_run_goes_on_with_its_numbers_to_the_same_bits(tmp_path):
    config = {"loop": {}}
    whole, rows, model = train(LOOP, out=tmp_path / "whole", config=config)
    train(replace(LOOP, updates=2), out=tmp_path / "parts", config=config)
    parts, again, other = train(LOOP, out=tmp_path / "parts", resume=True, config=config)
    assert steady(rows) == steady(again) and whole.numbers == parts.numbers
    assert all(torch.equal(a, b) for a, b in zip(model.adapter.parameters(), other.adapter.parameters(), strict=True))
    state = json.loads((tmp_path / "whole/checkpoints/step-000004/state.json").read_text())
    assert state["reward"] == whole.numbers
    assert whole.numbers["red/mean"] != whole.numbers["red/first_mean"]
    logged = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert all(math.isfinite(row["term_red"]) and 0 < row["term_green"] < 1 for row in logged)


def test_it_does_not_matter_how_an_update_is_split():
    """In one batch or two: the same numbers, and so the same adapter."""
    whole, rows, model = train(LOOP)
    parts, others, other = train(replace(LOOP, batch_size=2, accumulate=2))
    assert parts.numbers == pytest.approx(whole.numbers, rel=1e-5)
    for row, twin in zip(rows, others, strict=True):
        assert twin["term_red"] == pytest.approx(row["term_red"], rel=1e-4)
    for a, b in zip(model.adapter.parameters(), other.adapter.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_normalisation_divides_the_gradient_by_the_spread():
    raw, running = ({"red": Term(reward=redness, normalise=how)} for how in ("none", "running"))
    one = replace(LOOP, updates=1, max_grad_norm=0.0)
    plain, scaled = train(one, raw), train(one, running)
    std = scaled[0].numbers["red/first_std"]
    assert scaled[1][0]["grad_norm"] * std == pytest.approx(plain[1][0]["grad_norm"], rel=1e-4)


def test_ddpo_trains_on_what_is_normalised_within_candidates():
    terms = {"red": Term(reward=redness, normalise="candidates"), "jpeg": Term(reward=JPEGCompress(), weight=0.01)}
    reward, rows, _ = train(replace(LOOP, group=2), terms, DDPO())
    assert not reward.differentiable and len(rows) == LOOP.updates
    assert all(row["grad_norm"] > 0 for row in rows)


def test_only_what_is_normalised_is_measured():
    """Samples before training cost nothing where nothing is made of them: a judge may want money for each."""
    asked = []

    def judge(views, prompts):
        asked.append(len(prompts))
        return views.rgb.mean((-3, -2, -1))

    terms = {"red": Term(reward=redness, normalise="running"), "judge": Term(reward=judge, weight=0.1)}
    reward, rows, _ = train(replace(LOOP, updates=1), terms)
    assert sum(asked) == LOOP.batch_size, "the update's own"
    assert math.isfinite(rows[0]["term_judge"]) and rows[0]["grad_norm"] > 0
    assert reward.numbers["red/first_std"] > 0
    asked.clear()
    train(replace(LOOP, updates=1), terms | {"judge": Term(reward=judge, weight=0.1, normalise="running")})
    assert sum(asked) == LOOP.batch_size + MEASURED, "asked for"


def test_nabla_measures_beta_on_whole_groups():
    """A group of 3 does not divide the 8 samples that it would otherwise take."""
    terms = {"red": Term(reward=redness, normalise="candidates")}
    _, rows, _ = train(replace(LOOP, updates=1, batch_size=9, group=3), terms, Nabla(scenes=2))
    assert rows[0]["grad_norm"] > 0


@pytest.mark.parametrize(
    ("terms", "group", "method", "said"),
    [
        (
            {"red": Term(reward=redness, normalise="candidates")},
            1,
            Draft(),
            "reward red is normalised within .* loop.group",
        ),
        ({"red": Term(reward=redness, subset=4)}, 1, Draft(), "reward red: a subset of 4 views .* there are 3"),
        (
            {"red": Term(reward=redness), "jpeg": Term(reward=JPEGCompress())},
            1,
            Draft(),
            "Draft needs the gradient of the reward, and reward jpeg",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_any_work(tmp_path, terms, group, method, said):
    with pytest.raises(ValueError, match=said):
        score = Scorer(Combined(terms), CameraSampling(views=3, size=16))
        fit(toy(), method, score, PROMPTS, replace(LOOP, group=group), out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_reward_that_never_differs_cannot_be_normalised():
    constant = Term(reward=lambda views, prompts: 0.3 + 0 * views.rgb.mean((-3, -2, -1)), normalise="running")
    with pytest.raises(ValueError, match=r"reward red cannot be normalised: it said 0\.3 of every sample"):
        train(LOOP, {"red": constant})


@pytest.mark.parametrize("options", [{}, {"chunk": 0}, {"gradient_at": "x0"}, {"scenes": 1}])
def test_nabla_counts_its_samples_once(options, monkeypatch):
    counts = []
    advance = Combined.advance

    def counted(self, seen):
        counts.append(seen.get("red/count"))
        return advance(self, seen)

    monkeypatch.setattr(Combined, "advance", counted)
    train(replace(LOOP, updates=1), {"red": Term(reward=redness)}, Nabla(beta=1.0, **options))
    assert counts[-1] == LOOP.batch_size


def test_what_another_run_has_left_does_not_count():
    total = Combined({"red": Term(reward=redness)})

    def first_row():
        return fit(toy(), Draft(), Scorer(total, CAMERAS), ["a cone"], replace(LOOP, updates=1), progress=False)[0]

    row = first_row()
    total.running["red"].add(torch.full((7,), 100.0))
    assert first_row()["term_red"] == row["term_red"] < 10


def test_running_numbers_need_a_generator():
    total = Combined({"red": Term(reward=red_of_pictures, normalise="running")})
    with pytest.raises(ValueError, match="reward red is normalised by the samples that a run has seen, and a scene"):
        fit(PixelSubject(1), SDS(), Scorer(total, CAMERAS), ["red"], replace(LOOP, updates=1), progress=False)


def test_noises_of_a_scene_are_candidates():
    total = Combined({"red": Term(reward=red_of_pictures, normalise="candidates")})
    method = SDS(weighting=Weighting("weighted"), explore=Explore(4, guidance=1.0))
    rows = fit(
        PixelSubject(1), method, Scorer(total, CAMERAS), ["red"], replace(LOOP, updates=2, batch_size=1), progress=False
    )
    assert rows[-1]["reward"] == pytest.approx(0, abs=1e-6) and rows[-1]["reward_std"] == pytest.approx(1, rel=1e-3)


def red_of_pictures(views, prompts):
    return views.rgb[:, :, 0].mean((-2, -1))
