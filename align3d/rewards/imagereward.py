"""How well people think that a picture fits its prompt, and how they like it: a BLIP trained on their rankings.

Source: Xu et al. 2023 (arXiv 2304.05977), github.com/THUDM/ImageReward (c1392c6): the text, of at most 35 tokens, reads
the image by cross-attention; its first token goes through five linear layers with nothing between them, which are one
affine map here; the result has mean 0 and standard deviation 1 over the authors' pictures. The original makes pictures
of 8 bits; here nothing is rounded, and the gradient passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.pretrained import legacy
from align3d.pretrained.affine import affine
from align3d.pretrained.once import read_once
from align3d.pretrained.tokens import cut
from align3d.rewards.aesthetic import WIDTHS
from align3d.rewards.clip_scores import (
    CHUNK,
    CHUNK_ELSEWHERE,
    Preprocessing,
    device_of,
    warn_of_cut,
)
from align3d.rewards.preprocess import per_image, require_colours
from align3d.rewards.published import files_of
from align3d.weights import NotItsWeights, Weights, fill, parameters_on_meta, require_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

    from align3d.pretrained.blip import Sizes
    from align3d.types import Views

FILE, VOCABULARY = "ImageReward", "vocab.txt"
MORE_WORDS = ("[DEC]", "[ENC]")  # of BLIP, behind those of BERT; a text has them only if someone writes them
PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
TOKENS = 35  # the most of a text, start and end included; the rest is lost
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")  # in the file
LAYERS = ("0", "2", "4", "6", "7")  # of the head, as wide as those of the aesthetic predictor
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over the authors' pictures
MAX_VOCABULARY = 1 << 24  # bytes


@dataclass(frozen=True)
class ImageReward:
    """How well a picture fits its prompt and pleases: about -2 to 2, 0 is the average. ImageReward 1.0, BLIP ViT-L."""

    weights: Path | None = None  # folder with the published ImageReward.pt, and vocab.txt of bert-base-uncased

    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]] = {
        "weights": {"THUDM/ImageReward": (f"{FILE}.pt",), "google-bert/bert-base-uncased": (VOCABULARY,)}
    }

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse early if the weights are not there; warns of prompts that are not read to their end.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or does not fit.
        """
        with files_of("imagereward", self.weights, self.sources) as folder:
            _fits(folder)
            tokens(folder, prompts)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """The score of each view.

        Raises:
            FileNotFoundError, ValueError: As `check` does, and if a colour is outside [0, 1].

        Gradient: to the colours, in float32.
        """
        import torch

        device, rgb = device_of(views, "imagereward"), views.rgb
        require_colours(rgb, "imagereward")
        with files_of("imagereward", self.weights, self.sources) as folder:
            net, (slope, offset) = network(folder, device)
            rows = (row.to(device).repeat_interleave(rgb.shape[1], 0) for row in tokens(folder, prompts))
        side = sizes().side
        prepare = Preprocessing(side, crop=(side, side))

        def score(images: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                image = net.visual_encoder(prepare(images.float()))
                return net.text_encoder(ids, keep, image)[:, 0] @ slope + offset

        chunk = CHUNK.get(device.type, CHUNK_ELSEWHERE)
        return per_image(score, rgb.flatten(0, 1), *rows, chunk=chunk).unflatten(0, rgb.shape[:2])

    @classmethod
    def convert(cls, folder: Path) -> Path | None:
        """Write the weights as safetensors beside the published file, without the unused; see `legacy.convert`."""
        return legacy.convert(folder, FILE, _published, _fits)


def sizes() -> Sizes:
    """Of the published network; it has no configuration of its own."""
    from align3d.pretrained.blip import Sizes

    return Sizes()


@read_once(2)
def network(folder: Path, device: torch.device) -> tuple[nn.Module, tuple[Float[Tensor, "d"], float]]:
    """Image and text encoder, frozen and in float32; and slope and offset of the score by the text's first token.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or does not fit.
    """
    import torch

    with _weights(folder) as weights:
        net = _empty(weights)
        fill(net, weights, torch.float32)
        slope, offset = fold(net.mlp.layers)
        return net.blip.requires_grad_(False).eval().to(device), (slope.to(device), offset)


def fold(layers: nn.ModuleDict) -> tuple[Float[Tensor, "d"], float]:
    """Slope and offset of the head with what follows it, multiplied in float64 and given in float32."""
    slope, offset = affine((layers[name].weight, layers[name].bias) for name in LAYERS)
    return (slope[0] / STD).float(), (float(offset) - MEAN) / STD


def tokens(folder: Path, prompts: Sequence[str]) -> tuple[Int[Tensor, "n t"], Bool[Tensor, "n t"]]:
    """The numbers of prompts' tokens, always as many, and which of them are the prompts' own; warns once of cut ones.

    Raises:
        FileNotFoundError: If the vocabulary is missing.
        ValueError: If it is damaged or does not fit.
    """
    import torch

    tokenize, told = tokenizer(folder)
    found = [tokenize.encode(prompt).ids for prompt in prompts]
    warn_of_cut("imagereward", prompts, found, TOKENS, told)
    rows = torch.full((len(found), TOKENS), tokenize.token_to_id(PAD))
    keep = torch.zeros(len(found), TOKENS, dtype=torch.bool)
    for i, ids in enumerate(cut(ids, TOKENS) for ids in found):
        rows[i, : len(ids)], keep[i, : len(ids)] = torch.tensor(ids), True
    return rows, keep


@read_once(4)
def tokenizer(folder: Path) -> tuple[Any, list[str]]:
    """BERT's tokenizer without capitals, with BLIP's words behind; and a list for the prompt that was warned about.

    Raises:
        FileNotFoundError: If the vocabulary is missing.
        ValueError: If it is damaged, or has another number of words than the network.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    path = folder / VOCABULARY
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        if path.stat().st_size > MAX_VOCABULARY:
            raise ValueError("too large")
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        numbers = {word: i for i, word in enumerate([*words, *MORE_WORDS])}
        lost = [word for word in (PAD, UNKNOWN, START, END, MASK) if word not in numbers]
        if lost or len(numbers) != sizes().words:
            got = f"{len(words)} words" + (f" and no {lost[0]}" if lost else "")
            raise ValueError(f"{got}, expected {sizes().words - len(MORE_WORDS)}, all different")
    except ValueError as error:
        raise ValueError(f"{path} is not the vocabulary of bert-base-uncased ({error}); copy it again") from None
    made = Tokenizer(models.WordPiece(numbers, unk_token=UNKNOWN, max_input_chars_per_word=100))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([PAD, UNKNOWN, START, END, MASK, *MORE_WORDS])
    ends = [(word, numbers[word]) for word in (START, END)]
    made.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return made, []


@read_once(4)
def _fits(folder: Path) -> bool:
    """Whether names and shapes are the network's: True, or the errors of `network`."""
    weights = _weights(folder)
    with weights:
        _empty(weights)
    return True


def _weights(folder: Path) -> Weights:
    """The published file's tensors, or those of what `convert` made of it."""
    return legacy.converted_or_published(folder, FILE, _published)


def _published(path: Path) -> dict[str, Tensor]:
    return {key: value for key, value in legacy.read_legacy(path).items() if not key.startswith(UNUSED)}


def _empty(weights: Weights) -> nn.Module:
    """The network without memory for its parameters, if the weights are its own."""
    import torch
    from torch import nn

    from align3d.pretrained.blip import ImageEncoder, TextEncoder, parts

    def make() -> nn.Module:
        size = sizes()
        outputs = zip(LAYERS, (size.text_width, *WIDTHS), WIDTHS, strict=False)
        head = nn.ModuleDict({name: nn.Linear(before, after) for name, before, after in outputs})
        encoders = parts(visual_encoder=ImageEncoder(size), text_encoder=TextEncoder(size))
        return parts(blip=encoders, mlp=parts(layers=head))

    file = next(iter(weights.paths.values()))
    with torch.random.fork_rng(devices=[]), parameters_on_meta():  # initial values would come from the global generator
        net = make()
    try:
        require_keys(net, weights.shapes)
    except NotItsWeights as error:
        raise ValueError(f"{file} is not ImageReward 1.0: {error}; copy it again") from None
    return net
