"""A field in one safetensors file, with its options as JSON in the file's metadata; and as a mesh.

Files are taken for hostile: options have limits, and names and shapes are compared before memory of their size is asked
for.
"""

from __future__ import annotations

import importlib
import json
import sys
import typing
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from align3d.files import atomic_write
from align3d.scenes.nerf.nerf import Nerf
from align3d.scenes.nerf.options import NerfOptions
from align3d.scenes.nerf.volume import SCALE
from align3d.weights import NotItsWeights, Weights, fill, require_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from align3d.scenes.mesh import Mesh

KEY = "align3d.nerf"  # of the options, in the metadata
MAX_OPTIONS = 1 << 16  # characters
SOLID = 25.0  # most density of a surface, per unit of the field, as published
COARSE = 32  # cells along a side of the first look at where the surface is
THIN = 1.0  # densities below this do not count for where the surface is
FORMATS = ("mesh.glb", "mesh.obj")
DRESS = ("mesh.mtl", "mesh.png")  # of a mesh with a picture on it
LACKING = "{} is not installed; pip install 'align3d[mesh]', or give --scene.{} 0"


def write_nerf(path: Path, nerf: Nerf) -> None:
    """Write all of a field: `read_nerf` gives it back to the bit.

    Raises:
        ValueError: If a value is not finite, or the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: p.detach().cpu().contiguous() for name, p in nerf.named_parameters()}
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(f"cannot write {path}: values of {bad[0]} are not finite; the scene is broken")
    options = {f: v for f, v in asdict(nerf.options).items() if f in NerfOptions.__dataclass_fields__}
    # One entry: safetensors writes several in an order that changes from file to file.
    atomic_write(path, save(tensors, metadata={KEY: json.dumps(options)}))


def write_only(path: Path, nerf: Nerf) -> None:
    """`write_nerf`; then there are no meshes beside it any more: they were of what was there before."""
    write_nerf(path, nerf)
    for name in (*FORMATS, *DRESS):
        path.with_name(name).unlink(missing_ok=True)


def read_nerf(path: Path) -> Nerf:
    """The field of a file, on the CPU.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is damaged, or holds something else; one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no scene file {path}; give a scene.safetensors, such as `align3d optimize` writes")
    with Weights({"": path}) as weights:
        try:
            options = rebuilt(NerfOptions, json.loads(described(path)))
            with torch.device("meta"):
                nerf = Nerf(options)
            require_keys(nerf, weights.shapes)
        except NotItsWeights as error:
            raise ValueError(f"{path} is damaged, its tensors do not fit its options: {error}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} holds no field that can be read ({error})") from None
        fill(nerf, weights, torch.float32)
    return nerf


def read_field(path: Path) -> Any:
    """The scene of a file, on the CPU; errors as of `read_nerf`."""
    return read_nerf(path).scene()


def described(path: Path) -> str:
    """The options in a file that has been opened before.

    Raises:
        ValueError: If there are none, or too many.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(KEY)
    if text is None or len(text) > MAX_OPTIONS:
        raise ValueError(f"its metadata has no {KEY}")
    return text


def rebuilt(kind: type, values: Any) -> Any:
    """Options from what JSON holds, which has to have their fields and types.

    Raises:
        ValueError: Names what does not fit.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ValueError(f"its options are not those of {kind.__name__}")
    found = {}
    for name, hint in hints.items():
        value = values[name]
        if is_dataclass(hint):
            found[name] = rebuilt(hint, value)
            continue
        many = typing.get_origin(hint) is tuple
        kinds = typing.get_args(hint) if many else (hint,)
        items = value if many and isinstance(value, list) else [value]
        if len(items) != len(kinds) or not all(map(fits, items, kinds)):
            raise ValueError(f"its option {name} is {value!r}")
        found[name] = tuple(items) if many else value
    return kind(**found)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type: int, float, or one of some texts."""
    if typing.get_origin(hint) is typing.Literal:
        return type(value) is str and value in typing.get_args(hint)
    return type(value) is int or (hint is float and type(value) is float)


def write_meshes(path: Path, nerf: Nerf) -> None:
    """Write `meshes` into the folder of `path`, each whole or not at all."""
    for name, write in meshes(nerf).items():
        write(path.with_name(name))


def meshes(nerf: Nerf) -> dict[str, Callable[[Path], None]]:
    """The surface as files, by name; none, with a warning, where there is no surface or the packages are missing.

    With a picture on it, or with colours at its vertices: if there is to be none, or xatlas is missing.
    """
    from align3d.scenes import texture
    from align3d.scenes.mesh import write_mesh

    try:
        importlib.import_module("trimesh")  # before the work; it writes
        mesh = surface(nerf, nerf.mesh)
    except ModuleNotFoundError as error:
        print(f"align3d: warning: no mesh is written: {LACKING.format(error.name, 'mesh')}", file=sys.stderr)
        return {}
    if mesh is None:
        print("align3d: warning: no mesh is written: the field has no surface yet", file=sys.stderr)
        return {}
    if nerf.texture:
        try:
            packed = texture.files(texture.textured(mesh, colors(nerf), nerf.texture))
            return {name: lambda path, data=data: atomic_write(path, data) for name, data in packed.items()}
        except ModuleNotFoundError as error:
            lacking = LACKING.format(error.name, "texture")
            print(f"align3d: warning: the mesh has colours at its vertices alone: {lacking}", file=sys.stderr)
    return {name: lambda path: write_mesh(path, mesh) for name in FORMATS}


def surface(nerf: Nerf, cells: int, level: float | None = None) -> Mesh | None:
    """Where the density is at a level, with the field's colours; None if that is nowhere.

    Args:
        nerf: The field.
        cells: Along a side of the box that the surface is in, the second time it is looked for.
        level: Density per unit of the field; None: the mean of what is not thin, at most 25.
    """
    from align3d.scenes.mesh import extract

    device = nerf.taken.device

    def density(x: torch.Tensor) -> torch.Tensor:
        return nerf.field.density((SCALE * x).to(device))[0].cpu()

    return extract(density, colors(nerf), COARSE, cells, level, most=SOLID, thin=THIN)


def colors(nerf: Nerf) -> Callable[[torch.Tensor], torch.Tensor]:
    """The field's colours of points in scene units, on the CPU."""

    def color(x: torch.Tensor) -> torch.Tensor:
        x = (SCALE * x).to(nerf.taken.device)
        return nerf.field.color(nerf.field.density(x)[1]).cpu()

    return color
