"""The published generators from tiny checkpoints of their layout: loaded, sampled, trained, saved, refused."""

import json
import shutil

import pytest
import torch
from tiny_published import FAMILIES, tiny_network, write_published

from align3d.diffusion.sampler import rollout, sampling_times
from align3d.models import published
from align3d.models.published import DiffSplatPAS, DiffSplatSD15, DiffSplatSD35m
from align3d.models.text import Text
from align3d.rng import Streams
from align3d.scenes.cameras import orbit

MODELS = {"pas": DiffSplatPAS, "sd15": DiffSplatSD15, "sd35m": DiffSplatSD35m}
PROMPTS = ["a red cube", "a blue cone"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A folder of published files for each family; that of SD3.5 in shards."""
    folder = tmp_path_factory.mktemp("published")
    return {name: write_published(folder / name, name, sharded=name == "sd35m") for name in FAMILIES}


def words(family):
    """A text source of the family's widths: numbers that depend on the prompt alone."""
    width, pooled = FAMILIES[family].text

    def source(prompts):
        seeds = [torch.Generator().manual_seed(sum(map(ord, prompt))) for prompt in prompts]
        states = torch.stack([torch.randn(6, width, generator=g) for g in seeds])
        keep = (torch.arange(6) < torch.tensor([[2 + len(prompt) % 4] for prompt in prompts])).float()
        keep = keep if family == "pas" else torch.ones_like(keep)
        return Text(states, keep, torch.stack([torch.randn(pooled, generator=g) for g in seeds]) if pooled else None)

    return source


@pytest.fixture
def load(roots, monkeypatch):
    """Loads a family in float32, two steps."""

    def make(family, **options):
        monkeypatch.setattr(published.Published, "texts", lambda self, device, width, pooled=0: words(family))
        monkeypatch.setattr(published.Published, "need_text", lambda self: None)
        options = {"weights": roots[family], "precision": "float32", "steps": 2, "rank": 2} | options
        return MODELS[family](**options).load()

    return make


def rng(first=0, size=2):
    return Streams.batch(0, 0, first, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_samples_and_draws(load, family):
    model = load(family)
    channels = 16 if family == "sd35m" else 4
    assert model.latent_shape == (4, channels, 4, 4) and model.cameras.width == 32
    with torch.no_grad():
        traj = rollout(model, PROMPTS, sampling_times(model), rng())
        alone = rollout(model, PROMPTS[1:], sampling_times(model), rng(first=1, size=1))
    assert traj.x.isfinite().all() and not torch.equal(traj.x[0], traj.x[1])
    torch.testing.assert_close(traj.x[1:], alone.x, rtol=1e-3, atol=1e-4)
    azimuth = torch.tensor([[10.0, 130.0, 250.0]]).expand(2, -1)
    views = model.decode(traj.x[:, -1]).render(orbit(azimuth, torch.zeros_like(azimuth), height=9, width=11))
    assert views.rgb.shape == (2, 3, 3, 9, 11) and views.rgb.isfinite().all()
    assert not model.decode(traj.x[:, -1]).raster.normalize_quats  # the weights were trained with raw quaternions


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_sample_and_the_adapter(load, family):
    model = load(family)
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    eps = model.predict(x, torch.tensor([0.9, 0.3]), model.encode(PROMPTS))
    (eps.square().sum() + model.decode(x).means.square().sum()).backward()
    assert x.grad.isfinite().all() and (x.grad.flatten(1).norm(dim=1) > 0).all()
    grads = [p.grad for name, p in model.adapter.named_parameters() if "lora_B" in name]  # A's are 0 at first
    used = [g for g in grads if g is not None and g.abs().max() > 0]
    assert len(used) >= len(grads) - 2 and all(g.isfinite().all() for g in used)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_saved_changes_no_number(load, family):
    plain, lean = load(family), load(family, recompute=True, decode_rows=3)
    grads = []
    passes = []
    for model in (plain, lean):
        first = next(m for name, m in model.network.named_modules() if name.endswith("attn1") or name.endswith(".attn"))
        passes.append(0)
        first.register_forward_pre_hook(lambda *_: passes.__setitem__(-1, passes[-1] + 1))
        x = torch.ones(2, *model.latent_shape).requires_grad_()
        eps = model.predict(x, torch.tensor([0.9, 0.3]), model.encode(PROMPTS))
        (eps.square().sum() + model.decode(x).colors.square().sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)
    assert passes == [1, 2]


def test_what_the_options_change(load):
    model = load("pas")
    x, t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.3])
    cond = model.encode(PROMPTS)
    exact = load("pas", rays="exact")
    with torch.no_grad():
        one = load("pas", guidance=1.0).predict(x, t, cond)
        assert not torch.allclose(model.predict(x, t, cond), one)
        assert not torch.allclose(exact.predict(x, t, cond), model.predict(x, t, cond))
        assert not torch.equal(load("pas", decoder="tiny").decode(x).colors, model.decode(x).colors)
        low = load("pas", precision="bfloat16").predict(x, t, cond)
    assert low.dtype == torch.float32 and 0 < (low - model.predict(x, t, cond)).abs().max() < 0.5
    assert sampling_times(load("pas", spacing="trailing")).tolist() != sampling_times(model).tolist()


def test_adapters_on_all_layers_are_those_of_the_released_code(load, tmp_path):
    model = load("pas", layers="all")
    names = {name.rpartition(".lora_")[0] for name, _ in model.adapter.named_parameters()}
    assert {"pos_embed.proj", "adaln_single.linear", "caption_projection.linear_1", "proj_out"} <= names | {"proj_out"}
    assert "adaln_single.emb.timestep_embedder.linear_2" in names and "transformer_blocks.1.attn2.to_out.0" in names
    model.save_adapter(tmp_path / "mine")
    again = load("pas", layers="all", adapter=tmp_path / "mine")
    for p, q in zip(model.adapter.parameters(), again.adapter.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_newest_checkpoint_counts(roots, tmp_path):
    root = shutil.copytree(roots["pas"], tmp_path / "root")
    run = root / DiffSplatPAS.run
    assert published.newest(run).name == "013020"
    (run / "checkpoints/020000").mkdir()
    assert published.newest(run).name == "020000"


def gone(root):
    shutil.rmtree(root / DiffSplatPAS.codec)


def cut(root):
    (file,) = root.glob(f"{DiffSplatPAS.run}/**/*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def wider(root):
    (file,) = root.glob(f"{DiffSplatPAS.run}/**/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 12}))


def no_vae(root):
    (file,) = root.glob(f"{DiffSplatPAS.codec}/**/model.safetensors")
    (other,) = root.glob(f"{DiffSplatPAS.run}/**/*.safetensors")
    shutil.copy(other, file)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (gone, "gsvae_gobj265k_sdxl_fp16/checkpoints holds no checkpoint; --model.weights takes the files of hugging"),
        (cut, r"diffusion_pytorch_model\.safetensors is damaged"),
        (wider, r"does not fit PixArtTransformer2DModel: 1 of another shape, such as pos_embed\.proj\.weight"),
        (no_vae, "holds no GS-VAE that fits: no weights of a GS-VAE"),
    ],
)
def test_what_does_not_fit_is_named(roots, tmp_path, monkeypatch, harm, message):
    monkeypatch.setattr(published.Published, "texts", lambda self, device, width, pooled=0: words("pas"))
    monkeypatch.setattr(published.Published, "need_text", lambda self: None)
    root = shutil.copytree(roots["pas"], tmp_path / "root")
    harm(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        DiffSplatPAS(weights=root).load()


def test_a_denoiser_that_sees_a_picture_is_refused(load):
    model = load("pas")
    network = tiny_network("pas", in_channels=11)
    with pytest.raises(ValueError, match="has 11 input channels, expected 10: latents and rays"):
        model.options.assemble(network, model.codec, words("pas"))


def test_what_is_not_given_is_asked_for(roots, tmp_path):
    with pytest.raises(FileNotFoundError, match="weights is not given; it takes the files of hugging"):
        DiffSplatPAS().load()
    with pytest.raises(FileNotFoundError, match="is no folder"):
        DiffSplatSD15(weights=tmp_path / "none").load()
    with pytest.raises(ValueError, match=r"give --model\.cache, a folder that `align3d embed` wrote, or --model\.text"):
        DiffSplatPAS(weights=roots["pas"]).load()
    with pytest.raises(ValueError, match=r"model\.steps must be at least 1, got 0"):
        DiffSplatPAS(steps=0)
