"""The published DiffSplat generators: PixArt-Sigma, Stable Diffusion 1.5, SD3.5-medium (chenguolin/DiffSplat, MIT).

    WEIGHTS/gsdiff_gobj83k_NAME__render/checkpoints/STEP/transformer_ema or unet_ema     config.json, weights
    WEIGHTS/gsvae_gobj265k_NAME/checkpoints/STEP/model.safetensors                       GS-VAE and tiny decoder

STEP is the last by name. Texts come from the encoders' own folder (`text`), or from what `align3d embed` wrote
(`cache`). Quirks that the weights were trained with are options whose defaults fit them: rays of the Plucker maps, raw
quaternions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.models.embedded import bfloat16_is_fast
from align3d.models.lora import adapted, check_options
from align3d.models.text_options import TextOptions
from align3d.weights import NotItsWeights, Weights, build, fill, load_part

if TYPE_CHECKING:
    from torch import nn

    from align3d.models.diffsplat import DiffSplat
    from align3d.models.text import TextSource

REPOSITORY = "chenguolin/DiffSplat"
SOURCE = f"the files of huggingface.co/{REPOSITORY}, as they lie there"
VIEWS = 4  # splat maps of an object, seen by the canonical cameras
LAYERS = {  # what is adapted -> ends of the names of layers
    "blocks": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    "all": (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("proj", "linear", "linear_1", "linear_2"),
    ),
}


@dataclass(frozen=True)
class Published(TextOptions):
    """What the published generators have in common."""

    weights: Path | None = None  # folder with the published files of DiffSplat, gsdiff_... and gsvae_...; or --weights
    adapter: Path | None = None  # a run's folder, or an adapter's, PEFT's or published; none = a fresh adapter
    rank: int = 8  # rank of the LoRA adapter
    alpha: float = 8.0  # the adapter's update is scaled by alpha / rank; 8 in the published ones, whatever the rank
    layers: Literal["blocks", "all"] = "blocks"  # adapted: attention and feed-forward; all = as the released code does
    guidance: float = 4.5  # classifier-free guidance; 1 = none
    steps: int = 20  # sampling steps
    spacing: Literal["linspace", "trailing"] = "linspace"  # of the steps; DiffSplat's own inference has trailing
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the denoiser; auto = bfloat16 where it is fast
    softmax: Literal["network", "float32"] = "network"  # float32: self-attention and last norms of the denoiser in it
    recompute: bool = False  # keep no activations of denoiser and decoder: less memory, one more forward pass each
    decoder: Literal["full", "tiny"] = "full"  # of the GS-VAE; tiny has 6 % of the cost and less detail
    decode_rows: int = 4  # views decoded at a time; 0 = all, more memory
    rays: Literal["published", "exact"] = "published"  # of the Plucker maps; the weights know the former, shifted ones
    opacity_threshold: float = 0.0  # Gaussians at or below this opacity are dropped

    denoiser: ClassVar[str]  # class in nets.denoisers
    run: ClassVar[str]  # folder of its training
    codec: ClassVar[str]  # folder of the GS-VAE's training
    width: ClassVar[str]  # in the network's configuration: numbers of a token
    scaling: ClassVar[float]  # of the latents
    shift: ClassVar[float] = 0.0
    prediction: ClassVar[Literal["epsilon", "v", "flow"]] = "epsilon"
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]]  # what -> repository -> patterns of its files

    def __post_init__(self) -> None:
        check_options(self, decode_rows=0)

    def schedule(self) -> Any:
        """Noise levels, and the sampler's times."""
        raise NotImplementedError

    def load(self, device: str = "cpu") -> DiffSplat:
        """The generator, frozen, with a LoRA adapter of no effect (or the one from `adapter`).

        Args:
            device: Where the networks live.

        Raises:
            FileNotFoundError: If a folder or file is missing.
            ValueError: If weights are damaged or do not fit, or there is neither a text encoder nor a cache.
        """
        from align3d.models.nets import denoisers

        root, kind = self.root(), getattr(denoisers, self.denoiser)
        self.need_text()
        codec = self.load_codec(newest(root / self.codec))
        network = self.load_network(kind, newest(root / self.run) / kind.folder, device)
        pooled = network.config.get("pooled_projection_dim", 0)
        return self.assemble(network, codec, self.texts(device, network.config[self.width], pooled), device)

    def assemble(self, network: nn.Module, codec: nn.Module, texts: TextSource, device: str = "cpu") -> DiffSplat:
        """The generator from its networks, which are frozen, changed in place and moved.

        Args:
            network: The stock network of the denoiser, in the precision that it shall compute in.
            codec: The GS-VAE.
            texts: Source of texts on the device.
            device: Where the networks shall live.

        Raises:
            FileNotFoundError: If `adapter` is not there.
            ValueError: If the network is another, or the adapter does not fit.
        """
        import torch

        from align3d.models.diffsplat import DiffSplat, plucker_rays, plucker_rays_published
        from align3d.models.nets import denoisers
        from align3d.models.splat_maps import SplatMaps
        from align3d.scenes.cameras import canonical, to_device

        expected = codec.config.latent_channels + denoisers.PLUCKER
        if network.config.in_channels != expected:
            raise ValueError(
                f"the denoiser has {network.config.in_channels} input channels, expected {expected}: latents and rays; "
                f"variants that see a picture are not supported"
            )
        schedule = self.schedule()
        label = {} if self.prediction == "flow" else {"label": schedule.index}
        denoiser = getattr(denoisers, self.denoiser)(network, VIEWS, softmax=self.softmax, **label)
        adapter = adapted(network, self.rank, self.alpha, self.adapter, device, LAYERS[self.layers])
        codec.requires_grad_(False).eval().to(device)
        if self.recompute:
            network.enable_gradient_checkpointing()
        side, channels = network.config.sample_size, codec.config.latent_channels
        pixels = side * codec.factor
        cameras = to_device(canonical(1, pixels, pixels), torch.zeros((), device=device))
        rays = plucker_rays_published if self.rays == "published" else plucker_rays
        return DiffSplat(
            denoiser=denoiser,
            codec=codec,
            text=texts,
            schedule=schedule,
            cameras=cameras,
            maps=SplatMaps(opacity_threshold=self.opacity_threshold),
            latent_shape=(VIEWS, channels, side, side),
            adapter=adapter,
            steps=self.steps,
            guidance=self.guidance,
            prediction=self.prediction,
            plucker=rays(cameras, side, side),
            options=self,
        )

    def root(self) -> Path:
        """The folder of the published files.

        Raises:
            FileNotFoundError: If it is not given or not there.
        """
        if self.weights is None or not self.weights.is_dir():
            said = "is not given" if self.weights is None else f"{self.weights} is no folder"
            raise FileNotFoundError(f"--model.weights {said}; it takes {SOURCE}: {self.run}/ and {self.codec}/")
        return self.weights

    def load_network(self, kind: Any, folder: Path, device: str) -> nn.Module:
        """The denoiser's network in its precision."""
        import diffusers
        import torch

        from align3d.models.nets.denoisers import stock_config

        dtype = torch.bfloat16 if bfloat16_is_fast(self.precision, device) else torch.float32
        return load_part(getattr(diffusers, kind.stock), folder, dtype, stock_config)

    def load_codec(self, folder: Path) -> nn.Module:
        """The GS-VAE, float32.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is damaged, or something else.
        """
        from align3d.models.nets.gs_vae import GSVAE, gs_vae_config

        weights = Weights.find(folder, "model")
        own = {"scaling": self.scaling, "shift": self.shift, "decoder": self.decoder}
        own |= {"chunk": self.decode_rows, "recompute": self.recompute}
        try:
            with weights:
                codec = build(GSVAE, {**gs_vae_config(weights.shapes), **own}, weights.shapes)
                fill(codec, weights)
        except (NotItsWeights, ValueError) as error:
            said = str(error)
            raise ValueError(said if str(folder) in said else f"{folder} holds no GS-VAE that fits: {said}") from None
        return codec


def newest(training: Path) -> Path:
    """The folder of the last checkpoint of a training, by name.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = sorted(path for path in (training / "checkpoints").glob("*") if path.is_dir())
    if not found:
        raise FileNotFoundError(f"{training / 'checkpoints'} holds no checkpoint; --model.weights takes {SOURCE}")
    return found[-1]


def sources(run: str, folder: str, codec: str, text: str, ends: tuple[str, ...] = ("",)) -> dict[str, Any]:
    """What `align3d download` fetches, and from which repositories."""
    codec_file, files = f"{codec}/checkpoints/*/model.safetensors", ("config.json", "*.safetensors", "*.index.json")
    denoiser = tuple(f"{run}/checkpoints/*/{folder}/{file}" for file in files)
    encoder = tuple(f"text_encoder{end}/{file}" for end in ends for file in files)
    return {
        "weights": {REPOSITORY: (*denoiser, codec_file)},
        "text": {text: (*encoder, *(f"tokenizer{end}/*" for end in ends))},
    }


@dataclass(frozen=True)
class DiffSplatPAS(Published):
    """DiffSplat on PixArt-Sigma: 0.61 billion parameters, text of T5-XXL; what Nabla-R2D3 was published with."""

    clean_caption: bool = False  # as the pipeline of PixArt cleans prompts; the training only lowered their case

    denoiser = "PixArt"
    run = "gsdiff_gobj83k_pas_fp16__render"
    codec = "gsvae_gobj265k_sdxl_fp16"
    encoder, width = "t5", "caption_channels"
    sources = sources(run, "transformer_ema", codec, "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers")
    scaling = 0.13025

    def schedule(self) -> Any:
        """Noise levels of PixArt-Sigma."""
        from align3d.diffusion.schedule import DiscreteVP

        return DiscreteVP(spacing=self.spacing)

    def text_options(self) -> dict[str, Any]:
        """Whether captions were cleaned."""
        return {"clean": self.clean_caption}

    def read_text(self, folder: Path, device: str, precision: Any, offload: bool) -> TextSource:
        """T5-XXL."""
        from align3d.models.text_files import load_t5

        return load_t5(folder, device, precision, offload, self.clean_caption)


@dataclass(frozen=True)
class DiffSplatSD15(Published):
    """DiffSplat on Stable Diffusion 1.5: 0.86 billion parameters, text of CLIP-L."""

    guidance: float = 7.5  # classifier-free guidance; 1 = none

    denoiser = "UNet"
    run = "gsdiff_gobj83k_sd15__render"
    codec = "gsvae_gobj265k_sd"
    encoder, width = "clip", "cross_attention_dim"
    sources = sources(run, "unet_ema", codec, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    scaling = 0.18215

    def schedule(self) -> Any:
        """Noise levels of Stable Diffusion."""
        from align3d.diffusion.schedule import DiscreteVP

        return DiscreteVP(beta_start=0.00085, beta_end=0.012, kind="scaled_linear", spacing=self.spacing)

    def read_text(self, folder: Path, device: str, precision: Any, offload: bool) -> TextSource:
        """CLIP-L."""
        from align3d.models.text_files import load_clip

        return load_clip(folder, device, precision, offload)


@dataclass(frozen=True)
class DiffSplatSD35m(Published):
    """DiffSplat on SD3.5-medium: 2.24 billion parameters, flow matching, texts of two CLIPs and T5-XXL."""

    guidance: float = 5.0  # classifier-free guidance; 1 = none
    steps: int = 28  # sampling steps
    flow_shift: float = 3.0  # above 1: more of the steps are at high noise, as the checkpoint was trained

    denoiser = "SD3"
    run = "gsdiff_gobj83k_sd35m__render"
    codec = "gsvae_gobj265k_sd3"
    encoder, width = "sd3", "joint_attention_dim"
    sources = sources(run, "transformer_ema", codec, "stabilityai/stable-diffusion-3.5-medium", ("", "_2", "_3"))
    scaling, shift = 1.5305, 0.0609
    prediction = "flow"

    def schedule(self) -> Any:
        """Straight paths, with the shifted times of SD3."""
        from align3d.diffusion.schedule import Flow

        least = 1 / 1000  # of the noise levels of its training, shifted twice in the published sampler
        return Flow(shift=self.flow_shift, end=self.flow_shift * least / (1 + (self.flow_shift - 1) * least))

    def read_text(self, folder: Path, device: str, precision: Any, offload: bool) -> TextSource:
        """CLIP-L, CLIP-G and T5-XXL."""
        from align3d.models.text_files import load_sd3

        return load_sd3(folder, device, precision, offload)
