"""Concepts: class names, their features, and the ones closest to an image (SEARLE, arXiv:2303.15247, section 3)."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from cir import progress
from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods.base import Store
from cir.prompts import tokenize

COLUMN = "DisplayName"
"""The column of a class list in CSV: Open Images' name for it."""

TEMPLATES = (
    "This is a photo of a {}", "This photo contains a {}", "A photo of a {}",
    "This is an illustration of a {}", "This illustration contains a {}", "An illustrations of a {}",
    "This is a sketch of a {}", "This sketch contains a {}", "A sketch of a {}",
    "This is a diagram of a {}", "This diagram contains a {}", "A diagram of a {}",
    "A {}", "We see a {}", "{}",
    "We see a {} in this photo", "We see a {} photo", "{} photo",
    "We see a {} in this image", "We see a {} image", "{} image",
    "We see a {} in this illustration", "We see a {} illustration", "{} illustration",
)  # fmt: skip
"""The 24 sentences of PALAVRA (arXiv:2204.01694) that SEARLE uses, the plural of one of them included."""

ASKED = tuple(tuple(template.split("{}")) for template in TEMPLATES)
"""The templates as pieces around one slot."""

BLOCK = 64
"""Concepts encoded at once, times 24 sentences: fixed, because a batch's shape reaches the last bits."""


def read_names(path: str | Path) -> list[str]:
    """Read concepts: one per line, or a CSV's column DisplayName; stripped, each once, in order."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() != ".csv":
                names: Iterable[str] = file.read().splitlines()
            else:
                reader = csv.DictReader(file)
                if COLUMN not in (reader.fieldnames or ()):
                    raise InputError(f"{path}: no column {COLUMN}; found {', '.join(reader.fieldnames or ())}")
                names = [row[COLUMN] or "" for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not readable as a list of concepts ({error})") from None
    listed = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not listed:
        raise InputError(f"{path}: holds no concepts; expected one per line")
    return listed


def concept_features(backbone: Backbone, names: Sequence[str], store: Store) -> Float32[np.ndarray, "c d"]:
    """Encode each concept in the 24 sentences: unit vectors, averaged, normalised again (SEARLE, section 3).

    Kept in `store`, computed in blocks with a progress bar.
    """

    def compute(start: int) -> Iterator[np.ndarray]:
        with progress.bar(len(names), "encoding concepts") as shown:
            shown.skip(start)
            for first in range(start, len(names), BLOCK):
                block = names[first : first + BLOCK]
                yield ensemble(backbone, block).cpu().numpy()
                shown.advance(len(block))

    listed = hashlib.sha256(json.dumps([list(names), TEMPLATES]).encode()).hexdigest()[:16]
    known = (listed, getattr(backbone.tokenizer, "fingerprint", ""))
    return store.rows("concepts", known, len(names), compute)


@torch.no_grad()
def ensemble(backbone: Backbone, names: Sequence[str]) -> Float[Tensor, "c d"]:
    """Encode a few concepts; see `concept_features`."""
    rows = [[template.format(f" {name} ")] for name in names for template in TEMPLATES]
    units = F.normalize(backbone.encode_text(tokenize(backbone.tokenizer, rows, "cut")).float(), dim=-1)
    return F.normalize(units.unflatten(0, (len(names), len(TEMPLATES))).mean(dim=1), dim=-1)


@torch.no_grad()
def closest(images: Float[Tensor, "n d"], others: Float[Tensor, "c d"], k: int) -> Int64[np.ndarray, "n k"]:
    """Return the `k` vectors (all, where there are fewer) of highest cosine for each image, best first.

    Ties go to the earlier vector. Cosines are float64 on a grid of 2^-26, so that equal vectors tie in any batch.
    """
    left, right = (F.normalize(x.detach().cpu().double(), dim=-1) for x in (images, others))
    count = len(right)
    earlier = torch.arange(count - 1, -1, -1)
    found = []
    for block in left.split(1024):
        keys = (block @ right.T * 2**26).round().long() * count + earlier  # all different: one order, no ties
        found.append(keys.topk(min(k, count), dim=1).indices)
    return torch.cat(found).numpy() if found else np.empty((0, min(k, count)), dtype=np.int64)


def assigned(
    images: Callable[[Sequence[int]], Float[Tensor, "b d"]],
    count: int,
    others: Float[np.ndarray, "c d"],
    k: int,
    store: Store,
    kind: str,
    identity: Sequence[str],
) -> Int64[np.ndarray, "n k"]:
    """Do what `closest` does for `count` images read in blocks, through the store."""
    right = torch.from_numpy(np.array(others, dtype=np.float32))

    def compute(start: int) -> Iterator[np.ndarray]:
        with progress.bar(count, f"finding {kind}") as shown:
            shown.skip(start)
            for first in range(start, count, 1024):
                rows = range(first, min(first + 1024, count))
                yield closest(images(rows), right, k).astype(np.int32)
                shown.advance(len(rows))

    return np.asarray(store.rows(kind, (*identity, str(k)), count, compute), dtype=np.int64)
