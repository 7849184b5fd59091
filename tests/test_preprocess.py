"""Image preparation: against PIL, against closed forms, and in gradient."""

import numpy as np
import pytest
import torch
from PIL import Image

from align3d.rewards.preprocess import normalize, per_image, require_colours, resize

IMAGES = torch.rand(2, 3, 13, 22, generator=torch.Generator().manual_seed(0))


def pil_resize(image: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image, mode="F").resize((width, height), how))


@pytest.mark.parametrize("size", [(29, 35), (7, 9), (5, 40)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resize_is_pils(size, mode):
    ours = resize(IMAGES, size, mode)
    for image, result in zip(IMAGES.flatten(0, 1).numpy(), ours.flatten(0, 1).numpy(), strict=True):
        np.testing.assert_allclose(result, pil_resize(image, *size, Image.Resampling[mode.upper()]), atol=1e-5)


def test_without_antialias_pixels_are_sampled():
    checkers = (torch.arange(16)[:, None] + torch.arange(16)[None]).remainder(2).double().expand(1, 1, 16, 16)
    assert (resize(checkers, 4) - 0.5)[..., 1:3, 1:3].abs().max() < 1e-3
    columns = torch.arange(16).remainder(4).eq(1).double().expand(1, 1, 16, 16)  # seen only at x = 1, 5, 9, 13
    kept, smooth = resize(columns, 4, antialias=False), resize(columns, 4)
    assert (kept - smooth).abs().max() > 0.2
    ramp = torch.linspace(0, 1, 16).double().expand(1, 1, 16, 16)
    torch.testing.assert_close(resize(ramp, 4, antialias=False)[0, 0, 0], (torch.arange(4) * 4 + 1.5).double() / 15)


def test_resize_gradient():
    x = IMAGES[:1, :1, :5, :6].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize(x, (4, 9)), x)
    assert torch.autograd.gradcheck(lambda x: resize(x, (7, 3), antialias=False), x)


def test_resize_refuses_nothing():
    with pytest.raises(ValueError, match="got 0 x 4"):
        resize(IMAGES, (0, 4))


def test_normalize():
    x = normalize(IMAGES, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    torch.testing.assert_close(x[:, 2], (IMAGES[:, 2] - 0.3) / 4)
    torch.testing.assert_close(normalize(IMAGES, 127 / 255, 128 / 255), (IMAGES * 255 - 127) / 128)


@pytest.mark.parametrize("chunk", [1, 3, 5, 64, None])
def test_per_image_is_the_function(chunk):
    weight = torch.rand(7, 4)

    def function(images, weight):
        return ((images**3).flatten(1) * weight).sum(1)

    plain, chunked = (torch.rand(7, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    slopes = torch.rand(7)
    expected, got = function(plain, weight), per_image(function, chunked, weight, chunk=chunk)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    (expected * slopes).sum().backward()
    (got * slopes).sum().backward()
    torch.testing.assert_close(chunked.grad, plain.grad)
    assert (plain.grad != 0).all()


def test_the_way_back_is_not_rounded_by_autocast():
    weight = torch.rand(16, 16, generator=torch.Generator().manual_seed(3)) + 1e-3

    def function(images):
        with torch.autocast("cpu", enabled=False):
            return (images @ weight @ weight).sum(1)

    x = torch.rand(3, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(per_image(function, x).sum(), x)
    torch.testing.assert_close(got, (weight @ weight).sum(1).expand(3, -1))


def test_per_image_without_gradient():
    x = torch.rand(5, 2, requires_grad=True)
    with torch.no_grad():
        assert not per_image(lambda x: x.sum(1), x).requires_grad
    assert not per_image(lambda x: x.sum(1), x.detach()).requires_grad


def test_an_infinite_slope_leaves_the_values_alone():
    """The square root at 0: the value is 0, the gradient infinite, as without chunks."""
    x = torch.tensor([[0.0, 4.0], [1.0, 9.0]], requires_grad=True)
    score = per_image(lambda x: x.sqrt().sum(1), x, chunk=1)
    assert score.tolist() == [2.0, 4.0]
    score.sum().backward()
    assert x.grad.tolist() == [[float("inf"), 0.25], [0.5, pytest.approx(1 / 6)]]


def test_there_is_no_second_derivative():
    x = torch.rand(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(per_image(lambda x: (x**3).sum(1), x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_colours_of_another_range_are_refused():
    require_colours(IMAGES * 1.01 - 0.005, "x")
    for images in (IMAGES * 2 - 1, IMAGES * 255):
        with pytest.raises(ValueError, match=r"reward x needs colours from 0 to 1, got -?[0-9.e+-]+ to .*; scale"):
            require_colours(images, "x")
