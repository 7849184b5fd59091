"""The embedded generator's files: weights that are read, adapters that are written and read again."""

import json
import shutil
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import noise, shake, tiny, write_checkpoint

from align3d.models.embedded import Embedded


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def model(weights, monkeypatch):
    return tiny(weights, monkeypatch)


def test_adapter_round_trip_and_peft_reads_it(model, weights, tmp_path):
    shake(model)
    model.save_adapter(tmp_path / "adapter")
    again = Embedded(weights=weights, adapter=tmp_path / "adapter", rank=2, precision="float32").load()
    ours, theirs = dict(model.adapter.named_parameters()), dict(again.adapter.named_parameters())
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)

    from diffusers import PixArtTransformer2DModel
    from peft import PeftModel

    from align3d.models.embedded import load_part
    from align3d.models.nets.multiview import set_multiview

    network = set_multiview(load_part(PixArtTransformer2DModel, weights / "transformer"), 2).eval()
    peft = PeftModel.from_pretrained(network, str(tmp_path / "adapter"))
    x, t, cond = noise(model), torch.tensor([0.4, 0.6]), model.encode(["a red mug", "a blue dog"])
    with torch.no_grad():
        mine = model.output(x, t, cond.text)
        model.denoiser.network = peft
        assert torch.allclose(model.output(x, t, cond.text), mine, atol=1e-5)


def test_same_seed_same_adapter_and_no_global_randomness(weights):
    before = torch.random.get_rng_state()
    a, b = (Embedded(weights=weights, rank=2).load().adapter.parameters() for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("damage", ["missing", "truncated", "key", "shape", "config"])
def test_damaged_weights_are_named(weights, tmp_path, damage):
    folder = shutil.copytree(weights, tmp_path / "weights")
    path = folder / "gs_vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "config":
        path = folder / "gs_vae" / "config.json"
        path.write_text(path.read_text()[:50])
    else:
        name = "tokens_in.weight"
        value = tensors.pop(name)
        tensors[name + ("x" if damage == "key" else "")] = value if damage == "key" else value[:1].clone()
        save_file(tensors, path)
    with pytest.raises((ValueError, FileNotFoundError), match="gs_vae"):
        Embedded(weights=folder).load()


def test_unknown_config_keys_are_ignored(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "weights")
    for part in ("transformer", "gs_vae"):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"decay": 0.99, "scaling_factor": 1.0}))
    with mock.patch("logging.Logger.warning", pytest.fail):  # in silence
        Embedded(weights=folder).load()


def test_the_shipped_codec_loads():
    from align3d.models.embedded import ASSETS, load_part
    from align3d.models.nets.codec import PatchCodec

    codec = load_part(PatchCodec, ASSETS / "gs_vae")
    assert codec.config.num_views == 4 and "scaling_factor" not in codec.config


def test_adapter_of_another_rank_is_refused(model, weights, tmp_path):
    model.save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="rank 3"):
        Embedded(weights=weights, adapter=tmp_path / "adapter", rank=3).load()


def test_a_runs_folder_is_an_adapter_too(model, weights, tmp_path):
    shake(model)
    with pytest.raises(FileNotFoundError, match="holds no adapter; give a run's folder"):
        Embedded(weights=weights, adapter=tmp_path, rank=2).load()
    model.save_adapter(tmp_path / "adapter")
    again = Embedded(weights=weights, adapter=tmp_path, rank=2).load()
    assert all(torch.equal(p, q) for p, q in zip(model.adapter.parameters(), again.adapter.parameters(), strict=True))
    (tmp_path / "adapter/adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        Embedded(weights=weights, adapter=tmp_path, rank=2).load()


class Backwards(set):
    """A set as another process may have it: Python orders sets of strings by a number that is new in each."""

    def __iter__(self):
        return iter([*super().__iter__()][::-1])


def test_identical_runs_write_identical_files(model, tmp_path):
    model.save_adapter(tmp_path / "a")
    model.adapter.config.target_modules = Backwards(model.adapter.config.target_modules)
    model.save_adapter(tmp_path / "b")
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b and a.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    targets = json.loads(a["adapter_config.json"])["target_modules"]
    assert targets == sorted(targets) and len(targets) == 6


def test_adapter_of_another_alpha_is_refused(model, weights, tmp_path):
    """Its shapes fit, but its update would be scaled by another factor than in training."""
    model.save_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"trained with alpha 8\.0, the model has 16\.0"):
        Embedded(weights=weights, adapter=tmp_path / "adapter", rank=2, alpha=16.0).load()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        Embedded(weights=weights, adapter=tmp_path / "adapter", rank=2).load()
