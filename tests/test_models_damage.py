"""Files of networks and adapters that are damaged: one line that names them, and no memory asked for on their word."""

import json
import shutil
import stat

import pytest
from safetensors.torch import load_file, save_file
from tiny_model import write_checkpoint

from align3d.models.embedded import Embedded, load_part
from align3d.models.nets.codec import PatchCodec

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def weights(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "weights")


@pytest.fixture
def adapter(intact, tmp_path):
    """The folder of an adapter of rank 2."""
    Embedded(weights=intact, rank=2).load().save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def poison(path, value):
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[-1] = value
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("transformer", {"num_attention_heads": -2}),
        ("transformer", {"num_layers": 10**9}),
        ("transformer", {"num_layers": "x"}),
        ("transformer", {"caption_channels": 10**16}),
        ("transformer", {"sample_size": 10**6}),
        ("transformer", {"attention_head_dim": 1 << 19}),  # terabytes
        ("gs_vae", {"decoder_dim": -16}),
        ("gs_vae", {"decoder_dim": 0}),
        ("gs_vae", {"encoder_channels": [1 << 19, 1 << 19]}),
        ("gs_vae", {"encoder_channels": [-8, 8]}),
        ("gs_vae", {"num_views": None}),
        ("text_encoder", {"buckets": 10**17}),
        ("text_encoder", {"dim": 1 << 20, "heads": 1 << 20}),
        ("text_encoder", {"max_words": float("inf")}),
        ("text_encoder", {"words": 3}),
    ],
)
def test_a_config_of_absurd_numbers_is_one_line_and_no_memory(weights, part, values):
    change(weights / part / "config.json", **values)
    with pytest.raises(ValueError, match=rf"{part}.*(is damaged \(|does not fit)"):
        Embedded(weights=weights).load()


@pytest.mark.parametrize("content", ["[1]", "3", "{", "[" * 100_000, "\udcff"])
def test_a_config_that_is_no_object_is_damaged(weights, content):
    (weights / "gs_vae/config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"gs_vae.config\.json is damaged \("):
        load_part(PatchCodec, weights / "gs_vae")


def test_shapes_are_compared_before_a_network_is_built(weights, monkeypatch):
    built = []
    real = PatchCodec.__init__

    def init(self, *args, **options):
        real(self, *args, **options)
        built.append({parameter.device.type for parameter in self.parameters()})

    change(weights / "gs_vae/config.json", decoder_dim=32)
    monkeypatch.setattr(PatchCodec, "__init__", init)
    with pytest.raises(ValueError, match="does not fit PatchCodec"):
        load_part(PatchCodec, weights / "gs_vae")
    assert built == [{"meta"}]


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_folder_in_the_place_of_a_file_is_named(weights, name):
    (weights / "gs_vae" / name).unlink()
    (weights / "gs_vae" / name).mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name} is no file"):
        Embedded(weights=weights).load()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("part", ["transformer", "gs_vae", "text_encoder"])
def test_weights_that_are_not_finite_are_refused(weights, part, value):
    poison(weights / part / WEIGHTS, value)
    with pytest.raises(ValueError, match=rf"{part}/{WEIGHTS} is damaged, .* has NaN or infinity"):
        Embedded(weights=weights).load()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(intact, adapter, value):
    poison(adapter / "adapter_model.safetensors", value)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged, .* has NaN or infinity"):
        Embedded(weights=intact, adapter=adapter, rank=2).load()


@pytest.mark.parametrize(
    "values",
    [
        {"r": 10**9},
        {"r": -2},
        {"r": "x"},
        {"lora_alpha": "x"},
        {"lora_alpha": -8},
        {"lora_alpha": None},
        {"lora_alpha": True},
        {"lora_alpha": float("nan")},
    ],
)
def test_an_adapters_config_of_absurd_numbers_is_refused(intact, adapter, values):
    change(adapter / "adapter_config.json", **values)
    (name,) = values
    with pytest.raises(ValueError, match=rf"adapter is damaged, its {name} is"):
        Embedded(weights=intact, adapter=adapter, rank=2).load()


def test_a_huge_rank_is_refused_before_it_takes_all_memory(intact):
    with pytest.raises(ValueError, match=r"adapter rank must be in 1 to .*; got 1000000000"):
        Embedded(weights=intact, rank=10**9).load()


def test_others_may_read_an_adapter(adapter):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in adapter.iterdir()}
    (adapter / "mine").touch()
    assert modes == {stat.S_IMODE((adapter / "mine").stat().st_mode)}
