"""VSD: variational score distillation (Wang et al. 2023, ProlificDreamer, arXiv 2305.16213, algorithm 1, eq. 8 and 9).

    g = w(t) (eps_hat_pretrained(x_t; y, guidance) - eps_phi(x_t; y, cameras))
    phi: minimise |eps_phi(alpha_t z + sigma_t eps; y, cameras) - eps|^2,  t ~ U(0, 1),  fresh eps

phi is the prior with a LoRA adapter, which learns the scene's own score along with the scene: one step of each in an
update, the scene's gradient being taken with phi as it was before. phi's loss sees the scene's latents as constants,
and one noise, whatever the number of candidates: rewards do not enter it.

The published code of RewardSDS (`vsd_loss`, `train_lora`) puts the adapter of rank 4 into another network, Stable
Diffusion 2.1 of 768 pixels, which predicts v: `target="v"` has its loss. It also trains an embedding of the camera, of
cameras that are all zero, and leaves phi's guidance at 1, where it does nothing; both are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from align3d.methods import reference
from align3d.methods.candidates import Noised
from align3d.methods.distillation import Distillation
from align3d.types import Look, Subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams


@dataclass(frozen=True)
class VSD(Distillation):
    """VSD: the scene against a copy of the prior that learns what the scene looks like; low guidance, more detail."""

    levels_2d: ClassVar[int] = 0
    rank: ClassVar[int] = 4  # of the prior's adapter, where `align3d optimize` is told none; as published

    guidance: float = 7.5  # of the prior in the loss
    phi_rate: float = 3e-4  # learning rate of phi
    target: Literal["eps", "v"] = "eps"  # what phi's error is measured in; v weighs noisy levels more, by 1 / alpha^2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.phi_rate < 1e4:
            raise ValueError(f"phi_rate must be above 0 and at most 1e4, got {self.phi_rate}")
        if self.target not in ("eps", "v"):
            raise ValueError(f"target must be eps or v, got {self.target!r}")

    def check(self, subject: Subject, times: Float[Tensor, "T"], group: int) -> None:
        """Refuse a prior without an adapter.

        Raises:
            ValueError: Says how to get one.
        """
        super().check(subject, times, group)
        if getattr(subject, "phi", None) is None:
            raise ValueError("vsd trains an adapter of the prior along, and this one has none; give --prior.rank 4")

    def groups(self) -> dict[str, dict[str, Any]]:
        """Those of phi: AdamW's own, without decay."""
        return {"phi": {"lr": self.phi_rate, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}}

    def gradient(self, subject: Subject, rows: Noised) -> Float[Tensor, "R V *L"]:
        """Where the prior sees more noise than phi does."""
        (own,) = self.explore.predict(subject, rows.x, rows.t, [rows.prompts], rows.cameras, phi=True)
        return self.w(subject, rows) * (rows.guided(self.guidance) - own)

    def extra(self, subject: Subject, look: Look, prompts: Sequence[str], rng: Streams) -> dict[str, Float[Tensor, ""]]:
        """Phi's loss, the mean over all elements."""
        from align3d.diffusion.schedule import add_noise, bcast

        z = look.latents.detach()
        t = rng.uniform("phi t", like=z)
        if self.compat == "reference":
            t = reference.level(0.0, 0.999, 0, rng, "phi t").to(z).expand(len(rng))
        noise = rng.normal("phi noise", tuple(z.shape[1:]), like=z)
        x = add_noise(subject.schedule, z, noise, t)
        (eps,) = self.explore.predict(subject, x, t, [list(prompts)], look.cameras, phi=True)
        unit = 1.0 if self.target == "eps" else bcast(subject.schedule.alpha(t), z)
        return {"phi": ((eps - noise) / unit).square().mean()}
