"""The split of an update's time, by a clock that only the parts move on."""

from types import SimpleNamespace

import pytest
import torch
from toy import PROMPTS, ToyModel
from user_parts import redness

from align3d import timing
from align3d.loop import Loop
from align3d.methods.nabla import Nabla
from align3d.rewards.score import Scorer
from align3d.scenes.cameras import CameraSampling
from align3d.timing import Split, TimedModel
from align3d.trainer import Trainer
from align3d.types import BaseModel, Score


class Clocked:
    """Every look at the clock costs nothing; the parts say what they cost."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def costs(self, amount, function):
        def run(*args, **kwargs):
            self.now += amount
            return function(*args, **kwargs)

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clocked(monkeypatch)


def parts(clock, **options):
    """An update of the toy: a prediction costs 1, an encoding 0.01, a decoding 1000, a score 10000."""
    model = ToyModel(steps=5)
    model.predict = clock.costs(1.0, model.predict)
    model.encode = clock.costs(0.01, model.encode)
    model.decode = clock.costs(1000.0, model.decode)
    score = clock.costs(10_000.0, lambda scene, prompts, rng: scene.latents.flatten(1).mean(1))
    loop = Loop(batch_size=2, accumulate=options.pop("accumulate", 1))
    method = Nabla(beta=0.1, transitions=3, **{"merge": False, "chunk": 0, "scenes": 0} | options)
    run = Trainer.start(model, method, score, PROMPTS, loop)
    return run.update(0)


def test_every_call_counts_for_its_phase(clock):
    row = parts(clock)
    assert row["seconds_sample"] == pytest.approx(5 * 1.01)
    assert row["seconds_reference"] == row["seconds_adapter"] == pytest.approx(1.01)
    assert row["seconds_reward"] == pytest.approx(11_000)


def test_chunks_rollouts_and_the_way_through_the_network_add_up(clock):
    row = parts(clock, chunk=1, accumulate=2)
    assert row["seconds_sample"] == pytest.approx(2 * 5 * 1.01)
    assert row["seconds_reference"] == row["seconds_adapter"] == pytest.approx(6 * 1.01)
    assert row["seconds_reward"] == pytest.approx(6 * 11_000)
    assert parts(clock, jacobian=True)["seconds_adapter"] == pytest.approx(2 * 1.01)


def test_predictions_of_the_sampler_that_are_trained_count_for_the_adapter(clock):
    row = parts(clock, merge=True)
    assert row["seconds_sample"] == pytest.approx(2 * 1.01) and row["seconds_adapter"] == pytest.approx(3 * 1.01)
    assert row["seconds_reference"] == pytest.approx(1.01) and row["seconds_reward"] == pytest.approx(11_000)
    assert row["evaluations"] == 2 * (5 + 3)


def test_backward_counts_for_the_adapter_and_the_rest_for_nothing(clock, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", clock.costs(7.0, torch.Tensor.backward))
    monkeypatch.setattr(torch.optim.AdamW, "step", clock.costs(70.0, torch.optim.AdamW.step))
    assert parts(clock)["seconds_adapter"] == pytest.approx(8.01)


def test_phases_last_until_another_begins(clock):
    split = Split(torch.zeros(()))
    clock.now = 1.0
    for phase, until in (("sample", 3.0), ("sample", 4.0), ("reward", 9.0), (None, 100.0), ("sample", 101.0)):
        split.enter(phase)
        clock.now = until
    want = {"seconds_sample": 4.0, "seconds_reference": 0.0, "seconds_adapter": 0.0, "seconds_reward": 5.0}
    assert split.take() == want | {"evaluations": 0.0}
    clock.now = 200.0
    assert set(split.take().values()) == {0.0}


def test_every_row_of_every_prediction_is_an_evaluation(clock):
    """2 samples: 5 steps; 3 transitions by the reference and by the adapter, and the 2 inner ones by the Jacobian."""
    assert parts(clock)["evaluations"] == 2 * (5 + 3 + 3)
    assert parts(clock, chunk=1, accumulate=2)["evaluations"] == 2 * 2 * (5 + 3 + 3)
    assert parts(clock, jacobian=True)["evaluations"] == 2 * (5 + 3 + 3 + 2)


def test_a_timed_model_is_a_model_and_leaves_the_reference_again(clock):
    model = TimedModel(ToyModel(), Split(torch.zeros(())))
    assert isinstance(model, BaseModel)
    model.model.something = "own"
    assert model.something == "own"
    with pytest.raises(RuntimeError), model.reference(), model.reference():
        assert model.referring and not model.model.adapted
        raise RuntimeError
    assert not model.referring and model.model.adapted
    model.encode(PROMPTS)
    assert model.split.phase == "adapter"
    with torch.no_grad():
        model.encode(PROMPTS)
    assert model.split.phase == "sample"


def test_a_timed_score_is_a_score(clock):
    split, score = Split(torch.zeros(())), Scorer(redness, CameraSampling())
    timed = split.score(score)
    assert isinstance(timed, Score) and timed.reward is score.reward and timed.noise == 0
    assert not hasattr(timed, "nothing")
    bare = split.score(lambda scene, prompts, rng: torch.ones(len(prompts)))
    assert split.phase is None and bare(None, PROMPTS, None).sum() == 2 and split.phase == "reward"


def test_real_seconds_add_up():
    row = Trainer.start(
        ToyModel(), Nabla(beta=0.1), lambda scene, prompts, rng: scene.latents.sum((1, 2)), PROMPTS, Loop(batch_size=2)
    ).update(0)
    split = [row[f"seconds_{phase}"] for phase in timing.PHASES]
    assert all(value > 0 for value in split) and sum(split) <= row["seconds"]
