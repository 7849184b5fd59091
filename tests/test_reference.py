"""`compat="reference"` against numbers of the published code, which ran on stub networks (tests/data/rewardsds)."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from closed_prior import Pictures

from align3d.diffusion.schedule import DiscreteVP, bcast, eps_from_v
from align3d.loop import check
from align3d.methods import reference
from align3d.methods.bridge import Bridge
from align3d.methods.candidates import Explore
from align3d.methods.distillation import Distillation
from align3d.methods.nfsd import NFSD
from align3d.methods.recon import Recon
from align3d.methods.reference import Published
from align3d.methods.sds import SDS
from align3d.methods.vsd import VSD
from align3d.methods.weighting import KINDS, Weighting
from align3d.rng import Streams
from align3d.types import Look

NUMBERS = json.loads((Path(__file__).parent / "data" / "rewardsds" / "numbers.json").read_text(encoding="utf-8"))
PROMPT, N = "a red car", 5
BRIDGE = Bridge()
KNOWN = {
    PROMPT: (0.5, 0.1),
    "": (0.3, -0.1),
    PROMPT + BRIDGE.target: (0.55, 0.15),
    PROMPT + BRIDGE.source: (0.45, 0.02),
    NFSD().bad: (0.2, 0.05),
}  # the two numbers of each text in the stub networks


def series(shape, factor, start):
    """The latents and noises of the recording."""
    numbers = [math.sin(factor * i + start) for i in range(math.prod(shape))]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape).float().double()


class Stub:
    """A subject of the recording's networks: B rows of V views of 4 x 2 x 3 latents."""

    steps = 50
    schedule = DiscreteVP(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latent_shape = (4, 2, 3)

    def __init__(self, z):
        self.z = torch.nn.Parameter(z.clone())
        self.p = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.adapter = torch.nn.Module()
        self.adapter.z, self.adapter.p = self.z, self.p
        self.asked = []

    def look(self, rng):
        return Look(self.z)

    def encode(self, prompts):
        return torch.tensor([KNOWN[text] for text in prompts], dtype=torch.float64)

    def predict(self, x, t, cond, cameras):
        index = self.schedule.index(t)
        self.asked.append(int(index[0]))
        k, b = (bcast(column, x) for column in cond.T)
        eps = k * x.tanh() + 0.6 * x + b * (1 + bcast(index.double(), x) / 1000)
        return eps + 0.2 * x.mean(1, keepdim=True) if x.shape[1] > 1 else eps

    def phi(self, x, t, cond, cameras):
        v = self.p * x.tanh() + 0.2 * bcast(self.schedule.index(t).double(), x) / 1000
        return eps_from_v(self.schedule, x, v, t)

    def picture(self, latents, cameras, fast=False):
        return Pictures(latents.tanh()[:, :, :3] / 2 + 0.5)


def liking(scene, prompts, rng):
    """The recording's reward, the mean over views."""
    return (8 * series(scene.rgb.shape[2:], 1.1, 0.2) * scene.rgb).sum((-3, -2, -1)).mean(1)


Z2, Z3 = 0.8 * series((1, 1, 4, 2, 3), 0.7, 0.3), 0.8 * series((2, 4, 4, 2, 3), 0.37, 0.3)
NOISE = {1: 1.4 * series((N, *Z2.shape[1:]), 1.3, 0.5), 4: 1.4 * series((2 * N, *Z3.shape[1:]), 1.3, 0.5)}


@pytest.fixture
def drawn(monkeypatch):
    """Sets the level and the noises of the next update."""

    def set_to(index):
        def levels(self, rng, like):
            return torch.full((len(like),), index / 999, dtype=torch.float64)

        monkeypatch.setattr(Distillation, "levels", levels)
        monkeypatch.setattr(Explore, "noises", lambda self, num, rng, like: NOISE[like.shape[1]][: num * len(like)])
        monkeypatch.setattr(Streams, "normal", lambda *args, **options: 1.3 * series(Z2.shape, 2.1, 0.9))
        monkeypatch.setattr(reference, "level", lambda *args: torch.tensor(333 / 999, dtype=torch.float64))

    return set_to


def method(kind, weighting, **options):
    explore = Explore(1 if weighting == "none" else N, steps=15)
    return kind(compat="reference", weighting=Weighting(weighting), explore=explore, **options)


def update(way, z):
    """The subject, the loss and the gradient by the latents of one update."""
    subject, rows = Stub(z), len(z)
    (step,) = way.losses(subject, liking, torch.ones(2), [PROMPT] * rows, Streams.batch(0, 0, 0, rows))
    grads = torch.autograd.grad(step.loss, [subject.z, subject.p], allow_unused=True)
    return subject, step, grads


def near(mine, recorded):
    torch.testing.assert_close(mine.flatten(), torch.tensor(recorded, dtype=torch.float64), rtol=2e-5, atol=2e-5)


CASES = [(weighting, t) for weighting in KINDS for t in (501, 927)]
WAYS = {"sds": (SDS, {}), "bridge": (Bridge, {"stage_two": 0}), "vsd": (VSD, {"target": "v"})}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("weighting", "t"), CASES)
def test_gradients_in_2d(drawn, name, weighting, t):
    drawn(t)
    kind, options = WAYS[name]
    _, step, (by_z, by_p) = update(method(kind, weighting, **options), Z2)
    recorded = NUMBERS[f"{name}_2d"][f"{weighting} {t}"]
    near(by_z, recorded["grad"])
    if name == "vsd":
        assert float(step.metrics["phi"]) == pytest.approx(recorded["phi_loss"], rel=1e-5)
        assert float(by_p) == pytest.approx(recorded["phi_grad"], rel=1e-5)


def test_stage_one_of_the_bridge_is_sds(drawn):
    drawn(501)
    (_, _, (one, _)), (_, _, (two, _)) = (update(method(kind, "min-max", guidance=40.0), Z2) for kind in (Bridge, SDS))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "kind"), [("recon", Recon), ("sds", SDS)])
@pytest.mark.parametrize(("weighting", "t"), [(weighting, t) for weighting in KINDS for t in (679, 300)])
def test_gradients_in_3d(drawn, name, kind, weighting, t):
    """Two scenes of four views, whose candidates are chosen together."""
    drawn(t)
    _, _, (by_z, _) = update(method(kind, weighting, guidance=50.0), Z3)
    near(by_z.flatten()[::7], NUMBERS[f"{name}_3d"][f"{weighting} {t}"])


@pytest.mark.parametrize("t", [151, 199, 201, 601])
def test_noise_free_gradients(drawn, t):
    drawn(t)
    _, _, (by_z, _) = update(NFSD(), Z2)
    near(by_z, NUMBERS["nfsd"][str(t)])


def explored(z, noise, t, guidance):
    """The walk's last latents, and the levels at which the network was asked on it."""
    subject, num = Stub(z), len(noise) // len(z)
    rng = Streams.batch(0, 0, 0, len(z))
    texts, prompts = ([PROMPT] * len(z), [""] * len(z)), [PROMPT] * len(z)
    explore = type("Fixed", (Published,), {"noises": lambda self, n, rng, like: noise})(num, 15, guidance)
    times = torch.full((len(z),), t / 999, dtype=torch.float64)
    noised = explore.noised(subject, Look(subject.z), times, texts, prompts, rng)
    before = len(subject.asked)
    x = explore.walk(subject, noised)
    return x, explore.judged(subject, liking, noised, x, rng), subject.asked[before:]


@pytest.mark.parametrize("t", NUMBERS["explored_2d"])
def test_paths_in_2d(t):
    x, reward, asked = explored(Z2, NOISE[1], int(t), 7.5)
    recorded = NUMBERS["explored_2d"][t]
    near(x.flatten()[::5], recorded["latents"])
    near(reward, recorded["rewards"])
    first = [int(t)] if int(t) in recorded["asked"] else []  # that prediction is the loss's
    assert first + asked == recorded["asked"]


@pytest.mark.parametrize("t", NUMBERS["explored_3d"])
def test_paths_in_3d(t):
    x, reward, asked = explored(Z3, NOISE[4][:2], int(t), 50.0)
    recorded = NUMBERS["explored_3d"][t]
    near(x.flatten()[::7], recorded["latents"])
    assert [int(t), *asked] == recorded["asked"] and reward.shape == (1, 2)
    near(reward, [recorded["reward"]] * 2)


def test_lengths_of_paths():
    """Of every level that 2D draws: K(t) = min(15, floor((t - 1) / 66) + 1), 8.07 in the mean; 3D's as counted."""
    counts = [len(reference.path(t, 15, views=1)) for t in range(21, 981, 2)]
    assert counts == [min(15, (t - 1) // 66 + 1) for t in range(21, 981, 2)]
    assert sum(counts) / len(counts) == pytest.approx(8.07, abs=5e-3)
    assert len(reference.path(980, 15, views=4)) == 14


def test_levels_that_are_drawn():
    """500 odd levels in 2D, all of them for VSD, and the truncated limits of 3D."""
    like = torch.zeros(2, 1, 1)
    sds = SDS(compat="reference", explore=Explore(steps=15))
    index = Stub.schedule.index

    def seen(way, like, updates=3000):
        return torch.stack([index(way.levels(Streams.batch(0, u, 0, 2), like)) for u in range(updates)])

    levels, recorded = seen(sds, like), NUMBERS["levels_2d"]
    assert torch.equal(levels[:, 0], levels[:, 1]), "one for all rows"
    wanted = set(range(recorded["first"], recorded["last"] + 1, recorded["gap"]))
    assert len(wanted) == recorded["number"] and set(levels.flatten().tolist()) <= wanted
    assert len(levels.unique()) > 0.98 * len(wanted) and {*levels.flatten().tolist()} & {21, 979}
    every = seen(VSD(compat="reference", explore=Explore(steps=15)), like).unique()
    assert 20 <= int(every.min()) < 25 and 975 < int(every.max()) <= 980 and (every % 2 == 0).any()
    wide = torch.zeros(1, 4, 1)
    way = Recon(compat="reference", t_min=(0.98, 0.02), t_max=(0.98, 0.5), anneal=8000)
    for update_, (low, high) in NUMBERS["limits_3d"].items():
        limits = []

        class Asked(Streams):
            def common(self, purpose):
                return torch.Generator().manual_seed(len(limits))  # noqa: B023

        for _ in range(400):
            rng = Asked((0, int(update_)), ((0, int(update_), 0),))
            limits.append(int(index(way.levels(rng, wide)[0])))
        assert low <= min(limits) <= low + (high - low) * 0.1 and high - (high - low) * 0.1 <= max(limits) <= high


def test_the_table_of_levels_is_the_priors():
    for i, bar in NUMBERS["alphas_cumprod"].items():
        t = torch.tensor(int(i) / 999, dtype=torch.float64)
        assert float(Stub.schedule.alpha(t) ** 2) == pytest.approx(bar, rel=1e-5)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="does not halve"):
        SDS(compat="reference", weighting=Weighting("best"), explore=Explore(4, steps=15, halving=True))
    subject = Stub(Z2)
    one_step = SDS(compat="reference", weighting=Weighting("best"), explore=Explore(4))
    with pytest.raises(ValueError, match="takes 2 to 500 for explore"):
        check(subject, one_step, liking, [PROMPT])
    check(subject, SDS(compat="reference"), liking, [PROMPT])
    subject.schedule = replace(Stub.schedule, num_steps=100)
    with pytest.raises(ValueError, match="a table of 1000 noise levels"):
        check(subject, SDS(compat="reference", explore=Explore(steps=15)), liking, [PROMPT])
