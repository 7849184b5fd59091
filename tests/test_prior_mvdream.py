"""MVDream as a prior, on files in the published layout whose networks are narrow; numbers of the original code."""

import json
import pickle
import warnings

import pytest
import torch
from tiny_priors import (
    DATA,
    LAYOUTS,
    SIDE,
    V15,
    V21,
    mvdream_state,
    numbers,
    pictures,
    published_shapes,
    write_mvdream,
)
from tiny_text import write_texts

from align3d.loop import Loop, fit
from align3d.methods.sds import SDS
from align3d.models.text import Text
from align3d.priors import PRIORS, mvdream
from align3d.priors.mvdream import MVDream, MVDream15, blender_poses
from align3d.registry import load
from align3d.scenes.cameras import orbit, pixel_rays
from align3d.scenes.rings import Ring
from align3d.scenes.splats import Splats, ball
from align3d.subjects import Distilled
from align3d.types import Cameras, Prior

B, V = 2, 3
PROMPTS = ["a red mug", "two dogs"]
CLASSES = {V21: MVDream, V15: MVDream15}
RECORDED = json.loads((DATA / "numbers.json").read_text())
FULL = dict(mvdream.LAYOUTS)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(mvdream, "LAYOUTS", LAYOUTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("mvdream")
    return {file: write_mvdream(base / file, file) for file in CLASSES}


def prior_of(folder, file=V21, **options):
    return CLASSES[file](weights=folder, **{"size": 8 * SIDE, "precision": "float32"} | options).load()


@pytest.fixture(scope="module")
def priors(folders):
    before, mvdream.LAYOUTS = mvdream.LAYOUTS, LAYOUTS
    try:
        return {file: prior_of(folders[file], file) for file in CLASSES}
    finally:
        mvdream.LAYOUTS = before


@pytest.fixture(scope="module")
def prior(priors):
    return priors[V21]


def ring(*azimuths, elevation=15.0, radius=1.4, rows=1):
    azimuth = torch.tensor([azimuths]).expand(rows, -1)
    return orbit(azimuth, torch.full_like(azimuth, elevation), radius=radius, height=8, width=8)


def views_of(cameras, order):
    return Cameras(cameras.c2w[:, order], cameras.K[:, order], cameras.height, cameras.width)


def inputs(views=V):
    cameras = Ring(views=views, size=8)(_streams(B))
    return numbers("x", B, views, 4, SIDE, SIDE), torch.tensor([0.9, 0.3]), cameras


def _streams(rows):
    from align3d.rng import Streams

    return Streams.batch(0, 0, 0, rows)


def test_it_is_a_prior(prior):
    assert isinstance(prior, Prior)
    assert (prior.views, prior.latent_shape, prior.size, prior.adapter) == (4, (4, SIDE, SIDE), 64, None)
    assert load(PRIORS, "mvdream") is MVDream and load(PRIORS, "mvdream-1.5") is MVDream15
    assert MVDream().size == 256


@pytest.mark.parametrize("file", CLASSES)
def test_names_and_shapes_are_those_of_the_published_file(file):
    """All of them, at full size, without memory; as the original classes give them."""
    layout = FULL[file]
    parts = mvdream.empty_parts(layout)
    published = dict(published_shapes(file))
    published.pop("cond_stage_model.transformer.text_model.embeddings.position_ids", None)
    assert mvdream.expected(layout, parts) == published
    count = sum(p.numel() for p in parts["unet"].network.parameters())
    assert count == {V21: 867_572_164, V15: 861_182_404}[file]


def thinned(value):
    """The numbers that are recorded of a tensor."""
    if value.ndim == 4:
        step = 4 if value.shape[-1] <= 8 else 16
        return value[..., ::step, ::step].flatten()
    return value[:, :8, ::8].flatten()


@pytest.mark.parametrize("file", CLASSES)
def test_it_says_what_the_original_says(priors, file):
    prior, recorded = priors[file], {k: torch.tensor(v) for k, v in RECORDED["files"][file].items()}
    x, t = numbers("x", 2, 4, 4, 8, 8), torch.tensor([37, 701]) / 999
    text = Text(numbers("states", 2, 77, 32), torch.ones(2, 77))
    first, second = ring(0.0, 90.0, 180.0, 270.0), ring(-45.0, 45.0, 135.0, 225.0, elevation=30.0, radius=2.0)
    cameras = Cameras(torch.cat([first.c2w, second.c2w]), torch.cat([first.K, second.K]), 8, 8)
    rgb, latents = pictures(1, 2, 64, 64), 0.8 * numbers("latents", 2, 4, 8, 8)
    mean = prior.latents(rgb)
    ids = torch.tensor([[54, 17, 4, 29, 53, 55] + [0] * 71, [54, 3, 8, 55] + [0] * 73])
    ids = ids if file == V21 else torch.where(ids == 0, 55, ids)  # what texts are filled up with
    found = {
        "eps": prior.predict(x, t, text, cameras).flatten(0, 1),
        "eps_alone": prior.predict(x[:, :1], t, text)[:, 0],
        "mean": mean[0],
        "std": (prior.latents(rgb, torch.ones_like(mean)) - mean)[0],
        "states": prior.text.tower.encoder(input_ids=ids)[0],
    }
    for name, value in found.items():
        torch.testing.assert_close(thinned(value), recorded[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    shown = (recorded["decoded"] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(thinned(prior.images(latents[None])[0]), shown, atol=1e-5, rtol=0)
    for level, bar in RECORDED["alphas_cumprod"].items():
        assert float(prior.schedule.alpha(torch.tensor(int(level) / 999)) ** 2) == pytest.approx(bar, abs=1e-6)


def test_cameras_are_told_as_the_original_tells_them():
    """Our azimuth 0 is 90 there, where the demo starts and objects face."""
    recorded = {name: torch.tensor(rows) for name, rows in RECORDED["cameras"].items()}
    ours = blender_poses(ring(0.0, 90.0, 180.0, 270.0, radius=2.3), front=90.0)[0]
    torch.testing.assert_close(ours, recorded["get_camera 4 15 90"], atol=1e-6, rtol=0)
    plain = blender_poses(ring(0.0, 120.0, 240.0, elevation=5.0))[0]
    torch.testing.assert_close(plain, recorded["get_camera 3 5 0"], atol=1e-6, rtol=0)
    assert MVDream().front == 90.0


def test_poses_see_what_the_cameras_see():
    """A camera there looks along -z with y up, from distance 1; the world is ours, turned and with z up."""
    cameras = ring(20.0, 200.0, radius=3.0, elevation=25.0)
    pose = blender_poses(cameras, front=90.0).unflatten(-1, (4, 4))
    origin, rays = pixel_rays(cameras)
    ours = rays[0, :, :, 2, 6]  # right of the middle and above it
    local = torch.einsum("vji,vj->vi", cameras.c2w[0, :, :3, :3], ours) * torch.tensor([1.0, -1.0, -1.0])
    theirs = torch.einsum("vij,vj->vi", pose[0, :, :3, :3], local)
    assert (local[:, 0] > 0).all() and (local[:, 1] > 0).all() and (local[:, 2] < 0).all()
    a = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # +Z there: +X; +X: +Y; up: +Z
    torch.testing.assert_close(theirs, ours @ a.T)
    torch.testing.assert_close(pose[0, :, :3, 3], origin[0, :, :, 0, 0] @ a.T / 3.0)
    torch.testing.assert_close(pose[..., 3, :], torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(1, 2, 4))


@pytest.mark.parametrize("file", CLASSES)
def test_views_in_another_order_come_out_in_that_order(priors, file):
    prior, (x, t, cameras), order = priors[file], inputs(4), [2, 0, 3, 1]
    cond = prior.encode(PROMPTS)
    eps = prior.predict(x, t, cond, cameras)
    torch.testing.assert_close(
        prior.predict(x[:, order], t, cond, views_of(cameras, order)), eps[:, order], atol=1e-5, rtol=1e-5
    )
    assert (prior.predict(x, t, cond, views_of(cameras, order)) - eps).abs().max() > 1e-3


def test_views_see_each_other_and_rows_do_not(prior):
    x, t, cameras = inputs()
    cond = prior.encode(PROMPTS)
    eps = prior.predict(x, t, cond, cameras)
    other = x.clone()
    other[1, 2] += 1
    moved = prior.predict(other, t, cond, cameras)
    torch.testing.assert_close(moved[0], eps[0])
    assert ((moved[1] - eps[1]).flatten(1).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("file", CLASSES)
def test_batched_is_serial(priors, file):
    prior, (x, t, cameras) = priors[file], inputs()
    eps = prior.predict(x, t, prior.encode(PROMPTS), cameras)
    for i in range(B):
        own = Cameras(cameras.c2w[i : i + 1], cameras.K[i : i + 1], 8, 8)
        one = prior.predict(x[i : i + 1], t[i : i + 1], prior.encode(PROMPTS[i : i + 1]), own)
        torch.testing.assert_close(one[0], eps[i], atol=1e-5, rtol=1e-5)
    assert (eps[0] - eps[1]).abs().max() > 0.01


@pytest.mark.parametrize("file", CLASSES)
def test_one_view_without_a_camera_is_the_ordinary_unet(priors, file):
    from diffusers import UNet2DConditionModel

    prior, (x, t, _) = priors[file], inputs(1)
    own = prior.painter.network
    config = {k: v for k, v in own.config.items() if "class_embed" not in k and not k.startswith("_")}
    stock = UNet2DConditionModel.from_config(config).eval()
    stock.load_state_dict({k: v for k, v in own.state_dict().items() if not k.startswith("class_embedding")})
    cond = prior.encode(PROMPTS)
    wanted = stock(x[:, 0], prior.schedule.index(t), cond.states).sample
    torch.testing.assert_close(prior.predict(x, t, cond)[:, 0], wanted, atol=1e-5, rtol=1e-5)


def test_cameras_are_needed_for_several_views(prior):
    x, t, cameras = inputs()
    cond = prior.encode(PROMPTS)
    with pytest.raises(ValueError, match="needs a camera for each of 3 views of 2 objects, got none"):
        prior.predict(x, t, cond)
    with pytest.raises(ValueError, match=r"got \[2, 2\]"):
        prior.predict(x, t, cond, views_of(cameras, [0, 1]))
    with pytest.raises(ValueError, match=r"latents of this prior are \[4, 8, 8\], got \[4, 4, 8\]"):
        prior.predict(x[..., :4, :], t, cond, cameras)


def test_pictures_become_latents_and_back_with_a_gradient(prior):
    rgb = pictures(B, V, 40, 56).requires_grad_()
    z = prior.latents(rgb)
    assert z.shape == (B, V, 4, SIDE, SIDE)
    grad = torch.autograd.grad(prior.images(z).square().sum(), rgb)[0]
    assert torch.isfinite(grad).all() and (grad.flatten(2).norm(dim=2) > 0).all()


def test_gradients_agree_with_finite_differences(prior):
    import copy

    codec = copy.copy(prior.codec)
    codec.vae = copy.deepcopy(codec.vae).double()
    for call, start in (
        (lambda x: codec.encode(x, 64), pictures(B, 1, 40, 56, torch.float64)),
        (codec.decode, 0.3 * numbers("z", B, 1, 4, SIDE, SIDE).double()),
    ):
        way, weight = numbers("way", *start.shape).double(), numbers("weight", *call(start).shape).double()
        x, h = start.clone().requires_grad_(), 1e-6
        grad = torch.autograd.grad((weight * call(x)).sum(), x)[0]
        slope = (grad * way).flatten(1).sum(1)
        ends = [(weight * call(start + sign * h * way)).flatten(1).sum(1) for sign in (1, -1)]
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-6)
        assert (slope.abs() > 1e-3).all()


@pytest.mark.parametrize("file", CLASSES)
def test_texts(priors, file):
    """77 tokens, filled up with 0 for OpenCLIP and with ends for CLIP; long ones warn once."""
    prior, seen = priors[file], []
    hook = prior.text.tower.encoder.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    prior.memory.texts.clear()
    cond = prior.encode(["ab", "", "ab"])
    hook.remove()
    assert cond.states.shape == (3, 77, 32) and torch.equal(cond.states[0], cond.states[2])
    fill = 0 if file == V21 else 55
    assert [row.tolist() for row in torch.cat(seen)] == [[54, 0, 27, 55] + [fill] * 73, [54, 55] + [fill] * 75]
    with pytest.warns(RuntimeWarning, match="at most 77 tokens"):
        prior.encode(["dog " * 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.encode(["cat " * 50])


def test_texts_by_another_encoder(folders, tmp_path, prior):
    folder = write_texts(tmp_path / "other", {"": "clip"})  # 4 numbers a token
    with pytest.raises(ValueError, match="gives 4 numbers a token, the UNet reads 32"):
        prior_of(folders[V21], text=folder)
    from tiny_text import write_clip

    for part in ("tokenizer", "text_encoder"):
        (tmp_path / "same" / part).mkdir(parents=True)
    write_clip(tmp_path / "same", "", "clip", hidden=32)
    other = prior_of(folders[V21], text=tmp_path / "same")
    assert other.encode(["a"]).states.shape == (1, 77, 32)
    assert not torch.equal(other.encode(["a"]).states, prior.encode(["a"]).states)


def test_the_adapter_trains_and_the_reference_is_without(folders, prior):
    adapted = prior_of(folders[V21], rank=2)
    x, t, cameras = inputs()
    cond = prior.encode(PROMPTS)
    plain = prior.predict(x, t, cond, cameras)
    with torch.no_grad():
        for i, parameter in enumerate(adapted.adapter.parameters()):
            parameter.add_(0.1 * numbers(f"p{i}", *parameter.shape))
    moved = adapted.predict(x, t, cond, cameras)
    assert (moved - plain).flatten(1).abs().amax(1).min() > 1e-3
    for row in moved.square().flatten(1).sum(1):
        grads = torch.autograd.grad(row, list(adapted.adapter.parameters()), retain_graph=True)
        assert all(torch.isfinite(grad).all() and grad.abs().max() > 0 for grad in grads)
    with adapted.reference():
        torch.testing.assert_close(adapted.predict(x, t, cond, cameras), plain, atol=1e-5, rtol=1e-5)


def test_half_precision_is_close_and_its_logits_are_not_half(folders, prior, monkeypatch):
    half = prior_of(folders[V21], precision="bfloat16")
    x, t, cameras = inputs()
    cond, kinds = prior.encode(PROMPTS), set()
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda q, k, v, **more: kinds.add((q.dtype, k.dtype)) or plain(q, k, v, **more),
    )
    eps, wanted = half.predict(x, t, cond, cameras), prior.predict(x, t, cond, cameras)
    assert eps.dtype == torch.float32 and (eps - wanted).norm() < 0.05 * wanted.norm()
    assert kinds == {(torch.float32, torch.float32)}
    assert half.painter.network.conv_in.weight.dtype == torch.bfloat16


def test_gaussians_are_distilled_from_it(prior):
    scene = Splats(ball(64, generator=torch.Generator().manual_seed(0)))
    before = {name: value.detach().clone() for name, value in scene.named_parameters()}
    subject = Distilled(scene, prior, Ring(views=4, size=16))
    loop = Loop(updates=3, batch_size=1, learning_rate=0.01, warmup=0, max_grad_norm=0.0)
    lines = fit(subject, SDS(guidance=7.5), lambda *_: None, PROMPTS, loop, progress=False)
    assert len(lines) == 3 and all(line["pull"] > 0 for line in lines)
    for name, value in scene.named_parameters():
        assert torch.isfinite(value).all() and not torch.equal(value, before[name])


def test_converted_once_it_needs_the_published_file_no_more(tmp_path, prior):
    folder = write_mvdream(tmp_path / "mv")
    assert MVDream.convert(folder) == folder / f"{V21}.safetensors" and MVDream.convert(folder) is None
    (folder / f"{V21}.pt").unlink()
    again, (x, t, cameras) = prior_of(folder), inputs()
    for a, b in (
        (again.predict(x, t, again.encode(PROMPTS), cameras), prior.predict(x, t, prior.encode(PROMPTS), cameras)),
        (again.latents(pictures()), prior.latents(pictures())),
    ):
        assert torch.equal(a, b)


UNET_KEY = "model.diffusion_model.output_blocks.2.1.conv.weight"
DAMAGE = {
    "missing": (lambda s: s.pop(UNET_KEY), UNET_KEY),
    "a text's": (lambda s: s.pop("cond_stage_model.model.text_projection"), "cond_stage_model.model.text_projection"),
    "extra": (lambda s: s.update({"model_ema.decay": torch.zeros(1)}), "model_ema.decay"),
    "misshapen": (lambda s: s.update({UNET_KEY: torch.zeros(3, 3)}), f"{UNET_KEY} [3, 3]"),
    "nan": (lambda s: s.update({"first_stage_model.quant_conv.bias": torch.full((8,), torch.nan)}), "quant_conv.bias"),
    "betas": (lambda s: s.update({"betas": torch.linspace(1e-4, 0.02, 1000)}), "noise levels"),
}


@pytest.mark.parametrize(("how", "damage"), [*(("load", name) for name in DAMAGE), ("convert", "missing")])
def test_files_that_do_not_fit_are_refused(tmp_path, how, damage):
    change, said = DAMAGE[damage]
    state = dict(mvdream_state(V21))
    change(state)
    folder = write_mvdream(tmp_path / "mv", state=state)
    with pytest.raises(ValueError) as error:
        prior_of(folder) if how == "load" else MVDream.convert(folder)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert how == "convert" or "https://huggingface.co/MVDream/MVDream" in str(error.value)
    assert not list(folder.glob("*.safetensors"))


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def test_files_that_carry_code_are_refused(tmp_path, capsys):
    folder = write_mvdream(tmp_path / "mv", state={"betas": torch.zeros(1)})
    torch.save({"betas": torch.zeros(1), "more": Harm()}, folder / f"{V21}.pt")
    with pytest.raises(ValueError, match="could run code") as error:
        prior_of(folder)
    (folder / f"{V21}.pt").write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(ValueError, match=r"could run code|damaged"):
        prior_of(folder)
    assert "\n" not in str(error.value) and "huggingface.co" in str(error.value)
    assert "harm" not in capsys.readouterr().out


def test_missing_files_are_named_with_where_to_get_them(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match=f"{V21}.pt is missing") as error:
        prior_of(tmp_path)
    assert f"`align3d download mvdream --out {tmp_path} --yes`" in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"{V15}.pt is missing.*align3d download mvdream-1.5"):
        prior_of(tmp_path, V15)
    with pytest.raises(FileNotFoundError, match=r"vocab\.json is missing"):
        (tmp_path / f"{V21}.pt").symlink_to(folders[V21] / f"{V21}.pt")
        prior_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="needs its published files"):
        MVDream().load()


def test_sizes_and_angles_that_cannot_be_are_refused(folders):
    with pytest.raises(ValueError, match=r"prior\.size must be a multiple of 64 pixels"):
        prior_of(folders[V21], size=100)
    with pytest.raises(ValueError, match=r"prior\.front must be a finite number"):
        MVDream(front=float("nan"))
