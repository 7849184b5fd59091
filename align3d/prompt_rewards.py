"""Choosing prompts by their rewards, which stand in a file: what `--keep-above` does."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from align3d.files import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_BYTES = 1 << 28  # of a file of rewards


def keep_above(prompts: Sequence[str], rewards: Path, threshold: float) -> list[str]:
    """The prompts whose reward is greater than a threshold, in their order.

    Args:
        prompts: All of them.
        rewards: A .npy file with one number per prompt, in their order; a .jsonl file with rows that have "prompt" and
            "reward", in any order (of several of one prompt, their mean counts), or samples.jsonl of `align3d sample`
            with one reward; or table.json of `align3d evaluate` with one reward, of which the base model's count.
        threshold: Prompts at it are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not fit the prompts, has a number that is not finite, or nothing is left.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"--keep-above must be a number, got {threshold}")
    if not rewards.is_file():
        raise FileNotFoundError(f"no file of rewards {rewards}; give a .npy or .jsonl file with a number per prompt")
    if rewards.suffix not in (".npy", ".jsonl", ".json"):
        raise ValueError(f"{rewards} must be a .npy or .jsonl file, or table.json of align3d evaluate")
    if rewards.stat().st_size > MAX_BYTES:
        raise ValueError(f"{rewards} has {rewards.stat().st_size} bytes, at most {MAX_BYTES} are read")
    if rewards.suffix == ".npy":
        values = _npy(rewards, len(prompts))
    else:
        found = (_jsonl if rewards.suffix == ".jsonl" else _table)(rewards)
        missing = [prompt for prompt in prompts if prompt not in found]
        if missing:
            raise ValueError(
                f"{rewards} has no reward for {len(missing)} of {len(prompts)} prompts, first {missing[0]!r}"
            )
        values = [math.fsum(found[prompt]) / len(found[prompt]) for prompt in prompts]
    bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        raise ValueError(f"{rewards} has {values[bad]} for prompt {prompts[bad]!r}, expected a finite number")
    kept = [prompt for prompt, value in zip(prompts, values, strict=True) if value > threshold]
    if not kept:
        raise ValueError(f"no prompt has a reward above {threshold}; the highest in {rewards} is {max(values):.6g}")
    return kept


def _npy(path: Path, count: int) -> list[float]:
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is damaged, or no .npy file of numbers ({error})") from None
    if not isinstance(found, np.ndarray) or found.shape != (count,) or found.dtype.kind not in "fiu":
        got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"{path} must have one number for each of {count} prompts, in their order, got {got}")
    return [float(value) for value in found]


def _jsonl(path: Path) -> dict[str, list[float]]:
    """Prompt -> the numbers of its rows."""
    found: dict[str, list[float]] = {}
    for number, line in enumerate(read_lines(path, MAX_BYTES), start=1):
        if line.strip():
            prompt, value = _row(line, f"{path}, line {number}")
            found.setdefault(prompt, []).append(value)
    return found


def _table(path: Path) -> dict[str, list[float]]:
    """Prompt -> the base model's reward."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        base = next(result["prompts"] for result in table["results"] if result["name"] == "base")
        names = [name for name in base if name != "diversity"]
        if len(names) != 1:
            raise ValueError(f"it has {len(names)} rewards ({', '.join(map(str, names))}), expected one")
        return {prompt: [float(value)] for prompt, value in zip(table["prompts"], base[names[0]], strict=True)}
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"{path} is no table.json of align3d evaluate with one reward ({error!r:.100})") from None


def _row(line: str, where: str) -> tuple[str, float]:
    try:
        row = json.loads(line)
        prompt, value = row["prompt"], row.get("reward")
        if value is None and len(row["rewards"]) == 1:
            value = next(iter(row["rewards"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        prompt = value = None
    if not isinstance(prompt, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{where}: expected {{"prompt": text, "reward": number}}, or "rewards" with one number')
    return prompt, float(value)
