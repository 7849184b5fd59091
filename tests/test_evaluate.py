"""Evaluation and paired comparison, on a model whose samples and rewards can be worked out by hand."""

import contextlib
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from align3d.diffusion.sampler import NonFiniteError
from align3d.evaluate import Evaluation, change, compare, evaluate, evaluation_cameras, number
from align3d.types import Views

PROMPTS, SEEDS = ("a red mug", "a blue chair", "a green lamp"), (3, 11)


class Plain:
    """One colour from everywhere, plus how far right the camera is."""

    def __init__(self, color):
        self.color = color

    def render(self, cameras, want=("rgb", "alpha"), background=(1.0, 1.0, 1.0)):
        assert not torch.is_grad_enabled()
        B, V = cameras.c2w.shape[:2]
        assert len(self.color) == B
        rgb = self.color[:, None] + 0.01 * cameras.c2w[:, :, :1, 3]
        return Views(cameras, rgb=rgb[..., None, None].expand(B, V, 3, cameras.height, cameras.width))


class Model:
    """Paints its scenes with the final noise, moved by `shift`."""

    latent_shape = (3,)
    steps = 2

    def __init__(self, shift=0.0):
        self.shift = shift
        self.adapter = torch.nn.Linear(1, 1)
        self.schedule = SimpleNamespace(times=lambda steps: torch.linspace(1, 0, steps + 1))

    def encode(self, prompts):
        return torch.tensor([[len(p) / 20] for p in prompts])

    def predict(self, x, t, cond):
        assert len(x) == len(cond)
        return 0.1 * x

    def decode(self, x0):
        return Plain((0.5 + 0.05 * x0 + self.shift).clamp(0, 1))

    def reference(self):
        return contextlib.nullcontext()


@dataclass
class Mean:
    channel: int
    needs: frozenset = frozenset({"rgb"})
    differentiable: bool = True

    def __call__(self, views, prompts):
        assert len(prompts) == len(views.rgb) and isinstance(prompts, tuple)
        return views.rgb[:, :, self.channel].mean((-1, -2))


REWARDS = {"red": Mean(0), "blue": Mean(2)}


@pytest.fixture(autouse=True)
def simple_sampler(monkeypatch):
    """The last noise is the sample: what the sampler does is not this file's business."""
    import align3d.diffusion.sampler as sampler

    def rollout(model, prompts, times, rng, **options):
        return SimpleNamespace(x=rng.normal("noise", model.latent_shape)[:, None])

    monkeypatch.setattr(sampler, "rollout", rollout)


def run(model=None, prompts=PROMPTS, rewards=None, **options):
    cameras = options.pop("cameras", evaluation_cameras(size=6))
    return evaluate(model or Model(), prompts, SEEDS, rewards or REWARDS, cameras, **options)


def test_shapes_order_and_values():
    got = run()
    assert got.scores.shape == (3, 2, 2) and got.pictures.shape == (3, 2, 4, 3, 6, 6)
    assert got.rewards == ("red", "blue") and got.prompts == PROMPTS and got.seeds == SEEDS
    pixels = got.pictures.double() / 255
    torch.testing.assert_close(got.scores[..., 0], pixels[:, :, :, 0].mean((2, 3, 4)), atol=2e-3, rtol=0)
    torch.testing.assert_close(got.scores[..., 1], pixels[:, :, :, 2].mean((2, 3, 4)), atol=2e-3, rtol=0)
    assert got.scores.flatten(0, 1).unique(dim=0).shape[0] == 6, "samples do not differ"
    assert got.mean()["blue"] == pytest.approx(float(got.scores[..., 1].mean()))
    assert json.loads(json.dumps(got.as_dict()))["scores"] == got.scores.tolist()


def test_a_sample_depends_on_prompt_and_seed_alone():
    whole = run()
    assert torch.equal(run(batch_size=1).scores, whole.scores)
    assert torch.equal(run(batch_size=5).pictures, whole.pictures)
    part = run(prompts=PROMPTS[1:])
    assert torch.equal(part.scores, whole.scores[1:])


def test_whole_object_rewards_and_progress():
    class Whole(Mean):
        def __call__(self, views, prompts):
            return super().__call__(views, prompts).mean(1, keepdim=True)

    seen = []
    got = run(rewards={"red": Mean(0), "whole": Whole(0)}, batch_size=4, progress=lambda *a: seen.append(a))
    torch.testing.assert_close(got.scores[..., 0], got.scores[..., 1])
    assert seen == [(4, 6), (6, 6)]


def test_plain_functions_and_early_checks():
    def red(views, prompts):
        return views.rgb[:, :, 0].mean((-1, -2))

    assert torch.equal(run(rewards={"f": red}).scores, run(rewards={"f": Mean(0)}).scores)

    def check(prompts):
        raise ValueError(f"cannot score {prompts[0]}")

    red.check = check
    model = Model()
    model.decode = lambda x0: pytest.fail("sampled before the check")
    with pytest.raises(ValueError, match="cannot score a red mug"):
        run(model, rewards={"f": red})


def test_pictures_can_be_left_out():
    got = run(keep=False)
    assert got.pictures is None and got.diversity() is None
    assert compare(got, got).moved is None and compare(got, got).diversity is None
    assert torch.equal(got.scores, run().scores)


def test_diversity_is_the_distance_between_the_seeds():
    got = run()
    a, b = got.pictures[:, 0].double() / 255, got.pictures[:, 1].double() / 255
    torch.testing.assert_close(got.diversity().double(), ((a - b) ** 2).mean((1, 2, 3, 4)).sqrt())
    pictures = torch.zeros(2, 3, 2, 3, 4, 5, dtype=torch.uint8)
    pictures[0, 2] = 255
    three = Evaluation(("a", "b"), (0, 1, 2), ("r",), torch.zeros(2, 3, 1), pictures)
    torch.testing.assert_close(three.diversity(), torch.tensor([2 / 3, 0.0]))


def test_a_shift_is_found_with_its_size():
    comparison = compare(run(), run(Model(shift=0.1)))
    red = comparison["red"]
    assert red.change == pytest.approx(0.1, abs=1e-5) and red.wins == 1.0
    assert red.tuned - red.base == pytest.approx(red.change) and red.certain and red.low > 0.09
    assert comparison.moved == pytest.approx(0.1, abs=2e-3)
    assert comparison.diversity.change == pytest.approx(0, abs=2e-3) and comparison.diversity.base > 0.01
    down = compare(run(Model(shift=0.1)), run())["red"]
    assert down.change == pytest.approx(-0.1, abs=1e-5) and down.high < 0 and down.wins == 0.0


def test_nothing_changed_is_nothing():
    comparison = compare(run(), run())
    for row in comparison.changes:
        assert (row.change, row.error, row.z, row.low, row.high, row.wins) == (
            0,
            0,
            None,
            0,
            0,
            0.5,
        ) and not row.certain
    assert comparison.moved == 0


def test_the_error_is_that_of_prompt_means():
    before = torch.zeros(4, dtype=torch.float64)
    after = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    row = change("x", before, after)
    assert row.change == 3.0
    assert row.error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2)
    half = 3.182446 * row.error  # of Student's t, with four prompts
    assert row.z is None and (row.low, row.high) == pytest.approx((3 - half, 3 + half))
    many = change("x", before.repeat(3), after.repeat(3))
    assert many.z == pytest.approx(3 / many.error) and 1 <= many.low < 3 < many.high <= 6


def test_seeds_that_agree_do_not_count_as_more_evidence():
    """Clustering: repeating every sample under another seed must leave error and interval alone."""
    scores = torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = Evaluation(tuple("abcdefgh"), (0,), ("r",), 0 * scores)
    thrice = replace(once, seeds=(0, 1, 2), scores=once.scores.expand(8, 3, 1))
    one = compare(once, replace(once, scores=scores))["r"]
    many = compare(thrice, replace(thrice, scores=scores.expand(8, 3, 1)))["r"]
    assert many.error == pytest.approx(one.error) and (many.low, many.high) == pytest.approx((one.low, one.high))


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for i in range(200):
        d = 0.3 + torch.randn(30, generator=generator)
        row = change("x", torch.zeros(30), d, seed=i)
        hits += row.low <= 0.3 <= row.high
    assert 178 <= hits <= 198  # 95 % of 200, less what the percentile bootstrap is short of at 30


def test_the_bootstrap_is_repeatable():
    d = torch.randn(10, generator=torch.Generator().manual_seed(0))
    rows = [change("x", 0 * d, d, seed) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] and rows[0].low != rows[2].low


def test_one_prompt_has_no_error():
    row = change("x", torch.zeros(1), torch.ones(1))
    assert row.change == 1 and row.error is row.z is row.low is row.high is None and not row.certain


def test_tables_for_people_and_machines():
    comparison = compare(run(rewards={"a|b": Mean(0)}), run(Model(shift=0.1), rewards={"a|b": Mean(0)}))
    table = comparison.markdown()
    assert table.splitlines()[2].startswith("| a\\|b | 0.5") and "+0.100" in table and "100 %" in table
    assert "| diversity | 0.0" in table and "3 prompts x 2 seeds" in table
    assert json.loads(json.dumps(comparison.as_dict()))["changes"][0]["name"] == "a|b"
    assert [len(line.replace("\\|", "").split("|")) for line in table.splitlines()[:4]] == [9] * 4
    with pytest.raises(ValueError, match=r"'dnc' was not evaluated, only a\|b"):
        comparison["dnc"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1234"), (12.345, "12.35"), (-5.7421, "-5.742"), (0.09871, "0.0987"), (1.2e-6, "1.2e-06")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text
    assert number(abs(value) + 1e-9, sign=True)[0] == "+"
    assert number(float("nan")) == number(None) == "n/a"


class Broken(Mean):
    def __init__(self, make):
        super().__init__(0)
        self.make = make

    def __call__(self, views, prompts):
        return self.make(super().__call__(views, prompts))


def poison(value):
    value = value.clone()
    value[1, 2] = math.nan
    return value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: v.mean(), r"reward odd must return a tensor \(B, V\) = \(4, 4\), or \(B, 1\), got shape \(\)"),
        (lambda v: v.mT[:3], r"got shape \(3, 4\)"),
        (lambda v: v.tolist(), "got list"),
        (poison, "reward odd returned nan for 'a red mug', view 3; the rendering is finite"),
    ],
)
def test_broken_rewards_are_named(make, message):
    with pytest.raises((ValueError, NonFiniteError), match=message):
        run(rewards={"odd": Broken(make)}, batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompts=()), "at least one prompt"),
        (dict(prompts="abc"), "list of at least one prompt, got 'abc'"),
        (dict(prompts=("a", "b", "a")), "prompt 'a' is given twice"),
        (dict(batch_size=0), "batch size"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(**arguments)


def test_what_the_rewards_need_is_rendered(monkeypatch):
    wanted = []
    render = Plain.render
    monkeypatch.setattr(Plain, "render", lambda self, cameras, want: wanted.append(want) or render(self, cameras))
    needs = frozenset({"rgb", "normal"}), frozenset({"alpha", "rgb"})
    run(rewards={"x": Mean(0, needs[0]), "y": Mean(1, needs[1])}, batch_size=6)
    assert wanted == [("alpha", "normal", "rgb")]


def test_a_reward_sees_only_what_it_asked_for():
    with pytest.raises(ValueError, match=r"views.* are None because `needs` does not ask for them"):
        run(rewards={"x": Mean(0, frozenset({"alpha"})), "y": Mean(1)})


def test_no_rewards_no_seeds_and_many_cameras_are_refused():
    with pytest.raises(ValueError, match="at least one reward"):
        evaluate(Model(), PROMPTS, SEEDS, {})
    with pytest.raises(ValueError, match="at least one seed"):
        evaluate(Model(), PROMPTS, [], REWARDS)
    cameras = evaluation_cameras(size=4)
    both = replace(cameras, c2w=cameras.c2w.repeat(2, 1, 1, 1), K=cameras.K.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"must be \(1, V\), the same for all samples, got \(2, 4, 4, 4\)"):
        run(cameras=both)


def test_what_does_not_pair_up_is_refused():
    base = run()
    with pytest.raises(ValueError, match="different prompts"):
        compare(base, run(prompts=PROMPTS[:2]))
    with pytest.raises(ValueError, match="different seeds"):
        compare(base, replace(base, seeds=(3, 4)))
    with pytest.raises(ValueError, match="blue was evaluated on the base only"):
        compare(base, run(rewards={"red": Mean(0)}))
    with pytest.raises(ValueError, match="pictures of different cameras"):
        compare(base, run(cameras=evaluation_cameras(size=8)))


def test_the_cameras_are_not_the_training_ones():
    from align3d.scenes.cameras import canonical

    cameras = evaluation_cameras()
    assert (cameras.height, cameras.width) == (128, 128) and cameras.c2w.shape == (1, 4, 4, 4)
    centres = cameras.c2w[0, :, :3, 3]
    assert torch.cdist(centres, canonical(1).c2w[0, :, :3, 3]).min() > 0.5
