"""Where published rewards have their files from, for those who do not have them yet."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Sources = Mapping[str, Mapping[str, Sequence[str]]]  # what -> repository -> patterns of its files

GITHUB = "github.com/"  # how a repository begins that is not of the hub
CLIP_FILES = (  # of a CLIP's repository: what is needed of it, and nothing twice
    *("config.json", "preprocessor_config.json", "model.safetensors"),
    *("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
)
TOKENIZER_FILES = CLIP_FILES[3:]


def address(repository: str) -> str:
    """Where a repository of `sources` is."""
    return f"https://{repository}" if repository.startswith(GITHUB) else f"https://huggingface.co/{repository}"


@contextmanager
def files_of(name: str, weights: Path | None, sources: Sources) -> Iterator[Path]:
    """Within, a missing file is an error that says where it is published; gives the folder.

    Args:
        name: Of the reward.
        weights: The folder, if one is given.
        sources: As `align3d download` has them.

    Raises:
        FileNotFoundError: If there is no folder, or what is done within finds none of a file.
    """
    try:
        if weights is None:
            how = f"--reward.weights FOLDER, or {name}(weights=FOLDER)"
            raise FileNotFoundError(f"reward {name} needs the folder of its published files, {how}")
        if not weights.is_dir():
            raise FileNotFoundError(f"{weights} is {'no folder' if weights.exists() else 'missing'}")
        yield weights
    except FileNotFoundError as error:
        wanted = "; ".join(f"{address(repo)}: {', '.join(found)}" for repo, found in sources["weights"].items())
        where = weights if weights is not None else "FOLDER"
        raise FileNotFoundError(
            f"{error}; `align3d download {name} --out {where} --yes` fetches them, or put there by hand {wanted}"
        ) from None
