import csv
import io
from dataclasses import replace

import pytest

from cir.errors import InputError
from cir.records import Mean, TrainingInfo
from cir.report import index, tables
from cir.report.comparison import compare
from cir.report.gallery import provenance


@pytest.fixture
def rows(record):
    return [
        record("sum", means={"mAP@5": 29.0, "R@5": 40.0}),
        record("lincir", means={"mAP@5": 46.004, "R@5": 39.0}),
        record("lincir", "cirr/val", means={"R@1": 54.0}),
    ]


def test_markdown_written_out(rows):
    text = tables.markdown(tables.build(rows))
    lines = text.splitlines()
    assert lines[0] == "| Run | circo/val:mAP@5 | circo/val:R@5 | cirr/val:R@1 |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| sum | 29.00 [28.0, 30.0] | **40.00** [39.0, 41.0] |  |"
    assert lines[3] == "| lincir | **46.00** [45.0, 47.0] | 39.00 [38.0, 40.0] | **54.00** [53.0, 55.0] |"
    assert "protocol circo v1" in text and "arXiv:2303.15247" in text
    assert "95 % bootstrap interval" in text


def test_means_that_print_alike_are_both_best(record):
    table = tables.build([record("a", means={"R@1": 50.001}), record("b", means={"R@1": 50.004})])
    assert tables.markdown(table).count("**50.00**") == 2


def test_columns_can_be_picked_in_any_order(rows):
    table = tables.build(rows, ["cirr/val:R@1", "mAP@5"])
    assert [table.header(column) for column in table.columns] == ["cirr/val:R@1", "circo/val:mAP@5"]
    with pytest.raises(InputError, match="did you mean 'mAP@5'"):
        tables.build(rows, ["mAP5"])


def test_seeds_become_mean_and_deviation(record):
    numbers = [40.0, 44.0, 48.0]
    seeds = [record("lincir", means={"R@1": number}, seed=seed) for seed, number in enumerate(numbers)]
    table = tables.build([record("sum", means={"R@1": 41.0}), *seeds])
    text = tables.markdown(table)
    assert "| lincir | **44.00** ± 4.00 |" in text
    assert "standard deviation over seeds (3 seeds)" in text


def test_other_data_or_another_protocol_version_is_another_column(record):
    first = record("a", means={"R@1": 50.0})
    subset = replace(record("b", means={"R@1": 90.0}), benchmark=replace(first.benchmark, fingerprint="abcdef" * 3))
    newer = replace(record("c", means={"R@1": 70.0}), protocol=replace(first.protocol, version=2))
    table = tables.build([first, subset, newer])
    assert len(table.columns) == 3
    assert tables.markdown(table).count("**") == 6  # each is the best of its own column
    assert table.header(table.columns[1]) == "circo/val:R@1 [abcdef]"


def test_stamps_and_staleness_are_footnotes(record):
    stamped = record("a", stale="tie rule fixed")
    stamped = replace(stamped, benchmark=replace(stamped.benchmark, stamps=["3 images missing"]))
    text = tables.markdown(tables.build([stamped]))
    assert "a on circo/val: not comparable, 3 images missing." in text
    other = replace(record("b"), benchmark=stamped.benchmark)
    text = tables.markdown(tables.build([stamped, replace(stamped, seed=1), other]))
    assert "a, b on circo/val: not comparable, 3 images missing." in text
    assert "a on circo/val: stale, tie rule fixed." in text


def test_the_newest_of_several_records_counts_and_the_table_says_so(record):
    old = record("a", means={"R@1": 10.0})
    new = record("a", means={"R@1": 20.0}, created="2025-01-01T00:00:00+00:00", fingerprint="f" * 16)
    for order in ([old, new], [new, old]):
        text = tables.markdown(tables.build(order))
        assert "| a | 20.00" in text
        assert "1 older records" in text


def test_csv_keeps_full_precision(rows):
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(tables.build(rows)))))
    assert len(lines) == 5
    found = next(line for line in lines if line["run"] == "lincir" and line["metric"] == "mAP@5")
    assert float(found["mean"]) == 46.004
    assert (found["low"], found["protocol_version"], found["sd"]) == ("45.004", "1", "")


def test_latex_is_balanced_and_escaped(rows):
    rows[0] = replace(rows[0], run="sum_of_100%")
    text = tables.latex(tables.build(rows))
    assert r"sum\_of\_100\%" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [line.count(" & ") for line in body] == [3, 3]
    assert all(line.endswith(r"\\") for line in body)
    assert r"\textbf{46.00}" in text


def test_no_records_is_an_error():
    with pytest.raises(InputError, match="no records"):
        tables.build([])


def test_runs_are_compared_by_query_id_not_by_position(tmp_path, record, values):
    from cir import records

    ours, theirs = values(seed=1), values(seed=2)
    shuffled = replace(
        theirs, ids=theirs.ids[::-1], values={name: array[::-1].copy() for name, array in theirs.values.items()}
    )
    paths = [
        records.write(tmp_path / "a", record("a"), ours),
        records.write(tmp_path / "b", record("b"), theirs),
        records.write(tmp_path / "c", record("c"), shuffled),
    ]
    found = [records.find([path]) for path in paths]
    straight = compare(found[0], found[1], ["mAP@5", "R@5"])
    reordered = compare(found[0], found[2], ["mAP@5", "R@5"])
    assert [replace(row, baseline="b") for row in reordered] == straight
    difference = ours.values["R@5"] - theirs.values["R@5"]
    row = straight[1]
    assert (row.won, row.tied, row.lost) == tuple(int((difference == sign).sum()) for sign in (1, 0, -1))
    assert row.difference == pytest.approx(100 * difference.mean())
    assert row.test == "exact McNemar"


def test_runs_without_a_common_benchmark_are_not_compared(tmp_path, record, values):
    from cir import records

    ours = records.find([records.write(tmp_path, record("a"), values())])
    theirs = records.find([records.write(tmp_path, record("b", "cirr/val"), values())])
    with pytest.raises(InputError, match=r"no benchmark in common.*circo/val and cirr/val"):
        compare(ours, theirs)


def test_the_overview_links_pages_of_parts_and_groups(tmp_path, record):
    part = record("lincir", "fashioniq/dress/val", means={"R@10": 10.0})
    group = record("lincir", "fashioniq/val", means={"R@10": 12.0})
    group = replace(group, benchmark=replace(group.benchmark, parts=["fashioniq/dress/val"], fingerprint="e" * 16))
    path = index.write(tmp_path / "index.html", [part, group], {part.fingerprint: "dress.html"})
    text = path.read_text()
    assert text.count('href="dress.html"') == 2
    assert "12.00" in text and "10.00" in text


def test_the_overview_lists_rankings_without_labels(tmp_path, record):
    hidden = replace(record("lincir", "circo/test"), means={}, fingerprint="d" * 16)
    text = index.write(tmp_path / "alone.html", [hidden], {hidden.fingerprint: "test.html"}).read_text()
    assert "the labels are hidden" in text and "lincir on circo/test" in text and 'href="test.html"' in text
    scored = record("lincir", "circo/val")
    both = index.write(tmp_path / "both.html", [scored, hidden], {hidden.fingerprint: "test.html"}).read_text()
    assert 'href="test.html"' in both and "1 runs on 1 benchmarks" in both
    assert "the labels are hidden" not in index.write(tmp_path / "scored.html", [scored]).read_text()
    with pytest.raises(InputError, match="no records"):
        index.write(tmp_path / "empty.html", [])


def test_provenance_says_what_trained(record):
    trained = record("lincir")
    trained = replace(
        trained,
        method=replace(trained.method, trained=["phi.w"], trained_count=1234, training=TrainingInfo(7, None, "s", "t")),
        aspects={"count": Mean(1.0, 0.0, 2.0, 3)},
    )
    text = dict(provenance(trained))
    assert text["method"].endswith("trains 1,234 parameters (phi.w)")
    assert text["training"] == "7 steps on data s"


def test_a_row_that_is_told_the_answer_is_never_set_in_bold():
    """An oracle bounds the table, even where it equals the best: the best of the others leads."""
    column = tables.Column("world/cirr/val", "R@1", "cirr", 1, "abc")
    means = {"sum": 20.0, "lincir": 40.0, "oracle_target": 40.0}
    cells = {(run, column): tables.Cell(mean, mean - 1, mean + 1) for run, mean in means.items()}
    table = tables.Table(tuple(means), (column,), cells, ())
    assert [run for run in means if table.leads(run, column)] == ["lincir"]
    assert tables.markdown(table).count("**40.00**") == 1
