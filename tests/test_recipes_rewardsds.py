"""Recipes of RewardSDS: what they set, against published constants; two updates of each, on tiny weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from closed_prior import Ellipsoids
from command_checks import refused
from PIL import Image
from tiny_priors import LAYOUTS, V21, write_mvdream, write_stable_diffusion

from align3d import previews, recipes
from align3d.cli import main
from align3d.commands.flags import parse
from align3d.commands.optimize import Optimize
from align3d.config import described, instance
from align3d.priors import mvdream
from align3d.recipes import rewardsds
from align3d.starts import GaussianStart

NAMES = list(rewardsds.RECIPES)
ALL = [(name, variant) for name in NAMES for variant in (recipes.variants(name) or (None,))]
# All that the runs of one kind share, then what a variant has, by flags; from the code (eadddef) and the paper.
PICTURE = {
    **{"prior.name": "stable-diffusion", "scene.name": "picture", "reward.name": "imagereward", "cameras.views": 1},
    **{"scene.rate": 0.01, "scene.strength": 1.0, "scene.start": None, "loop.updates": 1000, "loop.batch_size": 1},
    **{"loop.seed": 0, "loop.betas": (0.9, 0.99), "loop.eps": 1e-15, "loop.warmup": 0, "loop.max_grad_norm": 0.0},
    **{"method.t_min": (0.02, 0.02), "method.t_max": (0.98, 0.98), "method.weight": "variance", "method.negative": ""},
    **{"method.weighting.kind": "min-max", "method.weighting.num_max": 2, "method.weighting.num_min": 2},
    **{"method.weighting.lambda_max": 0.9, "method.weighting.lambda_min": 0.1, "method.weighting.num_best": 1},
    **{"method.weighting.temperature": 1.0, "method.explore.steps": 15, "method.explore.guidance": 7.5},
    **{"method.explore.fast": False, "method.explore.first": 0, "method.explore.every": 1},
    **{"method.explore.halving": False, "method.explore.antithetic": False, "method.explore.views": 0},
}
IN_PAPER = {"method.compat": "none", "method.explore.candidates": 10, "loop.weight_decay": 0.0}
IN_CODE = {"method.compat": "reference", "method.explore.candidates": 4, "loop.weight_decay": 0.01}
IN_CODE |= {"prior.precision": "float32"}
SDS = {"method.name": "sds", "method.guidance": 100.0}
VSD = {"method.name": "vsd", "method.guidance": 7.5, "method.phi_rate": 3e-4, "prior.rank": 4}
BRIDGE = {
    **{"method.name": "bridge", "method.guidance": 40.0, "method.stage_two": 500},
    "method.target": ", detailed high resolution, high quality, sharp",
    "method.source": ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, "
    "malformed",
}
DDS = {"method.name": "dds", "method.explore.candidates": 5, "method.explore.steps": 1, "loop.updates": 200}
NERF = {
    **{"prior.name": "mvdream", "prior.size": 256, "scene.name": "nerf", "reward.name": "imagereward"},
    **{"cameras.name": "lenses", "cameras.views": 4, "cameras.size": (64, 256), "cameras.grow": (5000,)},
    **{"cameras.elevation": (0.0, 30.0), "cameras.fovy": (15.0, 60.0), "cameras.reach": (0.8 / 2, 1.0 / 2)},
    **{"loop.batch_size": 8 // 4, "loop.batch_later": ((5000, 4 // 4),), "loop.updates": 10000, "loop.seed": 0},
    **{"loop.betas": (0.9, 0.99), "loop.eps": 1e-15, "loop.weight_decay": 0.01, "loop.sample_every": 200},
    **{"loop.warmup": 0, "loop.max_grad_norm": 0.0, "loop.accumulate": 1},
    **{"method.name": "recon", "method.guidance": 50.0, "method.rescale": 0.5, "method.weight": "uniform"},
    **{"method.t_min": (0.98, 0.02), "method.t_max": (0.98, 0.5), "method.anneal": 8000, "method.same_t": True},
    "method.negative": "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and "
    "unclear, cropped, lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, "
    "dehydrated, bad proportions",
    **{"method.weighting.kind": "min-max", "method.weighting.num_max": 2, "method.weighting.num_min": 2},
    **{"method.weighting.lambda_max": 0.9, "method.weighting.lambda_min": 0.1},
    **{"method.explore.candidates": 7, "method.explore.steps": 15, "method.explore.fast": False},
    **{"scene.grid": "hash", "scene.hash.levels": 16, "scene.hash.features": 2, "scene.hash.log2_size": 19},
    **{"scene.hash.coarsest": 16, "scene.hash.finest": 4096, "scene.hidden": 64, "scene.blob": (10.0, 0.5)},
    **{"scene.march.samples": 512, "scene.march.prune": 0.01, "scene.march.cells": 32, "scene.march.every": 16},
    **{"scene.march.warmup": 256, "scene.march.decay": 0.95, "scene.march.empty": 0.01},
    **{"scene.backdrop.kind": "learned", "scene.backdrop.random": 0.5, "scene.grid_rate": 0.01, "scene.net_rate": 1e-3},
    **dict.fromkeys(("scene.penalties.sparsity", "scene.penalties.opaque", "scene.penalties.z_variance"), (0.0,) * 4),
}
PLAIN = {"scene.shading.start": -1, "scene.penalties.orient": (0.0,) * 4}
LIGHT = {"scene.shading.start": 5000, "scene.shading.albedo": 0.25, "scene.shading.textureless": 0.5}
LIGHT |= {"scene.penalties.orient": (0.0, 10.0, 1000.0, 5000.0)}
NERF_PAPER = {"method.compat": "none", "method.explore.first": 5000, "cameras.published": False}
NERF_PAPER |= {"method.explore.guidance": 7.5, "prior.draw": False}
NERF_CODE = {"method.compat": "reference", "method.explore.first": 7000, "cameras.published": True}
NERF_CODE |= {"prior.draw": True}
GAUSSIANS = {  # of DreamGaussian's text_mv.yaml and main.py; lengths by two
    **{"prior.name": "mvdream", "scene.name": "gaussians", "scene.num": 5000, "scene.radius": 0.5 / 2},
    **{"scene.density.name": "default", "scene.density.every": 50, "scene.density.first": 50, "scene.density.reset": 0},
    **{"scene.density.size": 0.01 * 4 / 2, "scene.density.faint": 0.01, "scene.density.large": 0.1 * 4 / 2},
    **{"scene.opacity": 0.1, "cameras.name": "lenses", "cameras.views": 4, "cameras.size": (128, 256, 512)},
    **{"cameras.grow": (150, 300), "cameras.elevation": (-30.0, 30.0), "cameras.sphere": 0.0},
    **{"cameras.fovy": (49.1, 49.1), "loop.updates": 500, "loop.batch_size": 1, "loop.eps": 1e-15},
    **{"loop.weight_decay": 0.0, "loop.betas": (0.9, 0.999), "loop.max_grad_norm": 0.0},
    **{"method.name": "sds", "method.weight": "uniform", "method.guidance": 100.0, "method.anneal": 500},
    **{"method.t_min": (0.98, 0.02), "method.t_max": (0.98, 0.02), "method.negative": NERF["method.negative"]},
    **{"method.weighting.kind": "min-max", "method.explore.steps": 15, "method.explore.fast": False},
}
PUBLISHED = {
    ("rewardsds-2d-sds", "paper"): PICTURE | SDS | IN_PAPER,
    ("rewardsds-2d-sds", "released"): PICTURE | SDS | IN_CODE,
    ("rewardsds-2d-vsd", "paper"): PICTURE | VSD | IN_PAPER | {"method.target": "eps"},
    ("rewardsds-2d-vsd", "released"): PICTURE | VSD | IN_CODE | {"method.target": "v"},
    ("rewardsds-2d-bridge", "paper"): PICTURE | BRIDGE | IN_PAPER,
    ("rewardsds-2d-bridge", "released"): PICTURE | BRIDGE | IN_CODE,
    ("rewardsds-2d-dds", "paper"): PICTURE | IN_PAPER | DDS | {"method.weight": "uniform", "method.guidance": 7.5},
    ("rewardsds-nerf", "paper"): NERF | PLAIN | NERF_PAPER,
    ("rewardsds-nerf", "released"): NERF | PLAIN | NERF_CODE,
    ("rewardsds-nerf-shading", "paper"): NERF | LIGHT | NERF_PAPER,
    ("rewardsds-nerf-shading", "released"): NERF | LIGHT | NERF_CODE,
}


def flat(values, above=""):
    """Options by dotted names."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def resolved(name, variant, *more):
    """All options of the command line behind a recipe, by dotted names, and the command's own."""
    args = [name, *(["--variant", variant] if variant else []), "--prompt", "a red mug", "--out", "run", *more]
    options, parts = parse(Optimize, "optimize", args)
    names = parts.pop("names")
    return flat({kind: described(part, names.get(kind)) for kind, part in parts.items()}), options


@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_options_are_the_published_ones(name, variant):
    found, options = resolved(name, variant)
    wanted = PUBLISHED[name, variant]
    assert {key: found.get(key, "no such option") for key in wanted} == wanted
    assert (options.recipe, options.variant, options.background) == (name, variant, (1.0, 1.0, 1.0))


def test_gaussians_are_those_of_dreamgaussian():
    found, _ = resolved("rewardsds-gaussians", None)
    assert {key: found.get(key, "no such option") for key in GAUSSIANS} == GAUSSIANS
    assert found["cameras.reach"] == pytest.approx((2.5 / 2 * math.tan(math.radians(49.1) / 2),) * 2, abs=5e-4)


def test_the_table_has_every_published_recipe():
    assert {pair for pair in ALL if pair[1]} == set(PUBLISHED)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_all_that_a_recipe_says_arrives(name, variant):
    """Through the command line, and as objects; an option that a part does not have is an error."""
    recipe = recipes.get(name, variant)
    found, _ = resolved(name, variant)
    said = flat(recipe.settings)
    assert {key: found.get(key, "no such option") for key in said} == said
    for kind in recipe.settings:
        made = flat(described(recipe.part(kind)), f"{kind}.")
        assert all(made[key] == value for key, value in said.items() if key.startswith(f"{kind}.") and key in made)
    with pytest.raises(TypeError, match="has no option nothing"):
        recipe.part("scene", nothing=1)


def test_parts_of_parts_are_of_their_kind():
    """From the recipe as from its flags; what is no known name chooses no code."""
    made = recipes.get("rewardsds-gaussians").part("scene")
    assert type(made.density).__name__ == "CloneSplit" and made.density.most == 65536
    found, _ = resolved("rewardsds-gaussians", None, "--scene.density", "mcmc")
    assert found["scene.density.name"] == "mcmc" and found["scene.density.every"] == 25, "another keeps its own"
    foreign = instance(GaussianStart, {"num": 7, "density": {"name": "os:path", "every": 3}})
    assert foreign == GaussianStart(num=7)


def test_options_are_still_the_users():
    found, _ = resolved("rewardsds-2d-sds", "released", "--weighting", "best", "--candidates", "3", "--seed", "5")
    assert (found["method.weighting.kind"], found["method.explore.candidates"], found["loop.seed"]) == ("best", 3, 5)
    assert found["method.explore.steps"] == 15
    found, _ = resolved("rewardsds-2d-vsd", "released", "--weighting", "none")
    assert found["method.explore.candidates"] == 1, "as the published code has it"
    assert found["reward.name"] == "clip-tiny", "no files are wanted of a reward that is never asked"
    found, _ = resolved("rewardsds-2d-sds", "released", "--method", "nfsd", "--prior", "embedded")
    assert found["method.compat"] == "none" and found["method.explore.candidates"] == 1, "another method's are its own"
    assert found["prior.name"] == "embedded" and found["scene.name"] == "picture"
    found, _ = resolved("rewardsds-2d-vsd", "paper", "--prior", "embedded")
    assert found["prior.rank"] == 4 and recipes.get("rewardsds-2d-vsd").variant == "paper"


def test_a_recipe_stays_as_it_is():
    recipes.get("rewardsds-nerf").settings["method"]["explore"]["candidates"] = 1
    resolved("rewardsds-nerf", "paper", "--weighting", "none")
    assert recipes.get("rewardsds-nerf").settings["method"]["explore"]["candidates"] == 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    base = tmp_path_factory.mktemp("weights")
    return write_stable_diffusion(base / "sd") or base / "sd", write_mvdream(base / "mvdream", V21)


@pytest.fixture
def here(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mvdream, "LAYOUTS", LAYOUTS)
    Image.new("RGB", (16, 16), (200, 30, 30)).save("start.png")
    return weights


SMALL = ["--prompt", "a red mug", "--out", "run", "--updates", "2", "--reward", "closed_prior:red", "--device", "cpu"]
SMALL += ["--prior.precision", "float32"]
TINY_NERF = [
    "--scene.hash.levels",
    "2",
    "--scene.hash.log2-size",
    "6",
    "--scene.hash.finest",
    "24",
    "--scene.mesh",
    "0",
]
TINY_NERF += [
    "--scene.march.samples",
    "8",
    "--scene.march.cells",
    "4",
    "--cameras.size",
    "6",
    "8",
    "--cameras.grow",
    "1",
]
TINY_NERF += ["--loop.batch-later", "1", "1", "--candidates", "4", "--prior.size", "64", "--method.explore.steps", "2"]
SIZE = ["--prior.size", "64"]  # of pictures, for tiny MVDream
MORE = {
    "rewardsds-2d-sds": ["--method.explore.steps", "3"],
    "rewardsds-2d-vsd": ["--method.explore.steps", "3"],
    "rewardsds-2d-bridge": ["--method.explore.steps", "3", "--method.stage-two", "1"],
    "rewardsds-2d-dds": ["--method.source", "a red thing", "--scene.start", "start.png"],
    "rewardsds-nerf": TINY_NERF,
    "rewardsds-nerf-shading": [*TINY_NERF, "--scene.shading.start", "1"],
    "rewardsds-gaussians": ["--scene.num", "64", "--cameras.size", "6", "8", "--cameras.grow", "1", *SIZE],
    "rewardsds-embedded": ["--scene.num", "64"],
}


RUN = [pair for pair in ALL if pair not in {("rewardsds-nerf", "released"), ("rewardsds-nerf-shading", "paper")}]


@pytest.mark.parametrize(("name", "variant"), RUN)
def test_a_recipe_runs(here, capsys, monkeypatch, name, variant):
    if "nerf" in name:  # whose pictures take longer than the rest
        monkeypatch.setattr(previews.Previews, "__call__", lambda *args: None)
        monkeypatch.setattr(previews, "finish", lambda out, *args: out)
    folder = here[0] if "2d" in name else here[1]
    args = ["optimize", name, *(["--variant", variant] if variant else []), *SMALL, *MORE[name]]
    args += [] if name == "rewardsds-embedded" else ["--prior.weights", str(folder)]
    assert main(args) == 0, capsys.readouterr().err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["recipe"] == {"name": name, "variant": variant}
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["grad_norm"] > 0 and "reward_best" in row for row in rows)
    if "nerf" in name:
        first, second = (row["evaluations"] for row in rows)
        assert first == 2 * second > 0, "half the groups of views from the second update on"
        assert ("orient" in rows[1]) == ("shading" in name)


def test_variants_and_commands_are_told_apart(here, capsys):
    assert "recipe rewardsds-2d-dds has the variant paper, got 'released'" in refused(
        capsys, ["optimize", "rewardsds-2d-dds", "--variant", "released", *SMALL]
    )
    assert "has no variants, got 'paper'" in refused(
        capsys, ["optimize", "rewardsds-embedded", "--variant", "paper", *SMALL]
    )
    assert "did you mean rewardsds-nerf" in refused(capsys, ["optimize", "rewardsds-nerv", *SMALL])
    assert "another command: align3d train refl-dnc-diffsplat-pas" in refused(
        capsys, ["optimize", "refl-dnc-diffsplat-pas", *SMALL]
    )
    assert "another command: align3d optimize rewardsds-nerf" in refused(
        capsys, ["train", "rewardsds-nerf", "--out", "run"]
    )
    assert "comes first: align3d optimize rewardsds-nerf" in refused(capsys, ["optimize", *SMALL, "rewardsds-nerf"])


def test_vsd_needs_no_more_words(here, capsys):
    """The rank of phi has a default where the method asks for one, and 0 is refused."""
    plain = ["optimize", "--prompt", "a red chair", "--out", "run", "--updates", "2", "--scene.num", "64"]
    plain += ["--method", "vsd", "--device", "cpu"]
    assert main(plain) == 0, capsys.readouterr().err
    assert json.loads(Path("run/config.json").read_text())["config"]["prior"]["rank"] == 4
    assert all("phi" in json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines())
    other = [arg if arg != "run" else "other" for arg in plain]
    capsys.readouterr()
    assert "give --prior.rank 4" in refused(capsys, [*other, "--prior.rank", "0"])
    _, parts = parse(Optimize, "optimize", [*other[1:], "--method", "sds"])
    assert parts["prior"].rank == 0, "others do without"
    _, parts = parse(Optimize, "optimize", [*other[1:], "--prior", "closed_prior:Ellipsoids"])
    assert parts["prior"] == Ellipsoids(), "a prior without the option keeps its own"
    assert torch.is_grad_enabled()
