"""The files of GaussianCube: what is read off them, what is refused, and the cameras of the published previews."""

import pytest
import tiny_gaussiancube as tiny
import torch

from align3d.models.gaussiancube import CubeCond
from align3d.models.gaussiancube_files import Objaverse, Objaverse10, OmniObject3D, ShapeNetCar, ShapeNetChair

PARTS = {"text": Objaverse, "class": OmniObject3D, "nothing": ShapeNetCar}
OPTIONS = {"precision": "float32", "sampler_steps": 12, "rank": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        kind: tiny.write_cube(tmp_path_factory.mktemp(kind), part, tiny.KINDS[kind]) for kind, part in PARTS.items()
    }


def load(folders, kind, **options):
    return PARTS[kind](weights=folders[kind], **OPTIONS, **options).load()


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
    [(Objaverse, 0.857556, 2.0), (OmniObject3D, 0.691111, 4.031129), (ShapeNetChair, 0.857556, 1.2)],
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


def test_weights_say_whether_texts_are_followed(tmp_path, folders):
    """Version 1.0, whose texts the published code drops: the layers are used if they are there."""
    text = tiny.write_cube(tmp_path / "text", Objaverse10)
    made = Objaverse10(weights=text, **OPTIONS).load()
    assert made.sampler == "adaptive" and made.encode(["a red mug"]).text.shape == (1, 77, 64)
    bare = tiny.write_cube(tmp_path / "bare", Objaverse10, tiny.KINDS["nothing"])
    made = Objaverse10(weights=bare, **OPTIONS).load()
    assert made.sampler == "multistep3" and made.encode(["unconditional"]) == CubeCond()
    with pytest.raises(ValueError, match=r"the weights have no layers for texts, so the model follows none; got 'a r"):
        made.encode(["a red mug"])
    with pytest.raises(ValueError, match=r"--model\.text is for weights that follow texts, and these do not; leave it"):
        Objaverse10(weights=bare, text=text, **OPTIONS).load()
    with pytest.raises(ValueError, match=r"--model\.cache is for weights that follow texts"):
        OmniObject3D(weights=folders["class"], cache=text, **OPTIONS).load()


def test_an_adapter_of_other_layers_is_refused_with_what_to_do(folders, tmp_path):
    load(folders, "nothing", layers="all").save_adapter(tmp_path / "all")
    load(folders, "nothing").save_adapter(tmp_path / "attention")
    with pytest.raises(ValueError, match=r"try --model\.layers all"):
        load(folders, "nothing", adapter=tmp_path / "all")
    with pytest.raises(ValueError, match=r"try --model\.layers attention"):
        load(folders, "nothing", layers="all", adapter=tmp_path / "attention")


def test_prompts_that_a_model_cannot_follow_are_refused(folders, tmp_path):
    nothing = load(folders, "nothing")
    with pytest.raises(ValueError, match=r"so the model follows none; got 'a car', its one prompt"):
        nothing.encode(["unconditional", "a car"])
    names = tmp_path / "classes.json"
    names.write_text('{"mug": 3, "dog": 0}')
    known = load(folders, "class", classes=names)
    assert known.encode(["mug", "4", ""]).classes.tolist() == [3, 4, 5]
    for prompt in ("5", "-1", "a mug", "1.5", "9" * 30):
        with pytest.raises(ValueError, match=r"a prompt is a number 0 to 4, or a name of 2, such as 'mug'; got"):
            known.encode([prompt])
    names.write_text('{"mug": 5}')
    with pytest.raises(ValueError, match="'mug' is 5; classes of this model are numbers 0 to 4"):
        load(folders, "class", classes=names)
    with pytest.raises(ValueError, match=r"model\.classes is for models that were trained with classes"):
        load(folders, "nothing", classes=names)


DAMAGE = {
    "short": (lambda mean, std: (mean[:, :, :4], std), r"mean\.pt is \[8, 8, 4, 14\], expected \[32, 32, 32, 14\]"),
    "channels first": (lambda mean, std: (mean.permute(3, 0, 1, 2), std), r"mean\.pt is \[14, 8, 8, 8\]"),
    "another cube": (
        lambda mean, std: (mean[:4, :4, :4], std),
        r"mean\.pt is \[14, 4, 4, 4\] and std\.pt \[14, 8, 8, 8\]",
    ),
    "swapped": (lambda mean, std: (std, mean), "deviations are not above 0, so mean.pt and std.pt are not those of th"),
    "of other data": (lambda mean, std: (mean + 2.0, std), "the mean opacity is not within 0 and 1"),
    "no tensor": (lambda mean, std: ({"mean": mean}, std), "no published file of a normalisation"),
    "nan": (lambda mean, std: (mean, std * float("nan")), r"std\.pt is damaged, it has NaN"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_normalisation_of_something_else_is_refused(tmp_path, kind):
    change, words = DAMAGE[kind]
    folder = tiny.write_cube(tmp_path / "x", ShapeNetCar, tiny.KINDS["nothing"])
    for name, value in zip(("mean", "std"), change(*tiny.norms()), strict=True):
        value = value.contiguous().clone() if isinstance(value, torch.Tensor) else value
        torch.save(value, folder / f"{name}.pt")
    with pytest.raises(ValueError, match=words):
        ShapeNetCar(weights=folder, **OPTIONS).load()


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
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="no GaussianCube network"):
        ShapeNetCar(weights=folder, **OPTIONS).load()
    for name, shape in (("output_blocks.99999999999.0.in_layers.2.weight", [1]), ("time_embed.0.weight", [0, 32])):
        torch.save(state | {name: torch.zeros(shape)}, file)
        with pytest.raises(ValueError, match=r"no GaussianCube network: \d+ blocks on the way up, \d+ tensors"):
            ShapeNetCar(weights=folder, **OPTIONS).load()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks shapenet_car_ckpt\.pt; it takes"):
        ShapeNetCar(weights=folder, **OPTIONS).load()
    with pytest.raises(FileNotFoundError, match=r"--model\.weights is not given"):
        Objaverse().load()
    with pytest.raises(ValueError, match=r"the model needs texts: give --model\.cache"):
        without = tiny.write_cube(tmp_path / "y", Objaverse)
        (without / "text_encoder" / "model.safetensors").unlink()
        for path in (without / "text_encoder").iterdir():
            path.unlink()
        (without / "text_encoder").rmdir()
        Objaverse(weights=without, **OPTIONS).load()
