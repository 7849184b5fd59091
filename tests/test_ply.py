"""Scene files: round trips, the covariance of raw quaternions, foreign files, hostile files."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from align3d.rng import Streams
from align3d.scenes import ply
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.ply import read_ply, write_ply
from align3d.scenes.raster import RasterConfig


def scene(B: int = 2, N: int = 5, unit: bool = True) -> Gaussians:
    rng = Streams.batch(seed=3, step=0, first=0, size=B)
    quats = rng.normal("quats", (N, 4))
    if unit:
        quats = quats / quats.norm(dim=-1, keepdim=True)
    return Gaussians(
        rng.normal("means", (N, 3)),
        quats,
        0.01 + 0.2 * rng.uniform("scales", (N, 3)),
        0.05 + 0.9 * rng.uniform("opacities", (N,)),
        rng.uniform("colors", (N, 3)),
        raster=RasterConfig(normalize_quats=unit),
    )


def covariance(quats, scales):
    """Sigma of the polynomial on raw quaternions, written independently of ply.py: q v q* at w^2 = 1 - |xyz|^2."""
    w, v = quats[..., 0].double(), quats[..., 1:].double()
    cross = torch.zeros(*v.shape[:-1], 3, 3, dtype=torch.float64)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    cross = cross - cross.mT
    R = torch.eye(3, dtype=torch.float64) + 2 * w[..., None, None] * cross + 2 * cross @ cross
    M = R * scales.double()[..., None, :]
    return M @ M.mT


def vertex_file(path, names, rows, count=None, form="binary_little_endian", kind="float", extra=""):
    lines = ["ply", f"format {form} 1.0", f"element vertex {len(rows) if count is None else count}"]
    lines += [f"property {kind} {name}" for name in names]
    head = "\n".join([*lines, *([extra] if extra else []), "end_header", ""]).encode()
    dtype = {"float": "f4", "double": "f8"}[kind]
    if form == "ascii":
        body = "\n".join(" ".join(repr(float(x)) for x in row) for row in rows).encode()
    else:
        body = np.asarray(rows).astype(("<" if "little" in form else ">") + dtype).tobytes()
    path.write_bytes(head + body)
    return path


@pytest.mark.parametrize("index", [0, 1, -1])
def test_round_trip_gives_the_scene_back(tmp_path, index):
    before = scene()
    write_ply(tmp_path / "a.ply", before, index)
    after = read_ply(tmp_path / "a.ply")
    assert len(after) == 1
    for x, y in zip(before.index(index).tensors, after.tensors, strict=True):
        torch.testing.assert_close(y, x, atol=2e-6, rtol=1e-5)


def test_the_bytes_are_the_convention(tmp_path):
    write_ply(tmp_path / "a.ply", scene(1, 3))
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    assert head.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\n")
    rows = np.frombuffer(body, "<f4").reshape(3, 17)
    g = scene(1, 3)
    np.testing.assert_allclose(rows[:, 3:6], 0)
    np.testing.assert_allclose(rows[:, 6:9], (g.colors[0] - 0.5) / 0.28209479177387814, atol=1e-5)
    np.testing.assert_allclose(rows[:, 9], torch.logit(g.opacities[0]), atol=1e-5)
    np.testing.assert_allclose(rows[:, 10:13], g.scales[0].log(), atol=1e-5)
    np.testing.assert_allclose(rows[:, 13:], g.quats[0], atol=1e-6)


def test_opacities_0_and_1_and_flat_scales_stay_finite(tmp_path):
    g = dataclasses.replace(scene(1, 3), opacities=torch.tensor([[0.0, 1.0, 0.5]]), scales=torch.zeros(1, 3, 3))
    write_ply(tmp_path / "a.ply", g)
    after = read_ply(tmp_path / "a.ply")
    torch.testing.assert_close(after.opacities, g.opacities, atol=2e-6, rtol=0)
    assert after.scales.max() < 1e-11


@pytest.mark.parametrize("size", [0.03, 0.7, 2.0])
def test_raw_quaternions_keep_their_covariance(tmp_path, size):
    g = scene(2, 40, unit=False)
    g = dataclasses.replace(g, quats=size * g.quats)
    write_ply(tmp_path / "a.ply", g, 1)
    after = read_ply(tmp_path / "a.ply")
    want = covariance(g.quats[1], g.scales[1])
    got = covariance(after.quats[0], after.scales[0])
    assert ((got - want).norm(dim=(-2, -1)) / want.norm(dim=(-2, -1))).max() < 1e-5
    assert (after.quats.norm(dim=-1) - 1).abs().max() < 1e-6


def test_unnormalised_quaternions_are_made_unit_where_the_scene_would(tmp_path):
    g = scene(1, 4)
    write_ply(tmp_path / "a.ply", dataclasses.replace(g, quats=3 * g.quats))
    torch.testing.assert_close(read_ply(tmp_path / "a.ply").quats, g.quats)
    write_ply(tmp_path / "a.ply", dataclasses.replace(g, quats=0 * g.quats))
    assert (read_ply(tmp_path / "a.ply").quats[..., 0] == 1).all()


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_foreign_files_in_any_order_with_extras(tmp_path, form, kind):
    names = [*reversed(ply.READ), *(f"f_rest_{i}" for i in range(45)), "filter_3D"]
    values = np.random.default_rng(0).normal(size=(4, len(names)))
    path = vertex_file(tmp_path / "a.ply", names, values, form=form, kind=kind)
    got = read_ply(path)
    at = {name: torch.tensor(values[:, names.index(name)]) for name in ply.READ}
    torch.testing.assert_close(got.means[0], torch.stack([at[n] for n in "xyz"], -1).float())
    torch.testing.assert_close(got.scales[0], torch.stack([at[f"scale_{i}"] for i in range(3)], -1).exp().float())
    torch.testing.assert_close(got.opacities[0], at["opacity"].sigmoid().float())
    dc = torch.stack([at[f"f_dc_{i}"] for i in range(3)], -1).float()
    torch.testing.assert_close(got.colors[0], (0.5 + 0.28209479177387814 * dc).clamp(0, 1))
    q = torch.stack([at[f"rot_{i}"] for i in range(4)], -1).float()
    torch.testing.assert_close(got.quats[0], q / q.norm(dim=-1, keepdim=True))


def test_other_elements_and_mixed_types(tmp_path):
    fields = [("red", "u1"), *((name, "<f4") for name in ply.READ)]
    rows = np.ones(2, dtype=fields)
    head = ["ply", "comment made elsewhere", "format binary_little_endian 1.0", "element camera 3", "property short id"]
    head += ["element vertex 2", "property uchar red", *(f"property float {n}" for n in ply.READ)]
    head += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    path = tmp_path / "a.ply"
    path.write_bytes("\r\n".join([*head, ""]).encode() + b"\0" * 6 + rows.tobytes() + b"\3" + b"\0" * 12)
    assert read_ply(path).means.tolist() == [[[1.0] * 3] * 2]


def test_no_gaussians_is_a_scene_too(tmp_path):
    write_ply(tmp_path / "a.ply", scene(1, 0))
    assert read_ply(tmp_path / "a.ply").means.shape == (1, 0, 3)


def test_how_it_is_drawn_is_the_callers_choice(tmp_path):
    write_ply(tmp_path / "a.ply", scene())
    assert read_ply(tmp_path / "a.ply").raster == RasterConfig()
    assert read_ply(tmp_path / "a.ply", RasterConfig(eps2d=0.3)).raster.eps2d == 0.3


GOOD = np.ones((2, len(ply.READ)))


def with_value(value, column="opacity"):
    rows = GOOD.copy()
    rows[1, ply.READ.index(column)] = value
    return rows


HOSTILE = {
    "count beyond the file": (dict(names=ply.READ, rows=GOOD, count=3), "promises 3 vertices and holds 2"),
    "absurd count": (dict(names=ply.READ, rows=GOOD, count=10**12 - 1), "promises 999999999999 vertices"),
    "more absurd": (dict(names=ply.READ, rows=GOOD, count=10**300), "header line"),
    "absurd text count": (dict(names=ply.READ, rows=GOOD, count=10**11, form="ascii"), "promises 100000000000"),
    "negative count": (dict(names=ply.READ, rows=GOOD, count=-2), "header line 'element vertex -2'"),
    "word for a count": (dict(names=ply.READ, rows=GOOD, count="2.0"), "header line 'element vertex 2.0'"),
    "missing": (dict(names=ply.READ[:-2], rows=GOOD[:, 2:]), "lacks the properties rot_2, rot_3"),
    "mesh": (dict(names="xyz", rows=GOOD[:, :3]), "lacks the properties f_dc_0, f_dc_1, f_dc_2, opacity ..."),
    "twice": (dict(names=(*ply.READ, "x"), rows=GOOD), "header line 'property float x'"),
    "nan": (dict(names=ply.READ, rows=with_value(np.nan)), "1 values that are not finite, the first in opacity"),
    "infinite": (dict(names=ply.READ, rows=with_value(np.inf, "rot_1")), "not finite, the first in rot_1"),
    "beyond float32": (dict(names=ply.READ, rows=with_value(1e300, "x"), kind="double"), "the first in x"),
    "huge scale": (dict(names=ply.READ, rows=with_value(99, "scale_2")), "scale of e^99"),
    "zero rotation": (dict(names=ply.READ, rows=0 * GOOD), "2 rotations of length 0"),
    "list": (dict(names=ply.READ, rows=GOOD, extra="property list uchar int more"), "list properties"),
    "odd type": (dict(names=ply.READ, rows=GOOD, extra="property float128 more"), "header line"),
    "odd format": (dict(names=ply.READ, rows=GOOD, form="binary_middle_endian"), "header line 'format"),
    "short text": (dict(names=ply.READ, rows=[*GOOD, GOOD[0, :5]], form="ascii"), "for vertex 2, expected 14 numbers"),
    "long header": (
        dict(names=ply.READ, rows=GOOD, extra="comment " + "x" * 70000),
        "no end_header in its first 65536",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line_at_once(tmp_path, case):
    arguments, message = HOSTILE[case]
    path = vertex_file(tmp_path / "bad.ply", **arguments)
    start = time.perf_counter()
    with pytest.raises(ValueError) as error:
        read_ply(path)
    assert time.perf_counter() - start < 1
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "; " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", [b"", b"ply", b"ply\nend_header\n", b"glTF\x02\0\0\0", b"ply\nproperty float x\nend_header\n"]
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "bad.ply").write_bytes(text)
    with pytest.raises(ValueError, match=r"bad\.ply .*; "):
        read_ply(tmp_path / "bad.ply")


def test_every_truncation_is_refused(tmp_path):
    write_ply(tmp_path / "a.ply", scene(1, 2))
    whole = (tmp_path / "a.ply").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "b.ply").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"b\.ply"):
            read_ply(tmp_path / "b.ply")


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a.ply").write_text("older")
    bad = scene()
    bad.means[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="1 values of the means are not finite"):
        write_ply(tmp_path / "a.ply", bad, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_text() == "older"
    with pytest.raises(ValueError, match="scene 2 asked for"):
        write_ply(tmp_path / "a.ply", scene(), 2)
    with pytest.raises(ValueError, match="is a folder"):
        write_ply(tmp_path, scene())
    with pytest.raises(ValueError, match="cannot write"):
        write_ply(tmp_path / "a.ply" / "b.ply", scene())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no scene file .*nowhere\.ply"):
        read_ply(tmp_path / "nowhere.ply")


def test_a_failed_write_keeps_the_older_file(tmp_path):
    from align3d.files import replacing

    (tmp_path / "a.txt").write_text("older")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "older"
