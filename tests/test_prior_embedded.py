"""The embedded prior: its contract, its network, damaged weights; and what the shipped network knows."""

import json

import pytest
import torch
from safetensors.torch import load, save_file

from align3d.diffusion.guidance import guide
from align3d.diffusion.schedule import add_noise, eps_from_v, x0_from_eps
from align3d.diffusion.transition import ddim
from align3d.priors import embedded
from align3d.priors.embedded import Embedded
from align3d.priors.nets.views_unet import ViewsUNet, double, halve, rays_and_poses
from align3d.rewards.clip_tiny import image_features, text_features
from align3d.rng import Streams
from align3d.scenes.cameras import orbit
from align3d.types import Cameras, Prior

WEIGHTS = "diffusion_pytorch_model.safetensors"
B, V, H, W, SIDE = 2, 3, 40, 24, 16
PROMPTS = ["a cyan mug", "a red chair with blue legs and some words more"]


def small(**changes) -> ViewsUNet:
    """A network with random weights; the layers that start at zero too."""
    rng = torch.Generator().manual_seed(3)
    network = ViewsUNet(**{"size": SIDE, "widths": (8, 12, 16), "heads": (2, 2), "embed": 16} | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * parameter[0].numel() ** -0.5)
    return network


def write(network: ViewsUNet, folder) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config))
    save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()}, folder / "diffusion_pytorch_model.safetensors"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "weights"
    write(small(), path)
    return path


@pytest.fixture(scope="module")
def prior(folder):
    return Embedded(folder, precision="float32").load()


def cameras(num: int = B, views: int = V, seed: int = 0) -> Cameras:
    azimuth, elevation = torch.rand(2, num, views, generator=torch.Generator().manual_seed(seed))
    return orbit(360 * azimuth, 30 * elevation, height=H, width=W)


def rows(cameras: Cameras, index) -> Cameras:
    return Cameras(cameras.c2w[index], cameras.K[index], cameras.height, cameras.width)


def noisy(views: int = V, num: int = B, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num, views, 3, SIDE, SIDE, generator=rng), torch.rand(num, generator=rng)


# The contract


def test_it_is_a_prior(prior):
    assert isinstance(prior, Prior)
    assert prior.latent_shape == (3, SIDE, SIDE) and prior.size == SIDE and prior.views == 4 and prior.adapter is None
    assert not any(p.requires_grad for p in prior.network.parameters())


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_batched_equals_serial_and_rows_do_not_mix(prior, views):
    (x, t), seen = noisy(views), cameras(views=views)
    both = prior.predict(x, t, prior.encode(PROMPTS), seen)
    assert both.shape == x.shape and both.dtype == torch.float32 and both.isfinite().all()
    for i in range(B):
        one = slice(i, i + 1)
        alone = prior.predict(x[one], t[one], prior.encode(PROMPTS[one]), rows(seen, one))
        assert torch.allclose(both[one], alone, atol=1e-5)
    other = x.clone()
    other[0] += 1
    changed = prior.predict(other, t, prior.encode(PROMPTS), seen)
    assert torch.allclose(changed[1], both[1], atol=1e-6) and not torch.allclose(changed[0], both[0], atol=1e-2)


@pytest.mark.parametrize("views", [3, 4])
def test_views_have_no_order(prior, views):
    (x, t), seen, cond = noisy(views), cameras(views=views), prior.encode(PROMPTS)
    order = torch.randperm(views, generator=torch.Generator().manual_seed(5)).roll(1)
    moved = Cameras(seen.c2w[:, order], seen.K[:, order], H, W)
    eps = prior.predict(x, t, cond, seen)
    assert torch.allclose(prior.predict(x[:, order], t, cond, moved), eps[:, order], atol=1e-5)
    assert not torch.allclose(prior.predict(x[:, order], t, cond, seen), eps[:, order], atol=1e-2)


def test_views_see_each_other(prior):
    (x, t), seen, cond = noisy(), cameras(), prior.encode(PROMPTS)
    other = x.clone()
    other[:, 0] += 1
    change = (prior.predict(other, t, cond, seen) - prior.predict(x, t, cond, seen)).abs().flatten(2).amax(2)
    assert (change[:, 1:] > 1e-4).all()


def test_time_text_and_cameras_matter(prior):
    (x, t), seen = noisy(), cameras()

    def v(t=t, prompts=PROMPTS, seen=seen):  # what the network says; eps would change with t by itself
        words = prior.encode(prompts)
        return prior.network(x, t, words.states, words.keep, *rays_and_poses(seen, SIDE // 2, SIDE // 2))

    for other in (v(t=t / 2), v(prompts=PROMPTS[::-1]), v(seen=cameras(seed=4)), v(prompts=["", ""])):
        assert ((other - v()).flatten(1).abs().amax(1) > 1e-3).all()


def test_without_cameras_the_first_view_is_the_front(prior):
    x, t = noisy()
    azimuth = torch.tensor([[0.0, 90.0, 180.0]]).expand(B, -1)
    front = orbit(azimuth, torch.full_like(azimuth, embedded.ELEVATION), height=H, width=H)
    cond = prior.encode(PROMPTS)
    assert torch.allclose(prior.predict(x, t, cond), prior.predict(x, t, cond, front), atol=1e-5)


def test_eps_belongs_to_the_schedule(prior):
    (x, t), seen, cond = noisy(), cameras(), prior.encode(PROMPTS)
    eps = prior.predict(x, t, cond, seen)
    v = prior.network(x, t, cond.states, cond.keep, *rays_and_poses(seen, SIDE // 2, SIDE // 2))
    assert torch.allclose(eps, eps_from_v(prior.schedule, x, v, t), atol=1e-5)
    x0 = x0_from_eps(prior.schedule, x, eps, t)
    assert torch.allclose(add_noise(prior.schedule, x0, eps, t), x, atol=1e-4)
    times = prior.schedule.times(25)
    assert len(times) == 26 and times[0] == 1 and times[-1] == 0
    assert 0.0145 < float(prior.schedule.alpha(times[0]) ** 2) / 0.32 < 0.0148  # Stable Diffusion's last level, 0.00466


def test_more_views_than_four_and_too_few_cameras_are_refused(prior):
    x, t = noisy(5)
    with pytest.raises(ValueError, match=r"sees 1 to 4 views together, .* got 5 views and cameras \[2, 5\]"):
        prior.predict(x, t, prior.encode(PROMPTS), cameras(views=5))
    with pytest.raises(ValueError, match=r"got 3 views and cameras \[2, 2\] for 2 objects"):
        prior.predict(x[:, :3], t, prior.encode(PROMPTS), cameras(views=2))


def test_texts_are_encoded_alone_and_kept(prior, monkeypatch):
    first = prior.encode([*PROMPTS, ""])
    monkeypatch.setattr(prior.memory, "source", None)  # no more can be encoded
    again = prior.encode(["", PROMPTS[1]])
    assert torch.equal(again.states[1], first.states[1]) and torch.equal(again.keep[0], first.keep[2])
    assert first.keep[2].sum() == 1  # "" is the start alone


def test_an_encoded_text_too_many_is_forgotten(prior, monkeypatch):
    assert prior.memory.most == 4096
    monkeypatch.setattr(prior.memory, "most", 2)
    prior.encode(["one", "two", "three"])
    assert list(prior.memory.texts) == ["two", "three"]


# Pictures and gradients


def test_latents_are_means_of_the_pixels_that_they_cover(prior):
    rgb = torch.rand(B, V, 3, 2 * SIDE, 3 * SIDE, generator=torch.Generator().manual_seed(0))
    mean = rgb.unflatten(-1, (SIDE, 3)).mean(-1).unflatten(-2, (SIDE, 2)).mean(-2)
    assert torch.allclose(prior.latents(rgb), 2 * mean - 1, atol=1e-6)
    assert torch.allclose(prior.images(prior.latents(mean)), mean, atol=1e-6)
    assert prior.latents(torch.rand(B, V, 3, 9, 31)).shape == (B, V, 3, SIDE, SIDE)
    assert torch.allclose(prior.latents(torch.ones(B, V, 3, 9, 31)), torch.ones(()))


@pytest.mark.parametrize("size", [(H, W), (9, 31), (SIDE, SIDE)])
def test_gradients_of_pictures_reach_every_sample(prior, size):
    rng = torch.Generator().manual_seed(2)
    rgb = (0.3 + 0.4 * torch.rand(B, V, 3, *size, generator=rng)).double().requires_grad_()
    weight = torch.randn(B, V, 3, SIDE, SIDE, generator=rng).double()

    def through(rgb):
        return (prior.images(prior.latents(rgb) * 0.9) * weight).sum()

    (grad,) = torch.autograd.grad(through(rgb), rgb)
    assert grad.isfinite().all() and (grad.flatten(2).norm(dim=2) > 0).all()
    step = torch.randn(rgb.shape, generator=rng).double()
    slope = (through(rgb + 1e-5 * step) - through(rgb - 1e-5 * step)) / 2e-5
    assert torch.allclose((grad * step).sum(), slope, rtol=1e-5)


def test_gradients_of_predictions_reach_every_view(folder):
    prior = Embedded(folder, precision="float32").load()
    x, t = noisy()
    x.requires_grad_()
    prior.predict(x, t, prior.encode(PROMPTS), cameras()).square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad.flatten(2).norm(dim=2) > 0).all()


def test_halving_is_undone():
    x = torch.randn(B, 4, 6, 5)
    assert torch.equal(double(halve(x)), x)
    assert torch.equal(halve(x)[0, 1, 2], x[0, 2:4, 4:6].flatten())


# The adapter


def test_an_adapter_starts_without_effect_and_is_off_in_the_reference(folder, prior):
    tuned = Embedded(folder, rank=2, precision="float32").load()
    (x, t), seen, cond = noisy(), cameras(), prior.encode(PROMPTS)
    before = prior.predict(x, t, cond, seen)
    assert torch.allclose(tuned.predict(x, t, cond, seen), before, atol=1e-6)
    named = dict(tuned.adapter.named_parameters())
    assert named and all("lora_" in name for name in named)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in named.values():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    changed = tuned.predict(x, t, cond, seen)
    assert changed.requires_grad and not torch.allclose(changed, before, atol=1e-3)
    with tuned.reference():
        inside = tuned.predict(x, t, cond, seen)
    assert not inside.requires_grad and torch.allclose(inside, before, atol=1e-6)
    changed.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in named.values())
    assert torch.allclose(prior.predict(x, t, cond, seen), before)  # another prior from the same folder is not touched


# Weights


def test_weights_are_read_once_and_again_when_they_change(folder, tmp_path):
    assert Embedded(folder).load().network is Embedded(folder).load().network
    write(small(), tmp_path / "one")
    first = Embedded(tmp_path / "one").load().network
    write(small(embed=8), tmp_path / "one")
    assert Embedded(tmp_path / "one").load().network is not first


def test_half_precision_files_are_float32_in_memory(tmp_path):
    write(small().half(), tmp_path / "half")
    prior = Embedded(tmp_path / "half", precision="float32").load()
    x, t = noisy()
    assert all(p.dtype == torch.float32 for p in prior.network.parameters())
    assert prior.predict(x, t, prior.encode(PROMPTS), cameras()).dtype == torch.float32


def test_bfloat16_products_give_nearly_the_same(folder, prior):
    coarse = Embedded(folder, precision="bfloat16").load()
    (x, t), seen, cond = noisy(), cameras(), prior.encode(PROMPTS)
    found, exact = coarse.predict(x, t, cond, seen), prior.predict(x, t, cond, seen)
    assert found.dtype == torch.float32 and (found - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    "change, error",
    [
        ({"widths": [8, 16, 16]}, "of another shape"),
        ({"size": 12}, "size 12"),
        ({"heads": [5, 2]}, "multiples"),
        ({"embed": 1 << 30}, "embed 1073741824"),
        ({"text": 64}, "does not fit|words of 64"),
        ({"widths": [8, 12]}, "2 widths"),
    ],
)
def test_foreign_configurations_are_refused(tmp_path, change, error):
    network = small()
    write(network, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(network.config | change))
    with pytest.raises(ValueError, match=error) as caught:
        Embedded(tmp_path).load()
    assert "\n" not in str(caught.value)


def test_a_network_for_other_words_is_refused(tmp_path):
    write(small(text=64), tmp_path)
    with pytest.raises(ValueError, match="words of 64 numbers"):
        Embedded(tmp_path).load()


def test_missing_truncated_foreign_and_broken_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Embedded(tmp_path).load()
    write(small(), tmp_path)
    path = tmp_path / WEIGHTS
    whole, tensors = path.read_bytes(), load(path.read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        Embedded(tmp_path).load()
    save_file(tensors | {"stranger": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="1 unknown, such as stranger"):
        Embedded(tmp_path).load()
    save_file(tensors | {"out.bias": torch.full_like(tensors["out.bias"], float("nan"))}, path)
    with pytest.raises(ValueError, match=r"out\.bias has NaN"):
        Embedded(tmp_path).load()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        Embedded(tmp_path).load()


def test_a_negative_rank_is_refused():
    with pytest.raises(ValueError, match="rank must be 0 or more, got -1"):
        Embedded(rank=-1)


# What is shipped

SHIPPED = ["a red apple", "a blue chair", "a green bottle"]


def test_the_shipped_weights_are_small_and_finite():
    files = [path for path in embedded.ASSETS.iterdir() if path.is_file()]
    assert sorted(path.name for path in files) == ["config.json", WEIGHTS]
    assert sum(path.stat().st_size for path in files) < 2.4e6
    prior = Embedded().load()
    assert prior.latent_shape == (3, 32, 32) and prior.views == 4


def test_the_shipped_prior_paints_what_it_is_told():
    prior, n = Embedded().load(), len(SHIPPED)
    x = Streams.batch(0, 0, 0, n).normal("noise", (4, *prior.latent_shape))
    cond, times = prior.encode(SHIPPED + [""] * n), prior.schedule.times(15)
    with prior.reference():
        for t, s in zip(times[:-1].expand(n, -1).T, times[1:].expand(n, -1).T, strict=True):
            eps = prior.predict(torch.cat([x, x]), torch.cat([t, t]), cond)
            x = ddim(prior.schedule, x, guide(eps[:n], eps[n:], 3.0), t, s, eta=0.0).mean
    seen = image_features(prior.images(x).flatten(0, 1)).unflatten(0, (n, 4)).mean(1)
    cosine = seen @ text_features(SHIPPED).T
    assert (cosine.argmax(1) == torch.arange(n)).all() and (cosine.diagonal() > 0.4).all()


def test_the_shipped_prior_pulls_a_noisy_picture_to_its_white_ground():
    prior = Embedded().load()
    clean = torch.ones(2, 4, *prior.latent_shape)
    noise = Streams.batch(0, 0, 0, 2).normal("noise", clean.shape[1:])
    t = torch.tensor([0.2, 0.6])
    x = add_noise(prior.schedule, clean, noise, t)
    with prior.reference():
        eps = prior.predict(x, t, prior.encode(SHIPPED[:2]))
    edge = (x0_from_eps(prior.schedule, x, eps, t) - clean)[..., 0, :].flatten(1).square().mean(1)
    assert (edge < 0.05).all()
