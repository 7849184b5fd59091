"""DDPO: policy gradient on the steps of the sampler, for any reward (Black et al. 2024, arXiv 2305.13301).

Sampling is a game of K moves; move k draws x_s from p_theta(x_s | x_t), and the reward comes at the end. With the
advantage A of a sample (its reward against those of other samples of its prompt) and the ratio of likelihoods

    ratio = p_theta(x_s | x_t) / p_old(x_s | x_t),    loss = -mean min(A ratio, A clip(ratio, 1 - c, 1 + c)),

over samples and moves: DDPO-IS. The first pass over a rollout has ratio 1 and is plain REINFORCE; with `inner_epochs`
later passes reuse the rollout, and the clip bounds how far. Rewards need no gradient, and are many times less
informative than their gradients: expect hundreds of samples per visible gain.

Likelihoods are the MEAN over the latent's D numbers of log p, not the sum that a joint density is. With the sum,
ratio = exp(D * difference): for D = 16,384 what is 1.01 by the mean is 1e70, so the first update overflows or clips
everything (the author, github.com/jannerm/ddpo/issues/10). The mean gives the D-th root, and c = 1e-4 belongs to that.

Against the public code (kvablack/ddpo-pytorch), as it is by default here:

- Advantages: statistics over the samples of a prompt that the loop draws together (loop.group). There a buffer of the
  last 16 or 32 rewards of each prompt, from older policies too, which takes more epochs than a short run has.
- Cameras: the samples of a group are seen from the same ones (`same_cameras`), as luck with the view is no merit.
- The last move is left out (`final`): its std is 0.01, so that its score outweighs any other's about 17 times, while
  what it draws can hardly be seen in the reward. On schedules without noise at time 0 it is no draw at all.
- Old likelihoods are those of the first pass and not of the sampler: the same policy before any update, and rounding,
  which differs between batch sizes, would else count as change; in bfloat16 it reaches the clip range.
- Every pass takes the same moves and makes one optimiser step. There 1 pass in 2 or 4 steps of 64 or 128 samples.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align3d.types import BaseModel, Rollout, Score, StepLoss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from align3d.diffusion.transition import Gaussian
    from align3d.rng import Streams


@dataclass(frozen=True)
class DDPO:
    """DDPO: clipped policy gradient; works with rewards that have no gradient. Set loop.group to 2 or more."""

    needs_gradient: ClassVar[bool] = False

    clip: float = 1e-4  # how far the ratio of mean likelihoods may leave 1; acts if inner_epochs > 1
    advantage_max: float = 5.0  # largest size of an advantage, in standard deviations of the reward
    transitions: float = 1.0  # share of a rollout's transitions that is trained, drawn anew for each sample
    inner_epochs: int = 1  # passes over a rollout, each with an optimiser step after it
    final: bool = False  # whether the last transition, of std 0.01, is trained too, as published
    same_cameras: bool = True  # whether the samples of a group are scored from the same cameras
    kl: float = 0.0  # weight of the divergence of a transition from the reference's, mean over the latent; 0: none
    eta: float = 1.0  # noise of the sampler, in (0, 1]: 1 is ancestral sampling, as published
    chunk: int = 4  # transitions per graph, to save memory: gradients add up to the same; 0: all at once
    scenes: int = 4  # decoded and judged at a time, at most, to save memory: rewards stay the same; 0: all
    track_drift: bool = True  # whether to report the drift from the reference; one prediction per pass

    def __post_init__(self) -> None:
        for name, low, high in (("clip", 0, 1), ("advantage_max", 0, 1e6), ("transitions", 0, 1), ("eta", 0, 1)):
            if not low < getattr(self, name) <= high:
                raise ValueError(f"ddpo: {name} must be above {low} and at most {high:g}, got {getattr(self, name)}")
        if self.inner_epochs < 1 or self.chunk < 0 or self.scenes < 0:
            got = f"{self.inner_epochs}, {self.chunk} and {self.scenes}"
            raise ValueError(f"ddpo: inner_epochs must be at least 1, chunk and scenes at least 0, got {got}")
        if not 0 <= self.kl <= 1e12:
            raise ValueError(f"ddpo: kl must be at least 0 and at most 1e12, got {self.kl}")

    def losses(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]:
        """Sample, judge, and make what was better than its peers more likely.

        Args:
            model: The generator; trained through its adapter.
            score: Scene to reward; its gradient is not asked for.
            times: T times of the sampler, descending to 0; 3 or more, or 2 with `final`.
            prompts: B texts, the same for each `rng.group` in a row.
            rng: One stream per prompt, in groups of 2 or more.

        Yields:
            One loss per chunk of transitions; their sum is the mean over transitions and samples. The last of each
            pass carries the metrics and asks for the update.

        Raises:
            ValueError: If there is nothing to compare or no transition to train, or the score has the wrong shape.
            NonFiniteError: If a prediction, reward or ratio is not finite; names the prompt.
        """
        import torch

        from align3d.diffusion.sampler import rollout
        from align3d.methods.scoring import drift_from_reference, scored

        self.check(model, times, rng.group)
        order = self.order(times, rng)
        with torch.no_grad():
            traj = rollout(model, prompts, times, rng, self.eta)
            x0, seen = traj.x[:, -1], self.cameras(rng)
            reward = scored(model, score, x0, prompts, seen, "ddpo", scenes=self.scenes).reward
        advantage = advantages(reward, rng.group).clamp(-self.advantage_max, self.advantage_max)

        size, total = self.chunk or order.shape[1], order.numel()
        chunks = [Moves.gather(traj, order[:, i : i + size]) for i in range(0, order.shape[1], size)]
        old: list[Tensor] = []
        for epoch in range(self.inner_epochs):
            rows: dict[str, list[Tensor]] = defaultdict(list)
            for i, moves in enumerate(chunks):
                eps, log_prob, divergence = self.likelihood(model, moves)
                if not epoch:
                    old.append(log_prob.detach())
                ratio = moves.checked((log_prob - old[i]).exp())
                a = advantage[moves.sample]
                gain = torch.minimum(a * ratio, a * ratio.clamp(1 - self.clip, 1 + self.clip))
                loss = (self.kl * divergence - gain).sum() / total

                rows["ratio"].append(ratio.detach())
                rows["kl"].append(divergence.detach())
                done, metrics = i == len(chunks) - 1, {}
                if done:
                    metrics = self.metrics(reward, advantage, rows)
                    if self.track_drift:
                        metrics["drift"] = drift_from_reference(model, moves.x, moves.t, moves.prompts, eps)
                yield StepLoss(loss, metrics, update=done)

    def check(self, model: BaseModel, times: Float[Tensor, "T"], group: int) -> None:
        """Refuse what cannot train.

        Raises:
            ValueError: If there is no transition to train, or nothing to compare a sample with.
        """
        if group < 2:
            raise ValueError(
                "ddpo compares samples of one prompt, and a group of 1 has no second; set loop.group to 4, or to "
                "another divisor of loop.batch_size"
            )
        if len(times) == 2 and not self.final:
            raise ValueError("ddpo: the only transition of a chain of 1 step is the last; use more steps, or final")
        if self.final and not float(model.schedule.sigma(times[-1:].double())) > 0:
            raise ValueError("ddpo: final needs a schedule with noise left at time 0; leave it off")

    def order(self, times: Float[Tensor, "T"], rng: Streams) -> Int[Tensor, "B N"]:
        """Which transitions of each sample are trained, in random order, so that chunks see all noise levels."""
        import torch

        usable = len(times) - 1 if self.final else len(times) - 2
        n = max(1, round(self.transitions * usable))
        drawn = [torch.randperm(usable, generator=generator)[:n] for generator in rng.each("transitions")]
        return torch.stack(drawn).to(times.device)

    def cameras(self, rng: Streams) -> Streams:
        """The streams that the score draws from: those of the group, or each sample its own."""
        return rng.of_groups() if self.same_cameras else rng

    def likelihood(
        self, model: BaseModel, moves: Moves
    ) -> tuple[Float[Tensor, "R *L"], Float[Tensor, "R"], Float[Tensor, "R"]]:
        """The prediction, the mean log-likelihood and the divergence from the reference's of each transition."""
        import torch

        from align3d.diffusion.schedule import at_least
        from align3d.diffusion.transition import ddim

        def step(eps: Tensor) -> tuple[Gaussian, Tensor]:
            gaussian = ddim(model.schedule, moves.x, eps, moves.t, moves.s, self.eta)
            return gaussian, gaussian.log_prob(moves.x_next) / moves.x_next[0].numel()  # not the sum: see the top

        eps = at_least(model.predict(moves.x, moves.t, model.encode(moves.prompts)), moves.x.dtype)
        gaussian, log_prob = step(eps)
        if not self.kl:
            return eps, log_prob, torch.zeros_like(log_prob)
        with model.reference():
            ref, _ = step(at_least(model.predict(moves.x, moves.t, model.encode(moves.prompts)), moves.x.dtype))
        return eps, log_prob, ((gaussian.mean - ref.mean) / ref.std).square().flatten(1).mean(1) / 2

    def metrics(
        self, reward: Float[Tensor, "B"], advantage: Float[Tensor, "B"], rows: dict[str, list[Tensor]]
    ) -> dict[str, Tensor | float]:
        """What to log of one pass.

        reward and reward_std: of the samples; ratio_min, ratio_max, clipped: of the likelihood ratio, the last the
        share outside of the clip range; approx_kl: from the policy that sampled; kl: from the reference, if weighed;
        dead: samples of advantage 0, from which nothing is learnt.
        """
        import torch

        ratio = torch.cat(rows["ratio"])
        metrics: dict[str, Tensor | float] = {
            "reward": reward.mean(),
            "reward_std": reward.std(correction=0),
            "ratio_min": ratio.min(),
            "ratio_max": ratio.max(),
            "clipped": ((ratio - 1).abs() > self.clip).double().mean(),
            "approx_kl": (ratio - 1 - ratio.log()).mean(),  # joschu.net/blog/kl-approx.html
            "dead": (advantage == 0).sum(),
        }
        return metrics | ({"kl": torch.cat(rows["kl"]).mean()} if self.kl else {})


def advantages(reward: Float[Tensor, "B"], group: int) -> Float[Tensor, "B"]:
    """Each reward against the others of its group: minus their mean, by their standard deviation.

    Args:
        reward: Rewards, one per sample.
        group: So many in a row are of one prompt.

    Returns:
        Advantages; 0 where all of a group are equal.
    """
    exact = reward.double().view(-1, group)  # in float32 the mean of equal numbers may differ from them
    centred = exact - exact.mean(1, keepdim=True)
    return (centred / (exact.std(1, correction=0, keepdim=True) + 1e-6)).flatten().to(reward.dtype)


@dataclass(frozen=True)
class Moves:
    """R = n * B transitions x_t -> x_s of one rollout, of other steps for each sample."""

    prompts: list[str]
    sample: Int[Tensor, "R"]  # which of the batch
    step: Int[Tensor, "R"]
    x: Float[Tensor, "R *L"]
    x_next: Float[Tensor, "R *L"]
    t: Float[Tensor, "R"]
    s: Float[Tensor, "R"]

    @classmethod
    def gather(cls, traj: Rollout, chosen: Int[Tensor, "B N"]) -> Moves:
        """The transitions `chosen` of each sample."""
        import torch

        size, n = chosen.shape
        sample, step = torch.arange(size, device=chosen.device).repeat(n), chosen.T.flatten()
        x, x_next = traj.x[sample, step], traj.x[sample, step + 1]
        return cls(list(traj.prompts) * n, sample, step, x, x_next, traj.times[step], traj.times[step + 1])

    def checked(self, ratio: Float[Tensor, "R"]) -> Float[Tensor, "R"]:
        """The same ratios; an error if one is not finite."""
        from align3d.diffusion.sampler import require_finite

        require_finite(ratio.detach(), self.prompts, "likelihood ratio", [f"at step {k}" for k in self.step.tolist()])
        return ratio
