"""FreeDom's four sets: lists in one or two files, names of domains, where images lie; small ones and the real ones."""

from itertools import permutations
from pathlib import Path

import pytest

from cir.data import GROUPS, expand, images, load
from cir.data.freedom import COLLECTIONS
from cir.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' annotation files in ../shared/data")
LTLL = """ltll/New/images/TajMahal/taj_1.jpg New TajMahal
ltll/New/images/Pettah/1.jpg New Pettah
ltll/Old/images/TajMahal/2.jpg Old TajMahal
ltll/Old/images/TajMahal/3.jpg Old TajMahal
"""
IMGNET = """imgnet/imagenet-r/n2/cartoon_1.jpg 7
imgnet/imagenet-r/n1/toy_0.jpg 2002
imgnet/real/n1/B.JPEG 6002
imgnet/real/n2/A.JPEG 6007
imgnet/imagenet-r/n1/origami_0.jpg 1002
imgnet/imagenet-r/n2/sculpture_0.jpg 3007
"""


def put(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def minidn(root):
    """Queries in a list of their own; the published database list is not at hand."""
    put(
        root / "minidn/query_files.csv",
        "minidn/real/zebra/q1.jpg real zebra\nminidn/clipart/zebra/q2.jpg clipart zebra\n"
        "minidn/real/axe/q3.jpg real axe\n",
    )
    put(
        root / "minidn/database_files.csv",
        "minidn/sketch/zebra/d1.jpg sketch zebra\nminidn/real/zebra/d2.jpg real zebra\n"
        "minidn/sketch/zebra/d3.jpg sketch zebra",  # the last line of the real lists has no end
    )
    return root


@pytest.mark.parametrize("folder", ["", "freedom", "freedom/data"])
def test_one_list_for_queries_and_database(tmp_path, folder):
    put(tmp_path / folder / "ltll/full_files.csv", LTLL)
    bench = load("freedom/ltll/Old-New", tmp_path, allow_missing=True)
    assert bench.root == tmp_path / folder and len(bench.gallery) == 4
    assert [q.id for q in bench.queries] == ["Old-New/00002", "Old-New/00003"]  # lines of the list
    assert bench.queries[0].reference == "ltll/Old/images/TajMahal/2.jpg"
    assert bench.queries[0].texts == ("Today",) and bench.template == "a {text} of $"
    assert bench.queries[0].targets is bench.queries[1].targets == ("ltll/New/images/TajMahal/taj_1.jpg",)
    assert bench.open_targets and not bench.open_references and bench.protocol == "freedom"
    other = load("freedom/ltll/New-Old", tmp_path, allow_missing=True)
    assert [len(q.targets) for q in other.queries] == [2, 0] and other.queries[0].texts == ("Archive",)
    assert other.notes == ("lists: ltll/full_files.csv", "1 queries have no right image and count as 0")


def test_two_lists_and_references_outside_the_database(tmp_path):
    bench = load("freedom/minidn/real-sketch", minidn(tmp_path), allow_missing=True)
    assert bench.gallery == tuple(f"minidn/{f}.jpg" for f in ("sketch/zebra/d1", "real/zebra/d2", "sketch/zebra/d3"))
    assert [q.id for q in bench.queries] == ["real-sketch/00000", "real-sketch/00002"]
    assert bench.queries[0].targets == ("minidn/sketch/zebra/d1.jpg", "minidn/sketch/zebra/d3.jpg")
    assert bench.queries[1].targets == () and bench.open_references
    assert set(bench.paths) == {*bench.gallery, "minidn/real/zebra/q1.jpg", "minidn/real/axe/q3.jpg"}
    assert load("freedom/minidn/clipart-real", tmp_path, allow_missing=True).queries[0].texts == ("photo",)
    (tmp_path / "minidn/database_files.csv").unlink()
    with pytest.raises(InputError, match=r"minidn/database_files\.csv: cannot be read"):
        load("freedom/minidn/real-sketch", tmp_path, allow_missing=True)


@pytest.mark.parametrize("folder", ["imgnet", "imagenet_r", "imagenet-r"])
def test_imagenet_r_is_made_of_pic2words_list_where_its_own_is_not_there(tmp_path, folder):
    put(tmp_path / folder / "imgnet_targets.txt", IMGNET)
    made = load("freedom/imagenet_r/real-cartoon", tmp_path, allow_missing=True)
    assert made.gallery == tuple(line.split()[0].replace("imgnet/", "imagenet_r/") for line in IMGNET.splitlines())
    assert [(q.id, q.targets) for q in made.queries] == [
        ("real-cartoon/00002", ()),
        ("real-cartoon/00003", ("imagenet_r/imagenet-r/n2/cartoon_1.jpg",)),
    ]
    assert made.paths["imagenet_r/real/n1/B.JPEG"] == f"{folder}/real/n1/B.JPEG"
    own = "".join(
        f"imagenet_r/{path} {domain} {kind}\r\n"
        for path, domain, kind in (
            ("imagenet-r/n2/cartoon_1.jpg", "cartoon", "llama"), ("imagenet-r/n1/toy_0.jpg", "toy", "bow"),
            ("real/n1/B.JPEG", "real", "bow"), ("real/n2/A.JPEG", "real", "llama"),
            ("imagenet-r/n1/origami_0.jpg", "origami", "bow"), ("imagenet-r/n2/sculpture_0.jpg", "sculpture", "llama"),
        )
    )  # fmt: skip
    put(tmp_path / "imagenet_r/full_files.csv", own)
    listed = load("freedom/imagenet_r/real-cartoon", tmp_path, allow_missing=True)
    assert listed.fingerprint == made.fingerprint and listed.notes[0] == "lists: imagenet_r/full_files.csv"


def test_blanks_in_folders_and_files_are_found_in_either_spelling(tmp_path):
    listed = ("nico/dim/hot_air_balloon/dim_1.jpg", "nico/dim/wolf/dim_2.jpg")
    put(tmp_path / "nico/query_files.csv", f"{listed[0]} dim hot_air_balloon\n")
    put(tmp_path / "nico/database_files.csv", f"{listed[1]} dim wolf\nnico/rock/wolf/rock_1.jpg rock wolf\n")
    put(tmp_path / "nico/dim/hot air balloon/dim_1.jpg")
    found = load("freedom/nico/dim-rock", tmp_path, allow_missing=True).paths
    assert found[listed[0]] == "nico/dim/hot air balloon/dim_1.jpg" and found[listed[1]] == listed[1]
    put(tmp_path / listed[0])  # both are there: the list's own spelling
    assert load("freedom/nico/dim-rock", tmp_path, allow_missing=True).paths[listed[0]] == listed[0]
    put(tmp_path / "ltll/full_files.csv", LTLL)
    put(tmp_path / "ltll/New/images/Taj Mahal/taj 1.jpg")
    place = load("freedom/ltll/New-Old", tmp_path, allow_missing=True).paths["ltll/New/images/TajMahal/taj_1.jpg"]
    assert place == "ltll/New/images/Taj Mahal/taj 1.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ltll/New/a.jpg New\n", r"full_files.csv, line 1: expected path domain class, separated by blanks"),
        (LTLL + "ltll/New/Taj Mahal/4.jpg New TajMahal\n", r"line 5: .*got 'ltll/New/Taj Mahal/4.jpg New TajMahal'"),
        (
            LTLL + "ltll/Mid/4.jpg Mid TajMahal\n",
            r"line 5: expected a path under ltll/ and one of New, Old, got .*'Mid'",
        ),
        ("nico/dim/4.jpg Old wolf\n", r"line 1: expected a path under ltll/.*the list of another set\?"),
        ("ltll/../../4.jpg Old wolf\n", r"line 1: the path .* leaves the dataset folder"),
        (LTLL + LTLL[:47] + "\n", r"gallery: 1 ids occur more than once"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    put(tmp_path / "ltll/full_files.csv", content)
    with pytest.raises(InputError, match=message) as raised:
        load("freedom/ltll/New-Old", tmp_path, allow_missing=True)
    assert "\n" not in str(raised.value)


def test_labels_that_are_no_domain_of_pic2words_are_refused(tmp_path):
    put(tmp_path / "imgnet/imgnet_targets.txt", IMGNET + "imgnet/real/n1/Z.JPEG 5002\n")
    with pytest.raises(InputError, match=r"'imgnet/real/n1/Z.JPEG' has label 5002; expected .* domain 0 to 3 or 6"):
        load("freedom/imagenet_r/real-toy", tmp_path, allow_missing=True)


def test_missing_lists_and_wrong_counts(tmp_path):
    with pytest.raises(InputError, match=r"found no ltll/full_files\.csv, neither here nor in freedom/"):
        load("freedom/ltll/New-Old", tmp_path)
    put(tmp_path / "ltll/full_files.csv", LTLL)
    with pytest.raises(InputError, match=r"queries: expected 279, found 2; gallery: expected 488, found 4"):
        load("freedom/ltll/New-Old", tmp_path)
    with pytest.raises(InputError, match=r"queries: expected 630, found 2"):
        load("freedom/minidn/real-sketch", minidn(tmp_path))


def test_groups_are_a_domain_s_pairs_and_a_set_s():
    assert expand("freedom/ltll") == ["freedom/ltll/New-Old", "freedom/ltll/Old-New"]
    assert expand("freedom/ltll/New") == ["freedom/ltll/New-Old"]
    assert expand("freedom/minidn/real") == [f"freedom/minidn/real-{d}" for d in ("clipart", "painting", "sketch")]
    sizes = {name: len(GROUPS[f"freedom/{name}"]) for name in COLLECTIONS}
    assert sizes == {"imagenet_r": 20, "minidn": 12, "nico": 30, "ltll": 2}
    for name, known in COLLECTIONS.items():
        parts = [part for domain in known.texts for part in GROUPS[f"freedom/{name}/{domain}"]]
        assert sorted(parts) == sorted(GROUPS[f"freedom/{name}"])
        assert len(parts) == len(list(permutations(known.texts, 2)))


@REAL
@pytest.mark.parametrize("name", ["freedom/ltll/Old-New", "freedom/nico/rock-dim", "freedom/imagenet_r/toy-sculpture"])
def test_the_real_lists_line_by_line(name):
    _, collection, pair = name.split("/")
    source, target = pair.split("-")
    domains = {0: "cartoon", 1: "origami", 2: "toy", 3: "sculpture", 6: "real"}
    if collection == "imagenet_r":
        lines = [line.split() for line in (SHARED / "imgnet/imgnet_targets.txt").read_text().splitlines()]
        asking = database = [
            (i.replace("imgnet", "imagenet_r"), domains[int(n) // 1000], int(n) % 1000) for i, n in lines
        ]
    else:
        files = ("full_files.csv",) * 2 if collection == "ltll" else ("query_files.csv", "database_files.csv")
        texts = [(SHARED / "freedom" / collection / file).read_text().splitlines() for file in files]
        asking, database = ([tuple(line.split(" ")) for line in lines] for lines in texts)
    bench = load(name, SHARED)
    assert bench.gallery == tuple(image for image, _, _ in database)
    wanted = [(line, image, kind) for line, (image, domain, kind) in enumerate(asking) if domain == source]
    assert len(bench.queries) == len(wanted)
    for query, (line, image, kind) in list(zip(bench.queries, wanted, strict=True))[::40]:
        assert (query.id, query.reference) == (f"{pair}/{line:05d}", image)
        assert query.targets == tuple(i for i, domain, other in database if (domain, other) == (target, kind))
        assert bench.open_references or image in bench.paths


def test_lists_are_parsed_once_for_all_pairs(tmp_path, monkeypatch):
    minidn(tmp_path)
    opened, read = [], Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *args, **kw: opened.append(path.name) or read(path, *args, **kw)
    )
    for name in GROUPS["freedom/minidn"]:
        load(name, tmp_path, allow_missing=True)
    assert sorted(opened) == ["database_files.csv", "query_files.csv"]


@REAL
def test_what_cannot_be_collected_fits_the_lists_there_are(tmp_path):
    queries = (SHARED / "freedom/minidn/query_files.csv").read_text()
    put(tmp_path / "minidn/query_files.csv", queries)
    put(tmp_path / "minidn/database_files.csv", queries.replace(".jpg", "_d.jpg"))
    bench = load("freedom/minidn/real-sketch", tmp_path)
    assert (len(bench.queries), len(bench.gallery), bench.stamps) == (630, 2520, ())
    assert all(len(query.targets) == 5 for query in bench.queries)
    with pytest.raises(InputError, match=r"3,150 of 3,150 images are missing"):
        images.check(bench)
