"""Networks from folders in `from_pretrained` layout: config.json, and weights in one safetensors file or in shards.

Files are taken for hostile: names and shapes are compared with those of the network before memory of their size is
asked for, and a key too many or too few is an error.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align3d.files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model"  # name of the files of a diffusers network
MAX_SIDE, MAX_SIZE = 1024, 1 << 20  # of a picture, of anything else in a network's config.json; more is damage
MAX_INDEX = 1 << 25  # bytes of a list of shards
NAMED = 3  # wrong keys that an error names
KINDS = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}  # of numbers

_patching = threading.RLock()  # whoever has it may change how modules take parameters


class NotItsWeights(Exception):
    """Names or shapes are not those of the network."""


@dataclass
class Weights:
    """The tensors of one safetensors file or of several shards, unread until asked for; a context."""

    paths: dict[str, Path]  # tensor -> the file that it should be in
    held: Mapping[str, Tensor] | None = None  # those that are read already, of a file in another format
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # those that are there
    _open: dict[str, Any] = field(default_factory=dict, repr=False)  # tensor -> its open file
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def find(cls, folder: Path, name: str = WEIGHTS) -> Weights:
        """Those of a folder: NAME.safetensors, the shards of NAME.safetensors.index.json, or either in 16 bits (fp16).

        Raises:
            FileNotFoundError: If there are none, or a shard is missing.
            ValueError: If the index is damaged.
        """
        file, half = folder / f"{name}.safetensors", folder / f"{name}.fp16.safetensors"
        index, half_index = folder / f"{file.name}.index.json", folder / f"{file.name}.index.fp16.json"
        if not (file.is_file() or index.is_file()) and (half.is_file() or half_index.is_file()):
            file, index = half, half_index
        if file.is_file() or not index.is_file():
            require_file(file)
            return cls({"": file})
        try:
            names = {key: str(value) for key, value in read_json(index, MAX_INDEX)["weight_map"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is damaged ({error}); copy it again") from error
        for shard in set(names.values()):
            if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
                raise ValueError(f"{index} is damaged, it names the file {shard!r}; copy it again")
            require_file(folder / shard)
        return cls({key: folder / shard for key, shard in names.items()})

    def __enter__(self) -> Weights:
        """Open the files and learn the shapes.

        Raises:
            ValueError: If a file is damaged, or does not hold what the index says.
        """
        from safetensors import SafetensorError, safe_open

        if self.held is not None:
            self.shapes = {key: tuple(value.shape) for key, value in self.held.items()}
            return self
        for path in dict.fromkeys(self.paths.values()):
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                for key in file.keys():  # noqa: SIM118
                    self.shapes[key] = tuple(file.get_slice(key).get_shape())
                    self._open[key] = file
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}); copy it again") from error
        lost = [key for key in self.paths if key and key not in self.shapes]
        if lost:
            raise ValueError(f"{self.paths[lost[0]]} is damaged, it lacks {lost[0]}; copy it again")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def tensor(self, key: str) -> Tensor:
        """One tensor, in the type of its file.

        Raises:
            ValueError: If it has NaN or infinity in it or numbers of 8 bits or less, or the file is damaged.
        """
        from safetensors import SafetensorError

        path = self.paths.get(key) or next(iter(self.paths.values()))
        try:
            value = self._open[key].get_tensor(key) if self.held is None else self.held[key].contiguous()
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy it again") from error
        require_numbers(path, key, value)
        return value


def require_numbers(path: Path, key: str, value: Tensor) -> None:
    """Refuse a tensor of a file that has NaN or infinity in it, or numbers of a type that networks are not kept in.

    Raises:
        ValueError: Names the tensor.
    """
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in KINDS:
        raise ValueError(f"{path}: {key} has numbers of type {kind}; float32, float16 or bfloat16 can be read")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"{path} is damaged, {key} has NaN or infinity in it; copy it again")


def require_file(path: Path) -> None:
    """Refuse a path where there is no file.

    Raises:
        FileNotFoundError: Says what a model's folder should hold.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is {'no file' if path.exists() else 'missing'}; the folder of a network is needed as it was "
            "published, with all its files"
        )


def load_part(
    network_class: type,
    folder: Path,
    dtype: torch.dtype | None = None,
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Any:
    """One network with an exact match of names and shapes; config keys that the class does not know are ignored.

    Args:
        network_class: With `from_config(values)`, as diffusers has it.
        folder: With config.json and the weights.
        dtype: Of its parameters; None takes those that the class gives them.
        config: From what config.json holds to the arguments of the class; others than those are ignored.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or the names or shapes are not the network's; before memory of their size is
            asked for.
    """
    with _unread(network_class, folder, config) as (network, weights):
        fill(network, weights, dtype)
    return network


def check_part(
    network_class: type, folder: Path, config: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> dict[str, Any]:
    """What config.json holds, if `load_part` would find the network's names and shapes there; no weights are read.

    Arguments and errors are those of `load_part`.
    """
    with _unread(network_class, folder, config) as (network, _):
        return dict(network.config)


@contextmanager
def _unread(network_class: type, folder: Path, config: Callable[..., dict[str, Any]]) -> Iterator[tuple[Any, Weights]]:
    """A network without memory for its parameters, and its weights, open; errors are told as `load_part` says."""
    file = folder / "config.json"
    require_file(file)
    weights = Weights.find(folder)
    try:
        values = read_json(file)
        with weights:
            yield build(network_class, config(values), weights.shapes), weights
    except NotItsWeights as error:
        file = next(iter(weights.paths.values()))
        raise ValueError(f"{file} does not fit {network_class.__name__}: {error}") from None
    except (ValueError, RecursionError) as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder} is damaged ({error}); copy it again") from error


def fill(
    network: nn.Module,
    weights: Weights,
    dtype: torch.dtype | None = None,
    prefix: str = "",
    places: Mapping[str, str] | None = None,
) -> None:
    """Give a network its tensors, one after the other.

    Args:
        network: As `build` gives it.
        weights: Open, with all of them.
        dtype: Of its parameters; None takes those that they have.
        prefix: What each name has before it in the files.
        places: Name -> name in the files, where they differ otherwise; one that several have is read once.

    Raises:
        ValueError: If one is damaged, or holds integers where the network has real numbers.
    """
    tensors, read = {}, {}
    for key, like in network.state_dict().items():
        kind = dtype if dtype is not None and like.is_floating_point() else like.dtype
        place = prefix + key if places is None else places[key]
        if (place, kind) not in read:
            found = weights.tensor(place)
            if kind.is_floating_point and not found.is_floating_point():
                raise ValueError(f"{place} holds {str(found.dtype).removeprefix('torch.')}, expected real numbers")
            read[place, kind] = found.to(kind)
        tensors[key] = read[place, kind]
    network.load_state_dict(tensors, assign=True)


def build(network_class: type, values: dict[str, Any], have: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A network as its configuration has it, without memory for its parameters, if its tensors have the given shapes.

    Raises:
        NotItsWeights: If they have others.
        ValueError: If it cannot be built.
    """
    import inspect

    import torch

    known = inspect.signature(network_class.__init__).parameters
    values = {key: value for key, value in values.items() if key in known}
    for key, value in values.items():
        for size in value if isinstance(value, list) else [value]:
            most = len(have) if "layers" in key else MAX_SIDE if key == "sample_size" else MAX_SIZE
            if isinstance(size, (int, float)) and not 0 <= size <= most:
                raise ValueError(f"config.json has {key} {size}, expected 0 to {most}")
    try:
        with torch.random.fork_rng(devices=[]):  # initial values would come from the global generator
            with torch.device("meta"):  # no memory, so far
                require_keys(network_class.from_config(values), have)
            with parameters_on_meta():
                return network_class.from_config(values)
    except NotItsWeights:
        raise
    except Exception as error:  # whatever the constructor makes of values that it was not written for
        raise ValueError(f"config.json makes no network: {error or type(error).__name__}") from error


def require_keys(network: nn.Module, have: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
    """Compare a network's tensors with those that are there under a prefix.

    Raises:
        NotItsWeights: Says how many differ, and names the first.
    """
    own = {prefix + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = sorted(own.keys() - have.keys())
    unknown = sorted(key for key in have.keys() - own.keys() if key.startswith(prefix))
    other = sorted(f"{key} {list(have[key])}" for key in own.keys() & have.keys() if own[key] != have[key])
    parts = [("missing", missing), ("unknown", unknown), ("of another shape", other)]
    said = [f"{len(keys)} {what}, such as {', '.join(keys[:NAMED])}" for what, keys in parts if keys]
    if said:
        raise NotItsWeights("; ".join(said))


def assign(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter a value that may have another shape; whoever holds the parameter holds it still."""
    import torch

    with torch.no_grad():
        if value.shape == parameter.shape:
            parameter.copy_(value)
        else:
            parameter.data = value.to(parameter, copy=True)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within, this thread's new modules have parameters without memory; buffers, which files may lack, are real.

    One thread at a time; those that come meanwhile wait.
    """
    from torch import nn

    with _patching:
        original, owner = nn.Module.register_parameter, threading.get_ident()

        def register(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            original(self, name, parameter)
            if parameter is not None and not parameter.is_meta and threading.get_ident() == owner:
                self._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

        nn.Module.register_parameter = register
        try:
            yield
        finally:
            nn.Module.register_parameter = original
