"""How the embedded generator is made: targets, losses, resuming, what is kept out, what is shipped, the judge."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "embedded"))

import data
import judge
import train_codec
import train_generator
import training
from objects import sample, shards, table

from align3d.models.embedded import Embedded, load_networks
from align3d.models.nets.codec import PatchCodec
from align3d.scenes.cameras import FOCAL
from align3d.types import Cameras

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")

SMALL = {"encoder_channels": (8, 16), "decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "decoder_channels": 8}


@pytest.fixture(autouse=True)
def global_randomness():
    """Initial weights come from the global generator, as in the scripts."""
    torch.manual_seed(0)


@pytest.fixture
def no_clock(monkeypatch):
    """No time passes, so that learning rates are those of the start of a budget."""
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture(scope="module")
def drawn():
    return [sample.draw(7, i) for i in range(4)]


@pytest.fixture(scope="module")
def batch(drawn):
    return {key: torch.from_numpy(value) for key, value in shards.render(drawn, 1).items()}


@pytest.fixture(scope="module")
def maps(batch):
    return data.splat_maps(batch)


def psnr(a, b):
    return -10 * (a - b).square().mean((-3, -2, -1)).log10()


def seen_on_the_grid(maps):
    """The scenes of the maps, by cameras whose pixels are those of the canonical views, end points included."""
    cameras = data.canonical_cameras()
    focal, centre = FOCAL * (data.SIZE - 1), data.SIZE / 2
    K = torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1.0]]).expand(len(maps), 4, 3, 3)
    same = Cameras(cameras.c2w.expand(len(maps), -1, -1, -1), K, data.SIZE, data.SIZE)
    return train_codec.LAYOUT.gaussians(maps, cameras).render(same, ("rgb", "alpha"))


def test_target_maps_render_to_the_true_views(batch, maps):
    covered = batch["mask"][:, :4, None].float() / 255
    truth = batch["rgb"][:, :4].movedim(-1, 2).float() / 255 * covered + 1 - covered
    for view in range(4):
        alone = maps[0].clone()
        alone[:, torch.arange(4) != view, 10] = -1  # splats of the other views widen the outlines a little
        seen, true = seen_on_the_grid(alone).rgb[:, view], truth[:, view]
        assert psnr(seen, true).min() > 26
        assert psnr(seen, true).mean() > 29
        for shift in ((0, 1), (1, 0)):  # half a pixel's mistake would show
            assert psnr(seen.roll(shift, (-2, -1)), true).mean() < psnr(seen, true).mean() - 6
    together = psnr(seen_on_the_grid(maps[0]).rgb, truth)
    assert together.min() > 19
    turned = maps[0].clone()
    turned[:, :, 6:10] = torch.tensor([0.5**0.5, 0, 0.5**0.5, 0])[:, None, None]  # across the surface, not along it
    assert psnr(seen_on_the_grid(turned).rgb, truth).mean() < together.mean() - 2


def test_new_views_of_target_maps_are_the_true_new_views(batch, maps):
    truth, _ = data.novel_images(batch)

    def quality(maps, novel):
        scene = train_codec.LAYOUT.gaussians(maps, data.canonical_cameras())
        return psnr(scene.render(data.novel_cameras(novel)).rgb, truth).mean()

    ours = quality(maps[0], batch["novel"])
    assert ours > 19
    assert quality(maps[0], batch["novel"] + torch.tensor([25.0, 0.0])) < ours - 2
    flat = maps[0].clone()
    flat[:, :, 11] = 0
    assert quality(flat, batch["novel"]) < ours - 2


def test_target_maps_are_in_range_and_quaternions_are_unit(maps):
    x, mask = maps
    assert x.shape == (4, 4, 12, 64, 64)
    assert x.abs().max() <= 1
    assert torch.allclose(x[:, :, 6:10].norm(dim=2), torch.ones(4, 4, 64, 64), atol=1e-5)
    assert torch.equal(x[:, :, 10:11], mask * 2 - 1)


def test_extend_spreads_a_few_pixels_and_then_takes_the_mean():
    mask = torch.zeros(1, 1, 16, 20)
    mask[..., 4:6, 4:8] = 1
    values = torch.full((1, 2, 16, 20), 9.0)
    values[..., 4:6, 4:6], values[..., 4:6, 6:8] = 1.0, 3.0
    x = data.extend(values, mask)
    assert torch.equal(x[..., 4:6, 4:8], values[..., 4:6, 4:8])
    assert torch.allclose(x[..., 4, 3], torch.tensor(1.0))  # one pixel out: its neighbour's value
    assert torch.allclose(x[..., 12, 15], torch.tensor(2.0))  # far out: the mean, nothing of what was there


def test_principal_components_reconstruct_what_they_span():
    codec, rank = PatchCodec(latent_channels=6, **SMALL), 6
    rng = torch.Generator().manual_seed(0)
    basis = torch.randn(rank, 12, 8, 8, generator=rng) * torch.arange(1, rank + 1).view(-1, 1, 1, 1) * 0.1
    weights = torch.randn(rank, 8 * 64, generator=rng)
    weights -= weights.mean(1, keepdim=True)
    patches = torch.einsum("kn,kcij->ncij", weights, basis) + torch.linspace(-0.5, 0.5, 12)[:, None, None]
    x = patches.view(8, 8, 8, 12, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(8, 12, 64, 64)
    share, variance = train_codec.pca(codec, x)
    assert share == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        z = codec.encode(x.unflatten(0, (2, 4)))
        y = codec.decode(z).flatten(0, 1)
    weighted = train_codec.PCA_WEIGHTS > 0
    assert (y - x)[:, weighted].abs().max() < 1e-2
    assert (y[:, ~weighted] - x[:, ~weighted].mean((0, 2, 3))[:, None, None]).abs().max() < 1e-4
    assert torch.allclose(z.var((0, 1, 3, 4)), variance, rtol=0.02)
    assert variance.mean() == pytest.approx(1, abs=1e-5)


def test_codec_steps_lower_its_losses_and_every_object_gets_a_gradient(batch, maps, tmp_path, no_clock):
    codec = PatchCodec(latent_channels=12, **SMALL)
    train_codec.pca(codec, maps[0].flatten(0, 1))
    trainer = training.Trainer(codec, training.Optimizers(codec, ("linear", "positions"), 0.01, 1e-3), tmp_path, 1e6)

    def losses():
        decoded = codec.decode(codec.encode(maps[0]))
        flat = (t.flatten(0, 1) for t in (decoded, *maps))
        return decoded, train_codec.map_loss(*flat) | train_codec.render_loss(decoded, batch)

    decoded, before = losses()
    for value in before.values():
        (gradient,) = torch.autograd.grad(value, decoded, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
    total = sum(before.values())
    for _ in range(4):
        trainer.step(sum(losses()[1].values()), 4)
    assert sum(losses()[1].values()) < total - 1e-3


def test_generator_steps_lower_its_loss_and_every_object_gets_a_gradient(tmp_path, no_clock):
    words = ("red", "mug", "tall")
    generator = train_generator.Generator(words, channels=3, width=64, layers=1)
    edges = ("transformer.pos_embed", "transformer.proj_out", "text_encoder.embedding")
    trainer = training.Trainer(generator, training.Optimizers(generator, edges, 0.02, 2e-3), tmp_path, 1e6)
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 4, 3, 8, 8, generator=rng).unbind()
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    x = train_generator.add_noise(train_generator.SCHEDULE, x0, eps, t)
    v = train_generator.v_from_eps(train_generator.SCHEDULE, x, eps, t)
    ids = generator.text_encoder.tokenize(["a red mug", "a tall mug", "", "an unknown thing"])

    def loss():
        return (generator(x, t, ids) - v).square().mean()

    before = loss()
    assert before.item() == pytest.approx(v.square().mean().item(), rel=1e-5)  # the last layer starts at zero
    for _ in range(8):
        trainer.step(loss(), 4)
    assert loss() < before - 1e-3
    rows = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(generator(rows, t, ids).square().sum(), rows)
    assert gradient.isfinite().all()
    assert (gradient.flatten(2).norm(dim=2) > 0).all()


def small_trainer(out, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3))
    return training.Trainer(network, training.Optimizers(network, ("2.",), 0.02, 1e-2), out, 1e6)


def run(trainer, steps):
    for _ in range(steps):
        x = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(trainer.steps))
        trainer.step((trainer.network(x) - x.mean()).square().mean(), 2)


def test_a_resumed_training_goes_on_to_the_same_bits(tmp_path, no_clock):
    straight = small_trainer(tmp_path / "a", 1)
    run(straight, 6)
    first = small_trainer(tmp_path / "b", 1)
    run(first, 3)
    first.save()
    second = small_trainer(tmp_path / "b", 2)
    assert (second.steps, second.samples) == (3, 6)
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])
    run(second, 3)
    pairs = [(straight.network.state_dict(), second.network.state_dict())]
    pairs += [(straight.mean.state_dict(), second.mean.state_dict())]
    pairs += [(straight.optimizers.state(), second.optimizers.state())]
    for a, b in pairs:
        assert a.keys() == b.keys()
        assert a
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(second.network[0].weight, second.mean[0].weight)


def test_learning_rate_warms_up_stays_and_ends_at_zero(tmp_path, monkeypatch):
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now.value))
    trainer = small_trainer(tmp_path, 1)
    trainer.seconds = 100.0
    assert trainer.rate() == pytest.approx(0.01)
    trainer.steps = 1000
    rates = []
    for now.value in (0.0, 40.0, 70.0, 100.0, 120.0):
        rates.append(trainer.rate())
    assert rates == pytest.approx([1, 1, 0.5, 0, 0])


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    trainer = small_trainer(tmp_path, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.step(torch.tensor(float("nan"), requires_grad=True), 1)


def test_held_out_pairs_turned_and_weak_objects_do_not_teach_the_generator():
    held = [sample.draw(3, i, held=True).meta for i in range(20)]
    assert not any(train_generator.usable(meta) for meta in held)
    assert all(train_generator.usable(sample.draw(3, i).meta) for i in range(40))
    category = "chair"
    (color, *_), (free, *_) = (table.colors_of(category, held=held) for held in (True, False))
    for noun in (category, *table.CATEGORIES[category].nouns):  # furniture knows other names of the category
        assert not train_generator.usable({"noun": noun, "color": color})
        assert train_generator.usable({"noun": noun, "color": free})
    assert train_generator.usable({"noun": "radiator", "color": ""})
    assert not train_generator.usable({"noun": "radiator", "color": "", "canonical": False})
    assert not train_generator.usable({"noun": "radiator", "color": "", "good": False})


def write_shard(folder, drawn, batch):
    folder.mkdir()
    meta = [s.meta for s in drawn]
    meta[1] = sample.draw(3, 0, held=True).meta
    save_file(batch, folder / "shard-00000.safetensors")
    text = {"captions": [s.captions for s in drawn], "meta": meta}
    (folder / "shard-00000.json").write_text(json.dumps(text))
    return folder


def test_encoding_keeps_usable_objects_with_their_captions_and_is_done_once(tmp_path, drawn, batch, maps, capsys):
    folder, codec = write_shard(tmp_path / "set", drawn, batch), PatchCodec(latent_channels=4, **SMALL)
    train_codec.pca(codec, maps[0].flatten(0, 1))
    latents, captions = train_generator.encode(codec, folder, tmp_path / "latents")
    rows = [0, 2, 3]
    assert captions == [drawn[i].captions for i in rows]
    with torch.no_grad():
        direct = codec.encode(maps[0][rows])
    assert (latents.float() - direct).abs().max() < 0.03 * direct.abs().max()  # bfloat16
    assert "encoded" in capsys.readouterr().out
    again, _ = train_generator.encode(codec, folder, tmp_path / "latents")
    assert torch.equal(again, latents)
    assert "encoded" not in capsys.readouterr().out
    assert len(data.Shards([folder])) == 4
    with pytest.raises(FileNotFoundError, match="make the data first"):
        data.Shards([tmp_path / "nowhere"])


def test_vocabulary_and_corruption():
    captions = [["a Red mug", "red mug, 3d model"]] * 3 + [["a rare thing"]]
    assert train_generator.vocabulary(captions, at_least=3) == ("3d", "a", "model", "mug", "red")
    encoder = train_generator.TextEncoder(("red", "mug"))
    ids = encoder.tokenize(["a red mug"] * 2000)
    out = train_generator.corrupt(ids, torch.Generator().manual_seed(0))
    empty = (out == encoder.tokenize([""])[0]).flatten(1).all(1)
    assert 0.07 < empty.double().mean() < 0.13
    kept, before = out[~empty], ids[~empty]
    assert torch.equal(kept[..., 1:], before[..., 1:])  # letters stay
    assert torch.equal(kept[:, 0], before[:, 0])  # and the start
    assert 0.05 < (kept[:, 2, 0] == 0).double().mean() < 0.11


@pytest.fixture(scope="module")
def exported(tmp_path_factory, maps):
    """A small generator, and the folder that `export` wrote of it."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    generator = train_generator.Generator(("red", "mug"), channels=4, width=32, layers=1)
    nn.init.normal_(generator.transformer.proj_out.weight, std=0.25)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(parameter.half())
    codec = PatchCodec(latent_channels=4, **SMALL)
    train_codec.pca(codec, maps[0].flatten(0, 1))
    codec.save_pretrained(folder / "codec")
    train_generator.export(generator, folder / "codec", folder / "weights")
    return generator, codec, folder / "weights"


def test_exported_weights_load_and_predict_as_in_training(exported):
    generator, codec, folder = exported
    network, gs_vae, text = load_networks(folder)
    for ours, theirs in ((generator.transformer, network), (codec, gs_vae), (generator.text_encoder, text)):
        mine = {name: value.half().float() for name, value in ours.state_dict().items()}
        assert mine.keys() == theirs.state_dict().keys()
        assert all(torch.equal(mine[name], value) for name, value in theirs.state_dict().items())
    model = Embedded(weights=folder, precision="float32").load()
    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, *model.latent_shape, generator=rng), torch.tensor([0.3, 0.9])
    prompts = ["a red mug", "something else"]
    cond = model.encode(prompts)
    with torch.no_grad():
        shipped = model.output(x, t, cond.text)
        trained = generator(x, t, generator.text_encoder.tokenize(prompts))
    assert shipped.std() > 0.01
    assert torch.allclose(shipped, trained, atol=1e-4)


def test_exported_weights_tell_nothing_of_the_machine(exported):
    folder = exported[2]
    assert len(list(folder.glob("*/config.json"))) == 3
    for path in folder.rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text())
        assert str(folder.parent) not in path.read_text()
    assert {path.name for path in folder.rglob("*.*")} == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_the_scripts_networks_fit_the_package():
    """The default sizes stay within 20 MB of float16, and large matrices are Muon's."""
    generator = train_generator.Generator(("word",) * 300, channels=12, width=192, layers=6)
    codec = PatchCodec(latent_channels=12)
    assert 2 * sum(p.numel() for net in (generator, codec) for p in net.parameters()) < 18e6
    optimizers = training.Optimizers(codec, ("encoder.1.", "linear", "tokens", "positions"), 0.01, 1e-3)
    assert len(optimizers.matrices) + len(optimizers.rest) == len(list(codec.parameters()))
    assert sum(p.numel() for p in optimizers.matrices) > 0.8 * sum(p.numel() for p in codec.parameters())
    assert all(f.data_ptr() == m.data_ptr() for f, m in zip(optimizers.flat, optimizers.matrices, strict=True))


def test_judge_takes_held_out_pairs_only():
    assert judge.pair("a red chair") == ("chair", "red")
    for prompt in judge.PROMPTS.read_text().splitlines():
        assert table.held_out(*judge.pair(prompt))
    for prompt in ("a chair", "a mauve chair", "a red thing", "chair", ""):
        with pytest.raises(ValueError, match="COLOUR NOUN"):
            judge.pair(prompt)
    with pytest.raises(ValueError, match="shown by training objects"):
        judge.pair(f"a {table.colors_of('chair', held=False)[0]} chair")


def test_judges_true_objects_are_what_the_prompt_says():
    objects = [judge.plain_object("chair", "red", 0, k) for k in range(3)]
    for thing in objects:
        assert thing.captions[0] == "a red chair"
        assert thing.novel.tolist() == [[0, 20], [45, 20]]
    assert not (objects[0].prims.shape == objects[1].prims.shape and (objects[0].prims == objects[1].prims).all())
    again = judge.plain_object("chair", "red", 0, 1)
    assert (again.prims == objects[1].prims).all()


def test_judges_numbers_on_known_cases():
    alpha = torch.zeros(2, 1, 8, 9)
    alpha[0, :, 2:6, 2:6] = 1
    alpha[0, :, 2:6, 6] = 0.4
    assert judge.haze(alpha).tolist() == [0.25, 0]
    place = torch.tensor([[[1, 3], [1, 9]], [[5, 6], [2, 1000]]])  # nouns, seeds, views
    result = judge.accuracy(place)
    assert result["top1"] == {"share": 0.25, "error": 0.25, "at 0": 0.5, "at 45": 0}
    assert result["top5"]["share"] == 0.625
    assert result["top5"]["error"] == pytest.approx(0.125)
    assert (result["top5"]["at 0"], result["top5"]["at 45"]) == (1, 0.25)
    assert judge.between(torch.arange(8.0).expand(2, 3, 8)) == {"training views": 3, "between": 4}
    rgb = torch.zeros(1, 2, 8, 3, 4, 5)
    rgb[0, 1, 0] = 1  # the seeds differ wholly in one of two views
    assert judge.diversity(judge.Set(rgb, rgb), ["a"]) == pytest.approx(0.5**0.5)


def test_judge_writes_pictures_and_numbers(exported, drawn, batch, tmp_path, monkeypatch, capsys):
    def absent():
        raise ValueError("not installed")

    monkeypatch.setattr(judge, "weights_path", absent)
    (tmp_path / "prompts.txt").write_text("a red chair\na black stool\n")
    folder, out = write_shard(tmp_path / "set", drawn, batch), tmp_path / "out"
    arguments = [str(exported[2]), "--out", str(out), "--data", str(folder), "--objects", "2", "--threads", "1"]
    assert judge.main([*arguments, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    names = {"heldout.png", "seeds.png", "turntable.png", "codec-set.png", "numbers.json", "table.md"}
    assert {path.name for path in out.iterdir()} == names
    numbers = json.loads((out / "numbers.json").read_text())
    assert 5 < numbers["codec"]["set"]["decibels"] < 40
    assert numbers["diversity"]["samples"] > 0
    assert numbers["diversity"]["true"] > 0
    assert set(numbers["dnc"]["coded"]) == {"training views", "between"}
    assert "not installed" in capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("a thing\n")
    assert judge.main([*arguments, "--prompts", str(tmp_path / "prompts.txt")]) == 2
    assert capsys.readouterr().err.startswith("judge: 'a thing'")
