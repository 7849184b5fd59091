"""One visible policy of precision and memory for the published generators, on tiny ones: what is bfloat16 and what not,
and that recomputation changes no gradient."""

import pytest
import torch
from tiny_model import shake
from tiny_published import FAMILIES, tiny_gs_vae, tiny_network

from align3d.loop import Loop
from align3d.methods.nabla import Nabla
from align3d.models.nets.wide_linear import WideLinear
from align3d.models.published import DiffSplatPAS, DiffSplatSD15, DiffSplatSD35m
from align3d.models.text import Text
from align3d.rewards.colorfulness import Colorfulness
from align3d.rewards.score import Scorer
from align3d.scenes.cameras import CameraSampling
from align3d.trainer import Trainer

MODELS = {"pas": DiffSplatPAS, "sd15": DiffSplatSD15, "sd35m": DiffSplatSD35m}
PROMPTS = ["a red cube", "a blue cone"]
TIMES = torch.tensor([0.9, 0.3])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def model_of(family, dtype=torch.float32, **options):
    """A tiny generator whose texts are random, of a length of their own each."""
    width, pooled = FAMILIES[family].text

    def words(prompts):
        seeds = [torch.Generator().manual_seed(sum(map(ord, prompt))) for prompt in prompts]
        states = torch.stack([torch.randn(6, width, generator=g) for g in seeds])
        keep = (torch.arange(6) < torch.tensor([[2 + len(prompt) % 4] for prompt in prompts])).float()
        return Text(states, keep, torch.stack([torch.randn(pooled, generator=g) for g in seeds]) if pooled else None)

    made = MODELS[family](**{"steps": 2, "rank": 2} | options)
    codec = tiny_gs_vae(family, decoder=made.decoder, chunk=made.decode_rows, recompute=made.recompute)
    return made.assemble(tiny_network(family).to(dtype), codec, words)


def states(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))


def test_base_in_bfloat16_and_all_that_is_trained_or_subtracted_in_float32(family):
    model = model_of(family, torch.bfloat16)
    names = {id(p) for p in model.adapter.parameters()}
    kinds = {dtype: {p.dtype for p in part} for dtype, part in (
        ("base", [p for p in model.network.parameters() if id(p) not in names]),
        ("adapter", model.adapter.parameters()),
        ("codec", model.codec.parameters()),
    )}  # fmt: skip
    assert kinds == {"base": {torch.bfloat16}, "adapter": {torch.float32}, "codec": {torch.float32}}
    assert model.precision is None  # no autocast

    seen, inside = [], model.denoiser
    model.denoiser = Spy(inside, seen)
    x = states(model).requires_grad_()
    eps = model.predict(x, TIMES, model.encode(PROMPTS))
    assert eps.dtype == torch.float32 and seen == [torch.float32]  # before guidance, which subtracts
    (outputs,) = model.denoiser.outputs
    assert torch.equal(outputs, outputs.bfloat16().float())  # computed in bfloat16 ...
    assert not torch.equal(eps, eps.bfloat16().float())  # ... and subtracted in float32
    scene = model.decode(x)
    assert {tensor.dtype for tensor in scene.tensors} == {torch.float32}
    (eps.square().sum() + scene.colors.square().sum()).backward()
    assert x.grad.dtype == torch.float32 and (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert {p.grad.dtype for p in model.adapter.parameters() if p.grad is not None} == {torch.float32}


class Spy:
    """A denoiser that remembers what it gave."""

    def __init__(self, inside, seen):
        self.inside, self.seen, self.outputs = inside, seen, []

    def __getattr__(self, name):
        return getattr(self.inside, name)

    def __call__(self, *args):
        assert not torch.is_autocast_enabled("cpu")
        out = self.inside(*args)
        self.seen.append(out.dtype)
        self.outputs.append(out.detach())
        return out


def test_an_update_moves_a_float32_adapter_on_a_bfloat16_base(family):
    model = model_of(family, torch.bfloat16)
    cameras = CameraSampling(size=(9, 11), views=3)
    scored = Scorer(Colorfulness(), cameras)
    run = Trainer.start(model, Nabla(beta=100.0, transitions=2), scored, PROMPTS, Loop(batch_size=2))
    before = {name: p.detach().clone() for name, p in run.state.trainable.items()}
    row = run.update(0)
    assert row["grad_norm"] > 0
    moved = [name for name, p in run.state.trainable.items() if not torch.equal(p, before[name])]
    assert len([name for name in moved if "lora_B" in name]) >= len(before) // 2 - 2
    held = [value for entry in run.state.optimizer.state.values() for value in entry.values() if value.ndim]
    assert held and {value.dtype for value in held} == {torch.float32}
    small = max((p.detach() - before[name]).abs().max() for name, p in run.state.trainable.items())
    assert small < 2**-9  # an update that bfloat16 weights near 1 would have lost


def kept(function, frozen):
    """What it returns, and the bytes that it leaves for the backward pass, frozen tensors not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return out, sum(size for place, size in sizes.items() if place not in own)


@pytest.mark.parametrize("decoder", ["full", "tiny"])
def test_recomputation_saves_memory_and_changes_no_gradient(family, decoder):
    grads, sizes = [], []
    for recompute in (False, True):
        model = model_of(family, recompute=recompute, decoder=decoder, decode_rows=3)
        shake(model, 0.1)
        weights = [*model.network.parameters(), *model.codec.parameters()]
        x, cond = states(model).requires_grad_(), model.encode(PROMPTS)
        eps, first = kept(lambda: model.predict(x, TIMES, cond), weights)  # noqa: B023
        scene, second = kept(lambda: model.codec.decode(x), weights)  # noqa: B023
        with model.reference():  # between the passes, as training has it
            model.predict(x, TIMES, cond)
        (eps.square().sum() + scene.square().sum()).backward()
        grads.append([x.grad, *(p.grad for p in model.adapter.parameters())])
        sizes.append((first, second))
    for plain, again in zip(*grads, strict=True):
        assert (plain is None) == (again is None)  # SD3's last block has no use for its context
        assert plain is None or (again - plain).norm() <= 1e-5 * plain.norm()
    used = [grad for grad in grads[0] if grad is not None]
    assert len(used) > 0.9 * len(grads[0]) and all(grad.isfinite().all() and grad.norm() > 0 for grad in used)
    (plain_net, plain_codec), (lean_net, lean_codec) = sizes
    assert lean_net < 0.5 * plain_net and lean_codec < 0.1 * plain_codec


def test_the_adapter_remembers_bfloat16_inputs_as_they_came(family):
    """Against peft's own way, which keeps float32 copies of them."""
    found = []
    for own in (True, False):
        model = model_of(family, torch.bfloat16, rank=4)
        shake(model, 0.1)
        wide = [layer for layer in model.adapter.layers if isinstance(layer.lora_A["default"], WideLinear)]
        assert len(wide) >= 0.8 * len(model.adapter.layers)
        for layer in () if own else wide:
            layer.lora_A["default"].__class__, layer.cast_input_dtype_enabled = torch.nn.Linear, True
        weights = [*model.network.parameters()]
        x, cond = states(model).requires_grad_(), model.encode(PROMPTS)
        eps, size = kept(lambda: model.predict(x, TIMES, cond), weights)  # noqa: B023
        eps.square().sum().backward()
        found.append((eps, [x.grad, *(p.grad for p in model.adapter.parameters())], size))
    (eps, grads, size), (peft_eps, peft_grads, peft_size) = found
    assert torch.equal(eps, peft_eps)
    for grad, true in zip(grads, peft_grads, strict=True):
        assert (grad is None) == (true is None)
        assert grad is None or (grad - true).norm() <= 0.02 * true.norm()  # sums in bfloat16 come in another order
    assert (grads[0].flatten(1).norm(dim=1) > 0).all()
    assert size < 0.85 * peft_size


def test_a_wide_linear_layer_is_the_plain_one():
    rng = torch.Generator().manual_seed(0)
    plain = torch.nn.Linear(5, 4, bias=False)
    x = torch.randn(2, 3, 5, generator=rng).bfloat16().requires_grad_()
    grad = torch.randn(2, 3, 4, generator=rng)
    true = plain(x.float())
    wanted = torch.autograd.grad(true, (x, plain.weight), grad)
    plain.__class__ = WideLinear
    out = plain(x)
    assert out.dtype == torch.float32 and torch.equal(out, true)
    for found, known in zip(torch.autograd.grad(out, (x, plain.weight), grad), wanted, strict=True):
        assert found.dtype == known.dtype
        torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-6)
    assert torch.equal(plain(x.float()), true)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.bfloat16


def test_a_wide_linear_layer_needs_no_numbers():
    layer = WideLinear(5, 4, bias=False, device="meta")
    x = torch.empty(2, 3, 5, dtype=torch.bfloat16, device="meta", requires_grad=True)
    out = layer(x)
    assert out.is_meta and out.dtype == torch.float32 and out.shape == (2, 3, 4)
    grads = torch.autograd.grad(out.sum(), (x, layer.weight))
    assert [(grad.shape, grad.dtype) for grad in grads] == [(x.shape, x.dtype), (layer.weight.shape, torch.float32)]
