"""Domain conversion on ImageNet-R: Pic2Word's two lists, small ones and the real ones."""

import os
from pathlib import Path

import pytest

from cir.data import expand, load
from cir.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
TARGETS = """imgnet/imagenet-r/n2/cartoon_1.jpg 7
imgnet/imagenet-r/n1/toy_0.jpg 2002
imgnet/real/n1/B.JPEG 6002
imgnet/imagenet-r/n1/cartoon_0.jpg 2
imgnet/imagenet-r/n1/cartoon_5.jpg 2
imgnet/real/n1/A.JPEG 6002
imgnet/real/n3/C.JPEG 6009
"""
QUERIES = "imgnet/real/n1/A.JPEG 2 \nimgnet/real/n3/C.JPEG 9 \nimgnet/real/n1/B.JPEG 2 \n"


def write(folder, targets=TARGETS, queries=QUERIES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "imgnet_targets.txt").write_text(targets)
    (folder / "imgnet_real_query.txt").write_text(queries)
    return folder


@pytest.mark.parametrize("folder", ["imgnet", "imagenet_r", "", "somewhere"])
def test_what_is_read(tmp_path, folder):
    base = write(tmp_path / folder)
    root = base if folder == "somewhere" else tmp_path  # a folder of another name is named itself
    bench = load("imagenet_r/cartoon", root, allow_missing=True)
    assert bench.gallery == tuple(line.split()[0] for line in TARGETS.splitlines())  # the order of the file
    assert [q.id for q in bench.queries] == ["cartoon/00000", "cartoon/00001", "cartoon/00002"]
    assert [q.reference for q in bench.queries] == [f"imgnet/real/{n}.JPEG" for n in ("n1/A", "n3/C", "n1/B")]
    first, second, third = bench.queries
    assert first.texts == ("cartoon",) and bench.template == "a {text} of $"
    assert first.targets == ("imgnet/imagenet-r/n1/cartoon_0.jpg", "imgnet/imagenet-r/n1/cartoon_5.jpg")
    assert second.targets == () and bench.labelled and bench.open_targets and not bench.open_references
    assert bench.root == base and bench.paths[third.reference] == "real/n1/B.JPEG"
    assert (bench.protocol, bench.notes[1]) == ("imagenet_r/share", "1 queries have no right image and count as 0")


def test_the_domain_decides_what_is_right(tmp_path):
    write(tmp_path / "imgnet")
    toy, origami = (load(f"imagenet_r/{domain}", tmp_path, allow_missing=True) for domain in ("toy", "origami"))
    assert toy.queries[0].targets == ("imgnet/imagenet-r/n1/toy_0.jpg",) and toy.queries[0].texts == ("toy",)
    assert [q.targets for q in origami.queries] == [(), (), ()] and origami.labelled
    assert load("imagenet_r/toy", tmp_path, protocol="imagenet_r/hit", allow_missing=True).protocol == "imagenet_r/hit"


def test_wrong_counts_stop_and_say_what_is_unanswered_too(tmp_path):
    write(tmp_path / "imgnet")
    with pytest.raises(InputError, match=r"expected 10,000, found 3.*unanswered: expected 2,350, found 1"):
        load("imagenet_r/cartoon", tmp_path)
    stamped = load("imagenet_r/cartoon", tmp_path, allow_missing=True)
    assert "gallery: expected 16,983, found 7" in " ".join(stamped.stamps)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("imgnet/a.jpg 2\nimgnet/b.jpg\n", r"imgnet_targets.txt, line 2: expected path label"),
        ("imgnet/a b.jpg 2\n", r"line 1: expected path label, separated by blanks, got 'imgnet/a b.jpg 2'"),
        ("imgnet/a.jpg 2\n\nimgnet/b.jpg 2\n", r"line 2: expected path label"),
        ("imgnet/a.jpg cartoon\n", r"line 1: expected a label such as 2002 behind the path, got 'cartoon'"),
        ("imgnet/a.jpg -2\n", r"line 1: expected a label"),
        ("imgnet/a.jpg 2\nimgnet/a.jpg 3\n", r"line 2: 'imgnet/a.jpg' was listed before"),
        ("../a.jpg 2\n", r"line 1: the path '../a.jpg' leaves the dataset folder"),
        ("/a.jpg 2\n", r"leaves the dataset folder"),
        ("", r"line 1: expected path label"),
    ],
)
def test_what_is_refused(tmp_path, targets, message):
    write(tmp_path / "imgnet", targets)
    with pytest.raises(InputError, match=message) as raised:
        load("imagenet_r/cartoon", tmp_path, allow_missing=True)
    assert "\n" not in str(raised.value)


def test_missing_and_unreadable_lists_are_named(tmp_path):
    with pytest.raises(InputError, match=r"found no imgnet_targets\.txt, neither here nor in imgnet/"):
        load("imagenet_r/cartoon", tmp_path)
    base = write(tmp_path / "imgnet")
    (base / "imgnet_real_query.txt").unlink()
    with pytest.raises(InputError, match=r"imgnet_real_query\.txt: cannot be read"):
        load("imagenet_r/cartoon", tmp_path)
    (base / "imgnet_real_query.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"imgnet_real_query\.txt: cannot be read .*download the file again"):
        load("imagenet_r/cartoon", tmp_path)


def test_a_list_that_changes_is_read_again(tmp_path):
    base = write(tmp_path / "imgnet")
    assert len(load("imagenet_r/cartoon", tmp_path, allow_missing=True).gallery) == 7
    file = base / "imgnet_targets.txt"
    file.write_text(TARGETS.replace("cartoon_5", "cartoon_6"))  # as long as before
    os.utime(file, ns=(0, 1))
    changed = load("imagenet_r/cartoon", tmp_path, allow_missing=True)
    assert "imgnet/imagenet-r/n1/cartoon_6.jpg" in changed.gallery


def test_the_group_is_the_four_domains():
    assert expand("imagenet_r") == [f"imagenet_r/{d}" for d in ("cartoon", "origami", "toy", "sculpture")]


@REAL
def test_the_real_lists():
    bench = load("imagenet_r/cartoon", SHARED)
    assert load("imagenet_r/cartoon", SHARED / "imgnet").fingerprint == bench.fingerprint
    listed = [line.split() for line in (SHARED / "imgnet/imgnet_targets.txt").read_text().splitlines()]
    assert bench.gallery == tuple(image for image, _ in listed)
    asking = [line.split() for line in (SHARED / "imgnet/imgnet_real_query.txt").read_text().splitlines()]
    for query, (image, label) in list(zip(bench.queries, asking, strict=True))[::500]:
        assert query.reference == image
        assert query.targets == tuple(other for other, number in listed if int(number) == int(label))
    answers = {id(query.targets) for query in bench.queries if query.targets}
    assert len(answers) == 153  # classes that have a cartoon: one tuple each, whoever asks
