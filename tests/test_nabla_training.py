"""Nabla-R2D3 in training: its strength is measured, the reward rises, the model stays; and what is refused."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from method_checks import check_scores_that_cannot_train_are_refused, moved, streams, train
from torch import Tensor
from toy import PROMPTS, ToyModel, ToyScene, toy_reward, toy_score

from align3d.diffusion.sampler import NonFiniteError
from align3d.diffusion.schedule import DiscreteVP
from align3d.methods.nabla import Nabla
from align3d.rng import Streams


def test_prepare_measures_beta_without_the_adapter() -> None:
    times = DiscreteVP().times(20)
    prompts, rng = PROMPTS * 4, streams(8)
    method = Nabla(rho=0.3).prepare(ToyModel(), toy_score, times, prompts, rng)
    assert method.beta > 0 and method == Nabla(rho=0.3).prepare(ToyModel(), toy_score, times, prompts, rng)
    for other in (moved(torch.float32), ToyModel()):  # resumed runs find the same, with or without chunks
        assert Nabla(rho=0.3, chunk=0).prepare(other, toy_score, times, prompts, rng).beta == method.beta
        assert other.adapted
    doubled = Nabla(rho=0.6).prepare(ToyModel(), toy_score, times, prompts, rng)
    assert doubled.beta == pytest.approx(2 * method.beta, rel=1e-3)
    set_by_hand = Nabla(beta=5.0)
    assert set_by_hand.prepare(ToyModel(), toy_score, times, prompts, rng) is set_by_hand
    pulls = [
        list(method.losses(ToyModel(), toy_score, times, prompts, streams(8, step=i)))[-1].metrics["pull"]
        for i in range(5)
    ]
    assert torch.stack(pulls).mean().item() == pytest.approx(0.3, rel=0.2)
    for options in ({"jacobian": True}, {"gradient_at": "x0"}, {"weight": "sigma"}):
        other = Nabla(rho=0.3, **options).prepare(moved(torch.float32), toy_score, times, prompts, rng)
        assert other == Nabla(rho=0.3, **options).prepare(ToyModel(), toy_score, times, prompts, rng)


@pytest.mark.parametrize("options", [{}, {"jacobian": True}, {"gradient_at": "x0", "chunk": 0}])
def test_reward_rises_on_held_out_seeds_and_the_model_stays(options: dict) -> None:
    def trained(updates: int, rho: float) -> ToyModel:
        times = DiscreteVP().times(8)
        method = Nabla(rho=rho, **options).prepare(ToyModel(), toy_score, times, PROMPTS * 4, streams(8))
        return train(method, updates)

    half, model, weaker = trained(30, 0.6), trained(60, 0.6), trained(30, 0.06)
    before, after = toy_reward(ToyModel()), toy_reward(model)
    assert after > before + 0.05
    # At rest each prediction is rho away from the reference's, so the shift has a limit; ascent alone has none.
    shifts = [float(one.adapter.bias.detach().mean()) for one in (half, model)]
    assert shifts[0] > 0 and shifts[1] < 1.3 * shifts[0] and shifts[1] < 1.0
    assert before < toy_reward(weaker) < after


def test_dead_rows_are_counted() -> None:
    def flat_for_the_first(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        live = torch.tensor([p != PROMPTS[0] for p in prompts]).float()
        return toy_score(scene, prompts, rng) * live

    model = ToyModel()
    *_, step = Nabla(beta=1.0).losses(model, flat_for_the_first, model.schedule.times(5), PROMPTS, streams())
    assert step.metrics["dead"] == 4 and step.dead == PROMPTS[:1] and step.loss.isfinite()


@pytest.mark.parametrize("where", ["reward", "reward gradient"])
def test_a_nan_in_the_reward_names_the_prompt(where: str) -> None:
    def broken(scene: ToyScene, prompts: Sequence[str], rng: Streams) -> Tensor:
        rows = []
        for z, prompt in zip(scene.latents, prompts, strict=True):
            if prompt == PROMPTS[0]:
                rows.append(z.mean())
            else:  # not a number, or finite with an infinite slope
                rows.append(z.mean() * float("nan") if where == "reward" else (0 * z.mean()).sqrt())
        return torch.stack(rows)

    model = ToyModel()
    with pytest.raises(NonFiniteError, match=rf"^non-finite {where} for prompt 'a blue dog' at time 0\.\d+"):
        next(Nabla(beta=1.0).losses(model, broken, model.schedule.times(5), PROMPTS, streams()))


def test_scores_that_cannot_train_are_refused() -> None:
    check_scores_that_cannot_train_are_refused(Nabla(beta=1.0))


def test_beta_must_be_known() -> None:
    model = ToyModel()
    times = model.schedule.times(5)
    with pytest.raises(ValueError, match="prepare"):
        next(Nabla().losses(model, toy_score, times, PROMPTS, streams()))
    with pytest.raises(ValueError, match="no gradient on any"):
        Nabla().prepare(model, lambda scene, p, rng: 0 * scene.latents.flatten(1).sum(1), times, PROMPTS, streams())


BAD = [
    ("beta", 0.0),
    ("beta", float("nan")),
    ("rho", -1.0),
    ("weight_max", 0.0),
    ("max_norm", 0.0),
    ("chunk", -1),
    ("scenes", -1),
]
BAD += [("transitions", 1), ("inner_epochs", 0), ("drift", -1.0), ("eta", 0.0), ("eta", 1.5)]


@pytest.mark.parametrize("name, value", BAD)
def test_bad_options_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Nabla(**{name: value})


def test_import_loads_no_torch() -> None:
    code = "import sys, align3d.methods.nabla as n; n.Nabla(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_jacobian_at_the_sample() -> None:
    with pytest.raises(ValueError, match="jacobian needs gradient_at"):
        Nabla(gradient_at="x0", jacobian=True)
