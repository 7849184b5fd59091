"""Every import of align3d in the tests goes through jaxtyping's hook, with the annotations' names present."""

import importlib
import pkgutil
import typing
from unittest import mock

import pytest


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import the package with TYPE_CHECKING on, so that the shapes in string annotations can be checked."""
    import beartype.claw
    import beartype.door  # noqa: F401
    import jaxtyping  # noqa: F401
    import torch  # noqa: F401

    with mock.patch.object(typing, "TYPE_CHECKING", True):
        import align3d

        for info in pkgutil.walk_packages(align3d.__path__, "align3d."):
            if not info.name.endswith("__main__"):
                importlib.import_module(info.name)
