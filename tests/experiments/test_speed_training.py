"""The training benchmark's two sides agree, and its claims hold in counts of token passes; seconds are not tested."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "speed"
MODULES = ("training", "items", "sides", "measuring", "fixture", "reference_training")


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("training")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def both(speed):
    """Each item's two sides at a small width, made once: the batch and the layers are those of the real size."""
    made = {}

    def make(name):
        if name not in made:
            item = speed.ITEMS[name](speed.Setting(speed.SIZES["small"], speed.ITEMS[name].batch))
            exact = item.ours(speed.EXACT)
            made[name] = item, exact, item.plain(exact)
        return made[name]

    return make


ITEMS = ("lincir", "rtd", "pic2word", "oti", "searle")
GOALS = {"lincir": 28, "rtd": 73, "pic2word": 6, "oti": 42, "searle": 36}
"""Token passes per sample at the benchmark's batch; the released scripts make 231, 693, 231, 693 and 231."""


@pytest.mark.parametrize("name", ITEMS)
def test_both_sides_compute_the_same_loss_gradients_and_step(speed, both, name):
    _, ours, plain = both(name)
    found = speed.deviation(ours, plain)
    assert found["loss"] <= 1e-6 and found["gradient"] <= 1e-5 and found["gradient_cosine"] > 1 - 1e-9
    before = [p.detach().clone() for p in ours.named.values()]
    ours.update()
    plain.update()
    with torch.no_grad():
        moved = sum(float((p - old).norm() ** 2) for p, old in zip(ours.named.values(), before, strict=True))
        apart = 0.0
        for (key, mine), other, old in zip(ours.named.items(), plain.named.values(), before, strict=True):
            if not key.endswith("k_proj.bias"):  # Adam makes a whole step of what is rounding
                apart += float((mine - other).norm() ** 2)
            mine.copy_(old)
            other.copy_(old)
    assert 0 <= apart < 1e-4 * moved


@pytest.mark.parametrize("name", ITEMS)
def test_token_passes_stay_within_their_goals(speed, both, name):
    item, ours, _ = both(name)
    found = speed.passes(ours)
    assert found["total"] / item.batch <= GOALS[name]
    assert found["frozen_weight_gradients"] == 0
    assert found["weight_gradients"] == (found["backward_inputs"] if name == "rtd" else 0)


@pytest.mark.parametrize("name", ["lincir", "rtd", "oti", "searle"])
def test_kept_features_change_nothing_and_save_their_passes(speed, both, name):
    item, exact, plain = both(name)
    cached = item.ours(speed.CACHED)
    found = speed.deviation(cached, plain)
    assert found["loss"] <= 1e-6 and found["gradient"] <= 1e-5
    saved = speed.passes(exact)["forward"] - speed.passes(cached)["forward"]
    assert saved > 5 * item.batch
    assert speed.passes(exact)["backward_inputs"] == speed.passes(cached)["backward_inputs"]


def test_a_difference_stops_the_benchmark(speed, both):
    _, ours, plain = both("pic2word")
    weight = next(iter(plain.named.values())).data
    weight.add_(1e-3)
    found = speed.deviation(ours, plain)
    weight.sub_(1e-3)
    with pytest.raises(SystemExit, match="nothing is timed"):
        speed.refuse_difference("pic2word", found)


def test_every_product_of_a_step_is_recorded(speed, both):
    """What passes count by hooks in the layers, the recorder sees as matrix products of the right sizes."""
    _, ours, _ = both("rtd")
    recorded = speed.products(ours)
    flop = sum(m * k * n * count for (m, k, n, *_), count in recorded.items())
    counted = speed.passes(ours)["total"] * speed._layer_weights(ours.backbone.text)
    assert counted < flop < 1.25 * counted  # the projections and the projector beside the layers
    speed.Bare(recorded)()


def test_the_released_scripts_need_two_or_three_times_77_passes(speed, both):
    from cir.backbones.counting import count_tokens

    sides = importlib.import_module("sides")
    items = importlib.import_module("items")
    reference = importlib.import_module("reference_training")
    towers, build = [], items.plain_tower

    def remember(setting, trained):
        towers.append(build(setting, trained))
        return towers[-1]

    assert sides.Setting is speed.Setting and reference.SLOT == 259
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "plain_tower", remember)
        for name, expected in (("lincir", 231), ("oti", 693)):
            item, ours, _ = both(name)
            plain = item.plain(ours)
            with count_tokens(towers[-1]) as count:
                plain.gradients()
            assert count.total == pytest.approx(expected * item.batch)


def test_the_script_runs_and_writes_its_results(speed, tmp_path, monkeypatch, capsys):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    target = tmp_path / "r.json"
    arguments = ["--small", "--items", "pic2word", "--pairs", "1", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    apart = speed.fresh

    def here(task, name, *passed_on):  # one process of its own is enough to see that it starts
        if task == "ours":
            return apart(task, name, *passed_on)
        setting = speed.Setting(speed.SIZES["small"], 32)
        return speed.measure(name, setting, 1) if task == "measure" else {"extra": speed.memory(name, setting, task)}

    monkeypatch.setattr(speed, "fresh", here)
    speed.main()
    results = json.loads(target.read_text())
    item = results["items"]["pic2word"]
    assert set(item["rows"]) == {"exact", "bf16"} and set(item["extra_mib"]) == {"plain", "ours"}
    assert item["rows"]["exact"]["step"]["ratio"] > 0 and item["rows"]["exact"]["share_of_products"] > 0
    assert "pic2word, exact" in capsys.readouterr().out


def test_unknown_items_are_named(speed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training.py", "--items", "linciir"])
    with pytest.raises(SystemExit, match="linciir"):
        speed.main()
