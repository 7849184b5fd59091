"""The real command line in several processes: the same run as in one, and one clear message however a process ends.

The processes are started as torchrun starts them, and ended as it does when one of them fails, but as copies of this
file, run as a script: that saves them the imports.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import steady
from safetensors.torch import load

import align3d

PROMPTS = "a red cube\na green cone\na blue ball\na white mug\n"
FAST = ["--device", "cpu", "--cameras.size", "16", "--cameras.views", "1", "--prompts", "prompts.txt"]
TOY = ["--model", "user_parts:Toy", "--method.beta", "1000", "--method.transitions", "2", *FAST]
TINY = ["--model.weights", "tiny", "--model.steps", "2", "--method.beta", "1", "--method.transitions", "2", *FAST]
RUN = ["--loop.updates", "4", "--loop.checkpoint-every", "1"]
KINDS = {  # of trouble, and the ranks that it befalls one by one; None is all at once
    "kill": (0, 1),
    "memory": (1,),
    "nan": (1,),
    "disk": (0,),
    "bug": (1,),
    "ctrl-c": (1,),
    "sigterm": (None,),
}
RESUMED = ("kill", "disk", "ctrl-c")
TROUBLE: list = []  # what happens, in which rank (None: all), in which call of the reward: set in a process


def mishap(kind: str) -> None:
    """Have it happen."""
    import torch

    signals = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT, "sigterm": signal.SIGTERM}
    if kind in signals:
        os.kill(os.getpid(), signals[kind])
    elif kind == "disk":
        size = Path("run/metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, size + 9))
    elif kind == "memory":
        torch.empty(1 << 60)
    elif kind == "bug":
        [].pop()


def redness(views, prompts):
    """Red; in trouble when it is its time."""
    score = (views.rgb[:, :, 0] - views.rgb[:, :, 1]).mean((-2, -1))
    if TROUBLE and views.rgb.requires_grad:
        TROUBLE[2] -= 1
        if TROUBLE[2] == 0 and TROUBLE[1] in (None, int(os.environ["RANK"])):
            mishap(TROUBLE[0])
            if TROUBLE[0] == "nan":
                score = score + (score * 0).sqrt()  # its gradient alone
    return score


def worker(rank: int, world: int, port: int, args: list[str], trouble: list, errors: int) -> None:
    """One process, for which torchrun has set the environment; does not return."""
    from align3d import cli

    os.dup2(errors, 2)
    TROUBLE[:] = trouble
    if world > 1:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        os.environ.update({name: str(value) for name, value in told.items()})
    status = 99
    try:
        status = cli.main(args)
        sys.stderr.flush()
    finally:
        os._exit(status)


def keeper() -> tuple[int, int]:
    """A process that keeps the store, as torchrun does; its id and the port."""
    import torch.distributed as dist

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        os.write(write, f"{store.port}\n".encode())
        time.sleep(600)
        os._exit(0)
    return child, int(os.read(read, 20))


def launch(world: int, args: list[str], trouble: list = []) -> dict:  # noqa: B006  never changed
    """What torchrun does, without what it prints: exit codes of the processes, and what they wrote to stderr."""
    agent, port = keeper() if world > 1 else (None, 0)
    began = time.monotonic()
    with open("stderr", "w+") as errors:  # noqa: PTH123
        alive = {}
        for rank in range(world):
            child = os.fork()
            if child == 0:
                worker(rank, world, port, args, trouble, errors.fileno())
            alive[child] = rank
        codes: dict[int, int] = {}
        while alive:
            child, status = os.wait()
            if child in alive:
                codes[alive.pop(child)] = os.waitstatus_to_exitcode(status)
                if status:
                    for other in alive:
                        os.kill(other, signal.SIGTERM)
        lines = [line for line in Path("stderr").read_text().splitlines() if not line.startswith("update ")]
    if agent is not None:
        os.kill(agent, signal.SIGKILL)
        os.waitpid(agent, 0)
    return {"codes": [codes[rank] for rank in range(world)], "lines": lines, "seconds": time.monotonic() - began}


def result(out: Path) -> dict:
    """The rows of a run, and the bytes of its last state."""
    rows = steady([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    data = (out / "checkpoints/step-000004/state.safetensors").read_bytes()
    tensors = {name: tensor for name, tensor in load(data).items() if name.startswith("adapter/")}
    weights = [value for name in sorted(tensors) for value in tensors[name].flatten().tolist()]
    return {"rows": rows, "state": hashlib.sha256(data).hexdigest(), "weights": weights}


def same_in_any_number(found: dict) -> None:
    """One process, two and four, with the toy; one and two with the smallest network of the shipped kind."""
    for name, args, worlds in (("toy", TOY, (1, 2, 4)), ("tiny", TINY, (1, 2))):
        for world in worlds:
            out = Path(f"{name}-{world}")
            train = ["train", "--reward", "test_torchrun:redness", "--out", str(out), *args, *RUN]
            done = launch(world, [*train, "--loop.batch-size", str(4 // world)])
            found[out.name] = done | result(out)


def troubles(found: dict) -> None:
    """A run that ends in each of the ways there are, and is resumed."""
    train = ["train", "--reward", "test_torchrun:redness", "--out", "run", *TOY, *RUN, "--loop.batch-size", "2"]
    Path("toy-2").rename("run")
    found["again"] = launch(2, train)
    found["fewer"] = launch(1, [*train, "--resume"])
    found["unknown"] = launch(2, [*train, "--loop.wrong", "1"])
    found["lonely"] = launch(2, ["list", "models"])
    found["help"] = launch(2, ["train", "--help"])
    for kind, ranks in KINDS.items():
        for rank in ranks:
            shutil.rmtree("run")
            found[f"{kind} {rank}"] = told = launch(2, train, [kind, rank, 5])
            if kind in RESUMED:
                told |= {"resumed": launch(2, [*train, "--resume"]), **result(Path("run"))}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of everything above, done in a process of its own."""
    from tiny_model import write_checkpoint

    root = tmp_path_factory.mktemp("torchrun")
    write_checkpoint(root / "tiny", views=4)
    (root / "prompts.txt").write_text(PROMPTS)
    here = Path(__file__)
    (root / "user_parts.py").write_text((here.parent / "user_parts.py").read_text())
    paths = os.pathsep.join([str(Path(align3d.__file__).parent.parent), str(here.parent)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, here], cwd=root, env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert not done.returncode, done.stderr
    return json.loads((root / "found.json").read_text()) | {"stdout": done.stdout}


@pytest.mark.parametrize("name", ["toy", "tiny"])
def test_any_number_of_processes_is_the_same_run(found, name):
    one, *others = (found[key] for key in found if key.startswith(f"{name}-"))
    assert others and one["codes"] == [0] and len(one["rows"]) == 4
    for other in others:
        assert set(other["codes"]) == {0} and not other["lines"]
        assert other["rows"][0]["evaluations"] == one["rows"][0]["evaluations"] > 0
        for row, other_row in zip(one["rows"], other["rows"], strict=True):
            same = {key: value for key, value in row.items() if key not in ("reward_std", "dead")}  # of one batch
            assert {key: other_row[key] for key in same} == pytest.approx(same, rel=1e-3, abs=1e-5)
        # Adam makes much of the rounding where a gradient is almost zero, so single weights may differ more.
        moved = sum(abs(a - b) for a, b in zip(one["weights"], other["weights"], strict=True))
        assert moved < 1e-4 * sum(map(abs, one["weights"]))
    assert max(map(abs, one["weights"])) > 1e-3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("again", "run exists already; resume the run in it (--resume), or choose another folder"),
        ("fewer", "inputs.processes was 2, now 1"),
        ("unknown", "--loop.wrong"),
        ("lonely", "`align3d list` runs in one process, got 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_everywhere(found, name, words):
    assert set(found[name]["codes"]) == {2}
    (line,) = found[name]["lines"]
    assert line.startswith("align3d: error: ") and words in line and "rank" not in line


def test_help_is_given_once(found):
    assert found["help"]["codes"] == [0, 0] and not found["help"]["lines"]
    assert found["stdout"].count("usage: align3d train") == 1


GOES_ON = "; the same command with --resume goes on from the last checkpoint in run"
SAID = {
    "kill": (1, "align3d: error: rank {} of 2 died without a word", GOES_ON),
    "memory": (2, "align3d: error: rank {} of 2: out of memory", GOES_ON),
    "nan": (1, "align3d: error: rank {} of 2: update 3: non-finite reward gradient for prompt", GOES_ON),
    "disk": (1, "align3d: error: rank {} of 2: cannot write run/metrics.jsonl: file too large", GOES_ON),
    "bug": (2, "align3d: error: ", "reward redness failed: IndexError: pop from empty list"),
    "ctrl-c": (130, "align3d: interrupted: stopped after update 3 of 4; its state is in run, resume to go on", ""),
    "sigterm": (143, "align3d: terminated: stopped after update 3 of 4; its state is in run, resume to go on", ""),
}


@pytest.mark.parametrize("name", [f"{kind} {rank}" for kind, ranks in KINDS.items() for rank in ranks])
def test_however_a_process_ends_one_says_why_and_the_run_goes_on_to_the_same_bits(found, name):
    told, (kind, rank) = found[name], name.split()
    code, start, end = SAID[kind]
    (line,) = told["lines"]
    assert line.startswith(start.format(rank)) and end in line
    assert told["codes"] == [-signal.SIGKILL if kind == "kill" and str(i) == rank else code for i in range(2)]
    if kind in RESUMED:
        assert told["resumed"]["codes"] == [0, 0] and not told["resumed"]["lines"]
        assert (told["rows"], told["state"]) == (found["toy-2"]["rows"], found["toy-2"]["state"])


def main() -> None:
    """Everything, to a file."""
    import torch
    import torch._dynamo  # noqa: F401  with the next ones, seconds of imports, once for all processes
    import tyro  # noqa: F401
    from diffusers import PixArtTransformer2DModel  # noqa: F401

    import align3d.commands.train  # noqa: F401
    import align3d.report  # noqa: F401
    from align3d import peers, samples

    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and for power cuts
    peers.BEAT, peers.SETTLE, peers.GRACE = 0.1, 1.0, 1.0
    samples.FRAMES, samples.SIDE = 2, 8
    found: dict = {}
    same_in_any_number(found)
    troubles(found)
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    import test_torchrun

    test_torchrun.main()  # so that the reward, which is found by this name, has its trouble from here
