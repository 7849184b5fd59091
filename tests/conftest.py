"""Every import of align3d in the tests goes through jaxtyping's hook, with the annotations' names present."""

import importlib
import pkgutil
import typing
from unittest import mock

import pytest

# what align3d imports at the top of its modules: these must not see TYPE_CHECKING turned on
LIBRARIES = [
    "torch",
    "beartype.claw",
    "beartype.door",
    "jaxtyping",
    "numpy",
    "PIL.Image",
    "rich.progress",
    "safetensors.torch",
    "tyro",
]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import the package with TYPE_CHECKING on, so that the shapes in string annotations can be checked."""
    for library in LIBRARIES:
        importlib.import_module(library)
    with mock.patch.object(typing, "TYPE_CHECKING", True):
        import align3d

        for info in pkgutil.walk_packages(align3d.__path__, "align3d."):
            # networks import diffusers, which takes seconds: their annotations need no help, and few tests need them
            if not info.name.endswith("__main__") and ".nets" not in info.name:
                importlib.import_module(info.name)
