"""How the embedded prior is made: pictures of objects, batches, training that goes on, the judge."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "embedded"))

import judge_prior
import train_prior
from objects import table
from objects.sample import draw
from training import Optimizers, Trainer

from align3d.models.embedded import Embedded as Generator
from align3d.priors.embedded import Embedded
from align3d.priors.nets.views_unet import ViewsUNet

compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
TINY = {"widths": (8, 12, 16), "heads": (2, 2), "embed": 16}
ROWS, B = 6, 4


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """Traced pictures of six objects, and of six held-out ones."""
    root = tmp_path_factory.mktemp("views")
    train_prior.render(root / "objects", ROWS, 5)
    train_prior.render(root / "held", ROWS, 6, held=True)
    return root


@pytest.fixture(scope="module")
def text():
    return Generator().text_source().network


def test_sets_of_views_are_around_the_object():
    angles = np.stack([train_prior.rigs(np.random.default_rng(i)) for i in range(200)])
    azimuth, elevation = angles[..., 0], angles[..., 1]
    assert np.allclose(np.diff(azimuth[:, 0]) % 360, 90, atol=1e-3)
    assert (elevation[:, 0] == elevation[:, 0, :1]).all() and np.ptp(elevation[:, 1], axis=1).min() > 0
    assert elevation.min() >= 0 and elevation.max() <= 30 and np.ptp(azimuth[:, 0, 0]) > 300
    gaps = np.diff(azimuth[:, 1]) % 360
    assert 25 < gaps.min() < 60 and 120 < gaps.max() < 155


@compiler
def test_pictures_are_on_white_and_differ_from_view_to_view(views, text):
    pictures = train_prior.Pictures(views / "objects", text.tokenize)
    assert len(pictures) == ROWS and pictures.rgb.shape == (ROWS, 2, 4, 32, 32, 3)
    assert pictures.captions == [draw(5, i).captions for i in range(ROWS)]
    assert (pictures.rgb[..., 0, 0, :] == 255).all()
    covered = (pictures.rgb < 250).any(-1).float().mean((-1, -2))
    assert covered.min() > 0.01 and covered.max() < 0.9
    assert (pictures.rgb[:, :, 0] != pictures.rgb[:, :, 1]).flatten(2).any(2).all()


@compiler
def test_what_is_there_is_kept_and_the_same_seed_traces_the_same(views, tmp_path):
    path = views / "held" / "shard-00000.safetensors"
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    train_prior.render(views / "held", ROWS, 6, held=True)
    assert path.stat().st_mtime_ns == time
    train_prior.render(tmp_path, ROWS, 6, held=True)
    assert (tmp_path / path.name).read_bytes() == before


@compiler
def test_held_out_pairs_do_not_teach(views, text):
    everything = train_prior.Pictures(views / "held", text.tokenize, every=True)
    assert len(everything) == ROWS
    assert all(table.held_out(meta["category"], meta["color"]) for meta in everything.meta)
    assert len(train_prior.Pictures(views / "held", text.tokenize)) == 0


@compiler
def test_batches_have_one_to_four_views_with_their_own_angles(views, text):
    pictures, rng = train_prior.Pictures(views / "objects", text.tokenize), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(100):
        x0, angles, ids = pictures.draw(B, rng)
        V = x0.shape[1]
        seen.add(V)
        assert x0.shape == (4 * B // V, V, 3, 32, 32) and angles.shape == (len(x0), V, 2) and len(ids) == len(x0)
        assert x0.min() >= -1 and x0.max() == 1
        for picture, angle in zip(x0.flatten(0, 1)[:4], angles.flatten(0, 1)[:4], strict=True):
            at = (pictures.angles == angle).all(-1).nonzero()[0].tolist()
            assert torch.equal(pictures.rgb[tuple(at)].movedim(-1, 0).float() / 127.5 - 1, picture)
    assert seen == {1, 2, 3, 4}


def test_padding_of_captions_is_cut_and_changes_nothing(text):
    ids = text.tokenize(["a red chair", ""])
    states, keep = train_prior.words(text, ids)
    assert states.shape[:2] == (2, 4) and keep.sum(1).tolist() == [4, 1]


@compiler
def test_training_writes_weights_that_the_package_reads(views, tmp_path, monkeypatch):
    monkeypatch.setattr(train_prior, "ViewsUNet", lambda: ViewsUNet(**TINY))
    arguments = [str(tmp_path), "--views", str(views), "--count", str(ROWS), "--minutes", "0.02", "--batch", "2"]
    monkeypatch.setattr(train_prior, "SHARD", ROWS)
    monkeypatch.setattr(sys, "argv", ["train_prior.py", *arguments])
    train_prior.main()
    prior = Embedded(tmp_path / "weights").load()
    assert prior.size == 32 and prior.network.config["embed"] == 16
    network = ViewsUNet(**TINY)
    trainer = Trainer(network, Optimizers(network, train_prior.EDGES, 0.02, 2e-3), tmp_path, 1.2)
    assert trainer.steps > 0 and trainer.progress > 1
    assert any((p != q).any() for p, q in zip(network.parameters(), ViewsUNet(**TINY).parameters(), strict=True))
    held = train_prior.Pictures(views / "held", prior.text.network.tokenize, every=True)
    numbers = judge_prior.judge(prior, held, [2.0], 3, tmp_path)
    assert numbers["true"]["top1"] > 0.9 and -1 < numbers["guidance 2"]["cosine"] < numbers["true"]["cosine"]
    assert numbers["guidance 2"]["distance"] > 0 and (tmp_path / "samples-2.png").is_file()
    assert "| true | " in judge_prior.markdown(numbers)


def test_the_distance_of_a_cloud_from_itself_is_nothing():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 400, 8, generator=rng), dim=-1)
    assert abs(judge_prior.distance(a, b)) < 0.1 < judge_prior.distance(a, torch.cat([b[:, :1].abs(), b[:, 1:]], 1))
