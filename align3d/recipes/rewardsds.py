"""RewardSDS (arXiv 2503.09601) for `align3d optimize`: pictures, radiance fields, and one for the shipped prior.

`released` has the settings of the published code, with `method.compat reference`, which brings its quirks back; `paper`
has the numbers of the paper, computed as align3d does, and those of the code where the paper is silent. What was never
released has no such variant. docs/recipes.md shows both columns, docs/migrating.md where each flag of the code went.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

from align3d.recipes.recipe import Recipe, Settings

NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)
ADAMW: Settings = {"betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 0.01, "warmup": 0, "max_grad_norm": 0.0}
ADAM: Settings = ADAMW | {"weight_decay": 0.0}  # what the paper says of pictures
WEIGHTING: Settings = {"kind": "min-max", "num_max": 2, "num_min": 2, "lambda_max": 0.9, "lambda_min": 0.1}
QUIRKS: Settings = {"compat": "reference"}
WALK: Settings = {"steps": 15, "guidance": 7.5, "fast": False}  # of candidates; in 3D, QUIRKS take the loss's guidance


@dataclass(frozen=True)
class Run:
    """A run by its parts, and what its variants set differently."""

    summary: str
    settings: dict[str, Settings]
    variants: dict[str, dict[str, Settings]] = field(default_factory=dict)  # variant -> kind of part -> options


def picture(method: Settings, prior: Settings, title: str, released: Settings | None = None) -> Run:
    """One of the two-dimensional runs: latents under Stable Diffusion."""
    settings: dict[str, Settings] = {
        "prior": {"name": "stable-diffusion", **prior},
        "method": {"t_min": (0.02, 0.02), "t_max": (0.98, 0.98), "weighting": WEIGHTING, **method},
        "scene": {"name": "picture", "strength": 1.0, "rate": 0.01},
        "reward": {"name": "imagereward"},
        "cameras": {"name": "ring", "views": 1},
        "loop": {"updates": 1000, "batch_size": 1, "seed": 0, "checkpoint_every": 100, "sample_every": 50},
    }
    paper: dict[str, Settings] = {"method": {"explore": {"candidates": 10, **WALK}}, "loop": ADAM}
    code: dict[str, Settings] = {
        "prior": {"precision": "float32"},
        "method": {"explore": {"candidates": 4, **WALK}, **QUIRKS, **(released or {})},
        "loop": ADAMW,
    }
    return Run(f"RewardSDS, {title} of Stable Diffusion 2.1", settings, {"paper": paper, "released": code})


def edit() -> Run:
    """RewardDDS, of which the paper says a line and the code nothing."""
    once = {"candidates": 5, "steps": 1, "guidance": 7.5, "fast": False}
    run = picture({"name": "dds", "guidance": 7.5, "weight": "uniform", "explore": once}, {}, "an edited picture")
    loop = run.settings["loop"] | ADAM | {"updates": 200}
    return Run(run.summary, run.settings | {"loop": loop}, {"paper": {}})


def nerf(light: bool) -> Run:
    """One of the two radiance fields under MVDream."""
    levels = {"levels": 16, "features": 2, "log2_size": 19, "coarsest": 16, "finest": 4096}
    march = {"samples": 512, "prune": 0.01, "cells": 32, "every": 16, "warmup": 256, "decay": 0.95, "empty": 0.01}
    scene: Settings = {
        **{"name": "nerf", "grid": "hash", "hidden": 64, "blob": (10.0, 0.5), "grid_rate": 0.01, "net_rate": 1e-3},
        **{"hash": levels, "march": march, "backdrop": {"kind": "learned", "random": 0.5}},
    }
    if light:
        scene["shading"] = {"start": 5000, "albedo": 0.25, "textureless": 0.5}
        scene["penalties"] = {"orient": (0.0, 10.0, 1000.0, 5000.0)}
    method: Settings = {
        **{"name": "recon", "guidance": 50.0, "rescale": 0.5, "weight": "uniform", "negative": NEGATIVE},
        **{"t_min": (0.98, 0.02), "t_max": (0.98, 0.5), "anneal": 8000, "same_t": True, "weighting": WEIGHTING},
    }
    ring: Settings = {
        **{"name": "lenses", "views": 4, "size": (64, 256), "grow": (5000,), "elevation": (0.0, 30.0)},
        **{"fovy": (15.0, 60.0), "reach": (0.4, 0.5)},
    }
    loop: Settings = {
        **{"updates": 10000, "batch_size": 2, "batch_later": ((5000, 1),), **ADAMW, "seed": 0},
        **{"checkpoint_every": 500, "sample_every": 200},
    }
    settings = {"prior": {"name": "mvdream", "size": 256}, "method": method, "scene": scene, "cameras": ring}
    settings |= {"reward": {"name": "imagereward"}, "loop": loop}
    tries = {"candidates": 7, **WALK}
    paper: dict[str, Settings] = {"method": {"explore": tries | {"first": 5000}}, "cameras": {"published": False}}
    code: dict[str, Settings] = {
        "prior": {"draw": True},
        "method": {"explore": tries | {"first": 7000}, **QUIRKS},
        "cameras": {"published": True},
    }
    title = "a radiance field with light" if light else "a radiance field"
    return Run(f"RewardSDS, {title}, MVDream", settings, {"paper": paper, "released": code})


def gaussians() -> Run:
    """Gaussians under MVDream, after DreamGaussian's text_mv.yaml, whose code the paper has used and not published.

    Its lengths are twice ours. Rates are those of Gaussians here: places at 1e-3, which there falls from 5e-3 to 1e-4.
    """
    method: Settings = {
        **{"name": "sds", "guidance": 100.0, "negative": NEGATIVE, "weight": "uniform", "weighting": WEIGHTING},
        **{"t_min": (0.98, 0.02), "t_max": (0.98, 0.02), "anneal": 500, "explore": {"candidates": 7, **WALK}},
    }
    ring: Settings = {
        **{"name": "lenses", "views": 4, "size": (128, 256, 512), "grow": (150, 300), "elevation": (-30.0, 30.0)},
        **{"fovy": (49.1, 49.1), "reach": (0.571, 0.571), "sphere": 0.0},
    }
    density: Settings = {
        **{"name": "default", "every": 50, "first": 50, "most": 1 << 16, "size": 0.02, "faint": 0.01, "large": 0.2},
        "reset": 0,
    }
    loop = {"updates": 500, "batch_size": 1, **ADAM, "betas": (0.9, 0.999), "checkpoint_every": 50, "sample_every": 50}
    return Run(
        "RewardSDS, Gaussians under MVDream, after DreamGaussian",
        {
            "prior": {"name": "mvdream", "size": 256},
            "method": method,
            "scene": {"name": "gaussians", "num": 5000, "radius": 0.25, "opacity": 0.1, "density": density},
            "reward": {"name": "imagereward"},
            "cameras": ring,
            "loop": loop,
        },
    )


def embedded() -> Run:
    """For two cores and no download: Gaussians under the shipped prior."""
    choice = {"weighting": {"kind": "best"}, "explore": {"candidates": 4, "steps": 1, "guidance": 7.5}}
    return Run(
        "RewardSDS, Gaussians under the shipped prior: 150 updates, some 10 s of one core",
        {
            "prior": {"name": "embedded"},
            "method": {"name": "sds", "guidance": 5.0, **choice},
            "scene": {"name": "gaussians", "num": 2048},
            "reward": {"name": "clip-tiny"},
            "cameras": {"name": "ring", "views": 4, "size": 32},
            "loop": {"updates": 150, "batch_size": 1, **ADAM, "checkpoint_every": 50, "sample_every": 50},
        },
    )


SDS: Settings = {"name": "sds", "guidance": 100.0}
VSD: Settings = {"name": "vsd", "guidance": 7.5, "phi_rate": 3e-4}
BRIDGE: Settings = {"name": "bridge", "guidance": 40.0, "stage_two": 500}
RECIPES = {
    "rewardsds-2d-sds": picture(SDS, {}, "a picture"),
    "rewardsds-2d-vsd": picture(VSD, {"rank": 4}, "a picture by VSD", {"target": "v"}),
    "rewardsds-2d-bridge": picture(BRIDGE, {}, "a picture by SDS-Bridge"),
    "rewardsds-2d-dds": edit(),
    "rewardsds-nerf": nerf(light=False),
    "rewardsds-nerf-shading": nerf(light=True),
    "rewardsds-gaussians": gaussians(),
    "rewardsds-embedded": embedded(),
}
VARIANTS = {name: tuple(run.variants) for name, run in RECIPES.items()}
NAMED = "rewardsds-SCENE"


def recipe(name: str, variant: str | None) -> Recipe:
    """The recipe of a name in RECIPES, in one of its variants."""
    run = RECIPES[name]
    own = run.variants[variant] if variant is not None else {}
    settings = {kind: deepcopy(part | own.get(kind, {})) for kind, part in run.settings.items()}
    return Recipe(name, variant, "optimize", run.summary, settings)
