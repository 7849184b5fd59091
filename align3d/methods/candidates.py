"""Noise candidates of a distillation step: what the prior would make of each, and how good a reward finds that.

From the noisy latents of each candidate a short deterministic walk leads to clean ones, which are decoded and judged
(RewardSDS, arXiv 2503.09601, section 3). The first prediction of the walk is the one that the loss needs anyway, so a
walk of one step costs no evaluation of the network beyond it. With `halving`, candidates that cannot count any more do
not walk on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from align3d.types import Cameras, Look, Score, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.methods.weighting import Weighting
    from align3d.rng import Streams


MOST = 1000  # candidates, and steps: all of them are in memory together


@dataclass(frozen=True)
class Noised:
    """R noisy latents, and what the prior says of them without guidance."""

    prompts: list[str]
    texts: tuple[list[str], list[str]]  # to go to, and to keep away from
    z: Float[Tensor, "R V *L"]  # clean, a constant
    noise: Float[Tensor, "R V *L"]
    x: Float[Tensor, "R V *L"]  # noisy
    t: Float[Tensor, "R"]
    positive: Float[Tensor, "R V *L"]  # predicted with the text to go to
    negative: Float[Tensor, "R V *L"]  # predicted with the other
    cameras: Cameras | None
    update: int  # counted from 0
    original: Float[Tensor, "R V *L"] | None = None  # clean, of what is edited

    def rows(self, chosen: Tensor) -> Noised:
        """Some of the rows, by their numbers."""
        tensors = {name: getattr(self, name)[chosen] for name in ("z", "noise", "x", "t", "positive", "negative")}
        prompts, *texts = ([side[i] for i in chosen.tolist()] for side in (self.prompts, *self.texts))
        tensors["original"] = None if self.original is None else self.original[chosen]
        return replace(self, **tensors, prompts=prompts, texts=tuple(texts), cameras=some(self.cameras, chosen))

    def beside(self, original: Float[Tensor, "B V *L"] | None) -> Noised:
        """The same with what is edited, for all candidates."""
        if original is None:
            return self
        return replace(self, original=original.repeat(len(self.x) // len(original), *[1] * (original.ndim - 1)))

    def guided(self, scale: float) -> Float[Tensor, "R V *L"]:
        """The noise predicted with guidance."""
        from align3d.diffusion.guidance import guide

        return guide(self.positive, self.negative, scale)


@dataclass(frozen=True)
class Explore:
    """How many noises are tried in an update, and how they are judged."""

    candidates: int = 1  # N; 1 is distillation without a reward
    steps: int = 1  # S, of the walk to clean latents; the first costs nothing
    guidance: float = 7.5  # of the walk; the loss has its own
    every: int = 1  # updates from one that uses the reward to the next; one noise in those between
    first: int = 0  # updates that use the reward at all, from the start; 0 = all
    antithetic: bool = False  # whether candidates come in pairs of a noise and its negative
    halving: bool = False  # whether all are judged after each step, and only the better half walks on
    views: int = 0  # views of a group that are judged, others in each update, the same for all its candidates; 0 = all
    fast: bool = True  # whether the prior's cheaper decoder shows them, if it has one
    chunk: int = 0  # rows per evaluation of the network, to save memory; prior.rows is for decoding; 0 = all

    def __post_init__(self) -> None:
        if min(self.candidates, self.steps, self.every) < 1 or min(self.first, self.chunk, self.views) < 0:
            raise ValueError(
                f"explore: candidates, steps and every must be 1 or more, first, views and chunk 0 or more, got "
                f"{self.candidates}, {self.steps}, {self.every}, {self.first}, {self.views} and {self.chunk}"
            )
        if max(self.candidates, self.steps) > MOST:
            raise ValueError(
                f"explore: candidates and steps must be at most {MOST}, got {self.candidates} and {self.steps}"
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
        from align3d.diffusion.schedule import add_noise

        num, z = self.number(rng.step), look.latents.detach()
        noise = self.noises(num, rng, z)
        z, t = z.repeat(num, *[1] * (z.ndim - 1)), t.repeat(num)
        to, away = (list(side) * num for side in texts)
        x = add_noise(subject.schedule, z, noise, t)
        cameras = tiled(look.cameras, num)
        positive, negative = self.predict(subject, x, t, (to, away), cameras)
        return Noised(list(prompts) * num, (to, away), z, noise, x, t, positive, negative, cameras, rng.step)

    def predict(
        self,
        subject: Subject,
        x: Float[Tensor, "R V *L"],
        t: Float[Tensor, "R"],
        texts: Sequence[list[str]],
        cameras: Cameras | None,
        phi: bool = False,
    ) -> list[Tensor]:
        """The noise predicted with each list of R texts, all in one batch, or in chunks of it; by phi, if so told."""
        import torch

        from align3d.diffusion.sampler import require_finite

        network = subject.phi if phi else subject.predict
        sides, R = len(texts), len(x)
        every = [text for side in texts for text in side]
        x, t, cameras = x.repeat(sides, *[1] * (x.ndim - 1)), t.repeat(sides), tiled(cameras, sides)
        found = []
        for rows in parts(len(x), self.chunk, x.device):
            cond = subject.encode([every[i] for i in rows.tolist()])
            found.append(network(x[rows], t[rows], cond, some(cameras, rows)).to(x.dtype))
        eps = torch.cat(found)
        require_finite(eps.detach(), every, "prediction", [f"at time {value:.3f}" for value in t.tolist()])
        return list(eps.split(R))

    def rewards(
        self, subject: Subject, score: Score, noised: Noised, weighting: Weighting, rng: Streams
    ) -> tuple[Int[Tensor, "K B"], Float[Tensor, "K B"]]:
        """The candidates that may count, and what the reward says of the clean latents they lead to; no gradient.

        Returns:
            Their numbers for each of B rows, all N of them without `halving`, and their rewards.
        """
        import torch

        B = len(rng)
        numbers = torch.arange(len(noised.x) // B, device=noised.x.device)[:, None].expand(-1, B)
        if not self.halving:
            return numbers, self.judged(subject, score, noised, self.walk(subject, noised), rng)
        at, start = noised, noised.t[:B]
        for k in range(1, self.steps + 1):
            reward = self.judged(subject, score, at, clean(subject, at, self.guidance), rng)
            if k == self.steps:
                break
            chosen = weighting.keep(reward, max(weighting.least, -(-len(reward) // 2)))
            numbers, reward = numbers.gather(0, chosen), reward.gather(0, chosen)
            if len(chosen) == 1:  # no walk would change the choice
                break
            at = at.rows((chosen * B + torch.arange(B, device=chosen.device)).flatten())
            at = self.onward(subject, at, start.repeat(len(chosen)) * (self.steps - k) / self.steps)
        return numbers, reward

    def judged(
        self, subject: Subject, score: Score, noised: Noised, x0: Float[Tensor, "R V *L"], rng: Streams
    ) -> Float[Tensor, "N B"]:
        """What the reward says of clean latents, of N candidates for each of B rows."""
        import torch

        from align3d.diffusion.sampler import require_finite

        B, num = len(rng), len(x0) // len(rng)
        x0, cameras = self.glimpse(x0, noised.cameras, rng)
        order = torch.arange(len(x0), device=x0.device).view(num, B).T.flatten()  # the candidates of a row side by side
        size = self.chunk and -(-self.chunk // num) * num  # and judged together, as a reward may compare them
        found = []
        for rows in (order[part] for part in parts(len(x0), size, x0.device)):
            scene = subject.picture(x0[rows], some(cameras, rows), self.fast)
            keys = tuple(rng.keys[i % B] for i in rows.tolist())  # all are judged by the same draws
            found.append(score(scene, [noised.prompts[i] for i in rows.tolist()], replace(rng, keys=keys, group=num)))
        reward = torch.cat(found)
        require_finite(reward, [noised.prompts[i] for i in order.tolist()], "reward", "of a candidate")
        return reward.view(B, num).T

    def glimpse(
        self, x0: Float[Tensor, "R V *L"], cameras: Cameras | None, rng: Streams
    ) -> tuple[Float[Tensor, "R K *L"], Cameras | None]:
        """The views that are judged, drawn for each row, and their cameras."""
        import torch

        V = x0.shape[1]
        if not 0 < self.views < V:
            return x0, cameras
        chosen = rng.uniform("judged views", (V,)).argsort(1)[:, : self.views].sort(1).values
        chosen = chosen.repeat(len(x0) // len(rng), 1)
        rows = torch.arange(len(x0))[:, None]
        if cameras is not None:
            at = (rows.to(cameras.c2w.device), chosen.to(cameras.c2w.device))
            cameras = replace(cameras, c2w=cameras.c2w[at], K=cameras.K[at])
        return x0[rows.to(x0.device), chosen.to(x0.device)], cameras

    def walk(self, subject: Subject, noised: Noised) -> Float[Tensor, "R V *L"]:
        """Clean latents after `steps` deterministic steps from t towards 0, evenly spaced, with this guidance."""
        start = noised.t
        for k in range(1, self.steps):
            noised = self.onward(subject, noised, start * (self.steps - k) / self.steps)
        return clean(subject, noised, self.guidance)

    def onward(self, subject: Subject, noised: Noised, s: Float[Tensor, "R"]) -> Noised:
        """The same after a deterministic step to times s, with predictions there."""
        from align3d.diffusion.transition import ddim

        x = ddim(subject.schedule, noised.x, noised.guided(self.guidance), noised.t, s, eta=0.0).mean
        positive, negative = self.predict(subject, x, s, noised.texts, noised.cameras)
        return replace(noised, x=x, t=s, positive=positive, negative=negative)


def clean(subject: Subject, noised: Noised, guidance: float) -> Float[Tensor, "R V *L"]:
    """The clean latents that the guided prediction stands for."""
    from align3d.diffusion.schedule import x0_from_eps

    return x0_from_eps(subject.schedule, noised.x, noised.guided(guidance), noised.t)


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
