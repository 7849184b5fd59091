"""What several commands take from the user: prompts, output folders, devices."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.registry import blame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.prompt_lists import PromptList
    from align3d.types import BaseModel, Prior

SHIPPED = Path(__file__).parent.parent / "assets" / "prompts"  # train, heldout, and those of models without texts
MAX_SIZE = 8192  # pixels, side of a picture
MAX_PIXELS = 1 << 28  # of the pictures that are in memory together; 3 bytes each when written, 12 when drawn
MAX_SEED = 2**63 - 1


def read_prompts(path: Path, model: Any = None) -> list[str]:
    """The prompts in a file: a text with one per line, or one of the layouts that `prompt_lists` knows.

    Args:
        path: The file, or "train" or "heldout" for the lists of the embedded generator: held-out prompts combine
            colours and nouns that its training never combined.
        model: Options of the model that they are for. What their `prompt_list()` gives, these names stand for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no UTF-8 text, too large, or has no prompts.
    """
    if str(path) in ("train", "heldout") and not path.is_file() and hasattr(model, "prompt_list"):
        with blame("prompt_list() of the model", model):
            path = model.prompt_list() or path
    return list(read_prompt_list(path).prompts)


def read_prompt_list(path: Path) -> PromptList:
    """The same with categories and numbers, where the file has some."""
    from align3d.prompt_lists import read_list

    shipped = {file.stem: file for file in SHIPPED.glob("*.txt")}
    if not path.is_file():
        if str(path) not in shipped:
            lists = ", ".join(sorted(shipped))
            raise FileNotFoundError(
                f"no prompt file {path}; give a text file with one prompt per line, or one of {lists}"
            )
        path = shipped[str(path)]
    return read_list(path)


def gather(given: Sequence[str], file: Path | None, model: Any = None) -> list[str]:
    """Prompts given one by one, then those of a file, read for the options of a model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no prompt, or an empty one.
    """
    if not given and file is None:
        raise ValueError('no prompts; give --prompt "a red chair" or --prompts FILE')
    if any(not prompt.strip() for prompt in given):
        raise ValueError("got an empty --prompt; give some words")
    from align3d.models.text import check_lengths

    prompts = [*given, *(read_prompts(file, model) if file is not None else [])]
    check_lengths(prompts)
    return prompts


def choose_prompts(prompts: list[str], above: float | None, rewards: Path | None, flag: str) -> list[str]:
    """The prompts whose reward in a file is above a number, as `prompt_rewards.keep_above` has it; all without both.

    Args:
        prompts: All of them, as `read_prompts` gives them.
        above: What --keep-above says.
        rewards: The file that `flag` names.
        flag: The name of the flag.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If only one of the two is given, or the file does not fit.
    """
    if above is None and rewards is None:
        return prompts
    if above is None:
        raise ValueError(f"{flag} says nothing without --keep-above NUMBER; give both, or none")
    if rewards is None:
        remedy = f"give {flag} FILE (docs/prompts.md says how to make one), or --keep-above None to take all prompts"
        raise ValueError(f"--keep-above {above} needs the prompts' rewards: {remedy}")
    from align3d.prompt_rewards import keep_above

    return keep_above(prompts, rewards, above)


def new_folder(out: Path) -> None:
    """Check that a folder to write to is new or empty and can be made; leaves nothing there.

    Raises:
        FileExistsError: If there is something in it.
        ValueError: If it cannot be made or written to.
    """
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty, and nothing is written over; choose another --out")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"cannot write to {out}: {above} is a file; choose another --out")
    try:
        with tempfile.TemporaryDirectory(dir=above, prefix=".align3d-"):  # os.access says yes to root, whatever it is
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {above}: {error.strerror}; choose another --out") from None


def choose_device(name: str) -> str:
    """What torch calls the device: "auto" is the GPU where there is one.

    Raises:
        ValueError: If CUDA is asked for and not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda, but torch sees no CUDA device; use --device cpu or install a CUDA build of torch"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def check_range(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Refuse a number outside [low, high]; NaN is outside.

    Raises:
        ValueError: Names it.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {value}")


def check_pictures(size: int, name: str, number: int) -> None:
    """Refuse pictures that would take more memory than there is; `number` square ones at a time, called `name`.

    Raises:
        ValueError: Names what is too large.
    """
    check_range("size", size, 1, MAX_SIZE)
    if number * size**2 > MAX_PIXELS:
        raise ValueError(
            f"{number} {name} of {size} x {size} pixels are too much at a time: at most {MAX_PIXELS // size**2} {name} "
            f"of that size, or a size of at most {math.isqrt(MAX_PIXELS // number)}"
        )


def load_model(model: Any, name: str, device: str) -> BaseModel:
    """The generator of a model's options, on a device as `--device` names it.

    Raises:
        ValueError: If the device is not there, if its adapter is a run's of another model, whose layers may have the
            same shapes, or if a model of the user's own raises an exception.
    """
    adapter = getattr(model, "adapter", None)
    if isinstance(adapter, Path) and adapter.is_dir():
        from align3d.commands.earlier import model_of

        known = model_of(adapter).get("name", name)
        if known != name:
            raise ValueError(f"{adapter} is an adapter of the model {known!r}, got --model {name}; use its own model")
    return load("model", model, name, device)


def load_prior(prior: Any, name: str, device: str) -> Prior:
    """The prior of some options; as `load_model`."""
    return load("prior", prior, name, device)


def load(kind: str, part: Any, name: str, device: str) -> Any:
    """What a part's options load; `kind` and `name` are for errors."""
    device = choose_device(device)
    with blame(f"loading the {kind} {name}", part):
        return part.load(device=device)


def slug(text: str) -> str:
    """A short piece of a file name that recalls a prompt."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:40].strip("-") or "prompt"
