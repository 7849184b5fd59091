"""Stable Diffusion as a prior, on folders of a few thousand numbers in the published layout."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_priors import numbers, pictures, write_stable_diffusion, write_tiny

from align3d.loop import Loop, fit
from align3d.methods.sds import SDS
from align3d.priors import PRIORS
from align3d.priors.stable_diffusion import StableDiffusion, StableDiffusion15, read_schedule
from align3d.registry import load
from align3d.rng import Streams
from align3d.scenes.rings import Ring
from align3d.scenes.splats import Splats, ball
from align3d.subjects import Distilled
from align3d.types import Prior

B, V = 2, 3
PROMPTS = ["a red mug", "two dogs"]
KINDS = {"base": {}, "v": {"prediction": "v_prediction"}, "old": {"prediction": None, "old": True}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("stable")
    return {name: write_stable_diffusion(base / name, **kind) for name, kind in KINDS.items()}


def prior_of(folder, **options):
    return StableDiffusion(weights=folder, **{"precision": "float32"} | options).load()


@pytest.fixture(scope="module")
def prior(folders):
    return prior_of(folders["base"])


def x_and_t(prior, views=V):
    return numbers("x", B, views, *prior.latent_shape), torch.tensor([0.9, 0.3])


def test_it_is_a_prior(prior):
    assert isinstance(prior, Prior)
    assert (prior.views, prior.latent_shape, prior.size, prior.adapter) == (1, (4, 8, 8), 16, None)
    assert load(PRIORS, "stable-diffusion") is StableDiffusion
    assert load(PRIORS, "stable-diffusion-1.5") is StableDiffusion15


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_diffusers_says(folders, kind):
    """The stock networks, read and run by their own libraries."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, prior = folders[kind], prior_of(folders[kind])
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    states = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)(ids)[0]
    cond = prior.encode(PROMPTS)
    torch.testing.assert_close(cond.states, states)

    x, t = x_and_t(prior)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    level = prior.schedule.index(t)
    out = unet(x.flatten(0, 1), level.repeat_interleave(V), states.repeat_interleave(V, 0)).sample.unflatten(0, (B, V))
    bar = DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod[level].view(B, 1, 1, 1, 1)
    wanted = bar**0.5 * out + (1 - bar) ** 0.5 * x if kind == "v" else out
    torch.testing.assert_close(prior.predict(x, t, cond), wanted, atol=1e-5, rtol=1e-5)

    vae = AutoencoderKL.from_pretrained(folder / "vae")
    rgb = pictures(B, V, 16, 16)
    mean = vae.encode(2 * rgb.flatten(0, 1) - 1).latent_dist.mean * 0.18215
    torch.testing.assert_close(prior.latents(rgb).flatten(0, 1), mean, atol=1e-6, rtol=1e-5)
    shown = (vae.decode(x.flatten(0, 1) / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.images(x).flatten(0, 1), shown, atol=1e-6, rtol=1e-5)


def test_batched_is_serial_and_rows_do_not_mix(prior):
    x, t = x_and_t(prior)
    cond = prior.encode(PROMPTS)
    eps, rgb = prior.predict(x, t, cond), pictures(B, V)
    for i in range(B):
        one = prior.encode(PROMPTS[i : i + 1])
        for v in range(V):
            torch.testing.assert_close(prior.predict(x[i : i + 1, v : v + 1], t[i : i + 1], one)[0, 0], eps[i, v])
            torch.testing.assert_close(prior.latents(rgb[i : i + 1, v : v + 1])[0, 0], prior.latents(rgb)[i, v])
            torch.testing.assert_close(prior.images(x[i : i + 1, v : v + 1])[0, 0], prior.images(x)[i, v])
    assert (eps[0] - eps[1]).abs().min(dim=0).values.max() > 0.01


def test_pictures_of_any_size_become_latents_with_a_gradient(prior):
    rgb = pictures(B, V, 40, 56).requires_grad_()
    z = prior.latents(rgb)
    assert z.shape == (B, V, *prior.latent_shape)
    grad = torch.autograd.grad(z.square().sum(), rgb)[0]
    assert torch.isfinite(grad).all() and (grad.flatten(2).norm(dim=2) > 0).all()


@pytest.mark.parametrize("what", ["latents", "images", "fast"])
def test_gradients_agree_with_finite_differences(folders, what, tmp_path):
    prior = prior_of(folders["base"], tiny=write_tiny(tmp_path))
    prior.codec.vae.double()
    prior.codec.tiny.double()
    start = pictures(B, 1, 12, 20, torch.float64) if what == "latents" else 0.3 * numbers("z", B, 1, 4, 8, 8).double()
    call = {"latents": prior.latents, "images": prior.images, "fast": lambda z: prior.images(z, fast=True)}[what]
    weight = numbers("weight", *call(start).shape).double()
    way = numbers("way", *start.shape).double()

    def f(x):
        return (weight * call(x)).flatten(1).sum(1)

    x = start.clone().requires_grad_()
    grad = torch.autograd.grad(f(x).sum(), x)[0]
    slope, h = (grad * way).flatten(1).sum(1), 1e-6
    measured = (f(start + h * way) - f(start - h * way)) / (2 * h)
    assert (slope.abs() > 1e-3).all()
    torch.testing.assert_close(slope, measured, rtol=1e-4, atol=1e-6)


def test_latents_are_the_mean_or_drawn_with_given_noise(prior):
    rgb, noise = pictures(B, V), numbers("noise", B, V, *prior.latent_shape)
    mean, drawn = prior.latents(rgb), prior.latents(rgb, noise)
    std = (drawn - mean) / noise
    torch.testing.assert_close(prior.latents(rgb, 2 * noise) - mean, 2 * std * noise, atol=1e-5, rtol=1e-4)
    assert (std > 0).all()


def test_scenes_draw_their_latents_if_the_prior_says_so(folders, prior):
    """With noise of their streams; what is edited and what it is compared with have the same."""
    splats = Splats(ball(64, generator=torch.Generator().manual_seed(0)))
    ring = Ring(views=V, size=12)
    plain, drawn = (
        Distilled(splats, one, ring, original=splats) for one in (prior, prior_of(folders["base"], draw=True))
    )
    rng = Streams.batch(0, 1, 0, B)
    mean, first, again = (one.look(rng).latents for one in (plain, drawn, drawn))
    assert torch.equal(first, again) and not torch.allclose(first, mean, atol=1e-4)
    for other in (Streams.batch(0, 2, 0, B), Streams.batch(1, 1, 0, B)):
        assert not torch.allclose(drawn.look(other).latents - plain.look(other).latents, first - mean, atol=1e-4)
    torch.testing.assert_close(drawn.source(rng, drawn.look(rng)), first.detach())
    torch.testing.assert_close(drawn.look(Streams.batch(0, 1, 1, 1)).latents, first[1:])


def test_a_few_at_a_time_and_recomputed_is_the_same(folders, prior):
    frugal = prior_of(folders["base"], rows=2, recompute=True)
    found = []
    for one in (prior, frugal):
        rgb, z = pictures(B, V).requires_grad_(), numbers("z", B, V, *prior.latent_shape).requires_grad_()
        both = one.latents(rgb, numbers("noise", B, V, *prior.latent_shape)), one.images(z)
        loss = sum((value**2).sum() for value in both)
        found.append([*both, *torch.autograd.grad(loss, (rgb, z))])
    for value, other in zip(*found, strict=True):
        torch.testing.assert_close(value, other)


def test_fast_pictures(folders, prior, tmp_path):
    from diffusers import AutoencoderTiny

    z = numbers("z", B, V, *prior.latent_shape)
    linear = prior.images(z, fast=True)
    assert linear.shape == (B, V, 3, 8, 8)
    grey = torch.tensor([0.298 + 0.187 - 0.158 - 0.184, 0, 0])[0] * 0.5 / 2 + 0.5
    assert float(prior.images(torch.full_like(z, 0.5), fast=True)[0, 0, 0, 0, 0]) == pytest.approx(float(grey))
    tiny = prior_of(folders["base"], tiny=write_tiny(tmp_path))
    shown = AutoencoderTiny.from_pretrained(tmp_path).decode(z.flatten(0, 1)).sample / 2 + 0.5
    torch.testing.assert_close(tiny.images(z, fast=True).flatten(0, 1), shown.clamp(0, 1))
    torch.testing.assert_close(tiny.images(z), prior.images(z))


def test_texts_are_read_once_and_the_null_text_is_one(folders, monkeypatch):
    prior, asked = prior_of(folders["base"]), []
    source = prior.text
    prior.memory.source = lambda prompts: asked.append(list(prompts)) or source(prompts)
    first = prior.encode(["a", "", "a"])
    assert first.states.shape == (3, 77, 4) and torch.equal(first.states[0], first.states[2])
    assert torch.equal(prior.encode([""]).states[0], first.states[1]) and asked == [["a"], [""]]
    assert prior.memory.most == 256
    monkeypatch.setattr(prior.memory, "most", 1)
    prior.encode(["b"])
    assert list(prior.memory.texts) == ["b"]


def test_long_texts_warn_once(folders):
    prior = prior_of(folders["base"])
    with pytest.warns(RuntimeWarning, match="at most 77 tokens"):
        prior.encode(["dog " * 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.encode(["cat " * 50])


def test_the_adapter_trains_and_the_reference_is_without(folders, prior):
    adapted = prior_of(folders["base"], rank=2)
    x, t = x_and_t(prior)
    cond, plain = prior.encode(PROMPTS), prior.predict(x, t, prior.encode(PROMPTS))
    torch.testing.assert_close(adapted.predict(x, t, cond), plain)
    assert {name.split(".lora_")[0].rpartition("attn")[2][2:] for name, _ in adapted.adapter.named_parameters()} == {
        *("to_q", "to_k", "to_v", "to_out.0")
    }
    with torch.no_grad():
        for i, parameter in enumerate(adapted.adapter.parameters()):
            parameter.add_(0.1 * numbers(f"p{i}", *parameter.shape))
    moved = adapted.predict(x, t, cond)
    assert (moved - plain).flatten(1).abs().amax(1).min() > 1e-3
    for row in moved.square().flatten(1).sum(1):
        grads = torch.autograd.grad(row, list(adapted.adapter.parameters()), retain_graph=True)
        assert all(torch.isfinite(grad).all() and grad.abs().max() > 0 for grad in grads)
    with adapted.reference(), adapted.reference():
        torch.testing.assert_close(adapted.predict(x, t, cond), plain)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(adapted.predict(x, t, cond), moved)


def test_half_precision_is_close(folders, prior):
    half = prior_of(folders["base"], precision="bfloat16", half_vae=True, rank=1)
    x, t = x_and_t(prior)
    cond, rgb = prior.encode(PROMPTS), pictures(B, V).requires_grad_()
    for value, wanted in (
        (half.predict(x, t, cond), prior.predict(x, t, cond)),
        (half.latents(rgb), prior.latents(rgb)),
        (half.images(x), prior.images(x)),
    ):
        assert value.dtype == torch.float32 and (value - wanted).norm() < 0.05 * wanted.norm()
    assert torch.autograd.grad(half.latents(rgb).square().sum(), rgb)[0].abs().max() > 0


@pytest.mark.parametrize("kind", ["base", "v"])
def test_gaussians_are_distilled_from_it(folders, kind):
    scene = Splats(ball(64, generator=torch.Generator().manual_seed(0)))
    before = {name: value.detach().clone() for name, value in scene.named_parameters()}
    subject = Distilled(scene, prior_of(folders[kind]), Ring(views=2, size=12))
    loop = Loop(updates=3, batch_size=2, learning_rate=0.01, warmup=0, max_grad_norm=0.0)
    lines = fit(subject, SDS(guidance=7.5), lambda *_: None, PROMPTS, loop, progress=False)
    assert len(lines) == 3 and all(line["pull"] > 0 for line in lines)
    for name, value in scene.named_parameters():
        assert torch.isfinite(value).all() and not torch.equal(value, before[name])


def test_latents_of_another_size_are_refused(prior):
    x, t = x_and_t(prior)
    with pytest.raises(ValueError, match=r"latents of this prior are \[4, 8, 8\], got \[4, 8, 6\]"):
        prior.predict(x[..., :6], t, prior.encode(PROMPTS))


def test_another_size_is_an_option(folders):
    prior = prior_of(folders["base"], size=32)
    assert prior.latent_shape == (4, 16, 16)
    x, t = x_and_t(prior)
    assert prior.predict(x, t, prior.encode(PROMPTS)).shape == x.shape
    with pytest.raises(ValueError, match=r"prior\.size must be a multiple of 4 pixels"):
        prior_of(folders["base"], size=18)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match=r"rank and rows must be 0 or more"):
        StableDiffusion(rank=-1)


def test_without_a_folder_it_says_where_to_get_one(tmp_path):
    for weights, said in ((None, "needs its published files"), (tmp_path / "none", "is missing")):
        with pytest.raises(FileNotFoundError, match=said) as error:
            StableDiffusion(weights=weights).load()
        assert "align3d download stable-diffusion" in str(error.value) and "huggingface.co" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "no file"])
def test_weights_that_do_not_fit_are_refused(tmp_path, part, damage):
    folder = write_stable_diffusion(tmp_path / "sd")
    path = next((folder / part).glob("*.safetensors"))
    state = load_file(path)
    key = sorted(state)[3]
    if damage == "no file":
        path.unlink()
        key = path.name
    elif damage == "missing":
        del state[key]
    elif damage == "extra":
        key = "another.weight"
        state[key] = torch.zeros(2)
    else:
        state[key] = torch.zeros(3, 3)
    if damage != "no file":
        save_file(state, path)
    kind = FileNotFoundError if damage == "no file" else ValueError
    with pytest.raises(kind) as error:
        prior_of(folder)
    said = str(error.value)
    assert key.removeprefix("text_model.") in said and "huggingface.co" in said and "\n" not in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample', expected epsilon or v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"beta_start": None}, "gives no noise levels"),
        ({"num_train_timesteps": 1}, "gives no noise levels"),
    ],
)
def test_other_schedulers_are_refused(folders, tmp_path, changes, said):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(json.loads((folders["v"] / "scheduler" / path.name).read_text()) | changes))
    with pytest.raises(ValueError, match=said):
        read_schedule(path)


def test_the_noise_levels_are_those_of_the_scheduler(folders):
    schedule, prediction = read_schedule(folders["v"] / "scheduler" / "scheduler_config.json")
    assert prediction == "v_prediction" and schedule.kind == "scaled_linear"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    levels = torch.arange(1000, dtype=torch.float64) / 999
    torch.testing.assert_close(schedule.alpha(levels) ** 2, (1 - betas).cumprod(0))


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"in_channels": 9}, "variants that see a mask"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'"),
        ("unet", {"cross_attention_dim": 6}, "gives 4 numbers a token, the UNet reads 6"),
    ],
)
def test_networks_that_do_not_belong_together_are_refused(tmp_path, part, changes, said):
    from diffusers import UNet2DConditionModel

    folder = write_stable_diffusion(tmp_path / "sd")
    config = json.loads((folder / part / "config.json").read_text()) | changes
    more = {"addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 8}
    network = UNet2DConditionModel.from_config(config | (more if "addition_embed_type" in changes else {}))
    network.save_config(folder / part)
    save_file(network.state_dict(), Path(folder / part / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(ValueError, match=said):
        prior_of(folder)


def test_a_tiny_decoder_of_other_latents_is_refused(folders, tmp_path):
    from diffusers import AutoencoderTiny

    network = AutoencoderTiny(
        latent_channels=3,
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    network.save_config(tmp_path)
    save_file(network.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"decodes 3 channels, latents have 4.*madebyollin/taesd"):
        prior_of(folders["base"], tiny=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none/config\.json is missing.*madebyollin/taesd"):
        prior_of(folders["base"], tiny=tmp_path / "none")
