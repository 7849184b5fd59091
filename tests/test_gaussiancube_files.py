"""The files of GaussianCube: what is read off them, what is refused, and the cameras of the published previews."""

import shutil
from pathlib import Path

import pytest
import tiny_gaussiancube as tiny
import torch
from safetensors.torch import save_file
from tiny_gaussiancube import OPTIONS, load

from align3d.commands.inputs import SHIPPED, read_prompts
from align3d.diffusion.dpm_solver import adaptive
from align3d.models.gaussiancube import NOTHING, CubeCond
from align3d.models.gaussiancube_files import Objaverse, Objaverse10, OmniObject3D, ShapeNetCar, ShapeNetChair
from align3d.models.gaussiancube_norms import read_norms
from align3d.pretrained.fetched import write_record
from align3d.scenes.cameras import orbit
from align3d.scenes.files import read_scene
from align3d.scenes.ply import write_ply


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_all(tmp_path_factory)


def orbit_camera(elevation, azimuth, radius):
    """A camera-to-world matrix, OpenGL axes, of the package that the published code takes its orbits from.

    Its elevations are positive below the horizon; Y is up, azimuth 0 on +Z.
    """
    e, a = torch.deg2rad(torch.tensor([elevation, azimuth], dtype=torch.float64))
    back = torch.stack([e.cos() * a.sin(), -e.sin(), e.cos() * a.cos()])
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).double(), back)
    right = right / right.norm()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], 1)
    pose[:3, 3] = radius * back
    return pose


@pytest.mark.parametrize(
    ("part", "fov", "radius"),
    [
        *((Objaverse, 0.857556, 2.0), (Objaverse10, 0.857556, 1.2), (OmniObject3D, 0.691111, 4.031129)),
        *((ShapeNetCar, 0.857556, 1.2), (ShapeNetChair, 0.857556, 1.2)),
    ],
)
def test_previews_are_the_published_ones_without_their_mirror(part, fov, radius):
    """There two axes of a pose are swapped, which mirrors it; mirrored back, left and right of a picture change."""
    found, swap = part(size="published").previews(), torch.eye(4, dtype=torch.float64)[[0, 2, 1, 3]]
    want = torch.stack([swap @ orbit_camera(-30.0, float(azimuth), radius) for azimuth in range(0, 360, 6)])
    assert torch.allclose(torch.linalg.det(want[:, :3, :3]), torch.tensor(-1.0).double())
    want[:, :3, 1:3] *= -1  # OpenCV axes
    want[:, :3, 0] *= -1  # mirrored back
    want = torch.stack([want[:, 0], want[:, 2], -want[:, 1], want[:, 3]], 1)  # their Z up to our Y up
    torch.testing.assert_close(found.c2w[0].double(), want, rtol=1e-5, atol=1e-5)
    assert (found.height, found.width) == (512, 512) and (found.c2w[0, :, 1, 3] > 0).all(), "from above"
    K = found.K[0, 0]
    assert 2 * torch.atan(256 / K[0, 0]) == pytest.approx(fov, abs=1e-5) and K[0, 2] == 256
    unit = part().previews(64)  # the scene is twice as small of OmniObject3D, so that it looks the same
    torch.testing.assert_close(unit.c2w[..., :3, 3], found.c2w[..., :3, 3] * 0.5 / part.bound)
    assert torch.allclose(unit.K[0, 0, 0, 0], K[0, 0] / 8)


def test_weights_say_whether_texts_are_followed(tmp_path, folders, recwarn):
    """Version 1.0, whose texts the published code drops: the layers are used if they are there."""
    text = tiny.write_cube(tmp_path / "text", Objaverse10)
    with pytest.warns(RuntimeWarning, match=r"^these weights have layers for texts, .*; the released inference gave v"):
        made = Objaverse10(weights=text, **OPTIONS).load()
    assert made.solver is adaptive and made.encode(["a red mug"]).text.shape == (1, 77, 128)
    bare = tiny.write_cube(tmp_path / "bare", Objaverse10, tiny.KINDS["nothing"])
    recwarn.clear()
    made = Objaverse10(weights=bare, **OPTIONS).load()
    assert made.solver.keywords == {"steps": 12, "order": 3} and made.encode([NOTHING]) == CubeCond()
    assert not [one for one in recwarn if "weights" in str(one.message)]
    with pytest.raises(ValueError, match=r"the weights have no layers for texts, so the model follows none; got 'a r"):
        made.encode(["a red mug"])
    with pytest.raises(ValueError, match=r"--model\.text is for weights that follow texts, and these do not; leave it"):
        Objaverse10(weights=bare, text=text, **OPTIONS).load()
    with pytest.raises(ValueError, match=r"--model\.cache is for weights that follow texts"):
        OmniObject3D(weights=folders["class"], cache=text, **OPTIONS).load()


def test_lists_of_prompts_are_the_models_own(folders, tmp_path):
    """Those that stand for train and heldout can be followed; a model of texts takes the usual ones."""
    (tmp_path / "classes.json").write_text('{"mug": 3, "dog": 0}')
    assert (SHIPPED / f"{NOTHING}.txt").is_file() and Objaverse().prompt_list() is None
    for made, number in (
        (load(folders, "nothing"), 20),
        (load(folders, "class", classes=tmp_path / "classes.json"), 2),
    ):
        found = read_prompts(Path("heldout"), made.options)
        assert len(found) == number and found == read_prompts(Path("train"), made.options)
        made.check(found)
    assert read_prompts(Path("train"), OmniObject3D()) == [str(number) for number in range(216)]


def test_an_adapter_of_other_layers_is_refused_with_what_to_do(folders, tmp_path):
    load(folders, "nothing", layers="all").save_adapter(tmp_path / "all")
    load(folders, "nothing").save_adapter(tmp_path / "attention")
    with pytest.raises(ValueError, match=r"try --model\.layers all"):
        load(folders, "nothing", adapter=tmp_path / "all")
    with pytest.raises(ValueError, match=r"try --model\.layers attention"):
        load(folders, "nothing", layers="all", adapter=tmp_path / "attention")


def test_prompts_that_a_model_cannot_follow_are_refused(folders, tmp_path):
    nothing = load(folders, "nothing")
    with pytest.raises(ValueError, match=r"so the model follows none; got 'a car', its prompts are"):
        nothing.encode(["unconditional", "a car"])
    names = tmp_path / "classes.json"
    names.write_text('{"mug": 3, "dog": 0}')
    known = load(folders, "class", classes=names)
    assert known.encode(["mug", "4", ""]).classes.tolist() == [3, 4, 5]
    for prompt in ("5", "-1", "a mug", "1.5", "9" * 30):
        with pytest.raises(ValueError, match=r"a prompt is a number 0 to 4, or a name of 2, such as 'mug'; got"):
            known.encode([prompt])
    for content, said in (
        ('{"mug": 5}', "'mug' is 5; classes of this model are numbers 0 to 4"),
        ('{"mug": 1, "3": 1}', "a class cannot be called '3': as a prompt, a number is that of a class"),
        ('{"": 1}', "a class cannot be called '': as a prompt"),
        (
            '{"unconditional 2": 1}',
            "a class cannot be called 'unconditional 2': .*, unconditional or nothing is of none",
        ),
        ('{" mug": 1}', "a class cannot be called ' mug': .*, and blanks at its ends are dropped"),
        ("{}", "it is empty"),
    ):
        names.write_text(content)
        with pytest.raises(ValueError, match=said):
            load(folders, "class", classes=names)
    with pytest.raises(ValueError, match=r"model\.classes is for models that were trained with classes"):
        load(folders, "nothing", classes=names)


def channel(value, first, last, number):
    """The same with other numbers in some channels."""
    return torch.where(
        (torch.arange(14) >= first) & (torch.arange(14) < last), torch.tensor(number, dtype=value.dtype), value
    )


def flipped(mean):
    """Offsets that fit the other end of the first axis."""
    return torch.cat([mean[..., :1] + torch.linspace(-0.8, 0.8, 8).view(8, 1, 1, 1), mean[..., 1:]], -1)


DAMAGE = {
    "short": (lambda mean, std: (mean[:, :, :4], std), r"mean\.pt is \[8, 8, 4, 14\], expected \[8, 8, 8, 14\]"),
    "channels first": (lambda mean, std: (mean.permute(3, 0, 1, 2), std), r"mean\.pt is \[14, 8, 8, 8\]"),
    "another cube": (
        lambda mean, std: (mean[:4, :4, :4], std),
        r"mean\.pt is \[4, 4, 4, 14\], expected \[8, 8, 8, 14\]: .* \(--model\.voxels: along each axis\)",
    ),
    "the same": (lambda mean, std: (std, std), "mean.pt and std.pt are the same numbers"),
    "whole numbers": (lambda mean, std: (mean.int(), std), "it holds no plain tensor of real numbers"),
    "bright": (lambda mean, std: (channel(mean, 3, 6, 1e3), std), "mean colours are beyond 100"),
    "of many colours": (lambda mean, std: (mean, channel(std, 3, 6, 1e6)), "deviations of colours are above 100"),
    "other channels": (
        lambda mean, std: (mean, std[0, 0, 0, :13]),
        r"is \[13\], expected .* or \[14\], the same for all",
    ),
    "swapped": (lambda mean, std: (std, mean), "deviations are not above 0, so mean.pt and std.pt are not those of th"),
    "of other data": (lambda mean, std: (mean + 2.0, std), "the mean opacity is not within 0 and 1"),
    "opacities of -1 to 1": (lambda mean, std: (mean, channel(std, 6, 7, 0.6)), "deviations of opacity are above 0.5"),
    "ones": (lambda mean, std: (mean, std / std), "deviations of offsets are above 0.9"),
    "large": (lambda mean, std: (mean, channel(std, 7, 10, 1.1)), "deviations of scales are above 1,"),
    "turned": (lambda mean, std: (channel(mean, 10, 14, -1.1), std), "mean quaternions are not within -1 and 1"),
    "turning": (lambda mean, std: (mean, channel(std, 10, 14, 1.1)), "deviations of quaternions are above 1,"),
    "from afar": (lambda mean, std: (channel(mean, 1, 2, -1.0), std), "mean offsets are beyond 0.9"),
    "outside": (lambda mean, std: (flipped(mean), std), "mean places are beyond 0.9"),
    "a wide range": (lambda mean, std: (mean[0, 0, 0], channel(std[0, 0, 0], 6, 7, 1.1)), "of opacity are above 1,"),
    "large colours": (lambda mean, std: (channel(mean.double(), 3, 6, 1e39), std), "too large for float32"),
    "no tensor": (lambda mean, std: ({"mean": mean}, std), "no published file of a normalisation"),
    "no numbers": (lambda mean, std: (mean.to("meta"), std), r"mean\.pt is damaged, .* does not hold all of its numb"),
    "one number": (
        lambda mean, std: (mean, std[:1, :1, :1, :1].expand(32, 32, 32, 14)),
        "does not hold all of its num",
    ),
    "nan": (lambda mean, std: (mean, std * float("nan")), r"std\.pt is damaged, it has NaN"),
}


def save_norms(folder, mean, std):
    for name, value in (("mean", mean), ("std", std)):
        torch.save(value, folder / f"{name}.pt")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_normalisation_of_something_else_is_refused(tmp_path, kind):
    change, words = DAMAGE[kind]
    save_norms(tmp_path, *change(*tiny.norms()))
    with pytest.raises(ValueError, match=words):
        read_norms(tmp_path, 14, 8, ShapeNetCar.bound)


def test_a_normalisation_may_be_one_for_all_voxels_or_lie_in_another_order(tmp_path):
    mean, std = tiny.norms()
    mean = mean + 0.1 * torch.rand(mean.shape, generator=torch.Generator().manual_seed(0))
    first = [value.permute(3, 0, 1, 2) for value in (mean, std)]
    laid = first[0].contiguous().permute(1, 2, 3, 0)  # as written by code that keeps channels first
    given = {
        "as published": (mean, std, 8),
        "double": (mean.double(), std.double(), 8),
        "another order": (laid, std, 8),
        "axes turned": (mean.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3), std, 8),
        "one deviation": (mean, std[0, 0, 0].clone(), 8),
        "both": (mean[0, 0, 0].clone(), std[0, 0, 0].clone(), 32),
    }
    assert not laid.is_contiguous() and laid.shape == mean.shape
    for kind, (one, two, side) in given.items():
        save_norms(tmp_path, one, two)
        found = read_norms(tmp_path, 14, side, ShapeNetCar.bound)
        same = kind == "both"
        want = [value[:, :1, :1, :1].expand(14, 32, 32, 32) if same else value for value in first]
        assert all(value.shape == (14, side, side, side) and value.is_contiguous() for value in found), kind
        assert all(torch.equal(value, wanted) for value, wanted in zip(found, want, strict=True)), kind


def test_a_normalisation_at_the_limits_of_data_is_taken(tmp_path):
    """Half of all objects have the least that there can be in a voxel, half of them the most."""
    at = torch.stack(torch.meshgrid(*[torch.linspace(-0.45, 0.45, 8)] * 3, indexing="ij"), -1)
    mean, std = tiny.norms()
    mean, std = torch.cat([-at, channel(mean, 6, 7, 0.5)[..., 3:]], -1), channel(std, 0, 3, 0.45)
    std = channel(channel(std, 6, 7, 0.5), 10, 14, 1.0)
    save_norms(tmp_path, channel(mean, 10, 14, 0.0), std)
    assert read_norms(tmp_path, 14, 8, 0.45)[1].max() == 1
    save_norms(tmp_path, channel(mean, 6, 7, 1.0), channel(std, 6, 7, 1e-9))  # of opaque objects
    read_norms(tmp_path, 14, 8, 0.45)


def test_files_of_another_data_set_are_noticed_where_they_were_fetched(tmp_path, monkeypatch):
    """Their numbers may be possible ones, so that nothing else shows it."""
    car, chair = (tiny.fetched(tmp_path / part.__name__, part) for part in (ShapeNetCar, ShapeNetChair))
    options = OPTIONS | {"weights": chair}
    ShapeNetChair(**options).load()
    mean, std = tiny.norms()
    own = (chair / "mean.pt").read_bytes()
    save_norms(car, mean * 0.9, std)
    shutil.copy(car / "mean.pt", chair / "mean.pt")
    with pytest.raises(ValueError, match=r"/mean\.pt is not mean\.pt of BwZhang/GaussianCube-ShapeNetChair-v1\.0"):
        ShapeNetChair(**options).load()
    (chair / "mean.pt").write_bytes(own)
    ShapeNetChair(**options).load()
    weights = chair / "shapenet_chair_ckpt.pt"
    monkeypatch.setattr("align3d.pretrained.fetched.HASHED", 10)  # the published one is known by its size
    write_record(chair, "BwZhang/GaussianCube-ShapeNetChair-v1.0", weights.name)
    torch.save(torch.load(weights) | {"more": torch.zeros(9)}, weights)
    with pytest.raises(ValueError, match=r"shapenet_chair_ckpt\.pt is not shapenet_chair_ckpt\.pt of BwZhang/Gaussian"):
        ShapeNetChair(**options).load()
    for name in ("mean.pt", "std.pt", "shapenet_chair_ckpt.pt"):
        write_record(chair, "BwZhang/GaussianCube-ShapeNetCar-v1.0", name)
    with pytest.raises(ValueError, match=r"of BwZhang/GaussianCube-ShapeNetCar-v1\.0, .* takes BwZhang/GaussianCube-S"):
        ShapeNetChair(**options).load()
    (chair / "source.json").write_text('{"files": {"mean.pt": {"repository": 3}}}')
    with pytest.raises(ValueError, match=r"source\.json is damaged, or no record of `align3d download`; delete it"):
        ShapeNetChair(**options).load()


def test_version_1_0_in_the_place_of_1_1_is_noticed(tmp_path):
    folder = tiny.fetched(tmp_path / "cube", Objaverse10)
    for weights in (folder, folder / "v1.0"):
        Objaverse10(weights=weights, **OPTIONS).load()
    with pytest.raises(ValueError, match=r"is v1\.0/objaverse_ckpt\.pt of BwZhang.* v1\.1/objaverse_ckpt"):
        Objaverse(weights=folder / "v1.0", **OPTIONS).load()
    shutil.copytree(folder / "v1.0", tmp_path / "mine")
    with pytest.raises(ValueError, match="conditioned on nothing, and this model's is on texts"):
        Objaverse(weights=tmp_path / "mine", **OPTIONS).load()  # without a record, only what it is shows


def test_texts_are_as_published_in_float32(folders):
    """Whatever the network computes in."""
    given = Objaverse(weights=folders["text"]).text_source().identity["precision"]
    assert given == "float32" and load(folders, "text").text.identity["precision"] == "float32"
    assert Objaverse(weights=folders["text"]).text_source(precision="bfloat16").identity["precision"] == "bfloat16"


def test_more_steps_than_noise_levels_are_refused(folders):
    """Those that are trained on as they go from one level to another, those of pictures where they gain nothing."""
    with pytest.raises(
        ValueError, match=r"model\.sampler_steps must be at most 1000, one for each noise level that .* 1001"
    ):
        OmniObject3D(sampler_steps=1001)
    with pytest.raises(ValueError, match=r"^model\.steps: linspace spacing takes at most 999 steps, got 1000"):
        load(folders, "class", steps=1000)
    made = load(folders, "class", steps=999)
    assert len(made.schedule.index(made.schedule.times(made.steps)).unique()) == 1000


def unfilled(*_):
    raise AssertionError("the network was read")


def test_what_is_wrong_is_said_before_the_network_is_read(folders, tmp_path, monkeypatch):
    """Its weights have a gigabyte or more; shapes are known before."""
    monkeypatch.setattr("align3d.models.gaussiancube_files.fill", unfilled)
    monkeypatch.setattr("align3d.models.text_files.load_clip", unfilled)
    (tmp_path / "none.json").write_text("{}")
    for kind, damage, options, said in (
        ("text", "text_encoder", {}, r"the model needs texts: give --model\.cache"),
        ("text", "std.pt", {}, r"std\.pt is damaged"),
        ("text", None, {"adapter": tmp_path}, "holds no adapter; give a run's folder"),
        ("text", None, {"steps": 1000}, r"model\.steps: "),
        ("text", None, {"classes": tmp_path / "none.json"}, r"model\.classes is for models"),
        ("class", None, {"classes": tmp_path / "none.json"}, "it is empty"),
        ("class", None, {"classes": tmp_path / "no.json"}, "no file"),
        ("nothing", None, {"text": tmp_path}, r"--model\.text is for weights that follow texts"),
        ("nothing", None, {}, "the network was read"),
    ):
        folder = folders[kind]
        if damage:
            folder = shutil.copytree(folder, tmp_path / damage)
            if damage == "std.pt":
                (folder / tiny.PARTS[kind].folder / damage).write_bytes(b"PK" * 40)
            else:
                shutil.rmtree(folder / damage)
        with pytest.raises((ValueError, FileNotFoundError, AssertionError), match=said):
            load(folders | {kind: folder}, kind, **options)


def test_weights_in_another_format_are_not_taken_for_the_published_ones(tmp_path):
    folder = tiny.write_cube(tmp_path / "x", ShapeNetCar, tiny.KINDS["nothing"])
    file = folder / "shapenet_car_ckpt.pt"
    save_file(tiny.network(tiny.KINDS["nothing"], seed=1).state_dict(), file.with_suffix(".safetensors"))
    own = torch.load(file)
    assert torch.equal(ShapeNetCar(weights=folder, **OPTIONS).load().network.out[2].weight, own["out.2.weight"])
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks shapenet_car_ckpt\.pt; it takes"):
        ShapeNetCar(weights=folder, **OPTIONS).load()


def test_a_network_is_given_what_it_is_conditioned_on():
    x, labels, text = torch.zeros(2, 14, 8, 8, 8), torch.zeros(2), torch.zeros(2, 77, 128)
    classes = torch.tensor([1, 2])
    for kind, given in {"text": {"text": text}, "class": {"classes": classes}, "nothing": {}}.items():
        network = tiny.network(tiny.KINDS[kind])
        assert network(x, labels, **given).shape == x.shape
        for wrong in ({}, {"text": text}, {"classes": classes}, {"text": text, "classes": classes}):
            if wrong.keys() != given.keys():
                with pytest.raises(AssertionError, match="is given what it is conditioned on"):
                    network(x, labels, **wrong)


def test_weights_of_another_network_are_refused(tmp_path, folders):
    folder = tiny.write_cube(tmp_path / "x", ShapeNetCar, tiny.KINDS["nothing"])
    file = folder / "shapenet_car_ckpt.pt"
    state = torch.load(file)
    torch.save(state | {"more": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"shapenet_car_ckpt\.pt does not fit: 1 unknown, such as more"):
        ShapeNetCar(weights=folder, **OPTIONS).load()
    torch.save({name: value for name, value in state.items() if "middle_block.0" not in name}, file)
    with pytest.raises(ValueError, match=r"does not fit: 10 missing, such as middle_block\.0"):
        ShapeNetCar(weights=folder, **OPTIONS).load()
    embed, first = "time_embed.0.weight", "output_blocks.0.0.in_layers.2.weight"
    for content, said in (
        ({"weight": torch.zeros(2)}, "network: 0 blocks on the way up, in 1 tensors"),
        (state | {"output_blocks.999999999.0.x": torch.zeros(1)}, r"1000000000 blocks on the way up, in \d+ tensors"),
        (state | {embed: torch.zeros(0, 32)}, rf"network: {embed} has no numbers"),
        (state | {embed: torch.zeros(1 << 17, 32)}, rf"network: {embed} is \[131072, 32\]"),
        (state | {embed: torch.zeros(64)}, rf"network: {embed} is \[64\]"),
        (state | {embed: torch.zeros(96, 32)}, r"\d+ of another shape, such as .*\[64, 128\]"),
        (state | {first: torch.zeros(65537, 1)}, rf"network: {first} is \[65537, 1\]"),
        ({name: value for name, value in state.items() if name != embed}, rf"network: {embed} is missing"),
        ({name: value for name, value in state.items() if name != first}, rf"network: {first} is missing"),
        (state | {"encoder_proj.weight": torch.zeros(32, 72)}, "72 numbers of a token are no multiple of 64"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=rf"shapenet_car_ckpt\.pt does not fit: .*{said}"):
            ShapeNetCar(weights=folder, **OPTIONS).load()
    wide = {
        name: torch.zeros(96, *value.shape[1:]) if name.startswith("time_embed") else value
        for name, value in state.items()
    }
    wide["time_embed.2.weight"] = torch.zeros(96, 96)
    wide |= {name: torch.zeros(len(value), 96) for name, value in state.items() if name.endswith("emb_layers.1.weight")}
    torch.save(wide, file)
    assert ShapeNetCar(weights=folder, **OPTIONS).load().network.architecture.embed == 96
    with pytest.raises(FileNotFoundError, match=r"--model\.weights is not given"):
        Objaverse().load()


def test_a_ply_file_draws_the_same_scene(folders, tmp_path):
    """Clamped values too; but for the square pixels that are added, which it does not say."""
    model = load(folders, "nothing")
    states = 3 * torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    scene = model.decode(states)
    assert all(bool((value == 0).any()) for value in (scene.scales, scene.opacities, scene.colors))
    azimuth = torch.tensor([[0.0, 90.0, 200.0]])
    cameras = orbit(azimuth, torch.full_like(azimuth, 20.0), height=24, width=20)
    for i in range(2):
        write_ply(tmp_path / "x.ply", scene, i)
        wanted = scene.index(i).render(cameras).rgb
        torch.testing.assert_close(read_scene(tmp_path / "x.ply", 0.3).render(cameras).rgb, wanted, rtol=0, atol=2e-3)
        assert (read_scene(tmp_path / "x.ply").render(cameras).rgb - wanted).abs().max() > 0.02
