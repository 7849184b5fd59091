"""Names of the classes that a GaussianCube knows, in a JSON file: {"mug": 3, ...}."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align3d.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MOST = 1 << 20  # bytes of a file


def read_classes(path: Path | None, number: int) -> Mapping[str, int] | None:
    """Name -> number; None where there is no file.

    Args:
        path: The file.
        number: How many classes the network knows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the network knows no classes, or the file names others.
    """
    from align3d.models.gaussiancube import NOTHING, is_nothing

    if path is None:
        return None
    if not number:
        raise ValueError("model.classes is for models that were trained with classes; leave it out")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; model.classes takes a JSON file, name -> number")
    found = read_json(path, MOST)
    wrong = [name for name, label in found.items() if type(label) is not int or not 0 <= label < number]
    if wrong or not found:
        said = f"{wrong[0]!r} is {found[wrong[0]]!r}" if wrong else "it is empty"
        raise ValueError(f"{path}: {said}; classes of this model are numbers 0 to {number - 1}")
    if unheard := [name for name in found if name.isdecimal() or is_nothing(name) or name != name.strip()]:
        raise ValueError(
            f"{path}: a class cannot be called {unheard[0]!r}: as a prompt, a number is that of a class, {NOTHING} or "
            "nothing is of none, and blanks at its ends are dropped"
        )
    return found
