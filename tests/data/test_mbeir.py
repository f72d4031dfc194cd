"""M-BEIR's CIRR and FashionIQ: small files by hand, and replicas of the published ones made of the real annotations."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir import config as configs
from cir import data, runs
from cir.data import mbeir
from cir.errors import InputError
from cir.score import score

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def image(number, name, task="cirr", dataset=8):
    return {
        "txt": None, "img_path": f"mbeir_images/{task}_images/{name}.jpg", "modality": "image",
        "did": f"{dataset}:{number}", "src_content": json.dumps({"id": name}),
    }  # fmt: skip


def query(number, name, text, positives, task="cirr", dataset=8, negatives=()):
    return {
        "qid": f"{dataset}:{number}", "query_txt": text, "query_modality": "image,text",
        "query_img_path": f"mbeir_images/{task}_images/{name}.jpg", "query_src_content": json.dumps({"id": name}),
        "pos_cand_list": [f"{dataset}:{n}" for n in positives],
        "neg_cand_list": [f"{dataset}:{n}" for n in negatives], "task_id": 7,
    }  # fmt: skip


POOL = [image(n, f"dev/i{n}") for n in (3, 1, 2, 4, 5, 6)]
QUERIES = [
    query(1, "dev/i1", "Is red.", [2, 4], negatives=[3]),
    query(2, "dev/i3", "Has two dogs.", [5]),
    query(3, "dev/i1", "Is blue!", [6]),
]
OTHERS = [
    {"txt": "A text.", "img_path": None, "modality": "text", "did": "0:1", "src_content": None},
    {**image(2, "x", "visualnews", 0), "did": "0:2"},
    {"txt": "Both.", "img_path": "mbeir_images/edis_images/y.jpg", "modality": "image,text", "did": "3:1"},
]


def tree(root, queries=QUERIES, pool=POOL, union=None, task="cirr"):
    jsonl(root / f"query/test/mbeir_{task}_task7_test.jsonl", queries)
    jsonl(root / f"cand_pool/local/mbeir_{task}_task7_cand_pool.jsonl", pool)
    if union is not None:
        jsonl(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", union)
    return root


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tree of three queries, whose counts are the published ones for now."""
    monkeypatch.setitem(mbeir.COUNTS, "mbeir/cirr/test", {"queries": 3, "gallery": 6, "targets": 4})
    return tree(tmp_path / "M-BEIR", union=[*OTHERS, *POOL])


# --- what is read ----------------------------------------------------------------------------------------------


def test_the_local_pool(small):
    bench = data.load("mbeir/cirr/test", small.parent)
    assert bench.name == "mbeir/cirr/test" and bench.protocol == "mbeir/local" and bench.stamps == ()
    assert bench.gallery == ("8:3", "8:1", "8:2", "8:4", "8:5", "8:6")  # the order of the file
    assert [q.id for q in bench.queries] == ["8:1", "8:2", "8:3"]  # queries and candidates are numbered apart
    first = bench.queries[0]
    assert (first.reference, first.targets, first.texts) == ("8:1", ("8:2", "8:4"), ("Is red.",))
    assert bench.paths["8:5"] == "mbeir_images/cirr_images/dev/i5.jpg" and not bench.open_references
    assert bench.notes == ("gallery: mbeir_cirr_task7_cand_pool.jsonl, 6 image",)
    assert data.load("mbeir/cirr/test", small).fingerprint == bench.fingerprint


def test_the_union_pool_holds_texts_too(small):
    bench = data.load("mbeir/cirr/test", small, protocol="mbeir/global")
    assert bench.gallery == ("0:1", "0:2", "3:1", "8:3", "8:1", "8:2", "8:4", "8:5", "8:6")
    assert set(bench.gallery) - set(bench.paths) == {"0:1", "3:1"}  # a text, and a picture that is not all of it
    assert bench.notes == ("gallery: mbeir_union_test_cand_pool.jsonl, 7 image, 1 image,text, 1 text",)
    assert bench.queries == data.load("mbeir/cirr/test", small).queries
    pictures = data.load("mbeir/cirr/test", small, protocol="mbeir/global-images")
    assert pictures.gallery == ("0:2", *(row["did"] for row in POOL)) and set(pictures.paths) == set(pictures.gallery)
    assert len({bench.fingerprint, pictures.fingerprint}) == 2


def test_instructions_stand_before_the_text_where_asked_for(small):
    with pytest.raises(InputError, match=r"query_instructions\.tsv: cannot be read"):
        data.load("mbeir/cirr/test", small, protocol="mbeir/local-instructed")
    (small / "instructions").mkdir()
    file = small / "instructions/query_instructions.tsv"
    file.write_text(HEADER + "image\timage\tNIGHTS\t4\tNo.\timage,text\n")
    with pytest.raises(InputError, match="no line for data set 8"):
        data.load("mbeir/cirr/test", small, protocol="mbeir/local-instructed")
    rows = "image,text\ttext\tCIRR\t8\tWrong.\nimage,text\timage\tCIRR\t8\t\tfind this picture\tAnother.\n"
    file.write_text(HEADER + rows)
    bench = data.load("mbeir/cirr/test", small, protocol="mbeir/local-instructed")
    assert [q.texts for q in bench.queries] == [
        ("Find this picture. Is red.",), ("Find this picture. Has two dogs.",), ("Find this picture. Is blue!",),
    ]  # fmt: skip
    assert data.load("mbeir/cirr/test", small).queries[0].texts == ("Is red.",)


def test_positives_may_be_objects_and_references_may_lie_outside(small):
    rows = [{**row, "pos_cand_list": [{"did": name} for name in row["pos_cand_list"]]} for row in QUERIES]
    rows[2]["query_img_path"] = "./mbeir_images/elsewhere/r.jpg"
    tree(small, rows)
    bench = data.load("mbeir/cirr/test", small)
    assert bench.queries[0].targets == ("8:2", "8:4") and bench.open_references
    assert bench.queries[2].reference == "mbeir_images/elsewhere/r.jpg"
    assert bench.paths[bench.queries[2].reference] == "mbeir_images/elsewhere/r.jpg"


@pytest.mark.parametrize(
    ("queries", "pool", "message"),
    [
        ([*QUERIES[:2], "{"], POOL, r"task7_test\.jsonl, line 3: not JSON"),
        ([*QUERIES[:2], "[]"], POOL, r"test\.jsonl, line 3: expected one JSON object"),
        ([{**QUERIES[0], "query_txt": None}], POOL, "line 1, query_txt: expected text, got None"),
        ([{**QUERIES[0], "query_modality": "text"}], POOL, "line 1: query_modality 'text'; expected 'image,text'"),
        ([{**QUERIES[0], "query_img_path": "../x.jpg"}], POOL, "line 1, query_img_path: the path '../x.jpg' leaves"),
        ([{**QUERIES[0], "pos_cand_list": []}], POOL, "line 1: pos_cand_list is empty"),
        ([{**QUERIES[0], "pos_cand_list": [{"id": 1}]}], POOL, "line 1, pos_cand_list: key 'did' is missing"),
        ([{**QUERIES[0], "pos_cand_list": [7]}], POOL, r"line 1, pos_cand_list\[0\]: expected text, got 7"),
        (QUERIES, [POOL[0], "{}"], r"cand_pool\.jsonl, line 2: key 'modality' is missing"),
        (QUERIES, [POOL[0], {**POOL[1], "img_path": None}], "line 2, img_path: expected text, got None"),
        (QUERIES, [{**POOL[0], "img_path": "/etc/x.jpg"}], "line 1: the path '/etc/x.jpg' leaves"),
        (QUERIES, POOL[:-1], r"gallery: expected 6, found 5"),
        (QUERIES[:2], POOL, r"queries: expected 3, found 2; targets: expected 4, found 3"),
        ([*QUERIES[:2], query(3, "dev/i1", "Is blue.", [9])], POOL, r"names \['8:9'\], absent from the gallery"),
        (QUERIES, [*POOL[:-1], POOL[0]], "1 ids occur more than once"),
    ],
)
def test_what_is_refused(small, queries, pool, message):
    tree(small, queries, pool)
    with pytest.raises(InputError, match=message) as raised:
        data.load("mbeir/cirr/test", small)
    assert "\n" not in str(raised.value)


def test_missing_files_are_named(small, tmp_path):
    with pytest.raises(InputError, match=r"mbeir_fashioniq_task7_test\.jsonl"):
        data.load("mbeir/fashioniq/test", small)
    (small / mbeir.UNION).unlink()
    with pytest.raises(InputError, match=r"mbeir_union_test_cand_pool\.jsonl: cannot be read \(No such file"):
        data.load("mbeir/cirr/test", small, protocol="mbeir/global")
    with pytest.raises(InputError, match="has no protocol 'cirr'"):
        data.load("mbeir/cirr/test", small, protocol="cirr")


def test_partial_data_is_stamped(small):
    tree(small, QUERIES, POOL[:-1])
    bench = data.load("mbeir/cirr/test", small, allow_missing=True)
    assert [q.id for q in bench.queries] == ["8:1", "8:2"]
    assert bench.stamps == ("not the official counts (gallery: expected 6, found 5)",
                            "1 queries left out (images not in the gallery)")  # fmt: skip


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (" is red ", "Is red."), ("What is it?", "What is it?"), ('"a dog"', "A dog."), ("a\rb!", "Ab!"), ("", ""),
        ("Find it. is red.", "Find it. is red."),
    ],
)  # fmt: skip
def test_sentences(given, made):
    assert mbeir.sentence(given) == made


# --- the published files, rebuilt ------------------------------------------------------------------------------


def cirr_rows():
    """M-BEIR's CIRR of the papers' val split: equal (text, reference) merged, positives are the soft labels of 1."""
    names = [
        name
        for split in ("train", "val", "test1")
        for name in json.loads((SHARED / f"CIRR/cirr/image_splits/split.rc2.{split}.json").read_text())
    ]
    merged = {}
    for row in json.loads((SHARED / "CIRR/cirr/captions/cap.rc2.val.json").read_text()):
        positives = [name for name, weight in row["target_soft"].items() if weight == 1]
        if positives:  # a query without one is left out
            merged.setdefault((mbeir.sentence(row["caption"]), row["reference"]), {}).update(dict.fromkeys(positives))
    return names, merged


def fashioniq_rows():
    """M-BEIR's FashionIQ of the papers' val split: both captions joined, equal (text, reference) merged."""
    merged, named = {}, set()
    for category in ("dress", "shirt", "toptee"):
        for row in json.loads((SHARED / f"FashionIQ/captions/cap.{category}.val.json").read_text()):
            texts = [text.strip() for text in row["captions"] if text]
            texts = [(text[0].lower() + text[1:]).removesuffix(".") for text in texts]
            key = mbeir.sentence(" and ".join(texts)), row["candidate"]
            merged.setdefault(key, {})[row["target"]] = None
            named |= {row["candidate"], row["target"]}
    return sorted(named), merged


def replica(root, task, dataset):
    names, merged = cirr_rows() if task == "cirr" else fashioniq_rows()
    number = {name: n for n, name in enumerate(names, 1)}
    pool = [image(n, name, task, dataset) for name, n in number.items()]
    queries = [
        query(i, reference, text, [number[target] for target in targets], task, dataset)
        for i, ((text, reference), targets) in enumerate(merged.items(), 1)
    ]
    return tree(root, queries, pool, task=task)


@REAL
def test_cirr_rebuilt_from_its_annotations_has_the_published_counts(tmp_path):
    """4,170 queries with 244,365 characters, 1.011 positives each, 21,551 images: what MTEB's statistics say."""
    bench = data.load("mbeir/cirr/test", replica(tmp_path, "cirr", 8))
    assert bench.stamps == () and (len(bench.queries), len(bench.gallery)) == (4170, 21551)
    assert sum(len(text) for q in bench.queries for text in q.texts) == 244365
    assert sum(len(q.targets) for q in bench.queries) == 4216 and max(len(q.targets) for q in bench.queries) == 3
    assert sum(q.reference in q.targets for q in bench.queries) == 37  # soft labels that name the reference
    papers = data.load("cirr/val", SHARED)
    assert len(papers.queries) == 4181 and len(papers.gallery) == 2297  # not the same benchmark


@REAL
def test_fashioniq_rebuilt_from_its_annotations_has_the_published_queries(tmp_path):
    """6,003 queries with 361,250 characters and 6,014 positives; the pool has images that no annotation names."""
    root = replica(tmp_path, "fashioniq", 7)
    with pytest.raises(InputError, match=r"test in .*: gallery: expected 74,381, found 8,\d+; use"):
        data.load("mbeir/fashioniq/test", root)
    bench = data.load("mbeir/fashioniq/test", root, allow_missing=True)
    assert len(bench.queries) == 6003 and sum(len(q.targets) for q in bench.queries) == 6014
    assert sum(len(text) for q in bench.queries for text in q.texts) == 361250
    assert len({text for q in bench.queries for text in q.texts}) == 5973


@REAL
def test_score_agrees_with_uniir_and_mteb_written_out(tmp_path):
    """On the real queries, seeded features near a target: full sort, hits of any positive, binary nDCG@10."""
    bench = data.load("mbeir/cirr/test", replica(tmp_path / "M-BEIR", "cirr", 8))
    generator = np.random.default_rng(5)
    images = generator.normal(size=(len(bench.gallery), 16))
    place = {name: i for i, name in enumerate(bench.gallery)}
    near = np.array([images[place[q.targets[-1]]] for q in bench.queries])
    asked = near + 1.3 * generator.normal(size=near.shape)
    files = tmp_path / "q.npz", tmp_path / "g.npz", tmp_path / "values.npz"
    np.savez(files[0], ids=np.array([q.id for q in bench.queries]), vectors=asked.astype(np.float32))
    np.savez(files[1], ids=np.array(bench.gallery), vectors=images.astype(np.float32))
    found = score("mbeir/cirr/test", tmp_path, files[0], files[1], resamples=10, per_query=files[2])
    assert "not the CIRR or FashionIQ papers'" in found["protocol"]["definition"]
    values = np.load(files[2], allow_pickle=False)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    several = [i for i, q in enumerate(bench.queries) if len(q.targets) > 1]
    for row in [*several, *range(0, len(bench.queries), 17)]:
        targets = set(bench.queries[row].targets)
        top = [bench.gallery[i] for i in np.argsort(-(unit @ asked[row]))[:50]]
        for k in (1, 5, 10, 20, 50):
            assert values[f"R@{k}"][row] == bool(set(top[:k]) & targets)
        gain = sum(1 / math.log2(rank + 1) for rank, name in enumerate(top[:10], 1) if name in targets)
        ideal = sum(1 / math.log2(i + 2) for i in range(min(10, len(targets))))
        assert values["nDCG@10"][row] == pytest.approx(gain / ideal, abs=1e-12)
    assert len(several) == 43 and 5 < found["scores"]["R@1"]["mean"] < found["scores"]["nDCG@10"]["mean"] < 95


# --- pixels, and size ------------------------------------------------------------------------------------------


def test_evaluate_takes_pictures_and_refuses_texts(small, tmp_path, tiny_clip_folder, tiny_backbone):
    for index, row in enumerate([*POOL, OTHERS[1]]):
        path = small / row["img_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((36, 30)).save(path)

    def evaluate(protocol):
        overrides = [
            "method.name=sum", f"backbone.name={tiny_clip_folder}", "backbone.device=cpu",
            f"backbone.cache={tmp_path / 'cache'}", f"data.root={small}", f"data.protocols.mbeir={protocol}",
        ]  # fmt: skip
        config = configs.load(None, overrides)
        (found,) = runs.evaluate(config, tiny_backbone, runs.build(config, tiny_backbone), ["mbeir/cirr/test"])
        return found.record

    record = evaluate("mbeir/local")
    assert record.protocol.name == "mbeir/local" and record.benchmark.gallery == 6 and record.benchmark.stamps == []
    assert list(record.means) == ["R@1", "R@5", "R@10", "R@20", "R@50", "nDCG@10"]
    assert record.means["R@10"].mean == 100  # of six candidates
    assert evaluate("mbeir/global-images").benchmark.gallery == 7
    with pytest.raises(InputError, match=r"2 of 9 candidates under mbeir/global are no pictures.*mbeir/global-images"):
        evaluate("mbeir/global")


def test_a_pool_is_read_line_by_line(small):
    """What a candidate holds beside id and path (2.4 GB in the union pool) is not kept."""
    filler = "x" * 20_000
    rows = ({"txt": filler, "img_path": None, "modality": "text", "did": f"2:{n}"} for n in range(2000))
    path = small / mbeir.UNION
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    assert path.stat().st_size > 40_000_000
    tracemalloc.start()
    bench = data.load("mbeir/cirr/test", small, protocol="mbeir/global")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bench.gallery) == 2009 and peak < 4_000_000
