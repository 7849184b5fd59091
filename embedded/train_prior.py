"""Train the embedded prior on pictures and captions: python embedded/train_prior.py OUT --minutes 75.

Pictures of the embedded generator's objects, from random azimuths, are traced first and kept (OUT/views, or --views).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from objects import march
from objects.sample import draw
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_generator import corrupt, usable
from training import Optimizers, Trainer

from align3d.diffusion.schedule import DiscreteVP, add_noise, bcast, v_from_eps
from align3d.files import replacing
from align3d.models.embedded import ASSETS
from align3d.models.nets.text import TextEncoder
from align3d.priors.nets.views_unet import ViewsUNet, rays_and_poses
from align3d.scenes.cameras import orbit
from align3d.types import Cameras
from align3d.weights import load_part

SCHEDULE = DiscreteVP(beta_start=0.00085, beta_end=0.012, kind="scaled_linear")  # Stable Diffusion's
SHARD, SIZE, VIEWS, RIGS = 500, 32, 4, 2  # objects a file, pixels, views of a set, sets of an object
EDGES = ("stem", "out", "time", "pose", "topic")  # layers that are no inner matrices
ELEVATIONS = (0.0, 30.0)  # degrees, of all views
JITTER = 30.0  # degrees either way, of the azimuths of the second set


def rigs(rng: np.random.Generator) -> np.ndarray:
    """Azimuths and elevations (2, 4, 2) of two sets of views, degrees, from a random azimuth on.

    The views of the first are 90 degrees apart at one elevation; those of the second are shaken, each for itself.
    """
    first, shake = rng.uniform(0, 360, (RIGS, 1)), rng.uniform(-JITTER, JITTER, VIEWS) * [[0], [1]]
    azimuth = (first + 90 * np.arange(VIEWS) + shake) % 360
    elevation = rng.uniform(*ELEVATIONS, (RIGS, VIEWS))
    elevation[0] = elevation[0, 0]
    return np.stack([azimuth, elevation], -1).astype(np.float32)


def render(out: Path, count: int, seed: int, held: bool = False, threads: int = 1) -> None:
    """Write pictures of the objects 0 .. count - 1 of a data set, shard by shard; a file that is there is kept.

    A shard holds rgb, uint8 (n, 2, 4, 32, 32, 3), on white, and angles, float32 (n, 2, 4, 2): azimuth and elevation.
    Its .json has captions and meta, as of objects/shards.py.
    """
    out.mkdir(parents=True, exist_ok=True)
    for k in range(-(-count // SHARD)):
        path = out / f"shard-{k:05d}.safetensors"
        if path.exists():
            continue
        rows = range(k * SHARD, min((k + 1) * SHARD, count))
        samples = [draw(seed, i, held) for i in rows]
        angles = np.stack([rigs(np.random.default_rng([seed, i, int(held), 32])) for i in rows])
        cameras = np.stack([[march.camera(a, e) for a, e in views.reshape(-1, 2)] for views in angles])
        rgb, *_ = march.march([(s.prims, s.frame) for s in samples], cameras, 0, SIZE, threads)
        info = {"captions": [s.captions for s in samples], "meta": [s.meta for s in samples]}
        path.with_suffix(".json").write_text(json.dumps(info))
        rgb = rgb.reshape(len(rows), RIGS, VIEWS, SIZE, SIZE, 3)
        with replacing(path) as temporary:
            save_file({"rgb": torch.from_numpy(rgb), "angles": torch.from_numpy(angles)}, temporary)
        print(f"traced {out.name}/{path.name}", flush=True)


class Pictures:
    """Pictures of the usable objects of a folder in memory, where they were seen from, and what is said of them."""

    def __init__(self, folder: Path, tokenize: Callable[[list[str]], Tensor], every: bool = False):
        """Read a folder that `render` has written; without those that must not teach, unless `every`."""
        rgb, angles, self.captions, self.meta = [], [], [], []
        for path in sorted(folder.glob("shard-*.safetensors")):
            text, tensors = json.loads(path.with_suffix(".json").read_text()), load_file(path)
            rows = [i for i, meta in enumerate(text["meta"]) if every or usable(meta)]
            rgb.append(tensors["rgb"][rows])
            angles.append(tensors["angles"][rows])
            self.captions += [text["captions"][i] for i in rows]
            self.meta += [text["meta"][i] for i in rows]
        self.rgb, self.angles = torch.cat(rgb), torch.cat(angles)
        self.ids = torch.stack([tokenize([texts[k] for texts in self.captions]) for k in range(3)], 1).short()

    def __len__(self) -> int:
        return len(self.captions)

    def draw(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One batch: pictures (B, V, 3, H, W) in [-1, 1], angles (B, V, 2), ids of captions (B, T, G).

        Seven batches in ten have four views an object; the others have fewer, of more objects.
        """
        views = VIEWS if torch.rand((), generator=rng) < 0.7 else int(torch.randint(1, VIEWS, (), generator=rng))
        n = size * VIEWS // views
        rows, rig = torch.randint(len(self), (n,), generator=rng), torch.randint(RIGS, (n,), generator=rng)
        chosen = torch.rand(n, VIEWS, generator=rng).argsort(1)[:, :views]
        at = rows[:, None], rig[:, None], chosen
        ids = self.ids[rows, torch.randint(3, (n,), generator=rng)].long()
        return self.rgb[at].movedim(-1, 2).float() / 127.5 - 1, self.angles[at], ids


def cameras(angles: Tensor) -> Cameras:
    """By azimuth and elevation (B, V, 2)."""
    return orbit(angles[..., 0], angles[..., 1], height=SIZE, width=SIZE)


def words(text: TextEncoder, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States of captions and which of them are words, no longer than the longest."""
    longest = int((ids > 0).any(-1).sum(1).max())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        states, keep = text(ids)
    return states[:, :longest].float(), keep[:, :longest].float()


@torch.no_grad()
def errors(network: ViewsUNet, text: TextEncoder, held: Pictures, count: int = 64) -> list[float]:
    """Mean squared error of x0 on fixed objects and noise at five times."""
    rng, result = torch.Generator().manual_seed(7), []
    x0 = held.rgb[:count, 0].movedim(-1, 2).float() / 127.5 - 1
    angles, ids = held.angles[:count, 0], held.ids[:count, 0]
    told = (*words(text, ids.long()), *rays_and_poses(cameras(angles), SIZE // 2, SIZE // 2))
    for time in (0.1, 0.3, 0.5, 0.7, 0.9):
        t, eps = torch.full((len(x0),), time), torch.randn(x0.shape, generator=rng)
        x = add_noise(SCHEDULE, x0, eps, t)
        with torch.autocast("cpu", torch.bfloat16):
            v = network(x, t, *told).float()
        estimate = bcast(SCHEDULE.alpha(t), x) * x - bcast(SCHEDULE.sigma(t), x) * v
        result.append(round((estimate - x0).square().mean().item(), 4))
    return result


def export(network: ViewsUNet, folder: Path) -> None:
    """The float16 checkpoint, as the package ships it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config, indent=2) + "\n")
    with replacing(folder / "diffusion_pytorch_model.safetensors") as path:
        save_file({k: v.detach().half().contiguous() for k, v in network.state_dict().items()}, path)


def main() -> None:
    """Parse, trace, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", type=Path, help="folder of the traced pictures; OUT/views if not given")
    parser.add_argument("--count", type=int, default=40000, help="objects to trace")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--batch", type=int, default=16, help="objects of four views")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    rng = torch.Generator().manual_seed(0)
    views = args.views or args.out / "views"
    render(views / "held", SHARD, 1, True, args.threads)
    render(views / "objects", args.count, 0, False, args.threads)
    text = load_part(TextEncoder, ASSETS / "text_encoder").requires_grad_(False).eval()
    pictures, held = Pictures(views / "objects", text.tokenize), Pictures(views / "held", text.tokenize, every=True)
    network = ViewsUNet()
    trainer = Trainer(network, Optimizers(network, EDGES, 0.02, 2e-3), args.out, args.minutes * 60)
    if trainer.steps:  # resumed: go on with other draws
        rng.manual_seed(trainer.steps)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(pictures)} objects", flush=True)
    shown, total, last = 0.0, 0.0, trainer.steps
    while trainer.progress < 1:
        x0, angles, ids = pictures.draw(args.batch, rng)
        told = (*words(text, corrupt(ids, rng)), *rays_and_poses(cameras(angles), SIZE // 2, SIZE // 2))
        t, eps = torch.rand(len(x0), generator=rng), torch.randn(x0.shape, generator=rng)
        x = add_noise(SCHEDULE, x0, eps, t)
        with torch.autocast("cpu", torch.bfloat16):
            v = network(x, t, *told)
        loss = (v.float() - v_from_eps(SCHEDULE, x, eps, t)).square().mean()
        trainer.step(loss, args.batch)
        total += loss.item()
        if trainer.elapsed - shown > 180 or trainer.steps == 20:
            shown = trainer.elapsed
            print(
                f"{shown:.0f} s {trainer.steps} steps {trainer.samples / shown:.1f}/s "
                f"loss {total / (trainer.steps - last):.4f} x0 error {errors(trainer.mean, text, held)}",
                flush=True,
            )
            total, last = 0.0, trainer.steps
            trainer.save()
            export(trainer.mean, args.out / "weights")
    trainer.save()
    export(trainer.mean, args.out / "weights")


if __name__ == "__main__":
    main()
