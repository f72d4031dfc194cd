"""Webdataset shards: index and seek against unpacking, damage named and counted, bounded memory."""

import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from cir.data import pictures, shard_index, shards
from cir.data.strings import Strings
from cir.errors import InputError


def png(seed, kind="PNG"):
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (20, 22, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def sample(key, seed, text=None, kind="png"):
    members = [(f"{key}.{kind}", png(seed, {"jpg": "JPEG"}.get(kind, kind.upper())))]
    if text is not None:
        members.insert(seed % 2, (f"{key}.txt", text.encode()))
    return members


@pytest.fixture
def place(tmp_path):
    """Three shards of 4, 5 and 3 samples."""
    seed = 0
    for shard, count in enumerate((4, 5, 3)):
        members = []
        for number in range(count):
            members += sample(f"{shard}/{number:05d}", seed, f"picture {seed}", ("png", "jpg", "webp")[seed % 3])
            seed += 1
        write(tmp_path / "shards" / f"s-{shard:03d}.tar", members)
    return tmp_path


def unpacked(folder):
    """Every sample, by unpacking all shards with the standard library."""
    rows = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as file:
            content = {member.name: file.extractfile(member).read() for member in file if member.isfile()}
        for key in dict.fromkeys(name.split(".")[0] for name in content):
            image = next(content[f"{key}.{end}"] for end in ("png", "jpg", "webp") if f"{key}.{end}" in content)
            rows.append((f"{path.name}/{key}", content[f"{key}.txt"].decode(), image))
    return rows


def listed(found):
    rows = []
    for row in range(len(found)):
        with found.open(row) as image:
            rows.append((found.name(row), found.text(row), np.asarray(image)))
    return rows


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("pattern", ["shards", "shards/s-{000..002}.tar", "shards/s-{000,001,002}.tar"])
def test_every_sample_is_what_unpacking_gives(place, pattern, keep):
    found = pictures.load(place / pattern, keep=place / "keep" if keep else None)
    assert found.format == "webdataset" and found.blocks == (4, 5, 3) and not found.bad
    for (name, text, image), (expected, caption, content) in zip(
        listed(found), unpacked(place / "shards"), strict=True
    ):
        assert (name, text) == (expected, caption)
        assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(content))))


def test_one_shard_and_part_of_them(place):
    assert len(pictures.load(place / "shards/s-001.tar")) == 5
    assert pictures.load(place / "shards", limit=6).blocks == (4, 2)
    whole = pictures.load(place / "shards")
    assert pictures.load(place / "shards/s-{000..001}.tar").fingerprint != whole.fingerprint


def test_the_index_is_made_once_and_again_for_a_shard_that_changed(place, monkeypatch):
    keep = place / "keep"
    first = pictures.load(place / "shards", keep=keep)
    scanned = []
    honest = shard_index.scan
    monkeypatch.setattr(shards, "scan", lambda file: (scanned.append(file.name), honest(file))[1])
    again = pictures.load(place / "shards", keep=keep)
    assert scanned == [] and again.fingerprint == first.fingerprint and again.stamp == first.stamp
    assert isinstance(again.entries[0], np.memmap)
    write(place / "shards/s-001.tar", sample("1/x", 50, "new"))
    changed = pictures.load(place / "shards", keep=keep)
    assert scanned == ["s-001.tar"] and changed.fingerprint != first.fingerprint and changed.blocks == (4, 1, 3)


def test_a_killed_index_goes_on_with_the_next_shard(place, monkeypatch):
    honest, scanned = shard_index.scan, []

    def dying(file):
        scanned.append(file.name)
        if len(scanned) == 2:
            raise KeyboardInterrupt
        return honest(file)

    monkeypatch.setattr(shards, "scan", dying)
    with pytest.raises(KeyboardInterrupt):
        pictures.load(place / "shards", keep=place / "keep")
    found = pictures.load(place / "shards", keep=place / "keep")
    assert scanned == ["s-000.tar", "s-001.tar", "s-001.tar", "s-002.tar"]
    assert found.fingerprint == pictures.load(place / "shards").fingerprint


def test_json_captions_long_names_and_odd_members(tmp_path):
    long = "deep/" * 40 + "k" * 120
    members = [
        ("__notes", b"no sample"),
        *sample(long, 0),
        (f"{long}.json", json.dumps({"caption": "long one", "width": 3}).encode()),
        *sample("b", 1, "plain"),
        ("b.json", b'{"caption": "not this one"}'),
        ("c.seg.png", png(3)),
    ]
    write(tmp_path / "s.tar", members)
    with pytest.raises(InputError, match=r"1 samples cannot be used \(1 without image\), first s\.tar/c: .*seg\.png"):
        pictures.load(tmp_path / "s.tar")
    found = pictures.load(tmp_path / "s.tar", allow_bad=0.5)
    assert [found.text(0), found.text(1)] == ["long one", "plain"]
    assert found.name(0) == f"s.tar/{long}"


def test_a_truncated_shard_is_named_and_its_loss_counted(place):
    path = place / "shards/s-001.tar"
    with tarfile.open(path) as file:
        third = file.getmembers()[5].offset_data + 30  # inside the third sample
    path.write_bytes(path.read_bytes()[:third])
    with pytest.raises(InputError, match=r"in a truncated shard\), first .*s-001\.tar: ends inside .*samples lost"):
        pictures.load(place / "shards")
    found = pictures.load(place / "shards", allow_bad=0.5)
    assert found.blocks == (4, 2, 3) and found.bad.counts == {"in a truncated shard": 1}
    with pytest.raises(InputError, match="are allowed"):
        pictures.load(place / "shards", allow_bad=0.05)


def test_a_shard_without_its_end_and_one_with_a_damaged_header(place):
    path = place / "shards/s-000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        members = file.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    path.write_bytes(whole[:end])
    with pytest.raises(InputError, match=r"truncated shard.*s-000\.tar: no end-of-archive mark"):
        pictures.load(place / "shards")
    damaged = bytearray(whole)
    damaged[members[4].offset + 10] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"corrupt shard.*s-000\.tar: no member's header at byte"):
        pictures.load(place / "shards")
    assert pictures.load(place / "shards", allow_bad=0.5).blocks[0] == 1  # the second may have lost a member
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"truncated shard.*s-000\.tar: empty file"):
        pictures.load(place / "shards")


def test_missing_shards_and_wrong_ranges(place):
    with pytest.raises(InputError, match=r"2 of 5 shards are missing: .*s-003\.tar, .*s-004\.tar"):
        pictures.load(place / "shards/s-{000..004}.tar")
    with pytest.raises(InputError, match="a range that rises"):
        pictures.load(place / "shards/s-{5..1}.tar")


def test_a_damaged_picture_inside_a_shard_is_left_out(place):
    path = place / "shards/s-002.tar"
    with tarfile.open(path) as file:
        member = next(m for m in file if m.name.endswith(".png"))
    content = bytearray(path.read_bytes())
    content[member.offset_data + 40 : member.offset_data + member.size] = bytes(member.size - 40)
    path.write_bytes(content)
    found = pictures.load(place / "shards", allow_bad=0.1, keep=place / "keep")
    assert found.bad.counts == {"damaged": 1} and found.blocks == (4, 5, 2) and len(found) == 11


def test_a_shard_cut_after_it_was_indexed_is_an_error_when_read(place):
    found = pictures.load(place / "shards")
    path = place / "shards/s-002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match=r"s-002\.tar: .* was the shard cut"):
        found.open(10)


def test_an_index_of_many_members_stays_small(tmp_path):
    """100,000 members, 50,000 samples of 40 bytes each: the index is a file, memory holds next to nothing of it."""
    count, parts = 50_000, 4
    block = bytearray()
    for number in range(count // parts):
        for name in (f"{number:07d}.jpg", f"{number:07d}.txt"):
            info = tarfile.TarInfo(name)
            info.size = 2
            block += info.tobuf(tarfile.USTAR_FORMAT) + b"xx".ljust(512, b"\0")
    for part in range(parts):
        (tmp_path / f"{part}.tar").write_bytes(bytes(block) + bytes(1024))
    del block
    first = pictures.load(tmp_path, keep=tmp_path / "keep")
    assert len(first) == count and first.text(count - 1) == "xx" and first.name(12_501) == "1.tar/0000001"
    del first
    tracemalloc.start()
    found = pictures.load(tmp_path, keep=tmp_path / "keep")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == count and peak < 1 << 19


def test_strings_hold_what_they_are_given():
    texts = ["", "ä", "longer text", ""]
    found = Strings.of(texts)
    assert list(found) == texts and found[-2] == "longer text" and found[1:3] == texts[1:3]
    assert found.fingerprint != Strings.of(["ä", "", "longer text", ""]).fingerprint
