"""The transitions of a rollout that Nabla trains, handed out in chunks while the rollout is still being sampled."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.types import BaseModel


@dataclass(frozen=True)
class Transitions:
    """R = n * B transitions x_t -> x_s of one rollout, transition-major, the end of the chain last if it is in."""

    prompts: list[str]
    x: Float[Tensor, "R *L"]
    x_next: Float[Tensor, "R *L"]
    eps: Float[Tensor, "R *L"]  # predicted at x while sampling, maybe of finer type; with its graph, or a constant
    eps_next: Float[Tensor, "M *L"]  # predicted at x_next while sampling, a constant; the end of the chain has none
    t: Float[Tensor, "R"]
    s: Float[Tensor, "R"]
    rng: Streams  # one stream per row

    def rows(self, first: int, last: int) -> Transitions:
        """Rows first .. last - 1."""
        part = slice(first, last)
        tensors = {f.name: getattr(self, f.name)[part] for f in fields(self) if f.name != "rng"}
        return Transitions(**tensors, rng=self.rng.rows(part))


class Chain:
    """A rollout of K = T - 1 steps that is sampled as far as it is needed.

    The states, and the predictions up to the rounding of another grad mode, are those of `diffusion.sampler.rollout`;
    the states carry no gradient.

    Args:
        model: The generator; the adapter must not change before the chain is at its end.
        prompts: B texts.
        times: T times of the sampler, descending.
        rng: One stream per prompt.
        eta: 0 is deterministic, 1 is ancestral.
    """

    def __init__(
        self, model: BaseModel, prompts: Sequence[str], times: Float[Tensor, "T"], rng: Streams, eta: float
    ) -> None:
        self.model, self.prompts, self.times, self.rng, self.eta = model, list(prompts), times, rng, eta
        self.x: list[Tensor] = [rng.normal("noise", tuple(model.latent_shape), like=times)]
        self.eps: list[Tensor] = []

    def __len__(self) -> int:
        return self.times.numel() - 1

    def sample(self, steps: int, keep: Collection[int] = ()) -> None:
        """Go on until `steps` steps are done; those in `keep` are predicted with a graph, and keep it.

        Raises:
            NonFiniteError: If a prediction is not finite; names prompt and step.
        """
        import torch

        from align3d.diffusion.sampler import advance

        for k in range(len(self.eps), min(steps, len(self))):
            with torch.set_grad_enabled(k in keep):
                step = advance(self.model, self.prompts, self.x[k], self.times[k : k + 2], self.rng, self.eta, first=k)
            self.x.append(step.x[:, -1].detach())
            self.eps.append(step.eps[:, 0])

    def transitions(
        self, chosen: Sequence[int], chunk: int = 0, copy: int = 0, keep: Collection[int] = ()
    ) -> Iterator[Transitions]:
        """The transitions `chosen`, ascending, of all samples.

        Args:
            chosen: Out of 0 .. K - 1.
            chunk: How many to hand out at a time; 0 is all.
            copy: The rows of transition i of `chosen` get copy `copy` + i of the streams.
            keep: As in `sample`. A graph lives until the next chunk is asked for.
        """
        size = chunk or len(chosen)
        for i in range(0, len(chosen), size):
            part = chosen[i : i + size]
            self.sample(part[-1] + 2, keep)  # the estimate at the next state takes the prediction there
            yield self.gather(part, copy + i)
            for j in part:
                self.eps[j] = self.eps[j].detach()

    def gather(self, chosen: Sequence[int], copy: int = 0) -> Transitions:
        """Transitions that have been sampled, in one batch."""
        import torch

        def rows(values: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
            return torch.cat([values[j] for j in steps]) if steps else self.x[0][:0]

        size, after = len(self.prompts), [j + 1 for j in chosen]
        finished = tuple(j == len(self) for j in after for _ in self.prompts)
        return Transitions(
            prompts=self.prompts * len(chosen),
            x=rows(self.x, chosen),
            x_next=rows(self.x, after),
            eps=rows(self.eps, chosen),
            eps_next=rows(self.eps, [j for j in after if j < len(self)]).detach(),
            t=self.times[list(chosen)].repeat_interleave(size),
            s=self.times[after].repeat_interleave(size),
            rng=replace(self.rng.repeat(len(chosen), first=copy), counted=finished),
        )
