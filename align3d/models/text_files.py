"""Text encoders and tokenizers from the published folders, and the hash that tells their files apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align3d.files import read_json
from align3d.pretrained.clip import MAX_TOKENIZER, quiet, tokenizer, tokenizer_files
from align3d.weights import NotItsWeights, Weights, fill, parameters_on_meta, require_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from align3d.models.text import ClipText, SD3Text, T5Text, Tower

Precision = Literal["bfloat16", "float32"]

MAX_SIZE = 1 << 20  # of a number in an encoder's config.json that counts something; more is damage
UNREAD = ("attn_implementation", "dtype", "torch_dtype", "quantization_config")  # of config.json; ours, or for none
OUTER = "text_model."
IGNORED = ".position_ids"  # how keys end that older libraries wrote and nothing reads
T5_TOKENIZERS = ("tokenizer.json", "spiece.model")


def load_t5(
    folder: Path, device: str = "cpu", precision: Precision = "bfloat16", offload: bool = False, clean: bool = False
) -> T5Text:
    """The text source of PixArt-Sigma: T5-XXL from text_encoder/ and tokenizer/.

    Args:
        folder: The published folder.
        device: Where it computes, and where the texts are.
        precision: Of weights and states. T5-XXL takes 9.5 GB in bfloat16; float16 overflows in T5.
        offload: Whether the weights stay on the CPU and are moved for each batch.
        clean: Whether captions are cleaned as the pipeline of PixArt-Sigma does; else lower case only.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    from align3d.models.text import T5_TOKENS, T5Text

    tower, files = _tower("t5", folder, "", T5_TOKENS, device, precision, offload)
    return T5Text(tower, files, clean)


def load_clip(folder: Path, device: str = "cpu", precision: Precision = "bfloat16", offload: bool = False) -> ClipText:
    """The text source of SD1.5: CLIP-L from text_encoder/ and tokenizer/. Arguments and errors as of `load_t5`."""
    from align3d.models.text import CLIP_TOKENS, ClipText

    return ClipText(*_tower("clip", folder, "", CLIP_TOKENS, device, precision, offload))


def load_sd3(folder: Path, device: str = "cpu", precision: Precision = "bfloat16", offload: bool = False) -> SD3Text:
    """The text source of SD3.5: CLIP-L, CLIP-G and T5 from text_encoder{,_2,_3}/. Arguments, errors as of `load_t5`."""
    from align3d.models.text import CLIP_TOKENS, SD3_T5_TOKENS, SD3Text

    kinds = (("pooled", "", CLIP_TOKENS), ("pooled", "_2", CLIP_TOKENS), ("t5", "_3", SD3_T5_TOKENS))
    found = [_tower(kind, folder, end, tokens, device, precision, offload) for kind, end, tokens in kinds]
    names = ("clip_l", "clip_g", "t5")
    files = {
        f"{name}_{what}": paths for name, (_, own) in zip(names, found, strict=True) for what, paths in own.items()
    }
    clip_l, clip_g, t5 = (tower for tower, _ in found)
    return SD3Text((clip_l, clip_g), t5, files)


def fingerprint(paths: Sequence[Path]) -> str:
    """A hash of files' bytes, in the order given; their names and places do not matter."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def _tower(
    kind: str, folder: Path, end: str, tokens: int, device: str, precision: str, offload: bool
) -> tuple[Tower, dict[str, list[Path]]]:
    """Tokenizer and encoder from tokenizer{end}/ and text_encoder{end}/; and the files that decide what they give."""
    import torch

    from align3d.models.text import Tower

    tokenizer, weights = folder / f"tokenizer{end}", folder / f"text_encoder{end}"
    files = weight_files(weights)
    words = read_json(_need(weights / "config.json")).get("vocab_size")  # ids beyond it would be an error on the GPU
    read = _t5_tokenizer if kind == "t5" else _clip_tokenizer
    tokenize, pad, used = read(tokenizer, words if isinstance(words, int) else None)
    encoder = _encoder(kind, weights, getattr(torch, precision))
    if not offload:
        encoder.to(device)
    found = {"weights": [weights / "config.json", *files], "tokenizer": used}
    return Tower(tokenize, encoder, tokens, pad, device, offload, tells=kind != "pooled"), found


def weight_files(folder: Path) -> list[Path]:
    """The files of an encoder's weights, shards in order.

    Raises:
        FileNotFoundError: If config.json or weights are missing.
        ValueError: If the list of shards is damaged.
    """
    _need(folder / "config.json")
    return sorted(set(Weights.find(folder, "model").paths.values()))


def _need(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy {path.parent.name}/ of the published folder to {path.parent}")
    return path


def _encoder(kind: str, folder: Path, precision: torch.dtype) -> nn.Module:
    """A frozen encoder, all of its weights and no others, on the CPU.

    There is no memory for them before all names and shapes are right.

    Raises:
        ValueError: If config.json or the weights are damaged, or do not belong together.
    """
    import transformers

    names = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "pooled": "CLIPTextModelWithProjection"}
    values, weights = read_json(folder / "config.json"), Weights.find(folder, "model")
    with weights:
        try:
            encoder, places = _unread(getattr(transformers, names[kind]), values, weights, precision)
        except NotItsWeights as error:
            raise ValueError(f"{folder} does not fit {names[kind]}: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # whatever transformers makes of values that it was not written for
            if str(folder) in str(error):  # of the weights
                raise
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{folder / 'config.json'} describes no {names[kind]} ({said}); copy it again") from error
        fill(encoder, weights, precision, places=places)
    encoder.tie_weights()  # what is there twice has memory once
    return encoder.requires_grad_(False).eval()


def _unread(
    network_class: type, values: dict[str, Any], weights: Weights, precision: torch.dtype
) -> tuple[Any, dict[str, str]]:
    """An encoder without memory for its parameters, and under which name of the file each of its tensors is.

    Raises:
        NotItsWeights: If the files have other tensors.
        ValueError: If config.json has absurd numbers.
    """
    import torch

    _check_config(values, layers=len(weights.shapes))
    values = {key: value for key, value in values.items() if not key.startswith("_") and key not in UNREAD}

    def make() -> Any:
        config = network_class.config_class.from_dict(values)  # a new one each time: networks write into it
        config.dtype = precision
        return network_class(config)

    with quiet(), torch.random.fork_rng(devices=[]):  # initial values would come from the global generator
        with torch.device("meta"):
            network = make()
        places = _places(network, weights)
        require_keys(network, {name: weights.shapes[key] for name, key in places.items()})
        with parameters_on_meta():
            return make(), {name: places[name] for name in network.state_dict()}


def _places(network: nn.Module, weights: Weights) -> dict[str, str]:
    """Name -> name in the files: without the outer name that older libraries gave, and shared tensors under all names.

    Raises:
        NotItsWeights: If one tensor is there under two names, with other numbers under each.
    """
    own = network.state_dict(keep_vars=True)
    outer = "" if any(name.startswith(OUTER) for name in own) else OUTER
    keys = [key for key in weights.shapes if not key.endswith(IGNORED)]
    places = {key.removeprefix(outer): key for key in keys}
    if len(places) < len(keys):
        raise NotItsWeights(f"names are there twice, with {outer} before them and without")
    shared: dict[int, list[str]] = {}
    for name, tensor in own.items():
        shared.setdefault(id(tensor), []).append(name)
    for names in shared.values():
        found = [name for name in names if name in places]
        if len(found) > 1:
            first, *others = (weights.tensor(places[name]) for name in found)
            if not all(first.equal(other) for other in others):
                raise NotItsWeights(f"{' and '.join(found)} differ")
        if found:
            places |= dict.fromkeys(names, places[found[0]])
    return places


def _check_config(values: dict[str, Any], layers: int) -> None:
    """Refuse numbers that would take memory or time without end."""
    for key, value in values.items():
        most = layers if "layers" in key else MAX_SIZE
        if isinstance(value, (int, float)) and not -1 <= value <= most:
            raise ValueError(f"it has {key} {value}, expected at most {most}")


def _t5_tokenizer(folder: Path, words: int | None) -> tuple[Callable, int, list[Path]]:
    """T5's tokenizer, from tokenizer.json or, without the sentencepiece library, from spiece.model."""
    from tokenizers import Tokenizer

    from align3d.models.spiece import read_unigram

    path = next((folder / name for name in T5_TOKENIZERS if (folder / name).is_file()), None)
    path = path or _need(folder / "spiece.model")
    try:
        if path.stat().st_size > MAX_TOKENIZER:
            raise ValueError("too large")
        tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else read_unigram(path.read_bytes())
        pad = tokenizer.token_to_id("<pad>")
        if pad is None or not tokenizer.encode("").ids:
            raise ValueError("it knows no <pad>, or adds no end to a text")
        if words is not None and tokenizer.get_vocab_size() > words:
            raise ValueError(f"it has {tokenizer.get_vocab_size()} tokens, the encoder knows {words}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"{path} is damaged, or no tokenizer of T5 ({error}); copy it again") from None
    return lambda texts: [tokenizer.encode(text).ids for text in texts], pad, [path]


def _clip_tokenizer(folder: Path, words: int | None) -> tuple[Callable, int, list[Path]]:
    """CLIP's tokenizer, and what it pads with."""
    found = tokenizer(folder, words)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        with quiet():  # of texts that are too long
            return found(list(texts))["input_ids"]

    return tokenize, found.pad_token_id, tokenizer_files(folder)
