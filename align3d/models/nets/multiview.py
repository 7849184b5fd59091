"""Multi-view attention as processors on stock diffusers networks: state-dict keys and weights stay the stock ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from jaxtyping import Float
from torch import Tensor, nn

from align3d.models.nets.denoisers import Softmax

BEYOND = ("norm_cross", "group_norm", "spatial_norm")  # of Attention, not done here
JOINT = ("add_q_proj", "add_k_proj", "add_v_proj")  # of an Attention that takes a context as well; all of them or none
PLAIN = {"residual_connection": False, "rescale_output_factor": 1.0}  # of Attention, as they have to be


class MultiViewAttention:
    """Attention in which the V rows of an object act as one sequence.

    Rows are object-major, row = b * V + v. In self-attention every token of an object sees every token of all its
    views. In cross-attention the text is the same for all views of an object, so its keys and values are computed
    once, from the first row: the result is that of the stock processor, for less.

    Source: DiffSplat (Lin et al. 2025), section 3.3; spec of the published weights: only self-attention joins views.
    """

    def __init__(self, num_views: int, softmax: Softmax = "network"):
        self.num_views = num_views
        self.softmax = softmax  # of self-attention only

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "BV n d"],
        encoder_hidden_states: Float[Tensor, "BV m c"] | None = None,
        attention_mask: Float[Tensor, "BV 1 m"] | None = None,
        **_: object,
    ) -> Float[Tensor, "BV n d"]:
        """The attended rows, in the shape of the input."""
        V = self.num_views
        x = hidden_states.unflatten(0, (-1, V)).flatten(1, 2)  # (B, V n, d)
        alone = encoder_hidden_states is None
        # contiguous, or the projections copy their weights for every object
        context = x if alone else encoder_hidden_states[::V].contiguous()
        bias = None if attention_mask is None else attention_mask[::V, None].to(x.dtype)
        q = split(attn, attn.to_q(x), attn.norm_q)
        k = split(attn, attn.to_k(context), attn.norm_k)
        v = split(attn, attn.to_v(context))
        out = attend(q, k, v, bias, attn.scale, self.softmax if alone else "network")
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return out.unflatten(1, (V, -1)).flatten(0, 1)


class JointMultiViewAttention:
    """SD3's attention of image and context over each other, in which an object has V rows of image and one of context.

    The sequence of an object is the tokens of its V views, then those of its context.

    Source: the released code of DiffSplat (JointMVAttnProcessor2_0).
    """

    def __init__(self, num_views: int, softmax: Softmax = "network"):
        self.num_views = num_views
        self.softmax = softmax

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "BV n d"],
        encoder_hidden_states: Float[Tensor, "B m d"],
        **_: object,
    ) -> tuple[Float[Tensor, "BV n d"], Float[Tensor, "B m d"]]:
        """The attended rows of the image and of the context, each in the shape of its input."""
        x, context = hidden_states.unflatten(0, (-1, self.num_views)).flatten(1, 2), encoder_hidden_states
        q, k, v = (
            torch.cat(both, 2)
            for both in (
                (split(attn, attn.to_q(x), attn.norm_q), split(attn, attn.add_q_proj(context), attn.norm_added_q)),
                (split(attn, attn.to_k(x), attn.norm_k), split(attn, attn.add_k_proj(context), attn.norm_added_k)),
                (split(attn, attn.to_v(x)), split(attn, attn.add_v_proj(context))),
            )
        )
        out = attend(q, k, v, None, attn.scale, self.softmax).transpose(1, 2).flatten(2)
        image, context = out.split([x.shape[1], context.shape[1]], 1)
        if attn.to_add_out is not None:  # the last block has no use for its context
            context = attn.to_add_out(context)
        return attn.to_out[0](image).unflatten(1, (self.num_views, -1)).flatten(0, 1), context


def split(attn: Attention, x: Float[Tensor, "B n D"], norm: nn.Module | None = None) -> Float[Tensor, "B h n d"]:
    """Projected tokens, by head, each head normalised by `norm` if there is one."""
    heads = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return heads if norm is None else norm(heads)


def attend(
    q: Float[Tensor, "B h n d"],
    k: Float[Tensor, "B h m d"],
    v: Float[Tensor, "B h m d"],
    bias: Float[Tensor, "B 1 1 m"] | None,
    scale: float,
    softmax: Softmax = "network",
) -> Float[Tensor, "B h n d"]:
    """Softmax attention in the type of q; computed in float32 if so asked, and on the CPU.

    There the backward pass of the bfloat16 kernel takes 2.7 to 6 times as long as that of float32, the forward pass
    about the same (torch 2.13, 64 tokens an object).
    """
    if q.dtype == torch.float32 or (q.device.type != "cpu" and softmax != "float32"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    with torch.autocast(q.device.type, enabled=False):  # which would go back to bfloat16
        bias = None if bias is None else bias.float()
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias, scale=scale)
    return out.to(q.dtype)


def set_multiview(network: nn.Module, num_views: int, softmax: Softmax = "network") -> nn.Module:
    """The same network, all its self-attention joined over `num_views` rows; 1 gives the stock network.

    An SD3 network then takes its image as rows (b v) and everything else, times too, as rows b.

    Args:
        network: Changed in place, in nothing that has weights.
        num_views: Rows of an object.
        softmax: "float32" computes self-attention in that type, and the layer norms before each feed-forward and
            before the output; "network" leaves them in the network's own.

    Raises:
        ValueError: If an attention does more than the processors (norms of other kinds, a residual connection, ...).
    """
    for module in network.modules():
        if isinstance(module, Attention):
            more = beyond(module)
            if more:
                raise ValueError(f"MultiViewAttention would leave out {', '.join(more)}; extend it first")
            joint = module.add_k_proj is not None
            module.set_processor((JointMultiViewAttention if joint else MultiViewAttention)(num_views, softmax))
        elif isinstance(module, JointTransformerBlock):
            module.norm1.register_forward_pre_hook(time_of_rows, with_kwargs=True)
    if any(isinstance(module, JointTransformerBlock) for module in network.modules()):
        network.norm_out.register_forward_pre_hook(time_of_rows, with_kwargs=True)
    if softmax == "float32":
        for norm in late_norms(network):
            norm.__class__ = FP32LayerNorm  # the same parameters and keys
    return network


def beyond(attn: Attention) -> list[str]:
    """The parts of an attention that the processors do not do."""
    more = [name for name in BEYOND if getattr(attn, name, None) is not None]
    more += [name for name, plain in PLAIN.items() if getattr(attn, name) != plain]
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        norm = getattr(attn, name, None)
        if norm is not None and not (isinstance(norm, RMSNorm) and tuple(norm.dim) == (attn.inner_dim // attn.heads,)):
            more.append(name)
    present = [name for name in JOINT if getattr(attn, name, None) is not None]
    return more + (present if len(present) < len(JOINT) else [])


def time_of_rows(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hook before a modulated norm of image rows (b v): its embedded time, one row an object, for every row."""
    x, *rest = args

    def repeat(value: Any) -> Any:
        return value.repeat_interleave(len(x) // len(value), 0) if isinstance(value, Tensor) else value

    return (x, *map(repeat, rest)), {name: repeat(value) for name, value in kwargs.items()}


def late_norms(network: nn.Module) -> list[nn.LayerNorm]:
    """The layer norms before each feed-forward, and the one before the output."""
    norms = []
    for module in network.modules():
        if isinstance(module, BasicTransformerBlock):
            norms.append(module.norm2 if module.norm_type == "ada_norm_single" else module.norm3)
        elif isinstance(module, JointTransformerBlock):
            norms += [module.norm2, module.norm2_context]
    last = getattr(network, "norm_out", None)
    norms.append(getattr(last, "norm", last))
    return [norm for norm in norms if isinstance(norm, nn.LayerNorm)]
