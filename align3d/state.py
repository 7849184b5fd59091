"""All that one update of a run hands to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from align3d.weights import assign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Int
    from torch import Tensor, nn

NUMBERS = ("prepared", "before", "reward")  # fields of State in state.json
ADAM = ("step", "exp_avg", "exp_avg_sq")  # what torch.optim.AdamW keeps for each parameter it has moved


@dataclass(frozen=True)
class State:
    """What is trained, and what the optimiser and the reward go by."""

    trainable: dict[str, nn.Parameter]  # of the adapter, by name
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]  # running mean of each of them; empty without one
    prepared: dict[str, float] = field(default_factory=dict)  # options of the method that its `prepare` has set
    before: dict[str, float] = field(default_factory=dict)  # what that took, which counts for the first update
    reward: dict[str, float] = field(default_factory=dict)  # what a reward goes by that knows what the run has seen
    growing: Mapping[str, int] = field(default_factory=dict)  # parameters whose rows come and go, all as many; at most

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, copied to the CPU."""
        found: dict[str, Tensor] = {f"adapter/{name}": parameter for name, parameter in self.trainable.items()}
        for name, parameter in self.trainable.items():
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{moment}/{name}"] = tensor
        found |= {f"ema/{name}": tensor for name, tensor in self.ema.items()}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}

    def shapes(self, have: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Name to shape of what `tensors` gives of a run like this one that was saved.

        Args:
            have: Those that were saved. They say which parameters the optimiser had moved, and how many rows there
                were of those whose number changes.
        """
        saved = {name: have.get(f"adapter/{name}", ())[:1] for name in self.growing}
        fits = len(set(saved.values())) == 1 and all(
            rows and 1 <= rows[0] <= self.growing[n] for n, rows in saved.items()
        )
        found = {}
        for name, parameter in self.trainable.items():
            shape = tuple(parameter.shape)
            shape = (*saved[name], *shape[1:]) if fits and name in saved else shape
            found[f"adapter/{name}"] = shape
            if any(f"optimizer/{key}/{name}" in have for key in ADAM):
                found |= {f"optimizer/{key}/{name}": () if key == "step" else shape for key in ADAM}
            if name in self.ema:
                found[f"ema/{name}"] = shape
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave, in place."""
        for name, parameter in self.trainable.items():
            assign(parameter, tensors[f"adapter/{name}"])
            if name in self.ema:
                self.ema[name] = tensors[f"ema/{name}"].to(self.ema[name], copy=True)
            if f"optimizer/step/{name}" in tensors:
                step, *moments = (tensors[f"optimizer/{key}/{name}"] for key in ADAM)
                moments = [moment.to(parameter.device) for moment in moments]
                self.optimizer.state[parameter] = dict(
                    zip(ADAM, [step, *moments], strict=True)
                )  # AdamW counts on the CPU

    def follow(self, sources: Mapping[str, Int[Tensor, "_"]]) -> None:
        """Have optimiser and running means go on with parameters whose rows have moved.

        Args:
            sources: By the parameter's name, which row each of its rows was before. Where that is negative, the row is
                new: its moments are zero, and its running mean is its value.
        """
        for name, source in sources.items():
            parameter, old = self.trainable[name], source.clamp_min(0)
            kept = (source >= 0).view(-1, *[1] * (parameter.ndim - 1))
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                if key != "step":
                    self.optimizer.state[parameter][key] = torch.where(kept, moment[old], torch.zeros_like(parameter))
            if name in self.ema:
                self.ema[name] = torch.where(kept, self.ema[name][old], parameter.detach())
