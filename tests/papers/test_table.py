import pytest

from cir.errors import InputError
from cir.papers import table as tables
from cir.papers.table import Column, Value

GOOD = """
title: A small table
columns: ["circo/val:mAP@5", "paper:average gain"]
rows:
  - name: sum
    run: ../runs/mine.yaml
    set: {backbone.preprocess: targetpad, method.weight: 0.25}
    reported:
      - {source: p. 1, kind: abstract, confidence: seen, "circo/val:mAP@5": 50.2, "paper:average gain": [3.5, 0.25]}
      - {source: page 2, kind: memory, confidence: recalled, digits: 3, "circo/val:mAP@5": 50.3}
  - {name: other, missing: does not exist here yet}
"""


def test_a_table_is_read(house):
    table = house.write(GOOD)
    assert table.columns == (Column("circo/val", "mAP@5"), Column("paper", "average gain"))
    first, second = table.rows
    assert (first.config.name, first.config.backbone.preprocess, first.config.method["weight"]) == (
        "mine",
        "targetpad",
        0.25,
    )
    assert second.config is None and second.missing == "does not exist here yet"
    seen, recalled = first.says(Column("circo/val", "mAP@5"))
    assert seen.seen and not recalled.seen
    assert seen.values[Column("paper", "average gain")] == Value(3.5, 0.25)
    assert (seen.digits, recalled.digits) == (2, 3)  # as many as any value of one source has, or as it says
    assert table.records == (house.path.parent.parent / "results", tables.Path("runs"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('mAP@5", "paper', 'mAP@6", "paper', "circo/val has no metric 'mAP@6'; did you mean 'mAP@5'?"),
        ('["circo/val:', '["circo/vall:', "unknown benchmark 'circo/vall'; did you mean 'circo/val'?"),
        ('paper:average gain"]', 'average gain"]', "expected benchmark:metric"),
        ('"circo/val:mAP@5": 50.3', '"circo/val:mAP@10": 50.3', "'circo/val:mAP@10' is not one of the columns"),
        ("50.3}", "fifty}", "expected a number as printed, or [mean, deviation], got 'fifty'"),
        ("50.3}", "[1, 2, 3]}", "expected a number as printed"),
        ("kind: memory", "kind: memoir", "did you mean 'memory'?"),
        ("confidence: recalled", "confidence: heard", "reported.confidence: got 'heard'"),
        ("source: page 2, ", "", "reported.source: empty"),
        ("../runs/mine.yaml", "../runs/mime.yaml", "did you mean 'mine.yaml'?"),
        ("method.weight", "methd.weight", "methd: unknown key; did you mean 'method'?"),
        ("missing:", "misssing:", "misssing: unknown key; did you mean 'missing'?"),
        ("name: other, ", "run: ../runs/mine.yaml, ", "expected `name:` and one of"),
        ("missing: does not exist here yet", "set: {seed: 1}, missing: no", "set: changes a run"),
        ("{name: other, missing: does not exist here yet}", "other", "expected a mapping with `name:` and `run:`"),
        ("title: A small table", "titel: A small table", "titel: unknown key; did you mean 'title'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(house, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError) as error:
        house.write(GOOD.replace(old, new))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_papers_table_takes_no_stamped_records(house):
    with pytest.raises(InputError, match="a stamped number never stands beside a paper's"):
        house.write(GOOD + "stamps: [texts are cut]\npaper: {title: Somebody's}\n")


def test_a_papers_table_has_no_world_column(house):
    text = GOOD.replace("circo/val", "world/circo/val")
    assert house.write(text).columns[0].benchmark == "world/circo/val"
    with pytest.raises(InputError, match="world numbers have their own table"):
        house.write(text + "paper: {title: Somebody's}\n")


def test_a_name_is_a_file_of_the_folder_unless_it_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tables.find("small") is None
    (tmp_path / tables.FOLDER).mkdir(parents=True)
    (tmp_path / tables.FOLDER / "small.yaml").write_text("")
    assert tables.find("small") == tables.FOLDER / "small.yaml"
    assert tables.find("elsewhere/small.yaml") == tables.Path("elsewhere/small.yaml")
    (tmp_path / "small").mkdir()
    assert tables.find("small") is None  # a folder of records
