from pathlib import Path

import pytest
from PIL import Image

from cir.data.images import ImageFiles, check, open_image
from cir.errors import InputError
from cir.schema import Benchmark, Query


def build(root, count=15, missing=(), corrupt=(), truncated=()):
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = tuple(f"i{n}" for n in range(count))
    for n, name in enumerate(names):
        file = root / "images" / f"{name}.png"
        if name in missing:
            continue
        Image.effect_noise((40, 30), 50).convert("RGB" if n % 2 else "L").save(file)
        if name in corrupt:
            file.write_bytes(b"<html>404</html>")
        if name in truncated:
            file.write_bytes(file.read_bytes()[:200])
    queries = tuple(
        Query(f"q{n}", f"i{n}", ("text",), (f"i{n + 1}",), (f"i{n}", f"i{n + 1}", "i14")) for n in range(0, 6, 2)
    )
    paths = {name: f"images/{name}.png" for name in names}
    return Benchmark("cirr/val", "1", "val", "cirr", queries, names, root, paths)


def test_a_complete_benchmark_comes_back_as_it_is(tmp_path):
    bench, seen = build(tmp_path), []
    assert check(bench) is bench
    assert check(bench, progress=lambda names: (seen.append(name) or name for name in names)) is bench
    assert seen == list(bench.gallery)


def test_bad_files_are_listed_ten_of_them_with_the_total(tmp_path):
    bench = build(tmp_path, missing=[f"i{n}" for n in range(11)], corrupt=["i12"])
    with pytest.raises(InputError, match=r"12 of 15 images .* i9 \(images/i9.png: missing\) and 2 more") as raised:
        check(bench)
    assert "i10" not in str(raised.value) and "allow_missing" in str(raised.value)
    with pytest.raises(InputError, match=r"1 of 15 images .* i3 \(images/i3.png: not an image"):
        check(build(tmp_path / "other", corrupt=["i3"]))


def test_allowed_to_miss_they_leave_with_their_queries_and_a_stamp(tmp_path):
    bench = check(build(tmp_path, missing=["i3"], corrupt=["i14"]), allow_missing=True)
    assert len(bench.gallery) == 13 and set(bench.paths) == set(bench.gallery)
    assert [q.id for q in bench.queries] == ["q0", "q4"]  # i3 was the target of q2
    assert bench.queries[0].candidates == ("i0", "i1")  # i14 was one of its candidates
    assert bench.stamps == ("2 images and 1 queries left out (missing or corrupt)",)


def test_images_keep_their_mode_and_are_decoded_in_full(tmp_path):
    bench = build(tmp_path, truncated=["i5"])
    assert check(bench) is bench  # the header of a truncated file is whole
    images = ImageFiles.of(bench)
    assert (images.open("i0").mode, images.open("i1").mode) == ("L", "RGB")
    assert images.open("i1").getpixel((39, 29)) is not None and len(images) == 15 and "i5" in list(images)
    with pytest.raises(InputError, match=r"image 'i5': .*i5.png: corrupt"):
        images.open("i5")
    with pytest.raises(InputError, match="'i99': unknown"):
        images.open("i99")


def test_missing_and_foreign_files_name_id_and_path(tmp_path):
    build(tmp_path, missing=["i1"], corrupt=["i2"])
    with pytest.raises(InputError, match=r"image 'i1': .*i1.png: missing"):
        open_image(tmp_path, "images/i1.png", "i1")
    with pytest.raises(InputError, match=r"image 'images/i2.png': .*not an image"):
        open_image(tmp_path, "images/i2.png")


@pytest.mark.parametrize("path", ["../i0.png", "/i0.png", "images/../../i0.png"])
def test_no_path_leaves_the_root(tmp_path, path):
    build(tmp_path / "in")
    Image.new("RGB", (4, 4)).save(tmp_path / "i0.png")
    with pytest.raises(InputError, match="leaves the dataset folder"):
        open_image(tmp_path / "in", path)


def test_links_inside_the_root_may_point_anywhere(tmp_path):
    bench = build(tmp_path / "in", missing=["i0"])
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere.png")
    Path(tmp_path / "in/images/i0.png").symlink_to(tmp_path / "elsewhere.png")
    assert check(bench) is bench and ImageFiles.of(bench).open("i0").size == (4, 4)
