import json

import pytest
import torch
from fakes import FakeModel, weights

from align3d import checkpoint
from align3d.state import State


def made(seed=0, ema=True, moves=2):
    """A model and a state whose optimiser has moved two of its parameters."""
    model = FakeModel(seed)
    trainable = {name: p for name, p in model.adapter.named_parameters() if p.requires_grad}
    adam = torch.optim.AdamW(trainable.values(), lr=0.1)
    state = State(trainable, adam, {n: p.detach() * 0.5 for n, p in trainable.items()} if ema else {})
    for _ in range(moves):
        adam.zero_grad()
        model.predict(torch.ones(1, 5)).square().sum().backward()
        adam.step()
    return model, state


def bits(state):
    return {name: tensor.numpy().tobytes() for name, tensor in state.tensors().items()}


def test_a_round_trip_keeps_every_bit(tmp_path):
    _, old = made()
    path = checkpoint.save(tmp_path, 7, old, keep=2)
    assert path.name == "step-000007" and checkpoint.latest(tmp_path) == path
    _, new = made(seed=1, moves=0)
    assert checkpoint.load(path, new) == 7
    assert bits(new) == bits(old)
    assert "optimizer/exp_avg_sq/weight" in bits(new) and "optimizer/step/unused" not in bits(new)
    for state in (new, old):  # and goes on alike
        state.optimizer.zero_grad()
        state.trainable["weight"].grad = torch.ones(3, 5)
        state.optimizer.step()
    assert bits(new) == bits(old)


def test_the_last_ones_are_kept_by_number_not_by_name(tmp_path):
    _, state = made()
    for step in (999_998, 999_999, 1_000_000):
        checkpoint.save(tmp_path, step, state, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.steps(tmp_path)] == [999_999, 1_000_000]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    checkpoint.save(tmp_path, 1_000_001, state, keep=0)
    assert len(checkpoint.steps(tmp_path)) == 3
    assert checkpoint.latest(tmp_path / "elsewhere") is None


def truncate(path):
    (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:-9])


def flip(path):
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def lie(path):
    """A header that promises a terabyte, with a checksum that fits it."""
    import hashlib

    header = json.dumps({"adapter/weight": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    data = len(header).to_bytes(8, "little") + header
    (path / "state.safetensors").write_bytes(data)
    about = {"step": 4, "bytes": len(data), "blake2b": hashlib.blake2b(data).hexdigest()}
    (path / "state.json").write_text(json.dumps(about))


DAMAGE = {
    "truncated": (truncate, r"state\.safetensors: \d+ bytes instead of \d+, cut short"),
    "flipped": (flip, r"state\.safetensors: damaged, its checksum"),
    "lying": (lie, r"state\.safetensors: damaged"),
    "no data": (lambda path: (path / "state.safetensors").unlink(), r"state\.safetensors: missing"),
    "no json": (lambda path: (path / "state.json").unlink(), r"state\.json: missing"),
    "torn json": (lambda path: (path / "state.json").write_text('{"step": 4, "by'), r"state\.json: damaged, not JSON"),
    "other step": (lambda path: (path / "state.json").write_text('{"step": 3}'), r"state\.json: says update 3"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_the_way_out_and_changes_nothing(tmp_path, kind):
    damage, words = DAMAGE[kind]
    _, state = made()
    checkpoint.save(tmp_path, 2, state, keep=2)
    damage(checkpoint.save(tmp_path, 4, state, keep=2))
    _, fresh = made(seed=1, moves=0)
    before = bits(fresh)
    with pytest.raises(ValueError, match=words + r"(.|\n)*; delete .*step-000004 to go on from update 2$") as caught:
        checkpoint.load(checkpoint.latest(tmp_path), fresh)
    assert "\n" not in str(caught.value)
    assert bits(fresh) == before


def test_without_an_older_one_the_error_says_so(tmp_path):
    _, state = made()
    truncate(checkpoint.save(tmp_path, 4, state, keep=2))
    with pytest.raises(ValueError, match="no older one is left"):
        checkpoint.load(checkpoint.latest(tmp_path), state)


def test_tensors_of_another_model_are_refused(tmp_path):
    model, state = made()
    path = checkpoint.save(tmp_path, 1, state, keep=2)
    with pytest.raises(ValueError, match=r"another model, ema/offset is unknown; ema/rare is unknown; ema/unused"):
        checkpoint.load(path, made(ema=False)[1])
    state.trainable["weight"] = torch.nn.Parameter(torch.zeros(5, 3))
    before = weights(model)
    with pytest.raises(ValueError, match=r"adapter/weight is \[3, 5\] instead of \[5, 3\]"):
        checkpoint.load(path, state)
    assert weights(model) == before
    state.trainable["extra"] = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="adapter/extra is missing"):
        checkpoint.load(path, state)


def test_an_optimiser_state_with_a_hole_is_refused(tmp_path):
    from safetensors.torch import save

    _, state = made()
    path = checkpoint.save(tmp_path, 1, state, keep=2)
    tensors = state.tensors()
    del tensors["optimizer/exp_avg/weight"]
    have = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match="optimizer/exp_avg/weight is missing"):
        checkpoint.check_shapes(path / "state.safetensors", have, state)
    assert len(save(tensors)) > 0


def test_the_record_is_compared_field_by_field(tmp_path):
    config = {"method": {"name": "nabla", "beta": 1.0}, "loop": {"updates": 6, "betas": (0.9, 0.99)}, "out": "a"}
    had = checkpoint.record(config, ["p"], 1)
    checkpoint.begin(tmp_path, had)
    longer = checkpoint.record({**config, "loop": {"updates": 9, "betas": [0.9, 0.99]}, "out": "b"}, ["p"], 1)
    checkpoint.examine(tmp_path, longer, resume=True)
    checkpoint.begin(tmp_path, longer)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["config"]["loop"]["updates"] == 9
    assert set(kept) == {"config", "inputs", "versions", "git", "command"}
    other = checkpoint.record({"method": {"name": "nabla", "beta": 2.0}, "loop": config["loop"], "new": 1}, ["q"], 2)
    with pytest.raises(ValueError, match=r"another configuration") as caught:
        checkpoint.examine(tmp_path, other, resume=True)
    words = str(caught.value)
    assert "method.beta was 1.0, now 2.0" in words and "inputs.processes was 1, now 2" in words
    assert "inputs.prompts_blake2b" in words and "new was 'absent', now 1" in words and "updates" not in words
    assert "\n" not in words


def test_begin_clears_what_a_killed_start_left(tmp_path):
    wanted = checkpoint.record({}, ["p"], 1)
    left = [tmp_path / ".tmp-1-config.json", tmp_path / "checkpoints" / ".tmp-1-step-000002" / "state.json"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    checkpoint.begin(tmp_path, wanted)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "config.json"]
