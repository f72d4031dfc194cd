import json

import pytest

from cir.errors import InputError
from cir.papers.verdict import Verdict, compare

REPORTED = 'reported: {source: "their page, table 1", kind: official_repo, confidence: seen, "circo/val:mAP@5": 50.25}'
TABLE = f"""
columns: ["circo/val:mAP@5"]
rows:
  - name: sum
    run: ../runs/mine.yaml
    {REPORTED}
"""


def only(house, text=TABLE):
    """The one cell of a table of one row and one column, compared with the records of the house."""
    table = house.write(text)
    house.records.mkdir(exist_ok=True)
    ((cell,),) = compare(table, [house.records]).cells
    return cell


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [
        (50.25, Verdict.EQUAL),
        (50.2549, Verdict.EQUAL),
        (50.2451, Verdict.EQUAL),
        (50.2601, Verdict.WITHIN),
        (50.754, Verdict.WITHIN),  # 0.5 points, and the last printed digit is rounded
        (50.756, Verdict.DIFFERS),
        (49.746, Verdict.WITHIN),
        (49.744, Verdict.DIFFERS),
    ],
)
def test_verdicts_at_their_edges(house, mean, verdict):
    house.record(mean)
    cell = only(house)
    assert cell.verdict is verdict and cell.tolerance == 0.5
    assert cell.ours.mean == pytest.approx(mean) and cell.ours.seeds == 1


@pytest.mark.parametrize(
    ("tolerance", "verdict"), [(0.0, Verdict.DIFFERS), (0.2, Verdict.DIFFERS), (2, Verdict.WITHIN)]
)
def test_a_row_may_say_its_tolerance(house, tolerance, verdict):
    house.record(51.25)
    assert only(house, f"{TABLE}    tolerance: {tolerance}\n").verdict is verdict
    assert only(house, f"{TABLE}tolerance: {tolerance}\n").verdict is verdict  # the table's


def test_a_printed_deviation_is_a_tolerance(house):
    house.record(51.25)
    assert only(house, TABLE.replace("50.25}", "[50.25, 1.0]}")).verdict is Verdict.WITHIN
    assert only(house, TABLE.replace("50.25}", "[50.25, 0.9]}")).verdict is Verdict.DIFFERS


def test_seeds_become_mean_and_deviation(house):
    for seed, mean in ((0, 50.0), (1, 50.5), (2, 51.0)):
        house.record(mean, seed=seed)
    cell = only(house)
    assert cell.ours == pytest.approx((50.5, 0.5, 3))
    assert cell.verdict is Verdict.WITHIN


def test_recalled_values_are_never_checked(house):
    text = TABLE.replace("confidence: seen", "confidence: recalled")
    assert only(house, text).verdict is Verdict.RECALLED
    house.record(1.0)
    cell = only(house, text)
    assert cell.verdict is Verdict.RECALLED and cell.ours.mean == pytest.approx(1.0)


def test_of_two_sources_the_nearer_decides_and_a_recalled_one_does_not(house):
    house.record(52.0)
    other = '{source: elsewhere, kind: survey_transcription, confidence: seen, "circo/val:mAP@5": 52.0}'
    both = TABLE.replace(REPORTED, f"reported: [{REPORTED.removeprefix('reported: ')}, {other}]")
    cell = only(house, both)
    assert cell.verdict is Verdict.EQUAL and [value.mean for value, _ in cell.values] == [50.25, 52.0]
    assert only(
        house, both.replace("survey_transcription, confidence: seen", "memory, confidence: recalled")
    ).verdict is (Verdict.DIFFERS)


@pytest.mark.parametrize(
    "changes",
    [
        {"stale": "overtaken"},
        {"stamps": ["a subset of 16 queries"]},
        {"version": 99},
        {"protocol": "circo/reference-removed"},
        {"benchmark": "world/circo/val"},
        {"benchmark": "circo/test"},
        {"overrides": ["method.weight=0.4"]},
    ],
)
def test_records_that_are_not_the_papers_number_do_not_count(house, changes):
    house.record(50.25, **changes)
    assert only(house).ours is None
    house.record(50.25)
    assert only(house).verdict is Verdict.EQUAL


def test_a_table_may_say_under_which_stamps_its_values_were_measured(house):
    house.record(50.25, stamps=["texts are cut"])
    assert only(house).ours is None
    mine = f"{TABLE}stamps: [texts are cut]\n"
    assert only(house, mine).verdict is Verdict.EQUAL
    house.record(50.25, stamps=["texts are cut", "smoke run"], seed=1)
    assert only(house, mine).ours.seeds == 1


def test_records_of_other_data_do_not_count_where_the_data_is_known(house):
    house.record(50.25, data="1" * 16)
    assert only(house).verdict is Verdict.EQUAL
    assert only(house, f'{TABLE}data: {{circo/val: "{"2" * 16}"}}\n').ours is None
    assert only(house, f'{TABLE}data: {{circo/val: "{"1" * 16}"}}\n').verdict is Verdict.EQUAL


def test_a_run_that_asks_for_another_protocol_gets_it(house):
    asked = ["data.protocols.circo=circo/reference-removed"]
    house.record(50.25, protocol="circo/reference-removed", overrides=asked)
    assert only(house).ours is None
    set_it = "run: ../runs/mine.yaml\n    set: {data.protocols: {circo: circo/reference-removed}}"
    assert only(house, TABLE.replace("run: ../runs/mine.yaml", set_it)).verdict is Verdict.EQUAL


def test_records_can_be_named_in_place_of_a_run(house):
    named = TABLE.replace("run: ../runs/mine.yaml", "named: mine")
    assert only(house, named).verdict is Verdict.NO_RECORD
    house.record(50.0, seed=0, run="mine")
    house.record(50.5, seed=1, run="mine")
    house.record(90.0, seed=2, run="another")
    assert only(house, named).ours == pytest.approx((50.25, 0.5**1.5, 2))


@pytest.mark.parametrize(
    ("old", "new", "verdict", "reason"),
    [
        ("run: ../runs/mine.yaml", "missing: does not exist here yet", Verdict.NOT_HERE, "does not exist here yet"),
        ("circo/val", "circo/test", Verdict.NOT_HERE, "the labels of circo/test are on its server"),
        ("circo/val:mAP@5", "paper:gain", Verdict.NOT_HERE, "a quantity that only the paper defines"),
        ("circo/val", "circo/val", Verdict.NOT_HERE, "no CIRCO data here"),
        (REPORTED, "note: nothing", Verdict.NOT_REPORTED, ""),
    ],
)
def test_why_there_is_no_number(house, monkeypatch, old, new, verdict, reason):
    monkeypatch.chdir(house.root)
    cell = only(house, TABLE.replace(old, new))
    assert cell.ours is None and cell.verdict is verdict
    assert cell.reason.startswith(reason) and bool(cell.reason) == bool(reason)


def test_what_is_here_is_only_without_a_record(house, monkeypatch):
    """With annotations, what lacks is the weights; with both, the record."""
    monkeypatch.chdir(house.root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = house.root / "datasets" / "CIRCO" / "annotations"
    place.mkdir(parents=True)
    (place / "val.json").write_text("[]")
    assert only(house).reason == "no weights of checkpoints/tiny-clip here"
    (house.root / "checkpoints" / "tiny-clip").mkdir(parents=True)
    cell = only(house)
    assert cell.verdict is Verdict.NO_RECORD and cell.reason == "no record of mine.yaml"


def test_one_altered_number_stops_the_table(house):
    path = house.record(50.25)
    content = json.loads(path.read_text())
    content["means"]["mAP@5"]["mean"] = 50.35
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="altered record"):
        only(house)
    del content["seal"]  # also where nothing seals it: the values behind it say otherwise
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"50\.35, but its values make 50\.25"):
        only(house)


def test_altered_values_stop_the_table(house):
    path = house.record(50.25)
    beside = path.with_suffix(".npz")
    beside.write_bytes(beside.read_bytes() + b"0")
    with pytest.raises(InputError, match="sha256"):
        only(house)
