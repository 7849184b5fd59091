"""`align3d embed`: encode prompts once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.commands.inputs import choose_device, choose_prompts, load_model, read_prompts

if TYPE_CHECKING:
    from align3d.models.text import TextSource


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Encode prompts once, so that training needs no text encoder: a prompt cache.

    The same command again goes on where the first one ended, whatever ended it. The empty prompt is always there.
    Under torchrun, the processes share the prompts. docs/prompts.md says more.
    """

    prompts: Path  # a prompt per line; train, heldout = the embedded generator's, or the model's
    out: Path  # the cache's folder; new, or with an earlier start of the same
    keep_above: float | None = None  # encode only prompts with a reward greater than this in --rewards
    rewards: Path | None = None  # their rewards: .npy, .jsonl, or table.json of evaluate; see docs/prompts.md
    precision: Literal["bfloat16", "float32"] | None = None  # of encoder and cache; none = the model's
    offload: bool = False  # keep the encoder on the CPU and move it to the GPU for each batch
    batch_size: int = 32  # prompts at a time; more needs more memory
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one

    parts: ClassVar[dict[str, str | None]] = {"model": "embedded"}
    shorthands: ClassVar[dict[str, str]] = {"--weights": "--model.weights"}
    many_processes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


def run(options: Embed, *, names: dict[str, str], model: Any) -> None:
    """Write the cache, or what is missing of it."""
    from align3d.embedding import embed
    from align3d.models.text import check_lengths

    prompts = choose_prompts(read_prompts(options.prompts, model), options.keep_above, options.rewards, "--rewards")
    check_lengths(prompts)
    source = text_source(model, names["model"], options)
    cache = embed(
        source,
        prompts,
        options.out,
        precision=options.precision,
        batch_size=options.batch_size,
        progress=lambda done, total: print(f"{done}/{total} prompts", flush=True),
    )
    print(f"written: {options.out}, {len(cache)} prompts with the empty one", flush=True)


def text_source(model: Any, name: str, options: Embed) -> TextSource:
    """The text encoder of a model's options, without its other networks where that is possible.

    Raises:
        ValueError: If it has none.
    """
    from align3d.registry import blame

    if callable(getattr(model, "text_source", None)):
        device = choose_device(options.device)
        with blame(f"loading the text encoder of the model {name}", model):
            precision = options.precision or getattr(model, "text_precision", "bfloat16")
            return model.text_source(device=device, precision=precision, offload=options.offload)
    source = getattr(load_model(model, name, options.device), "text", None)
    if not callable(source):
        raise ValueError(f"model {name!r} has no text encoder, neither text_source() nor what it loads has `text`")
    return source
