"""The UNet of Stable Diffusion for several views of an object: each by itself, or together as MVDream has them.

Names and shapes of the weights are the stock ones; MVDream's camera embedding is what diffusers calls a projection of
class labels.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor, nn

from align3d.models.nets.multiview import attend, beyond, split

Softmax = Literal["network", "float32"]


class CameraUNet(UNet2DConditionModel):
    """The stock network with an embedding of cameras, which is added to that of the time; none without cameras."""

    def get_class_embed(self, sample: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """The embedding of numbers of a camera."""
        return None if class_labels is None else super().get_class_embed(sample, class_labels)


class ViewsAttention:
    """Attention in which the rows of an object act as one sequence, as many as each call says.

    Rows are object-major, row = b * V + v. Self-attention sees the tokens of all views; cross-attention is each
    view's own, and has no need to know: the text is the same for all.
    """

    def __init__(self, softmax: Softmax = "network"):
        self.softmax = softmax  # the type of the logits

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "BV n d"],
        encoder_hidden_states: Float[Tensor, "BV m c"] | None = None,
        attention_mask: Tensor | None = None,
        together: int = 1,
    ) -> Float[Tensor, "BV n d"]:
        """The attended rows, in the shape of the input."""
        assert attention_mask is None, "no text is masked in Stable Diffusion"
        x = hidden_states.unflatten(0, (-1, together)).flatten(1, 2)  # (B, V n, d)
        # contiguous, or the projections copy their weights for every object
        context = x if encoder_hidden_states is None else encoder_hidden_states[::together].contiguous()
        q, k, v = split(attn, attn.to_q(x)), split(attn, attn.to_k(context)), split(attn, attn.to_v(context))
        out = attend(q, k, v, None, attn.scale, self.softmax)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return out.unflatten(1, (together, -1)).flatten(0, 1)


class Painter(nn.Module):
    """A UNet behind one call.

    Args:
        network: UNet2DConditionModel, or CameraUNet; changed in place, in nothing that has weights.
        together: Whether the views of an object see each other.
        softmax: "float32" computes attention in that type; "network" in the network's own.

    Raises:
        ValueError: If an attention does more than ours.
    """

    def __init__(self, network: UNet2DConditionModel, together: bool = False, softmax: Softmax = "network"):
        super().__init__()
        for module in network.modules():
            if isinstance(module, Attention):
                if more := beyond(module):
                    raise ValueError(f"attention with {', '.join(more)} is not known here")
                module.set_processor(ViewsAttention(softmax))
        self.network, self.together = network, together

    def forward(
        self,
        x: Float[Tensor, "B V c h w"],
        label: Int[Tensor, "B"],
        states: Float[Tensor, "B T D"],
        poses: Float[Tensor, "B V p"] | None = None,
    ) -> Float[Tensor, "B V c h w"]:
        """What the network says, float32.

        Args:
            x: Noisy latents.
            label: Noise levels, as the network counts them.
            states: Of the text, padding included.
            poses: Of the cameras; None = not told.

        Gradient: to all that requires it.
        """
        V, kind = x.shape[1], self.dtype
        out = self.network(
            x.flatten(0, 1).to(kind),
            label.repeat_interleave(V),
            encoder_hidden_states=states.to(kind).repeat_interleave(V, 0),
            class_labels=None if poses is None else poses.flatten(0, 1).to(kind),
            cross_attention_kwargs={"together": V if self.together else 1},
            return_dict=False,
        )[0]
        return out.to(torch.promote_types(kind, torch.float32)).unflatten(0, x.shape[:2])

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights, whatever that of an adapter."""
        return self.network.conv_in.weight.dtype
