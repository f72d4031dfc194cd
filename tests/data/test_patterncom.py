"""PatternCom: queries by hand with every merge of classes, and the published evaluation written out."""

import re
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from cir import config as configs
from cir import runs
from cir.data import expand, images, load, patterncom
from cir.errors import InputError
from cir.evaluate import evaluate
from cir.score import score

FOLDERS = (
    "airplane bridge closed_road crosswalk dense_residential ferry_terminal harbor intersection overpass parking_lot "
    "parking_space sparse_residential swimming_pool tennis_court"
).split()
EACH = 6
LABELS = {
    "color": ["airplane white", "airplane red", "tenniscourt blue", "tenniscourt green", "bridge red", "overpass red"],
    "context": ["bridge over water", "overpass over land", "overpass over water", "crosswalk on a road"],
    "density": ["denseresidential dense", "sparseresidential sparse", "swimmingpool dense"],
    "existence": ["ferryterminal with boats", "harbor without boats", "parkinglot with cars", "parkingspace no cars"],
    "quantity": ["tenniscourt one", "tenniscourt two", "tenniscourt three", "harbor one", "ferryterminal two"],
    "shape": ["closedroad round", "intersection cross", "intersection t", "swimmingpool oval", "swimmingpool round"],
}
"""Class and value of the labelled pictures, by attribute: two pictures each."""


def rows(attribute):
    """Lines of an attribute's file; pictures of a class are taken one after the other."""
    used = defaultdict(int)
    listed = []
    for entry in LABELS[attribute] * 2:
        kind, value = entry.split(" ", 1)
        used[kind] += 1
        listed.append((f"{kind}{used[kind]:03d}.jpg", attribute, value))
    return listed


def paths():
    return [f"images/{f}/{f.replace('_', '')}{n:03d}.jpg" for f in FOLDERS for n in range(1, EACH + 1)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """All six attributes on a gallery of 84, listed in reverse."""
    base = tmp_path / "PatternNet"
    (base / "PatternCom").mkdir(parents=True)
    for attribute in LABELS:
        lines = "".join(f"{','.join(row)}\n" for row in rows(attribute))
        (base / f"PatternCom/{attribute}.csv").write_text(lines)
        monkeypatch.setitem(patterncom.COUNTS, f"patterncom/{attribute}", {"gallery": len(paths())})
    listed = [f"{path} {FOLDERS.index(path.split('/')[1])} {path.split('/')[1]}\n" for path in reversed(paths())]
    (base / "patternnet.csv").write_text("".join(listed))
    return tmp_path


def asked(bench, name):
    """Text and targets of the queries of one picture, without numbers and endings."""
    return {q.texts[0]: sorted(q.targets) for q in bench.queries if q.reference == f"{name}.jpg"}


def test_every_other_value_of_the_class_is_asked_for(root):
    bench = load("patterncom/color", root)
    assert bench.gallery[0] == "tenniscourt006.jpg" and len(bench.gallery) == 84  # the order of patternnet.csv
    assert bench.paths["tenniscourt006.jpg"] == "images/tennis_court/tenniscourt006.jpg"
    assert bench.queries[0].id == "color/00000" and bench.notes == ("gallery: patternnet.csv",)
    assert asked(bench, "airplane001") == {"red": ["airplane002.jpg", "airplane004.jpg"]}
    assert asked(bench, "tenniscourt002") == {"blue": ["tenniscourt001.jpg", "tenniscourt003.jpg"]}
    assert asked(bench, "bridge001") == {}  # its class has one value; color does not pool bridges and overpasses
    assert all(query.reference not in query.targets for query in bench.queries)
    many = load("patterncom/quantity", root)
    assert list(asked(many, "tenniscourt002")) == ["one", "three"]  # the order of first appearance


@pytest.mark.parametrize(
    ("attribute", "name", "expected"),
    [
        ("density", "denseresidential001", {"sparse": ["sparseresidential001.jpg", "sparseresidential002.jpg"]}),
        ("shape", "closedroad001", {"cross": ["intersection001.jpg", "intersection003.jpg"],
                                    "t": ["intersection002.jpg", "intersection004.jpg"]}),
        ("context", "bridge001", {"over land": ["overpass001.jpg", "overpass003.jpg"]}),
        ("context", "overpass001", {"over water": ["bridge001.jpg", "bridge002.jpg", "overpass002.jpg",
                                                   "overpass004.jpg"]}),
        ("existence", "harbor001", {"with boats": ["ferryterminal001.jpg", "ferryterminal002.jpg"]}),
        ("existence", "parkingspace001", {"with cars": ["parkinglot001.jpg", "parkinglot002.jpg"]}),
        # quantity pools no texts, so harbors and ferry terminals do not ask for one another's values
        ("quantity", "harbor001", {}),
        ("quantity", "tenniscourt001", {"two": ["tenniscourt002.jpg", "tenniscourt005.jpg"],
                                        "three": ["tenniscourt003.jpg", "tenniscourt006.jpg"]}),
    ],
)  # fmt: skip
def test_merged_classes(root, attribute, name, expected):
    assert asked(load(f"patterncom/{attribute}", root), name) == expected


def test_positives_are_matched_over_merged_classes_under_every_attribute(root):
    """Color asks by class of its own, but a red overpass is right for a bridge that asks for red."""
    file = root / "PatternNet/PatternCom/color.csv"
    file.write_text("bridge001.jpg,color,red\nbridge002.jpg,color,grey\noverpass001.jpg,color,red\n")
    bench = load("patterncom/color", root)
    assert asked(bench, "bridge002") == {"red": ["bridge001.jpg", "overpass001.jpg"]}
    assert asked(bench, "overpass001") == {}


def published(attribute, query_vectors, gallery_vectors):
    """Follow the published evaluation: a list of texts per line, a sort per query, two decimals per query.

    Written from its description, with plain lists; `query_vectors` by (file, text).
    """
    merges = {
        "density": (("denseresidential", "residential"), ("sparseresidential", "residential")),
        "shape": (("closedroad", "road"), ("intersection", "road")),
        "context": (("bridge", "roadpass"), ("overpass", "roadpass")),
        "existence": (("ferryterminal", "pier"), ("harbor", "pier"), ("parkingspace", "parking"),
                      ("parkinglot", "parking")),
    }  # fmt: skip
    same = {old: new for table in merges.values() for old, new in table}
    listed = rows(attribute)
    kinds = [re.match(r"\D*", file).group() for file, _, _ in listed]
    keys = []
    for kind in kinds:
        keys.append(attribute + dict(merges.get(attribute, ())).get(kind, kind))
    labels = {file: (same.get(kind, kind), value) for (file, _, value), kind in zip(listed, kinds, strict=True)}
    names = [path.split("/")[-1] for path in reversed(paths())]
    table = np.array([gallery_vectors[name] for name in names], dtype=np.float64)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    values = defaultdict(list)
    for (file, _, value), kind, key in zip(listed, kinds, keys, strict=True):
        for text in {other[2] for other, k in zip(listed, keys, strict=True) if k == key} - {value}:
            ranking = [names[i] for i in np.argsort(-(table @ query_vectors[file, text]))]
            right = [labels.get(name) == (same.get(kind, kind), text) for name in ranking]
            precisions = [sum(right[: k + 1]) / (k + 1) for k in range(len(right)) if right[k]]
            values["mAP"].append(round(100 * sum(precisions) / len(precisions), 2))
            for k in (5, 10, 15, 20):
                values[f"P@{k}"].append(round(100 * sum(right[:k]) / k, 2))
                values[f"R@{k}"].append(round(100 * sum(right[:k]) / sum(right), 2))
    return {metric: sum(per_query) / len(per_query) for metric, per_query in values.items()}


@pytest.mark.parametrize("attribute", list(LABELS))
def test_scores_are_the_published_evaluation_s(root, attribute, tmp_path):
    rng = np.random.default_rng(len(attribute))
    bench = load(f"patterncom/{attribute}", root)
    gallery = {name: rng.standard_normal(6).astype(np.float32) for name in bench.gallery}
    vectors = {}
    for query in bench.queries:
        lean = gallery[query.targets[0]] + 1.5 * rng.standard_normal(6)
        vectors[query.reference, query.texts[0]] = lean.astype(np.float32)
    ids = np.array([query.id for query in bench.queries])
    np.savez(tmp_path / "q.npz", ids=ids, vectors=np.stack([vectors[q.reference, q.texts[0]] for q in bench.queries]))
    np.savez(tmp_path / "g.npz", ids=np.array(list(gallery)), vectors=np.stack(list(gallery.values())))
    found = score(f"patterncom/{attribute}", root, tmp_path / "q.npz", tmp_path / "g.npz", resamples=2)
    expected = published(attribute, vectors, gallery)
    assert set(found["scores"]) == set(expected) and len(expected) == 9
    for metric, value in expected.items():
        assert found["scores"][metric]["mean"] == pytest.approx(value, abs=0.005)  # they round every query
    assert 5 < expected["mAP"] < 95


def test_a_picture_labelled_twice_asks_twice_and_is_what_the_last_line_says(root):
    file = root / "PatternNet/PatternCom/color.csv"
    file.write_text("airplane001.jpg,color,red\nairplane002.jpg,color,blue\nairplane001.jpg,color,white\n")
    bench = load("patterncom/color", root)
    assert [(q.reference, q.texts[0], q.targets) for q in bench.queries] == [
        ("airplane001.jpg", "blue", ("airplane002.jpg",)),
        ("airplane001.jpg", "white", ("airplane001.jpg",)),
        ("airplane002.jpg", "red", ()),  # nothing is red any more: counts as 0
        ("airplane002.jpg", "white", ("airplane001.jpg",)),
        ("airplane001.jpg", "red", ()),
        ("airplane001.jpg", "blue", ("airplane002.jpg",)),
    ]
    assert bench.labelled


def test_without_the_list_the_folder_is_the_gallery_and_the_whole_path_runs(
    root, tmp_path, tiny_backbone, tiny_clip_folder
):
    base = root / "PatternNet"
    (base / "patternnet.csv").unlink()
    with pytest.raises(InputError, match=r"found neither patternnet\.csv nor images/"):
        load("patterncom/color", root)
    for number, path in enumerate(paths()):
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(base / path)
    (base / "images/airplane/Thumbs.db").write_text("no picture")
    bench = images.check(load("patterncom/color", root))
    assert list(bench.paths.values()) == paths() and bench.notes == ("gallery: the folder images",)
    overrides = [f"data.root={root}", f"backbone.name={tiny_clip_folder}", f"backbone.cache={tmp_path / 'cache'}"]
    config = configs.load(None, [*overrides, "name=sum", "backbone.device=cpu"])
    found = evaluate(config, tiny_backbone, runs.build(config, tiny_backbone), ["patterncom"], progress=False)
    assert expand("patterncom") == [f"patterncom/{attribute}" for attribute in LABELS]
    record = found[-1].record
    assert record.benchmark.name == "patterncom" and len(record.benchmark.parts) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("airplane001.jpg,color", r"color\.csv, line 2: expected file,attribute,value, got 2 values"),
        ("airplane077.jpg,color,blue", "names .*airplane077.jpg.* absent from the gallery"),
    ],
)
def test_what_is_refused(root, line, message):
    (root / "PatternNet/PatternCom/color.csv").write_text(f"airplane001.jpg,color,red\n{line}\n")
    with pytest.raises(InputError, match=message):
        load("patterncom/color", root)


def test_galleries_that_are_refused(root, monkeypatch):
    listed = root / "PatternNet/patternnet.csv"
    lines = listed.read_text()
    for line, message in (
        ("images/a/harbor001.jpg 1 a", r"images/harbor/harbor001\.jpg and images/a/harbor001\.jpg have the same name"),
        ("../harbor007.jpg 1 a", "leaves the dataset folder"),
        ("images/harbor/harbor007.jpg harbor", "line 85: expected path number class"),
    ):
        listed.write_text(f"{lines}{line}\n")
        with pytest.raises(InputError, match=message):
            load("patterncom/color", root)
    listed.write_text(lines)
    monkeypatch.setitem(patterncom.COUNTS, "patterncom/color", {"gallery": 30400})
    with pytest.raises(InputError, match="gallery: expected 30,400, found 84"):
        load("patterncom/color", root)
