"""One reverse step p(x_s | x_t) as a Gaussian; samples, log-probabilities and scores follow from mean and std.

Coefficients are formed in float64: sigma_t^2 - (alpha_t sigma_s / alpha_s)^2 cancels in float32 on short steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from align3d.diffusion.schedule import Schedule, bcast, x0_from_eps

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """An isotropic Gaussian for each row. Where std is 0, log_prob and score are undefined."""

    mean: Float[Tensor, "B *L"]
    std: Float[Tensor, "B *ones"]  # broadcasts over the latent axes

    def sample(self, noise: Float[Tensor, "B *L"]) -> Float[Tensor, "B *L"]:
        """The draw that standard normal `noise` stands for. Gradient: to mean."""
        return self.mean + self.std * noise

    def log_prob(self, x: Float[Tensor, "B *L"]) -> Float[Tensor, "B"]:
        """Log density of x in nats, SUMMED over the latent axes."""
        z = (x - self.mean) / self.std
        per_element = -0.5 * z**2 - self.std.log() - 0.5 * math.log(2 * math.pi)
        return per_element.flatten(1).sum(1)

    def score(self, x: Float[Tensor, "B *L"]) -> Float[Tensor, "B *L"]:
        """The gradient of log_prob with respect to x."""
        return (self.mean - x) / self.std**2


def _shape(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha_s, sigma_s and the ratio r = alpha_t sigma_s / (alpha_s sigma_t) = exp(-h) of a step, in float64."""
    if bool((s >= t).any()):
        raise ValueError(f"a reverse step must lead to less noise, s < t; got t = {t.tolist()}, s = {s.tolist()}")
    t, s = t.double(), s.double()
    a_t, a_s, b_t, b_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    if bool((b_s * a_t >= b_t * a_s).any()):
        raise ValueError(f"the schedule has the same noise level at t = {t.tolist()} and s = {s.tolist()}; fewer steps")
    return a_s, b_s, a_t * b_s / (a_s * b_t)


def ddim(
    schedule: Schedule,
    x: Float[Tensor, "B *L"],
    eps: Float[Tensor, "B *L"],
    t: Float[Tensor, "B"],
    s: Float[Tensor, "B"],
    eta: float,
) -> Gaussian:
    """The reverse step p(x_s | x_t) of DDIM.

    Args:
        schedule: Gives alpha and sigma at any time.
        x: State at time t.
        eps: Predicted noise, guidance applied.
        t: Current time in [0, 1], 0 = data.
        s: Next time, s < t.
        eta: 0 is deterministic, 1 is ancestral.

    Returns:
        Mean and std, in the type of x or eps that has more digits; the std is 0 where eta or the noise level at s is.

    Raises:
        ValueError: If any s >= t, or the two times share an entry of a discrete schedule.

    Gradient: to x and eps.
    Source: Song et al. 2021, eq. 12 and 16. At eta = 1 equal to first-order SDE-DPM-Solver++ (Lu et al. 2022).
    """
    a_s, b_s, r = _shape(schedule, t, s)
    std = eta * b_s * (1 - r**2).sqrt()
    direction = (b_s**2 - std**2).clamp_min(0).sqrt()
    x0 = x0_from_eps(schedule, x, eps, t)
    return Gaussian(bcast(a_s, x0) * x0 + bcast(direction, x0) * eps, bcast(std, x0))


def score_scale(
    schedule: Schedule, t: Float[Tensor, "B"], s: Float[Tensor, "B"], eta: float = 1.0
) -> Float[Tensor, "B"]:
    """The k of score_theta - score_ref = -k (eps_theta - eps_ref), for two models at the same x_t and x_s.

    x_t and x_s cancel, so neither log-probabilities nor stored states are needed. At eta = 1 it is
    alpha_s sigma_t / (alpha_t sigma_s^2).

    Args:
        schedule: Gives alpha and sigma at any time.
        t: Current time.
        s: Next time, s < t.
        eta: As in `ddim`; above 0.

    Returns:
        Positive, 1.4 to 1,760 over 20 steps of the usual schedule; infinite where the noise level at s is 0.

    Raises:
        ValueError: If any s >= t, or eta is 0: a deterministic step has no score.
    """
    if eta <= 0:
        raise ValueError(f"score_scale needs eta > 0, got {eta}: a deterministic step has no score")
    _, b_s, r = _shape(schedule, t, s)
    k = (1 / r - (1 - eta**2 * (1 - r**2)).clamp_min(0).sqrt()) / (eta**2 * b_s * (1 - r**2))
    return torch.where(b_s > 0, k, math.inf).to(t.dtype)
