"""Every way we know to break a submission file, each named with its query; right files are let through."""

import gzip
import json
from pathlib import Path

import pytest

from cir import data
from cir.errors import InputError
from cir.protocols import PROTOCOLS
from cir.score import rank_and_score
from cir.submissions import SERVERS, check, server_percent
from cir.submissions.recognising import dataset

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
EXAMPLES = {
    "CIRR/submission_examples/test1_pred_ranks_recall_subset.json": ("cirr/test1", "recall_subset"),
    "CIRCO/submission_examples/submission_val.json": ("circo/val", ""),
    "CIRCO/submission_examples/submission_test.json": ("circo/test", ""),
}
KINDS = [("cirr/test1", "recall"), ("cirr/test1", "recall_subset"), ("cirr/val", "recall"), ("circo/test", "")]


@pytest.fixture
def judge(root, tmp_path):
    """Write content (an object, text, or bytes) and check it."""

    def make(content, **options):
        path = tmp_path / "upload.json"
        raw = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return check(path, root, **options)

    return make


def found(report, rule):
    return [problem for problem in report.problems if problem.rule.id == rule]


def only(report, rule, query=None, text=""):
    """The report's errors are of one rule, and name the query and the trouble."""
    assert {p.rule.id for p in report.problems} == {rule}, [(p.rule.id, p.text) for p in report.problems]
    assert text in report.problems[0].text
    assert query is None or [p.query for p in report.problems] == [query]
    return True


# --- right files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "metric"), KINDS)
def test_a_right_file_passes_and_is_recognised(judge, right, name, metric):
    report = judge(right(name, metric))
    assert (report.benchmark, report.metric, report.problems) == (name, metric, ())
    assert report.plain()["valid"] and list(report.lines())[-1] == "no errors, no warnings"


@pytest.mark.parametrize(("name", "metric"), KINDS)
def test_the_order_of_keys_is_free(judge, right, name, metric):
    assert not judge(dict(sorted(right(name, metric).items(), reverse=True))).problems


@REAL
@pytest.mark.parametrize("path", EXAMPLES)
def test_the_official_examples_pass(kept, path):
    report = check(SHARED / path, SHARED)
    assert (report.benchmark, report.metric) == EXAMPLES[path] and not report.problems


@REAL
def test_the_official_val_example_scores_what_the_official_script_prints(kept):
    scores = check(SHARED / "CIRCO/submission_examples/submission_val.json", SHARED).scores
    printed = {score.metric: f"{score.percent:.2f}" for score in scores}
    assert [printed[f"mAP@{k}"] for k in (5, 10, 25, 50)] == ["0.49", "0.52", "0.54", "0.60"]
    assert [printed[f"R@{k}"] for k in (5, 10, 25, 50)] == ["0.91", "0.91", "1.36", "3.64"]
    assert len(printed) == 8 + 9


# --- bytes and JSON --------------------------------------------------------------------------------------------

BYTES = {
    "empty": (lambda text: b"", "empty", "empty"),
    "blank": (lambda text: b" \n\n", "empty", "empty"),
    "truncated": (lambda text: text[: len(text) // 2].encode(), "json", "ends in the middle"),
    "bom": (lambda text: b"\xef\xbb\xbf" + text.encode(), "encoding", "byte order mark"),
    "utf-16": (lambda text: text.encode("utf-16"), "encoding", "utf-16"),
    "latin-1": (lambda text: text.replace('"version"', '"vérsion"').encode("latin-1"), "encoding", "not UTF-8"),
    "gzip": (lambda text: gzip.compress(text.encode()), "json", "gzip archive"),
    "zip": (lambda text: b"PK\x03\x04" + text.encode(), "json", "zip archive"),
    "single quotes": (lambda text: text.replace('"', "'").encode(), "json", "single quotes"),
    "trailing comma": (lambda text: text[:-1].encode() + b",}", "json", "line 1"),
    "two documents": (lambda text: (text + "\n" + text).encode(), "json", "several documents"),
    "deep": (lambda text: b'{"a":' * 100_000, "json", "recursion"),
    "huge number": (lambda text: text.replace("[", "[" + "9" * 5000 + ",", 1).encode(), "json", "not JSON"),
    "list": (lambda text: f"[{text}]".encode(), "object", "a list of 1 entries"),
    "number": (lambda text: b"12", "object", "int '12'"),
    "null": (lambda text: b"null", "object", "NoneType"),
    "no queries": (lambda text: b'{"run": "x", "scores": []}', "object", "it holds run, scores"),
    "no content": (lambda text: b"{}", "object", "it holds nothing"),
}


@pytest.mark.parametrize("name", BYTES)
def test_broken_bytes(judge, right, name):
    change, rule, text = BYTES[name]
    report = judge(change(json.dumps(right("cirr/test1", "recall"))))
    assert report.errors and text in found(report, rule)[0].text


def test_keys_without_quotes_are_named_and_the_rest_is_checked(judge, right):
    content = right("circo/test")
    content["2"][7] = content["2"][3]
    text = json.dumps(content)
    for key in content:
        text = text.replace(f'"{key}":', f"{key}:")
    report = judge(text)
    assert "without quotes" in found(report, "json")[0].text and found(report, "repeat")[0].query == "2"


def test_a_key_twice(judge, right):
    text = json.dumps(right("cirr/test1", "recall"))
    again = json.dumps({"12103": right("cirr/test1", "recall")["12103"]})
    assert only(judge(f"{text[:-1]}, {again[1:]}"), "duplicate-key", "12103", "stands 2 times")


def test_a_file_beyond_any_limit_is_not_read(judge, monkeypatch):
    monkeypatch.setattr("cir.submissions.reading.LARGEST", 10)
    assert only(judge('{"0": [1, 2, 3]}'), "size", "", "16 bytes")


def test_no_file_and_no_annotations_are_input_errors(root, tmp_path, right):
    with pytest.raises(InputError, match="no such file"):
        check(tmp_path / "none.json", root)
    with pytest.raises(InputError, match="cannot be read"):
        check(tmp_path, root)
    (tmp_path / "a.json").write_text(json.dumps(right("circo/test")))
    with pytest.raises(InputError, match="annotations are needed, --data ROOT"):
        check(tmp_path / "a.json", tmp_path / "elsewhere")
    (root / "CIRCO/annotations/test.json").unlink()
    with pytest.raises(InputError, match="annotations of circo/test are not here"):
        check(tmp_path / "a.json", root, split="test")


# --- queries, lists, images ------------------------------------------------------------------------------------


def swap(content, query, rank, value):
    content[query][rank - 1] = value


def rename(content, old, new):
    content[new] = content.pop(old)


CIRR = {  # for test1's recall: how, the rule, the query (None: all), what is said
    "missing query": (lambda c: c.pop("12103"), "missing", "12103", "missing"),
    "extra query": (lambda c: c.update({"99": c["12103"]}), "extra", "99", "no query of cirr/test1"),
    "a query of val": (lambda c: c.update({"12060": c["12103"]}), "extra", "12060", "one of cirr/val"),
    "key with escapes": (lambda c: c.update({"\x1b[2J\ud800": []}), "extra", "\\x1b[2J\\ud800", "no query"),
    "tensor key": (lambda c: rename(c, "12103", "tensor(12103)"), "key", "12103", "'tensor(12103)'"),
    "cuda key": (lambda c: rename(c, "12103", "tensor([12103], device='cuda:0')"), "key", "12103", "str(int(id))"),
    "float key": (lambda c: rename(c, "12103", "12103.0"), "key", "12103", "'12103.0'"),
    "padded key": (lambda c: rename(c, "12103", " 012103"), "key", "12103", "' 012103'"),
    "49 names": (lambda c: c["12103"].pop(), "count", "12103", "49 images, expected 50"),
    "51 names": (lambda c: c["12103"].append("test1-119-0-img1"), "count", "12103", "51 images"),
    "no names": (lambda c: c["12103"].clear(), "count", "12103", "0 images"),
    "repeat": (lambda c: swap(c, "12103", 9, c["12103"][2]), "repeat", "12103", "at ranks 3, 9"),
    "reference": (lambda c: swap(c, "12103", 4, "test1-6-0-img0"), "reference", "12103", "at rank 4"),
    ".png": (lambda c: swap(c, "12103", 1, c["12103"][0] + ".png"), "name", "12103", "write 'test1-0-0-img0'"),
    "path": (lambda c: swap(c, "12103", 1, f"./test1/{c['12103'][0]}.png"), "name", "12103", "rank 1: './test1/"),
    "windows path": (lambda c: swap(c, "12103", 1, "test1\\" + c["12103"][0]), "name", "12103", "write"),
    "blank": (lambda c: swap(c, "12103", 1, c["12103"][0] + " "), "name", "12103", "write"),
    "image of val": (lambda c: swap(c, "12103", 2, "dev-1-0-img1"), "unknown-image", "12103", "an image of cirr/val"),
    "unknown image": (lambda c: swap(c, "12103", 2, "test1-999-0-img0"), "unknown-image", "12103", "no image"),
    "boolean": (lambda c: swap(c, "12103", 2, True), "name", "12103", "rank 2: true (a boolean)"),
    "null": (lambda c: swap(c, "12103", 2, None), "name", "12103", "null"),
    "nan": (lambda c: swap(c, "12103", 2, float("nan")), "name", "12103", "NaN"),
    "integer": (lambda c: swap(c, "12103", 2, 7), "name", "12103", "7 in place of a name"),
    "nested entry": (lambda c: swap(c, "12103", 2, ["x"]), "name", "12103", "a list"),
    "list in a list": (lambda c: c.update({"12103": [c["12103"]]}), "list", "12103", "a list inside a list"),
    "text": (lambda c: c.update({"12103": "test1-0-0-img0"}), "list", "12103", "in place of a list"),
    "object": (lambda c: c.update({"12103": {"1": "a"}}), "list", "12103", "an object"),
    "no version": (lambda c: c.pop("version"), "version", "", "the key is missing"),
    "wrong version": (lambda c: c.update(version="rc1"), "version", "", "'rc1'"),
    "version as number": (lambda c: c.update(version=2), "version", "", "2 in place of 'rc2'"),
    "no metric": (lambda c: c.pop("metric"), "metric", "", "by its lists this is a recall file"),
    "wrong metric": (lambda c: c.update(metric="recall_subst"), "metric", "", "did you mean 'recall_subset'"),
    "recall file as subset": (lambda c: c.update(metric="recall_subset"), "metric", "", "lists have 50 names"),
}  # fmt: skip


@pytest.mark.parametrize("name", CIRR)
def test_broken_cirr(judge, right, name):
    change, rule, query, text = CIRR[name]
    content = right("cirr/test1", "recall")
    change(content)
    report = judge(content)
    assert report.benchmark == "cirr/test1" and report.metric == "recall" and report.errors
    assert only(report, rule, query, text)
    shown = "\n".join(report.lines())
    assert (f"query {query}: " in shown if query else f"[{rule}]" in shown) and "do not upload" in shown
    assert found(report, rule)[0].rule.source in shown
    shown.encode()  # whatever the file held can be printed


def test_a_query_under_two_spellings_of_its_key(judge, right):
    content = right("cirr/test1", "recall")
    content["tensor(12103)"] = content["12103"]
    report = judge(content)
    assert [(p.rule.id, p.query) for p in report.problems] == [("key", "12103"), ("same-query", "12103")]


SUBSET = {
    "outside the group": (lambda c: swap(c, "12103", 3, "test1-100-0-img0"), "subset", "12103", "not in its group"),
    "reference": (lambda c: swap(c, "12103", 3, "test1-6-0-img0"), "reference", "12103", "at rank 3"),
    "five names": (lambda c: c["12103"].extend(["test1-10-0-img0", "test1-11-0-img1"]), "count", "12103", "expected 3"),
    "subset file as recall": (lambda c: c.update(metric="recall"), "metric", "", "of a recall_subset file"),
}


@pytest.mark.parametrize("name", SUBSET)
def test_broken_cirr_subset(judge, right, name):
    change, rule, query, text = SUBSET[name]
    content = right("cirr/test1", "recall_subset")
    change(content)
    report = judge(content)
    assert report.metric == "recall_subset" and only(report, rule, query, text)


def test_all_keys_as_tensors_and_all_names_as_paths_are_told_query_by_query(judge, right):
    content = right("cirr/test1", "recall")
    odd = {f"tensor({key})": [f"{n}.png" for n in names] for key, names in content.items() if key.isdigit()}
    report = judge({"version": "rc2", "metric": "recall", **odd})
    assert len(found(report, "key")) == len(found(report, "name")) == report.errors / 2 == 5
    assert "(and 49 more in this list)" in found(report, "name")[0].text


def test_a_pretty_printed_file_is_told_its_compact_size(judge, right, monkeypatch):
    text = json.dumps(right("cirr/test1", "recall"), indent=4)
    compact = len(json.dumps(json.loads(text), separators=(",", ":")))
    assert not judge(text).problems
    monkeypatch.setattr("cir.submissions.cirr.LARGEST", compact)
    assert only(judge(text), "size", "", f"without indentation it has {compact:,}")
    assert not judge(json.dumps(json.loads(text), separators=(",", ":"))).problems


@REAL
def test_a_whole_recall_file_fits_and_its_pretty_print_does_not(kept, tmp_path):
    bench = data.load("cirr/test1", SHARED)
    lists = {q.id: [name for name in bench.gallery[:51] if name != q.reference][:50] for q in bench.queries}
    content = {"version": "rc2", "metric": "recall", **lists}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text(json.dumps(content, indent=4))
    assert not check(tmp_path / "a.json", SHARED).problems
    report = check(tmp_path / "b.json", SHARED)
    assert only(report, "size", "") and report.bytes > 5_000_000


CIRCO = {  # for test: how, the rule, the query, what is said
    "missing in the middle": (lambda c: c.pop("3"), "missing", "3", "missing"),
    "cut at the end": (lambda c: c.pop("5"), "missing", "5", "missing"),
    "one too many": (lambda c: c.update({"6": c["5"]}), "extra", "6", "no query of circo/test"),
    "version": (lambda c: c.update(version="1"), "extra", "version", "'version'"),
    "tensor key": (lambda c: rename(c, "3", "tensor(3)"), "key", "3", "'tensor(3)'"),
    "repeat": (lambda c: swap(c, "3", 20, c["3"][4]), "repeat", "3", "1028 stands at ranks 5, 20"),
    "repeat as text": (lambda c: swap(c, "3", 20, "0001028"), None, "3", "1028 stands at ranks 5, 20"),
    "49 ids": (lambda c: c["3"].pop(), "count", "3", "49 images, expected 50"),
    "file name": (lambda c: swap(c, "3", 2, "000000001007.jpg"), "id", "3", "'000000001007.jpg' is not an"),
    "boolean": (lambda c: swap(c, "3", 2, False), "id", "3", "false (a boolean) is not an integer"),
    "half": (lambda c: swap(c, "3", 2, 1007.5), "id", "3", "1007.5 is not an integer"),
    "nan": (lambda c: swap(c, "3", 2, float("nan")), "id", "3", "NaN is not an integer"),
    "infinity": (lambda c: swap(c, "3", 2, float("inf")), "id", "3", "inf is not an integer"),
    "null": (lambda c: swap(c, "3", 2, None), "id", "3", "null is not an integer"),
    "nested": (lambda c: swap(c, "3", 2, [1007]), "id", "3", "a list is not an integer"),
    "unknown": (lambda c: swap(c, "3", 2, 5), "unknown-image", "3", "rank 2: no image has the id 5"),
    "gallery position": (lambda c: c.update({"3": list(range(50))}), "unknown-image", "3", "(and 49 more"),
    "not a list": (lambda c: c.update({"3": "1007"}), "list", "3", "'1007' in place of a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", CIRCO)
def test_broken_circo(judge, right, name):
    change, rule, query, text = CIRCO[name]
    content = right("circo/test")
    change(content)
    report = judge(content)
    assert report.benchmark == "circo/test" and report.errors == 1
    errors = [p for p in report.problems if p.rule.severity == "error"]
    assert (errors[0].rule.id, errors[0].query) == (rule or "repeat", query) and text in errors[0].text
    assert rule is None or only(report, rule)


def test_what_the_server_takes_is_a_warning(judge, right):
    content = {key: [str(image) for image in images] for key, images in right("circo/test").items()}
    report = judge(content)
    assert not report.errors and only(report, "id-type", "", "300 entries over the whole file")
    assert "accepted" in report.problems[0].rule.source and "the server takes the file" in report.verdict
    whole = judge({key: [float(image) for image in images] for key, images in content.items()})
    assert not whole.errors and only(whole, "id-type")
    rename(content := right("circo/test"), "3", "03")
    assert only(report := judge(content), "odd-key", "3") and not report.errors
    content = right("circo/test")
    content["3"].append(1000 + 7 * 60)
    assert only(report := judge(content), "too-many", "3", "51 images") and not report.errors


def test_the_reference_is_allowed_in_circo_and_counted(judge, right):
    content = right("circo/test")  # holds all six
    assert judge(content).notes == ("lists that hold their query's reference: 6 (allowed, it competes)",)
    for i, key in enumerate(content):
        content[key][i] = 1000 + 7 * 70
    assert not judge(content).notes


def test_problems_are_counted_beyond_those_shown_and_json_has_all(judge, right):
    content = right("circo/test")
    for key in content:
        content[key] = [*content[key][:10], content[key][0], 5, None]
    report = judge(content)
    lines = list(report.lines(shown=3))
    assert "  and 21 more; --json lists all" in lines and report.errors == 24
    plain = json.loads(json.dumps(report.plain()))
    assert len(plain["problems"]) == plain["errors"] == 24 and plain["warnings"] == 0 and not plain["valid"]
    assert {p["rule"] for p in plain["problems"]} == {"repeat", "unknown-image", "id", "count"}
    assert all(p["source"] and p["expected"] and p["query"] for p in plain["problems"])


def test_errors_stand_before_warnings(judge, right):
    content = right("circo/test")
    content["0"].append(1000 + 7 * 60)
    content["5"].pop()
    assert [p.rule.severity for p in judge(content).problems] == ["error", "warning"]


# --- which split -----------------------------------------------------------------------------------------------


def test_val_and_test_are_told_apart_and_can_be_said(judge, right):
    content = right("circo/test")
    assert judge(content).benchmark == "circo/test"
    three = dict(list(content.items())[:3])
    assert judge(three).benchmark == "circo/val"  # a test file cut here is a val file
    forced = judge(three, split="test")
    assert forced.benchmark == "circo/test" and only(forced, "missing") and forced.errors == 3
    assert judge(dict(list(content.items())[:5])).benchmark == "circo/test"
    assert judge(right("cirr/val", "recall")).benchmark == "cirr/val"
    with pytest.raises(InputError, match="no split 'train'"):
        judge(three, split="train")


def test_a_file_with_images_of_another_split_is_judged_by_its_keys(judge, right):
    content, val = right("cirr/test1", "recall"), right("cirr/val", "recall")
    names = val["12063"]
    report = judge({key: names if isinstance(value, list) else value for key, value in content.items()})
    assert report.benchmark == "cirr/test1" and only(report, "unknown-image") and report.errors == 5


def test_a_dataset_is_known_by_its_images():
    assert dataset({"0": ["000000001007.jpg"], "version": "rc2"}) == "circo"
    assert dataset({"0": [["test1-1-0-img0"]]}) == "cirr"
    assert dataset({"12063": []}) == "cirr" and dataset({"metric": "recall", "1": None}) == "cirr"
    assert dataset({"7": {}}) == "circo"


# --- scores ----------------------------------------------------------------------------------------------------


def test_the_servers_denominator(root):
    """Facts of published scores: a perfect model, and 66.361 printed for a true 66.393."""
    assert f"{server_percent(4148, 4148):.3f}" == "99.952"
    assert f"{server_percent(2754, 4148):.3f}" == "66.361" and f"{100 * 2754 / 4148:.3f}" == "66.393"
    advice = " ".join(SERVERS["cirr"].advice(data.load("cirr/test1", root)))
    assert "divides by 7, the number of keys, not by the 5 queries" in advice and "71.429" in advice


def test_cirr_val_by_hand_in_both_denominators(judge, right):
    """Targets are image 6 i + 1; the lists are the gallery without the reference, so the ranks are 1, 7, 13, 19."""
    scores = {s.metric: s for s in judge(right("cirr/val", "recall")).scores}
    assert list(scores) == ["R@1", "R@2", "R@5", "R@10", "R@50"]
    assert [scores[f"R@{k}"].percent for k in (1, 5, 10, 50)] == [25, 25, 50, 100]
    assert scores["R@10"].printed == pytest.approx(100 * 2 / 6)
    subset = {s.metric: s.percent for s in judge(right("cirr/val", "recall_subset")).scores}
    assert subset == {"Rs@1": 100, "Rs@2": 100, "Rs@3": 100}


def test_what_is_missing_is_a_miss(judge, right):
    content = right("cirr/val", "recall")
    del content["12060"]  # the one hit at rank 1
    content["12063"] = content["12063"][:6]  # its target stood at rank 7
    content["12066"] = None
    report = judge(content)
    assert [s.percent for s in report.scores] == [0, 0, 0, 0, 25] and "counts as a miss" in report.notes[0]


def test_no_scores_without_labels(judge, right):
    assert not judge(right("cirr/test1", "recall")).scores and not judge(right("circo/test")).scores


@REAL
@pytest.mark.parametrize("name", ["cirr/val", "circo/val"])
def test_scores_of_a_file_are_the_scores_of_its_vectors(kept, tmp_path, seeded, name):
    """The whole way round on the real annotations: vectors, file, ranks in the file, against exact ranks."""
    from cir.submissions import write

    bench = data.load(name, SHARED)
    queries, gallery = seeded(bench)
    row = {image: i for i, image in enumerate(gallery.ids)}
    pull = gallery.vectors[[row[q.targets[0]] for q in bench.queries]]
    mixed = queries.vectors + 0.8 * pull
    queries = type(queries)(queries.ids, mixed / (mixed**2).sum(axis=-1, keepdims=True) ** 0.5)
    wanted = rank_and_score(bench, PROTOCOLS[bench.protocol], queries, gallery).scores.values
    written = write(bench, queries, gallery, tmp_path, "x")
    scores = {score.metric: score for one in written for score in one.report.scores}
    compared = [metric for metric in wanted if metric != "Avg"]
    for metric in compared:
        assert scores[metric].percent == pytest.approx(100 * wanted[metric].mean()), metric
    assert 1 < scores["R@10"].percent < 95  # neither nothing nor everything is found
    if name == "cirr/val":
        assert scores["R@1"].printed == pytest.approx(scores["R@1"].percent * 4181 / 4183)
    assert all(not check(one.path, SHARED).problems for one in written)
