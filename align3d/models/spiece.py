"""Read a unigram SentencePiece model (spiece.model, a protocol buffer) without the sentencepiece library.

Source: sentencepiece/src/sentencepiece_model.proto; Kudo 2018 for the model.
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

PIECE, TRAINER, NORMALIZER = 1, 2, 3  # fields of ModelProto
TEXT, SCORE, KIND = 1, 2, 3  # of a piece
MODEL_TYPE, UNIGRAM = 3, 1  # of TrainerSpec
CHARS = 2  # of NormalizerSpec: rules from characters to characters, compiled
UNKNOWN, CONTROL = 2, 3  # kinds of pieces


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, in order: number and value; a value of fixed size as its bytes.

    Raises:
        ValueError: If it ends too early, or is no message.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                break
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("it ends in the middle of a number")

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"it has a field of an unknown kind, {wire}")
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        if at + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + size]
        at += size


def _bytes(value: int | bytes, size: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (size is not None and len(value) != size):
        raise ValueError("a field has the wrong kind")
    return value


def read_unigram(data: bytes) -> Tokenizer:
    """A tokenizer that ends each text with </s>, as T5's does; ids are the places of the pieces.

    Raises:
        ValueError: If it is no such model.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces: list[tuple[str, float]] = []
    unknown, controls, chars = 0, [], b""
    for number, value in fields(data):
        if number == PIECE:
            piece = dict(fields(_bytes(value)))
            text = _bytes(piece.get(TEXT, b"")).decode()
            if piece.get(KIND) == UNKNOWN:
                unknown = len(pieces)
            elif piece.get(KIND) == CONTROL:
                controls.append(text)
            pieces.append((text, unpack("<f", _bytes(piece.get(SCORE, bytes(4)), 4))[0]))
        elif number == TRAINER and dict(fields(_bytes(value))).get(MODEL_TYPE, UNIGRAM) != UNIGRAM:
            raise ValueError("it is no unigram model")
        elif number == NORMALIZER:
            chars = _bytes(dict(fields(_bytes(value))).get(CHARS, b""))
    names = [text for text, _ in pieces]
    if "</s>" not in names:
        raise ValueError("it has no piece </s>")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=False))
    if chars:
        tokenizer.normalizer = normalizers.Precompiled(chars)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", names.index("</s>"))])
    tokenizer.add_special_tokens(controls)  # <pad> and </s>, also where a prompt spells them
    return tokenizer
