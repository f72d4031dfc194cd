"""Scaled positives: triplets made of captioned pictures, two captions and a template making the text between them.

Feng et al., ACM MM 2024, arXiv:2404.11317: a multimodal language model captions the training images, each
image is paired with another one, and the text says the one caption in place of the other. Files have the layouts of
CIRR's and FashionIQ's annotations, with the keys the authors' generated files have.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from cir.errors import InputError, nearest
from cir.files import replace_file

TEMPLATES = {"cirr": (0, 1), "fashioniq": (2,)}
"""The templates (`text`) of each layout, one of which is drawn per triplet."""
SEED = 42
"""The authors'."""
BLOCK = 512
"""Pictures ranked at once."""


def text(template: int, reference: str, target: str) -> str:
    """Say by a template what changes from one caption to another.

    >>> [text(number, "a cat", "two dogs") for number in range(3)]
    ['two dogs instead of a cat', 'Unlike a cat, I want two dogs', 'two dogs']
    """
    made = (f"{target} instead of {reference}", f"Unlike {reference}, I want {target}", target)
    if not 0 <= template < len(made):
        raise InputError(f"template {template}: expected a number from 0 to {len(made) - 1}")
    return made[template]


def make(
    captions: Mapping[str, str],
    layout: str,
    *,
    references: Sequence[str] | None = None,
    templates: Sequence[int] | None = None,
    features: Float[np.ndarray, "n d"] | None = None,
    window: tuple[int, int] | None = None,
    count: int = 0,
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Make one triplet per reference (none: of every captioned picture), as rows of an annotation file.

    The partner is drawn among all other pictures, or, with the `features` of the pictures in the order of `captions`,
    among those from place window[0] up to window[1] of its similarity ranking, itself left out: the authors take places
    10,000 to 15,000 on CIRR, to 20,000 on FashionIQ, deliberately unlike. `count` keeps a random part, 0 for all.
    Raises `InputError` for an unknown layout, references without a caption, and a window that is empty or too wide.
    """
    if layout not in TEMPLATES:
        raise InputError(f"layout {layout!r} is unknown; {nearest(layout, TEMPLATES)}")
    names = list(captions)
    if len(names) < 2:
        raise InputError(f"expected the captions of at least two pictures, got {len(names)}")
    place = {name: i for i, name in enumerate(names)}
    chosen = names if references is None else list(dict.fromkeys(references))
    absent = [name for name in chosen if name not in place]
    if absent:
        raise InputError(f"{len(absent):,} references have no caption, first {absent[:3]}")
    rng = np.random.default_rng(seed)
    rows = np.array([place[name] for name in chosen], dtype=np.int64)
    partners = _any(rows, len(names), rng) if features is None else _unlike(rows, features, window, rng)
    used = np.array(TEMPLATES[layout] if templates is None else templates, dtype=np.int64)
    drawn = used[rng.integers(len(used), size=len(rows))]
    kept = np.arange(len(rows)) if not 0 < count < len(rows) else np.sort(rng.permutation(len(rows))[:count])
    return [_row(layout, number, names[rows[i]], names[partners[i]], captions, int(drawn[i]))
            for number, i in enumerate(kept.tolist())]  # fmt: skip


def read_captions(path: Path) -> dict[str, str]:
    """Read a JSON object of captions by picture id; `InputError` for anything else, and for empty captions."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); expected captions by picture id") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{path}: expected an object of captions by picture id")
    blank = [name for name, caption in found.items() if not caption.strip()]
    if blank:
        raise InputError(f"{path}: {len(blank):,} captions are empty, first {blank[:3]}")
    return found


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write an annotation file whole or not at all."""
    replace_file(path, json.dumps(list(rows), indent=1, ensure_ascii=False).encode("utf-8"))


def _any(rows: Int64[np.ndarray, " n"], total: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Draw a partner for each picture, uniformly among the others."""
    return (rows + rng.integers(1, total, size=len(rows))) % total


def _unlike(
    rows: Int64[np.ndarray, " n"],
    features: Float[np.ndarray, "m d"],
    window: tuple[int, int] | None,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " n"]:
    """Draw a partner for each picture from a window of its ranking by cosine; equally similar ones keep their order."""
    first, last = window or (0, len(features) - 1)
    if not 0 <= first < last <= len(features) - 1:
        raise InputError(
            f"window {first} to {last}: expected places from 0 to {len(features) - 1:,}, the other pictures"
        )
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    places = rng.integers(first, last, size=len(rows))
    found = np.empty_like(rows)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        scores = unit[rows[part]] @ unit.T
        scores[np.arange(len(scores)), rows[part]] = -np.inf  # itself comes last
        order = np.argsort(-scores, axis=1, kind="stable")
        found[part] = order[np.arange(len(scores)), places[part]]
    return found


def _row(
    layout: str, number: int, reference: str, target: str, captions: Mapping[str, str], template: int
) -> dict[str, Any]:
    """Lay a triplet out as the authors' files do."""
    said = text(template, captions[reference], captions[target])
    if layout == "fashioniq":
        pair = {"caption1": captions[reference], "caption2": captions[target]}
        return {"candidate": reference, "target": target, "captions": [said], **pair}
    return {"pairid": number, "reference": reference, "target_hard": target, "caption": said, "img_set": {}}
