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


def test_joint_attention_is_one_sequence_of_all_views_and_the_text():
    from diffusers.models.attention_processor import Attention

    from align3d.models.nets.multiview import set_multiview

    torch.manual_seed(0)
    attn = Attention(
        DIM,
        heads=HEADS,
        dim_head=DIM // HEADS,
        bias=True,
        added_kv_proj_dim=DIM,
        context_pre_only=False,
        qk_norm="rms_norm",
    )
    for norm in (attn.norm_q, attn.norm_k, attn.norm_added_q, attn.norm_added_k):
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
    set_multiview(attn.requires_grad_(False), V)
    x, context = torch.randn(2 * V, 4, DIM).requires_grad_(), torch.randn(2, 7, DIM).requires_grad_()

    def normed(h, weight):
        return h if weight is None else h * (h.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    def by_hand(x, context):
        images, texts = [], []
        for b in range(2):
            tokens = x[b * V : (b + 1) * V].flatten(0, 1)
            heads = []
            for h in range(HEADS):
                cut = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
                q, k, v = (
                    torch.cat([normed(own(tokens)[:, cut], a), normed(added(context[b])[:, cut], b_)])
                    for own, added, a, b_ in (
                        (attn.to_q, attn.add_q_proj, attn.norm_q.weight, attn.norm_added_q.weight),
                        (attn.to_k, attn.add_k_proj, attn.norm_k.weight, attn.norm_added_k.weight),
                        (attn.to_v, attn.add_v_proj, None, None),
                    )
                )
                heads.append((q @ k.T * (DIM // HEADS) ** -0.5).softmax(-1) @ v)
            out = torch.cat(heads, -1)
            images.append(attn.to_out[0](out[: len(tokens)]).unflatten(0, (V, -1)))
            texts.append(attn.to_add_out(out[len(tokens) :]))
        return torch.cat(images), torch.stack(texts)

    ours, true = attn(x, encoder_hidden_states=context), by_hand(x, context)
    weight = [torch.randn(part.shape) for part in true]
    grads = [
        torch.autograd.grad(sum((p * w).sum() for p, w in zip(parts, weight, strict=True)), (x, context))
        for parts in (ours, true)
    ]
    for a, b in zip((*ours, *grads[0]), (*true, *grads[1]), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
        assert (b.flatten(1).norm(dim=1) > 1e-3).all()


def test_heads_are_normalised_in_self_attention():
    """As attention over several tokens of the stock network, one object at a time."""
    from diffusers.models.attention_processor import Attention

    from align3d.models.nets.multiview import set_multiview

    torch.manual_seed(0)
    attn = Attention(DIM, heads=HEADS, dim_head=DIM // HEADS, qk_norm="rms_norm").requires_grad_(False)
    for norm in (attn.norm_q, attn.norm_k):
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
    x = torch.randn(2 * V, 4, DIM)
    true = attn(x.unflatten(0, (2, V)).flatten(1, 2)).unflatten(1, (V, 4)).flatten(0, 1)
    assert torch.allclose(set_multiview(attn, V)(x), true, atol=1e-5)
    with torch.no_grad():
        attn.norm_k.weight.mul_(torch.linspace(0.1, 2, DIM // HEADS))
    assert not torch.allclose(attn(x), true, atol=1e-3)


def test_attention_of_a_shape_that_is_not_known_is_refused():
    from diffusers.models.attention_processor import Attention

    from align3d.models.nets.multiview import set_multiview

    for options, name in (
        ({"qk_norm": "layer_norm"}, "norm_q, norm_k"),
        ({"qk_norm": "rms_norm_across_heads", "kv_heads": HEADS}, "norm_q, norm_k"),
        ({"added_kv_proj_dim": DIM}, "add_k_proj, add_v_proj"),
        ({"cross_attention_norm": "layer_norm"}, "norm_cross"),
    ):
        with pytest.raises(ValueError, match=f"would leave out {name};"):
            set_multiview(Attention(DIM, heads=HEADS, dim_head=DIM // HEADS, **options), V)


def test_float32_softmax_is_exact_up_to_one_rounding():
    from align3d.models.nets.multiview import attend

    q, k, v = (torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3))
    exact = attend(q.float(), k.float(), v.float(), None, 8**-0.5)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, None, 8**-0.5, "float32")
    assert torch.equal(out, exact.bfloat16())
