"""`align3d download` with a hub that is a folder: what is looked up, said, chosen and fetched."""

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from command_checks import refused

from align3d import registry
from align3d.cli import main
from align3d.commands import download
from align3d.commands.download import choose
from align3d.models import MODELS
from align3d.models.published import DiffSplatPAS, DiffSplatSD35m
from align3d.pretrained import fetched
from align3d.rewards.hpsv2 import HPSv21

PAS = "gsdiff_gobj83k_pas_fp16__render/checkpoints"
NORMS = {"mean.pt": 1_836_200, "std.pt": 1_836_200}
CUBES = {  # --model -> its repository, after BwZhang/GaussianCube-, and what is fetched of it
    "gaussiancube": ("Objaverse", ("v1.1/mean.pt", "v1.1/objaverse_ckpt.pt", "v1.1/std.pt")),
    "gaussiancube-v1.0": ("Objaverse", ("v1.0/mean.pt", "v1.0/objaverse_ckpt.pt", "v1.0/std.pt")),
    "gaussiancube-omniobject3d": ("OmniObject3D-v1.0", ("OmniObject3D_ckpt.pt", "mean.pt", "std.pt")),
    "gaussiancube-shapenet-car": ("ShapeNetCar-v1.0", ("mean.pt", "shapenet_car_ckpt.pt", "std.pt")),
    "gaussiancube-shapenet-chair": ("ShapeNetChair-v1.0", ("mean.pt", "shapenet_chair_ckpt.pt", "std.pt")),
}
REPOS = {
    "BwZhang/GaussianCube-Objaverse": {
        **{f"{folder}/{name}": size for folder in ("v1.0", "v1.1") for name, size in NORMS.items()},
        **{f"{folder}/objaverse_ckpt.pt": 1_356_200_000 for folder in ("v1.0", "v1.1")},
        "README.md": 3000,
    },
    **{
        f"BwZhang/GaussianCube-{data}": {file: 340_000_000, "README.md": 3000} | NORMS
        for data, file in (
            ("OmniObject3D-v1.0", "OmniObject3D_ckpt.pt"),
            ("ShapeNetCar-v1.0", "shapenet_car_ckpt.pt"),
            ("ShapeNetChair-v1.0", "shapenet_chair_ckpt.pt"),
        )
    },
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        **{f"text_encoder/{name}": 492_000_000 for name in ("model.safetensors", "pytorch_model.bin")},
        **{"text_encoder/config.json": 617, "tokenizer/vocab.json": 1_059_962, "tokenizer/merges.txt": 524_619},
        **{"unet/config.json": 743, "unet/diffusion_pytorch_model.safetensors": 3_438_167_536},
    },
    "chenguolin/DiffSplat": {
        **{f"{PAS}/{step}/transformer_ema/config.json": 900 for step in ("000100", "013020")},
        **{f"{PAS}/{step}/transformer_ema/diffusion_pytorch_model.safetensors": 10**9 for step in ("000100", "013020")},
        f"{PAS}/013020/optimizer.bin": 10**10,
        "gsvae_gobj265k_sdxl_fp16/checkpoints/039030/model.safetensors": 3 * 10**8,
        "gsrecon_gobj265k_cnp_even4/checkpoints/124320/model.safetensors": 10**8,
    },
    "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers": {
        "text_encoder/config.json": 800,
        "text_encoder/model-00001-of-00002.safetensors": 9 * 10**9,
        "text_encoder/model-00002-of-00002.safetensors": 9 * 10**9,
        "text_encoder/model.safetensors.index.json": 20_000,
        "tokenizer/spiece.model": 800_000,
        "vae/diffusion_pytorch_model.safetensors": 10**8,
    },
    "openai/clip-vit-large-patch14": {
        **{"config.json": 4519, "preprocessor_config.json": 316, "vocab.json": 961_143, "merges.txt": 524_619},
        **{"model.safetensors": 1_710_540_580, "pytorch_model.bin": 1_710_671_599, "flax_model.msgpack": 1_710_486_359},
    },
    "xswu/HPSv2": {"HPS_v2_compressed.pt": 1_972_443_883, "HPS_v2.1_compressed.pt": 1_972_443_883},
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {
        **{"vocab.json": 862_328, "merges.txt": 524_657, "tokenizer_config.json": 904, "config.json": 4_000},
        **{"open_clip_pytorch_model.bin": 3_944_692_325, "model.safetensors": 3_944_517_836},
    },
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Fetched paths, in order."""
    monkeypatch.chdir(tmp_path)
    fetched = []

    def model_info(self, repo, files_metadata, timeout):
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in REPOS[repo].items()]
        return SimpleNamespace(siblings=siblings, card_data={"license": "mit"} if "DiffSplat" in repo else None)

    def fetch(repo, path, local_dir):
        file = Path(local_dir) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(repo)
        fetched.append(path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return fetched


def test_licence_and_size_are_said_before_anything_is_fetched(hub, capsys):
    assert main(["download", "diffsplat-pas", "--out", "files"]) == 0
    shown = capsys.readouterr()
    assert "chenguolin/DiffSplat: 3 files, 1.30 GB, licence: mit" in shown.out
    assert "T5_diffusers: 5 files, 18.00 GB, licence: not stated" in shown.out and "--yes fetches them" in shown.err
    assert hub == [] and not Path("files").exists()


def test_only_what_is_needed_is_fetched_to_where_the_model_looks(hub, capsys):
    assert main(["download", "diffsplat-pas", "--out", "files", "--yes"]) == 0
    assert len(hub) == 8 and not any("000100" in path or "optimizer" in path or "vae/" in path for path in hub)
    model = DiffSplatPAS(weights=Path("files"))
    assert model.text_folder() == Path("files") and model.root() == Path("files")
    assert "--model diffsplat-pas --model.weights files" in capsys.readouterr().out
    hub.clear()
    assert main(["download", "diffsplat-pas", "--what", "text", "--out", "texts", "--yes"]) == 0 and len(hub) == 5


@pytest.mark.parametrize("name", CUBES)
def test_the_cubes_of_gaussians(hub, capsys, name):
    repository, files = CUBES[name]
    assert main(["download", name, "--out", "files", "--yes"]) == 0
    shown = capsys.readouterr().out
    of_text = {"tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/config.json"}
    of_text |= {"text_encoder/model.safetensors"}
    assert set(hub) == {*files, *(of_text if repository == "Objaverse" else ())}
    size = sum(REPOS[f"BwZhang/GaussianCube-{repository}"][file] for file in files) / 1e9
    assert f"BwZhang/GaussianCube-{repository}: 3 files, {size:.2f} GB" in shown
    assert f"use it as --model {name} --model.weights files" in shown
    model = registry.load(MODELS, name)(weights=Path("files"))
    assert model.root() == Path("files") / Path(files[0]).parent
    assert model.text_folder() == (Path("files") if repository == "Objaverse" else None)
    if repository != "Objaverse":
        assert "has no text of its own" in refused(capsys, ["download", name, "--what", "text", "--out", "x"])


def test_it_is_kept_what_came_from_where(hub, capsys, monkeypatch):
    monkeypatch.setattr(fetched, "HASHED", 60)
    assert main(["download", "gaussiancube", "--out", "files", "--yes"]) == 0
    assert main(["download", "gaussiancube-v1.0", "--what", "weights", "--out", "files", "--yes"]) == 0
    found = json.loads(Path("files/source.json").read_text())["files"]
    assert {f"v1.{k}/{name}" for k in "01" for name in ("mean.pt", "std.pt", "objaverse_ckpt.pt")} < found.keys()
    hashed = hashlib.sha256(b"BwZhang/GaussianCube-Objaverse").hexdigest()
    one = {"repository": "BwZhang/GaussianCube-Objaverse", "bytes": 30, "sha256": hashed}
    assert found["v1.0/mean.pt"] == found["v1.1/mean.pt"] == one
    monkeypatch.setattr(fetched, "HASHED", 10)
    assert main(["download", "gaussiancube-shapenet-car", "--out", "car", "--yes"]) == 0
    found = json.loads(Path("car/source.json").read_text())["files"]
    assert len(found) == 3 and found["std.pt"]["sha256"] is None, "too large to be read at each start"
    capsys.readouterr()
    hub.clear()
    said = refused(capsys, ["download", "gaussiancube-shapenet-chair", "--out", "car", "--yes"])
    assert "car/mean.pt is there already, of BwZhang/GaussianCube-ShapeNetCar-v1.0, and that of BwZhang/Gauss" in said
    assert not hub


def test_what_was_fetched_before_an_interruption_is_recorded(hub, capsys, monkeypatch):
    fetch = download.fetch

    def interrupted(repo, path, *more):
        if path == "std.pt":
            raise KeyboardInterrupt
        fetch(repo, path, *more)

    monkeypatch.setattr(download, "fetch", interrupted)
    main(["download", "gaussiancube-shapenet-car", "--out", "car", "--yes"])
    assert set(json.loads(Path("car/source.json").read_text())["files"]) >= {"mean.pt"}
    monkeypatch.setattr(download, "fetch", fetch)
    capsys.readouterr()
    assert "is there already, of BwZhang/GaussianCube-ShapeNetCar-v1.0" in refused(
        capsys, ["download", "gaussiancube-shapenet-chair", "--out", "car", "--yes"]
    )


class Answer(io.BytesIO):
    """Of a web server."""

    def __init__(self, data, told=None):
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data) if told is None else told)}


def test_a_reward_of_two_places(hub, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda what, timeout: asked.append(what) or Answer(b"numbers"))
    assert main(["download", "aesthetic", "--out", "files"]) == 0
    shown = capsys.readouterr().out
    assert "openai/clip-vit-large-patch14: 3 files, 1.71 GB" in shown and "predictor: 1 files, 0.00 GB" in shown
    assert "licence: see https://github.com/christophschuhmann/improved-aesthetic-predictor" in shown
    assert asked.pop().get_method() == "HEAD" and not Path("files").exists()
    assert main(["download", "aesthetic", "--out", "files", "--yes"]) == 0
    head = "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/HEAD/"
    assert asked[-1] == f"{head}sac%2Blogos%2Bava1-l14-linearMSE.pth"
    assert Path("files/sac+logos+ava1-l14-linearMSE.pth").read_bytes() == b"numbers"
    assert sorted(hub) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert "--reward aesthetic --reward.weights files" in capsys.readouterr().out
    asked.clear()
    assert main(["download", "aesthetic", "--out", "files", "--yes"]) == 0 and len(asked) == 1  # for its size


def test_a_file_that_ends_early_is_not_kept(hub, capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda what, timeout: Answer(b"numbers", told=1000))
    assert main(["download", "aesthetic", "--out", "files", "--yes"]) == 2
    assert "came with 7 bytes, expected 1000; try again" in capsys.readouterr().err
    assert not list(Path("files").glob("*.pth"))


def test_two_uses_of_one_repository(hub, capsys, monkeypatch):
    sources = {what: {"xswu/HPSv2": (pattern,)} for what, pattern in (("weights", "*v2.1*"), ("text", "*v2_c*"))}
    monkeypatch.setattr(DiffSplatPAS, "sources", sources)
    assert main(["download", "diffsplat-pas", "--out", "files", "--yes"]) == 0 and len(hub) == 2


def test_a_reward_in_another_format_is_converted(hub, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(HPSv21, "convert", lambda folder: made.append(folder) or folder / "HPS.safetensors")
    assert main(["download", "hpsv2.1", "--out", "files"]) == 0 and not made
    assert main(["download", "hpsv2.1", "--out", "files", "--yes"]) == 0 and made == [Path("files")]
    assert sorted(hub) == ["HPS_v2.1_compressed.pt", "merges.txt", "tokenizer_config.json", "vocab.json"]
    assert "converted: files/HPS.safetensors" in capsys.readouterr().out


def test_weights_in_16_bits_are_enough():
    names = ["text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"]
    more = ["text_encoder_2/model.safetensors", "text_encoder_3/model.safetensors.index.json"]
    files = dict.fromkeys([*names, *more], 1)
    (patterns,) = DiffSplatSD35m.sources["text"].values()
    assert set(choose(files, patterns)) == {names[0], names[2], *more}


class Gated(Exception):
    """Like the hub's GatedRepoError."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("no route"),
            "ConnectionError: no route); put these files into files by hand, as they lie there",
        ),
        (Gated("401 Client Error"), "log in with `hf auth login`"),
    ],
)
def test_what_cannot_be_reached_is_one_line(hub, capsys, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    assert message in refused(capsys, ["download", "diffsplat-pas", "--out", "files"])


def test_models_without_anything_to_fetch_are_named(hub, capsys):
    assert "model 'embedded' has nothing to download" in refused(capsys, ["download", "embedded", "--out", "x"])
    said = refused(capsys, ["download", "nothing", "--out", "x"])
    assert "no model, prior or reward to download; known: diffsplat-pas" in said and "hpsv2.1" in said
    assert "reward 'dnc' has nothing to download" in refused(capsys, ["download", "dnc", "--out", "x"])
    assert "has no text of its own" in refused(capsys, ["download", "clip", "--what", "text", "--out", "x"])


def test_a_failure_in_the_middle_says_what_is_missing(hub, capsys, monkeypatch):
    def fail(*_, **__):
        raise TimeoutError("slow")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert main(["download", "diffsplat-pas", "--out", "files", "--yes"]) == 2
    assert "TimeoutError: slow" in capsys.readouterr().err
