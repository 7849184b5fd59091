"""GaussianCube's pictures: its sampler with a network, against the published code; rows, progress, what goes wrong."""

from dataclasses import replace
from itertools import pairwise

import pytest
import tiny_gaussiancube as tiny
import torch
from tiny_gaussiancube import PARTS, PROMPTS, inputs, load

from align3d.diffusion.sampler import NonFiniteError, rollout, sample, sampling_times
from align3d.models.gaussiancube import CubeCond
from align3d.rng import Streams


@pytest.fixture(scope="module")
def published():
    return tiny.recorded()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_all(tmp_path_factory, side=4)  # quicker


@pytest.fixture(params=PARTS)
def kind(request):
    return request.param


def noises():
    """Two small ones, as the network takes cubes of any even sides."""
    return torch.cat([inputs()[0][:1, :, :4, :4, :4], 3 * inputs()[2][..., :4, :]])


def test_samples_are_the_published_ones(folders, published, kind):
    """By the model's own sampler, whose network is in float32; in float64: test_dpm_solver.py."""
    _, text, noise = inputs()
    model = load(folders, kind, guidance=tiny.GUIDANCE[kind], labels="published")
    cond = {"text": CubeCond(text=text[:1]), "class": CubeCond(classes=torch.tensor([1])), "nothing": CubeCond()}[kind]
    with torch.no_grad():
        found = model.solve(noise.double(), cond)
        exact = None if kind == "text" else replace(model, labels="exact").solve(noise.double(), cond)
    loose = 5e-3 if kind == "text" else 5e-4  # the length of adaptive steps goes by differences in the last digits
    torch.testing.assert_close(found, published[f"sample_{kind}"], rtol=0, atol=loose)
    assert exact is None or (exact - found).abs().max() > 0.01, "correct labels are others"


def test_a_sampler_that_cannot_go_on_names_the_prompt(folders):
    model = load(folders, "text", guidance=1.0)
    clean = model.clean

    def broken(x, labels, cond):
        x0 = clean(x, labels, cond)
        return torch.where((cond.text == cond.text[:1]).flatten(1).all(1).view(-1, 1, 1, 1, 1), x0, torch.nan)

    model.clean = broken
    with torch.no_grad(), pytest.raises(NonFiniteError, match=r"at time 1\.0000 for prompt 'the dog'"):
        sample(model, PROMPTS["text"], sampling_times(model), Streams.batch(0, 0, 0, 2))


@pytest.mark.parametrize("kind", ["class"])
def test_a_sample_that_is_not_finite_names_the_prompt(folders, kind):
    """In the last of a given number of steps, too, after which no prediction looks at it."""
    model = load(folders, kind, guidance=1.0)
    clean, last = model.clean, []

    def broken(x, labels, cond):
        last.append(bool((labels < 100).all()))
        rows = torch.tensor([False, True]) if last[-1] else torch.tensor([False, False])
        return torch.where(rows.view(-1, 1, 1, 1, 1), torch.nan, clean(x, labels, cond))

    model.clean = broken
    with torch.no_grad(), pytest.raises(NonFiniteError, match=r"non-finite sample for prompt '4' at the end"):
        sample(model, PROMPTS[kind], sampling_times(model), Streams.batch(0, 0, 0, 2))
    assert last == [False] * 11 + [True]


def test_rows_do_not_mix(folders, kind):
    """Alone or together, also where the sampler chooses its steps for each."""
    model = load(folders, kind)
    model.guidance = 1.0 if kind == "text" else 1.5
    cond = model.encode(PROMPTS[kind])
    with torch.no_grad():
        both = model.solve(noises(), cond)
        alone = model.solve(noises()[1:], cond.rows(torch.tensor([1])))
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_sampling_tells_how_far_it_is(folders, kind):
    """From nothing to nearly everything, and never backwards but for a step that was too long; it changes nothing."""
    model, told = load(folders, kind, guidance=1.0), []
    cond, noise = model.encode(PROMPTS[kind]), noises()
    with torch.no_grad():
        found = model.solve(noise, cond, told.append)
        torch.testing.assert_close(found, model.solve(noise, cond), rtol=0, atol=0)
    assert told[0] == 0 and 0.8 < told[-1] <= 1 and all(0 <= share <= 1 for share in told)
    if kind == "text":
        assert sum(b < a - 1e-6 for a, b in pairwise(told)) < len(told) / 3
    else:
        assert told == pytest.approx([i / len(told) for i in range(len(told))])


def test_pictures_are_sampled_by_the_published_sampler_unless_asked_otherwise(folders, kind):
    made = {}
    for sampler in ("published", "ancestral"):
        model = load(folders, kind, sampler=sampler, steps=3, guidance=1.0)
        rng = Streams.batch(0, 0, 0, 2)
        times = sampling_times(model)
        with torch.no_grad():
            made[sampler] = sample(model, PROMPTS[kind], times, rng)
            steps = rollout(model, PROMPTS[kind], times, rng).x[:, -1]
        assert torch.equal(made[sampler], steps) == (sampler == "ancestral")
    assert made["published"].shape == made["ancestral"].shape == (2, 14, 4, 4, 4)
