"""Schedules against tables and closed forms; conversions by round trip."""

from fractions import Fraction

import pytest
import torch

from align3d.diffusion.schedule import (
    DiscreteVP,
    Flow,
    add_noise,
    bcast,
    eps_from_flow,
    eps_from_v,
    eps_from_x0,
    v_from_eps,
    x0_from_eps,
)

F64 = torch.float64
SCHEDULES = [DiscreteVP(), DiscreteVP(kind="scaled_linear", beta_start=8.5e-4), DiscreteVP(kind="cosine"), Flow()]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_twenty_steps_visit_the_published_entries() -> None:
    schedule = DiscreteVP()
    want = [*range(999, 548, -50), *range(500, -1, -50)]
    assert schedule.index(schedule.times(20)).tolist() == want
    assert schedule.index(torch.tensor(0.5)).item() == 500  # halves to even


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_step_count_rounds_exactly(dtype: torch.dtype) -> None:
    schedule = DiscreteVP()
    for steps in range(1, 101):
        times = schedule.times(steps, dtype)
        want = [round(Fraction(999 * k, steps)) for k in range(steps, -1, -1)]
        assert schedule.index(times).tolist() == want, steps
        assert times.dtype == dtype and times[0] == 1 and times[-1] == 0


def test_noise_levels_match_the_published_table() -> None:
    schedule = DiscreteVP()
    t = schedule.times(20, F64)
    ratio = schedule.sigma(t) / schedule.alpha(t)
    want = {0: 157.40727, 1: 96.17609, 9: 4.54124, 10: 3.44297, 18: 0.34226, 19: 0.17601, 20: 0.010001}
    for step, value in want.items():
        # the published values come from float32 tables: 1 - alpha_bar is good to 1e-7 / 1e-4 at the last entry
        assert ratio[step].item() == pytest.approx(value, rel=1e-4)


def test_small_noise_levels_keep_their_digits() -> None:
    sigma = DiscreteVP(beta_start=1e-12).sigma(torch.zeros((), dtype=F64))
    assert sigma.item() == pytest.approx(1e-6, rel=1e-12)  # 1 - (1 - 1e-12) in float64 keeps 4 digits


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_tables_match_diffusers(kind: str) -> None:
    from diffusers import DDPMScheduler

    name = {"cosine": "squaredcos_cap_v2"}.get(kind, kind)
    theirs = DDPMScheduler(beta_schedule=name, beta_start=1e-4, beta_end=0.02).alphas_cumprod.double()
    t = torch.arange(1000, dtype=F64) / 999
    torch.testing.assert_close(DiscreteVP(kind=kind).alpha(t) ** 2, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_levels_are_monotone_and_in_the_type_of_t(schedule: object, dtype: torch.dtype) -> None:
    t = schedule.times(50, dtype)
    a, b = schedule.alpha(t), schedule.sigma(t)
    assert a.dtype == b.dtype == dtype and a.shape == b.shape == t.shape
    assert (a.diff() > 0).all() and (b.diff() < 0).all() and (a > 0).all() and (b >= 0).all()
    whole = a + b if isinstance(schedule, Flow) else a**2 + b**2
    torch.testing.assert_close(whole, torch.ones_like(t), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert schedule.alpha(t[3]).shape == ()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [torch.tensor([0.3, 0.95], dtype=F64), torch.tensor(0.6, dtype=F64)])
def test_round_trips(schedule: object, t: torch.Tensor) -> None:
    x0, eps = draw(2, 3, 5), draw(2, 3, 5, seed=1)
    x = add_noise(schedule, x0, eps, t)
    assert x.shape == x0.shape and (x != x0).all()
    torch.testing.assert_close(x0_from_eps(schedule, x, eps, t), x0)
    torch.testing.assert_close(eps_from_x0(schedule, x, x0, t), eps)
    if isinstance(schedule, Flow):
        torch.testing.assert_close(eps_from_flow(schedule, x, eps - x0, t), eps)
    else:
        v = bcast(schedule.alpha(t), x) * eps - bcast(schedule.sigma(t), x) * x0
        torch.testing.assert_close(eps_from_v(schedule, x, v, t), eps)
        torch.testing.assert_close(v_from_eps(schedule, x, eps, t), v)


def test_flow_at_full_noise_still_speaks_of_the_data() -> None:
    t = torch.ones(2)
    x0, eps = draw(2, 4).float(), draw(2, 4, seed=1).float()
    x = add_noise(Flow(), x0, eps, t)
    torch.testing.assert_close(x0_from_eps(Flow(), x, eps_from_flow(Flow(), x, eps - x0, t), t), x0, rtol=0, atol=1e-3)


def test_bcast() -> None:
    like = torch.zeros(2, 3, 4, 5)
    assert bcast(torch.tensor([1.0, 2.0]), like).shape == (2, 1, 1, 1)
    assert bcast(torch.tensor(1.0), like).shape == ()
    assert bcast(torch.zeros(2, dtype=F64), like).dtype == torch.float32


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: DiscreteVP(num_steps=1), "num_steps"),
        (lambda: DiscreteVP(beta_start=0.5, beta_end=0.1), "betas"),
        (lambda: DiscreteVP(beta_start=-0.5), "betas"),
        (lambda: DiscreteVP().times(0), "at least 1 step"),
        (lambda: Flow(alpha_min=0.0), "alpha_min"),
    ],
)
def test_bad_input(make: object, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_times_of_the_published_samplers():
    """Recorded from diffusers 0.32.0 as DiffSplat's inference configures it."""
    trailing = DiscreteVP(spacing="trailing")
    t = trailing.times(10, torch.float64)
    assert trailing.index(t)[:-1].tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99] and t[-1] == 0
    assert float(trailing.sigma(t[5]) / trailing.alpha(t[5])) == pytest.approx(3.4241368770599365, rel=1e-6)
    flow = Flow(shift=3.0, end=0.003 / 1.002)
    wanted = [1.0, 0.9003590941429138, 0.7511211037635803, 0.5029850602149963, 0.008928571827709675, 0.0]
    assert flow.times(5, torch.float64).tolist() == pytest.approx(wanted, abs=1e-7)
    assert Flow(shift=3.0).times(4).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_even_times_descend_up_to_the_number_of_steps_that_is_told():
    for size in (2, 3, 50, 1000):
        schedule = DiscreteVP(num_steps=size)
        entries = schedule.index(schedule.times(size - 1))
        assert len(entries.unique()) == size
        with pytest.raises(ValueError, match=f"linspace spacing takes at most {size - 1} steps, got {size}"):
            schedule.times(size)


@pytest.mark.parametrize("size", [2, 3, 6, 7, 50, 1000])
def test_trailing_times_descend_up_to_the_number_of_steps_that_is_told(size):
    trailing, most = DiscreteVP(num_steps=size, spacing="trailing"), 2 * size // 3
    for steps in {1, most // 2 or 1, most - 1 or 1, most}:
        assert (trailing.times(steps).diff() < 0).all()
    with pytest.raises(ValueError, match=f"at most {most} steps, got {most + 1}"):
        trailing.times(most + 1)


@pytest.mark.parametrize("options", [{"shift": 0.0}, {"end": 1.0}, {"end": -0.1}])
def test_times_that_do_not_descend_are_refused(options):
    with pytest.raises(ValueError, match="shift must be above 0 and end in"):
        Flow(**options)


def test_a_level_is_a_copy():
    schedule = DiscreteVP()
    t = torch.tensor(0.5, dtype=torch.float64)
    before = schedule.alpha(t).clone()
    schedule.alpha(t).mul_(2)
    assert torch.equal(schedule.alpha(t), before)
