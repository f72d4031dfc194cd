"""How an edit is said: forms of edits, the fields each one has, and lists of sentences for them.

A file of templates holds one `form: sentence` per line; blank lines and lines that begin with `#` are passed over. It
takes the place of the whole list below; a form without a sentence is not used.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cir.errors import InputError, nearest

FIELDS: dict[str, tuple[str, ...]] = {
    "replace": ("a", "b", "one_b"),
    "attribute": ("noun", "old", "new"),
    "remove": ("a",),
    "add": ("b", "one_b"),
    "count": ("noun", "old", "new"),
}
"""Forms and their fields: `a` is what was there, `b` what comes, both without article; `one_b` has one."""

TEMPLATES = """
replace: replace the {a} with {one_b}
replace: {one_b} instead of the {a}
replace: change the {a} to {one_b}
replace: swap the {a} for {one_b}
replace: has {one_b} rather than the {a}
replace: show {one_b} in place of the {a}
replace: turn the {a} into {one_b}
replace: not {a} but {b}
attribute: make the {noun} {new}
attribute: {new} {noun} instead of {old}
attribute: {new}, not {old}
attribute: change the {old} {noun} to {new}
attribute: the same with the {noun} {new}
remove: remove the {a}
remove: without the {a}
remove: no {a}
remove: take away the {a}
remove: leave out the {a}
add: add {one_b}
add: with {one_b}
add: put in {one_b}
add: also has {one_b}
add: include {one_b} as well
count: {new} {noun} instead of {old}
count: make it {new} {noun}
count: show {new} {noun}, not {old}
count: change the number of {noun} from {old} to {new}
"""
"""This project's own sentences."""

Templates = Mapping[str, Sequence[str]]


def parse(text: str, origin: str) -> Templates:
    """Read `form: sentence` lines; `InputError` naming the line for an unknown form or field."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        form, colon, sentence = (part.strip() for part in line.partition(":"))
        where = f"{origin}:{number}"
        if not colon or not sentence:
            raise InputError(f"{where}: expected 'form: sentence', got {line!r:.60}")
        if form not in FIELDS:
            raise InputError(f"{where}: form {form!r} is unknown; {nearest(form, FIELDS)}")
        for field in re.findall(r"{(.*?)}", sentence):
            if field not in FIELDS[form]:
                raise InputError(f"{where}: {form} has no field {{{field}}}; {nearest(field, FIELDS[form])}")
        if re.search(r"[{}]", re.sub(r"{.*?}", "", sentence)):
            raise InputError(f"{where}: unpaired brace in {sentence!r}")
        found.setdefault(form, []).append(sentence)
    if not found:
        raise InputError(f"{origin}: holds no templates; expected lines such as 'remove: without the {{a}}'")
    return found


def load(path: Path | None) -> Templates:
    """Read a file of templates, or take the list of this file."""
    return parse(TEMPLATES, "templates") if path is None else parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Read a small text file; `InputError` where that is not possible."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def fill(sentence: str, fields: Mapping[str, str]) -> str:
    """Put fields into a sentence, in one pass: braces in a caption stay what they are.

    >>> fill("swap the {a} for {one_b}", {"a": "cat", "b": "owl", "one_b": "an owl"})
    'swap the cat for an owl'
    """
    return re.sub(r"{(.*?)}", lambda m: fields[m[1]], sentence)
