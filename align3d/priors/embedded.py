"""The embedded prior: a small multi-view diffusion model of pictures, shipped with the package.

It paints up to four views of an object at once, 32 pixels wide, on white, from cameras that it is told, fast enough to
be distilled into scenes on two CPU cores. embedded/train_prior.py makes it; embedded/PRIOR_CARD.md says what it has
seen and how good it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.pretrained.once import read_once
from align3d.priors.frozen import Frozen

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from align3d.models.text import Text, TextSource
    from align3d.priors.nets.views_unet import ViewsUNet
    from align3d.types import Cameras

ASSETS = Path(__file__).parent.parent / "assets" / "prior"
VIEWS = 4  # that it was trained to paint together, at most
AZIMUTHS, ELEVATION = (0.0, 90.0, 180.0, 270.0), 15.0  # degrees, of views whose cameras are not given
BETAS = (0.00085, 0.012)  # Stable Diffusion's, so that the noise levels of published settings mean the same
LAYERS = tuple(f"{part}.{layer}" for part in ("views", "words") for layer in ("q", "kv", "out"))  # that are adapted


@dataclass(frozen=True)
class Embedded:
    """The embedded prior: four views of 32 pixels of common objects in common colours; needs no download."""

    weights: Path | None = None  # folder with config.json and the weights of another network; none = the shipped one
    rank: int = 0  # rank of the LoRA that variational distillation trains; 0 = none
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto = bfloat16 where it is fast

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"prior.rank must be 0 or more, got {self.rank}")

    def load(self, device: str | torch.device = "cpu") -> EmbeddedPrior:
        """The prior, frozen.

        Args:
            device: Where the network lives.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If weights are damaged or do not fit.
        """
        import copy

        import torch

        from align3d.diffusion.schedule import DiscreteVP
        from align3d.models.embedded import bfloat16_is_fast
        from align3d.models.lora import Adapter

        network, text = networks(self.weights or ASSETS, torch.device(device))
        adapter = None
        if self.rank:
            network = copy.deepcopy(network)
            adapter = Adapter(network, self.rank, float(self.rank), LAYERS)
        return EmbeddedPrior(
            network=network,
            text=text,
            schedule=DiscreteVP(beta_start=BETAS[0], beta_end=BETAS[1], kind="scaled_linear"),
            latent_shape=(network.channels, network.size, network.size),
            size=network.size,
            precision=torch.bfloat16 if bfloat16_is_fast(self.precision, str(device)) else None,
            adapter=adapter,
            options=self,
        )


@dataclass(eq=False, kw_only=True)
class EmbeddedPrior(Frozen):
    """A small multi-view diffusion model behind the Prior contract; latents are pictures in [-1, 1]."""

    most_texts: ClassVar[int] = 4096

    network: ViewsUNet
    schedule: Any
    latent_shape: tuple[int, ...]
    size: int
    precision: torch.dtype | None = None  # of matrix products inside the network; None = float32
    views: int = VIEWS

    @property
    def module(self) -> ViewsUNet:
        """The network."""
        return self.network

    def predict(
        self, x: Float[Tensor, "B V *L"], t: Float[Tensor, "B"], cond: Text, cameras: Cameras | None = None
    ) -> Float[Tensor, "B V *L"]:
        """The noise in x, without guidance, float32.

        Args:
            x: Noisy pictures of 1 to 4 views.
            t: Times in [0, 1], 0 = data.
            cond: From encode, a row for each row of x.
            cameras: Of the views; None = azimuth 0, 90, 180 and 270, as many as there are views, at elevation 15.

        Raises:
            ValueError: If there are more views than the network has learnt to paint together, or not as many cameras.

        Gradient: to x and to the adapter.
        """
        import torch

        from align3d.diffusion.schedule import eps_from_v
        from align3d.priors.nets.views_unet import rays_and_poses
        from align3d.scenes.cameras import to_device

        B, V = x.shape[:2]
        cameras = self._front(B, V) if cameras is None else cameras
        if not 1 <= V <= self.views or cameras.c2w.shape[:2] != (B, V):
            raise ValueError(
                f"the embedded prior sees 1 to {self.views} views together, with a camera for each, got {V} views and "
                f"cameras {list(cameras.c2w.shape[:2])} for {B} objects; use fewer views a group"
            )
        like = next(self.network.parameters())
        rays, poses = rays_and_poses(to_device(cameras, like), x.shape[-2] // 2, x.shape[-1] // 2)
        longest = cond.most or cond.states.shape[1]
        words = cond.states[:, :longest].to(like), cond.keep[:, :longest].to(like)
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            v = self.network(x.to(like), t.to(like), *words, rays, poses)
        return eps_from_v(self.schedule, x, v.to(x), t)

    def _front(self, B: int, V: int) -> Cameras:
        """The cameras of views of which none are given."""
        import torch

        from align3d.scenes.cameras import orbit

        azimuth = torch.tensor(AZIMUTHS[:V], device=self.device).expand(B, -1)
        return orbit(azimuth, torch.full_like(azimuth, ELEVATION), height=self.size, width=self.size)

    def latents(self, rgb: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "B V *L"]:
        """Pictures in [-1, 1] at the network's size, squeezed to a square. Gradient: to the pictures.

        Each pixel is the mean of those that it covers, as the training pictures were made; smaller pictures are
        interpolated.
        """
        import torch.nn.functional as F

        side = (self.size, self.size)
        if rgb.shape[-2:] != side:
            mode = {"mode": "area"} if min(rgb.shape[-2:]) >= self.size else {"mode": "bilinear", "antialias": True}
            rgb = F.interpolate(rgb.flatten(0, 1), side, **mode).unflatten(0, rgb.shape[:2])
        return 2 * rgb - 1

    def images(self, x0: Float[Tensor, "B V *L"], fast: bool = False) -> Float[Tensor, "B V 3 H W"]:
        """Pictures in [0, 1] of clean latents; nothing is faster than this. Gradient: to x0 where it is within."""
        return ((x0 + 1) / 2).clamp(0, 1)


@read_once(4)
def networks(folder: Path, device: torch.device) -> tuple[ViewsUNet, TextSource]:
    """The network of a folder and the embedded generator's text encoder, read once for each folder and device.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or the network reads other words.
    """
    import torch

    from align3d.models.embedded import Embedded as Generator
    from align3d.priors.nets.views_unet import ViewsUNet
    from align3d.weights import load_part

    network = load_part(ViewsUNet, folder, torch.float32).requires_grad_(False).eval().to(device)
    text = Generator().text_source(str(device))
    if network.config["text"] != text.network.config.dim:
        raise ValueError(
            f"{folder} is a network for words of {network.config['text']} numbers, the embedded text encoder gives "
            f"{text.network.config.dim}; retrain it with embedded/train_prior.py"
        )
    return network, text
