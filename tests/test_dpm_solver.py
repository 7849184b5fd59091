"""The sampler of GaussianCube by itself: the published code's noise levels, steps and numbers of predictions."""

from pathlib import Path

import pytest
import tiny_gaussiancube as tiny
import torch

from align3d.diffusion.dpm_solver import Levels, Lost, adaptive, multistep
from align3d.diffusion.schedule import DiscreteVP
from align3d.models.gaussiancube_files import Objaverse, Objaverse10, OmniObject3D, ShapeNetCar, ShapeNetChair

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def published():
    return tiny.recorded()


@pytest.fixture(scope="module")
def levels():
    return Levels(Objaverse().schedule())


def counted(network, levels):
    """A denoiser that is told of noise as the published one, and for how many predictions each row was asked."""
    asked = torch.zeros(2, dtype=torch.long)

    def denoise(x, t, rows):
        asked[rows] += 1
        return network(x, (t - 1 / levels.num) * 1000)

    return denoise, asked


@pytest.mark.parametrize("part", [Objaverse, Objaverse10, OmniObject3D, ShapeNetCar, ShapeNetChair])
def test_levels_are_the_published_ones(published, part):
    levels = Levels(part().schedule())
    assert levels.num == int(published["levels"]) == 996
    at = torch.arange(1, levels.num + 1, dtype=torch.float64)[::90] / levels.num
    torch.testing.assert_close(levels.log_alpha(at), published["log_alpha"], rtol=1e-9, atol=0)
    t = torch.linspace(5e-4, 1, 301, dtype=torch.float64)
    torch.testing.assert_close(levels.time(levels.lam(t)), t, rtol=1e-12, atol=1e-12)
    assert bool((levels.lam(t).diff() < 0).all()), "the more noise, the less"


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", [5, 12])  # fewer than ten end with steps of lower order
def test_steps_of_a_given_number_are_the_published_ones(published, levels, order, steps):
    denoise, asked = counted(tiny.jumpy, levels)
    found = multistep(denoise, tiny.jumpy_noise(), levels, steps, order)
    torch.testing.assert_close(found, published[f"path_{order}_{steps}"], **CLOSE)
    assert asked.tolist() == [int(published[f"asked_{order}_{steps}"])] * 2 == [steps] * 2


def test_steps_that_adapt_themselves_are_the_published_ones(published, levels):
    """Rows of one batch as the published code takes each alone, steps that were too long among them."""
    denoise, asked = counted(tiny.jumpy, levels)
    found = adaptive(denoise, tiny.jumpy_noise(), levels)
    torch.testing.assert_close(found, published["path_adaptive"], **CLOSE)
    assert asked.tolist() == published["asked_adaptive"].tolist() == [48, 60]


def test_a_text_takes_the_published_steps(published, levels):
    """With a network, in float64, and guidance of the clean cube, which is that of the noise."""
    _, text, noise = tiny.inputs()
    network, both = tiny.network(tiny.TEXT).double(), torch.cat([text[:1], torch.zeros_like(text[:1])]).double()

    def guided(x, labels):
        seen, unseen = network(torch.cat([x, x]), torch.cat([labels, labels]), both)[:, None].unbind(0)
        return unseen + tiny.GUIDANCE["text"] * (seen - unseen)

    denoise, asked = counted(guided, levels)
    with torch.no_grad():
        found = adaptive(denoise, noise.double(), levels)
    torch.testing.assert_close(found, published["sample_text"], rtol=1e-7, atol=1e-7)
    assert int(asked[0]) == int(published["asked_text"]) == 58


def test_the_constants_are_the_published_ones():
    """The recorded paths hold each of them, too."""
    from align3d.diffusion import dpm_solver as found

    assert (found.CUT, found.END, found.FIRST, found.ABSOLUTE) == (-5.1, 1e-3, 0.05, 0.0078)
    assert (found.RELATIVE, found.SAFETY, found.CLOSE) == (0.05, 0.9, 1e-5)


def test_where_the_numbers_come_from_is_told():
    read = (Path(__file__).parent / "data" / "README-gaussiancube.md").read_text()
    assert all(f"`{name.split('_')[0]}" in read for name in tiny.recorded())


def known(schedule, mean, var):
    """The clean data of normal data, which a path from noise must end in: mean + deviation * noise."""

    def denoise(x, t, rows):
        levels = Levels(schedule)
        a, b = (f(t).reshape(-1, 1) for f in (levels.alpha, levels.sigma))
        return mean[rows] + a * var / (a**2 * var + b**2) * (x - a * mean[rows])

    return denoise


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_paths_end_where_they_must(kind):
    schedule = DiscreteVP(beta_end=0.03, kind=kind)
    levels, mean = Levels(schedule), torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double()
    denoise, start = known(schedule, mean, 0.25), torch.ones(2, dtype=torch.float64)
    a, b = levels.alpha(start)[:, None], levels.sigma(start)[:, None]
    want = mean + 0.5 * (noise - a * mean) / (a**2 * 0.25 + b**2).sqrt()
    errors = {}
    for order in (2, 3):
        for steps in (20, 40, 80):
            errors[order, steps] = float((multistep(denoise, noise, levels, steps, order) - want).abs().max())
    assert errors[2, 80] < errors[2, 40] < errors[2, 20] and errors[3, 80] < errors[3, 40]
    assert errors[2, 80] < 0.03 and errors[3, 80] < 0.03
    rough, close, closer = (
        float((adaptive(denoise, noise, levels, absolute=a, relative=r) - want).abs().max())
        for a, r in ((0.0078, 0.05), (1e-3, 5e-3), (1e-4, 5e-4))
    )
    assert closer < close < rough and closer < 2e-2
    with pytest.raises(Lost, match=r"non-finite prediction at time 1\.0") as lost:
        adaptive(lambda x, t, rows: torch.where(rows[:, None] == 1, torch.nan, x), noise, levels)
    assert lost.value.row == 1
    with pytest.raises(ValueError, match="order 2 or 3 and at least as many steps, got order 3, 2 steps"):
        multistep(denoise, noise, levels, 2, 3)
