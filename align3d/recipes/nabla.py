"""Nabla-R2D3 (arXiv 2506.15684) and its baselines on DiffSplat and GaussianCube, for `align3d train`.

The paper and the code released with it disagree: `paper` follows the paper, `released` the scripts. Where the paper is
silent, both follow the scripts; the baselines, and SD1.5, were never released, so there `released` has the scripts'
settings for all that is not the method or the model. Of GaussianCube the paper gives rank, guidance and steps and
nothing was released, so it has one variant. docs/recipes.md shows all columns, and what is done differently here on
purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

from align3d.recipes.recipe import Recipe, Settings


@dataclass(frozen=True)
class Target:
    """What a reward was trained with: in the paper, and by the released script."""

    title: str
    reward: tuple[Settings, Settings]  # paper, released
    beta: tuple[float, float]
    drift: float  # weight of the trust region, the same in both
    rate: float  # released learning rate; 1e-4 in the paper, for all
    samples: int  # of an update, per process
    seed: int
    precision: str = "bfloat16"
    softmax: str = "float32"
    jitter: float = 10.0  # released; degrees of azimuth either way
    keep_above: float | None = None  # reward of the base model that a prompt must have


PUBLISHED_DNC: Settings = {"name": "dnc", "alpha": 0.5, "neighbours": False, "detach": "depth"}
NORMAL: Settings = {"name": "normal", "context": "inference", "precision": "float16"}
TARGETS = {
    "aesthetic": Target(
        title="LAION aesthetic score",
        reward=({"name": "aesthetic"}, {"name": "aesthetic"}),
        beta=(2e6, 2e6),
        drift=3e3,
        rate=3e-4,
        samples=4,
        seed=1,
        softmax="network",
    ),
    "hpsv2": Target(
        title="human preference score",
        reward=({"name": "hpsv2"}, {"name": "hpsv2.1"}),
        beta=(1e7, 5e7),
        drift=5e3,
        rate=1e-4,
        samples=8,
        seed=1,
    ),
    "normal": Target(
        title="agreement with estimated normals",
        reward=(NORMAL, NORMAL),
        beta=(1e6, 1e6),
        drift=1e4,
        rate=5e-4,
        samples=8,
        seed=0,
        jitter=30.0,
    ),
    "dnc": Target(
        title="agreement of normals and depth",
        reward=(PUBLISHED_DNC, PUBLISHED_DNC | {"fov": 40.0}),
        beta=(1e6, 5e5),
        drift=1e4,
        rate=5e-4,
        samples=8,
        seed=0,
        precision="float32",
        keep_above=0.849,
    ),
}


@dataclass(frozen=True)
class Backbone:
    """A generator, and what its runs have in common."""

    title: str
    rank: int  # of the adapter, in the paper
    guidance: tuple[float, float]  # paper, released
    steps: int
    options: Settings  # others of the model
    scenes: int  # decoded at a time
    scripts: bool = True  # whether precision, softmax and choice of prompts are those of the target's script
    targets: tuple[str, ...] = tuple(TARGETS)
    variants: tuple[str, ...] = ("paper", "released")  # the first is the default


SPLATS: Settings = {"layers": "all", "spacing": "linspace"}
BACKBONES = {
    # the full decoder of DiffSplat keeps 5.6 GiB for each scene
    "diffsplat-pas": Backbone("DiffSplat on PixArt-Sigma", 16, (7.5, 5.0), 20, SPLATS, scenes=1),
    "diffsplat-sd15": Backbone("DiffSplat on SD1.5", 8, (7.5, 5.0), 20, SPLATS, scenes=1),
    "gaussiancube": Backbone(
        "GaussianCube",
        rank=8,
        guidance=(3.5, 3.5),
        steps=50,
        options={"layers": "attention", "precision": "float32"},
        scenes=4,
        scripts=False,
        targets=("aesthetic", "dnc"),
        variants=("paper",),
    ),
}
BATCH = 4  # samples of a rollout, per process
GROUP = 4  # of which ddpo compares so many with one another


def nabla_r2d3(target: Target, paper: bool, backbone: Backbone) -> Settings:
    """Nabla-R2D3: two fifths of the transitions, gradient at the estimate and through the network, k^2 as weight."""
    return {
        "name": "nabla",
        "beta": target.beta[0 if paper else 1],
        "weight": "paper",
        "transitions": 2 * backbone.steps // 5,
        "jacobian": True,
        "attenuation": "alpha_bar",
        "drift": target.drift,
        "scenes": backbone.scenes,
    }


def refl(target: Target, paper: bool, backbone: Backbone) -> Settings:
    """ReFL, as the baseline of Nabla-R2D3: the last quarter of the steps, 15 to 19 of 20."""
    return {"name": "refl", "first": 0.75, "last": 1.0}


def draft(target: Target, paper: bool, backbone: Backbone) -> Settings:
    """DRaFT-1, as the baseline of Nabla-R2D3."""
    return {"name": "draft", "last": 1}


def ddpo(target: Target, paper: bool, backbone: Backbone) -> Settings:
    """DDPO; the paper does not say with which settings, so these are those of its own paper."""
    return {"name": "ddpo", "clip": 1e-4}


RUNS = {
    "nabla-r2d3": ("Nabla-R2D3", nabla_r2d3),
    "refl": ("ReFL", refl),
    "draft": ("DRaFT-1", draft),
    "ddpo": ("DDPO", ddpo),
}
RECIPES = {
    f"{run}-{target}-{model}": (run, target, model)
    for model, backbone in BACKBONES.items()
    for run in RUNS
    for target in backbone.targets
}
VARIANTS = {name: BACKBONES[model].variants for name, (_, _, model) in RECIPES.items()}
NAMED = "METHOD-REWARD-MODEL"  # how names are made


def recipe(name: str, variant: str | None) -> Recipe:
    """The recipe of a name in RECIPES, in one of its variants."""
    run, reward, model = RECIPES[name]
    (title, method), target, backbone = RUNS[run], TARGETS[reward], BACKBONES[model]
    paper = variant == "paper"
    settings = {
        "model": {
            "name": model,
            "rank": backbone.rank if paper else 8,
            "alpha": 8.0,
            **backbone.options,
            "steps": backbone.steps,
            "guidance": backbone.guidance[0 if paper else 1],
            **({"precision": target.precision, "softmax": target.softmax} if backbone.scripts else {}),
        },
        "method": method(target, paper, backbone),
        "reward": dict(target.reward[0 if paper else 1]),
        "loop": loop(target, paper, GROUP if run == "ddpo" else 1),
        "cameras": cameras(target, paper),
    }
    options: Settings = {"noise": 2e-3, "background": (1.0, 1.0, 1.0)}
    if target.keep_above is not None and backbone.scripts:  # rewards of the published prompts are of DiffSplat's
        options["keep_above"] = target.keep_above
    return Recipe(name, variant, "train", f"{title}, {target.title}, {backbone.title}", settings, options)


def loop(target: Target, paper: bool, group: int) -> Settings:
    """AdamW at a constant rate; 100 epochs of 16 samples per process, saved every 5."""
    updates = 100 * 16 // target.samples
    return {
        "updates": updates,
        "batch_size": BATCH,
        "group": group,
        "accumulate": target.samples // BATCH,
        "learning_rate": 1e-4 if paper else target.rate,
        "betas": (0.9, 0.999),
        "weight_decay": 1e-4,
        "warmup": 0,
        "max_grad_norm": 1.0,
        "checkpoint_every": updates // 20,
        "keep": 0,
        "seed": target.seed,
    }


def cameras(target: Target, paper: bool) -> Settings:
    """Four views at right angles, shaken; the released code trains at the height of the object by an oversight."""
    return {
        "views": 4,
        "size": 256,
        "azimuth_jitter": 60.0 if paper else target.jitter,
        "elevation": 10.0 if paper else 0.0,
        "elevation_jitter": 20.0 if paper else 5.0,
    }
