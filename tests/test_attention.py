"""Multi-view attention against plain attention, one object and one head at a time, in value and gradient."""

import pytest
import torch

V, DIM, HEADS = 3, 16, 2


@pytest.fixture(params=[None, 5], ids=["self", "cross"])
def attention(request):
    """Stock attention with our processor, over its own tokens or those of a text."""
    from diffusers.models.attention_processor import Attention

    from align3d.models.nets.multiview import set_multiview

    torch.manual_seed(0)
    return set_multiview(Attention(DIM, request.param, heads=HEADS, dim_head=DIM // HEADS, bias=True), V)


def slow(attn, x, text, keep):
    """The same from the definition."""
    rows = []
    for b in range(len(x) // V):
        tokens = torch.cat(list(x[b * V : (b + 1) * V]))
        source = tokens if text is None else text[b * V][keep[b * V].bool()]
        heads = []
        for q, k, v in zip(
            *(f.split(DIM // HEADS, -1) for f in (attn.to_q(tokens), attn.to_k(source), attn.to_v(source))), strict=True
        ):
            heads.append((q @ k.T * (DIM // HEADS) ** -0.5).softmax(-1) @ v)
        rows += attn.to_out[0](torch.cat(heads, -1)).chunk(V)
    return torch.stack(rows)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_is_plain_attention_per_object(attention, precision):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2 * V, 4, DIM, generator=rng)
    cross = attention.to_k.in_features == 5
    text = torch.randn(2, 7, 5, generator=rng).repeat_interleave(V, 0) if cross else None
    keep = torch.tensor([[1.0] * 7, [1.0] * 3 + [0.0] * 4]).repeat_interleave(V, 0)
    bias = (1 - keep)[:, None] * -10000.0 if cross else None
    weight = torch.randn(x.shape, generator=rng)

    def run(function):
        leaf = x.clone().requires_grad_()
        out = function(leaf).float()
        (out * weight).sum().backward()
        return out.detach(), leaf.grad

    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        out, grad = run(lambda leaf: attention(leaf, encoder_hidden_states=text, attention_mask=bias))
    true, true_grad = run(lambda leaf: slow(attention, leaf, text, keep))
    tolerance = 1e-5 if precision == torch.float32 else 0.03  # bfloat16 has 8 bits
    assert (out - true).abs().max() <= tolerance * true.abs().max()
    assert (grad - true_grad).abs().max() <= tolerance * true_grad.abs().max()
    assert (grad.flatten(1).norm(dim=1) > 0).all()


def test_attention_keeps_bfloat16_without_autocast():
    from align3d.models.nets.multiview import attend

    q, k, v = (torch.randn(2, 2, n, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (5, 7, 7))
    k.requires_grad_()
    out = attend(q, k, v, None, 8**-0.5)
    assert out.dtype == torch.bfloat16
    exact = attend(q.float(), k.detach().float(), v.float(), None, 8**-0.5)
    assert torch.equal(out, exact.bfloat16())  # rounded once, at the end
    out.float().sum().backward()
    assert k.grad.dtype == torch.bfloat16
