import math

import pytest
import torch
from torch import nn

from cir.errors import InputError
from cir.optim import Average, adamw, counts, first_beta, rate, trainables


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.phi = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.phi_extra = nn.Linear(2, 2)


def test_patterns_match_in_full_and_freeze_the_rest():
    model = Model()
    named = trainables(model, (r"phi\.1\..*",))
    assert list(named) == ["phi.1.weight", "phi.1.bias"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(named)
    assert trainables(model, ("phi.0.weight",)).keys() == {"phi.0.weight"}
    assert not model.phi[1].weight.requires_grad


def test_a_pattern_that_matches_nothing_is_an_error_with_a_near_name():
    with pytest.raises(InputError, match=r"phi\.0\.weigh.*did you mean 'phi\.0\.weight'"):
        trainables(Model(), (r"phi\.1\..*", "phi.0.weigh"))
    with pytest.raises(InputError, match="matches no parameter"):
        trainables(Model(), ("phi",))  # a prefix is not a full match


def test_counts_add_up():
    model = Model()
    trainables(model, (r"phi\.0\..*",))
    table = {c.part: (c.trained, c.frozen) for c in counts(model)}
    assert table == {"phi.0": (16, 0), "phi.1": (0, 10), "phi_extra": (0, 6)}


def test_adamw_equals_the_update_written_out():
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = adamw({"w": w}, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8)
    value, m, v = w.detach().double().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for t in range(1, 4):
        gradient = torch.tensor([0.3 * t, -1.0])
        w.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        value = value * (1 - 0.1 * 0.5)
        value = value - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        torch.testing.assert_close(w.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_undecayed_parameters_keep_their_size_without_gradient():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = adamw({"norm.bias": a, "weight": b}, lr=0.1, weight_decay=0.5, undecayed=(r".*bias",))
    a.grad, b.grad = torch.zeros(1), torch.zeros(1)
    optimizer.step()
    assert a.item() == 1.0 and b.item() == pytest.approx(0.95)


def test_schedules_by_hand():
    assert [rate("constant", s, 4) for s in range(4)] == [1.0] * 4
    assert [rate("linear", s, 4) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert rate("cosine", 2, 4) == pytest.approx(0.5)
    assert rate("cosine", 1, 4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [rate("cosine", s, 8, warmup=4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        rate("cosin", 0, 1)


@pytest.mark.parametrize(("steps", "warmup", "div"), [(100, 20, 25.0), (40, 2, 100.0), (30, 15, 10.0)])
def test_onecycle_equals_torchs(steps, warmup, div):
    """Rate and first beta, over the whole schedule; a run may stop before its end."""
    from torch.optim.lr_scheduler import OneCycleLR

    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], betas=(0.9, 0.98))
    theirs = OneCycleLR(optimizer, max_lr=2e-5, total_steps=steps, pct_start=warmup / steps, div_factor=div)
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert 2e-5 * rate("onecycle", step, steps, warmup, div) == pytest.approx(group["lr"], rel=1e-9)
        assert first_beta("onecycle", step, steps, warmup, 0.9) == pytest.approx(group["betas"][0], rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            theirs.step()
    assert (
        rate("onecycle", warmup - 1, steps, warmup, div) == 1.0 and rate("onecycle", 0, steps, warmup, div) == 1 / div
    )


def test_onecycle_without_warmup_and_other_schedules_beta():
    assert rate("onecycle", 0, 10) == rate("onecycle", 0, 10, 1) == 1.0
    assert rate("onecycle", 9, 10) == pytest.approx(1e-4 / 25)
    with pytest.raises(InputError, match=r"train\.div: expected a number above 0, got 0"):
        rate("onecycle", 0, 10, div=0.0)
    assert {first_beta(name, 3, 10, 2, 0.9) for name in ("constant", "linear", "cosine")} == {0.9}


def test_the_average_equals_the_recursion_and_leaves_the_weights():
    w = nn.Parameter(torch.zeros(1))
    average = Average({"w": w}, 0.9)
    expected = 0.0
    for k in range(20):
        with torch.no_grad():
            w.fill_(float(k))
        average.update(k)
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * k
    assert float(average.values["w"]) == pytest.approx(expected, rel=1e-6)
    with average.applied():
        assert w.item() == pytest.approx(expected, rel=1e-6)
    assert w.item() == 19.0


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_a_decay_outside_the_unit_interval_is_refused(decay):
    with pytest.raises(InputError, match="between 0 and 1"):
        Average({}, decay)
