import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import PROMPTS, SMALL, FakeMethod, FakeModel, FakeReward, FakeScore, steady, weights
from safetensors.torch import load_file

from align3d import checkpoint, log
from align3d.loop import Loop, fit
from align3d.prompt_pool import draw
from align3d.rng import Streams
from align3d.trainer import Trainer


def train(loop=SMALL, method=None, score=FakeScore(), model=None, prompts=PROMPTS, **options):  # noqa: B008  frozen
    model = model or FakeModel()
    return fit(model, method or FakeMethod(), score, prompts, loop, **{"progress": False} | options), model


def test_the_configuration_needs_no_torch():
    code = "import sys, align3d.loop, align3d.log; align3d.loop.Loop(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root())})


def root():
    import align3d

    return Path(align3d.__file__).parent.parent


@pytest.mark.parametrize(
    "change",
    [
        {"updates": 0},
        {"batch_size": 0},
        {"accumulate": 0},
        {"group": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"betas": (0.9, 1.0)},
        {"warmup": -1},
        {"max_grad_norm": float("nan")},
        {"ema": 1.0},
        {"checkpoint_every": 0},
        {"keep": -1},
        {"minutes": -1.0},
        {"sample_every": -1},
    ],
)
def test_bad_values_are_named(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"loop\.{name} must be .*, got"):
        Loop(**change)


def test_it_learns_and_says_so():
    rows, model = train(replace(SMALL, updates=30), prompts=PROMPTS[:1])
    assert rows[-1]["reward"] > 0.5 * rows[0]["reward"]  # rewards are negative: at most half the error is left
    assert weights(model)["unused"] == weights(model)["frozen"] == [1.0, 1.0]  # no gradient: no weight decay either
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["lr"] for row in rows[:3]] == [0.025, 0.05, 0.05]
    numbers = [name for name in rows[0] if not name.startswith("seconds_")]
    assert numbers == ["step", "seconds", "evaluations", "reward", "loss", "grad_norm", "memory_mib", "lr"]
    assert rows[0]["loss"] == pytest.approx(-2 * rows[0]["reward"])  # two graphs, summed and averaged


def test_adamw_written_out_gives_the_same_update():
    loop = Loop(updates=1, batch_size=4, learning_rate=0.1, warmup=0, max_grad_norm=0.1, weight_decay=0.2)
    rows, model = train(loop, FakeMethod(graphs=1))
    before = FakeModel().adapter
    loss = next(FakeMethod(graphs=1).losses(*prepared(loop))).loss
    grads = dict(zip(("weight", "offset"), prepared_grads(loop), strict=True))
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    assert rows[0]["grad_norm"] == pytest.approx(float(norm)) and norm > 0.1
    assert rows[0]["loss"] == pytest.approx(float(loss.detach()) / scale(loop) ** 2)
    for name, grad in grads.items():
        grad = grad * 0.1 / (norm + 1e-6)
        want = getattr(before, name) * (1 - 0.1 * 0.2) - 0.1 * grad / (grad.abs() + 1e-8)
        torch.testing.assert_close(getattr(model.adapter, name), want)


def test_times_lie_where_the_model_does():
    """Latents, noise and the reward follow them."""
    model, method = FakeModel(), SimpleNamespace(needs_gradient=True, losses=iter)
    model.adapter.to("meta")
    assert Trainer.start(model, method, FakeScore(), PROMPTS, Loop()).times.device.type == "meta"


def prepared(loop, step=0, model=None):
    from align3d.rng import Streams

    model, rng = model or FakeModel(), Streams.batch(loop.seed, step, 0, loop.batch_size)
    return model, None, model.schedule.times(model.steps), draw(PROMPTS, rng), rng


def scale(loop):
    return FakeMethod().prepare(*prepared(loop, step=-1)).scale


def prepared_grads(loop):
    model = FakeModel()
    loss = next(FakeMethod(graphs=1, scale=scale(loop)).losses(*prepared(loop, model=model))).loss
    return torch.autograd.grad(loss, (model.adapter.weight, model.adapter.offset))


@pytest.mark.parametrize("rounds", [1, 3])
def test_two_rollouts_of_half_the_batch_give_the_same_updates(rounds):
    method = FakeMethod(rounds=rounds)
    rows, whole = train(SMALL, method)
    halves, parts = train(replace(SMALL, batch_size=2, accumulate=2), method)
    for name, tensor in whole.adapter.state_dict().items():
        torch.testing.assert_close(parts.adapter.state_dict()[name], tensor, rtol=0, atol=1e-6)
    for row, half in zip(steady(rows), steady(halves), strict=True):
        assert half == pytest.approx(row, abs=1e-5)
    assert weights(whole) != weights(train(SMALL, FakeMethod(rounds=5))[1])  # rounds do count


def test_batches_change_size_on_the_way():
    """Until then and from then on, an update is one of a run whose batches have that size all along."""
    loop = replace(SMALL, updates=4, batch_size=4, batch_later=((2, 2), (3, 6)))
    assert [loop.size(update) for update in range(5)] == [4, 4, 2, 6, 6]
    seen = []

    @dataclass(frozen=True)
    class Counting(FakeMethod):
        def losses(self, model, score, times, prompts, rng):
            seen.append(rng.keys)
            return super().losses(model, score, times, prompts, rng)

    _, model = train(loop, Counting())
    assert seen == [Streams.batch(0, update, 0, size).keys for update, size in enumerate((4, 4, 2, 6))]
    first = replace(loop, updates=2, batch_later=())
    assert weights(train(replace(loop, updates=2))[1]) == weights(train(first)[1]) != weights(model)


@pytest.mark.parametrize("later", [((5, 0),), ((0, 2),), ((5, 2), (5, 4))])
def test_later_batches_are_in_order(later):
    with pytest.raises(ValueError, match=r"loop\.batch_later must be updates in order"):
        Loop(batch_later=later)
    with pytest.raises(ValueError, match=r"multiple of loop\.group, got 3 and 2"):
        Loop(batch_size=4, group=2, batch_later=((5, 3),))


def test_the_rows_of_a_group_share_a_prompt_whatever_the_split():
    pool = [f"prompt {i}" for i in range(50)]
    drawn = draw(pool, Streams.batch(0, 3, 0, 12, 3))
    assert drawn[::3] == drawn[1::3] == drawn[2::3]
    assert len(set(drawn)) == 4
    assert draw(pool, Streams.batch(0, 3, 6, 6, 3)) == drawn[6:]
    assert len(set(draw(pool, Streams.batch(0, 3, 0, 12)))) > 4
    with pytest.raises(ValueError, match=r"multiple of loop\.group, got 8 and 3"):
        Loop(batch_size=8, group=3)


def test_a_run_ends_when_its_time_is_over_and_goes_on_if_it_gets_more(tmp_path, capfd):
    short, out = replace(SMALL, minutes=1e-9), tmp_path / "run"
    rows, model = train(short, out=out, progress=True)
    assert len(rows) == 1 and [path.name for path in checkpoint.steps(out)][-1] == "step-000001"
    assert "0 s left" in capfd.readouterr().err
    assert load_file(out / "adapter" / "adapter_model.safetensors")["weight"].tolist() == weights(model)["weight"]
    rows, _ = train(short, out=out, resume=True)
    assert len(rows) == 1
    rows, _ = train(replace(SMALL, minutes=60.0), out=out, resume=True)
    assert steady(rows) == steady(train(SMALL)[0])


def test_a_metric_may_not_take_the_name_of_the_loops_own():
    class Counting(FakeMethod):
        def losses(self, *args):
            for step in super().losses(*args):
                yield replace(step, metrics=step.metrics | {"step": 3.0})

    with pytest.raises(ValueError, match="method Counting has a metric 'step', which is the loop's own; rename it"):
        fit(FakeModel(), Counting(), FakeScore(), PROMPTS, SMALL, progress=False)


def test_samples_without_gradient_are_told_of_once(capsys):
    class Dead(FakeMethod):
        """Learns nothing from the first sample, from the third update on."""

        def losses(self, model, score, times, prompts, rng):
            for step in super().losses(model, score, times, prompts, rng):
                yield replace(step, dead=prompts[:1] if rng.shared[1] >= 2 else ())

    train(method=Dead(), prompts=PROMPTS[:1])
    (line,) = capsys.readouterr().err.splitlines()
    want = "align3d: warning: update 3: the reward has no gradient for 1 of 4 samples, with prompt 'a red cube'; "
    assert line.startswith(want)


def test_one_graph_is_gone_before_the_next_is_built():
    method = FakeMethod(graphs=3, rounds=2)
    train(method=method)
    assert len(method.freed) == 6 * SMALL.updates and all(method.freed)


def test_same_seed_same_bits_another_seed_others():
    first, again, other = train(), train(), train(replace(SMALL, seed=1))
    assert steady(first[0]) == steady(again[0]) and weights(first[1]) == weights(again[1])
    assert weights(first[1]) != weights(other[1])


def test_a_run_leaves_its_files(tmp_path):
    out = tmp_path / "runs" / "one"
    seen = []

    def hook(done, model):
        seen.append((done, weights(model)["offset"]))

    rows, model = train(replace(SMALL, sample_every=4), out=out, hooks=[hook])
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter",
        "adapter-ema",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
    ]
    assert log.read_metrics(out / "metrics.jsonl") == rows
    assert [path.name for path in checkpoint.steps(out)] == ["step-000004", "step-000006"]
    assert [done for done, _ in seen] == [0, 4, 6] and seen[0][1] == [0.0] * 3 and seen[2][1] != seen[1][1]
    config = json.loads((out / "config.json").read_text())
    assert (
        config["config"]["loop"]["betas"] == [0.9, 0.999] and config["config"]["method"]["name"] == "fakes:FakeMethod"
    )
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    assert {name: tensor.tolist() for name, tensor in saved.items()} == weights(model)
    assert not [path for path in out.rglob(".tmp-*")]


def test_the_running_mean_is_the_running_mean(tmp_path):
    means = [FakeModel().adapter.offset.detach()]

    def hook(done, model):
        if done:
            means.append(means[-1] * 0.9 + model.adapter.offset.detach() * 0.1)

    train(replace(SMALL, sample_every=1), out=tmp_path, hooks=[hook])
    saved = load_file(tmp_path / "adapter-ema" / "adapter_model.safetensors")
    torch.testing.assert_close(saved["offset"], means[-1])
    assert (saved["offset"] != load_file(tmp_path / "adapter" / "adapter_model.safetensors")["offset"]).all()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_stops_names_update_and_prompts_and_keeps_the_checkpoint(tmp_path, kind):
    model = FakeModel()
    with pytest.raises(FloatingPointError) as caught:
        train(method=FakeMethod(poison=(4, kind)), model=model, out=tmp_path, prompts=PROMPTS[:1])
    assert (
        str(caught.value)
        == f"{'the' if kind == 'loss' else 'a'} {kind} became nan in update 5, with prompt 'a red cube'"
    )
    assert checkpoint.step_of(checkpoint.latest(tmp_path)) == 4
    assert len(log.read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert all(torch.isfinite(p).all() for p in model.adapter.parameters())


class Unfinished(FakeMethod):
    """Forgets to ask for a step."""

    def losses(self, *args):
        for step in super().losses(*args):
            yield replace(step, update=False)


class Blind(FakeModel):
    """Does not use its adapter's trainable part."""

    def predict(self, x, t=None, cond=None):
        return x[:, :2] * self.adapter.frozen * torch.ones(1, requires_grad=True)


def never(done, model):
    raise AssertionError("no work is to be done")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("at least one text, got \\[\\]", {"prompts": []}),
        ("at least one text, got 'a cat'", {"prompts": "a cat"}),
        ("needs the gradient of the reward, and reward FakeReward has none", {"score": FakeScore(FakeReward(False))}),
        ("update=True on its last loss", {"method": Unfinished()}),
        ("gave no loss", {"method": FakeMethod(rounds=0)}),
        ("no gradient reached the adapter in update 1", {"model": Blind()}),
    ],
)
def test_what_cannot_work_is_refused(words, options):
    with pytest.raises(ValueError, match=words):
        train(**options)


def test_a_method_without_gradients_takes_any_reward_and_a_bare_score_is_trusted():
    train(method=FakeMethod(needs_gradient=False), score=FakeScore(FakeReward(False)))
    train(score=lambda scene, prompts, rng: None)
    model = FakeModel()
    model.adapter.requires_grad_(False)
    for adapter in (model.adapter, None):
        model.adapter = adapter
        with pytest.raises(ValueError, match="FakeModel has no trainable adapter"):
            train(model=model)


def test_folders_that_cannot_be_used_are_refused_before_any_work(tmp_path):
    loop = replace(SMALL, sample_every=1)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot (make|write)"):
            train(loop, out=out, hooks=[never])
    with pytest.raises(FileExistsError, match="holds files but no run; choose another folder"):
        train(loop, out=tmp_path, hooks=[never])
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(loop, out=tmp_path / "none", resume=True, hooks=[never])
    with pytest.raises(ValueError, match=r"no config\.json"):
        train(loop, out=tmp_path, resume=True, hooks=[never])
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"
    train(out=tmp_path / "none")  # nothing above is in its way
    with pytest.raises(FileExistsError, match="exists already; resume"):
        train(loop, out=tmp_path / "none", hooks=[never])
    with pytest.raises(ValueError, match=r"loop\.seed was 0, now 1; give the same"):
        train(replace(loop, seed=1), out=tmp_path / "none", resume=True, hooks=[never])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"):
        train(out=tmp_path / "run")


def test_progress_lines_name_update_reward_and_time_left(capfd):
    train(progress=True)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("update 1/6  reward -") and lines[-1].startswith("update 6/6")
    assert "s/step" in lines[0] and lines[-1].endswith("0 s left")


def test_ctrl_c_finishes_the_update_and_saves(tmp_path, capfd):
    want_rows, want = train()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after update 3 of 6; its state is in"):
        train(method=FakeMethod(interrupt={2: 1}), out=tmp_path, progress=True, config={})
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.step_of(checkpoint.latest(tmp_path)) == 3
    rows, model = train(out=tmp_path, resume=True, config={})
    assert steady(rows) == steady(want_rows) and weights(model) == weights(want)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(method=FakeMethod(interrupt={2: 2}), out=tmp_path)
    assert not caught.value.args
    assert checkpoint.step_of(checkpoint.latest(tmp_path)) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_what_prepare_found_is_kept_and_counts_for_the_first_update(tmp_path):
    class Once(FakeMethod):
        """Prepares only where nothing was trained before."""

        def prepare(self, model, *args):
            assert not model.adapter.offset.any(), "a second time"
            return super().prepare(model, *args)

    out = tmp_path / "run"
    rows, _ = train(replace(SMALL, updates=2, checkpoint_every=1, keep=0), Once(), out=out)
    told = [json.loads((path / "state.json").read_text()) for path in checkpoint.steps(out)]
    assert all(about["prepared"] == {"scale": scale(SMALL)} for about in told)
    assert told[0]["before"]["evaluations"] > 0 and told[1]["before"] == {}
    assert rows[0]["evaluations"] == rows[1]["evaluations"] + told[0]["before"]["evaluations"]
    longer, _ = train(replace(SMALL, checkpoint_every=1, keep=0), Once(), out=out, resume=True)
    assert steady(longer) == steady(train(SMALL)[0])

    path = checkpoint.latest(out) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prepared": {"scale": "x"}}))
    with pytest.raises(ValueError, match=r"damaged, prepared is \{'scale': 'x'\}"):
        train(replace(SMALL, updates=9, checkpoint_every=1, keep=0), Once(), out=out, resume=True)


def test_a_method_may_refuse_before_anything_is_written(tmp_path):
    class Picky(FakeMethod):
        def check(self, model, times, group):
            raise ValueError(f"{len(times)} times, groups of {group}")

    with pytest.raises(ValueError, match=f"^{FakeModel().steps + 1} times, groups of 2$"):
        train(replace(SMALL, group=2), Picky(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

    class Loud(FakeMethod):
        def prepare(self, model, *args):
            return replace(self, freed=[True])

    with pytest.raises(ValueError, match=r"set freed to \[True\]; it may set numbers alone"):
        train(SMALL, Loud())
