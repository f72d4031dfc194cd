"""Reading a submission file that anybody wrote: whatever is wrong with its bytes is a problem, never a crash."""

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir.errors import InputError
from cir.submissions.keys import printable
from cir.submissions.problems import Problem, Rule

LARGEST = 64 * 2**20
"""Bytes beyond which a file is not even read: a dozen times what any server takes."""

JSON = "RFC 8259, which the servers' JSON readers follow"
EMPTY = Rule("empty", "a file with content", JSON)
ENCODING = Rule("encoding", "UTF-8 without a byte order mark", JSON)
SYNTAX = Rule("json", "one JSON document", JSON)
SHAPE = Rule("object", "one flat object from query id to list of images", "both servers' instructions")
TWICE = Rule("duplicate-key", "every key once", "JSON readers keep the last of two equal keys and say nothing")
HUGE = Rule("size", f"a file under {LARGEST // 2**20} MiB", "no server takes more")

_UNQUOTED = re.compile(r"([{,]\s*)(-?\d+)(\s*:)")
_ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it lies on disk, and what could be read of it; `content` is None where there is no object in it."""

    path: Path
    size: int
    sha256: str
    content: dict[str, Any] | None
    problems: tuple[Problem, ...]


def read(path: Path) -> Upload:
    """Read a file; only one that is not there, or cannot be opened, is an InputError."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            return Upload(path, size, sha256(path), None, (Problem(HUGE, f"the file has {size:,} bytes"),))
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a submission, one JSON object") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a submission file") from None
    problems: list[Problem] = []
    text = _decoded(raw, problems)
    content = None if text is None else _parsed(text, problems)
    return Upload(path, len(raw), hashlib.sha256(raw).hexdigest(), content, tuple(problems))


def sha256(path: Path) -> str:
    """Digest a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _decoded(raw: bytes, problems: list[Problem]) -> str | None:
    """Turn bytes into text; what is no text at all gives None."""
    for magic, kind in _ARCHIVES.items():
        if raw.startswith(magic):
            problems.append(Problem(SYNTAX, f"the file is a {kind} archive; unpack it and upload the .json inside"))
            return None
    if not raw.strip():
        problems.append(Problem(EMPTY, "the file is empty"))
        return None
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if raw.startswith(mark):
            problems.append(
                Problem(ENCODING, f"the file begins with a byte order mark of {encoding}; write it without")
            )
            return raw.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {raw[error.start]:#04x} at offset {error.start:,}"
        problems.append(Problem(ENCODING, f"{where} is not UTF-8; open the file for writing with encoding='utf-8'"))
        return raw.decode("utf-8", errors="replace")


def _parsed(text: str, problems: list[Problem]) -> dict[str, Any] | None:
    """Parse the one object; keys that lack their quotes are named, quoted, and read on."""
    twice: Counter[str] = Counter()

    def pairs(listed: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        counted = Counter(key for key, _ in listed)
        twice.clear()  # the outermost object comes last
        twice.update({key: count for key, count in counted.items() if count > 1})
        return dict(listed)

    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        quoted, changed = _UNQUOTED.subn(r'\1"\2"\3', text)
        try:
            content = json.loads(quoted if changed else "", object_pairs_hook=pairs)
        except (ValueError, RecursionError):
            problems.append(Problem(SYNTAX, _told(text, error)))
            return None
        problems.append(Problem(SYNTAX, 'keys stand without quotes; write str(int(id)), in double quotes: "12063"'))
    if not isinstance(content, dict):
        problems.append(Problem(SHAPE, f"the file holds {_kind(content)}"))
        return None
    problems += [
        Problem(TWICE, f"key {key!r} stands {count} times in the file; only its last list is read", printable(key))
        for key, count in twice.items()
    ]
    return content


def _told(text: str, error: Exception) -> str:
    """Explain why a text is not JSON, with the usual cause."""
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error})"
    if text.lstrip()[:1] in "{[" and text.rstrip()[-1:] not in "}]":
        lines = text.count("\n") + 1
        return f"the file ends in the middle (line {lines:,}, {text[-20:]!r}): it was cut; write or copy it again"
    hint = ""
    if "'" in text[:200] and '"' not in text[:200]:
        hint = "; single quotes: written with str() or print() where json.dump() is needed"
    elif error.msg.startswith("Extra data"):
        hint = "; several documents in one file: put all queries into one object"
    return f"not JSON: {error.msg}, line {error.lineno:,}, column {error.colno:,}{hint}"


def _kind(value: Any) -> str:
    """Name what stands where an object should."""
    if isinstance(value, list):
        return f"a list of {len(value):,} entries; expected an object with a key per query"
    return f"{type(value).__name__} {str(value)[:40]!r}; expected an object with a key per query"
