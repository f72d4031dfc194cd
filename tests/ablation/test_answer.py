import json
from dataclasses import replace

import numpy as np
import pytest

from cir import records, stats
from cir.ablation.answer import answer
from cir.record_values import means

COLUMN = "circo/val:mAP@5"


def random_values(seed, shift=0.0, count=40):
    return np.clip(np.random.default_rng(seed).random(count) * 0.6 + shift, 0, 1)


def test_mean_spread_and_interval_by_hand(made):
    numbers = [[1.0, 0.0, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5]]
    made.add("full", {seed: {COLUMN: one} for seed, one in enumerate(numbers)})
    found = answer(made.ablation([COLUMN]), made.cells, made.records).summaries["full", COLUMN]
    assert dict(found.seeds) == {0: 50.0, 1: 62.5, 2: 75.0}
    assert found.mean == pytest.approx(62.5) and found.deviation == pytest.approx(12.5) and found.queries == 4
    expected = stats.bootstrap({"x": np.array([1.0, 0.5, 0.5, 0.5])})["x"]  # the values averaged over seeds
    assert (found.low, found.high) == (pytest.approx(100 * expected.low), pytest.approx(100 * expected.high))


def test_a_cell_is_compared_on_values_averaged_over_seeds(made):
    ours = [random_values(seed, 0.1) for seed in range(3)]
    theirs = [random_values(seed) for seed in range(3, 6)]
    made.add("full", {seed: {COLUMN: one} for seed, one in enumerate(theirs)})
    made.add("other", {seed: {COLUMN: one} for seed, one in enumerate(ours)})
    found = answer(made.ablation([COLUMN]), made.cells, made.records).contrasts["other", COLUMN]
    a, b = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    expected = stats.paired(a, b)
    assert found.queries.difference == pytest.approx(100 * (a.mean() - b.mean()))
    assert (found.queries.p_value, found.queries.won) == (pytest.approx(expected.p_value), expected.won)
    assert found.queries.low == pytest.approx(100 * expected.low)
    assert found.d_z == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    means = [[100 * one.mean() for one in side] for side in (ours, theirs)]
    pooled = np.sqrt((np.var(means[0], ddof=1) + np.var(means[1], ddof=1)) / 2)
    assert found.seed_units == pytest.approx((np.mean(means[0]) - np.mean(means[1])) / pooled)
    assert found.training.p_value == pytest.approx(stats.over_seeds(*means).p_value)
    assert ("full", COLUMN) not in answer(made.ablation([COLUMN]), made.cells, made.records).contrasts


def test_comparisons_of_one_column_are_corrected_together(made):
    other = "cirr/val:R@1"
    for number, (name, shift) in enumerate([("full", 0.0), ("a", 0.05), ("b", 0.02), ("c", 0.2)]):
        columns = {COLUMN: random_values(number, shift), other: random_values(9 + number, shift)}
        backwards, squared = ({c: change(v) for c, v in columns.items()} for change in (np.flip, np.square))
        made.add(name, {0: columns, 1: backwards, 2: squared})
    found = answer(made.ablation([COLUMN, other]), made.cells, made.records).contrasts
    for column in (COLUMN, other):
        column_of = [found[name, column] for name in "abc"]
        assert [one.adjusted for one in column_of] == stats.holm([one.queries.p_value for one in column_of])
        assert [one.training_adjusted for one in column_of] == stats.holm([one.training.p_value for one in column_of])
        assert any(one.adjusted != one.queries.p_value for one in column_of)


def test_a_strong_effect_differs_and_none_does_not(made):
    base = random_values(0)
    made.add("full", {0: {COLUMN: base}})
    made.add("better", {0: {COLUMN: base + 0.2}})
    made.add("same", {0: {COLUMN: base}})
    found = answer(made.ablation([COLUMN]), made.cells, made.records).contrasts
    assert found["better", COLUMN].differs and not found["same", COLUMN].differs
    assert found["same", COLUMN].d_z == 0 and found["same", COLUMN].training is None


def test_queries_in_another_order_are_aligned(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2, 0.3]}})
    made.add("other", {0: {COLUMN: [0.4, 0.3, 0.1]}}, ids=["q2", "q1", "q0"])
    found = answer(made.ablation([COLUMN]), made.cells, made.records).contrasts["other", COLUMN].queries
    assert (found.won, found.tied, found.lost) == (2, 1, 0)


def test_parts_of_a_group_weigh_the_same(made):
    made.add("full", {0: {COLUMN: [0.0, 0.0, 0.0]}}, strata=["x", "x", "y"])
    made.add("other", {0: {COLUMN: [0.0, 0.5, 1.0]}}, strata=["x", "x", "y"])
    found = answer(made.ablation([COLUMN]), made.cells, made.records)
    assert found.summaries["other", COLUMN].mean == pytest.approx(62.5)
    assert found.contrasts["other", COLUMN].queries.difference == pytest.approx(62.5)


def test_what_is_missing_has_its_reason_and_seeds_are_shared(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2]}, 1: {COLUMN: [0.3, 0.4]}})
    made.add("half", {0: {}, 1: {COLUMN: [0.5, 0.5]}})
    made.add("none", {0: {}, 1: {}})
    found = answer(made.ablation([COLUMN]), made.cells, made.records)
    assert found.summaries["half", COLUMN].missing == {"seed 0": "no record"}
    assert found.contrasts["half", COLUMN].seeds == (1,)
    assert found.contrasts["half", COLUMN].queries.difference == pytest.approx(15)  # against seed 1 alone
    assert found.summaries["none", COLUMN].mean is None
    assert found.untested["none", COLUMN] == "none has no number"


def test_stale_records_and_those_of_another_configuration_are_not_taken(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2]}})
    made.add("stale", {0: {COLUMN: [0.5, 0.5]}}, change=lambda record: replace(record, stale="wrong gallery"))
    made.add("moved", {0: {COLUMN: [0.5, 0.5]}}, change=lambda r: replace(r, seed=7, config={**r.config, "seed": 7}))
    found = answer(made.ablation([COLUMN]), made.cells, made.records)
    assert "stale: wrong gallery" in found.summaries["stale", COLUMN].missing["seed 0"]
    assert "another configuration: seed is 7, wanted 0" in found.summaries["moved", COLUMN].missing["seed 0"]


def test_a_changed_number_is_caught(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2]}})
    (path,) = made.records
    plain = json.loads(path.read_text())
    plain["means"]["mAP@5"]["mean"] = 51.0
    path.write_text(json.dumps(plain))
    made.records[path] = records.read(path)
    found = answer(made.ablation([COLUMN]), made.cells, made.records).summaries["full", COLUMN]
    assert found.mean is None and "the seal does not fit; evaluate again" in found.missing["seed 0"]


def test_a_mean_that_its_values_do_not_make_is_caught_without_a_seal(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2]}})
    (path,) = made.records
    plain = json.loads(path.read_text())
    plain["means"]["mAP@5"]["mean"] += 0.5
    del plain["seal"]
    path.write_text(json.dumps(plain))
    made.records[path] = records.read(path)
    found = answer(made.ablation([COLUMN]), made.cells, made.records).summaries["full", COLUMN]
    assert found.mean is None and "mean is 15.5, but its values make 15" in found.missing["seed 0"]


def test_records_of_one_configuration_that_differ_are_told(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2]}})
    (path,) = made.records
    values = {"mAP@5": np.array([0.2, 0.3])}
    again = replace(made.records[path], created="2025-01-01T00:00:00+00:00", means=means(values))
    per_query = records.PerQuery(("q0", "q1"), values, np.ones((2, 1), np.int64))
    newer = records.write(made.root / "elsewhere", again, per_query)
    made.records[newer] = records.read(newer)
    found = answer(made.ablation([COLUMN]), made.cells, made.records)
    assert found.summaries["full", COLUMN].mean == pytest.approx(25)
    assert any("differ (15.00, 25.00); the newest counts" in note for note in found.notes)


def test_other_data_is_shown_but_not_compared(made):
    made.add("full", {0: {COLUMN: [0.1, 0.2]}})
    moved = lambda r: replace(r, benchmark=replace(r.benchmark, fingerprint="a" * 16))  # noqa: E731
    made.add("other", {0: {COLUMN: [0.5, 0.5]}}, change=moved)
    found = answer(made.ablation([COLUMN]), made.cells, made.records)
    assert found.summaries["other", COLUMN].mean == pytest.approx(50)
    assert found.untested["other", COLUMN] == "other data or another protocol than full"


def test_stamps_are_told(made):
    stamp = lambda r: replace(r, benchmark=replace(r.benchmark, stamps=["smoke run"]))  # noqa: E731
    made.add("full", {0: {COLUMN: [0.1, 0.2]}}, change=stamp)
    notes = answer(made.ablation([COLUMN]), made.cells, made.records).notes
    assert "circo/val: not comparable, smoke run." in notes


def grid(made, missing=()):
    """Two noises by three batches, worth 0.1 and 0.05 a step; two seeds 0.01 apart."""
    vary = {"method.noise": ["none", "gaussian"], "train.batch": [32, 64, 128]}
    for row, noise in enumerate(vary["method.noise"]):
        for place, batch in enumerate(vary["train.batch"]):
            level = 0.2 + 0.1 * row + 0.05 * place
            values = {s: {COLUMN: [level + 0.01 * s, level + 0.2 + 0.01 * s]} for s in (0, 1)}
            values = {s: {} if (noise, batch, s) in missing else one for s, one in values.items()}
            made.add(f"{noise}-{batch}", values, {"method.noise": noise, "train.batch": batch})
    return made.ablation([COLUMN], vary=vary)


def test_main_effects_average_over_the_other_factors(made):
    noise, batch = answer(grid(made), made.cells, made.records).factors
    assert (noise.key, noise.levels, noise.reference, noise.over) == ("method.noise", ("none", "gaussian"), "none", 3)
    assert noise.summaries["none", COLUMN].mean == pytest.approx(100 * (0.25 + 0.1 + 0.005))
    assert noise.contrasts["gaussian", COLUMN].queries.difference == pytest.approx(10)
    assert (batch.levels, batch.over) == (("32", "64", "128"), 2)
    assert batch.contrasts["128", COLUMN].queries.difference == pytest.approx(10)
    assert batch.contrasts["64", COLUMN].seeds == (0, 1)


def test_main_effects_use_the_seeds_that_all_cells_have(made):
    noise, _ = answer(grid(made, missing={("none", 64, 1)}), made.cells, made.records).factors
    assert dict(noise.summaries["none", COLUMN].missing) == {"none-64, seed 1": "no record"}
    assert tuple(noise.summaries["none", COLUMN].seeds) == (0,)
    assert noise.contrasts["gaussian", COLUMN].queries.difference == pytest.approx(10)  # seed 0 against seed 0


def test_a_named_cell_behind_a_grid_does_not_bend_the_averages(made):
    ablation = grid(made)
    settings = {"method.noise": "none", "train.batch": 32, "method.extra": 1}
    made.add("odd", {0: {COLUMN: [0.9, 0.9]}, 1: {COLUMN: [0.9, 0.9]}}, settings)
    noise, _ = answer(ablation, made.cells, made.records).factors
    assert noise.over == 3 and noise.contrasts["gaussian", COLUMN].queries.difference == pytest.approx(10)


def test_zipped_keys_are_one_factor(made):
    for noise in ("none", "gaussian"):
        for batch, rate in ((32, 1.0), (64, 2.0)):
            settings = {"method.noise": noise, "train.batch": batch, "method.rate": rate}
            made.add(f"{noise}-{batch}", {0: {COLUMN: [batch / 100, batch / 100]}}, settings)
    ablation = made.ablation([COLUMN], vary={"method.noise": ["none", "gaussian"]})
    ablation = replace(ablation, zip={"train.batch": [32, 64], "method.rate": [1.0, 2.0]})
    _, together = answer(ablation, made.cells, made.records).factors
    assert (together.key, together.levels) == ("train.batch, method.rate", ("32, 1.0", "64, 2.0"))
    assert together.contrasts["64, 2.0", COLUMN].queries.difference == pytest.approx(32)


def test_one_factor_has_no_main_effect(made):
    for batch in (32, 64):
        made.add(f"b{batch}", {0: {COLUMN: [0.1, 0.2]}}, {"train.batch": batch})
    assert answer(made.ablation([COLUMN], vary={"train.batch": [32, 64]}), made.cells, made.records).factors == ()
