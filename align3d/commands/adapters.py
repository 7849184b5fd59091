"""Tuned models to be measured: which adapter is meant, whether several belong together, one model for all of them."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.commands.earlier import FOLDERS, model_of
from align3d.commands.inputs import load_model
from align3d.log import read_json
from align3d.models.lora_files import adapter_file, adapter_folder
from align3d.runs import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from align3d.types import BaseModel

NAME = re.compile(r"[\w+-][\w.+ -]{0,59}")  # becomes a folder's name
TAKEN = ("base", "reference")  # names of the sets of the base model
OF_ADAPTER = ("adapter", "rank", "alpha")  # options of a model that change nothing of the base


@dataclass(frozen=True)
class Tuned:
    """An adapter and where it came from."""

    name: str
    folder: Path  # of a checkpoint or of an adapter's files
    step: int | None  # of the checkpoint; None: the folder holds an adapter's files
    model: dict[str, Any] = field(default_factory=dict)  # options that it was trained with, as far as they are known
    run: Run = field(default_factory=Run)  # its configuration; empty if it is not from a run

    @property
    def weights(self) -> Path:
        """The file of its tensors."""
        file = adapter_file(self.folder) if self.step is None else None
        return file if file is not None else self.folder / "state.safetensors"

    @property
    def home(self) -> Path:
        """The folder of the run that it is a checkpoint or the newest adapter of; of any other adapter, its own."""
        if self.step is not None:
            return self.folder.parent.parent
        return self.folder.parent if self.folder.name == "adapter" else self.folder

    @property
    def trained_on(self) -> str | None:
        """The reward that it was trained with, if that is known."""
        return self.run.part("reward")

    def digest(self) -> str:
        """What tells its weights from others."""
        with self.weights.open("rb") as handle:
            return hashlib.file_digest(handle, "blake2b").hexdigest()[:32]


def split(text: str) -> tuple[str | None, Path, int | None]:
    """NAME=RUN@STEP in its parts; name and step may be missing. What exists as it stands is a path as a whole."""
    name, path, step = None, text, None
    if "=" in text and not Path(text).exists():
        name, _, path = text.partition("=")
    if not Path(path).exists() and (found := re.fullmatch(r"(.+)@(\d+)", path)):
        path, step = found[1], int(found[2])
    return name, Path(path), step


def find(text: str) -> Tuned:
    """The adapter that NAME=RUN[@STEP] means: a run's newest, that of an update, or the one in an adapter's folder.

    Raises:
        FileNotFoundError: If there is no such folder, or no adapter in it.
        ValueError: If the name will not do, or the run has no such checkpoint.
    """
    from align3d import checkpoint

    name, path, step = split(text)
    name = name if name is not None else (path.parent.name if path.name in FOLDERS else path.resolve().name)
    if not NAME.fullmatch(name) or name in TAKEN:
        raise ValueError(
            f"a model cannot be called {name!r}; give NAME=RUN with another name, of letters, digits, spaces and .+-_"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"no run {path}; give the folder of a run or of an adapter, RUN@STEP for a checkpoint")
    steps = {checkpoint.step_of(p): p for p in checkpoint.steps(path)}
    bare = steps and not (path / "adapter").is_dir()  # of a model that saves no adapter
    if step is None and not bare:
        folder = adapter_folder(path)
        return Tuned(name, folder, None, model_of(path), recorded(folder.parent if folder.name in FOLDERS else folder))
    step = max(steps, default=None) if step is None else step
    if step not in steps:
        have = ", ".join(map(str, sorted(steps))) or "none"
        raise ValueError(f"{path} has no checkpoint of update {step}, only of {have}; train with --loop.keep 0")
    return at(path, name, step)


def at(path: Path, name: str, step: int) -> Tuned:
    """A checkpoint of a run."""
    return Tuned(name, path / "checkpoints" / f"step-{step:06}", step, model_of(path), recorded(path))


def recorded(path: Path) -> Run:
    """The configuration in a folder, without the rest of the run; empty if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    file = path / "config.json"
    return Run(config=read_json(file)) if file.is_file() else Run()


def check_models(tuned: Sequence[Tuned], model: str) -> None:
    """Refuse adapters of different models, or of a model in other settings: what differs would not be the training.

    Args:
        tuned: Those to compare; what is not known of one is not compared.
        model: The name of the model to load.

    Raises:
        ValueError: Names two of them and what differs.
    """
    first: Tuned | None = None
    for one in tuned:
        options = {key: value for key, value in one.model.items() if key not in OF_ADAPTER}
        known = options.get("name")
        if known is None:
            continue
        if known != model:
            raise ValueError(f"{one.name} is of the model {known!r}, got --model {model}; compare runs of one model")
        if first is None:
            first = one
            continue
        other = {key: value for key, value in first.model.items() if key not in OF_ADAPTER}
        differ = [key for key in sorted(options.keys() | other.keys()) if options.get(key) != other.get(key)]
        if differ:
            said = ", ".join(f"model.{key} {other.get(key)!r} and {options.get(key)!r}" for key in differ)
            raise ValueError(f"{first.name} and {one.name} were trained with different models: {said}; compare others")


class Models:
    """One model that is loaded when it is first needed, with one adapter after another in it.

    Args:
        options: The model's options.
        name: Its name.
        device: As --device has it.

    Raises:
        ValueError: If the options have an adapter of their own.
    """

    def __init__(self, options: Any, name: str, device: str):
        if getattr(options, "adapter", None) is not None:
            raise ValueError(f"got --model.adapter {options.adapter}; give the adapter as a run, beside its base")
        self.options, self.name, self.device = options, name, device
        self.loaded: tuple[Any, BaseModel] | None = None

    def get(self, options: Any) -> BaseModel:
        """The model with these options, the one that is there if they are the same."""
        if self.loaded is None or self.loaded[0] != options:
            self.loaded = None  # first, so that two are never in memory
            self.loaded = (options, load_model(options, self.name, self.device))
        return self.loaded[1]

    @contextmanager
    def base(self) -> Iterator[BaseModel]:
        """The model as it was before any training."""
        model = self.loaded[1] if self.loaded is not None else self.get(self.options)
        with model.reference():
            yield model

    @contextmanager
    def tuned(self, one: Tuned) -> Iterator[BaseModel]:
        """The model with an adapter.

        Raises:
            ValueError: If the adapter is damaged or of another model.
        """
        own = {f.name for f in fields(self.options)} if is_dataclass(self.options) else set()
        told = {key: one.model[key] for key in ("rank", "alpha") if key in own and key in one.model}
        options = replace(self.options, **told) if told else self.options
        if one.step is None and "adapter" in own and not self.can_read(options):
            options = replace(options, adapter=one.folder)
        model = self.get(options)
        if one.step is not None:
            load_checkpoint(one.folder, model)
        elif self.can_read(options):
            model.adapter.load(one.folder)
        elif getattr(options, "adapter", None) is None:
            raise ValueError(f"model {self.name!r} reads no adapter from {one.folder}; give a checkpoint, RUN@STEP")
        yield model

    def can_read(self, options: Any) -> bool:
        """Whether the model's adapter can be read into it as it is, without loading the model anew."""
        return callable(getattr(self.get(options).adapter, "load", None))


def load_checkpoint(folder: Path, model: BaseModel) -> None:
    """Take over the adapter of a checkpoint, and nothing else of it, in place.

    Raises:
        ValueError: If the checkpoint is damaged, not finite, or of another model; names the file.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from align3d import checkpoint

    _, file = checkpoint.verified(folder)
    trainable = {f"adapter/{name}": p for name, p in model.adapter.named_parameters() if p.requires_grad}
    try:
        with safe_open(file, framework="pt") as content:
            names = [name for name in content.keys() if name.startswith("adapter/")]  # noqa: SIM118
            have = {name: tuple(content.get_slice(name).get_shape()) for name in names}
            checkpoint.require_same(file, have, {name: tuple(p.shape) for name, p in trainable.items()})
            tensors = {name: content.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged ({error})") from None
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{file}: {broken[0]} is not finite; take another checkpoint")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[name])
