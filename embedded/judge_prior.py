"""Judge the embedded prior: python embedded/judge_prior.py WEIGHTS --views RUN/views --out DIR.

It paints held-out objects from the cameras of their traced pictures, for some strengths of guidance; clip-tiny tells
their captions apart, on the paintings and on the traced pictures of the same size. DIR gets numbers.json, table.md,
samples-*.png (traced above painted, four views an object) and heldout.png (the first held-out prompts, from the front).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from clip_text import Truth, facts, told
from judge_clip import gallery, ranks
from torch import Tensor
from train_prior import Pictures, cameras

from align3d.diffusion.guidance import guide
from align3d.diffusion.transition import ddim
from align3d.priors.embedded import AZIMUTHS, ELEVATION, Embedded, EmbeddedPrior
from align3d.rewards.clip_tiny import image_features, text_features
from align3d.scenes.pictures import save_sheet
from align3d.types import Cameras

PROMPTS = Path(__file__).parent.parent / "align3d" / "assets" / "prompts" / "heldout.txt"
SHOWN = 24  # objects of the sheet


@torch.no_grad()
def paint(
    prior: EmbeddedPrior, prompts: Sequence[str], views: Cameras, guidance: float, steps: int = 25, seed: int = 0
) -> Tensor:
    """Pictures (B, V, 3, H, W) in [0, 1] by deterministic sampling, a few objects at a time."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(prompts), views.c2w.shape[1], *prior.latent_shape)
    noise, found = torch.randn(shape, generator=rng), []
    for rows in torch.arange(len(prompts)).split(16):
        x, n = noise[rows], len(rows)
        seen = replace(views, c2w=views.c2w[rows].repeat(2, 1, 1, 1), K=views.K[rows].repeat(2, 1, 1, 1))
        cond = prior.encode([prompts[i] for i in rows.tolist()] + [""] * n)
        times = prior.schedule.times(steps)
        for t, s in zip(times[:-1].expand(n, -1).T, times[1:].expand(n, -1).T, strict=True):
            eps = prior.predict(torch.cat([x, x]), torch.cat([t, t]), cond, seen)
            x = ddim(prior.schedule, x, guide(eps[:n], eps[n:], guidance), t, s, eta=0.0).mean
        found.append(prior.images(x))
    return torch.cat(found)


def features(images: Tensor) -> Tensor:
    """Of clip-tiny, (B, V, d)."""
    return image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def distance(a: Tensor, b: Tensor) -> float:
    """Squared distance of two clouds of features (n, d) by a cubic kernel, unbiased (KID, Binkowski et al. 2018)."""
    a, b = (x * x.shape[1] ** 0.5 for x in (a, b))
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    own = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb))
    return (own - 2 * ab.mean()).item()


def judge(prior: EmbeddedPrior, held: Pictures, guidance: Sequence[float], steps: int, out: Path) -> dict:
    """Numbers, and the sheets."""
    truth, found = Truth(), [facts(meta) for meta in held.meta]
    captions = [texts[0] for texts in held.captions]
    said = truth.code([told(text, fact) for text, fact in zip(captions, found, strict=True)])
    rows = gallery(truth.code(found), said, 64)
    captions = [captions[i] for i in rows]
    true = held.rgb[rows, 0].movedim(-1, 2).float() / 255
    views, texts = cameras(held.angles[rows, 0]), text_features(captions)
    seen = features(true)
    numbers = {"true": ranks(seen, texts) | {"cosine": (seen * texts[:, None]).sum(-1).mean().item()}}
    for scale in guidance:
        made = paint(prior, captions, views, scale, steps)
        look = features(made)
        other = features(paint(prior, captions, views, scale, steps, seed=1))
        numbers[f"guidance {scale:g}"] = ranks(look, texts) | {
            "cosine": (look * texts[:, None]).sum(-1).mean().item(),
            "distance": distance(look.flatten(0, 1), seen.flatten(0, 1)),
            "diversity": (1 - (look * other).sum(-1)).mean().item(),
        }
        print(f"guidance {scale:g}", numbers[f"guidance {scale:g}"], flush=True)
        strips = torch.stack([true[:SHOWN], made[:SHOWN]], 1).flatten(0, 1)  # two rows an object
        strips = strips.movedim(1, 3).flatten(3, 4)  # views side by side
        strips = strips.unflatten(0, (-1, 2)).movedim(1, 2).flatten(2, 3)
        save_sheet(out / f"samples-{scale:g}.png", strips, 3, captions[:SHOWN])
    return numbers


def fronts(prior: EmbeddedPrior, prompts: Sequence[str], guidance: float, steps: int, out: Path) -> None:
    """Front, right, back and left of what prompts ask for."""
    angles = torch.tensor([[azimuth, ELEVATION] for azimuth in AZIMUTHS]).expand(len(prompts), -1, -1)
    images = paint(prior, prompts, cameras(angles), guidance, steps)
    save_sheet(out / "heldout.png", images.movedim(1, 3).flatten(3, 4), 4, list(prompts))


def markdown(numbers: dict) -> str:
    """The table of the card."""
    lines = ["| pictures | top-1 | top-5 | cosine | distance | diversity |", "|---|--:|--:|--:|--:|--:|"]
    for name, row in numbers.items():
        more = " | ".join(f"{row[key]:.3f}" if key in row else "" for key in ("cosine", "distance", "diversity"))
        lines.append(f"| {name} | {100 * row['top1']:.0f} % | {100 * row['top5']:.0f} % | {more} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, paint, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--views", type=Path, required=True, help="folder of the traced pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 5.0, 7.5])
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prior = Embedded(args.weights).load()
    held = Pictures(args.views / "held", prior.text.network.tokenize, every=True)
    numbers = judge(prior, held, args.guidance, args.steps, args.out)
    (args.out / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (args.out / "table.md").write_text(markdown(numbers))
    prompts = PROMPTS.read_text(encoding="utf-8").split("\n")
    fronts(prior, [prompt for prompt in prompts if prompt.strip()][:SHOWN], 5.0, args.steps, args.out)


if __name__ == "__main__":
    main()
