import pytest
import torch

from cir.randomness import StepRandom, seed_of


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_share_of_the_batch_draws_the_rows_of_the_whole(kind):
    whole = getattr(StepRandom(3, 7, 0, 8, 8), kind)("noise", 5)
    parts = [getattr(StepRandom(3, 7, start, start + 2, 8), kind)("noise", 5) for start in range(0, 8, 2)]
    assert torch.equal(whole, torch.cat(parts))


def test_draws_depend_on_seed_step_and_name_only():
    draw = StepRandom(0, 0, 0, 4, 4)
    first = draw.normal("a", 3)
    draw.normal("b", 100)
    assert torch.equal(first, draw.normal("a", 3))
    others = [StepRandom(1, 0, 0, 4, 4), StepRandom(0, 1, 0, 4, 4)]
    assert not any(torch.equal(first, other.normal("a", 3)) for other in others)
    assert not torch.equal(first, draw.normal("b", 3))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    StepRandom(0, 0, 0, 4, 4).keep("mask", 0.5, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_draws_have_their_distribution():
    draw = StepRandom(0, 0, 0, 4000, 4000)
    assert float(draw.normal("n", 10).std()) == pytest.approx(1, abs=0.02)
    assert float(draw.uniform("u", 10).mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draw.keep("k", 0.3, 10).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_seeds_differ_by_part_and_order():
    assert len({seed_of(0, 1), seed_of(1, 0), seed_of(1), seed_of("noise"), seed_of(10)}) == 5
