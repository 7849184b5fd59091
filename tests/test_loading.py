"""Networks in one file or in shards: the same numbers, exact keys, nothing that an index can lead astray."""

import json
import threading

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from align3d.weights import WEIGHTS, NotItsWeights, Weights, build, load_part, parameters_on_meta, require_keys

CONFIG = dict(num_attention_heads=2, attention_head_dim=8, in_channels=10, out_channels=8, num_layers=2, sample_size=8)
CONFIG |= dict(cross_attention_dim=16, caption_channels=12, use_additional_conditions=False)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PixArtTransformer2DModel(**CONFIG)


@pytest.fixture
def whole(network, tmp_path):
    """A published folder: one file, and a configuration with bookkeeping of the training."""
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "decay": 0.9999, "power": 0.75, "_class_name": "x"}))
    save_file(network.state_dict(), tmp_path / f"{WEIGHTS}.safetensors")
    return tmp_path


@pytest.fixture
def shards(whole):
    """The same in two shards."""
    tensors = load_file(whole / f"{WEIGHTS}.safetensors")
    names = sorted(tensors)
    parts = {f"{WEIGHTS}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in (0, 1)}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, whole / file)
    places = {key: file for file, keys in parts.items() for key in keys}
    (whole / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (whole / f"{WEIGHTS}.safetensors").unlink()
    return whole


def run(network):
    x = torch.randn(2, 10, 8, 8, generator=torch.Generator().manual_seed(1))
    text, t = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)), torch.tensor([3, 900])
    with torch.no_grad():
        return network.eval()(x, encoder_hidden_states=text, timestep=t, return_dict=False)[0]


def test_a_loaded_network_is_the_saved_one(network, whole):
    loaded = load_part(PixArtTransformer2DModel, whole)
    assert torch.equal(run(loaded), run(network))  # with its table of positions, which no file holds
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and p.requires_grad for p in loaded.parameters())
    half = load_part(PixArtTransformer2DModel, whole, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half.pos_embed.pos_embed.isfinite().all()


def test_shards_are_one_network(network, shards):
    assert torch.equal(run(load_part(PixArtTransformer2DModel, shards)), run(network))


@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_16_bits_are_taken_where_there_is_nothing_else(network, layout, request):
    folder = request.getfixturevalue(layout)
    if layout == "whole":
        (folder / f"{WEIGHTS}.safetensors").rename(folder / f"{WEIGHTS}.fp16.safetensors")
    else:
        index = folder / f"{WEIGHTS}.safetensors.index.json"
        index.rename(folder / f"{WEIGHTS}.safetensors.index.fp16.json")
    assert torch.equal(run(load_part(PixArtTransformer2DModel, folder)), run(network))
    save_file({"else": torch.zeros(1)}, folder / f"{WEIGHTS}.safetensors")
    with pytest.raises(ValueError, match="num_layers 2, expected 0 to 1"):  # one tensor has room for no more
        load_part(PixArtTransformer2DModel, folder)


def test_values_of_the_configuration_may_be_changed(whole):
    with pytest.raises(ValueError, match=r"does not fit PixArt.*: \d+ missing, such as transformer_blocks\.2"):
        load_part(PixArtTransformer2DModel, whole, config=lambda values: values | {"num_layers": 3})


def edit(shards, change):
    file = shards / f"{WEIGHTS}.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def outside(places):
    places["proj_out.bias"] = "../elsewhere.safetensors"


def misplaced(places):
    places["proj_out.extra"] = min(places.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, r"index\.json is damaged, it names the file '\.\./elsewhere"),
        (misplaced, r"00001-of-00002\.safetensors is damaged, it lacks proj_out\.extra"),
        (lambda places: places.update(x="other.safetensors"), r"other\.safetensors is missing"),
    ],
)
def test_an_index_that_lies_is_refused(shards, change, message):
    edit(shards, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_part(PixArtTransformer2DModel, shards)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_damaged(shards, text):
    (shards / f"{WEIGHTS}.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is damaged \("):
        load_part(PixArtTransformer2DModel, shards)


def test_keys_are_exact_and_each_kind_of_difference_is_told(network):
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    require_keys(network, shapes)
    wrong = {key: shape for key, shape in shapes.items() if key != "proj_out.bias"} | {"spare": (1,)}
    wrong["proj_out.weight"] = (3, 3)
    with pytest.raises(NotItsWeights) as error:
        require_keys(network, wrong)
    text = str(error.value)
    assert "1 missing, such as proj_out.bias; 1 unknown, such as spare; 1 of another shape" in text and "[3, 3]" in text
    require_keys(network, {f"vae.{k}": v for k, v in shapes.items()} | {"tiny.x": (1,)}, prefix="vae.")


def test_a_truncated_shard_is_named(shards):
    path = sorted(shards.glob("*-of-*"))[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        load_part(PixArtTransformer2DModel, shards)


def test_parameters_have_no_memory_until_they_are_filled():
    with parameters_on_meta():
        layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {b.device.type for b in layer.buffers()} == {"cpu"}
    assert nn.Linear(3, 4).weight.device.type == "cpu"


def test_parameters_of_other_threads_have_memory():
    """Two threads that begin in turn and would end in the same order; a third that has nothing to do with it."""
    before, inside, done = nn.Module.register_parameter, threading.Event(), threading.Event()
    found = {}

    def first():
        with parameters_on_meta():
            inside.set()
            done.wait(5)
            found["first"] = nn.Linear(2, 2).weight.device.type

    def second():
        with parameters_on_meta():
            threads[0].join(5)
            found["second"] = nn.Linear(2, 2).weight.device.type

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    inside.wait(5)
    threads[1].start()
    found["third"] = nn.Linear(2, 2).weight.device.type
    threads[1].join(0.1)  # it begins while the first is inside, and ends after it
    done.set()
    for thread in threads:
        thread.join(5)
    assert found == {"first": "meta", "second": "meta", "third": "cpu"}
    assert nn.Module.register_parameter is before


def test_shared_parameters_stay_shared_without_memory():
    with parameters_on_meta():
        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        two.weight = one.weight
    assert two.weight is one.weight


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_types_that_no_network_is_kept_in_are_refused(whole, kind):
    file = whole / f"{WEIGHTS}.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"proj_out.bias": tensors["proj_out.bias"].to(getattr(torch, kind))}, file)
    with pytest.raises(ValueError, match=rf"proj_out\.bias has numbers of type {kind}; float32"):
        load_part(PixArtTransformer2DModel, whole)


@pytest.mark.parametrize("name", ["layers_per_block", "transformer_layers_per_block"])
@pytest.mark.parametrize("value", [1 << 19, [1, 1 << 19]])
def test_counts_of_layers_are_bounded_by_the_tensors(name, value):
    class Deep(nn.Module):
        def __init__(self, layers_per_block=1, transformer_layers_per_block=1):
            raise AssertionError("was asked to build them")

        @classmethod
        def from_config(cls, values):
            return cls(**values)

    with pytest.raises(ValueError, match=f"config.json has {name} {1 << 19}, expected 0 to 3"):
        build(Deep, {name: value}, {"a": (1,), "b": (1,), "c": (1,)})


def test_a_configuration_of_any_size_is_not_read(whole):
    with (whole / "config.json").open("ab") as file:
        file.write(b" " * (1 << 20))
    with pytest.raises(ValueError, match=r"config\.json is damaged \(it has more than"):
        load_part(PixArtTransformer2DModel, whole)


def test_tensors_are_read_one_by_one(shards):
    with Weights.find(shards) as weights:
        assert weights.tensor("proj_out.bias").shape == weights.shapes["proj_out.bias"]
    assert not weights._open
