import json

import pytest

from cir import config as configs
from cir import records
from cir.archive import matching, why_not
from cir.archive.match import config_fingerprint, rebuilt, seedless

CIRCO = "world/circo/val"


def config(*overrides):
    return configs.load(None, ["name=other", "method.name=lincir", *overrides])


def edited(path, change):
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return path


def test_a_record_matches_what_determines_its_numbers_and_nothing_else(make):
    path = make("a", ["train.batch=64", "train.log_every=7"])
    found = records.find([path])
    assert matching(config("train.batch=64", "backbone.device=cpu"), found) == {CIRCO: [(path, found[path])]}
    assert matching(config("train.batch=65"), found) == {}
    assert why_not(config("train.batch=64"), found[path]) == ""
    told = why_not(config("train.batch=128", "train.lr=0.5"), found[path])
    assert "train.batch is 64, wanted 128; train.lr is 0.0001, wanted 0.5" in told and "log_every" not in told


def test_records_come_by_benchmark_newest_first(make):
    old = make("old", change={"created": "2026-01-01T00:00:00+00:00"})
    new = make("new", change={"created": "2026-02-01T00:00:00+00:00"})
    other = make("other", benchmark="world/cirr/val", protocol=("cirr", 1))
    found = {
        name: [path for path, _ in pairs] for name, pairs in matching(config(), records.find([old, other, new])).items()
    }
    assert found == {CIRCO: [new, old], "world/cirr/val": [other]}


def test_the_seed_counts_unless_it_is_set_aside(make):
    overrides = ["method.seed=2", "base=runs/lincir/seed-2/last"]
    path = make("a", ["seed=2", *overrides])
    found = records.find([path])
    asked = config("seed=0", "method.seed=0", "base=runs/lincir/seed-0/last")
    assert not matching(asked, found)
    assert list(matching(asked, found, seeds=True)) == [CIRCO]
    apart = config(
        "seed=0", "method.seed=7", "base=runs/lincir/seed-0/last"
    )  # a seed that does not follow is a setting
    assert not matching(apart, found, seeds=True)
    assert seedless(config("seed=1", "base=runs/seed-12/seed-1")).base == "runs/seed-12/seed-*"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stale": "the tie rule was fixed"}, "stale: the tie rule was fixed"),
        ({"protocol": records.ProtocolInfo("circo", 0, "")}, "protocol circo v0, now v"),
        ({"protocol": records.ProtocolInfo("circa", 1, "")}, "protocol circa does not exist any more"),
    ],
)
def test_what_is_stale_or_of_another_protocol_does_not_match(make, change, reason):
    path = make("a", change=change)
    found = records.find([path])
    assert not matching(config(), found)
    assert why_not(config(), found[path]).startswith(reason)


def test_data_that_moved_on_does_not_match_where_it_is_known(make):
    found = records.find([make("a")])
    record = next(iter(found.values()))
    assert matching(config(), found, data={CIRCO: record.benchmark.fingerprint, "cirr/val": "x"})
    assert not matching(config(), found, data={CIRCO: "f" * 16})
    assert why_not(config(), record, data={CIRCO: "f" * 16}) == f"data {'d' * 16}, now {'f' * 16}"


def test_a_group_follows_its_parts(make):
    parts = {"fashioniq/dress/val": "1" * 16, "fashioniq/shirt/val": "2" * 16}
    bench = records.BenchmarkInfo(
        "fashioniq/val", "1", "val", records.fingerprint(list(parts.values())), 4, 20, parts=list(parts)
    )
    found = records.find([make("a", change={"benchmark": bench})])
    assert matching(config(), found, data=parts)
    assert not matching(config(), found, data={**parts, "fashioniq/shirt/val": "3" * 16})


def test_a_record_from_before_a_key_existed_has_its_default(make):
    def forget(plain):
        del plain["config"]["train"]["allow_bad"], plain["config"]["prompt"]["templates"]

    path = edited(make("a"), forget)
    record = records.read(path)
    assert matching(config(), {path: record})
    assert not matching(config("train.allow_bad=0.5"), {path: record})
    assert rebuilt(record).train.allow_bad == 0.0
    assert config_fingerprint(record) == configs.fingerprint(config())


def test_a_record_of_a_newer_version_says_so(make):
    path = edited(make("a"), lambda plain: plain["config"]["train"].update(momentum=0.9))
    record = records.read(path)
    assert not matching(config(), {path: record})
    assert "another version of cir" in why_not(config(), record) and "momentum" in why_not(config(), record)


def test_the_fingerprint_as_kept_is_that_of_the_configuration():
    for overrides in ([], ["prompt.templates={circo: 'a $'}", "data.roots={cirr: /x}", "seed=3"]):
        one = config(*overrides)
        kept = json.loads(json.dumps(configs.resolved(one)))
        assert configs.fingerprint_of(kept) == configs.fingerprint(one)
        assert kept == configs.resolved(one)  # it was not changed
