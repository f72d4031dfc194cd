"""Human triplets: rows, numbers by content, fingerprints, what is left out, and how a text is drawn in training."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir.data import image_triplets, source
from cir.errors import InputError, RunError
from cir.prompts import JOINERS, training_text
from cir.randomness import StepRandom

PICTURES = {"A": 0, "B": 1, "C": 2, "D": 3, "E": 1, "F": 5}  # E shows what B shows
ROWS = {
    "dress": [("A", "B", ["is red", "is long"]), ("C", "D", ["Is Blue.", ""])],
    "shirt": [("B", "C", ["has dots", "is short"]), ("A", "E", ["is red", "is longer"])],
    "toptee": [("F", "A", ["one", "two"])],
}


def draw(path: Path, seed: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (36 + seed, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def put(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def fashioniq(root: Path, rows=ROWS) -> Path:
    """A tree in FashionIQ's layout that counts as a world, so that its counts are its own."""
    counts = {}
    for category, listed in rows.items():
        annotated = [{"candidate": a, "target": b, "captions": texts} for a, b, texts in listed]
        put(root / f"FashionIQ/captions/cap.{category}.train.json", annotated)
        put(root / f"FashionIQ/image_splits/split.{category}.train.json", [*PICTURES, "unused"])
        counts[category] = {"train": {"queries": len(listed), "gallery": len(PICTURES) + 1}}
    for name, seed in PICTURES.items():
        draw(root / f"FashionIQ/images/{name}.png", seed, compress_level=1 + seed)
    put(root / "world.json", {"counts": {"fashioniq": counts}})
    return root


@pytest.fixture
def place(tmp_path):
    return fashioniq(tmp_path / "world")


def load(root, name="fashioniq/train", **options):
    return image_triplets.load(name, root, progress=False, **options)


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    put(path, content)


# --- rows and numbers -------------------------------------------------------------------------------------------


def test_a_group_is_its_splits_one_after_the_other(place):
    found = load(place)
    ids = [query.id for query in found.queries]
    assert ids == ["dress/0000", "dress/0001", "shirt/0000", "shirt/0001", "toptee/0000"] and len(found) == 5
    annotated = [(a, texts, b) for listed in ROWS.values() for a, b, texts in listed]
    rows = [found.query(row) for row in range(5)]
    assert [(row.reference, [*row.texts], row.targets[0]) for row in rows] == annotated
    assert not found.bad and found.format == "fashioniq/train"
    alone = load(place, "fashioniq/shirt/train")
    assert [query.id for query in alone.queries] == ids[2:4] and alone.format == "fashioniq/shirt/train"


def test_pictures_with_the_same_pixels_share_a_number(place):
    found = load(place)
    assert found.names == ("A", "B", "C", "D", "F")  # E is B; what no row names is not looked at
    assert found.reference.tolist() == [0, 2, 1, 0, 4] and found.target.tolist() == [1, 3, 2, 1, 0]
    assert [file.name for file in found.files] == [f"{name}.png" for name in found.names]
    assert found.reference.dtype == found.target.dtype == np.int64


def test_what_counts_as_the_same_picture(tmp_path):
    for name, options in {"png": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"}}.items():
        draw(tmp_path / f"0.{name}", 7, **options)
    draw(tmp_path / "1.png", 8)
    with Image.open(tmp_path / "0.png") as image:
        clear = image.convert("RGBA")
    clear.putalpha(17)
    clear.save(tmp_path / "clear.png")  # an encoder sees it without its alpha
    flat = np.random.default_rng(7).integers(0, 256, (43, 40, 3), dtype=np.uint8)
    Image.fromarray(flat.reshape(40, 43, 3)).save(tmp_path / "reshaped.png")  # the same bytes in another size
    marks = {path.name: image_triplets.pixels(path) for path in tmp_path.iterdir()}
    same = {name for name, mark in marks.items() if mark == marks["0.png"]}
    assert same == {"0.png", "0.bmp", "0.tiff", "clear.png"}
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:900])
    assert not any(image_triplets.pixels(tmp_path / "cut.png")) and any(marks["0.png"])


def test_limit_takes_the_first_triplets_and_looks_at_no_other_picture(place):
    (place / "FashionIQ/images/F.png").unlink()
    found = load(place, limit=3)
    assert len(found) == 3 and found.names == ("A", "B", "C", "D") and not found.bad
    assert load(place, limit=4).fingerprint != found.fingerprint


# --- the fingerprint --------------------------------------------------------------------------------------------


def test_the_fingerprint_covers_texts_pairs_and_pixels(place):
    before = load(place).fingerprint
    captions = place / "FashionIQ/captions/cap.dress.train.json"
    for edit in (
        lambda rows: rows[0].update(captions=["is red", "is longer"]),
        lambda rows: rows[0].update(target="C"),
        lambda rows: rows[0].update(candidate="B", target="A"),
        lambda rows: rows.reverse(),
    ):
        kept = captions.read_text()
        change(captions, edit)
        assert load(place).fingerprint != before
        captions.write_text(kept)
    assert load(place).fingerprint == before
    draw(place / "FashionIQ/images/C.png", 99)
    assert load(place).fingerprint != before


def test_the_fingerprint_does_not_cover_names_places_and_compression(place, tmp_path):
    before = load(place)
    renamed = {name: {"A": "X"}.get(name, name) for name in PICTURES}
    rows = {c: [(renamed[a], renamed[b], texts) for a, b, texts in listed] for c, listed in ROWS.items()}
    other = fashioniq(tmp_path / "elsewhere", rows)
    (other / "FashionIQ/images/A.png").rename(other / "FashionIQ/images/X.png")
    for category in rows:
        change(other / f"FashionIQ/image_splits/split.{category}.train.json", lambda names: names.append("X"))
        change(
            other / "world.json",
            lambda world, c=category: world["counts"]["fashioniq"][c]["train"].update(gallery=len(PICTURES) + 2),
        )
    draw(other / "FashionIQ/images/C.png", PICTURES["C"], compress_level=9)
    assert load(other).fingerprint == before.fingerprint and load(other).names[0] == "X"


# --- what is left out -------------------------------------------------------------------------------------------


def test_missing_and_damaged_pictures_are_refused_or_left_out_with_their_triplets(place):
    folder = place / "FashionIQ/images"
    (folder / "D.png").unlink()
    with pytest.raises(
        InputError, match=r"1 triplets cannot be used \(1 missing\), first dress/0001: D \(missing, .*D"
    ):
        load(place)
    (folder / "B.png").write_bytes((folder / "B.png").read_bytes()[:700])
    with pytest.raises(InputError, match=r"60\.00% of the source, 50\.00% are allowed; .* raise train\.allow_bad"):
        load(place, allow_bad=0.5)
    found = load(place, allow_bad=0.6)
    assert [query.id for query in found.queries] == ["shirt/0001", "toptee/0000"]
    assert found.bad.counts == {"missing": 1, "damaged": 2} and found.names == ("A", "E", "F")
    assert "shirt/0000: B (damaged" in str(found.bad)
    said = source.left_out("fashioniq/train", found)
    assert said.startswith("fashioniq/train: 2 rows are used, left out are 2 damaged, 1 missing: dress/0001: D")


def test_nothing_left_is_refused(place):
    for path in (place / "FashionIQ/images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="holds no triplets"):
        load(place, allow_bad=1.0)


def test_other_counts_than_published_are_refused_or_said(place):
    change(place / "FashionIQ/captions/cap.toptee.train.json", lambda rows: rows.append(rows[0]))
    with pytest.raises(InputError, match=r"queries: expected 1, found 2.*data\.allow_missing=true"):
        load(place)
    found = load(place, allow_missing=True)
    assert len(found) == 6 and found.format.endswith("not the official counts (queries: expected 1, found 2)")


@pytest.mark.parametrize("name", ["cirr/val", "fashioniq/dress/test", "circo/val", "cirr", "train.jsonl", "cirr/trian"])
def test_only_train_splits_are_learnt_from(name, place):
    with pytest.raises(InputError, match=r"no split with human triplets to learn from; (did you mean|known:)"):
        load(place, name)


def test_a_world_without_train_splits_is_told_how_to_get_them(place):
    with pytest.raises(InputError, match=r"cap\.rc2\.train\.json.*from `cir world build .*world`"):
        load(place, "world/cirr/train")
    (place / "world.json").unlink()
    with pytest.raises(InputError, match=r"cap\.rc2\.train\.json.*README\.md$"):
        load(place, "cirr/train")


def test_a_dataset_may_lie_elsewhere(place, tmp_path):
    found = load(tmp_path, roots={"fashioniq": str(place), "cirr": "nowhere"})
    assert found.fingerprint == load(place).fingerprint


# --- the look at the pixels -------------------------------------------------------------------------------------


def test_a_look_is_kept_and_an_interrupted_one_goes_on(place, tmp_path, monkeypatch):
    expected, honest = load(place), image_triplets.pixels
    looked = []

    def dying(file):
        looked.append(file.name)
        if len(looked) > 4:
            raise KeyboardInterrupt
        return honest(file)

    monkeypatch.setattr(image_triplets, "CHUNK", 2)
    monkeypatch.setattr(image_triplets, "pixels", dying)
    with pytest.raises(KeyboardInterrupt):
        load(place, keep=tmp_path / "kept")
    (part,) = (tmp_path / "kept").glob("*.part")
    assert part.stat().st_size == 4 * 16
    part.write_bytes(part.read_bytes() + b"torn")  # killed while it wrote
    looked.clear()
    found = load(place, keep=tmp_path / "kept")
    assert sorted(looked) == ["E.png", "F.png"]
    assert (found.fingerprint, found.names) == (expected.fingerprint, expected.names)
    looked[:] = ["none"] * 5  # from now on every look dies
    assert load(place, keep=tmp_path / "kept").names == expected.names
    draw(place / "FashionIQ/images/C.png", 99)
    with pytest.raises(KeyboardInterrupt):
        load(place, keep=tmp_path / "kept")


def test_a_disk_that_does_not_take_it_is_one_line(place, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(image_triplets.os, "replace", full)
    with pytest.raises(RunError, match=r"no space left.*is the disk full"):
        load(place, keep=tmp_path / "kept")


# --- one door ---------------------------------------------------------------------------------------------------


def test_the_door_of_all_sources(place, tmp_path):
    found = source.load(
        "image_triplets", "fashioniq/train", root=place, keep=tmp_path, limit=2, allow_bad=0.1, progress=False
    )
    assert len(found) == 2 and found.fingerprint == load(place, limit=2).fingerprint
    assert source.sample("image_triplets", found) == "A and ['is red', 'is long'] ask for B"
    assert "image_triplets" in source.KINDS
    with pytest.raises(InputError, match="did you mean 'image_triplets'"):
        source.load("image_triplet", "fashioniq/train")


# --- a training text --------------------------------------------------------------------------------------------


def four_way(texts, draw):
    """The rule written out, as it is described."""
    one, two = (text.strip(".?, ") for text in texts)
    if draw < 0.25:
        return f"{one.capitalize()} and {two}"
    if draw < 0.5:
        return f"{two.capitalize()} and {one}"
    return one.capitalize() if draw < 0.75 else two.capitalize()


@pytest.mark.parametrize("texts", [("Is RED.", " has a Hood, "), ("", "is long"), ("same", "same")])
def test_two_captions_become_one_text_in_four_ways(texts):
    for draw in np.linspace(0, 1, 41)[:-1].tolist():
        assert training_text(texts, draw) == four_way(texts, draw)
    assert training_text(texts, 0.1) == JOINERS["capital_first"](texts)[0]  # the text of validation is one of them


def test_a_single_text_stays_as_annotated():
    assert {training_text((" Same Animal. ",), draw) for draw in (0.0, 0.3, 0.6, 0.9)} == {" Same Animal. "}
    with pytest.raises(InputError, match="has no text"):
        training_text((), 0.5)


def test_every_way_is_drawn_equally_often_and_by_row_and_step():
    """A resumed run, and one shared by processes, draws what the whole batch does: by (seed, step, row)."""
    rows = [(f"first {row}", f"second {row}") for row in range(4000)]

    def drawn(step, start, stop):
        draws = StepRandom(3, step, start, stop, len(rows)).uniform("caption").tolist()
        return [training_text(texts, draw) for texts, draw in zip(rows[start:stop], draws, strict=True)]

    whole = drawn(5, 0, 4000)
    assert whole == drawn(5, 0, 1000) + drawn(5, 1000, 1500) + drawn(5, 1500, 4000) != drawn(6, 0, 4000)
    ways = Counter((text.split()[0], " and " in text) for text in whole)
    assert len(ways) == 4 and all(abs(count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for count in ways.values())
