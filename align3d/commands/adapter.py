"""`align3d adapter`: an adapter copied into another layout."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class AdapterCommand:
    """Copy a LoRA adapter into PEFT's layout, or into that of the public Nabla-R2D3 code."""

    adapter: Annotated[Path, tyro.conf.Positional]  # a run's folder, or one with an adapter's files in either layout
    layout: Literal["peft", "published"] = "peft"  # peft = adapter_model.safetensors; published = unet. keys, alpha 8
    out: Path  # folder to write to; new or empty


def run(options: AdapterCommand) -> None:
    """Read, write, say what it is."""
    from align3d.commands.inputs import new_folder
    from align3d.models.lora_files import PUBLISHED_RANK, read, write

    lora = read(options.adapter)
    new_folder(options.out)
    alpha = write(lora, options.out, options.layout)
    print(f"{options.out}  rank {lora.rank}, alpha {alpha:g}, {len(lora.modules)} layers")
    if options.layout == "published" and lora.rank != PUBLISHED_RANK:
        print(
            f"align3d: warning: the public code's inference reads rank {PUBLISHED_RANK} alone, and this adapter has "
            f"rank {lora.rank}; its training, and align3d, read it",
            file=sys.stderr,
        )
