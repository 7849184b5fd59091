"""The embedded generator: a small DiffSplat, shipped with the package, that runs on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align3d.models.lora import adapted, check_options
from align3d.weights import load_part

if TYPE_CHECKING:
    from align3d.models.diffsplat import DiffSplat
    from align3d.models.text import TextSource
    from align3d.types import Cameras

ASSETS = Path(__file__).parent.parent / "assets" / "embedded"
AZIMUTHS, ELEVATION = (0.0, 90.0, 180.0, 270.0), 20.0  # degrees, of the views that the maps belong to


@dataclass(frozen=True)
class Embedded:
    """The embedded text-to-3D generator: a few million parameters, common objects in common colours."""

    weights: Path | None = None  # folder with transformer/, gs_vae/ and text_encoder/; none = the shipped weights
    adapter: Path | None = None  # a run's folder, or an adapter's, to start from; none = a fresh adapter
    rank: int = 8  # rank of the LoRA adapter
    alpha: float = 8.0  # the adapter's update is scaled by alpha / rank
    guidance: float = 2.5  # classifier-free guidance; 1 = none, more = closer to the prompt and less varied
    steps: int = 20  # sampling steps; fewer is faster and coarser
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the denoiser; auto = bfloat16 where it is fast

    def __post_init__(self) -> None:
        check_options(self)

    def text_source(self, device: str = "cpu", precision: Any = "float32", offload: bool = False) -> TextSource:
        """The text encoder, without the other networks: so small that it is float32 and never moved.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one is damaged.
        """
        from align3d.models.nets.text import TextEncoder
        from align3d.models.text import WordText

        network = load_part(TextEncoder, (self.weights or ASSETS) / "text_encoder")
        return WordText(network.requires_grad_(False).eval().to(device))

    def load(self, device: str = "cpu") -> DiffSplat:
        """The generator, frozen, with a LoRA adapter of no effect (or the one from `adapter`).

        Args:
            device: Where the networks live.

        Returns:
            A BaseModel with latents (4, C, 8, 8).

        Raises:
            FileNotFoundError: If a folder or file is missing.
            ValueError: If weights are damaged or do not fit.
        """
        import torch

        from align3d.diffusion.schedule import DiscreteVP
        from align3d.models.diffsplat import DiffSplat
        from align3d.models.nets.codec import PATCH
        from align3d.models.nets.denoisers import PixArt
        from align3d.models.splat_maps import SplatMaps
        from align3d.models.text import WordText
        from align3d.scenes.cameras import to_device

        network, codec, text = load_networks(self.weights or ASSETS)
        V, schedule = codec.config.num_views, DiscreteVP()
        denoiser = PixArt(network, V, schedule.index)
        adapter = adapted(network, self.rank, self.alpha, self.adapter, device)
        for part in (codec, text):
            part.requires_grad_(False).eval().to(device)
        size = codec.config.sample_size
        return DiffSplat(
            denoiser=denoiser,
            codec=codec,
            text=WordText(text),
            schedule=schedule,
            cameras=to_device(map_cameras(size), torch.zeros((), device=device)),
            maps=SplatMaps(quaternions="camera", normalize_quats=True),
            latent_shape=(V, codec.config.latent_channels, size // PATCH, size // PATCH),
            steps=self.steps,
            guidance=self.guidance,
            prediction="v",
            precision=torch.bfloat16 if bfloat16_is_fast(self.precision, device) else None,
            adapter=adapter,
            options=self,
        )


def map_cameras(size: int) -> Cameras:
    """The four cameras of the splat maps, one set."""
    import torch

    from align3d.scenes.cameras import orbit

    azimuth = torch.tensor([AZIMUTHS])
    return orbit(azimuth, torch.full_like(azimuth, ELEVATION), height=size, width=size)


def load_networks(folder: Path):
    """Transformer, GS-VAE and text encoder from their folders, float32.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If a file is damaged, or its names or shapes are not the network's.
    """
    from diffusers import PixArtTransformer2DModel

    from align3d.models.nets.codec import PatchCodec
    from align3d.models.nets.text import TextEncoder

    return (
        load_part(PixArtTransformer2DModel, folder / "transformer"),
        load_part(PatchCodec, folder / "gs_vae"),
        load_part(TextEncoder, folder / "text_encoder"),
    )


def bfloat16_is_fast(precision: str, device: str) -> bool:
    """Whether matrix products run in bfloat16: as asked, or where the processor has instructions for it."""
    import torch

    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()
