"""The three denoisers: against stock networks, slow twins and numbers of the released code, at a tiny size."""

import copy
import functools
import json

import pytest
import torch
from tiny_published import FAMILIES, published_config, tiny_network, write_denoiser

from align3d.diffusion.schedule import DiscreteVP
from align3d.models.text import Text

B, V, H, W = 2, 3, 4, 6
LABELS = {"pas": DiscreteVP().index, "sd15": DiscreteVP(kind="scaled_linear").index}
TIMES = torch.tensor([0.13, 0.77])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def denoiser(family, num_views=V, **options):
    from align3d.models.nets import denoisers

    label = {"label": LABELS[family]} if family in LABELS else {}
    return getattr(denoisers, FAMILIES[family].denoiser)(network_of(family), num_views, **label | options)


@functools.cache
def built(family):
    return tiny_network(family)


def network_of(family):
    """A new copy."""
    return copy.deepcopy(built(family))


def inputs(family, num_views=V):
    """States with rays, times and texts, the first of which has padding where that means something."""
    rng = torch.Generator().manual_seed(7)
    width, pooled = FAMILIES[family].text
    keep = torch.ones(B, 7)
    keep[0, 4:] = float(family != "pas")
    x = torch.randn(B, num_views, FAMILIES[family].config["in_channels"], H, W, generator=rng)
    states = torch.randn(B, 7, width, generator=rng)
    latents = x.shape[2] - 6
    weight = torch.randn(B, num_views, 8 if latents == 4 else latents, H, W, generator=rng)[:, :, :latents]
    return x, Text(states, keep, torch.randn(B, pooled, generator=rng) if pooled else None), weight


def stock_rows(family, network, x, label, text):
    """The stock network, on rows with a text each."""
    if family == "pas":
        return network(x, text.states, label, encoder_attention_mask=text.keep, return_dict=False)[0]
    if family == "sd15":
        return network(x, label, text.states, return_dict=False)[0]
    return network(x, text.states, text.pooled, label, return_dict=False)[0]


class OneObject:
    """A stock processor that sees the rows of one object as one row, and their texts, all the same, as one."""

    def __init__(self, stock):
        self.stock = stock

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
        joint = attn.add_k_proj is not None
        if encoder_hidden_states is not None and not joint:
            return self.stock(attn, hidden_states, encoder_hidden_states, **options)
        rows = len(hidden_states)
        context = encoder_hidden_states[:1] if joint else None
        out = self.stock(attn, hidden_states.flatten(0, 1)[None], context, **options)
        if not joint:
            return out.unflatten(1, (rows, -1))[0]
        return out[0].unflatten(1, (rows, -1))[0], out[1].expand(rows, -1, -1)


def slow(family, network, x, label, text):
    """What a denoiser does, one object after the other, by stock processors and rows for everything."""
    for name, processor in network.attn_processors.items():
        network.get_submodule(name.removesuffix(".processor")).set_processor(OneObject(processor))
    rows = []
    for b in range(B):
        row = [None if part is None else part[b : b + 1].repeat_interleave(V, 0) for part in vars(text).values()]
        rows.append(stock_rows(family, network, x[b], label[b].expand(V), Text(*row)))
    return torch.stack(rows)[:, :, : x.shape[2] - 6]


def run(function, x, weight):
    """Output and gradient."""
    x = x.clone().requires_grad_()
    out = function(x)
    (out * weight).sum().backward()
    return out.detach(), x.grad


def close(ours, true, tolerance=1e-5):
    return bool((ours - true).abs().max() <= tolerance * true.abs().max())


def test_one_view_is_the_stock_network(family):
    x, text, _ = inputs(family, 1)
    ours = denoiser(family, 1)
    stock = stock_rows(family, network_of(family), x[:, 0], ours.label(TIMES), text)
    assert close(ours(x, TIMES, text)[:, 0], stock[:, : x.shape[2] - 6])


def test_views_are_one_sequence(family):
    x, text, weight = inputs(family)
    ours = denoiser(family)
    out, grad = run(lambda leaf: ours(leaf, TIMES, text), x, weight)
    true, true_grad = run(lambda leaf: slow(family, network_of(family), leaf, ours.label(TIMES), text), x, weight)
    assert out.shape == (B, V, x.shape[2] - 6, H, W) and out.dtype == torch.float32
    assert close(out, true) and close(grad, true_grad)
    assert grad.isfinite().all() and (grad.flatten(1).norm(dim=1) > 0.1).all()


RELEASED = {  # output[:, -1, 1, -1, :2], the same of its gradient, norms of both by object; DiffSplat, commit a99d757
    "pas": (
        [4.03138, -2.10433, 2.24009, -2.59211],
        [0.30409, 0.21553, 0.06498, 0.33516],
        [27.2579, 18.3066, 9.8219, 10.7869],
    ),
    "sd15": (
        [0.10126, -0.13532, -0.7084, -0.64519],
        [-0.06288, -0.39114, 0.42727, 0.41358],
        [8.9426, 8.7592, 9.1444, 11.6197],
    ),
    "sd35m": (
        [1.61642, -0.42498, -1.79765, 0.53882],
        [1.59514, -1.33659, -0.67583, 0.24098],
        [34.571, 56.4688, 36.8242, 20.2453],
    ),
}


def test_numbers_of_the_released_code(family):
    x, text, weight = inputs(family)
    ours = denoiser(family)
    found = run(lambda leaf: ours(leaf, TIMES, text), x, weight)
    parts = [part[:, -1, 1, -1, :2].flatten() for part in found]
    parts.append(torch.cat([part.flatten(1).norm(dim=1) for part in found]))
    for part, true in zip(parts, RELEASED[family], strict=True):
        assert torch.allclose(part, torch.tensor(true), rtol=1e-4, atol=2e-5)


def test_objects_are_independent_and_views_are_not(family):
    x, text, _ = inputs(family)
    ours = denoiser(family)
    with torch.no_grad():
        before = ours(x, TIMES, text)
        x[0, 1] += 1.0
        change = (ours(x, TIMES, text) - before).abs().amax((2, 3, 4))
    assert (change[0] > 1e-5).all()
    assert (change[1] == 0).all()


def test_every_object_reads_its_own_time_and_text(family):
    x, text, _ = inputs(family)
    ours = denoiser(family)
    other = Text(text.states.roll(1, 0), text.keep, text.pooled)
    with torch.no_grad():
        before = ours(x, TIMES, text)
        later = ours(x, torch.tensor([0.13, 0.5]), text) - before
        other = ours(x, TIMES, other) - before
    assert (later[0] == 0).all() and (later[1].flatten(1).norm(dim=1) > 1e-3).all()
    assert (other.flatten(2).norm(dim=2) > 1e-3).all()


def test_padding_counts_only_where_it_is_not_masked(family):
    x, text, _ = inputs(family)
    ours = denoiser(family)
    states = text.states.clone()
    states[:, 4:] += 1.0
    keep = torch.ones(B, 7)
    keep[:, 4:] = 0
    with torch.no_grad():
        change = ours(x, TIMES, Text(states, keep, text.pooled)) - ours(x, TIMES, Text(text.states, keep, text.pooled))
    assert (change == 0).all() == (family == "pas")


@pytest.mark.parametrize("lengths", [(5, 9), (33, 2)])
def test_only_padding_that_is_masked_is_cut(family, monkeypatch, lengths):
    from align3d.models.nets import denoisers

    x, _, weight = inputs(family)
    width, pooled = FAMILIES[family].text
    rng = torch.Generator().manual_seed(1)
    states, total = torch.randn(B, 80, width, generator=rng), torch.randn(B, pooled, generator=rng)
    keep = (torch.arange(80) < torch.tensor(lengths)[:, None]).float()
    text = Text(states, keep, total if pooled else None)
    ours, seen = denoiser(family), []
    ours.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    out, grad = run(lambda leaf: ours(leaf, TIMES, text), x, weight)
    monkeypatch.setattr(denoisers, "longest", lambda text: text.keep.shape[1])
    true, true_grad = run(lambda leaf: ours(leaf, TIMES, text), x, weight)
    assert seen == [{5: 32, 33: 64}[lengths[0]] if family == "pas" else 80, 80]
    assert close(out, true) and close(grad, true_grad)
    assert (true_grad.flatten(1).norm(dim=1) > 0.1).all()


def test_labels_of_times():
    t = torch.tensor([0.0, 0.3337, 1.0])
    assert denoiser("pas").label(t).tolist() == [0, 333, 999]
    assert torch.allclose(denoiser("sd35m").label(t), torch.tensor([0.0, 333.7, 1000.0]))


def test_float32_softmax_is_for_self_attention_and_late_norms(family, monkeypatch):
    from diffusers.models.attention_processor import Attention
    from diffusers.models.normalization import FP32LayerNorm

    from align3d.models.nets import multiview

    x, text, _ = inputs(family)
    plain, wide = denoiser(family), denoiser(family, softmax="float32")
    assert close(wide(x, TIMES, text), plain(x, TIMES, text), 1e-6)
    assert plain.network.state_dict().keys() == wide.network.state_dict().keys()
    norms = {"pas": 2 + 1, "sd15": 3 + 1 + 6, "sd35m": 3 + 2 + 1}  # before each feed-forward, and the output
    assert sum(isinstance(m, FP32LayerNorm) for m in wide.network.modules()) == norms[family]
    assert not any(isinstance(m, FP32LayerNorm) for m in plain.network.modules())
    seen, attend = [], multiview.attend

    def spy(q, k, v, bias, scale, softmax):
        seen.append((k.shape[2], softmax))
        return attend(q, k, v, bias, scale, softmax)

    monkeypatch.setattr(multiview, "attend", spy)
    wide.network.bfloat16()
    wide(x, TIMES, text)
    assert len(seen) == sum(isinstance(m, Attention) for m in wide.network.modules())
    assert {kind for m, kind in seen if m == 7} == (set() if family == "sd35m" else {"network"})
    assert {kind for m, kind in seen if m != 7} == {"float32"}


def test_bfloat16_weights_take_and_give_float32(family):
    x, text, _ = inputs(family)
    ours, coarse = denoiser(family), denoiser(family)
    coarse.network.bfloat16()
    out = coarse(x, TIMES, text)
    assert coarse.dtype == torch.bfloat16 and out.dtype == torch.float32
    assert torch.equal(out, out.bfloat16().float())
    assert close(out, ours(x, TIMES, text), 0.05)


def test_a_wider_input_layer_changes_nothing_at_first(family):
    from align3d.models.nets import denoisers

    kind = getattr(denoisers, FAMILIES[family].denoiser)
    x, text, _ = inputs(family, 1)
    latents = x.shape[2] - 6
    narrow = type(network_of(family)).from_config(
        denoisers.stock_config(FAMILIES[family].config) | {"in_channels": latents}
    )
    wide = network_of(family)
    tensors = denoisers.widened(narrow.state_dict(), kind.entry, x.shape[2])
    wide.load_state_dict(tensors)
    with torch.no_grad():
        ours = stock_rows(family, wide, x[:, 0], torch.tensor([130, 770]), text)
        stock = stock_rows(family, narrow.eval(), x[:, 0, :latents], torch.tensor([130, 770]), text)
    assert close(ours, stock)
    assert (tensors[kind.entry][:, latents:] == 0).all()
    with pytest.raises(ValueError, match=f"has {latents + 6} input channels already"):
        denoisers.widened(tensors, kind.entry, latents)


@pytest.mark.parametrize("sharded", [False, True])
def test_published_folders_are_those_of_the_network(family, sharded, tmp_path):
    from align3d.models.nets.denoisers import stock_config
    from align3d.weights import load_part

    folder = write_denoiser(tmp_path / "x", family, sharded)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert values == published_config(family)
    true = network_of(family)
    network = load_part(type(true), folder, config=stock_config)
    assert len(list(folder.glob("*.safetensors"))) == 1 + sharded
    found = network.state_dict()
    assert found.keys() == true.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in true.state_dict().items())


def test_what_does_not_fit_is_refused(family):
    from align3d.models.nets import denoisers

    x, text, _ = inputs(family, 2)
    ours = denoiser(family)
    with pytest.raises(ValueError, match="joins 3 views of an object, got 2"):
        ours(x, TIMES, text)
    other = denoisers.UNet if family == "pas" else denoisers.PixArt
    with pytest.raises(ValueError, match=f"takes a {other.stock}, got a {ours.stock}"):
        other(ours.network, V, ours.label)
    if family == "sd35m":
        with pytest.raises(ValueError, match="needs the pooled states"):
            ours(inputs(family)[0], TIMES, Text(text.states, text.keep))
