"""Members of the family of GaussianCube, which look alike, and what they remember and choose."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_gaussiancube as tiny
import torch
from command_checks import refused

from align3d.cli import main
from align3d.diffusion.dpm_solver import adaptive, multistep
from align3d.diffusion.sampler import sample, sampling_times
from align3d.models.gaussiancube import NOTHING
from align3d.models.gaussiancube_files import Objaverse, Objaverse10, OmniObject3D, ShapeNetCar, ShapeNetChair
from align3d.rng import Streams

PUBLISHED = {  # half the side of the cube, guidance, and the sampler's steps or its adaptive method
    Objaverse: (0.5, 3.5, adaptive),
    Objaverse10: (0.5, 3.5, adaptive),
    OmniObject3D: (1.0, 2.0, (300, 2)),
    ShapeNetCar: (0.45, None, (300, 3)),
    ShapeNetChair: (0.35, None, (300, 3)),
}
KIND = {OmniObject3D: "class", ShapeNetCar: "nothing", ShapeNetChair: "nothing"}
SMALL = {"precision": "float32", "rank": 2, "steps": 2, "sampler_steps": 4, "guidance": 1.0, "voxels": tiny.SIDE}


def test_an_adapter_is_for_the_model_that_it_was_trained_with(tmp_path, monkeypatch, capsys):
    """Of cars and chairs, all shapes are the same."""
    monkeypatch.chdir(tmp_path)
    for part in (ShapeNetCar, ShapeNetChair):
        tiny.write_cube(tmp_path / part.__name__, part, tiny.KINDS["nothing"])
    ShapeNetCar(weights=Path("ShapeNetCar"), rank=2, voxels=tiny.SIDE).load().save_adapter(Path("run/adapter"))
    Path("run/config.json").write_text('{"config": {"model": {"name": "gaussiancube-shapenet-car"}}}')
    more = ["--model.rank", "2", "--model.alpha", "8", "--model.voxels", "8", "--device", "cpu"]
    chair = ["--model", "gaussiancube-shapenet-chair", "--weights", "ShapeNetChair", *more]
    said = (
        "is an adapter of the model 'gaussiancube-shapenet-car', got --model gaussiancube-shapenet-chair; use its own"
    )
    args = ["sample", *chair, "--adapter", "run", "--prompt", "unconditional", "--out", "out"]
    assert said in refused(capsys, args)
    args = ["train", *chair, "--model.adapter", "run", "--reward", "colorfulness", "--out", "out"]
    assert said in refused(capsys, args)
    assert not Path("out").exists()
    car = ["--model", "gaussiancube-shapenet-car", "--weights", "ShapeNetCar", *more, "--model.sampler", "ancestral"]
    args = ["sample", *car, "--model.steps", "1", "--adapter", "run", "--prompt", "unconditional", "--frames", "0"]
    assert main([*args, "--size", "16", "--out", "out"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("part", [Objaverse, Objaverse10, OmniObject3D, ShapeNetCar])
def test_weights_of_another_kind_are_refused(tmp_path, part):
    takes = {Objaverse: {"text"}, Objaverse10: {"text", "nothing"}, OmniObject3D: {"class"}, ShapeNetCar: {"nothing"}}
    for kind in takes[part] ^ {"text", "class", "nothing"}:
        folder = tiny.write_cube(tmp_path / kind, part, tiny.KINDS[kind])
        with pytest.raises(
            ValueError, match=r"_ckpt\.pt has a network that is conditioned on .*, and this model's is on"
        ):
            part(weights=folder, **SMALL).load()


@pytest.mark.parametrize(
    ("voxels", "said"), [(0, "1 to 256, got 0"), (512, "1 to 256, got 512"), (7, "a multiple of 2")]
)
def test_cubes_have_the_voxels_that_are_told(tmp_path, voxels, said):
    folder = tiny.write_cube(tmp_path, ShapeNetCar, tiny.KINDS["nothing"])
    with pytest.raises(ValueError, match=said):
        ShapeNetCar(weights=folder, **(SMALL | {"voxels": voxels})).load()


def test_texts_are_encoded_once(tmp_path):
    model = Objaverse(weights=tiny.write_cube(tmp_path, Objaverse), **SMALL).load()
    source, asked = model.memory.source, []
    model.memory.source = lambda prompts: asked.extend(prompts) or source(prompts)
    first = model.encode(["a red mug", "the dog", ""])
    again = model.encode(["the dog", "a red mug"])
    assert asked == ["a red mug", "the dog"], "and no text is zeros"
    assert torch.equal(again.text, first.text[[1, 0]]) and not first.text[2].any()


@pytest.mark.parametrize("name", ["adaptive", "multistep2", "multistep3"])
def test_any_sampler_can_be_chosen(tmp_path, name):
    folder = tiny.write_cube(tmp_path, Objaverse)
    made = {}
    for sampler in ("published", name):
        model = Objaverse(weights=folder, sampler=sampler, **SMALL).load()
        model.latent_shape = (14, 4, 4, 4)
        with torch.no_grad():
            made[sampler] = sample(model, ["a mug"], sampling_times(model), Streams.batch(0, 0, 0, 1))
    assert torch.equal(made["published"], made[name]) == (name == "adaptive"), "which is that of texts"


@pytest.mark.parametrize("kind", ["text", "class", "nothing"])
def test_no_condition_has_a_name(tmp_path, kind):
    part = {"text": Objaverse, "class": OmniObject3D, "nothing": ShapeNetCar}[kind]
    model = part(weights=tiny.write_cube(tmp_path, part, tiny.KINDS[kind]), **SMALL).load()
    model.check([NOTHING, f"{NOTHING} 3", ""])
    found = model.encode([NOTHING, f"{NOTHING} 3", ""])
    if kind == "text":
        assert not found.text.any()
    if kind == "class":
        assert found.classes.tolist() == [5, 5, 5], "one more than there are"
    if kind != "text":
        for prompt in (f"{NOTHING} ٣", "٣", "03", "5", "-1", "1.0", f"{NOTHING}3"):
            with pytest.raises(ValueError, match="knows classes, not texts" if kind == "class" else "follows none"):
                model.check([prompt])


@pytest.mark.filterwarnings("ignore:these weights follow texts")
@pytest.mark.parametrize("part", PUBLISHED)
def test_without_options_it_is_as_published(tmp_path, part):
    """But for labels and size, which `published` makes so; training takes 50 steps."""
    bound, guidance, method = PUBLISHED[part]
    folder = tiny.write_cube(tmp_path / "x", part, tiny.KINDS[KIND.get(part, "text")])
    made = part(weights=folder, size="published", voxels=8).load()
    assert (made.steps, made.labels) == (50, "exact") and made.guidance == (guidance or 3.5)
    found = made.solver
    assert found is method or (found.func, found.keywords) == (multistep, {"steps": method[0], "order": method[1]})
    flat = made.space.mean.clone()
    flat[:3] = 0.0
    scene = replace(made.space, mean=flat, std=torch.zeros_like(flat)).gaussians(torch.zeros(1, 14, 8, 8, 8))
    assert scene.means.amax().item() == -scene.means.amin().item() == pytest.approx(bound)
    unit = part(weights=folder, voxels=8).load().decode(torch.zeros(1, 14, 8, 8, 8)).means
    torch.testing.assert_close(unit, made.decode(torch.zeros(1, 14, 8, 8, 8)).means * 0.5 / bound)
