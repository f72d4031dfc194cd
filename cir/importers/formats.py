"""What is published, how to tell it apart, and how each was meant to be used.

Preprocessing, prompt and join belong to a checkpoint: a projector trained on padded pictures and asked in another
sentence gives other numbers. The table holds what the authors' evaluation does.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cir.errors import InputError, nearest

THAT, COMMA = "a photo of $ that {text}", "a photo of $ , {text}"
B32, B16, L14 = "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14"
H14, G14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
BY_WIDTH = {512: (B32, B16), 768: (L14,), 1024: (H14,), 1280: (G14,)}
"""Backbones of this literature by joint width; at 1024 and 1280 the weights are LAION's."""
HINTS = {
    r"b[-_]?32|base[-_]?32|patch32": B32,
    r"b[-_]?16|base[-_]?16|patch16": B16,
    r"l[-_]?14|large": L14,
    r"h[-_]?14|huge": H14,
    r"g[-_]?14|giga": G14,
}
"""What file names say about the backbone, as patterns between other letters."""
NON_COMMERCIAL = "cc-by-nc-4.0"


@dataclass(frozen=True)
class Format:
    """One kind of published checkpoint; `method` is empty for what is no method of its own."""

    name: str
    what: str
    method: str
    holds: str
    """`phi`, `im2text`, `context`, `tower`, `clip`, `combiner` (told apart by their keys), `tokens` or `phrases`."""
    preprocess: str = "clip"
    template: str = THAT
    join: str = "both_orders"
    licence: str = ""
    """Licence of the authors' release, as a Hub identifier; empty where the file alone does not tell."""


FORMATS: dict[str, Format] = {
    made.name: made
    for made in (
        Format("searle", "SEARLE's phi", "searle", "phi", preprocess="targetpad", licence=NON_COMMERCIAL),
        Format("lincir", "LinCIR's phi", "lincir", "phi", licence=NON_COMMERCIAL),
        Format("phi", "phi of one's own training", "lincir", "phi"),
        Format(
            "pic2word", "Pic2Word's IM2TEXT", "pic2word", "im2text", "clip", COMMA, "second_and_first", "apache-2.0"
        ),
        Format(
            "context-i2w",
            "Context-I2W's projector",
            "context_i2w",
            "context",
            "clip",
            COMMA,
            "second_and_first",
            "apache-2.0",
        ),
        Format("rtd", "RTD's text tower", "rtd", "tower", licence=NON_COMMERCIAL),
        Format("clip", "a CLIP under OpenAI's names", "", "clip", preprocess="targetpad"),
        Format(
            "clip4cir",
            "CLIP4Cir's Combiner",
            "combiner",
            "combiner",
            preprocess="targetpad",
            join="capital_first",
            licence="mit",
        ),
        Format("oti", "SEARLE's OTI tokens", "", "tokens", preprocess="targetpad", licence=NON_COMMERCIAL),
        Format("phrases", "SEARLE's phrases", "", "phrases"),
    )
}
"""Everything `cir import` reads, by the name on the command line; `auto` chooses among them."""


def detect(keys: Iterable[str], path: Path) -> Format:
    """Tell by its parameter names what a state dict holds; whose phi it is, by the file's name."""
    holds = holding(keys, path)
    if holds == "phi":
        name = path.name.lower()
        return FORMATS["searle" if "searle" in name else "lincir" if "lincir" in name else "phi"]
    return next(known for known in FORMATS.values() if known.holds == holds)


def holding(keys: Iterable[str], path: Path) -> str:
    """Say what the parameter names stand for; `InputError` names the first ones where they stand for nothing known."""
    names = sorted(keys)
    signs = {
        "tower": r"text_model\.",
        "clip": r"visual\.|token_embedding\.",
        "combiner": r"dynamic_scalar\.",
        "context": r"to_c\.|W_R\.|VT_Extractor\.",
        "im2text": r"fc_out\.",
        "phi": r"layers\.6\.weight$",
    }
    for holds, sign in signs.items():
        if any(re.match(sign, name) for name in names):
            return holds
    raise InputError(f"{path}: parameter names {names[:4]} are of no known format ({', '.join(FORMATS)})")


def choose(name: str, keys: Iterable[str], path: Path) -> Format:
    """Take the format that is asked for, if the file holds what it says; `auto` detects it."""
    names = list(keys)
    if name == "auto":
        return detect(names, path)
    chosen = named(name)
    found = holding(names, path)
    if name == "clip4cir" and found == "clip":
        return FORMATS["clip"]  # the other of CLIP4Cir's two files
    if chosen.holds != found:
        fitting = [known.name for known in FORMATS.values() if known.holds == found]
        raise InputError(f"{path}: not {chosen.what}; its parameter names are those of {' or '.join(fitting)}")
    return chosen


def named(name: str) -> Format:
    """Look a format up by name."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is unknown; {nearest(name, ['auto', *FORMATS])}")
    return FORMATS[name]


def backbone_for(made: Format, width: int, path: Path, given: str = "") -> str:
    """Name the backbone a checkpoint of a joint width belongs to: as given, as the file's name says, or the only one.

    Empty for widths no published backbone has. Raises `InputError` where two have it and nothing says which.
    """
    if given:
        return given
    candidates = BY_WIDTH.get(width, ())
    hinted = [name for sign, name in HINTS.items() if re.search(rf"(?<![a-z])({sign})(?![a-z0-9])", path.stem.lower())]
    fitting = [name for name in hinted if name in candidates]
    if len(set(fitting)) == 1:
        return fitting[0]
    if len(candidates) > 1 and made.name in ("searle", "oti"):
        return B32  # the only backbone of this width SEARLE was released for
    if len(candidates) > 1:
        raise InputError(
            f"{path}: features of width {width} are those of {' and of '.join(candidates)}; say which with --backbone"
        )
    return candidates[0] if candidates else ""
