"""Files of neural radiance fields: weights, which are read back to the bit, and meshes."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from command_checks import enter, refused, with_small_pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_nerf import KINDS, SMALL, cameras, nerf

from align3d.cli import main
from align3d.scenes.mesh import HALF, extract, write_mesh
from align3d.scenes.nerf.files import KEY, read_nerf, surface, write_nerf
from align3d.scenes.nerf.nerf import Nerf, NerfScene
from align3d.scenes.nerf.options import Backdrop

OPTIMIZE = ["optimize", "--prompt", "a red thing", "--prior", "closed_prior:Ellipsoids", "--reward", "closed_prior:red"]
OPTIMIZE += ["--method.guidance", "1", "--cameras.size", "12", "--cameras.views", "3", "--updates", "2", "--out", "run"]
OPTIMIZE += ["--scene", "nerf", "--scene.hidden", "8", "--scene.triplane.side", "8", "--scene.march.samples", "16"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, and small pictures."""
    with_small_pictures(monkeypatch)
    return enter(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_back_the_field(tmp_path, kind):
    made = nerf(kind, replace(SMALL, backdrop=Backdrop("learned")))
    with torch.no_grad():
        made.taken.uniform_(0, 0.02, generator=torch.Generator().manual_seed(0))
    write_nerf(tmp_path / "scene.safetensors", made)
    back = read_nerf(tmp_path / "scene.safetensors")
    assert back.options == made.options
    for (name, one), (other, two) in zip(made.named_parameters(), back.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two)
    first, second = (NerfScene(x).render(cameras(1, 2)).rgb for x in (made, back))
    assert torch.equal(first, second)


def test_the_same_field_is_the_same_file(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(12)]
    for path in files:
        write_nerf(path, nerf())
    assert len({path.read_bytes() for path in files}) == 1


def test_broken_fields_are_not_written(tmp_path):
    made = nerf()
    with torch.no_grad():
        made.taken[0] = float("nan")
    with pytest.raises(ValueError, match="values of taken are not finite"):
        write_nerf(tmp_path / "x.safetensors", made)
    assert not (tmp_path / "x.safetensors").exists()


def hostile(path, change):
    """A file whose options, tensors or bytes have been tampered with."""
    made = nerf()
    write_nerf(path, made)
    tensors, options = load_file(path), json.loads(json.dumps(asdict(made.options)))
    metadata = {KEY: options}
    change(tensors, options, metadata)
    save_file(
        tensors, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, o, m: m.clear(), "its metadata has no align3d.nerf"),
        (lambda t, o, m: m.update({KEY: "{"}), "holds no field that can be read"),
        (lambda t, o, m: m.update({KEY: "[" * 10000}), "holds no field that can be read"),
        (lambda t, o, m: m.update({KEY: "x" * 100000}), "its metadata has no align3d.nerf"),
        (lambda t, o, m: o.pop("hidden"), "its options are not those of NerfOptions"),
        (lambda t, o, m: o.update(more=1), "its options are not those of NerfOptions"),
        (lambda t, o, m: o.update(grid="x"), "its option grid is 'x'"),
        (lambda t, o, m: o.update(hidden=True), "its option hidden is True"),
        (lambda t, o, m: o.update(hidden=10**9), "scene.hidden must be 1 to 512"),
        (lambda t, o, m: o.update(blob=[1.0]), r"its option blob is \[1.0\]"),
        (lambda t, o, m: o["march"].update(cells=10**6), "scene.march.cells must be 1 to 256"),
        (lambda t, o, m: o["triplane"].update(side=512), "1 of another shape, such as field.grid.planes"),
        (lambda t, o, m: t.pop("taken"), "1 missing, such as taken"),
        (lambda t, o, m: t.update(more=torch.zeros(1)), "1 unknown, such as more"),
        (lambda t, o, m: t["taken"].fill_(float("inf")), "taken has NaN or infinity"),
    ],
)
def test_hostile_files_are_refused_in_a_line(tmp_path, change, said):
    path = tmp_path / "scene.safetensors"
    hostile(path, change)
    with pytest.raises(ValueError, match=said) as error:
        read_nerf(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_truncated_files_are_refused_in_a_line(tmp_path):
    path = tmp_path / "scene.safetensors"
    write_nerf(path, nerf())
    data = path.read_bytes()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is damaged") as error:
            read_nerf(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no scene file"):
        read_nerf(tmp_path / "nothing")


def ball(x):
    """A density in scene units: a ball of radius 0.3, and a speck."""
    speck = torch.relu(0.02 - (x - 0.42).norm(dim=1)) * 5000
    return 100 * torch.sigmoid((0.3 - x.norm(dim=1)) * 60) + speck


def by_place(x):
    return x + 0.5


def test_the_mesh_of_a_ball_is_a_ball():
    pytest.importorskip("skimage")
    mesh = extract(ball, by_place, 20, 48, level=50.0)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(radius - 0.3).max() < 0.004, "and the speck is gone"
    np.testing.assert_allclose(mesh.colors, mesh.vertices + 0.5, atol=1e-6)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01), "faces look outwards"
    chosen = extract(ball, by_place, 20, 24)
    assert 0.25 < float(np.linalg.norm(chosen.vertices, axis=1).mean()) < 0.35
    assert extract(lambda x: 0 * x[:, 0], by_place, 8, 8) is None


def test_a_surface_closes_at_the_sides_of_the_box():
    pytest.importorskip("skimage")
    mesh = extract(lambda x: torch.full_like(x[:, 0], 30.0), by_place, 8, 8, level=20.0)
    assert np.abs(mesh.vertices).max() <= HALF
    ends = np.sort(np.concatenate([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)]), axis=1)
    assert (np.unique(ends, axis=0, return_counts=True)[1] == 2).all()


def test_meshes_are_files_that_others_read(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    mesh = extract(ball, by_place, 20, 24, level=50.0)
    for name in ("x.glb", "x.obj"):
        write_mesh(tmp_path / name, mesh)
        back = trimesh.load(tmp_path / name, force="mesh", process=False)
        assert len(back.faces) == len(mesh.faces) and back.is_winding_consistent
        np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-5)
        np.testing.assert_allclose(back.visual.vertex_colors[:, :3] / 255, mesh.colors, atol=0.003)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.glb", "x.obj"]


def test_the_surface_of_a_field_is_where_its_blob_is():
    pytest.importorskip("skimage")
    made = Nerf.begun(SMALL, torch.Generator().manual_seed(0))
    radius = np.linalg.norm(
        surface(made, 32, level=5.0).vertices, axis=1
    )  # 10 (1 - r / 0.5) = 5, r in units of the field
    assert float(radius.mean()) == pytest.approx(0.125, abs=0.01)


def test_a_prompt_becomes_a_field_and_another_goes_on_from_it(here, capsys):
    meshes = pytest.importorskip("skimage") and pytest.importorskip("trimesh")
    assert main([*OPTIMIZE, "--scene.mesh", "12"]) == 0
    assert "scene.safetensors, open" in capsys.readouterr().out and meshes
    files = {path.name for path in Path("run").iterdir()}
    assert {"scene.safetensors", "mesh.glb", "mesh.obj", "views.png", "turntable.webp", "report.html"} <= files
    assert Image.open("run/views.png").convert("L").getextrema()[0] < 250, "there is something to see"
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["scene"]["name"] == "nerf" and config["scene"]["triplane"]["side"] == 8
    again = [arg if arg != "run" else "second" for arg in OPTIMIZE]
    assert main([*again, "--scene.start", "run/scene.safetensors", "--scene.mesh", "0"]) == 0, capsys.readouterr().err
    first, second = (read_nerf(Path(out, "scene.safetensors")) for out in ("run", "second"))
    moved = (first.field.grid.planes - second.field.grid.planes).abs().max()
    assert 0 < float(moved.detach()) < 0.05 and not Path("second/mesh.glb").exists()
    capsys.readouterr()
    other = [arg if arg != "second" else "third" for arg in again]
    said = refused(capsys, [*other, "--scene.start", "run/scene.safetensors", "--scene.triplane.side", "9"])
    assert "is not of the kind and size that --scene says: 1 of another shape" in said
    assert "no scene file nothing" in refused(capsys, [*other, "--scene.start", "nothing"])
    assert "scene.mesh must be 0 to 512" in refused(capsys, [*other, "--scene.mesh", "-1"])


@pytest.mark.parametrize("name", ["trimesh", "skimage"])
def test_without_the_packages_there_is_no_mesh_and_a_line_says_so(here, capsys, monkeypatch, name):
    for package, module in (("trimesh", "trimesh"), ("skimage", "skimage.measure")):
        monkeypatch.setitem(sys.modules, package, None if package == name else ModuleType(package))
        monkeypatch.setitem(sys.modules, module, None if package == name else ModuleType(module))
    assert main(OPTIMIZE) == 0
    assert f"no mesh is written: {name}" in capsys.readouterr().err
    assert Path("run/scene.safetensors").exists() and not Path("run/mesh.glb").exists()


FAILURES = [(MemoryError, 0), (KeyboardInterrupt, 130), (RuntimeError("no\nroom"), 0)]


@pytest.mark.parametrize(("error", "code"), FAILURES)
def test_a_mesh_that_cannot_be_made_costs_nothing_else(here, capsys, monkeypatch, error, code):
    def fails(*_):
        assert read_nerf(Path("run/scene.safetensors")), "the scene is there before"
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("align3d.scenes.nerf.files.surface", fails)
        patched.setitem(sys.modules, "trimesh", ModuleType("trimesh"))
        assert main(OPTIMIZE) == code
    said = capsys.readouterr().err.splitlines()
    assert Path("run/scene.safetensors").is_file() and not Path("run/mesh.glb").exists()
    if code:
        return
    reason = "no room" if isinstance(error, RuntimeError) else "MemoryError"
    assert said[-1] == f"align3d: mesh.glb is not written: {reason}; --resume tries again"
    assert all(Path("run", name).is_file() for name in ("views.png", "turntable.webp", "report.html"))


def test_a_run_that_goes_on_may_have_another_mesh(here, capsys, monkeypatch):
    found = {"mesh.glb": lambda path: path.write_text("a mesh")}
    monkeypatch.setattr("align3d.scenes.nerf.files.meshes", lambda nerf: found)
    assert main(OPTIMIZE) == 0, capsys.readouterr().err
    again = [*OPTIMIZE, "--resume", "--scene.texture", "16"]
    Path("run/mesh.png").touch()
    assert main([*again, "--scene.mesh", "12"]) == 0, capsys.readouterr().err
    assert Path("run/mesh.glb").is_file() and not Path("run/mesh.png").exists(), "it was the one before's"
    assert main([*again, "--scene.mesh", "0"]) == 0, capsys.readouterr().err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["scene"]["mesh"] == 0 and config["scene"]["texture"] == 16
    assert not Path("run/mesh.glb").exists()


def test_cameras_are_chosen_by_name(here, capsys):
    lenses = ["--cameras", "lenses", "--cameras.size", "8", "12", "--cameras.grow", "1", "--scene.mesh", "0"]
    args = [arg for i, arg in enumerate(OPTIMIZE) if "--cameras.size" not in OPTIMIZE[max(0, i - 1) : i + 1]]
    assert main([*args, *lenses]) == 0, capsys.readouterr().err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["cameras"]["name"] == "lenses" and config["cameras"]["size"] == [8, 12]
    assert main([*args, *lenses, "--updates", "3", "--resume"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert "run has another configuration: cameras.name" in refused(capsys, [*OPTIMIZE, "--resume"])
    assert "unknown cameras 'x'" in refused(capsys, [*OPTIMIZE, "--cameras", "x"])
    assert main(["list", "cameras"]) == 0 and "lenses" in capsys.readouterr().out


def test_a_field_that_is_there_can_be_edited(here, capsys):
    first = [*OPTIMIZE, "--scene.mesh", "0"]
    assert main(first) == 0, capsys.readouterr().err
    edit = [arg if arg != "run" else "second" for arg in first] + [
        "--method",
        "dds",
        "--method.source",
        "a green thing",
    ]
    capsys.readouterr()
    assert "dds edits a scene that there is already" in refused(capsys, edit)
    edit += ["--scene.start", "run/scene.safetensors", "--loop.checkpoint-every", "1"]
    assert main([*edit, "--updates", "3"]) == 0, capsys.readouterr().err
    assert all(json.loads(row)["pull"] > 0 for row in Path("second/metrics.jsonl").read_text().splitlines())
    again = [arg if arg != "second" else "third" for arg in edit]
    assert main(again) == 0 and main([*again, "--updates", "3", "--resume"]) == 0, capsys.readouterr().err
    assert Path("second/scene.safetensors").read_bytes() == Path("third/scene.safetensors").read_bytes()
