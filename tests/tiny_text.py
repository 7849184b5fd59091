"""Text encoders of a few thousand numbers, in the layout of the published folders."""

import json
from pathlib import Path
from struct import pack

import torch
from safetensors.torch import save_file

WORDS = ("a", "red", "blue", "mug", "dog", "chair", "of", "the")


def write_texts(folder: Path, kinds: dict[str, str], seed: int = 0) -> Path:
    """tokenizer{end}/ and text_encoder{end}/ for each end -> kind: t5, clip, or pooled for CLIP with a projection."""
    for number, (end, kind) in enumerate(kinds.items()):
        torch.manual_seed(seed + number)
        (folder / f"tokenizer{end}").mkdir(parents=True)
        (folder / f"text_encoder{end}").mkdir()
        if kind == "t5":
            write_t5(folder, end)
        else:
            write_clip(folder, end, kind, hidden=4 + 4 * number)
    return folder


def write_t5(folder: Path, end: str) -> None:
    from transformers import T5Config, T5EncoderModel

    (folder / f"tokenizer{end}/spiece.model").write_bytes(spiece())
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
    save(T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")), folder / f"text_encoder{end}")


def write_clip(folder: Path, end: str, kind: str, hidden: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocab = write_tokenizer(folder / f"tokenizer{end}", "!" if end == "_2" else "<|endoftext|>")
    sizes = {"hidden_size": hidden, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPTextConfig(**sizes, vocab_size=len(vocab), projection_dim=6, max_position_embeddings=77,
                            bos_token_id=len(vocab) - 2, eos_token_id=2)  # fmt: skip
    network = CLIPTextModel if kind == "clip" else CLIPTextModelWithProjection
    save(network(config), folder / f"text_encoder{end}", prefix="text_model.")


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> dict[str, int]:
    """A tokenizer of CLIP that knows letters; gives its vocabulary."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*letters, *(f"{c}</w>" for c in letters), "!", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    told = {"tokenizer_class": "CLIPTokenizer", "pad_token": pad, "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return vocab


def save(network: torch.nn.Module, folder: Path, prefix: str = "") -> None:
    """Weights and configuration, float16, under the names that published files have."""
    shared = ("shared.weight", "text_projection.weight")
    tensors = {k: v.half().contiguous() for k, v in network.state_dict().items() if k != "encoder.embed_tokens.weight"}
    if prefix:
        tensors = {k if k in shared or k.startswith(prefix) else prefix + k: v for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    network.config.save_pretrained(folder)


def spiece() -> bytes:
    """A unigram model of the words and letters, as a protocol buffer."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2]) + bytes([len(value)]) + value

    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -3.0, 1)]
    pieces += [(f"▁{word}", -2.0, 1) for word in WORDS] + [(c, -5.0, 1) for c in "abcdefghijklmnopqrstuvwxyz"]
    data = b""
    for text, score, kind in pieces:
        data += field(1, field(1, text.encode()) + bytes([2 << 3 | 5]) + pack("<f", score) + field(3, kind))
    return data + field(2, field(3, 1))
