"""Every way of changing a number by hand is found, and nothing is found in what was only written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cir import records
from cir.archive.check import check, seal
from cir.records import CodeInfo

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def kinds(*paths):
    return [one.kind for one in check(paths)[1]]


def edited(path, change, *, sealed=False):
    """Change a record's file; `sealed` puts a fresh seal on it, as one who knows of seals would."""
    plain = json.loads(path.read_text())
    change(plain)
    if sealed:
        plain[records.SEAL] = records.seal(plain)
    path.write_text(json.dumps(plain))
    return path


def put(*keys, value):
    def change(plain):
        for key in keys[:-1]:
            plain = plain[key]
        assert plain[keys[-1]] != value
        plain[keys[-1]] = value

    return change


def test_the_committed_results_hold():
    count, found = check([RESULTS])
    assert count >= 186
    assert [one for one in found if one.kind != "stale"] == []


def test_what_was_only_written_holds(make, tmp_path):
    make("a"), make("b", ["seed=1"], ranks=[(2, 0), (1, 4)])
    assert check([tmp_path]) == (2, [])


@pytest.mark.parametrize(
    "change",
    [
        put("means", "mAP@5", "mean", value=99.0),
        put("aspects", "add", "low", value=2.0),
        put("tied", value=3),
        put("seconds", value=1.0),
        put("method", "trained_count", value=11),
        put("created", value="2027-01-01T00:00:00+00:00"),
        put("packages", "torch", value="1.0"),
    ],
)
def test_any_field_that_is_changed_breaks_the_seal(make, tmp_path, change):
    path = make("a", change={"aspects": {"add": records.Mean(50.0, 1.0, 100.0, 2)}})
    assert kinds(tmp_path) == []
    edited(path, change)
    assert "altered" in kinds(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("means", "mAP@5", "mean", value=60.0), "mAP@5: mean is 60, but its values make"),
        (put("means", "mAP@5", "low", value=1.25), "mAP@5: low is 1.25, but its values make"),
        (put("means", "R@10", "queries", value=5), "R@10: queries is 5, but its values make 4"),
        (put("means", "R@10", "high", value=101.0), "is no percentage"),
        (lambda p: p["means"].pop("R@5"), "means of mAP@5, mAP@10, R@10, but values of"),
        (put("benchmark", "queries", value=5), "values of 4 queries, but the benchmark has 5"),
        (put("config", "train", "batch", value=1), "configuration, data and weights make"),
        (put("protocol", "version", value=7), "configuration, data and weights make"),
        (put("method", "checkpoint", value="0" * 16), "configuration, data and weights make"),
        (put("seed", value=1), "seed 1, but the configuration's is 0"),
        (lambda p: p.update(per_query=None), "no per-query values behind them"),
    ],
)
def test_a_fresh_seal_does_not_help(make, tmp_path, change, message):
    edited(make("a"), change, sealed=True)
    found = check([tmp_path])[1]
    assert any(one.kind == "altered" and message in one.text for one in found), found


def test_values_that_are_changed_are_noticed_even_with_their_sha(make, tmp_path):
    path = make("a")
    record = records.read(path)
    values = records.read_values(path, record)
    better = {name: np.ones_like(value) for name, value in values.values.items()}
    other = records.write(tmp_path / "other", record, replace(values, values=better))
    content = other.with_suffix(".npz").read_bytes()
    path.with_suffix(".npz").write_bytes(content)
    assert "content differs from the sha256" in check([path])[1][0].text
    edited(path, put("per_query", "sha256", value=hashlib.sha256(content).hexdigest()), sealed=True)
    assert any("but its values make 100" in one.text for one in check([path])[1])


def test_what_is_damaged_or_gone_is_invalid_or_altered(make, tmp_path):
    path = make("a")
    path.with_suffix(".npz").unlink()
    assert "cannot be read" in check([tmp_path])[1][0].text
    whole = make("b").read_text()
    (tmp_path / "b" / "cut.json").write_text(whole[: len(whole) // 2])
    found = check([tmp_path / "b"])
    assert found[0] == 2 and [one.kind for one in found[1]] == ["invalid"]


def test_one_fingerprint_and_other_numbers_raise_an_alarm_that_names_both(make, tmp_path):
    first = make("a")
    second = make("b", ranks=[(1, 3), (7, 0), (2, 20), (40, 5)], change={"code": CodeInfo("0.2.0", "f" * 40, True)})
    found = check([tmp_path])[1]
    assert [(one.path, one.kind) for one in found] == [(first, "alarm")]
    for part in ("one fingerprint", str(second), "mAP@5 27", "code.version 0.1.0 / 0.2.0", "code.dirty False / True"):
        assert part in found[0].text, found[0].text


def test_the_same_numbers_again_raise_none(make, tmp_path):
    make("a"), make("b", change={"created": "2026-06-01T10:00:00+00:00", "seconds": 9.0})
    assert kinds(tmp_path) == []


def test_other_values_behind_the_same_means_raise_one(make, tmp_path):
    ranks = [(1, 3), (7, 0), (2, 20), (40, 6)]
    make("a", ranks=ranks), make("b", ranks=[ranks[1], ranks[0], *ranks[2:]])
    found = check([tmp_path])[1]
    assert [one.kind for one in found] == ["alarm"] and "other values per query" in found[0].text


def test_a_configuration_trained_twice_raises_one_until_the_older_is_stale(make, tmp_path):
    old = make("a", checkpoint="1" * 16)
    make("b", ranks=[(1, 2), (7, 0), (2, 20), (40, 6)], checkpoint="2" * 16)
    found = check([tmp_path])[1]
    assert [one.kind for one in found] == ["alarm"]
    assert "trained twice" in found[0].text and "method.checkpoint 1111" in found[0].text
    records.mark_stale(old, "trained with another version of torch")
    assert kinds(tmp_path) == ["stale"]


def test_another_seed_or_data_raises_none(make, tmp_path):
    make("a"), make("b", ["seed=1"], ranks=[(1, 2)] * 4), make("c", ranks=[(1, 2)] * 4, data="e" * 16)
    assert kinds(tmp_path) == []


def test_an_older_protocol_is_outdated(make, tmp_path):
    make("a", protocol=("circo", 0))
    found = check([tmp_path])[1]
    assert [one.kind for one in found] == ["outdated"] and "circo v0, now v" in found[0].text


def test_marking_stale_and_back_leaves_the_file_as_it_was(make, tmp_path):
    path = make("a")
    before = path.read_bytes()
    records.mark_stale(path, "the tie rule was fixed")
    assert kinds(tmp_path) == ["stale"]
    records.mark_stale(path, "")
    assert path.read_bytes() == before


def test_marking_stale_does_not_hide_what_was_altered(make, tmp_path):
    path = edited(make("a"), put("tied", value=2))
    records.mark_stale(path, "why")
    assert "altered" in kinds(tmp_path)


def test_sound_records_can_be_sealed_later_others_not(make, tmp_path):
    path = make("a")
    whole = path.read_bytes()
    plain = json.loads(whole)
    del plain[records.SEAL]
    records.replace_file(path, records.text(plain))
    assert kinds(tmp_path) == ["unsealed"]
    assert seal(path) and path.read_bytes() == whole
    assert not seal(path)
    records.replace_file(path, records.text({**plain, "seed": 5}))
    assert not seal(path)
