import pytest
import torch
from raster_reference import cameras, gaussians

from align3d.scenes.gaussians import Gaussians
from align3d.scenes.raster import RasterConfig, check_gaussians, rasterize
from align3d.types import CHANNELS, Scene


def test_a_scene_renders_as_rasterize_does():
    inputs, cams = gaussians(), cameras()
    config = RasterConfig(eps2d=0.3)
    scene = Gaussians(*inputs, raster=config)
    assert isinstance(scene, Scene) and len(scene) == 2
    views = scene.render(cams, want=CHANNELS, background=(0.2, 0.4, 0.6))
    direct = rasterize(*inputs, cams, want=CHANNELS, background=(0.2, 0.4, 0.6), config=config)
    assert views.cameras is cams
    for name in CHANNELS:
        assert torch.equal(getattr(views, name), getattr(direct, name))


def test_only_what_was_asked_for_is_there():
    views = Gaussians(*gaussians()).render(cameras())
    assert views.rgb.shape == (2, 3, 3, 21, 38) and views.alpha.shape == (2, 3, 1, 21, 38)
    assert views.depth is None and views.normal is None and views.median_depth is None
    with pytest.raises(ValueError, match="normal"):
        views.require("normal", by="a reward")


def test_index_picks_scenes_and_keeps_the_batch_axis():
    scene = Gaussians(*gaussians())
    assert torch.equal(scene.index(1).means, scene.means[1:])
    assert torch.equal(scene.index(-1).colors, scene.colors[1:])
    assert torch.equal(scene.index([1, 0]).opacities, scene.opacities.flip(0))
    assert len(scene.index(slice(0, 1))) == 1
    with pytest.raises(ValueError, match="only 2"):
        scene.index(2)


def test_detach_and_to_keep_the_settings():
    scene = Gaussians(*(x.requires_grad_() for x in gaussians()), raster=RasterConfig(eps2d=0.1), backend="torch")
    for other in (scene.detach(), scene.to("cpu")):
        assert other.raster == scene.raster and other.backend == "torch"
    assert not scene.detach().means.requires_grad


@pytest.mark.parametrize(
    ("field", "shape"), [("means", (2, 60)), ("quats", (2, 60, 3)), ("scales", (2, 59, 3)), ("opacities", (2, 60, 1))]
)
def test_shapes_that_do_not_fit_are_refused(field, shape):
    names = ("means", "quats", "scales", "opacities", "colors")
    fields = dict(zip(names, gaussians(), strict=True))
    with pytest.raises(ValueError, match=f"Gaussian {field} must be"):
        check_gaussians(**{**fields, field: torch.zeros(shape)})  # Gaussians itself meets jaxtyping first, in tests


def test_another_number_of_cameras_than_scenes_is_refused():
    with pytest.raises(ValueError, match="2 scenes need cameras"):
        Gaussians(*gaussians()).render(cameras(B=3))
