"""What training cost, as columns beside the metrics: only where asked for, and by the same rules."""

import csv
import io
from dataclasses import replace

import pytest

from cir.errors import InputError
from cir.records import TrainingInfo
from cir.report import tables


def trained(record, run, seed=0, minutes=2.0, base=None, benchmark="circo/val", **changes):
    one = record(run, benchmark, seed=seed)
    info = TrainingInfo(100, None if minutes is None else 60 * minutes, "s", "t", 6.0, 1500.4, None, 1, "Some CPU", 2)
    info = replace(info, **changes)
    return replace(
        one, method=replace(one.method, trained=["phi.w"], trained_count=14_162_688, training=info, base=base)
    )


@pytest.fixture
def rows(record):
    return [record("sum"), trained(record, "lincir")]


def test_costs_are_shown_where_asked_for(rows):
    plain, costly = tables.build(rows, ["mAP@5"]), tables.build(rows, ["mAP@5"], cost=True)
    assert [plain.header(column) for column in plain.columns] == ["circo/val:mAP@5"]
    names = ["minutes", "prepare_minutes", "peak_mb", "parameters"]
    assert [costly.header(column) for column in costly.columns[1:]] == [f"train:{name}" for name in names]
    lines = tables.markdown(costly).splitlines()
    assert lines[2] == "| sum | **28.11** [27.1, 29.1] |  |  |  |  |"
    assert lines[3] == "| lincir | **28.11** [27.1, 29.1] | 2.00 | 0.10 | 1,500 | 14,162,688 |"
    assert "train:minutes: time in training steps." in tables.markdown(costly)
    assert "Trained on Some CPU (2 threads): lincir." in tables.markdown(costly)
    assert not any("train" in column.benchmark for column in tables.build(rows).columns)


def test_one_cost_is_picked_like_a_metric(rows):
    table = tables.build(rows, ["train:peak_mb", "mAP@5"])
    assert [table.header(column) for column in table.columns] == ["train:peak_mb", "circo/val:mAP@5"]
    alone = tables.build(rows, ["train:minutes"])
    assert alone.rows == ("lincir",) and "Percent" not in tables.markdown(alone)
    with pytest.raises(InputError, match="did you mean 'train:minutes'"):
        tables.build(rows, ["train:minute"])


def test_seeds_become_mean_and_deviation(record):
    seeds = [trained(record, "lincir", seed, minutes) for seed, minutes in enumerate((1.0, 2.0, 3.0))]
    line = tables.markdown(tables.build(seeds, ["train:minutes", "train:parameters"])).splitlines()[2]
    assert line == "| lincir | 2.00 ± 1.00 | 14,162,688 |"


def test_one_training_counts_once_however_many_benchmarks_it_met(record):
    both = [trained(record, "lincir"), trained(record, "lincir", benchmark="cirr/val")]
    table = tables.build(both, ["train:minutes"])
    (cell,) = table.cells.values()
    assert (cell.mean, cell.seeds, cell.deviation) == (2.0, 1, None)


def test_no_cost_is_set_in_bold(record):
    rows = [trained(record, "a", minutes=1.0), trained(record, "b", minutes=5.0)]
    table = tables.build(rows, ["train:minutes"])
    assert "**" not in tables.markdown(table) and "textbf" not in tables.latex(table)


def test_what_an_older_record_does_not_say_stays_empty(record):
    old = replace(
        trained(record, "old", prepare_seconds=None, peak_mb=None, processes=None, device="", threads=None), seed=0
    )
    line = tables.markdown(tables.build([old, trained(record, "new")], ["R@1", "train:minutes", "train:peak_mb"][1:]))
    assert "| old | 2.00 |  |" in line and "| new | 2.00 | 1,500 |" in line and "Some CPU (2 threads): new." in line


def test_a_gpu_has_a_column_of_its_own(record):
    rows = [trained(record, "lincir", device="NVIDIA H200", gpu_peak_mb=20_480.0, processes=8, threads=None)]
    text = tables.markdown(tables.build(rows, ["mAP@5"], cost=True))
    assert "train:gpu_peak_mb" in text and "20,480" in text and "NVIDIA H200 (8 processes): lincir." in text


def test_a_wrappers_cost_is_its_own_and_its_bases_is_mentioned(record):
    base = TrainingInfo(100, 72.0, "s", "t", peak_mb=512.0)
    known = trained(record, "lincir+rtd", base=base)
    assert "lincir+rtd: without its base, which took 1.20 minutes, 512 MB at most." in _text([known])
    unknown = replace(trained(record, "rtd"), config={"base": "runs/lincir"})
    assert "rtd: without its base, which was trained before." in _text([unknown])
    assert "base" not in _text([replace(trained(record, "lincir"), config={"base": ""})])


def _text(rows):
    return tables.markdown(tables.build(rows, ["train:minutes"]))


def test_csv_and_latex_have_the_same_numbers(rows):
    table = tables.build(rows, ["train:minutes", "train:parameters"])
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(table))))
    assert [(line["benchmark"], line["metric"], float(line["mean"]), line["low"]) for line in lines] == [
        ("train", "minutes", 2.0, ""),
        ("train", "parameters", 14_162_688.0, ""),
    ]
    assert r"lincir & 2.00 & 14,162,688 \\" in tables.latex(table)
