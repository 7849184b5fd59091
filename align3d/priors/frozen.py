"""What all priors that we load have in common: texts encoded once, and an adapter that can be set aside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from align3d.models.lora import Adapter
    from align3d.models.text import Memory, Text, TextSource


@dataclass(eq=False, kw_only=True)
class Frozen:
    """A frozen network with a text encoder: what of the Prior contract does not depend on the network."""

    most_texts: ClassVar[int]  # encoded, that are kept

    text: TextSource
    adapter: Adapter | None = None
    options: Any = None  # the dataclass that it was loaded from
    memory: Memory = field(init=False)  # of texts

    def __post_init__(self) -> None:
        from align3d.models.text import Memory

        self.memory = Memory(self.text, self.device, self.most_texts)

    @property
    def module(self) -> nn.Module:
        """The network."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    def encode(self, prompts: Sequence[str]) -> Text:
        """States of the words, one row a text, those of the latest texts from memory; "" is the null text.

        Warns of the first text that is not read to its end.
        """
        from align3d.models.text import Text

        return Text.cat([*map(self.memory, prompts)])

    def reference(self) -> AbstractContextManager[None]:
        """Within, the prior is as it was loaded, without its adapter, and no graph is built."""
        from align3d.models.lora import untuned

        return untuned(self.adapter)
