"""Looks at single files against decoding them, and what is kept of looks."""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir.doctor import kept as kept_file
from cir.doctor import look as look_file
from cir.doctor.kept import Looks
from cir.doctor.look import Look, look
from cir.errors import InputError


def noisy(format, side=24, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
        buffer, format, **options
    )
    return buffer.getvalue()


def decodes(content):
    """The definition of a whole image: Pillow decodes it."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_every_truncation_is_judged_as_decoding_judges_it(tmp_path, format):
    content = noisy(format, side=12)
    cuts = sorted({*range(1, len(content), max(1, len(content) // 60)), *range(len(content) - 20, len(content) + 1)})
    judged = []
    for cut in cuts:
        file = tmp_path / "x"
        file.write_bytes(content[:cut])
        found = look(file)
        assert found.size == cut and (not found.trouble) == decodes(content[:cut]), (cut, found)
        judged.append(not found.trouble)
    assert judged[-1] and not judged[0]
    assert look(file)[2:4] == (12, 12)


def test_the_quick_look_decodes_only_where_the_end_is_not_marked(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(look_file, "decode", lambda image: decoded.append(image.format) or image.load())
    for format in ("JPEG", "PNG"):
        (tmp_path / format).write_bytes(noisy(format))
        assert look(tmp_path / format).decoded is False
    assert decoded == []
    (tmp_path / "more").write_bytes(noisy("JPEG") + bytes(500))  # a phone's appendix: whole, and told by decoding
    assert look(tmp_path / "more") == look(tmp_path / "more")._replace(trouble="", decoded=True)
    assert look(tmp_path / "PNG", pixels=True).decoded and decoded == ["JPEG", "JPEG", "PNG"]


def test_what_cannot_be_read(tmp_path):
    assert look(tmp_path / "gone") == Look(-1, 0) and look(tmp_path / "gone").gone
    assert "cannot be read" in look(tmp_path).trouble  # a folder
    (tmp_path / "bomb").write_bytes(noisy("PNG")[:16] + b"\x7f\xff\xff\xff\x7f\xff\xff\xff" + noisy("PNG")[24:])
    assert look(tmp_path / "bomb").trouble


# --- what is kept ----------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(noisy("PNG", side=4 + number % 3))
    return [f"{number}.png" for number in range(40)]


@pytest.fixture
def opened(monkeypatch):
    """Which files are looked at, in order; the looks are real."""
    names = []

    def counted(file, pixels=False):
        names.append(file.name)
        return look(file, pixels)

    monkeypatch.setattr(kept_file, "look", counted)
    return names


def over(root, cache, files, pixels=False, fresh=False):
    return Looks(root, cache, fresh).over(files, pixels, progress=False)


def test_a_file_is_looked_at_once(tmp_path, pictures, opened):
    first = over(tmp_path, tmp_path / "cache", pictures)
    assert sorted(opened) == sorted(pictures) and first == {name: look(tmp_path / name) for name in pictures}
    opened.clear()
    assert over(tmp_path, tmp_path / "cache", pictures) == first and opened == []
    assert over(tmp_path, tmp_path / "cache", pictures, fresh=True) == first and len(opened) == 40


def test_a_changed_file_is_looked_at_again(tmp_path, pictures, opened):
    over(tmp_path, tmp_path / "cache", pictures)
    state = (tmp_path / "3.png").stat()
    (tmp_path / "3.png").write_bytes(noisy("PNG", side=9))
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:40])
    os.utime(tmp_path / "7.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    (tmp_path / "9.png").unlink()
    opened.clear()
    found = over(tmp_path, tmp_path / "cache", pictures)
    assert sorted(opened) == ["3.png", "7.png", "9.png"]
    assert found["3.png"].width == 9 and found["7.png"].trouble and found["9.png"].gone


def test_what_was_not_well_is_looked_at_again(tmp_path, pictures, opened):
    (tmp_path / "3.png").write_bytes(b"")
    for _ in range(2):
        opened.clear()
        assert over(tmp_path, tmp_path / "cache", pictures)["3.png"].trouble == "empty, 0 bytes"
    assert opened == ["3.png"]


def test_a_quick_look_does_not_do_for_decoding_but_the_other_way_round(tmp_path, pictures, opened):
    over(tmp_path, tmp_path / "cache", pictures)
    over(tmp_path, tmp_path / "cache", pictures, pixels=True)
    assert len(opened) == 80
    assert all(found.decoded for found in over(tmp_path, tmp_path / "cache", pictures).values()) and len(opened) == 80


def test_a_line_cut_short_is_passed_over(tmp_path, pictures, opened):
    looks = Looks(tmp_path, tmp_path / "cache")
    first = looks.over(pictures, False, progress=False)
    content = looks.file.read_bytes()
    looks.file.write_bytes(content[: len(content) - 9])  # inside the last line
    opened.clear()
    assert over(tmp_path, tmp_path / "cache", pictures) == first and opened == ["39.png"]
    opened.clear()
    assert over(tmp_path, tmp_path / "cache", pictures) == first and opened == []
    looks.file.write_bytes(b'{"a": 1}\n[1]\nnull\n' + content)
    assert over(tmp_path, tmp_path / "cache", pictures) == first and opened == []


def test_a_cache_that_cannot_be_written(tmp_path, pictures):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="not writable"):
        over(tmp_path, tmp_path / "file" / "cache", pictures)


KILLED = """
import os, signal, sys
from pathlib import Path
from cir.doctor import kept

root, cache, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
kept.CHUNK, kept.TASK, seen, real = 8, 2, [], kept.look

def look(file, pixels=False):
    seen.append(file)
    if len(seen) > last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(file, pixels)

kept.look = look
kept.Looks(root, cache).over([f"{n}.png" for n in range(40)], False, progress=False)
"""


def test_a_killed_check_goes_on_from_where_it_was(tmp_path, pictures, opened):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(tmp_path / "cache"), "20"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == -9, done.stderr
    found = over(tmp_path, tmp_path / "cache", pictures)
    assert sorted(opened) == sorted(pictures[16:])  # two chunks of eight had been written down
    assert found == over(tmp_path, tmp_path / "another", pictures)
