"""LoRA adapters, by peft: the trainable part of a generator, switched off for the reference.

And what is refused of the options that all generators with one have: rank, alpha, guidance and steps.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from align3d.models.lora_files import PEFT, PEFT_CONFIG, PEFT_PREFIX, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from align3d.models.lora_files import LoraFile

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")  # attention and feed-forward of all blocks


def check_options(options: Any, **least: int) -> None:
    """Refuse options of a generator that are out of range.

    Args:
        options: With the fields rank, alpha, guidance and steps.
        least: The least that further fields may be.

    Raises:
        ValueError: Names the field.
    """
    for name, low in {"steps": 1, "rank": 1, **least}.items():
        if getattr(options, name) < low:
            raise ValueError(f"model.{name} must be at least {low}, got {getattr(options, name)}")
    if not 0 < options.alpha <= 1e4:
        raise ValueError(f"model.alpha must be above 0 and at most 10000, got {options.alpha}")
    if not 0 <= options.guidance <= 100:
        raise ValueError(f"model.guidance must be 0 to 100, got {options.guidance}")


def adapted(
    network: nn.Module,
    rank: int,
    alpha: float,
    folder: Path | None,
    device: str,
    targets: Sequence[str] = TARGETS,
    fewest: str = "blocks",
) -> Adapter:
    """The adapter of a network, which is frozen, changed in place and moved.

    Args:
        network: On the CPU.
        rank: Of the adapter, as alpha, targets and fewest; see there.
        alpha: Of the adapter.
        folder: Where its matrices are read from; None: they have no effect yet.
        device: Where the network shall live.
        targets: Of the adapter.
        fewest: Of the adapter.

    Raises:
        FileNotFoundError: If there is no adapter in the folder.
        ValueError: If it does not fit, or the rank is too high.
    """
    network.eval()
    adapter = Adapter(network, rank, alpha, targets, fewest=fewest)
    if folder is not None:
        adapter.load(folder)
    network.to(device)  # last, so that the adapter starts from the same numbers everywhere
    return adapter


@contextmanager
def untuned(adapter: Adapter | None) -> Iterator[None]:
    """Within, the network is the one without its adapter, if it has one, and no graph is built."""
    import torch

    with torch.no_grad(), adapter.disabled() if adapter is not None else nullcontext():
        yield


class Adapter:
    """The LoRA matrices inside a frozen network."""

    def __init__(
        self,
        network: nn.Module,
        rank: int,
        alpha: float,
        targets: Sequence[str] = TARGETS,
        seed: int = 0,
        fewest: str = "blocks",
    ):
        """Freezes the network and puts a zero-effect adapter in, float32 whatever the type of the network.

        Args:
            network: Changed in place. On the CPU, best: move it afterwards, and the adapter moves along.
            rank: Rank of each update.
            alpha: The update is scaled by alpha / rank.
            targets: Ends of the names of the layers that are adapted.
            seed: Of the random half of the initial matrices; the other half is zero.
            fewest: What the model's option `layers` calls the fewest that can be adapted; for advice.
        """
        import torch
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        from align3d.models.nets.wide_linear import WideLinear

        widest = max((size for weight in network.parameters() for size in weight.shape), default=1)
        if not 1 <= rank <= widest:  # more than that has no effect, and a huge one takes all memory
            raise ValueError(f"adapter rank must be in 1 to {widest}, the widest layer of the model; got {rank}")
        network.requires_grad_(False)
        self.config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
            inject_adapter_in_model(self.config, network)
        self.network, self.fewest = network, fewest
        self.layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]  # found once: there are thousands
        for parameter in self.parameters():  # peft gives them the type of the layers, too coarse for small updates
            parameter.data = parameter.data.float()
        for layer in self.layers:
            first = layer.lora_A["default"]
            if type(first) is torch.nn.Linear:
                first.__class__, layer.cast_input_dtype_enabled = WideLinear, False

    def parameters(self) -> list[nn.Parameter]:
        """The trainable matrices, in the order of the network."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable matrices with their names in the network."""
        return ((name, p) for name, p in self.network.named_parameters() if "lora_" in name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within, the network is the one without adapter; may be nested."""
        before = [layer.disable_adapters for layer in self.layers]
        for layer in self.layers:  # enable_adapters(False) also freezes the matrices, which must stay trainable
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, was in zip(self.layers, before, strict=True):
                layer._disable_adapters = was

    def save(self, folder: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json, PEFT's own layout."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save

        from align3d.files import atomic_write

        tensors = {f"{PEFT_PREFIX}{k}": v for k, v in get_peft_model_state_dict(self.network).items()}
        folder.mkdir(parents=True, exist_ok=True)
        data = save({k: v.contiguous() for k, v in tensors.items()})  # its save_file would let nobody else read it
        atomic_write(folder / PEFT, data)
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in self.config.to_dict().items()}
        atomic_write(folder / PEFT_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")

    def load(self, folder: Path) -> None:
        """Read matrices that fit exactly.

        Args:
            folder: A run's folder, or an adapter's, in PEFT's layout or the published one.

        Raises:
            FileNotFoundError: If there is no adapter.
            ValueError: If a file is damaged, or names, shapes or alpha are others.
        """
        import torch

        lora = read(folder)
        own = {f"{PEFT_PREFIX}{name.replace('.default', '')}": p for name, p in self.named_parameters()}
        wrong = sorted(own.keys() ^ lora.tensors.keys())
        both = sorted(own.keys() & lora.tensors.keys())
        wrong += [f"{k} {tuple(lora.tensors[k].shape)}" for k in both if own[k].shape != lora.tensors[k].shape]
        if wrong:
            raise ValueError(
                f"{lora.path} does not fit this model at rank {self.config.r}: {len(wrong)} names or shapes differ, "
                f"first {wrong[0]}; {self.advice(lora)}"
            )
        if lora.alpha != self.config.lora_alpha:  # the shapes would not show it, but the update would have another size
            raise ValueError(
                f"the adapter in {folder} was trained with alpha {lora.alpha}, the model has {self.config.lora_alpha}; "
                f"use --model.alpha {lora.alpha}"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(lora.tensors[name])

    def advice(self, lora: LoraFile) -> str:
        """What to do about an adapter that does not fit: the options that it was trained with, as far as it shows."""
        flags = [] if lora.rank == self.config.r else [f"--model.rank {lora.rank}"]
        own = {name.rpartition(".lora_")[0] for name, _ in self.named_parameters()}
        more, fewer = set(lora.modules) - own, own - set(lora.modules)
        if more and not fewer and more <= {name for name, _ in self.network.named_modules()}:
            flags.append("--model.layers all")
        elif fewer and not more:
            flags.append(f"--model.layers {self.fewest}")
        return f"try {' '.join(flags)}" if flags else "use the model and rank that it was trained with"
