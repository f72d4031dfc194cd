"""Each objective against the sum written out, and against the libraries' versions of it."""

import math
from functools import partial

import pytest
import torch
from pytest import approx
from torch.nn import functional as F

from cir.objectives import clip_ce, cosine, gather, mse, nt_xent


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_nt_xent_equals_the_sum_written_out():
    left, right, tau = rows(4, 3, 0), rows(4, 3, 1), 0.5
    z = [row / row.norm() for row in [*left, *right]]
    total = 0.0
    for i in range(8):
        others = [math.exp(float(z[i] @ z[j]) / tau) for j in range(8) if j != i]
        total += -float(z[i] @ z[(i + 4) % 8]) / tau + math.log(sum(others))
    assert float(nt_xent(left, right, tau)) == approx(total / 8, abs=1e-5)


@pytest.mark.parametrize("tau", [0.02, 0.07, 0.5])
def test_nt_xent_equals_pytorch_metric_learning(tau):
    from pytorch_metric_learning.losses import NTXentLoss

    left, right = rows(6, 5, 2), rows(6, 5, 3)
    labels = torch.arange(6)
    theirs = NTXentLoss(temperature=tau)(torch.cat([left, right]), torch.cat([labels, labels]))
    assert float(nt_xent(left, right, tau)) == approx(float(theirs), rel=1e-5)


def test_nt_xent_keeps_negatives_of_the_same_side_and_drops_the_self_term():
    apart = torch.eye(4)
    assert float(nt_xent(apart, apart, 1.0)) == approx(-1 + math.log(math.e + 6), abs=1e-6)
    alike = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # now the other row of one's own side is as close as the positive
    assert float(nt_xent(alike, alike, 1.0)) == approx(math.log(3), abs=1e-6)


def test_nt_xent_survives_a_temperature_at_which_exp_overflows():
    value = nt_xent(rows(4, 3, 0), rows(4, 3, 0), 0.001)
    assert torch.isfinite(value) and float(value) == approx(0.0, abs=1e-3)


def test_clip_ce_equals_the_sum_written_out():
    left, right, scale = rows(4, 3, 4), rows(4, 3, 5), 7.0
    a, b = F.normalize(left, dim=-1), F.normalize(right, dim=-1)
    total = 0.0
    for x, y in ((a, b), (b, a)):
        for i in range(4):
            e = [math.exp(scale * float(x[i] @ y[j])) for j in range(4)]
            total -= math.log(e[i] / sum(e)) / 8
    assert float(clip_ce(left, right, scale)) == approx(total, abs=1e-5)


def test_alignment_objectives_equal_torch():
    x, y = rows(5, 3, 6), rows(5, 3, 7)
    assert float(mse(x, y)) == approx(float(F.mse_loss(x, y)), rel=1e-6)
    target = torch.ones(5)
    assert float(cosine(x, y)) == approx(float(F.cosine_embedding_loss(x, y, target)), rel=1e-5)


@pytest.mark.parametrize("objective", [partial(nt_xent, temperature=0.05), partial(clip_ce, scale=100.0), mse, cosine])
def test_objectives_compute_in_float32_under_mixed_precision(objective):
    x, y = rows(8, 16, 8), rows(8, 16, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = objective(x, y)
    assert mixed.dtype == torch.float32
    assert float(mixed) == approx(float(objective(x, y)), rel=1e-6)


def test_gather_without_processes_returns_the_rows():
    x = rows(3, 2, 0)
    assert gather(x) is x
