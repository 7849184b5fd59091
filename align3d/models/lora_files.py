"""Files of LoRA adapters: PEFT's layout, and that of the public Nabla-R2D3 code.

    PEFT        adapter_model.safetensors, keys base_model.model.MODULE.lora_A.weight; adapter_config.json
    published   pytorch_lora_weights.safetensors, keys unet.MODULE.lora_A.weight ("unet" whatever the network is);
                alpha is 8 whatever the rank, and stands in lora_config/adapter_config.json, or nowhere

The update of a layer is alpha / rank * B A. The public inference leaves an adapter_model.safetensors of its own beside
the published file, without its configuration; it is passed over.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.files import read_json
from align3d.weights import require_numbers

if TYPE_CHECKING:
    from torch import Tensor

PEFT, PEFT_CONFIG, PEFT_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
PUBLISHED, PUBLISHED_CONFIG = "pytorch_lora_weights.safetensors", "lora_config/adapter_config.json"
PUBLISHED_PREFIX, PUBLISHED_ALPHA = "unet.", 8.0
PUBLISHED_RANK = 8  # that the public inference can read; its training reads any
SHARED = {"bias": "none", "peft_type": "LORA", "lora_dropout": 0.0}  # of every configuration that is written
OTHER_UPDATES = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "lora_bias")
OTHER_BASES = ("pissa", "olora", "corda", "loftq")  # initial values of PEFT that change the network's own weights


@dataclass(frozen=True)
class LoraFile:
    """An adapter as its files have it."""

    path: Path  # of the matrices
    tensors: dict[str, Tensor]  # PEFT's keys
    rank: int
    alpha: float

    @property
    def modules(self) -> list[str]:
        """The adapted layers."""
        return sorted({key.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for key in self.tensors})


def adapter_folder(path: Path) -> Path:
    """The folder of the adapter in a run's folder; any other path is taken to be an adapter's folder itself.

    Raises:
        FileNotFoundError: If there is no adapter.
    """
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    if adapter_file(folder) is None:
        files = f"{PEFT} or {PUBLISHED}"
        raise FileNotFoundError(f"{path} holds no adapter; give a run's folder, or one with {files} in it")
    return folder


def adapter_file(folder: Path) -> Path | None:
    """The file of the matrices in an adapter's folder."""
    names = (PEFT, PUBLISHED) if (folder / PEFT_CONFIG).is_file() else (PUBLISHED, PEFT)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def settings(folder: Path) -> tuple[Any, Any]:
    """Rank and alpha as the files say, unchecked.

    Raises:
        FileNotFoundError: If PEFT's configuration is missing.
        ValueError: If it is damaged, or the update is another one than alpha / rank * B A.
    """
    published = adapter_file(folder) != folder / PEFT
    config = folder / (PUBLISHED_CONFIG if published else PEFT_CONFIG)
    if published and not config.is_file():
        return rank_of(folder / PUBLISHED), PUBLISHED_ALPHA
    if not config.is_file():
        raise FileNotFoundError(f"{config} is missing, which belongs to the adapter; copy it again")
    values = read_json(config)
    _require_plain(values, config)
    try:
        return values["r"], values["lora_alpha"]
    except KeyError as error:
        raise ValueError(f"the adapter in {folder} is damaged ({error}); copy it again") from error


def _require_plain(values: dict[str, Any], config: Path) -> None:
    """Refuse a configuration of PEFT whose update is not alpha / rank * B A, or of another base."""
    found = [f"{name} {values[name]!r}"[:80] for name in OTHER_UPDATES if values.get(name)]
    if values.get("peft_type", "LORA") != "LORA":
        found.append(f"peft_type {values['peft_type']!r}"[:80])
    if str(values.get("init_lora_weights")).lower().startswith(OTHER_BASES):
        found.append(f"init_lora_weights {values['init_lora_weights']!r}"[:80])
    if found:
        raise ValueError(f"{config} has {', '.join(found)}: only plain LoRA, alpha / rank * B A, can be read")


def rank_of(path: Path) -> int:
    """The rank of the first pair of matrices in a file.

    Raises:
        ValueError: If the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            name = next(key for key in file.keys() if key.endswith(".lora_A.weight"))  # noqa: SIM118
            return int(file.get_slice(name).get_shape()[0])
    except (SafetensorError, ValueError, StopIteration, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error or 'it has no lora_A matrix'}); copy it again") from error


def read(folder: Path) -> LoraFile:
    """An adapter of either layout.

    Args:
        folder: A run's folder, or an adapter's.

    Raises:
        FileNotFoundError: If there is no adapter, or a part of it is missing.
        ValueError: If a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = adapter_folder(folder)
    path = adapter_file(folder)
    assert path is not None
    rank, alpha = settings(folder)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"the adapter in {folder} is damaged ({error}); copy it again") from error
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ValueError(f"the adapter in {folder} is damaged, its lora_alpha is {alpha!r}; copy it again")
    for name, tensor in sorted(tensors.items()):
        require_numbers(path, name, tensor)
    if path.name == PUBLISHED:
        tensors = {PEFT_PREFIX + key.removeprefix(PUBLISHED_PREFIX): tensor for key, tensor in tensors.items()}
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith(".lora_A.weight") and tensor.ndim > 1}
    if ranks != {rank}:
        said = f"its r is {rank!r}, its matrices have {', '.join(map(str, sorted(ranks))) or 'none'}"
        raise ValueError(f"the adapter in {folder} is damaged, {said}; copy it again")
    return LoraFile(path, tensors, ranks.pop(), float(alpha))


def write(lora: LoraFile, folder: Path, layout: str) -> float:
    """Write an adapter in either layout; whole, or not at all.

    Args:
        lora: The adapter.
        folder: Where to; made here.
        layout: "peft" or "published". Where the latter has another alpha than 8, its B matrices are scaled, so that
            the update stays the same.

    Returns:
        The alpha that was written.
    """
    from safetensors.torch import save

    from align3d.files import atomic_write

    if layout == "peft":
        tensors, alpha = lora.tensors, lora.alpha
    else:
        alpha, factor = PUBLISHED_ALPHA, lora.alpha / PUBLISHED_ALPHA
        tensors = {
            PUBLISHED_PREFIX + key.removeprefix(PEFT_PREFIX): tensor * factor if ".lora_B." in key else tensor
            for key, tensor in lora.tensors.items()
        }
    values = {**SHARED, "r": lora.rank, "lora_alpha": alpha, "target_modules": lora.modules}
    file, config = (PEFT, PEFT_CONFIG) if layout == "peft" else (PUBLISHED, PUBLISHED_CONFIG)
    (folder / config).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / config, json.dumps(values, indent=2, sort_keys=True) + "\n")
    atomic_write(folder / file, save({key: tensor.contiguous() for key, tensor in tensors.items()}))  # last: it counts
    return alpha
