"""What a user might write: a small model and rewards, good and bad. The tests copy it to the folder they run in."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from align3d.diffusion.schedule import DiscreteVP
from align3d.scenes.gaussians import Gaussians


@dataclass(frozen=True)
class Toy:
    """A cloud of a few Gaussians, whose places and colours are the latents."""

    adapter: Path | None = None  # where to start
    steps: int = 4  # of the sampler

    def load(self, device="cpu"):
        model = ToyModel()
        model.steps = self.steps
        if self.adapter is not None:
            model.adapter.load_state_dict(load_file(self.adapter / "adapter_model.safetensors"))
        return model


class ToyModel:
    latent_shape = (6, 8)
    schedule = DiscreteVP()

    def __init__(self):
        self.adapter = torch.nn.Linear(8, 8)
        for p in self.adapter.parameters():
            torch.nn.init.zeros_(p)
        self.on = True

    def encode(self, prompts):
        return torch.tensor([[len(p) / 30.0] for p in prompts])

    def predict(self, x, t, cond):
        sigma = self.schedule.sigma(t)[:, None, None]
        return sigma * (x - cond[:, None]) + (self.adapter(x) if self.on else 0)

    def decode(self, x0):
        B, N, _ = x0.shape
        quats = torch.tensor([1.0, 0, 0, 0]).expand(B, N, 4)
        return Gaussians(
            0.3 * x0[..., :3].tanh(), quats, torch.full((B, N, 3), 0.1), torch.full((B, N), 0.8), x0[..., 3:6].sigmoid()
        )

    @contextlib.contextmanager
    def reference(self):
        self.on = False
        try:
            with torch.no_grad():
                yield
        finally:
            self.on = True

    def save_adapter(self, folder):
        folder.mkdir(exist_ok=True)
        save_file(self.adapter.state_dict(), folder / "adapter_model.safetensors")


def redness(views, prompts):
    """Red."""
    return (views.rgb[:, :, 0] - views.rgb[:, :, 1]).mean((-2, -1))


def nan(views, prompts):
    return redness(views, prompts) * float("nan")


def flat(views, prompts):
    return redness(views, prompts).mean()


def slow(views, prompts):
    time.sleep(0.03)
    return redness(views, prompts)


@dataclass(frozen=True)
class Picky:
    """Does not know the word unicorn."""

    strength: float = 1.0  # factor on the reward
    differentiable = True
    needs = frozenset({"rgb"})

    def check(self, prompts):
        for prompt in prompts:
            if "unicorn" in prompt:
                raise ValueError(f"reward picky has never seen a unicorn ({prompt!r}); leave it out")

    def __call__(self, views, prompts):
        return self.strength * redness(views, prompts)
