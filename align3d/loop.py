"""The training loop: updates (trainer.py), with checkpoints, looks and a folder around them.

The updates are the same ones whether or not the run was interrupted.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from align3d.trainer import Loop, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from align3d.looks import Watcher
    from align3d.types import BaseModel, Method, Score, Subject

    Hook = Callable[[int, BaseModel], None]  # called with the number of updates done


def fit(
    model: BaseModel | Subject,
    method: Method,
    score: Score,
    prompts: Sequence[str],
    loop: Loop,
    *,
    out: Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    watch: Watcher | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train the model's adapter, in place.

    Args:
        model: The generator; its adapter must be as it was when a run that is resumed first started.
        method: Gives the losses. If it has `prepare(model, score, times, prompts, rng)`, that is called once before
            the first update, with one prompt per row of `rng`, and gives the method to use.
        score: Scenes to rewards.
        prompts: The pool that each sample's prompt is drawn from.
        loop: Hyperparameters.
        out: The run's folder, made here; None writes nothing.
        config: The resolved configuration for config.json; None takes what its parts say of themselves.
        resume: Go on from the newest checkpoint in `out`, to the same bits as if the run had never stopped.
        hooks: Called in the first process with the number of updates done and the model, before the first update,
            after the last, and after every `loop.sample_every`; before the checkpoint of the same update. One that has
            `due(done)` is called when that says so instead; it must say the same in all processes.
        watch: Looks at the model along the way, such as watch.Watching; may end the run before its last update.
        progress: Whether to show progress on standard error.

    Returns:
        The rows of metrics.jsonl, one per update, averaged over processes; those from before a resume too, in the
        first process.

    Raises:
        ValueError: If something cannot work, before the first update wherever that can be known; or if another process
            is training in `out`; or if the processes that train together disagree on what to do.
        PeerError: If another of the processes that train together fails, or is lost; its own error says why.
        FileExistsError: If `out` has something in it, without `resume`.
        WriteError: If the disk is full; the last checkpoint is as it was.
        FileNotFoundError: If there is no `out`, with `resume`.
        FloatingPointError: If a loss or a gradient is not finite; names the update and the prompts. The last checkpoint
            is as it was.
        KeyboardInterrupt: After Ctrl-C: the update is finished and saved. A second Ctrl-C does not wait.
        Terminated: The same after SIGTERM.
    """
    from align3d import checkpoint, distributed
    from align3d.config import of_python

    check(model, method, score, prompts, loop.group)
    config = of_python(model, method, score, loop, watch) if config is None else config
    wanted = checkpoint.record(config, prompts, distributed.world(), getattr(model, "made_of", None))
    distributed.require_same(
        [wanted["config"], wanted["inputs"]],
        "the processes were started with different options, prompts or files; give all the same command",
    )
    with ExitStack() as stack:
        if out is not None:
            distributed.on_first(lambda: stack.enter_context(checkpoint.claim(out, wanted, resume)))
        return train(Trainer.start(model, method, score, prompts, loop), out, wanted, hooks, watch, progress)


def train(
    run: Trainer, out: Path | None, wanted: dict[str, Any], hooks: Sequence[Hook], watch: Watcher | None, progress: bool
) -> list[dict[str, Any]]:
    """All updates that are still to do, in a folder that is ours; returns the rows."""
    from align3d import distributed, log
    from align3d.interrupts import Interrupts, obeyed
    from align3d.looks import Looks

    loop, looks = run.loop, Looks(watch, run.model, run.loop.updates)

    def look(done: int, last: bool = False) -> None:
        if done == 0:
            looks.begin()
        usual = last or done in (0, loop.updates) or (loop.sample_every and done % loop.sample_every == 0)
        due = [hook for hook in hooks if (hook.due(done) if hasattr(hook, "due") else usual)]
        if due:
            distributed.on_first(lambda: [hook(done, run.model) for hook in due])

    run, done = open_run(run, out, wanted, look)
    looks.begin()
    rows = out / "metrics.jsonl" if out is not None and distributed.rank() == 0 else None
    show = progress and distributed.rank() == 0
    bar = log.Progress(loop.updates, done, show=show, minutes=loop.minutes)
    with log.Metrics(rows, done) as metrics, Interrupts(tell=show and distributed.world() == 1) as interrupts, bar:
        over = looks.over(metrics.rows) or distributed.anyone(loop.spent(metrics.rows))
        if over and out is not None:
            distributed.on_first(lambda: run.export(out))  # the run may have been killed before it could
        bar.budget -= sum(row["seconds"] for row in metrics.rows)
        while done < loop.updates and not over:
            row = run.update(done)
            done += 1
            late = bool(loop.minutes) and distributed.anyone(loop.spent([*metrics.rows, row]))
            over = looks.add(row, late) or late
            metrics.write(row)
            bar.row(row)
            look(done, over)
            stop = distributed.largest(interrupts.pending)
            last = stop or over or done == loop.updates
            if out is not None and (last or done % loop.checkpoint_every == 0):
                metrics.sync()
                distributed.on_first(lambda: run.save(out, done))  # noqa: B023  called at once
            if stop:
                saved = f"; its state is in {out}, resume to go on" if out is not None else ""
                raise obeyed(stop)(f"stopped after update {done} of {loop.updates}{saved}")
    return metrics.rows


def open_run(
    run: Trainer, out: Path | None, wanted: dict[str, Any], look: Callable[[int], None]
) -> tuple[Trainer, int]:
    """Load the newest checkpoint, or write the one of step 0 with what precedes it; ready, and the updates done."""
    from align3d import checkpoint, distributed

    newest = None if out is None else checkpoint.latest(out)
    distributed.require_same(
        None if newest is None else newest.name,
        f"the processes see different checkpoints in {out}; it must be the same folder on all machines",
    )
    if newest is None:
        run = run.prepared()
        if out is not None:
            distributed.on_first(lambda: checkpoint.begin(out, wanted))
        look(0)
        if out is not None:
            distributed.on_first(lambda: checkpoint.save(out, 0, run.state, run.loop.keep))
        return run, 0
    done = checkpoint.load(newest, run.state)
    if done > run.loop.updates:
        raise ValueError(f"{out} has done {done} updates already, loop.updates is {run.loop.updates}; ask for more")
    distributed.on_first(lambda: checkpoint.begin(out, wanted))  # nothing is touched before the checkpoint is read
    distributed.on_first(lambda: checkpoint.prune(out, run.loop.keep))  # the run may have been killed before it could
    if done == run.loop.updates:
        distributed.on_first(lambda: run.export(out))
    return run.resumed(), done


def check(model: BaseModel | Subject, method: Method, score: Score, prompts: Sequence[str], group: int = 1) -> None:
    """Refuse, before any work, what cannot work.

    Raises:
        ValueError: If there are no prompts, nothing to train, or no gradient where one is needed; or as the method's
            own check says.
    """
    from align3d.diffusion.sampler import sampling_times

    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
    if model.adapter is None or not any(p.requires_grad for p in model.adapter.parameters()):
        raise ValueError(f"{type(model).__name__} has no trainable adapter; load it with one (a rank above 0)")
    reward = getattr(score, "reward", None)  # a bare function may score too, and is trusted
    if method.needs_gradient and not getattr(reward, "differentiable", True):
        terms = getattr(reward, "terms", {})
        flat = [name for name, term in terms.items() if not term.reward.differentiable]
        who = " and ".join(flat) or type(reward).__name__
        needs = f"method {type(method).__name__} needs the gradient of the reward, and reward {who}"
        raise ValueError(f"{needs} has none; choose a differentiable reward, or a method that does without")
    if hasattr(model, "check"):
        model.check(prompts)
    if hasattr(method, "check"):
        method.check(model, sampling_times(model), group)
    if hasattr(score, "check"):
        score.check(prompts, method.explore.candidates if hasattr(method, "explore") else group)
    if getattr(reward, "remembers", ()) and not hasattr(model, "decode"):
        raise ValueError(
            f"reward {reward.remembers[0]} is normalised by the samples that a run has seen, and a scene that is "
            f"optimised is none; use normalise=candidates"
        )
