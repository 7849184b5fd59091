"""Where a published generator has its texts from: the encoder's own folder, or a prompt cache in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from align3d.models.text import TextSource


@dataclass(frozen=True)
class TextOptions:
    """Options of a generator that may read texts, and what it does with them."""

    weights: Path | None = None  # folder with the published files; or --weights
    text: Path | None = None  # folder of the published text encoder, tokenizer/ and text_encoder/; none = in weights
    cache: Path | None = None  # prompt cache of `align3d embed`, in the place of a text encoder

    encoder: ClassVar[str]  # kind of the text encoder, as caches call it
    text_precision: ClassVar[str] = "bfloat16"  # of the text encoder and its states

    def read_text(self, folder: Path, device: str, precision: Any, offload: bool) -> TextSource:
        """The text encoder in a folder."""
        raise NotImplementedError

    def text_source(self, device: str = "cpu", precision: Any = None, offload: bool = False) -> TextSource:
        """The text encoder, without the other networks; by default in the model's `text_precision`.

        Raises:
            ValueError: If there is no folder of one.
        """
        folder = self.text_folder()
        if folder is None:
            raise ValueError("--model.text is missing: give the folder of the published text encoder")
        return self.read_text(folder, device, precision or self.text_precision, offload)

    def text_folder(self) -> Path | None:
        """Where the text encoder is, if anywhere."""
        if self.text is None and self.weights is not None and (self.weights / "text_encoder").is_dir():
            return self.weights
        return self.text

    def texts(self, device: str, width: int, pooled: int = 0) -> TextSource:
        """Where texts come from: the cache, if there is one, else the encoder.

        Args:
            device: Where the texts shall be.
            width: Numbers of a token that the network reads.
            pooled: Numbers of a whole text that it reads.

        Raises:
            ValueError: If there is neither, or the cache is of another encoder.
        """
        from align3d.models.prompt_cache import open_cache

        self.need_text()
        if self.cache is not None:
            expect = {"encoder": self.encoder, "width": width, "pooled": pooled}
            return open_cache(self.cache, expect | self.text_options(), device)
        return self.text_source(device)

    def need_text(self) -> None:
        """Refuse to go on without a source of texts, before anything large is read.

        Raises:
            ValueError: If there is neither a cache nor an encoder.
        """
        if self.cache is None and self.text_folder() is None:
            raise ValueError(
                "the model needs texts: give --model.cache, a folder that `align3d embed` wrote, or --model.text, the "
                "folder of the published text encoder"
            )

    def text_options(self) -> dict[str, Any]:
        """What a cache's texts must have been made with, beyond the encoder."""
        return {}
