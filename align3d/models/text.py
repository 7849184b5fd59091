"""Prompts as a denoiser reads them: `Text`, and what makes it, the text encoders of the published generators.

A text source is a callable, prompts -> Text, in which row i depends on prompt i alone, up to the rounding of another
batch size; "" is the negative prompt. Its `identity` (a dict for JSON) says which encoder it is; a prompt cache, which
is a text source too, keeps it.

Encoders are read from the published folders: tokenizer/ and text_encoder/ (PixArt-Sigma: T5; SD1.5: CLIP-L), or those
two and the same with _2 and _3 (SD3.5: CLIP-L, CLIP-G, T5). Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from align3d.pretrained.tokens import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from jaxtyping import Float
    from torch import Tensor, nn

    TextSource = Callable[[Sequence[str]], "Text"]

MAX_CHARACTERS = 2000  # of a prompt: about 500 tokens; a longer one is some other text, given by mistake
KEPT = 1 << 28  # bytes of encoded texts that a memory keeps
T5_TOKENS, CLIP_TOKENS, SD3_T5_TOKENS = 300, 77, 256  # PixArt-Sigma, all CLIPs, SD3


@dataclass(frozen=True)
class Text:
    """Encoded prompts, one row each."""

    states: Float[Tensor, "B T D"]  # float32, zero where there is padding
    keep: Float[Tensor, "B T"]  # 1 = token, 0 = padding; the tokens come first
    pooled: Float[Tensor, "B P"] | None = None  # one vector a prompt, float32; SD3 only
    most: int | None = None  # tokens of the longest row, where that is known; a GPU would have to be waited for

    def __len__(self) -> int:
        return len(self.states)

    def to(self, device: str | torch.device) -> Text:
        """The same on a device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Text(self.states.to(device), self.keep.to(device), pooled, self.most)

    def counted(self) -> Text:
        """The same with `most`; as it is where there are no numbers, on the device "meta"."""
        return self if self.keep.is_meta else replace(self, most=int(self.keep.sum(1).max()))

    @staticmethod
    def cat(texts: Sequence[Text]) -> Text:
        """Rows of several, one after the other; they are of one source."""
        import torch

        pooled = [text.pooled for text in texts if text.pooled is not None]
        states, keep = (torch.cat([getattr(text, name) for text in texts]) for name in ("states", "keep"))
        most = [text.most for text in texts if text.most is not None]
        return Text(states, keep, torch.cat(pooled) if pooled else None, max(most) if len(most) == len(texts) else None)


@dataclass(eq=False)
class Memory:
    """The latest texts of a source; each is encoded alone, so that it never depends on what came before."""

    source: TextSource
    device: str | torch.device  # where they are kept
    most: int | None = None  # texts; None: as many as take KEPT bytes
    texts: dict[str, Text] = field(init=False, default_factory=dict)  # one row each, the latest last

    def __call__(self, prompt: str) -> Text:
        """One row, on the device."""
        if prompt not in self.texts:
            self.texts[prompt] = self.source([prompt]).counted().to(self.device)
        self.texts[prompt] = self.texts.pop(prompt)  # now the latest
        most = self.most or max(2, KEPT // self.texts[prompt].states.nbytes)
        while len(self.texts) > most:
            del self.texts[next(iter(self.texts))]
        return self.texts[prompt]


def check_known(source: TextSource, prompts: Sequence[str]) -> None:
    """Refuse prompts that a cache lacks; an encoder knows them all.

    Raises:
        ValueError: As the cache says.
    """
    missing = [prompt for prompt in prompts if prompt not in source] if hasattr(source, "__contains__") else []
    if missing:
        source(missing[:1])


def check_lengths(prompts: Sequence[str]) -> None:
    """Refuse what is too long for a prompt.

    Raises:
        ValueError: Names the first.
    """
    for prompt in prompts:
        if len(prompt) > MAX_CHARACTERS:
            raise ValueError(
                f"prompt {prompt[:40]!r}... has {len(prompt)} characters, at most {MAX_CHARACTERS} are read; shorten it"
            )


@contextlib.contextmanager
def moved(module: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Within, a module's weights are on a device; afterwards where they were, without being copied back."""
    before = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
    try:
        for tensor, data in before:  # not module.to(), which may put other parameters in their place
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def plain(call: Callable[[Any, Sequence[str]], Text]) -> Callable[[Any, Sequence[str]], Text]:
    """The call of a text source whose texts have no gradient and can be used in training, wherever it is called.

    What is computed in inference mode could not.
    """

    @functools.wraps(call)
    def called(self: Any, prompts: Sequence[str]) -> Text:
        import torch

        with torch.inference_mode(False), torch.no_grad():
            return call(self, prompts)

    return called


@dataclass(eq=False)
class Tower:
    """A tokenizer and its encoder."""

    tokenize: Callable[[Sequence[str]], list[list[int]]]  # ids of each text, start and end included
    encoder: nn.Module
    tokens: int  # T, that a text is padded or cut to
    pad: int  # the id of padding
    device: str = "cpu"  # where it computes
    offload: bool = False  # whether weights stay on the CPU and are moved for each batch
    tells: bool = True  # whether it warns of the first text that is cut; not where another tower reads more of it

    def __call__(self, texts: Sequence[str], masked: bool = False, **options: Any) -> tuple[Any, Tensor]:
        """What the encoder gives, and which ids are tokens (B, T').

        Args:
            texts: What to encode.
            masked: Whether the encoder is told what is padding; then T' is that of the longest text, else `tokens`.
            **options: For the encoder.
        """
        import torch

        ids = self.ids(texts)
        length = max(map(len, ids)) if masked else self.tokens
        rows = torch.tensor([row + [self.pad] * (length - len(row)) for row in ids], device=self.device)
        sizes = torch.tensor([len(row) for row in ids], device=self.device)
        keep = (torch.arange(length, device=self.device) < sizes[:, None]).long()
        where = moved(self.encoder, self.device) if self.offload else contextlib.nullcontext()
        with where:
            options |= {"attention_mask": keep} if masked else {}
            return self.encoder(input_ids=rows, **options), keep

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, `tokens` at most, the last one being its end; warns of the first that is cut."""
        most, ids = self.tokens, self.tokenize(texts)
        long = [text for text, row in zip(texts, ids, strict=True) if len(row) > most]
        if long and self.tells:
            self.tells = False
            said = f"at most {most} tokens of a prompt are read; the rest of {long[0][:40]!r}... is lost, and so on"
            warnings.warn(said, RuntimeWarning, stacklevel=1)
        return [cut(row, most) for row in ids]

    @property
    def precision(self) -> torch.dtype:
        """Of the weights, and therefore of the states; single ones may be wider."""
        return next(self.encoder.parameters()).dtype

    @property
    def width(self) -> int:
        """D, numbers a token."""
        config = self.encoder.config
        return config.d_model if hasattr(config, "d_model") else config.hidden_size


@dataclass(eq=False)
class T5Text:
    """The text of PixArt-Sigma: states of T5, padding masked. Source: diffusers' PixArtSigmaPipeline."""

    tower: Tower
    files: Mapping[str, Sequence[Path]]  # what -> files that decide what comes out
    clean: bool  # whether captions are cleaned as the pipeline does; else lower case only

    @plain
    def __call__(self, prompts: Sequence[str]) -> Text:
        """Texts of `tower.tokens` tokens; longer ones are cut."""
        import torch.nn.functional as F

        from align3d.models.captions import clean

        check_lengths(prompts)
        texts = [clean(prompt) if self.clean else prompt.lower().strip() for prompt in prompts]
        output, keep = self.tower(texts, masked=True)
        states = _rounded(output[0], self.tower) * keep[..., None]
        missing = self.tower.tokens - keep.shape[1]
        return Text(F.pad(states, (0, 0, 0, missing)), F.pad(keep.to(states), (0, missing)))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which encoder this is; reads all of its files once."""
        return _identity("t5", [self.tower], self.files) | {"clean": self.clean}


@dataclass(eq=False)
class ClipText:
    """The text of SD1.5: the last states of CLIP-L, padding included, as the denoiser was trained."""

    tower: Tower
    files: Mapping[str, Sequence[Path]]

    @plain
    def __call__(self, prompts: Sequence[str]) -> Text:
        """Texts of 77 tokens, all of them kept; longer ones are cut."""
        check_lengths(prompts)
        states = _rounded(self.tower(prompts)[0][0], self.tower)
        return Text(states, states.new_ones(states.shape[:2]))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which encoder this is; reads all of its files once."""
        return _identity("clip", [self.tower], self.files)


@dataclass(eq=False)
class SD3Text:
    """The text of SD3.5: CLIP-L beside CLIP-G, then T5, padding included; pooled states of both CLIPs.

    Source: Esser et al. 2024, figure 2; diffusers' StableDiffusion3Pipeline.
    """

    clips: tuple[Tower, Tower]
    t5: Tower
    files: Mapping[str, Sequence[Path]]

    @plain
    def __call__(self, prompts: Sequence[str]) -> Text:
        """Texts of 77 + 256 tokens, all of them kept; longer ones are cut."""
        import torch
        import torch.nn.functional as F

        check_lengths(prompts)
        outputs = [(clip(prompts, output_hidden_states=True)[0], clip) for clip in self.clips]
        pair = torch.cat([_rounded(out.hidden_states[-2], clip) for out, clip in outputs], -1)
        pooled = torch.cat([_rounded(out.text_embeds, clip) for out, clip in outputs], -1)
        long = _rounded(self.t5(prompts)[0][0], self.t5)
        states = torch.cat([F.pad(pair, (0, long.shape[-1] - pair.shape[-1])), long], 1)
        return Text(states, states.new_ones(states.shape[:2]), pooled)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which encoders these are; reads all of their files once."""
        found = _identity("sd3", [self.t5, *self.clips], self.files)
        return found | {"pooled": sum(clip.encoder.config.projection_dim for clip in self.clips)}


@dataclass(eq=False)
class WordText:
    """The text of the embedded generator."""

    network: nn.Module  # a nets.text.TextEncoder

    @plain
    def __call__(self, prompts: Sequence[str]) -> Text:
        """Texts of `max_words` tokens; words beyond the last are dropped."""
        check_lengths(prompts)
        ids = self.network.tokenize(prompts).to(next(self.network.parameters()).device)
        states, keep = self.network(ids)
        keep = keep.to(states)
        return Text((states * keep[..., None]).float(), keep.float())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which encoder this is, by its numbers."""
        import hashlib
        import json

        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16)
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        numbers = {"tokens": config["max_words"], "width": config["dim"], "pooled": 0, "precision": "float32"}
        return {"encoder": "words", "weights": digest.hexdigest()} | numbers


def _rounded(states: Tensor, tower: Tower) -> Tensor:
    """States as numbers of the encoder's precision, held in float32: a cache gives back the same."""
    return states.to(tower.precision).float()


def _identity(kind: str, towers: Sequence[Tower], files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What tells encoders apart: their files, and what is made of them."""
    from align3d.models.text_files import fingerprint

    first = towers[0]
    tokens = first.tokens + (towers[1].tokens if len(towers) > 1 else 0)  # of the two CLIPs, beside each other
    sizes = {"tokens": tokens, "width": first.width, "pooled": 0}
    hashes = {what: fingerprint(paths) for what, paths in files.items()}
    return {"encoder": kind} | hashes | sizes | {"precision": str(first.precision).removeprefix("torch.")}
