"""Adapters in PEFT's layout and in that of the public code: the same update, refused where they are damaged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import noise, shake, write_checkpoint

from align3d.cli import main
from align3d.commands.earlier import model_of
from align3d.models.embedded import Embedded
from align3d.models.lora_files import PEFT, PEFT_CONFIG, PUBLISHED, PUBLISHED_CONFIG, read


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"), views=4)


@pytest.fixture
def trained(weights, tmp_path):
    """A model with an adapter of rank 2 and alpha 4 that has moved, and its folder."""
    model = Embedded(weights=weights, rank=2, alpha=4.0).load()
    shake(model)
    model.save_adapter(tmp_path / "mine")
    return model, tmp_path / "mine"


def predicted(model):
    with torch.no_grad():
        return model.predict(noise(model), torch.tensor([0.9, 0.2]), model.encode(["a cube", "a cone"]))


def test_there_and_back(trained, weights, tmp_path, capsys):
    model, mine = trained
    assert main(["adapter", str(mine), "--layout", "published", "--out", str(tmp_path / "theirs")]) == 0
    shown = capsys.readouterr()
    assert "rank 2, alpha 8, " in shown.out and "inference reads rank 8 alone" in shown.err
    theirs = load_file(tmp_path / "theirs" / PUBLISHED)
    assert all(key.startswith("unet.transformer_blocks.") and ".lora_" in key for key in theirs)
    assert json.loads((tmp_path / "theirs" / PUBLISHED_CONFIG).read_text())["lora_alpha"] == 8
    assert model_of(tmp_path / "theirs") == {"rank": 2, "alpha": 8}
    want = predicted(model)
    for folder, alpha in ((tmp_path / "theirs", 8.0), (mine, 4.0)):
        again = Embedded(weights=weights, adapter=folder, rank=2, alpha=alpha).load()
        torch.testing.assert_close(predicted(again), want, rtol=1e-5, atol=1e-5)
    assert main(["adapter", str(tmp_path / "theirs"), "--out", str(tmp_path / "back")]) == 0
    assert read(tmp_path / "back").alpha == 8 and (tmp_path / "back" / PEFT).is_file()
    torch.testing.assert_close(
        {k: v / 2 if "lora_B" in k else v for k, v in read(mine).tensors.items()}, read(tmp_path / "back").tensors
    )


def test_what_peft_writes_and_reads(weights, trained, tmp_path):
    """Through PEFT's own functions, on the network as it is published."""
    from diffusers import PixArtTransformer2DModel
    from peft import LoraConfig, get_peft_model

    from align3d.models.lora import TARGETS
    from align3d.models.nets.multiview import set_multiview
    from align3d.weights import load_part

    def wrapped():
        network = set_multiview(load_part(PixArtTransformer2DModel, weights / "transformer"), 4)
        return get_peft_model(network, LoraConfig(r=2, lora_alpha=4.0, target_modules=list(TARGETS)))

    model, mine = trained
    theirs = wrapped()
    theirs.load_adapter(str(mine), "default")
    own = dict(model.adapter.named_parameters())
    found = {k.removeprefix("base_model.model."): p for k, p in theirs.named_parameters() if "lora_" in k}
    assert found.keys() == own.keys() and all(torch.equal(found[k], own[k]) for k in own)

    theirs.save_pretrained(str(tmp_path / "saved"))
    again = Embedded(weights=weights, adapter=tmp_path / "saved", rank=2, alpha=4.0).load()
    assert torch.equal(predicted(again), predicted(model))


def damage(folder, change):
    file = folder / PUBLISHED
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: next(iter(t.values())).fill_(float("nan")), "has NaN or infinity"),
        (lambda t: t.pop(next(iter(t))), "names or shapes differ, first base_model.model.transformer"),
        (lambda t: t.update(x=torch.zeros(1)), "names or shapes differ, first base_model.model.x"),
    ],
)
def test_a_published_file_that_does_not_fit_is_refused(trained, weights, tmp_path, change, message):
    assert main(["adapter", str(trained[1]), "--layout", "published", "--out", str(tmp_path / "theirs")]) == 0
    damage(tmp_path / "theirs", change)
    with pytest.raises(ValueError, match=message):
        Embedded(weights=weights, adapter=tmp_path / "theirs", rank=2).load()


@pytest.mark.parametrize("layout", ["peft", "published"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("fan_in_fan_out", True),
        ("alpha_pattern", {"to_q": 16}),
        ("rank_pattern", {"to_q": 4}),
        ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa_niter_16"),
    ],
)
def test_another_update_than_plain_lora_is_refused_by_name(trained, tmp_path, name, value, layout):
    assert main(["adapter", str(trained[1]), "--layout", layout, "--out", str(tmp_path / "it")]) == 0
    file = tmp_path / "it" / (PEFT_CONFIG if layout == "peft" else PUBLISHED_CONFIG)
    values = json.loads(file.read_text())
    plain = {"use_rslora": False, "use_dora": False, "alpha_pattern": {}, "rank_pattern": {}, "init_lora_weights": True}
    file.write_text(json.dumps(values | plain))
    assert read(tmp_path / "it").rank == 2
    file.write_text(json.dumps(values | {name: value}))
    with pytest.raises(ValueError, match=rf"adapter_config\.json has {name} .*only plain LoRA"):
        read(tmp_path / "it")


def test_matrices_and_configurations_that_nobody_writes_are_refused(trained):
    tensors = load_file(trained[1] / PEFT)
    save_file({key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}, trained[1] / PEFT)
    with pytest.raises(ValueError, match="has numbers of type float8_e4m3fn"):
        read(trained[1])
    with (trained[1] / PEFT_CONFIG).open("ab") as file:
        file.write(b" " * (1 << 20))
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged \(it has more than"):
        read(trained[1])


def test_the_command_refuses_what_is_no_adapter_and_what_is_in_the_way(trained, tmp_path, capsys):
    assert main(["adapter", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "holds no adapter; give a run's folder" in capsys.readouterr().err and not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert main(["adapter", str(trained[1]), "--out", str(tmp_path / "full")]) == 2
    assert "full is not empty" in capsys.readouterr().err
    (trained[1] / PEFT).write_bytes(b"cut")
    assert main(["adapter", str(trained[1]), "--out", str(tmp_path / "y")]) == 2
    assert "is damaged" in capsys.readouterr().err and not (tmp_path / "y").exists()


def test_a_folder_that_the_public_inference_has_been_in(trained, tmp_path):
    """It writes the matrices beside the published file, under PEFT's name and without its configuration."""
    _, mine = trained
    assert main(["adapter", str(mine), "--layout", "published", "--out", str(tmp_path / "theirs")]) == 0
    before = read(tmp_path / "theirs")
    save_file({"anything": torch.ones(2)}, tmp_path / "theirs" / PEFT)
    after = read(tmp_path / "theirs")
    assert after.path.name == PUBLISHED and after.alpha == 8 and after.tensors.keys() == before.tensors.keys()
    (tmp_path / "theirs" / PUBLISHED).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing, which belongs to the adapter"):
        read(tmp_path / "theirs")


def test_an_adapter_of_other_layers_or_rank_says_with_which_options_it_fits(weights, tmp_path):
    """Embedded has no such option, the published generators have."""
    from align3d.models.lora import Adapter

    whole = Embedded(weights=weights, rank=2, alpha=8.0).load()
    shake(whole)
    whole.save_adapter(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"try --model\.rank 2"):
        Embedded(weights=weights, adapter=tmp_path / "whole", rank=3, alpha=8.0).load()
    with pytest.raises(ValueError, match=r"try --model\.layers all"):
        Adapter(load_base(weights), 2, 8.0, targets=("to_q",)).load(tmp_path / "whole")
    Adapter(load_base(weights), 2, 8.0, targets=("to_q",)).save(tmp_path / "few")
    with pytest.raises(ValueError, match=r"try --model\.layers blocks"):
        Embedded(weights=weights, adapter=tmp_path / "few", rank=2, alpha=8.0).load()


def load_base(weights):
    """The network without an adapter."""
    from diffusers import PixArtTransformer2DModel

    from align3d.weights import load_part

    return load_part(PixArtTransformer2DModel, weights / "transformer")
