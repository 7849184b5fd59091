"""What the published priors have in common: Stable Diffusion's UNet, VAE and text encoder behind the Prior contract."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.models.embedded import bfloat16_is_fast
from align3d.priors.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from jaxtyping import Float
    from torch import Tensor, nn

    from align3d.models.text import Text, TextSource
    from align3d.types import Cameras

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")  # of all attention; what is adapted
TINY = "https://huggingface.co/madebyollin/taesd"


@dataclass(frozen=True)
class Published:
    """Options of a published prior."""

    weights: Path | None = None  # folder with the published files; `align3d download` fetches them
    tiny: Path | None = None  # folder of TAESD (madebyollin/taesd), for fast pictures; none = a linear map of colours
    rank: int = 0  # rank of the LoRA that variational distillation trains, on all attention; 0 = none
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the UNet; auto = bfloat16 where it is fast
    half_vae: bool = False  # the VAE in the UNet's precision too: half the memory, coarser gradients
    rows: int = 0  # pictures that are encoded or decoded at a time, to save memory; 0 = all
    recompute: bool = False  # keep no activations of the VAE: less memory, one more forward pass on the way back
    draw: bool = False  # draw a scene's latents from what the encoder says, as the published 3D code; no = their mean

    name: ClassVar[str]  # in the table of priors
    sources: ClassVar[dict[str, dict[str, tuple[str, ...]]]]  # what -> repository -> patterns of its files

    def __post_init__(self) -> None:
        if self.rank < 0 or self.rows < 0:
            raise ValueError(f"prior.rank and rows must be 0 or more, got {self.rank} and {self.rows}")

    def types(self, device: str | torch.device) -> tuple[torch.dtype, torch.dtype]:
        """Of the weights of the UNet, and of the VAE."""
        import torch

        unet = torch.bfloat16 if bfloat16_is_fast(self.precision, str(device)) else torch.float32
        return unet, unet if self.half_vae else torch.float32

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Within, an error about a file says where the files are published; gives the folder.

        Raises:
            FileNotFoundError: If there is no folder, or what is done within misses a file.
            ValueError: As of what is done within.
        """
        where = "; ".join(
            f"https://huggingface.co/{repo}: {', '.join(patterns)}"
            for repo, patterns in self.sources["weights"].items()
        )
        folder = self.weights if self.weights is not None else "FOLDER"
        advice = f"`align3d download {self.name} --out {folder} --yes` fetches it, or put there by hand {where}"
        try:
            if self.weights is None:
                raise FileNotFoundError(f"prior {self.name} needs its published files, --prior.weights FOLDER")
            if not self.weights.is_dir():
                said = "no folder" if self.weights.exists() else "missing"
                raise FileNotFoundError(f"prior {self.name}: {self.weights} is {said}")
            yield self.weights
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{error}; {advice}") from None

    def codec(self, vae: nn.Module) -> Any:
        """The VAE as a codec, with the tiny decoder if there is one.

        Raises:
            FileNotFoundError, ValueError: If the tiny decoder is missing, damaged or of other latents.
        """
        from diffusers import AutoencoderTiny

        from align3d.priors.nets.pictures import Codec
        from align3d.weights import load_part

        if self.tiny is None:
            return Codec(vae, None, self.rows, self.recompute)
        try:
            tiny = load_part(AutoencoderTiny, self.tiny, vae.dtype).requires_grad_(False).eval()
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{error}; --prior.tiny takes the files of {TINY}") from None
        if tiny.config.latent_channels != vae.config.latent_channels:
            raise ValueError(
                f"{self.tiny} decodes {tiny.config.latent_channels} channels, latents have "
                f"{vae.config.latent_channels}; --prior.tiny takes the files of {TINY}"
            )
        return Codec(vae, tiny, self.rows, self.recompute)

    def assemble(
        self, painter: Painter, codec: Codec, text: TextSource, device: str | torch.device, **more: Any
    ) -> Any:
        """The prior from its networks, which are moved to the device.

        Args:
            painter: The UNet, a nets.painter.Painter.
            codec: The VAE, a nets.pictures.Codec.
            text: Source of texts.
            device: Where networks shall live.
            **more: Further fields of LatentPrior.

        Raises:
            ValueError: If they do not belong together, or the rank is too high.
        """
        from align3d.models.lora import Adapter

        config, channels = painter.network.config, codec.vae.config.latent_channels
        if config.in_channels != channels or config.out_channels != channels:
            raise ValueError(
                f"the UNet takes {config.in_channels} channels and gives {config.out_channels}, latents of the VAE "
                f"have {channels}; variants that see a mask, a depth or a picture are not supported"
            )
        size = more.pop("size")
        step = codec.factor * 2 ** (len(config.block_out_channels) - 1)
        if size < 1 or size % step:
            raise ValueError(f"prior.size must be a multiple of {step} pixels for these networks, got {size}")
        adapter = Adapter(painter.network, self.rank, float(self.rank), LAYERS) if self.rank else None
        for part in (painter, codec.vae, *([codec.tiny] if codec.tiny else [])):
            part.to(device)
        side = size // codec.factor
        return LatentPrior(
            painter=painter,
            codec=codec,
            text=text,
            latent_shape=(channels, side, side),
            size=size,
            adapter=adapter,
            draws=self.draw,
            options=self,
            **more,
        )


@dataclass(eq=False, kw_only=True)
class LatentPrior(Frozen):
    """A latent diffusion model of pictures behind the Prior contract."""

    most_texts: ClassVar[int] = 256  # 0.3 MB each

    painter: nn.Module  # a nets.painter.Painter
    codec: Any  # a nets.pictures.Codec
    schedule: Any  # a DiscreteVP
    latent_shape: tuple[int, ...]
    size: int
    views: int = 1  # that the network was trained to paint together
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"  # of the network
    poses: Callable[[Cameras], Tensor] | None = None  # numbers of cameras that the network is told; None = it is not
    draws: bool = False  # whether scenes give `latents` noise, to draw them with

    @property
    def module(self) -> nn.Module:
        """The UNet."""
        return self.painter

    def predict(
        self, x: Float[Tensor, "B V *L"], t: Float[Tensor, "B"], cond: Text, cameras: Cameras | None = None
    ) -> Float[Tensor, "B V *L"]:
        """The noise in x, without guidance, float32.

        Args:
            x: Noisy latents.
            t: Times in [0, 1], 0 = data.
            cond: From encode, a row for each row of x.
            cameras: Of the views. A prior of single pictures does not look at them; another one needs them, but for
                pictures alone, which it also knows without.

        Raises:
            ValueError: If latents have another size, or cameras are missing or too few.

        Gradient: to x and to the adapter.
        """
        from align3d.diffusion.schedule import eps_from_v

        if tuple(x.shape[2:]) != self.latent_shape:
            raise ValueError(
                f"latents of this prior are {list(self.latent_shape)}, got {list(x.shape[2:])}; make them with its "
                f"`latents`, or choose another --prior.size"
            )
        poses = self._poses(x, cameras)
        out = self.painter(x, self.schedule.index(t), cond.states, poses)
        return out.to(x) if self.prediction == "epsilon" else eps_from_v(self.schedule, x, out.to(x), t)

    def _poses(self, x: Float[Tensor, "B V *L"], cameras: Cameras | None) -> Tensor | None:
        """What the network is told of the cameras."""
        B, V = x.shape[:2]
        if self.poses is None or (cameras is None and V == 1):
            return None
        if cameras is None or cameras.c2w.shape[:2] != (B, V):
            got = "none" if cameras is None else list(cameras.c2w.shape[:2])
            raise ValueError(f"this prior needs a camera for each of {V} views of {B} objects, got {got}")
        return self.poses(cameras).to(x)

    def latents(
        self, rgb: Float[Tensor, "B V 3 H W"], noise: Float[Tensor, "B V *L"] | None = None
    ) -> Float[Tensor, "B V *L"]:
        """Latents of pictures in [0, 1], which are squeezed to a square of `size` pixels. Gradient: to the pictures.

        Args:
            rgb: The pictures.
            noise: Standard normal, to draw the latents from what the encoder says; None = their mean.
        """
        return self.codec.encode(rgb, self.size, noise)

    def images(self, x0: Float[Tensor, "B V *L"], fast: bool = False) -> Float[Tensor, "B V 3 H W"]:
        """Pictures in [0, 1] of clean latents; `fast`: by TAESD, or without it an eighth of the size, by a linear map.

        Gradient: to x0, where pictures are within [0, 1].
        """
        return self.codec.decode(x0, fast)
