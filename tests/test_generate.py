"""Samples of every prompt with every seed: order, randomness, gradients off inside and as they were outside."""

import pytest
import torch
from user_parts import Toy

from align3d.generate import generate

PROMPTS = ["a red cat", "a blue dog"]


class Frozen:
    """A generator that nobody trains: no adapter, and no word of where it lives."""

    adapter = None

    def __init__(self):
        self.model = Toy().load()
        self.schedule, self.steps, self.latent_shape = self.model.schedule, 4, self.model.latent_shape
        self.encode, self.predict, self.decode = self.model.encode, self.model.predict, self.model.decode
        self.reference = self.model.reference


def test_the_callers_loop_keeps_its_gradients():
    for batch in generate(Toy().load(), PROMPTS, range(2), batch_size=1):
        assert torch.is_grad_enabled() and not batch.scene.means.requires_grad
    with torch.no_grad():
        for _ in generate(Toy().load(), PROMPTS, range(2), batch_size=1):
            assert not torch.is_grad_enabled()


def test_a_sample_depends_on_its_prompt_and_seed_alone():
    together = list(generate(Toy().load(), PROMPTS, [0, 1], batch_size=3))
    assert [len(batch.prompts) for batch in together] == [3, 1]
    pairs = [pair for batch in together for pair in zip(batch.prompts, batch.seeds, strict=True)]
    assert pairs == [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
    latents = torch.cat([batch.scene.means for batch in together])
    (alone,) = generate(Toy().load(), PROMPTS[1:], [1])
    assert torch.equal(latents[3:], alone.scene.means)
    assert len(latents.flatten(1).unique(dim=0)) == 4


def test_a_model_without_adapter():
    (batch,) = generate(Frozen(), PROMPTS, [0])
    (same,) = generate(Toy().load(), PROMPTS, [0])
    assert torch.equal(batch.scene.means, same.scene.means)


def test_it_tells_how_far_it_is():
    """Before each prediction; what is sampled is the same."""
    told = []
    batches = list(generate(Toy().load(), PROMPTS, [0, 1], 3, lambda *done: told.append(done)))
    assert told == [(0.0, 4), (0.75, 4), (1.5, 4), (2.25, 4), (3.0, 4), (3.25, 4), (3.5, 4), (3.75, 4)]
    for batch, same in zip(batches, generate(Toy().load(), PROMPTS, [0, 1], 3), strict=True):
        assert torch.equal(batch.scene.means, same.scene.means)


@pytest.mark.parametrize(("prompts", "seeds", "size"), [([], [0], 8), (PROMPTS, [], 8), (PROMPTS, [0], 0)])
def test_nothing_to_sample(prompts, seeds, size):
    with pytest.raises(ValueError, match="generate needs prompts, seeds and a batch size, got"):
        next(generate(Toy().load(), prompts, seeds, size))
