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
    from align3d.models.text import Text, TextSource


@dataclass(eq=False, kw_only=True)
class Frozen:
    """A frozen network with a text encoder: what of the Prior contract does not depend on the network."""

    most_texts: ClassVar[int]  # encoded, that are kept

    text: TextSource
    adapter: Adapter | None = None
    options: Any = None  # the dataclass that it was loaded from
    texts: dict[str, Text] = field(init=False, default_factory=dict)  # encoded, one row each, the latest last

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

        return Text.cat([self._encoded(prompt) for prompt in prompts])

    def _encoded(self, prompt: str) -> Text:
        """One text; encoded alone, so that it never depends on what came before."""
        self.texts[prompt] = self.texts.pop(prompt, None) or self.text([prompt]).counted().to(self.device)
        while len(self.texts) > self.most_texts:
            del self.texts[next(iter(self.texts))]
        return self.texts[prompt]

    def reference(self) -> AbstractContextManager[None]:
        """Within, the prior is as it was loaded, without its adapter, and no graph is built."""
        from align3d.models.lora import untuned

        return untuned(self.adapter)
