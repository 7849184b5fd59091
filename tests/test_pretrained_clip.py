"""The reader of CLIPs: any of the published layouts, one half at a time, and what does not fit together."""

import json
from pathlib import Path

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file

from align3d.pretrained.clip import Clip, check, look, network, read, read_sizes, tokenizer_of
from align3d.pretrained.legacy import read_legacy
from align3d.pretrained.openclip import renamed

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return tiny_clip.write_clip(tmp_path / "clip")


def features(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return look(network(Clip(folder), "image", CPU), tiny_clip.numbers("pixels", 2, 3, 224, 224))


def test_every_layout_is_the_same_network(folder, tmp_path):
    expected, state = features(folder), load_file(folder / "model.safetensors")
    old, parts = (tiny_clip.write_clip(tmp_path / name) for name in ("old", "parts"))
    for other in (old, parts):
        (other / "model.safetensors").unlink()
    torch.save(state, old / "pytorch_model.bin")
    places = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(sorted(state))}
    for name in set(places.values()):
        save_file({key: state[key] for key, place in places.items() if place == name}, parts / name)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(features(old), expected) and torch.equal(features(parts), expected)
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(2))


def test_halves_are_those_of_transformers(folder):
    from transformers import CLIPModel

    whole = CLIPModel.from_pretrained(folder).eval()
    pixels = tiny_clip.numbers("pixels", 2, 3, 224, 224)
    ids = tokenizer_of(Clip(folder))(list(tiny_clip.PROMPTS), padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = whole(input_ids=ids, pixel_values=pixels)
        torch.testing.assert_close(features(folder), out.image_embeds)
        torch.testing.assert_close(read(network(Clip(folder), "text", CPU), ids), out.text_embeds)


def test_reading_draws_nothing(folder):
    before = torch.random.get_rng_state()
    features(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_first_look_in_inference_mode_does_no_harm(folder):
    with torch.inference_mode():
        look(network(Clip(folder), "image", CPU), tiny_clip.numbers("pixels", 2, 3, 224, 224))
    pixels = tiny_clip.numbers("pixels", 2, 3, 224, 224).requires_grad_()
    look(network(Clip(folder), "image", CPU), pixels)[:, 0].sum().backward()
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all()


def test_an_image_half_alone_reads_no_texts(folder):
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if k.startswith("vi")}, folder / "model.safetensors")
    values = {"model_type": "clip_vision_model", "projection_dim": tiny_clip.DIM} | tiny_clip.VISION
    (folder / "config.json").write_text(json.dumps(values))
    check(Clip(folder), "image")
    with pytest.raises(ValueError, match="holds the image half of a CLIP alone"):
        check(Clip(folder), "image", "text")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 50}, "does not fit"),
        ({"eos_token_id": 7}, "a text ends with token 55, the network looks for 7"),
        ({"num_attention_heads": 5}, "describes no network"),
        ({"max_position_embeddings": 1 << 30}, "max_position_embeddings must be 1 to"),
    ],
)
def test_texts_that_do_not_fit(folder, change, words):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as error:
        check(Clip(folder), "text")
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_a_larger_network(folder):
    names = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(names | {"zz": 56, "zzz": 57}))
    with pytest.raises(ValueError, match="the tokenizer has 58 tokens, the network 56"):
        check(Clip(folder), "text")
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match="no tokenizer of CLIP"):
        check(Clip(folder), "text")


def test_older_files_say_some_things_twice(tmp_path):
    path = tmp_path / "config.json"
    values = {"model_type": "clip", "vision_config": {"hidden_act": "gelu", "patch_size": 32}, "text_config": {}}
    path.write_text(json.dumps(values))
    assert read_sizes(path)["vision_config"] == {"hidden_act": "gelu", "patch_size": 32}
    path.write_text(json.dumps(values | {"vision_config_dict": {"patch_size": 14}}))
    found = read_sizes(path)["vision_config"]
    assert found["patch_size"] == 14 and found["hidden_act"] == "quick_gelu"  # as transformers takes it


def test_names_of_openclip_are_all_known():
    state = tiny_clip.openclip_state()
    found = renamed(state)
    assert len(found) == len(state) + 2 * 2 * 2 * tiny_clip.LAYERS  # query, key and value are one there
    assert not any("transformer." in name or name.startswith("visual.") for name in found)
    joined = state["visual.transformer.resblocks.1.attn.in_proj_weight"]
    parts = [found[f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), joined)
    assert torch.equal(found["text_projection.weight"].T, state["text_projection"])


def test_legacy_files_of_either_format(tmp_path):
    state = {"a": torch.arange(3.0)}
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert torch.equal(read_legacy(tmp_path / name, "state_dict")["a"], state["a"])
        with pytest.raises(ValueError, match="has no tensors by name; it is no file"):
            read_legacy(tmp_path / name)
        with pytest.raises(ValueError, match="has no tensors by name under 'model'"):
            read_legacy(tmp_path / name, "model")
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes((tmp_path / name).read_bytes()[:200])
        with pytest.raises(ValueError, match=r"is damaged.*copy it again") as error:
            read_legacy(cut, "state_dict")
        assert "trust" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"nothing.pt is missing"):
        read_legacy(tmp_path / "nothing.pt")
