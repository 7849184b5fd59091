"""Noise candidates of a distillation step: what the prior would make of each, and how good a reward finds that.

From the noisy latents of each candidate a short deterministic walk leads to clean ones, which are decoded and judged
(RewardSDS, arXiv 2503.09601, section 3). The first prediction of the walk is the one that the loss needs anyway, so a
walk of one step costs no evaluation of the network beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align3d.types import Cameras, Look, Score, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams


@dataclass(frozen=True)
class Noised:
    """R noisy latents, and what the prior says of them without guidance."""

    prompts: list[str]
    z: Float[Tensor, "R V *L"]  # clean, a constant
    noise: Float[Tensor, "R V *L"]
    x: Float[Tensor, "R V *L"]  # noisy
    t: Float[Tensor, "R"]
    positive: Float[Tensor, "R V *L"]  # predicted with the text
    negative: Float[Tensor, "R V *L"]  # predicted with the text to keep away from
    cameras: Cameras | None
    update: int  # counted from 0

    def rows(self, chosen: Tensor) -> Noised:
        """Some of the rows, by their numbers."""
        tensors = {name: getattr(self, name)[chosen] for name in ("z", "noise", "x", "t", "positive", "negative")}
        prompts = [self.prompts[i] for i in chosen.tolist()]
        return replace(self, **tensors, prompts=prompts, cameras=some(self.cameras, chosen))


@dataclass(frozen=True)
class Explore:
    """How many noises are tried in an update, and how they are judged."""

    candidates: int = 1  # N; 1 is distillation without a reward
    steps: int = 1  # S, of the walk to clean latents; the first costs nothing
    guidance: float = 7.5  # of the walk; the loss has its own
    every: int = 1  # updates from one that uses the reward to the next; one noise in those between
    first: int = 0  # updates that use the reward at all, from the start; 0 = all
    antithetic: bool = False  # whether candidates come in pairs of a noise and its negative
    fast: bool = True  # whether the prior's cheaper decoder shows them, if it has one
    chunk: int = 0  # rows per evaluation of the network and per decoding, to save memory; 0 = all

    def __post_init__(self) -> None:
        if min(self.candidates, self.steps, self.every) < 1 or min(self.first, self.chunk) < 0:
            raise ValueError(
                f"explore: candidates, steps and every must be 1 or more, first and chunk 0 or more, got "
                f"{self.candidates}, {self.steps}, {self.every}, {self.first} and {self.chunk}"
            )
        if not 0 <= self.guidance <= 1e4:
            raise ValueError(f"explore: guidance must be 0 to 1e4, got {self.guidance}")
        if self.antithetic and self.candidates % 2 and self.candidates > 1:
            raise ValueError(f"explore: antithetic candidates come in pairs, got {self.candidates}")

    def number(self, update: int) -> int:
        """How many candidates an update has."""
        return self.candidates if update % self.every == 0 and (not self.first or update < self.first) else 1

    def noises(self, num: int, rng: Streams, like: Float[Tensor, "B V *L"]) -> Float[Tensor, "R V *L"]:
        """Standard normal noise for R = N * B rows, candidate-major; the first candidates are the same for any N."""
        import torch

        pairs = self.antithetic and num > 1
        drawn = rng.repeat(num // 2 if pairs else num).normal("candidate", tuple(like.shape[1:]), like=like)
        return (
            torch.stack([drawn, -drawn], 1).unflatten(0, (-1, len(like))).transpose(1, 2).flatten(0, 2)
            if pairs
            else drawn
        )

    def noised(
        self,
        subject: Subject,
        look: Look,
        t: Float[Tensor, "B"],
        texts: tuple[list[str], list[str]],
        prompts: Sequence[str],
        rng: Streams,
    ) -> Noised:
        """All candidates with their first predictions, candidate-major.

        Args:
            subject: Gives the prior.
            look: Of B rows.
            t: Times of the rows, in [0, 1].
            texts: B texts to go to, and B to keep away from.
            prompts: B texts, for the reward and for errors.
            rng: One stream per row.
        """
        from align3d.diffusion.schedule import bcast

        num, z = self.number(rng.step), look.latents.detach()
        noise = self.noises(num, rng, z)
        z, t = z.repeat(num, *[1] * (z.ndim - 1)), t.repeat(num)
        x = bcast(subject.schedule.alpha(t), z) * z + bcast(subject.schedule.sigma(t), z) * noise
        cameras = tiled(look.cameras, num)
        positive, negative = self.predict(subject, x, t, tuple(list(side) * num for side in texts), cameras)
        return Noised(list(prompts) * num, z, noise, x, t, positive, negative, cameras, rng.step)

    def predict(
        self,
        subject: Subject,
        x: Float[Tensor, "R V *L"],
        t: Float[Tensor, "R"],
        texts: Sequence[list[str]],
        cameras: Cameras | None,
    ) -> list[Tensor]:
        """The noise predicted with each list of R texts, all in one batch, or in chunks of it."""
        import torch

        from align3d.diffusion.sampler import require_finite

        sides, R = len(texts), len(x)
        every = [text for side in texts for text in side]
        x, t, cameras = x.repeat(sides, *[1] * (x.ndim - 1)), t.repeat(sides), tiled(cameras, sides)
        found = []
        for rows in parts(len(x), self.chunk, x.device):
            cond = subject.encode([every[i] for i in rows.tolist()])
            found.append(subject.predict(x[rows], t[rows], cond, some(cameras, rows)).to(x.dtype))
        eps = torch.cat(found)
        require_finite(eps, every, "prediction", [f"at time {value:.3f}" for value in t.tolist()])
        return list(eps.split(R))

    def rewards(
        self, subject: Subject, score: Score, noised: Noised, texts: tuple[list[str], list[str]], rng: Streams
    ) -> Float[Tensor, "N B"]:
        """What the reward says of the clean latents that each candidate leads to; no gradient."""
        import torch

        from align3d.diffusion.sampler import require_finite

        x0 = self.walk(subject, noised, texts)
        B, num = len(rng), len(x0) // len(rng)
        order = torch.arange(len(x0), device=x0.device).view(num, B).T.flatten()  # the candidates of a row side by side
        size = self.chunk and -(-self.chunk // num) * num  # and judged together, as a reward may compare them
        found = []
        for rows in (order[part] for part in parts(len(x0), size, x0.device)):
            scene = subject.picture(x0[rows], some(noised.cameras, rows), self.fast)
            keys = tuple(rng.keys[i % B] for i in rows.tolist())  # all are judged by the same draws
            found.append(score(scene, [noised.prompts[i] for i in rows.tolist()], replace(rng, keys=keys, group=num)))
        reward = torch.cat(found)
        require_finite(reward, [noised.prompts[i] for i in order.tolist()], "reward", "of a candidate")
        return reward.view(B, num).T

    def walk(self, subject: Subject, noised: Noised, texts: tuple[list[str], list[str]]) -> Float[Tensor, "R V *L"]:
        """Clean latents after `steps` deterministic steps from t towards 0, evenly spaced, with this guidance."""
        from align3d.diffusion.guidance import guide
        from align3d.diffusion.schedule import x0_from_eps
        from align3d.diffusion.transition import ddim

        x, t = noised.x, noised.t
        num = len(x) // len(texts[0])
        eps = guide(noised.positive, noised.negative, self.guidance)
        for k in range(1, self.steps):
            s = noised.t * (self.steps - k) / self.steps
            x, t = ddim(subject.schedule, x, eps, t, s, eta=0.0).mean, s
            both = self.predict(subject, x, t, tuple(list(side) * num for side in texts), noised.cameras)
            eps = guide(*both, self.guidance)
        return x0_from_eps(subject.schedule, x, eps, t)


def parts(total: int, size: int, device: object) -> Iterator[Tensor]:
    """The numbers 0 .. total - 1, so many at a time; 0 = all."""
    import torch

    yield from torch.arange(total, device=device).split(size or total)


def tiled(cameras: Cameras | None, times: int) -> Cameras | None:
    """Cameras `times` over, as the rows of candidates are."""
    if cameras is None:
        return None
    return replace(cameras, c2w=cameras.c2w.repeat(times, 1, 1, 1), K=cameras.K.repeat(times, 1, 1, 1))


def some(cameras: Cameras | None, rows: Tensor) -> Cameras | None:
    """The cameras of some rows."""
    if cameras is None:
        return None
    chosen = rows.to(cameras.c2w.device)
    return replace(cameras, c2w=cameras.c2w[chosen], K=cameras.K[chosen])
