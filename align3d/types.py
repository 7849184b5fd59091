"""The values that flow through the library, in order of appearance, and the protocols of the parts that make them.

Conventions (axes, frames, units, time) are stated once, in scenes/cameras.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams

Cond = Any  # what a base model's `encode` returns; opaque to everyone else

CHANNELS = ("rgb", "alpha", "depth", "median_depth", "normal")  # what a scene can be asked to render


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras: V for each of B scenes."""

    c2w: Float[Tensor, "B V 4 4"]  # camera to world, OpenCV camera axes
    K: Float[Tensor, "B V 3 3"]  # intrinsics in pixels, origin at the top-left corner, pixel centres at +0.5
    height: int
    width: int


@dataclass(frozen=True)
class Views:
    """What the cameras see. A field that was not asked for is None."""

    cameras: Cameras
    rgb: Float[Tensor, "B V 3 H W"] | None = None  # in [0, 1], composited on the background
    alpha: Float[Tensor, "B V 1 H W"] | None = None  # in [0, 1]
    depth: Float[Tensor, "B V 1 H W"] | None = None  # expected camera z over what is hit; 0 where nothing is
    median_depth: Float[Tensor, "B V 1 H W"] | None = None  # camera z where half of the light is gone
    normal: Float[Tensor, "B V 3 H W"] | None = None  # unit, world frame, facing the camera; 0 where nothing is

    def require(self, *names: str, by: str) -> None:
        """Check that the named fields are there.

        Args:
            *names: Field names, as in CHANNELS.
            by: Who needs them; named in the error.

        Raises:
            ValueError: If one is None.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            have = [f.name for f in fields(self) if f.name in CHANNELS and getattr(self, f.name) is not None]
            raise ValueError(
                f"{by} needs views with {', '.join(missing)}, got only {', '.join(have) or 'nothing'}; "
                f"use a scene that can render it and ask for it with scene.render(cameras, want=...)"
            )


@dataclass(frozen=True)
class Rollout:
    """One sampled trajectory of the reverse process, noise to data, for each of B prompts."""

    prompts: Sequence[str]
    cond: Cond
    times: Float[Tensor, "T"]  # T = K + 1, descending, in [0, 1]; 0 = data
    x: Float[Tensor, "B T *L"]  # x[:, k] is the state at times[k]
    eps: Float[Tensor, "B K *L"]  # the prediction that led from x[:, k] to x[:, k + 1]; may be of finer type than x

    def __len__(self) -> int:
        return self.times.numel() - 1


@dataclass(frozen=True)
class StepLoss:
    """One graph to run backwards; the loop sums gradients until `update` says to step."""

    loss: Tensor  # scalar
    metrics: dict[str, Any]  # scalars to log
    update: bool = True  # whether the optimiser steps after this loss
    lists: dict[str, list[Any]] = field(default_factory=dict)  # to log as they are, an entry for each sample
    dead: Sequence[str] = ()  # prompts of the samples whose reward gave no gradient, one for each; to be warned of


@dataclass(frozen=True)
class Look:
    """What a scene that is being optimised shows to its prior in one update."""

    latents: Float[Tensor, "B V *L"]  # of the views, with a gradient to the scene
    cameras: Cameras | None = None  # of the views; None of pictures, which nobody has taken
    penalties: dict[str, Tensor] = field(default_factory=dict)  # scalars of the scene's own, weighed, with a gradient


@runtime_checkable
class Scene(Protocol):
    """B scenes that can be looked at; as much as training and evaluation ask for.

    Where its tensors are attributes with B rows, they are checked for NaN before rendering. `align3d sample`, which
    writes files, needs more: `index(i)`, the i-th scene with its batch axis kept; `to(device)`; and the Gaussians.
    """

    def render(
        self, cameras: Cameras, want: Sequence[str] = ("rgb", "alpha"), background: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> Views:
        """What the cameras see: B rows of V cameras, on any device.

        Returns:
            Views with the channels in `want` (of CHANNELS) and with the cameras, all on the scene's device; a channel
            that the scene cannot render is None.

        Gradient: to the scene. Row i depends on scene i and cameras i alone.
        """
        ...


@runtime_checkable
class BaseModel(Protocol):
    """A text-to-3D generator; parametrisation, guidance and layout stay inside.

    Rows do not mix: row i of what `encode`, `predict` and `decode` return depends on row i of what they take and on
    nothing else, up to the rounding of another batch size. Batches are split, joined and repeated on that promise.
    They may be called in any order and in any number, with one batch size now and another then.

    Members that may be missing:
        device: Where latents live, a torch.device or its name; else that of the adapter's parameters, else the CPU.
        save_adapter(folder): Writes the adapter as adapter_model.safetensors and adapter_config.json (PEFT layout)
            into the folder, which may have to be made. Training needs it.
        options: The dataclass that it was loaded from, for config.json.
        check(prompts): Raises a ValueError on what cannot be encoded; it is called before any work is done.
        solve(noise, cond, tell=None): Clean latents of standard normal noise (B, *L), by a sampler of the model's own,
            for what is not trained on: pictures and evaluations. Without randomness. None: there is none. Without it,
            ancestral steps are taken, as in training. Where it cannot go on, it raises a FloatingPointError with the
            number of the first such row as its `row`. `tell`, if it is not None, is to be called now and then with the
            share of the work that is done.
    """

    schedule: Any  # a diffusion.schedule.Schedule that has times(steps) as well
    steps: int  # of sampling
    latent_shape: tuple[int, ...]  # of one sample: L, without B; any number of axes
    adapter: Any  # parameters() and named_parameters() as of an nn.Module, what trains and no more; None: nothing does

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditions, one row for each of B texts; "" is a text. The same text gives the same row, always."""
        ...

    def predict(self, x: Float[Tensor, "B *L"], t: Float[Tensor, "B"], cond: Cond) -> Float[Tensor, "B *L"]:
        """The noise eps in x = alpha(t) x0 + sigma(t) eps, guidance applied, whatever the network itself predicts.

        Args:
            x: States.
            t: Times in [0, 1], one per row and not all the same; 0 = data.
            cond: From `encode`, with as many rows.

        Returns:
            In any precision. What is made from it is as fine as it or x is, whichever is finer: a network that predicts
            the data should answer in float64, as differences of data are scaled by alpha, tiny where t is 1.

        Gradient: to x and to the adapter's parameters, under grad mode. No randomness.
        """
        ...

    def decode(self, x0: Float[Tensor, "B *L"]) -> Scene:
        """The B scenes of clean latents. Gradient: to x0, under grad mode; not to the adapter. No randomness."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """A context in which the model is the one before training.

        Within, `predict` gives what it gave before the adapter's first update, and grad mode is off. Who turns grad
        mode on again inside gets gradients to x and x0, of the untuned model. May be nested. Afterwards, also after an
        error, all is as before: values, `requires_grad` and `grad` of the adapter's parameters, and the grad mode.
        """
        ...


@runtime_checkable
class ModelOptions(Protocol):
    """The options of a text-to-3D generator: a frozen dataclass, whose fields become flags, --model.NAME.

    It is made without torch being loaded, and may refuse in `__post_init__`, with a ValueError, what is wrong by
    itself. The same options give the same generator: they are compared to know whether one is loaded already.

    Fields that may be missing:
        adapter: Folder of an adapter to start from, or None. `--adapter`, and adapters to be measured, are put there,
            unless the generator's own `adapter` has `load(folder)`.
        rank, alpha: Of the adapter; set to those of an adapter that is read.
        weights: Folder of published files; `--weights` is short for --model.weights.
        recompute, decode_rows: True, and fewer rows, take less memory, as is said where there is not enough.

    Other members that may be missing:
        prompt_list(): The file, or the name of a list, that `train` and `heldout`, the defaults of --prompts, stand for
            if the usual ones cannot be followed; None: they can. May be asked before anything is loaded.
        text_source(device, precision, offload): The text encoder alone, a models.text.TextSource, for `align3d embed`;
            ValueError if there is none. Else that of the loaded generator, its `text`.
        text_precision: "float32" or "bfloat16", of that encoder if the user says nothing; else bfloat16.
        sources: What `align3d download` fetches: "weights" or "text" -> repository -> patterns of its files.
        convert(folder): A function of the class, called when all files are there; may write a better one and return
            its path, or None.
        incidental: Names of fields that change no number, so that an evaluation may go on with others.
    """

    def load(self, device: str = "cpu") -> BaseModel:
        """The generator, frozen but for its adapter.

        Args:
            device: Where it shall live, as torch has it.

        Raises:
            FileNotFoundError, ValueError: One line, if the files or the options will not do; before anything large is
                read, where that can be known.
        """
        ...


@runtime_checkable
class Prior(Protocol):
    """A frozen diffusion model of pictures, or of several pictures of one object together, that teaches a scene.

    Rows do not mix, as in BaseModel; the views of a row may.

    Members that may be missing:
        draws: Whether `latents` draws them, as some encoders do, instead of taking the mean. Then it is called as
            latents(rgb, noise), with standard normal noise (B, V, *L), and has no randomness of its own.
    """

    schedule: Any  # a diffusion.schedule.Schedule that has times(steps) as well
    views: int  # pictures of one object that it sees together, at most; 1: each by itself
    latent_shape: tuple[int, ...]  # of one view: L
    size: int  # side in pixels of the pictures that `latents` takes best
    adapter: Any  # parameters() and named_parameters() of what variational distillation trains; None: nothing does

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditions, one row for each of B texts; "" is the null text."""
        ...

    def predict(
        self, x: Float[Tensor, "B V *L"], t: Float[Tensor, "B"], cond: Cond, cameras: Cameras | None = None
    ) -> Float[Tensor, "B V *L"]:
        """The noise eps in x = alpha(t) x0 + sigma(t) eps, without guidance, whatever the network itself predicts.

        Args:
            x: Noisy latents of V views, at most `views`.
            t: Times in [0, 1], one per row.
            cond: From `encode`, with as many rows.
            cameras: Of the views, (B, V); None where the prior does not ask.
        """
        ...

    def latents(self, rgb: Float[Tensor, "B V 3 H W"]) -> Float[Tensor, "B V *L"]:
        """Latents of pictures in [0, 1], of any size, by the mean of the encoder. Gradient: to the pictures."""
        ...

    def images(self, x0: Float[Tensor, "B V *L"], fast: bool = False) -> Float[Tensor, "B V 3 H W"]:
        """Pictures in [0, 1] of clean latents; `fast`: by a cheaper decoder, if there is one. Gradient: to x0."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """A context in which the prior is as it was published, without gradient; as of BaseModel."""
        ...


@runtime_checkable
class Subject(Protocol):
    """A scene that is optimised for a prompt, and the frozen prior that it is distilled from; stands for a model.

    `fit` asks for no more than what is below. `align3d optimize`, with its previews, its film and its files, asks for
    more, with grad mode off:

    - scene(): the scene as it is now, a Scene with B = 1. Where its attribute `flat` is there and true, it is pictures
      and no more: there is no turntable, and its `rgb`, (1, V, 3, H, W), is what is shown.
    - files(): the files that it ends in, by name, each with a function that writes it to a path, whole or not at all;
      the main one first.

    Members that may be missing:

    - device and save_adapter, as of BaseModel.
    - groups(): options of the optimiser by the name of a parameter, or of a part of the adapter: "scene.means", "phi".
      Methods may have it too.
    - phi(x, t, cond, cameras): a second `predict`, with an adapter of its own that variational distillation trains on
      what the scene shows. None or missing: it cannot be had. Gradient: to its parameters, which `adapter` has too.
    - made_of: hashes of the files that it was made of, by name; a run that goes on has to be made of the same.
    - source(rng, look): constant latents of what is edited, as it was, seen as in a look. None or missing: nothing is.
    - refine(rng, ramp): changes parameters between two updates, their rows too. `rng` is of the second, and shared by
      all processes, `ramp` its share of the learning rates. Returns, by parameter, which row each of its rows was
      before, negative for new ones, so that the optimiser follows. It comes with growing: by parameter, the most rows
      that it may come to have; those in it have as many at any time.
    - tally(average): takes in what an update has shown, before a checkpoint is made of it; `average` gives a tensor's
      mean over all processes. Returns numbers to log.
    """

    schedule: Any  # of the prior, as of BaseModel
    steps: int  # of sampling
    latent_shape: tuple[int, ...]  # of one view: L
    adapter: Any  # parameters() and named_parameters() of all that trains: the scene, and phi's adapter

    def look(self, rng: Streams) -> Look:
        """What as many groups of views show as there are streams. Gradient: to the scene."""
        ...

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Conditions, one row for each text; "" is the null text."""
        ...

    def predict(
        self, x: Float[Tensor, "R V *L"], t: Float[Tensor, "R"], cond: Cond, cameras: Cameras | None
    ) -> Float[Tensor, "R V *L"]:
        """The noise in x by the prior, without guidance, for one text per row. Rows do not mix. No gradient."""
        ...

    def picture(self, latents: Float[Tensor, "R V *L"], cameras: Cameras | None, fast: bool = False) -> Scene:
        """What latents show, to be judged; `render` gives these views, whatever cameras it is asked for.

        Args:
            latents: Clean ones.
            cameras: R rows of those that they are seen from.
            fast: Whether a cheaper decoder will do, where there is one.
        """
        ...


@runtime_checkable
class Reward(Protocol):
    """Scores views of scenes; higher is better.

    Members that may be missing:

    - check(prompts) raises a ValueError on what cannot be scored; it is called before any work is done.
    - within(rng) gives the reward to use in an update, for objects with one stream each: it may draw, and compare the
      rows of a group. check_batch(views, group) refuses numbers of views and of samples of a prompt that do not do.
    - whole_groups says that the samples of a prompt must be scored together.
    - One that goes by what the run has seen has `scales`, `measuring`, `seen`, `advance`, `numbers` and `restore`, as
      rewards.combined.Combined does.
    """

    differentiable: bool  # whether the scores have a gradient to the views
    needs: frozenset[str]  # fields of Views that are read, one or more of CHANNELS

    def __call__(self, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B V"]:
        """One finite number per view, or (B, 1), one per object; row i depends on object i and its prompt alone."""
        ...


@runtime_checkable
class Score(Protocol):
    """Scene to one number: cameras, rendering, reward and the mean over views, closed over.

    A member that may be missing: reward, the Reward inside, whose `differentiable` is asked before training.
    """

    def __call__(self, scene: Scene, prompts: Sequence[str], rng: Streams) -> Float[Tensor, "B"]:
        """The score of each of B scenes, finite.

        Args:
            scene: B scenes.
            prompts: One per scene.
            rng: One stream per scene, which chooses its cameras; the same stream sees the same.

        Gradient: to the scene, if the reward has one. Row i depends on row i of the arguments alone.
        """
        ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyperparameters with one generator of losses.

    Members that may be missing:

    - check(model, times, group), called before anything is written: refuses with a ValueError what it cannot train.
    - prepare(model, score, times, prompts, rng), called once before the first update, with the same arguments in all
      processes. It returns the method to use instead, the same dataclass with other numbers, which checkpoints keep.
    """

    needs_gradient: bool  # whether the reward must be differentiable

    def losses(
        self, model: BaseModel, score: Score, times: Float[Tensor, "T"], prompts: Sequence[str], rng: Streams
    ) -> Iterator[StepLoss]:
        """The losses of one batch, each built when it is asked for: the one before has been differentiated by then.

        Args:
            model: Trained through its adapter. Optimiser steps happen between two losses, where `update` says so.
            score: Scene to number.
            times: T = steps + 1 times of the sampler, descending, on the model's device.
            prompts: B texts.
            rng: One stream per prompt; each `rng.group` in a row share a prompt. All randomness comes from it, so that
                batches may be split between groups, or joined.

        Yields:
            Scalar losses, means over the B samples; the last one has `update` set.
        """
        ...


if TYPE_CHECKING:
    CameraSampler = Callable[[Streams], Cameras]
