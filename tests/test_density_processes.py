"""Gaussians that become more and fewer in two processes: both make the same changes, and go on to the same bits."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from closed_prior import EllipsoidPrior
from pairs import alone_and_in_pair, run_script

from align3d.loop import Loop, fit
from align3d.methods.sds import SDS
from align3d.scenes.density.default import CloneSplit
from align3d.scenes.density.mcmc import MCMC
from align3d.scenes.rings import Ring
from align3d.scenes.splats import Splats, ball
from align3d.subjects import Distilled

RING = Ring(views=3, size=12)
LOOP = Loop(updates=5, batch_size=2, learning_rate=0.01, betas=(0.9, 0.99), warmup=0, weight_decay=0.0, seed=3)
LOOP = replace(LOOP, checkpoint_every=1, max_grad_norm=0.0)
KINDS = {
    "default": CloneSplit(every=2, first=2, grow=1.2, size=0.05, faint=0.09),
    "mcmc": MCMC(every=2, first=2, more=1.2, faint=0.09),
}


def made(density, loop, **options):
    start = ball(64, generator=torch.Generator().manual_seed(0))
    start.opacities[:, ::2] = 0.6
    one = Distilled(Splats(start, density), EllipsoidPrior(0.35, 12, 3), RING)
    fit(one, SDS(guidance=1.0), lambda *_: None, ["a red thing"], loop, progress=False, **options)
    return {name: p.detach().clone() for name, p in one.trained.named_parameters()}


def process(root: Path, rank: int, world: int) -> None:
    """One of several: each sees its own share of an update; the second time it stops on the way."""
    loop = replace(LOOP, batch_size=2 // world)
    for kind, density in KINDS.items():
        whole = made(density, loop)
        out = root / f"{kind}-{world}"
        made(density, replace(loop, updates=4), out=out)  # a change is due then
        parts = made(density, loop, out=out, resume=True)
        torch.save([whole, parts], root / f"{kind}-{world}-{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    run_script(__file__, root)
    return {path.stem: torch.load(path, weights_only=True) for path in root.glob("*.pt")}


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_make_the_same_changes(found, kind):
    alone, first, second = (found[f"{kind}-{name}"] for name in ("1-0", "2-0", "2-1"))
    assert len(first[0]["means"]) != 64
    for name, value in first[0].items():
        for other in (first[1], *second):
            assert torch.equal(value, other[name]), f"{name}: processes, or runs, differ"
        assert torch.equal(alone[0][name], alone[1][name])
        assert value.shape == alone[0][name].shape
        if name != "seen":  # a mean over processes there
            torch.testing.assert_close(value, alone[0][name], rtol=1e-3, atol=2e-2)  # AdamW divides small by small


if __name__ == "__main__":
    alone_and_in_pair(process, Path(sys.argv[1]))
