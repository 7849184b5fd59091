"""The one reader of CLIPs: folders in the layout of transformers, or anything else that gives its sizes and weights.

Half of a CLIP is read at a time, the image's or the text's, once for each device; it is frozen and in float32. Names
and shapes of the whole have to fit before memory of their size is asked for.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align3d import files
from align3d.pretrained.once import read_once
from align3d.weights import NotItsWeights, Weights, fill, parameters_on_meta, require_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    Half = Literal["image", "text"]

CONFIG, WEIGHTS, LEGACY = "config.json", "model", "pytorch_model.bin"
TOKENIZER = ("vocab.json", "merges.txt")
KINDS = ("clip", "clip_vision_model")  # of config.json's model_type: both halves, or the image's alone
MAX_SIZE, MAX_LAYERS = 1 << 17, 256  # what is believed of a configuration
MAX_TOKENIZER = 1 << 26  # bytes; the largest of the published ones has 2.4 million
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "num_channels", "vocab_size", "max_position_embeddings"),
)
OTHERS = ("hidden_act", "layer_norm_eps", "eos_token_id")  # what else of a half's configuration matters
END = 2  # an eos_token_id of older files that means the highest number of a text, which is that of its end
IGNORED = "embeddings.position_ids"  # a buffer that older files have

Sizes = dict[str, Any]  # text_config, vision_config, projection_dim, model_type


def open_folder(folder: Path) -> tuple[Sizes, Weights]:
    """Sizes and weights of a folder: config.json, and model.safetensors (or its parts) or pytorch_model.bin.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, of another kind of model, or has absurd sizes.
    """
    from align3d.pretrained.legacy import read_legacy

    sizes = read_sizes(folder / CONFIG)
    safe = any((folder / f"{WEIGHTS}{end}").is_file() for end in (".safetensors", ".safetensors.index.json"))
    if not safe and (folder / LEGACY).is_file():
        return sizes, Weights({"": folder / LEGACY}, read_legacy(folder / LEGACY))
    return sizes, Weights.find(folder, WEIGHTS)


@dataclass(frozen=True)
class Clip:
    """Which CLIP: its folder, and how its weights are found in it."""

    folder: Path  # with vocab.json and merges.txt of the tokenizer, if texts are asked for
    opener: Callable[[Path], tuple[Sizes, Weights]] = open_folder  # a function of a module, by which two are the same


@read_once(16)
def sizes_of(clip: Clip) -> Sizes:
    """The sizes of a CLIP, if its names and shapes fit them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    sizes, weights = clip.opener(clip.folder)
    with weights:
        _empty(clip, sizes, weights)
    return sizes


def check(clip: Clip, texts: bool = False) -> None:
    """Refuse early a CLIP that cannot give features; reads names and shapes alone, and those once.

    Args:
        clip: The network.
        texts: Whether it has to read texts too.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    sizes_of(clip)
    if texts:
        tokenizer_of(clip)


@read_once(16)
def network(clip: Clip, half: Half, device: torch.device) -> nn.Module:
    """One half of a CLIP with its projection and `logit_scale`: frozen, float32, in evaluation mode.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    import torch

    sizes, weights = clip.opener(clip.folder)
    with weights:
        loaded = _empty(clip, sizes, weights)
        for name in ("text_model", "text_projection") if half == "image" else ("vision_model", "visual_projection"):
            if hasattr(loaded, name):
                delattr(loaded, name)
        fill(loaded, weights, torch.float32)
    return loaded.requires_grad_(False).eval().to(device)


def look(net: nn.Module, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """Unit features of prepared images, by an image half; gradient to the pixels."""
    import torch.nn.functional as F

    return F.normalize(net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output), dim=-1)


def read(net: nn.Module, ids: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    """Unit features of texts, by a text half; what stands behind a text's end does not matter."""
    import torch.nn.functional as F

    return F.normalize(net.text_projection(net.text_model(input_ids=ids).pooler_output), dim=-1)


@read_once(16)
def tokenizer_of(clip: Clip) -> Any:
    """The CLIPTokenizer of a CLIP, if its numbers are those that the text half knows.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    sizes = sizes_of(clip)
    if "text_config" not in sizes:
        raise ValueError(f"{clip.folder} holds the image half of a CLIP alone; texts need the other one too")
    found = tokenizer(clip.folder, sizes["text_config"].get("vocab_size", 49408))
    end = sizes["text_config"].get("eos_token_id", found.eos_token_id)
    if end not in (END, found.eos_token_id):
        raise ValueError(
            f"{clip.folder}: a text ends with token {found.eos_token_id}, the network looks for {end}; copy it again"
        )
    return found


def tokenizer(folder: Path, words: int | None = None) -> Any:
    """A CLIPTokenizer, from vocab.json and merges.txt; what it pads with, from tokenizer_config.json.

    Other files, such as tokenizer.json, say the same once more, and are not looked at.

    Args:
        folder: The files.
        words: Number of tokens that the network knows; None = not compared.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or a token has a number that the network does not know.
    """
    from transformers import CLIPTokenizer

    used = tokenizer_files(folder)
    try:
        if any(path.stat().st_size > MAX_TOKENIZER for path in used):
            raise ValueError("too large")
        with quiet(), tempfile.TemporaryDirectory() as alone:  # in theirs, transformers would take other files too
            for path in used:
                shutil.copyfile(path, Path(alone) / path.name)
            found = CLIPTokenizer.from_pretrained(alone, local_files_only=True)
        if found.pad_token_id is None or len(found("")["input_ids"]) != 2:
            raise ValueError("it has no token for padding, for the start or for the end")
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} is damaged, or no tokenizer of CLIP ({said}); copy it again") from None
    most = max(found.get_vocab().values()) + 1
    if words is not None and most > words:
        raise ValueError(f"{folder}: the tokenizer has {most} tokens, the network {words}; copy it again")
    return found


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide what a tokenizer gives.

    Raises:
        FileNotFoundError: If one of those that must be there is missing.
    """
    for path in (folder / name for name in TOKENIZER):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; copy {folder.name}/ of the published folder to {folder}, with all its files"
            )
    more = (folder / name for name in ("tokenizer_config.json", "special_tokens_map.json"))
    return [*(folder / name for name in TOKENIZER), *(path for path in more if path.is_file())]


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder of a CLIP is needed as it was published")
    return files.read_json(path)


def read_sizes(path: Path) -> Sizes:
    """What a config.json says of a CLIP; of its many other entries, none is looked at.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, of another kind of model, or has absurd sizes.
    """
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{path} is of a model of type {kind!r}, expected {' or '.join(KINDS)}")
    if kind == "clip":
        halves = {name: values.get(name) or {} for name in ("vision_config", "text_config")}
        for name in halves:
            more = values.get(f"{name}_dict") or {}
            if not isinstance(halves[name], dict) or not isinstance(more, dict):
                raise ValueError(f"{path}: {name} is no object; copy the checkpoint again")
            if more:  # older files say things twice; transformers takes this one, and its own defaults for the rest
                more = _defaults(name) | more
            halves[name] = {key: value for key, value in (halves[name] | more).items() if key in (*SIZES, *OTHERS)}
    else:
        halves = {"vision_config": {key: value for key, value in values.items() if key in (*SIZES, *OTHERS)}}
    sizes: Sizes = {"model_type": kind, "projection_dim": values.get("projection_dim", 512)} | halves
    for half in ({"projection_dim": sizes["projection_dim"]}, *halves.values()):
        for key, value in half.items():
            if key in OTHERS:
                continue
            most = MAX_LAYERS if key.endswith("_layers") else MAX_SIZE
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
                raise ValueError(f"{path}: {key} must be 1 to {most}, got {value!r}")
    return sizes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers prints neither warnings nor progress: what matters is raised."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _defaults(half: str) -> dict[str, Any]:
    """What transformers takes where a configuration says nothing."""
    import transformers

    return getattr(transformers, "CLIPVisionConfig" if half == "vision_config" else "CLIPTextConfig")().to_dict()


def _empty(clip: Clip, sizes: Sizes, weights: Weights) -> nn.Module:
    """The network of the sizes, without memory for its parameters, if the weights are its own."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    file = next(iter(weights.paths.values()))
    have = {key: shape for key, shape in weights.shapes.items() if not key.endswith(IGNORED)}

    def make() -> nn.Module:
        if sizes["model_type"] == "clip":
            return CLIPModel(CLIPConfig(**{key: value for key, value in sizes.items() if key != "model_type"}))
        own = sizes["vision_config"] | {"projection_dim": sizes["projection_dim"]}
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**own))

    try:
        if any(half.get("num_hidden_layers", 0) > len(have) for half in sizes.values() if isinstance(half, dict)):
            raise NotItsWeights(f"{len(have)} tensors are too few")
        with quiet(), torch.random.fork_rng(devices=[]):  # initial values would come from the global generator
            with torch.device("meta"):  # no memory, so far
                require_keys(make(), have)
            with parameters_on_meta():
                return make()
    except NotItsWeights as error:
        raise ValueError(f"{file} does not fit {CONFIG}, or is another network: {error}; copy it again") from None
    except Exception as error:  # sizes that do not go together fail where they first meet
        raise ValueError(f"{clip.folder / CONFIG} describes no network: {_line(error)}; copy it again") from error


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
