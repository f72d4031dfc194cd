"""Similarity over several vectors, and the loss over a similarity matrix: written out, and against the library's."""

import math

import pytest
import torch
from pytest import approx
from torch.nn import functional as F

from cir.objectives import info_nce, max_similarity


def rows(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(queries, targets):
    found = torch.zeros(len(queries), len(targets))
    for i, query in enumerate(queries):
        for j, target in enumerate(targets):
            found[i, j] = max(float(a @ b / (a.norm() * b.norm())) for a in query for b in target)
    return found


@pytest.mark.parametrize(("n", "t"), [(1, 1), (1, 5), (3, 1), (3, 5)])
def test_max_similarity_equals_the_loop(n, t):
    queries, targets = rows(4, n, 6, seed=0), 3 * rows(7, t, 6, seed=1)
    torch.testing.assert_close(max_similarity(queries, targets), slow(queries, targets))


def test_single_vectors_are_compared_by_cosine():
    queries, targets = rows(4, 1, 6, seed=0), rows(4, 1, 6, seed=1)
    expected = F.cosine_similarity(queries[:, 0], targets[:, 0])
    torch.testing.assert_close(max_similarity(queries, targets).diag(), expected)


def test_shapes_of_one_stay_matrices():
    assert max_similarity(rows(1, 1, 4, seed=0), rows(1, 8, 4, seed=1)).shape == (1, 1)
    assert max_similarity(rows(3, 1, 4, seed=0), rows(1, 8, 4, seed=1)).shape == (3, 1)


def test_gradient_reaches_the_winning_vector_only():
    queries = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    targets = torch.tensor([[[0.6, 0.8], [0.8, -0.6]]], requires_grad=True)
    max_similarity(queries, targets).sum().backward()
    assert targets.grad[0, 0].abs().max() == 0 and targets.grad[0, 1].abs().max() > 0
    # d cos / d q = target - cos * q, at unit length
    torch.testing.assert_close(queries.grad, torch.tensor([[[0.0, -0.6]]]))


@pytest.mark.parametrize("labels", [None, [6, 0, 6]])
def test_info_nce_equals_the_sum_written_out(labels):
    similarity = rows(3, 7, seed=2)
    total = 0.0
    for i, row in enumerate(similarity.tolist()):
        total += -row[i if labels is None else labels[i]] + math.log(sum(map(math.exp, row)))
    found = info_nce(similarity, None if labels is None else torch.tensor(labels))
    assert float(found) == approx(total / 3, rel=1e-6)


@pytest.mark.parametrize("tau", [0.02, 0.07, 0.5])
def test_info_nce_equals_pytorch_metric_learning(tau):
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    left, right = rows(6, 5, seed=2), rows(6, 5, seed=3)
    similarity = max_similarity(left[:, None], right[:, None]) / tau
    theirs = SelfSupervisedLoss(NTXentLoss(temperature=tau), symmetric=False)
    assert float(info_nce(similarity)) == approx(float(theirs(left, right)), rel=1e-5)
    assert float(info_nce(similarity.T)) == approx(float(theirs(right, left)), rel=1e-5)


def test_info_nce_over_a_bank_equals_pytorch_metric_learning():
    from pytorch_metric_learning.losses import NTXentLoss

    queries, bank = rows(4, 5, seed=4).requires_grad_(), rows(9, 5, seed=5)
    labels, tau = torch.tensor([8, 0, 3, 3]), 0.05
    ours = info_nce(max_similarity(queries[:, None], bank[:, None]) / tau, labels)
    theirs = NTXentLoss(temperature=tau)(queries, labels, ref_emb=bank, ref_labels=torch.arange(9))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(theirs, queries)
    torch.testing.assert_close(torch.autograd.grad(ours, queries), expected, rtol=1e-4, atol=1e-5)


def test_info_nce_survives_scales_at_which_exp_overflows():
    assert float(info_nce(1000 * torch.eye(4))) == approx(0.0, abs=1e-6)
    assert torch.isfinite(info_nce(-1000 * torch.eye(4)))


def test_both_compute_in_float32_under_mixed_precision():
    queries, targets = rows(8, 1, 16, seed=8), rows(8, 4, 16, seed=9)
    plain = info_nce(max_similarity(queries, targets) / 0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = max_similarity(queries, targets)
        mixed = info_nce(similarity / 0.02)
    assert similarity.dtype == mixed.dtype == torch.float32
    assert float(mixed) == approx(float(plain), rel=1e-6)
