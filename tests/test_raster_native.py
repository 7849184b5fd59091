"""What only compiled code can get wrong: bits, threads, instruction sets, denormals, the compiler and its cache."""

import subprocess
import sys

import pytest
import torch
from raster_reference import cameras, gaussians

from align3d.scenes.cameras import canonical
from align3d.scenes.raster import RasterConfig, compile, native, rasterize
from align3d.types import CHANNELS


def surface(side=24, seed=0):
    """Two scenes of small overlapping Gaussians on a sphere: about what a generator makes."""
    g = torch.Generator().manual_seed(seed)
    N = 4 * side * side
    normal = torch.nn.functional.normalize(torch.randn(2, N, 3, generator=g), dim=-1)
    quats = torch.stack([1 + normal[..., 2], -normal[..., 1], normal[..., 0], torch.zeros(2, N)], dim=-1)
    scales = (0.6 + 0.6 * torch.rand(2, N, 3, generator=g)) * torch.tensor([1.0, 1.0, 0.25]) / side
    opacities = 0.5 + 0.5 * torch.rand(2, N, generator=g)
    return [0.4 * normal, quats, scales, opacities, torch.rand(2, N, 3, generator=g)]


def fog(N=6000, seed=0):
    """Two scenes of large faint Gaussians, as an untrained network makes them: deep lists, all pixels covered."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.rand(*s, generator=g)  # noqa: E731
    quats = torch.randn(2, N, 4, generator=g)
    return [rand(2, N, 3) - 0.5, quats, 0.02 + 0.02 * rand(2, N, 3), 0.12 * rand(2, N), rand(2, N, 3)]


def everything(inputs, cams, backend="native", want=CHANNELS):
    """All channels, and all gradients of a fixed random loss."""
    g = torch.Generator().manual_seed(1)
    leaves = [x.clone().requires_grad_() for x in inputs]
    views = rasterize(*leaves, cams, want=want, backend=backend)
    out = [getattr(views, name) for name in want]
    sum((x * torch.randn(x.shape, generator=g)).sum() for x in out).backward()
    return [x.detach() for x in out], [x.grad for x in leaves]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [surface, fog])
@pytest.mark.parametrize("want", [CHANNELS, ("rgb", "alpha")])
def test_same_bits_at_any_number_of_threads_and_every_time(threads, make, want):
    inputs, cams, results = make(), cameras(height=50, width=70), []
    for count in (1, 2, 2, 5):
        threads(count)
        images, grads = everything(inputs, cams, want=want)
        results.append([*images, *grads])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("make", [surface, fog])
def test_dense_scenes_have_finite_gradients_and_equal_the_twin_on_average(make):
    inputs, cams = make(), cameras(V=1, height=44, width=56)
    images, grads = everything(inputs, cams)
    expected, expected_grads = everything(inputs, cams, backend="torch")
    for name, a, b in zip(CHANNELS, images, expected, strict=True):
        # depth order may flip between near ties, so single pixels may differ
        assert (a - b).abs().mean() < 1e-4 and ((a - b).abs() > 1e-3).float().mean() < 5e-3, name
    for grad, right in zip(grads, expected_grads, strict=True):
        assert grad.isfinite().all()
        assert torch.nn.functional.cosine_similarity(grad.flatten(), right.flatten(), dim=0) > 0.999
        assert bool((grad.flatten(1).norm(dim=1) > 0).all())


def test_every_gaussian_that_takes_part_gets_a_gradient():
    inputs, cams = surface(side=12), canonical(2, 48, 48)
    _, grads = everything(inputs, cams)
    # a colour has a gradient exactly where the Gaussian is seen; then so have all its other numbers
    seen = (grads[4] != 0).any(-1)
    assert seen.float().mean() > 0.5
    for grad in grads:
        assert bool((grad.reshape(*seen.shape, -1)[seen] != 0).any(-1).all())


def other_isas():
    order = ["avx512", "avx2", "base"]
    return order[order.index(compile.isa()) + 1 :] if compile.compiler() else []


@pytest.mark.parametrize("isa", other_isas())
def test_older_instruction_sets_agree(monkeypatch, isa):
    inputs, cams = gaussians(N=200), cameras()
    expected, expected_grads = everything(inputs, cams)
    library = native.library(isa)
    assert library.lanes == {"avx2": 8, "base": 4}[isa]
    monkeypatch.setattr(native, "library", lambda: library)
    images, grads = everything(inputs, cams)
    for a, b in zip(images, expected, strict=True):
        assert (a - b).abs().max() < 2e-5
    for a, b in zip(grads, expected_grads, strict=True):
        assert (a - b).norm() < 2e-5 * b.norm()


def test_loading_leaves_denormal_numbers_alone():
    native.library()
    assert float(torch.tensor(1e-39) * 0.5) > 0
    assert sys.float_info.min / 2 > 0


def test_importing_the_module_compiles_nothing():
    code = """if True:
        import subprocess
        subprocess.run = subprocess.Popen = None
        import align3d.scenes.raster.native, align3d.scenes.raster.gsplat, sys
        assert "gsplat" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_no_compiler_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(compile.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler found .* install one"):
        compile.build("base")


def test_a_compiler_that_fails_is_a_clear_error_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(compile, "compiler", lambda: sys.executable)
    monkeypatch.setattr(compile, "_writable_folder", lambda: tmp_path)
    with pytest.raises(RuntimeError, match="could not compile the rasteriser"):
        compile.build("base")
    assert not list(tmp_path.glob("*.so"))


def test_the_cache_follows_the_platform_and_survives_where_it_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compile.cache_folder() == tmp_path / "cache" / "align3d"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert compile.cache_folder().parts[-3:] == ("Library", "Caches", "align3d")
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setattr(compile, "cache_folder", lambda: blocked / "align3d")
    folder = compile._writable_folder.__wrapped__()
    assert folder.is_dir() and folder != blocked
    folder.rmdir()


def test_a_library_in_the_cache_is_not_compiled_again(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(compile, "_writable_folder", lambda: tmp_path)
    monkeypatch.setattr(compile, "_compile", lambda tool, flags, target: calls.append(target) or target.touch())
    monkeypatch.setattr(compile, "compiler", lambda: sys.executable)
    assert compile.build("base") == compile.build("base")
    assert compile.build("avx2") != compile.build("base")
    assert len(calls) == 2


def test_a_graph_that_is_not_needed_is_not_kept():
    inputs = gaussians()
    assert rasterize(*inputs, cameras(), backend="native").rgb.grad_fn is None
    inputs[4].requires_grad_()
    with torch.no_grad():
        assert rasterize(*inputs, cameras(), backend="native").rgb.grad_fn is None
    rgb = rasterize(*inputs, cameras(), backend="native", config=RasterConfig(eps2d=0.1)).rgb
    assert torch.autograd.grad(rgb.sum(), inputs[4])[0].sum() > 0


def test_a_graph_can_be_run_backwards_twice():
    inputs = [x.requires_grad_() for x in gaussians()]
    loss = rasterize(*inputs, cameras(), want=CHANNELS, backend="native").normal.square().sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
