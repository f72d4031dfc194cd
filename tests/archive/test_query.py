import pytest

from cir import records
from cir.archive import query
from cir.errors import InputError


@pytest.fixture(scope="module")
def found(make_in, tmp_path_factory):
    make = make_in(tmp_path_factory.mktemp("rows"))
    paths = [
        make("a", ["seed=0", "train.batch=64"]),
        make("b", ["seed=1", "train.batch=128"], name="other", change={"stale": "fixed"}),
        make("c", ["seed=2", "train.batch=256"], ranks=[(1, 2), (1, 2), (1, 2), (1, 2)]),
    ]
    bench = records.BenchmarkInfo("cirr/val", "1", "val", "d" * 16, 4, 20, stamps=["subset of 4 queries", "smoke run"])
    paths.append(make("d", ["seed=3", "data.subset=4"], change={"benchmark": bench}))
    return records.find(paths)


@pytest.fixture
def rows(found):
    return query.rows_of(found)


def seeds(rows, *conditions):
    return [row["seed"] for row in query.select(rows, [query.condition(text) for text in conditions])]


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ([], [0, 1, 2, 3]),
        (["method.name=lincir"], [0, 1, 2, 3]),
        (["method.name=rtd"], []),
        (["seed=1"], [1]),
        (["seed=1.0"], [1]),
        (["seed!=1"], [0, 2, 3]),
        (["train.batch>=128"], [1, 2, 3]),
        (["train.batch>128"], [2]),
        (["train.batch<=64"], [0]),
        (["config.train.batch<100"], [0]),
        (["benchmark.name~circo"], [0, 1, 2]),
        (["benchmark.name = world/circo/val", "seed>0"], [1, 2]),
        (["stale="], [0, 2, 3]),
        (["stale!="], [1]),
        (["state=stale"], [1]),
        (["mAP@5=100"], [2]),
        (["mAP@5<99"], [0, 1, 3]),
        (["means.mAP@5.mean<99"], [0, 1, 3]),
        (["benchmark.stamps~subset"], [3]),
        (["benchmark.stamps="], [0, 1, 2]),
        (["benchmark.stamps=smoke run"], [3]),
        (["data.subset>0"], [3]),
        (["smoke=false"], [0, 1, 2, 3]),
        (["created>2026-04"], [0, 1, 2, 3]),
        (["created<2026-04"], []),
        (["path~/c/"], [2]),
    ],
)
def test_conditions(rows, conditions, wanted):
    assert seeds(rows, *conditions) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "expected key=value"),
        ("=1", "expected key=value"),
        ("sede=1", "did you mean 'seed'?"),
        ("train.bach=1", "did you mean 'train.batch'?"),
        ("seed>one", "seed is a number, got 'one'"),
    ],
)
def test_conditions_that_cannot_be_met(rows, text, message):
    with pytest.raises(InputError) as caught:
        seeds(rows, text)
    assert message in str(caught.value)


def test_order_by_several_fields(rows):
    def order(*keys):
        return [row["seed"] for row in query.ordered(rows, keys)]

    assert order("seed") == [0, 1, 2, 3]
    assert order("-seed") == [3, 2, 1, 0]
    assert order("-run", "train.batch") == [1, 0, 3, 2]
    assert order("-mAP@5", "-seed") == [2, 3, 1, 0]
    with pytest.raises(InputError, match="no record has a field 'sed'"):
        order("sed")


def test_what_is_absent_comes_last(rows):
    rows[1]["extra"], rows[2]["extra"] = 5, 3
    assert [row["seed"] for row in query.ordered(rows, ["extra"])] == [2, 1, 0, 3]
    assert [row["seed"] for row in query.ordered(rows, ["-extra"])] == [1, 2, 0, 3]


def test_the_headline_is_the_protocols(rows):
    assert rows[2]["headline"].startswith("mAP@5 100.00 [")
    assert rows[1]["state"] == "stale" and rows[0]["state"] == ""
