"""Samples in memory and on disk: the same numbers, however many blocks, starts and processes they took."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from user_parts import ToyModel, redness

from align3d.evaluate import Evaluation, evaluate, evaluation_cameras
from align3d.features.nothing import Nothing
from align3d.rewards.score import as_reward
from align3d.sampleset import Grid, begin, join, load, measure, save

PROMPTS, SEEDS = ("a red cube", "a blue ball", "a long green lamp"), (3, 11)
REWARDS = {"red": as_reward(redness)}
CAMERAS = evaluation_cameras(size=8, azimuths=(0.0, 90.0, 200.0))


@dataclass(frozen=True)
class Corners:
    """The colours of two corners."""

    bad: str = ""
    dims: ClassVar[int] = 6

    def check(self):
        if self.bad == "check":
            raise ValueError("no weights")

    def __call__(self, images):
        found = torch.cat([images[:, :, 3, 4], images[:, :, 5, 2]], 1)
        return found[:1] if self.bad == "shape" else found / (0 if self.bad == "infinite" else 1)


def model(steps=3):
    made = ToyModel()
    made.steps = steps
    return made


def same(a: Evaluation, b: Evaluation) -> bool:
    tensors = ((a.scores, b.scores), (a.features, b.features), (a.pictures, b.pictures))
    alike = all((x is None and y is None) or torch.equal(x, y) for x, y in tensors)
    return alike and (a.prompts, a.seeds, a.rewards) == (b.prompts, b.seeds, b.rewards)


def test_features_are_those_of_each_view_and_pictures_those_of_the_first_seeds():
    got = measure(model(), PROMPTS, SEEDS, REWARDS, Corners(), CAMERAS, batch_size=4, pictures=1)
    assert got.scores.shape == (3, 2, 1) and got.features.shape == (3, 2, 3, 6) and got.pictures.shape[:3] == (3, 1, 3)
    seen = got.pictures[:, 0].float() / 255  # P V 3 H W
    wanted = torch.cat([seen[..., 3, 4], seen[..., 5, 2]], -1)
    torch.testing.assert_close(got.features[:, 0], wanted, atol=3e-3, rtol=0)
    assert got.features.flatten(0, 2).unique(dim=0).shape[0] > 6 and got.diversity() is None
    whole = evaluate(model(), PROMPTS, SEEDS, REWARDS, CAMERAS, features=Corners(), batch_size=4)
    assert torch.equal(whole.features, got.features) and torch.equal(whole.pictures[:, :1], got.pictures)
    plain = measure(model(), PROMPTS, SEEDS, REWARDS, None, CAMERAS)
    assert plain.features is None and plain.pictures is None
    bare = measure(model(), PROMPTS, SEEDS, {}, Corners(), CAMERAS, batch_size=4)
    assert bare.scores.shape == (3, 2, 0) and torch.equal(bare.features, got.features)


def test_what_is_saved_is_read_back(tmp_path):
    got = measure(model(), PROMPTS, SEEDS, REWARDS, Corners(), CAMERAS, pictures=2)
    for name, value in {"all": got, "few": replace(got, pictures=None, features=None)}.items():
        save(tmp_path / name, value)
        assert same(load(tmp_path / name), value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "few"]
    one, two = (
        measure(model(), part, SEEDS, REWARDS, Corners(), CAMERAS, pictures=2) for part in (PROMPTS[:2], PROMPTS[2:])
    )
    assert same(join([one, two]), join([got])) and same(join([got]), got)
    with pytest.raises(ValueError, match="cannot be joined"):
        join([one, replace(two, seeds=(3, 4))])
    with pytest.raises(ValueError, match="cannot be joined"):
        join([one, replace(two, features=None)])


def grid(**changes) -> Grid:
    return replace(Grid(PROMPTS, tuple(range(8)), REWARDS, Corners(), CAMERAS, batch_size=16, pictures=1), **changes)


def test_blocks_starts_and_processes_change_nothing(tmp_path):
    whole = grid()
    assert [len(block) for block in whole.blocks()] == [2, 1]
    names, seen = ("one", "two", "again"), []
    for name in names:
        begin(tmp_path / name, {"adapter": None})
    whole.fill(tmp_path / "one", model(), progress=lambda *a: seen.append(a))
    assert seen == sorted(seen) and {total for _, total in seen} == {24}
    assert (16, 24) in seen and seen[-1] == (24, 24), "each block, and the last"
    for rank in (1, 0):
        whole.fill(tmp_path / "two", model(), rank, 2)
    whole.fill(tmp_path / "again", model(), 1, 2)
    assert whole.missing(tmp_path / "again") == [0]
    (tmp_path / "again/.tmp-1-block-00000").mkdir()
    begin(tmp_path / "again", {"adapter": None})  # a second start
    whole.fill(tmp_path / "again", model())
    assert not list((tmp_path / "again").glob(".tmp*"))
    read = [whole.read(tmp_path / name) for name in names]
    assert same(read[0], read[1]) and same(read[0], read[2])
    bytes_ = [[p.read_bytes() for p in sorted((tmp_path / n).glob("block-*/*"))] for n in names]
    assert bytes_[0] == bytes_[1] == bytes_[2]
    memory = measure(model(), PROMPTS, range(8), REWARDS, Corners(), CAMERAS, batch_size=16, pictures=1)
    assert same(read[0], memory)


def test_a_folder_of_something_else_is_refused(tmp_path):
    begin(tmp_path / "set", {"adapter": "ab", "seeds": (1, 2)})
    begin(tmp_path / "set", {"adapter": "ab", "seeds": [1, 2]})
    with pytest.raises(ValueError, match="holds other samples: adapter was 'ab', now 'cd'"):
        begin(tmp_path / "set", {"adapter": "cd", "seeds": [1, 2]})
    grid().fill(tmp_path / "set", model())
    with pytest.raises(ValueError, match="other prompts, seeds or rewards"):
        grid(rewards={"green": REWARDS["red"]}).read(tmp_path / "set")
    (tmp_path / "set/set.json").unlink()
    with pytest.raises(ValueError, match="missing, so nobody knows"):
        begin(tmp_path / "set", {})


def test_damage_is_named(tmp_path):
    got = measure(model(), PROMPTS, SEEDS, REWARDS, Corners(), CAMERAS)
    save(tmp_path / "a", got)
    text, data = tmp_path / "a/samples.json", tmp_path / "a/samples.safetensors"
    was, had = text.read_text(), data.read_bytes()
    for content in ("{}", '{"prompts": "abc", "seeds": [1], "rewards": []}'):
        text.write_text(content)
        with pytest.raises(ValueError, match=r"samples.json: damaged, .* must be lists; delete .*/a"):
            load(tmp_path / "a")
    text.write_text(was.replace("3,", "3, 4,"))
    with pytest.raises(ValueError, match=r"its tensors are not those of samples\.json"):
        load(tmp_path / "a")
    text.write_text(was)
    data.write_bytes(had[:-9])
    with pytest.raises(ValueError, match=r"samples.safetensors: damaged or missing .*; delete"):
        load(tmp_path / "a")
    data.unlink()
    with pytest.raises(ValueError, match="damaged or missing"):
        load(tmp_path / "a")
    save(tmp_path / "b", replace(got, features=got.features / 0))
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "b")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("check", "no weights"),
        ("shape", r"Corners must give finite features of shape \(18, 6\), got shape \(1, 6\)"),
        ("infinite", "got something that is not finite"),
    ],
)
def test_networks_that_fail_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        measure(model(), PROMPTS, SEEDS, REWARDS, Corners(bad), CAMERAS)


def test_nothing_sees_nothing():
    network = Nothing()
    network.check()
    assert network(torch.rand(2, 3, 4, 5)).shape == (2, network.dims) == (2, 0)
    with pytest.raises(ValueError, match="at least one reward"):
        evaluate(model(), PROMPTS, SEEDS, {})
