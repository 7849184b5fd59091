"""Judge a checkpoint: pictures of held-out prompts, and numbers beside those of true objects.

    python embedded/judge.py WEIGHTS --out DIR --data DATA/objects_held DATA/furniture_held

WEIGHTS holds transformer/, text_encoder/ and gs_vae/. The prompts are "a COLOUR NOUN" pairs that no training object
shows. Three kinds of objects stand side by side: samples of the generator, true objects of the same pairs (made by
embedded/objects, plain ones: no second colour, pattern or size that the prompt does not tell), and these true objects
after encoding and decoding by the GS-VAE. All are judged on 64-pixel renders.

DIR gets heldout.png, seeds.png, turntable.png, codec-NAME.png for each folder of --data, table.md and numbers.json.
The same weights and options give the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import Shards, canonical_cameras, splat_maps
from objects import shards
from objects.palette import COLORS
from objects.sample import Sample, one
from objects.table import CATEGORIES, category_of, held_out
from torch import Tensor
from train_codec import LAYOUT, psnr

from align3d.evaluate import Evaluation
from align3d.generate import generate
from align3d.models.embedded import Embedded
from align3d.rewards.dnc import DNC
from align3d.rewards.imagenet import class_names, features, log_probabilities, noun, ranks, weights_path
from align3d.scenes.cameras import orbit
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.pictures import look, save_sheet, to_uint8

PROMPTS = Path(__file__).parent.parent / "align3d" / "assets" / "prompts" / "heldout.txt"
ELEVATION = 20.0
RING = tuple(45.0 * i for i in range(8))  # degrees; even places are training views, odd ones lie between them
JUDGED = [0, 1]  # places in RING that the classifier sees
PAGE = (0.0, 45.0, 200.0)  # degrees, of the contact sheet
SIZE, LARGE = 64, 96  # pixels of judged views and of pictures
REFERENCES = 6  # true objects a category, for naming
SEED = 1  # of the true objects; their streams are keyed apart from those of the training set

Say = Callable[[str], None]


@dataclass(frozen=True)
class Set:
    """Objects of P prompts x S seeds, seen at V azimuths."""

    rgb: Tensor  # (P, S, V, 3, 64, 64) in [0, 1]
    haze: Tensor  # (P, S, V) pixels that are neither clear nor solid, per pixel that is at least half covered
    dnc: Tensor | None = None  # (P, S, V) agreement of normals and depth; None for true objects


def pair(prompt: str) -> tuple[str, str]:
    """Category and colour of a prompt "a COLOUR NOUN".

    Raises:
        ValueError: If it is not of this form, or training objects show the pair.
    """
    _, color, name = [*prompt.split(" ", 2), "", ""][:3]
    category = category_of(name)
    if category is None or color not in COLORS:
        raise ValueError(f"{prompt!r} is not 'a COLOUR NOUN' of the procedural objects; judge others with align3d")
    if not held_out(category, color):
        raise ValueError(f"{prompt!r} is shown by training objects; give prompts of held-out pairs")
    return category, color


def plain_object(category: str, color: str | None, *key: int) -> Sample:
    """A true object as the plain prompt tells it, seen at azimuths 0 and 45 by its free cameras."""
    for attempt in range(1000):
        rng = np.random.default_rng([SEED, *key, attempt])
        sample = Sample(*one(rng, category, held=False, color=color), np.array([(a, ELEVATION) for a in (0, 45)], "f4"))
        if not any(sample.meta[extra] for extra in ("part", "pattern", "size")):
            return sample
    raise AssertionError(f"{category} has no plain objects")


def trace(samples: list[Sample], threads: int) -> dict[str, Tensor]:
    """The tensors of a shard of these objects."""
    return {key: torch.from_numpy(value) for key, value in shards.render(samples, threads).items()}


def haze(alpha: Tensor) -> Tensor:
    """Half-covered pixels (5 to 95 %) per covered pixel, of coverage (..., 1, H, W)."""
    partial = ((alpha > 0.05) & (alpha < 0.95)).float().sum((-3, -2, -1))
    return partial / (alpha >= 0.5).float().sum((-3, -2, -1)).clamp_min(1)


def view(scene: Gaussians) -> tuple[Tensor, Tensor, Tensor]:
    """Colours (B, 8, 3, 64, 64), haze and dnc (B, 8) of scenes, all around."""
    azimuth = torch.tensor(RING).expand(len(scene), -1)
    cameras = orbit(azimuth, torch.full_like(azimuth, ELEVATION), height=SIZE, width=SIZE)
    views = scene.render(cameras, want=("rgb", "alpha", "depth", "normal"))
    return views.rgb.clamp(0, 1), haze(views.alpha), DNC()(views, ())


@dataclass(frozen=True)
class Pictures:
    """Larger views of samples, for people."""

    page: Tensor  # (P, S, 3, 3, 96, 96) at PAGE
    ring: Tensor  # (P, 8, 3, 96, 96) at RING, of the first seed


def draw_samples(model, prompts: Sequence[str], seeds: Sequence[int], say: Say) -> tuple[Set, Pictures]:
    """Samples of every prompt and seed, judged views and pictures of them."""
    parts, page, ring, done = [], [], [], 0
    for batch in generate(model, prompts, seeds, batch_size=8):
        parts.append(view(batch.scene))
        page.append(look(batch.scene, len(batch.prompts), PAGE, LARGE, ELEVATION))
        first = [i for i, seed in enumerate(batch.seeds) if seed == seeds[0]]
        if first:
            ring.append(look(batch.scene.index(first), len(first), RING, LARGE, ELEVATION))
        done += len(batch.prompts)
        if done % 32 == 0 or done == len(prompts) * len(seeds):
            say(f"sampled {done} of {len(prompts) * len(seeds)}")
    rgb, mist, dnc = (torch.cat(x).unflatten(0, (len(prompts), len(seeds))) for x in zip(*parts, strict=True))
    return Set(rgb, mist, dnc), Pictures(torch.cat(page).unflatten(0, (len(prompts), len(seeds))), torch.cat(ring))


@torch.no_grad()
def draw_truth(codec, prompts: Sequence[str], num: int, threads: int, say: Say) -> tuple[Set, Set]:
    """True objects of every prompt, `num` each, seen at JUDGED; and the same after the GS-VAE, seen all around."""
    objects = [plain_object(*pair(prompt), i, k) for i, prompt in enumerate(prompts) for k in range(num)]
    rgb, mist, parts = [], [], []
    for i in range(0, len(objects), 16):
        batch = trace(objects[i : i + 16], threads)
        rgb.append(batch["rgb"][:, 4:].movedim(-1, 2).float() / 255)
        mist.append(haze(batch["mask"][:, 4:, None].float() / 255))
        maps, _ = splat_maps(batch)
        parts.append(view(LAYOUT.gaussians(codec.decode(codec.encode(maps)), canonical_cameras())))
    grid = (len(prompts), num)
    say(f"made {len(objects)} true objects")
    coded = Set(*(torch.cat(x).unflatten(0, grid) for x in zip(*parts, strict=True)))
    return Set(torch.cat(rgb).unflatten(0, grid), torch.cat(mist).unflatten(0, grid)), coded


def places(found: Set, prompts: Sequence[str]) -> Tensor:
    """Place of the prompt's noun among the 1000 classes, (P', S, 2), for prompts whose noun has classes."""
    rows = [i for i, prompt in enumerate(prompts) if noun(prompt)]
    images = found.rgb[rows][:, :, JUDGED]
    texts = [prompts[i] for i in rows for _ in range(images[0].shape[0] * len(JUDGED))]
    return ranks(log_probabilities(images.flatten(0, 2)), texts).view(images.shape[:3])


def accuracy(place: Tensor) -> dict:
    """Shares of top-1 and top-5 with standard errors over nouns, by view too, and the median place."""
    result = {}
    for k in (1, 5):
        hit = (place <= k).double()
        of_noun = hit.mean((1, 2))
        error = of_noun.std().item() / len(of_noun) ** 0.5 if len(of_noun) > 1 else None
        result[f"top{k}"] = {
            "share": hit.mean().item(),
            "error": error,
            "at 0": hit[..., 0].mean().item(),
            "at 45": hit[..., 1].mean().item(),
        }
    return result | {"median place": place.double().median().item()}


def naming(sets: dict[str, Set], prompts: Sequence[str], threads: int, say: Say) -> dict:
    """How often the nearest of all procedural categories is the prompt's, by the classifier's features.

    The mean direction of the features of true objects, in colours that the generator knows, stands for a category. So
    this asks for every noun, with or without ImageNet classes, and only whether a sample looks more like its own kind
    than like the others.
    """
    names = list(CATEGORIES)
    objects = [plain_object(name, None, 1000 + i, k) for i, name in enumerate(names) for k in range(REFERENCES)]
    found = torch.cat([trace(objects[i : i + 16], threads)["rgb"][:, 4:] for i in range(0, len(objects), 16)])
    known = features(found.movedim(-1, 2).flatten(0, 1).float() / 255).unflatten(0, (len(names), -1))
    say(f"looked at {len(objects)} reference objects of {len(names)} categories")
    origin = known.mean((0, 1))
    kinds = F.normalize(F.normalize(known - origin, dim=-1).mean(1), dim=-1)
    truth = torch.tensor([names.index(pair(prompt)[0]) for prompt in prompts]).view(-1, 1, 1, 1)
    result = {"categories": len(names)}
    for name, of_set in sets.items():
        images = of_set.rgb[:, :, JUDGED]
        x = F.normalize(features(images.flatten(0, 2)) - origin, dim=-1).unflatten(0, images.shape[:3])
        hit = ((x @ kinds.T).topk(5).indices == truth).double()
        result[name] = {"top1": hit[..., 0].mean().item(), "top5": hit.sum(-1).mean().item()}
        if name == "samples":
            right = hit[..., 0].mean((1, 2))
            result["never named"] = [prompts[i] for i in range(len(prompts)) if right[i] == 0]
    return result


def codec_quality(codec, folder: Path, num: int, out: Path) -> dict:
    """Decibels of the GS-VAE on objects of a folder, seen from new views; and a picture of some, true beside ours."""
    data = Shards([folder])
    rows = torch.linspace(0, len(data) - 1, min(num, len(data))).round().long()
    results = [(len(index), *psnr(codec, data.batch(index))) for index in rows.split(16)]
    true, splats = (sum(result[0] * result[k] for result in results) / len(rows) for k in (1, 2))
    pictures = torch.cat([result[3] for result in results]).unflatten(0, (-1, 2, 3))[:, 0]  # one new view of each
    save_sheet(out / f"codec-{folder.name}.png", torch.cat([pictures[:, 0], pictures[:, 2]], -1)[:40], columns=5)
    return {"objects": len(rows), "decibels": true, "against splats of the maps": splats}


def between(values: Tensor | None) -> dict | None:
    """Means over the training views and over the views between them, of (P, S, 8) numbers."""
    if values is None:
        return None
    return {"training views": values[..., 0::2].mean().item(), "between": values[..., 1::2].mean().item()}


def diversity(found: Set, prompts: Sequence[str]) -> float | None:
    """How much the seeds of a prompt differ, mean over prompts: RMS distance of the pixels at JUDGED."""
    pictures = torch.from_numpy(to_uint8(found.rgb[:, :, JUDGED])).movedim(-1, -3)
    S = pictures.shape[1]
    spread = Evaluation(tuple(prompts), tuple(range(S)), (), torch.zeros(len(prompts), S, 0), pictures).diversity()
    return None if spread is None else spread.mean().item()


def save_pictures(out: Path, pictures: Pictures, prompts: Sequence[str]) -> None:
    """The three sheets of samples."""
    save_sheet(out / "heldout.png", torch.cat(pictures.page[:, 0].unbind(1), -1), 4, prompts)
    some = list(range(0, len(prompts), max(1, len(prompts) // 24)))[:24]
    if pictures.page.shape[1] > 1:
        both = torch.cat(pictures.page[some, :2, 0].unbind(1), -1)
        save_sheet(out / "seeds.png", both, 6, [prompts[i] for i in some])
    some = list(range(1, len(prompts), max(1, len(prompts) // 12)))[:12] or [0]
    save_sheet(out / "turntable.png", torch.cat(pictures.ring[some].unbind(1), -1), 1, [prompts[i] for i in some])


def percent(x: float) -> str:
    """A share as people read it."""
    return f"{100 * x:.0f} %"


def markdown(numbers: dict) -> str:
    """The numbers as tables."""
    kinds = {"samples": "samples", "coded": "true, through the GS-VAE", "true": "true objects"}
    lines = [f"{len(numbers['prompts'])} held-out prompts, {numbers['seeds']} objects each, azimuth 0 and 45.", ""]
    if "accuracy" in numbers:
        lines += ["| judge, of 1000 classes | top-1 | top-5 | top-1 at 0 / 45 | top-5 at 0 / 45 | median place |"]
        lines += ["|---|--:|--:|--:|--:|--:|"]
        for key, name in kinds.items():
            a = numbers["accuracy"][key]
            tops = (a["top1"], a["top5"])
            cells = [f"{percent(t['share'])} \N{PLUS-MINUS SIGN} {percent(t['error'] or 0)}" for t in tops]
            cells += [f"{percent(t['at 0'])} / {percent(t['at 45'])}" for t in tops]
            lines.append(f"| {name} | {' | '.join(cells)} | {a['median place']:.0f} |")
        lines += ["", f"{len(numbers['nouns'])} nouns have classes; errors are standard errors over nouns.", ""]
    if "naming" in numbers:
        n = numbers["naming"]
        lines += [f"| nearest of {n['categories']} categories | first | among the first 5 |", "|---|--:|--:|"]
        lines += [f"| {name} | {percent(n[k]['top1'])} | {percent(n[k]['top5'])} |" for k, name in kinds.items()]
        lines += ["", f"Never named: {', '.join(n['never named']) or 'none'}.", ""]
    lines += ["| | dnc, training views | dnc, between | haze, training views | haze, between | diversity |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for key, name in kinds.items():
        cells = [
            "" if not numbers[what][key] else f"{numbers[what][key][where]:.3f}"
            for what in ("dnc", "haze")
            for where in ("training views", "between")
        ]
        spread = numbers["diversity"].get(key)
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if spread is None else f'{spread:.3f}'} |")
    if numbers["codec"]:
        lines += ["", "| GS-VAE, new views | objects | against true views | against splats of the maps |"]
        lines += ["|---|--:|--:|--:|"]
        for name, c in numbers["codec"].items():
            splats = c["against splats of the maps"]
            lines.append(f"| {name} | {c['objects']} | {c['decibels']:.2f} dB | {splats:.2f} dB |")
    if "nouns" in numbers:
        lines += ["", "| prompt | samples top-1 | top-5 | true top-1 | top-5 | the judge's first word for a sample |"]
        lines += ["|---|--:|--:|--:|--:|---|"]
        for row in numbers["nouns"]:
            cells = [percent(row[kind][k]) for kind in ("samples", "true") for k in ("top1", "top5")]
            lines.append(f"| {row['prompt']} | {' | '.join(cells)} | {row['first word']} |")
    return "\n".join([*lines, ""])


def judged(sets: dict[str, Set], prompts: Sequence[str], say: Say) -> dict:
    """Accuracies of all sets, and a row for every noun."""
    found = {}
    for name, of_set in sets.items():
        found[name] = places(of_set, prompts)
        say(f"judged {name}")
    texts = [prompt for prompt in prompts if noun(prompt)]
    first = sets["samples"].rgb[[i for i, prompt in enumerate(prompts) if noun(prompt)], 0, 0]
    words = [class_names()[i] for i in log_probabilities(first).argmax(-1).tolist()]
    rows = [
        {
            "prompt": prompt,
            "first word": words[i],
            **{n: {f"top{k}": (place[i] <= k).double().mean().item() for k in (1, 5)} for n, place in found.items()},
        }
        for i, prompt in enumerate(texts)
    ]
    return {"accuracy": {name: accuracy(place) for name, place in found.items()}, "nouns": rows}


def judge(args: argparse.Namespace, say: Say) -> dict:
    """All numbers; the pictures are written on the way."""
    prompts = args.prompts.read_text(encoding="utf-8").split("\n")
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    for prompt in prompts:
        pair(prompt)
    model = Embedded(weights=args.weights).load()
    numbers = {"prompts": prompts, "seeds": args.seeds, "precision": str(model.precision), "codec": {}}
    codec = model.codec
    for folder in args.data:
        numbers["codec"][folder.name] = codec_quality(codec, folder, args.objects, args.out)
        say(f"GS-VAE on {folder.name}: {numbers['codec'][folder.name]['decibels']:.2f} dB")
    with torch.no_grad():
        samples, pictures = draw_samples(model, prompts, range(args.seeds), say)
        save_pictures(args.out, pictures, prompts)
        true, coded = draw_truth(codec, prompts, args.seeds, args.threads, say)
        sets = {"samples": samples, "coded": coded, "true": true}
        try:
            weights_path()
        except ValueError as error:
            say(f"no classifier, so no accuracy: {error}")
        else:
            if any(map(noun, prompts)):
                numbers |= judged(sets, prompts, say)
            numbers["naming"] = naming(sets, prompts, args.threads, say)
    numbers["dnc"] = {name: between(of_set.dnc) for name, of_set in sets.items()}
    numbers["haze"] = {name: between(of_set.haze) for name, of_set in sets.items()}
    numbers["diversity"] = {name: diversity(of_set, prompts) for name, of_set in sets.items()}
    return numbers


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, judge, write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="folder with transformer/, text_encoder/ and gs_vae/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures and numbers; made if missing")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of held-out shards, for the GS-VAE")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="held-out prompts, one a line")
    parser.add_argument("--seeds", type=int, default=2, help="samples a prompt")
    parser.add_argument("--objects", type=int, default=64, help="objects of each folder of --data")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        numbers = judge(args, lambda text: print(f"{time.monotonic() - start:4.0f} s  {text}", flush=True))
    except (ValueError, FileNotFoundError) as error:
        print(f"judge: {error}", file=sys.stderr)
        return 2
    (args.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(markdown(numbers), encoding="utf-8")
    print(markdown(numbers).partition("\n| prompt")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
