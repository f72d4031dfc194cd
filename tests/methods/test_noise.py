"""Each noise against its twin written out row by row, its moments, and its draws for a batch in parts."""

import pytest
import torch
from scipy import stats

from cir.errors import InputError
from cir.methods.noise import NOISES, STUDENT_FREEDOM, check, perturb
from cir.randomness import StepRandom, seed_of

SEED, STEP, WIDTH = 3, 7, 5


def generator(name):
    return torch.Generator().manual_seed(seed_of(SEED, STEP, name))


def written_out(kind, rows):
    """The noise of a global batch of `rows`, one feature at a time."""
    g = torch.randn(rows, WIDTH, generator=generator("noise.gaussian"))
    flat = torch.rand(rows, WIDTH, generator=generator("noise.uniform"))
    u = torch.rand(rows, 1, generator=generator("noise.scale"))
    more = torch.randn(rows, STUDENT_FREEDOM, WIDTH, generator=generator("noise.freedom"))
    noise = torch.zeros(rows, WIDTH)
    for i in range(rows):
        for j in range(WIDTH):
            chi = sum(float(more[i, k, j]) ** 2 for k in range(STUDENT_FREEDOM))
            noise[i, j] = {
                "none": 0.0,
                "gaussian": g[i, j],
                "uniform": -1 + 2 * flat[i, j],
                "uniform_gaussian": u[i, 0] * g[i, j],
                "student_t": float(g[i, j]) / (chi / STUDENT_FREEDOM) ** 0.5,
                "chi_square": g[i, j] * g[i, j],
            }[kind]
    return noise


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", NOISES)
def test_every_noise_equals_its_twin(kind, scale):
    features = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    found = perturb(features, kind, scale, StepRandom(SEED, STEP, 0, 6, 6))
    torch.testing.assert_close(found, features + scale * written_out(kind, 6))
    assert torch.equal(found, features) == (kind == "none")


@pytest.mark.parametrize("kind", NOISES)
def test_parts_of_a_batch_see_the_noise_of_the_whole(kind):
    features = torch.zeros(6, WIDTH)
    whole = perturb(features, kind, 1.0, StepRandom(SEED, STEP, 0, 6, 6))
    parts = [perturb(features[a:b], kind, 1.0, StepRandom(SEED, STEP, a, b, 6)) for a, b in ((0, 2), (2, 6))]
    assert torch.equal(torch.cat(parts), whole)
    other = perturb(features, kind, 1.0, StepRandom(SEED, STEP + 1, 0, 6, 6))
    assert torch.equal(other, whole) == (kind == "none")


DISTRIBUTIONS = {
    "gaussian": stats.norm(),
    "uniform": stats.uniform(-1, 2),
    "student_t": stats.t(STUDENT_FREEDOM),
    "chi_square": stats.chi2(1),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_draws_follow_the_distribution_they_are_named_after(kind):
    drawn = perturb(torch.zeros(4000, 3), kind, 1.0, StepRandom(1, 1, 0, 4000, 4000)).flatten().numpy()
    assert stats.kstest(drawn, DISTRIBUTIONS[kind].cdf).pvalue > 0.001
    assert min(stats.kstest(drawn, DISTRIBUTIONS[other].cdf).pvalue for other in DISTRIBUTIONS if other != kind) < 1e-6


def test_the_scale_of_uniform_gaussian_is_one_number_per_row():
    random = StepRandom(1, 1, 0, 8, 8)
    ratio = perturb(torch.zeros(8, 4), "uniform_gaussian", 1.0, random) / perturb(
        torch.zeros(8, 4), "gaussian", 1.0, random
    )
    torch.testing.assert_close(ratio, ratio[:, :1].expand(8, 4))
    assert ratio.min() >= 0 and ratio.max() <= 1 and len(ratio[:, 0].unique()) == 8


def test_noise_keeps_the_features_type_and_device():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert perturb(torch.zeros(2, 3, dtype=dtype), "student_t", 1.0, StepRandom(0, 0, 0, 2, 2)).dtype == dtype


def test_an_unknown_noise_is_refused():
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        check("gausian")
