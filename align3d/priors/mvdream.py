"""MVDream: Stable Diffusion that paints four views of an object together, from cameras that it is told.

    WEIGHTS/sd-v2.1-base-4view.pt or sd-v1.5-4view.pt     UNet, VAE and text encoder, one file
    WEIGHTS/vocab.json, merges.txt                        of the tokenizer of CLIP

`convert`, which `align3d download` calls, writes the file once as safetensors under the same names; where that lies
beside the published one, it is read in its place.

Source: Shi et al. 2023, arXiv 2308.16512, github.com/bytedance/MVDream (618f844).
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from align3d.pretrained import legacy
from align3d.priors.published import Published

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.models.text import TextSource
    from align3d.priors.published import LatentPrior
    from align3d.types import Cameras
    from align3d.weights import Weights

V21, V15 = "sd-v2.1-base-4view", "sd-v1.5-4view"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
VIEWS = 4  # that the networks were trained to paint together; they take other numbers
BETAS = (0.00085, 0.012)


@dataclass(frozen=True)
class Layout:
    """What a file holds: the configurations of its networks, as diffusers and transformers have them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    openclip: bool  # whether the text encoder has OpenCLIP's names, and one layer more than is used


UNET = {
    "sample_size": 32,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "layers_per_block": 2,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 16,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
LAYOUTS = {
    V21: Layout(
        unet=UNET | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
        vae=VAE,
        text=TEXT
        | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
        | {"hidden_act": "gelu", "projection_dim": 1024},
        openclip=True,
    ),
    V15: Layout(
        unet=UNET | {"attention_head_dim": 8, "cross_attention_dim": 768},
        vae=VAE,
        text=TEXT
        | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"hidden_act": "quick_gelu", "projection_dim": 768},
        openclip=False,
    ),
}


def _sources(file: str) -> dict[str, Any]:
    return {"weights": {"MVDream/MVDream": (f"{file}.pt",), "openai/clip-vit-large-patch14": TOKENIZER}}


@dataclass(frozen=True)
class MVDream(Published):
    """MVDream on Stable Diffusion 2.1-base: four views of 256 pixels together; 0.87 billion parameters."""

    text: Path | None = None  # folder with tokenizer/ and text_encoder/ to read texts with; none = as in the file
    size: int = 256  # side in pixels of the pictures
    front: float = 90.0  # azimuth by MVDream's own count, in degrees, of our azimuth 0; objects mostly face 90
    offload: bool = True  # whether the text encoder stays on the CPU, and is moved for each new text

    name: ClassVar[str] = "mvdream"
    file: ClassVar[str] = V21
    sources: ClassVar[dict[str, Any]] = _sources(V21)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.front):
            raise ValueError(f"prior.front must be a finite number of degrees, got {self.front}")

    def load(self, device: str | torch.device = "cpu") -> LatentPrior:
        """The prior, frozen.

        Args:
            device: Where the networks live.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one is damaged or does not fit; says where the files are published.
        """
        from align3d.models.text_files import load_clip
        from align3d.priors.nets.painter import Painter
        from align3d.priors.stable_diffusion import require_width

        unet_type, vae_type = self.types(device)
        text = None if self.text is None else load_clip(self.text, str(device), "float32", self.offload)
        with self.files() as folder, opened(folder, self.file) as (parts, weights):
            text = text or read_text(folder, self.file, parts["text"], weights, str(device), self.offload)
            unet, vae = parts["unet"].fill(weights, unet_type), parts["vae"].fill(weights, vae_type)
        require_width(text, unet.config.cross_attention_dim)
        codec = self.codec(vae)
        painter = Painter(unet, together=True, softmax="float32")
        more = {"size": self.size, "schedule": noise_levels(), "views": VIEWS, "poses": self.poses}
        return self.assemble(painter, codec, text, device, **more)

    def poses(self, cameras: Cameras) -> Float[Tensor, "B V 16"]:
        """The numbers that MVDream is told of cameras."""
        return blender_poses(cameras, self.front)

    @classmethod
    def convert(cls, folder: Path) -> Path | None:
        """Write the weights as safetensors beside the published file; see `legacy.convert`."""

        def check(folder: Path) -> None:
            with opened(folder, cls.file):
                pass

        return legacy.convert(folder, cls.file, legacy.read_legacy, check)


@dataclass(frozen=True)
class MVDream15(MVDream):
    """MVDream on Stable Diffusion 1.5: four views of 256 pixels together; 0.86 billion parameters."""

    name = "mvdream-1.5"
    file = V15
    sources = _sources(V15)


def blender_poses(cameras: Cameras, front: float = 0.0) -> Float[Tensor, "B V 16"]:
    """Camera-to-world matrices in Blender's axes, camera and world, at distance 1, row after row.

    The world there has z up; a camera has y up and looks along -z. MVDream's `get_camera(azimuth, elevation)` is
    `orbit(azimuth - front, elevation)` here.

    Args:
        cameras: Of the views.
        front: What azimuths are turned by, degrees.
    """
    import torch

    c2w, a = cameras.c2w, math.radians(front)
    turn = [[math.cos(a), 0.0, math.sin(a)], [math.sin(a), 0.0, -math.cos(a)], [0.0, 1.0, 0.0]]
    world = c2w.new_tensor(turn)
    axes = world @ c2w[..., :3, :3] * c2w.new_tensor([1.0, -1.0, -1.0])
    centre = world @ c2w[..., :3, 3:]
    centre = centre / (centre.norm(dim=-2, keepdim=True) + 1e-8)
    return torch.cat([torch.cat([axes, centre], -1), c2w[..., 3:, :]], -2).flatten(-2)


def noise_levels() -> Any:
    """Those of Stable Diffusion."""
    from align3d.diffusion.schedule import DiscreteVP

    return DiscreteVP(beta_start=BETAS[0], beta_end=BETAS[1], kind="scaled_linear")


@contextmanager
def opened(folder: Path, file: str) -> Iterator[tuple[dict[str, Any], Weights]]:
    """The networks of a file, still without memory, and its tensors, once all of them are known to fit.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is damaged, or has other tensors.
    """
    from align3d.priors.nets import ldm
    from align3d.weights import NotItsWeights

    weights, layout = legacy.converted_or_published(folder, file, legacy.read_legacy), LAYOUTS[file]
    with weights:
        parts = empty_parts(layout)
        try:
            ldm.require_all(weights.shapes, expected(layout, parts), set() if layout.openclip else {ldm.POSITIONS})
            ldm.require_schedule(weights.tensor("betas"), noise_levels())
        except NotItsWeights as error:
            path = next(iter(weights.paths.values()))
            raise ValueError(f"{path} is not the {file} that was published: {error}") from None
        yield parts, weights


def empty_parts(layout: Layout) -> dict[str, Any]:
    """The networks of a layout without memory, and where their tensors are in the file."""
    from functools import partial

    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from align3d.priors.nets import ldm
    from align3d.priors.nets.painter import CameraUNet

    place = ldm.openclip_place if layout.openclip else ldm.clip_place
    unet = ldm.empty(lambda: CameraUNet.from_config(layout.unet))
    vae = ldm.empty(lambda: AutoencoderKL.from_config(layout.vae))
    return {
        "unet": ldm.Part(unet, partial(ldm.unet_place, unet.config)),
        "vae": ldm.Part(vae, partial(ldm.vae_place, vae.config)),
        "text": ldm.Part(ldm.empty(lambda: CLIPTextModel(CLIPTextConfig(**layout.text))), place),
    }


def expected(layout: Layout, parts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a file."""
    from align3d.priors.nets import ldm

    need = dict.fromkeys(ldm.SCHEDULE, (noise_levels().num_steps,))
    for part in parts.values():
        need |= part.shapes()
    if layout.openclip:
        text = layout.text
        need |= ldm.unread_openclip(text["num_hidden_layers"], text["hidden_size"], text["projection_dim"])
    return need


def read_text(folder: Path, file: str, part: Any, weights: Weights, device: str, offload: bool) -> TextSource:
    """The text encoder of a file, with the tokenizer in its folder.

    Raises:
        FileNotFoundError: If the tokenizer is missing.
        ValueError: If a file is damaged.
    """
    from align3d.models.text import CLIP_TOKENS, ClipText, Tower
    from align3d.pretrained.clip import quiet, tokenizer, tokenizer_files

    layout = LAYOUTS[file]
    found = tokenizer(folder, layout.text["vocab_size"])

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        with quiet():  # of texts that are too long
            return found(list(texts))["input_ids"]

    encoder = part.fill(weights)
    if not offload:
        encoder.to(device)
    pad = 0 if layout.openclip else found.eos_token_id
    files = {"weights": list(weights.paths.values()), "tokenizer": tokenizer_files(folder)}
    return ClipText(Tower(tokenize, encoder, CLIP_TOKENS, pad, device, offload), files)
