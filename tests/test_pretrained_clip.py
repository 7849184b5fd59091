"""The reader of CLIPs: any of the published layouts, one half at a time, and what does not fit together."""

import json
from pathlib import Path

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from align3d.pretrained.clip import (
    Clip,
    check,
    look,
    network,
    read,
    read_sizes,
    tokenizer,
    tokenizer_files,
    tokenizer_of,
)
from align3d.pretrained.legacy import read_legacy
from align3d.pretrained.once import read_once
from align3d.pretrained.openclip import renamed
from align3d.weights import Weights, fill

CPU, WEIGHTS = torch.device("cpu"), "model.safetensors"


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


def test_no_tensor_of_inference_is_kept(folder):
    """Also not where the network had to be moved to another device."""
    with torch.inference_mode():
        for device in ("cpu", "meta"):
            net = network(Clip(folder), "image", torch.device(device))
            assert not any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers()))


def test_a_place_is_the_same_wherever_the_program_goes(folder, tmp_path, monkeypatch):
    other = tiny_clip.write_clip(tmp_path / "elsewhere/clip")
    changed = {k: v + 1 if k == "visual_projection.weight" else v for k, v in load_file(other / WEIGHTS).items()}
    save_file(changed, other / WEIGHTS)
    wanted = features(folder), features(other)
    assert not torch.equal(*wanted)
    for place, expected in zip((folder, other), wanted, strict=True):
        monkeypatch.chdir(place.parent)
        assert torch.equal(features(Path("clip")), expected)
        assert network(Clip(Path("clip")), "image", CPU) is network(Clip(place), "image", CPU)


def test_other_files_are_another_network(folder):
    before = features(folder)
    changed = {k: v + 1 if k == "visual_projection.weight" else v for k, v in load_file(folder / WEIGHTS).items()}
    save_file(changed, folder / WEIGHTS)
    assert not torch.equal(features(folder), before)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": 3}))
    with pytest.raises(ValueError, match="does not fit"):
        check(Clip(folder))


def test_what_is_read_once_is_given_back_in_order(tmp_path):
    made = []

    @read_once(2, "part")
    def size(folder, more):
        made.append((folder.name, more))
        return len(made)

    (tmp_path / "part").mkdir()
    assert [size(tmp_path, i) for i in (0, 1, 0, 2, 0, 1)] == [1, 2, 1, 3, 1, 4]  # 1 had to go for 2
    (tmp_path / "part/config.json").write_text("{}")
    assert size(tmp_path, 0) == 5
    (tmp_path / "log").write_text("of something else")
    assert size(tmp_path, 0) == 5
    size.cache_clear()
    assert size(tmp_path, 0) == 6


def test_an_image_half_alone_reads_no_texts(folder):
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if k.startswith("vi")}, folder / "model.safetensors")
    values = {"model_type": "clip_vision_model", "projection_dim": tiny_clip.DIM} | tiny_clip.VISION
    (folder / "config.json").write_text(json.dumps(values))
    check(Clip(folder))
    with pytest.raises(ValueError, match="holds the image half of a CLIP alone"):
        check(Clip(folder), texts=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 50}, "does not fit"),
        ({"eos_token_id": 7}, "a text ends with token 55, the network looks for 7"),
        ({"num_attention_heads": 5}, "describes no network"),
        ({"max_position_embeddings": 1 << 30}, "max_position_embeddings must be 1 to"),
        ({"hidden_size": 1 << 30}, "hidden_size must be 1 to"),  # also where the image half has a good one
    ],
)
def test_texts_that_do_not_fit(folder, change, words):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as error:
        check(Clip(folder), texts=True)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_a_larger_network(folder):
    names = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(names | {"zz": 56, "zzz": 57}))
    with pytest.raises(ValueError, match="the tokenizer has 58 tokens, the network 56"):
        check(Clip(folder), texts=True)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match="no tokenizer of CLIP"):
        check(Clip(folder), texts=True)


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_a_tokenizer_is_that_of_its_vocabulary_alone(folder, name):
    """Caches of texts know it by the files that decide what it gives."""
    wanted = tokenizer(folder)(["a red mug zz"])["input_ids"]
    used = tokenizer_files(folder)
    text = {"added_tokens.json": json.dumps({"red": 56, "mug": 57})}
    if name == "tokenizer.json":
        other = Tokenizer.from_str(tokenizer(folder).backend_tokenizer.to_str())
        other.add_tokens(["red", "mug"])
        text[name] = other.to_str()
    (folder / name).write_text(text[name])
    assert tokenizer_files(folder) == used
    assert tokenizer(folder, 56)(["a red mug zz"])["input_ids"] == wanted


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


def test_what_lies_in_the_place_of_a_file(tmp_path):
    for text, what in (
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "a pointer of Git LFS"),
        ("\n<!DOCTYPE html><html>Not found</html>", "a web page"),
    ):
        (tmp_path / "x.pt").write_text(text)
        with pytest.raises(ValueError, match=rf"x\.pt is {what}, not the file itself; fetch that"):
            read_legacy(tmp_path / "x.pt")


def test_whole_numbers_are_no_weights(tmp_path):
    torch.save({"weight": torch.ones(2, 3).int(), "bias": torch.zeros(2)}, tmp_path / "x.pt")
    network = torch.nn.Linear(3, 2)
    with (
        Weights({"": tmp_path / "x.pt"}, read_legacy(tmp_path / "x.pt")) as weights,
        pytest.raises(ValueError, match="weight holds int32, expected real numbers"),
    ):
        fill(network, weights)


STORED = torch.arange(24.0)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "view",
    [
        torch.zeros(1).expand(1 << 14, 1 << 12),
        torch.zeros(600).as_strided((500, 100), (1, 1)),
        torch.zeros(2, 1, 3).expand(2, 2, 3),
        STORED.as_strided((2, 3, 4), (4, 8, 0)),
        STORED.as_strided((4, 6), (1, 3)),
        torch.zeros(3, device="meta"),
    ],
    ids=["one number", "overlapping", "a stride of 0", "another stride of 0", "some twice", "meta"],
)
def test_numbers_that_are_not_in_the_file(tmp_path, zipped, view):
    """A kilobyte must not become gigabytes: they would be, as soon as the tensor is copied."""
    torch.save({"a": view}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"x.pt is damaged.* does not hold all numbers of a$"):
        read_legacy(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_that_are_all_in_the_file(tmp_path, zipped):
    """In whichever order; a network gets them in that of its axes."""
    cube, long = STORED.view(2, 3, 4), STORED.view(6, 4)
    state = {"a": long, "same": long, "none": torch.zeros(0, 3), "part": long[2:], "one": torch.tensor(2.0)}
    state |= {"turned": long.T, "gaps": cube[:, 1:, 2:].permute(1, 2, 0), "last": cube.permute(2, 0, 1)}
    state |= {"thin": STORED.as_strided((1, 24, 1), (7, 1, 0))}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = read_legacy(tmp_path / "x.pt")
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())
    with Weights({"": tmp_path / "x.pt"}, found) as weights:
        assert all(weights.tensor(name).is_contiguous() for name in state)
