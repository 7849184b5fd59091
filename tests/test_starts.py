"""Where an optimisation of Gaussians starts."""

from pathlib import Path

import pytest
import torch
from closed_prior import EllipsoidPrior

from align3d import registry
from align3d.generate import generate
from align3d.models.embedded import Embedded
from align3d.rng import Streams
from align3d.scenes.cameras import orbit
from align3d.scenes.files import MAIN, READERS
from align3d.scenes.rings import Ring
from align3d.starts import FAINT, STARTS, GaussianStart, Stage, Start, generated
from align3d.types import Scene, Subject

RING = Ring(views=3, size=12)


def stage(prompt="a red chair", seed=0):
    return Stage(EllipsoidPrior(size=12, views=3), RING, prompt=prompt, seed=seed)


@pytest.fixture(scope="module")
def chair():
    return GaussianStart(start=Path("embedded")).subject(stage())


def test_the_shipped_generator_samples_the_prompt_first(chair):
    sampled = next(generate(Embedded().load(), ["a red chair"], [0])).scene
    cameras = orbit(torch.tensor([[0.0, 130.0, 250.0]]), torch.full((1, 3), 20.0), height=40, width=56)
    with torch.no_grad():
        mine, whole = (scene.render(cameras).rgb for scene in (chair.scene(), sampled))
    assert 1000 < len(chair.trained) < sampled.means.shape[1] / 2, "what holds nothing is left out"
    assert (mine - whole).abs().mean() < 2e-3 and (1 - whole).abs().mean() > 0.05
    assert float(chair.scene().opacities.detach().min()) > 0.9 * FAINT


def test_it_depends_on_prompt_and_seed_alone(chair):
    again = generated(stage())
    assert torch.equal(again.means[0], chair.trained.means.detach())
    assert not torch.equal(generated(stage(seed=1)).means[:, :500], again.means[:, :500])
    assert not torch.equal(generated(stage("a blue mug")).means[:, :500], again.means[:, :500])


def test_it_can_be_edited_and_has_gradients(chair):
    assert chair.source is not None and not any(p.requires_grad for p in chair.original.parameters())
    look = chair.look(Streams.batch(0, 0, 0, 2))
    for i in range(2):
        grads = torch.autograd.grad(look.latents[i].square().sum(), list(chair.trained.parameters()), retain_graph=True)
        assert all(torch.isfinite(grad).all() and grad.abs().max() > 0 for grad in grads)


def test_files_that_are_none_are_refused():
    with pytest.raises(FileNotFoundError, match=r"no scene file nothing\.ply; give a .ply file, .* or `embedded`"):
        GaussianStart(start=Path("nothing.ply")).subject(stage())


@pytest.mark.parametrize("name", STARTS)
def test_every_kind_of_scene_keeps_its_promises(name):
    """What previews, film and files ask for: a scene of one row, its pictures where it is flat, and a main file."""
    start = registry.load(STARTS, name)()
    assert isinstance(start, Start)
    one = start.subject(stage())
    with torch.no_grad():
        scene, files = one.scene(), list(one.files())
    assert isinstance(one, Subject) and isinstance(scene, Scene) and (name == "picture" or scene.to("cpu"))
    assert getattr(scene, "flat", False) == (name == "picture")
    if name == "picture":
        assert scene.rgb.shape == (1, 3, 3, 12, 12) and files[0] == "picture-0.png"
    else:
        assert files[0] in [f"{MAIN}{end}" for end in READERS]
