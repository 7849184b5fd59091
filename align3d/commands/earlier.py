"""What the files of an earlier run say of its parts, as defaults for a command that goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align3d.log import read_json
from align3d.models.lora_files import adapter_folder, settings
from align3d.runs import Run

FOLDERS = ("adapter", "adapter-ema", "best")  # adapters in a run's folder


def model_of(path: Path) -> dict[str, Any]:
    """Options of the model that an adapter was trained with, and its name under "name", as far as the files say.

    Args:
        path: A run's folder, or the folder of an adapter.

    Raises:
        FileNotFoundError: If there is no adapter.
        ValueError: If the run's config.json is damaged: defaults might not be the options that it was trained with.
    """
    bare = (path / "checkpoints").is_dir() and not (path / "adapter").is_dir()  # a run of a model that saves no adapter
    folder = path / "adapter" if bare else adapter_folder(path)
    config = folder.parent / "config.json"
    of_run = folder.name in FOLDERS and config.is_file()  # else it is somebody else's file, or none
    recorded = Run(config=read_json(config)).settings.get("model") if of_run else None
    options = dict(recorded) if isinstance(recorded, dict) else {}
    options.pop("adapter", None)  # what that run started from
    try:
        rank, alpha = settings(folder)
    except (OSError, ValueError):  # the model says so when it loads the adapter
        return options
    return options | {name: value for name, value in (("rank", rank), ("alpha", alpha)) if value is not None}
