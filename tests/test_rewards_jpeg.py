"""JPEG sizes: what compresses, in which unit, and that there is no gradient."""

import io

import pytest
import torch
from PIL import Image

from align3d.rewards.jpeg import JPEGCompress, JPEGIncompress
from align3d.scenes.cameras import canonical
from align3d.types import Views

B, V, H, W = 2, 3, 40, 56
PROMPTS = ["a red cup", "a blue cup"]


def some_views() -> Views:
    rgb = torch.rand(B, V, 3, H, W, generator=torch.Generator().manual_seed(0))
    rgb[1] = 0.5
    return Views(canonical(B, H, W), rgb=rgb.requires_grad_())


def test_size_in_kilobytes():
    views = some_views()
    value = JPEGCompress()(views, PROMPTS)
    assert value.shape == (B, V) and not value.requires_grad
    file = io.BytesIO()
    pixels = (views.rgb[0, 1].detach() * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    assert value[0, 1].item() == pytest.approx(-len(file.getvalue()) / 1000)


def test_flat_is_smaller_than_noise():
    views = some_views()
    small, large = JPEGCompress()(views, PROMPTS), JPEGIncompress()(views, PROMPTS)
    assert torch.equal(small, -large)
    assert (small[1] > small[0]).all()
    assert (JPEGCompress(quality=50)(views, PROMPTS)[0] > small[0]).all()


def test_says_that_it_has_no_gradient():
    for reward in (JPEGCompress, JPEGIncompress):
        assert reward.differentiable is False and reward.needs == {"rgb"}


def test_bad_input():
    with pytest.raises(ValueError, match="quality must be 1 to 95, got 96"):
        JPEGCompress(quality=96)
    with pytest.raises(ValueError, match="quality must be 1 to 95, got 0"):
        JPEGIncompress(quality=0)
    with pytest.raises(ValueError, match="reward jpeg-compress needs views with rgb"):
        JPEGCompress()(Views(canonical(B, H, W)), PROMPTS)
    with pytest.raises(ValueError, match="reward jpeg-incompress needs views with rgb"):
        JPEGIncompress()(Views(canonical(B, H, W)), PROMPTS)
