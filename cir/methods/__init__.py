"""Methods of composed image retrieval, by name; adding one is a file, its test and two lines here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from cir.backbones.base import Backbone
from cir.errors import InputError, nearest
from cir.methods.base import Batches, Images, Method, NoOptions, NoStore, PseudoWordMethod, Store
from cir.methods.baselines import ImageOnly, Product, Slerp, Sum, TextOnly
from cir.methods.clip_finetune import ClipFinetune
from cir.methods.combiner import Combiner
from cir.methods.context_i2w import ContextI2W
from cir.methods.lincir import LinCIR
from cir.methods.oti import OTI
from cir.methods.pic2word import Pic2Word
from cir.methods.rtd import RTD
from cir.methods.searle import SEARLE
from cir.methods.spn import SPN
from cir.methods.sprc import SPRC
from cir.methods.sprc_rerank import SPRCRerank

__all__ = [
    "METHODS", "Batches", "Images", "Method", "NoOptions", "NoStore", "PseudoWordMethod", "Store", "build", "name_of",
]  # fmt: skip

METHODS: dict[str, type[Method]] = {
    "image_only": ImageOnly,
    "text_only": TextOnly,
    "sum": Sum,
    "product": Product,
    "slerp": Slerp,
    "clip_finetune": ClipFinetune,
    "combiner": Combiner,
    "context_i2w": ContextI2W,
    "lincir": LinCIR,
    "oti": OTI,
    "pic2word": Pic2Word,
    "rtd": RTD,
    "searle": SEARLE,
    "spn": SPN,
    "sprc": SPRC,
    "sprc_rerank": SPRCRerank,
}


def build(
    name: str, options: Mapping[str, Any], backbone: Backbone, base: Method | None = None, *, seed: int = 0
) -> Method:
    """Build a method on a backbone, on its device, in evaluation mode; `seed` sets the initial weights.

    `options` holds the method's settings (`name` is ignored, so that a config's `method:` section fits); numbers
    may be text, as YAML reads `1e-4`. `base` is the method a wrapper wraps. Raises `InputError` for unknown names,
    unknown options (naming the nearest) and values of another type.
    """
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown; {nearest(name, METHODS)}")
    kind = METHODS[name]
    if kind.wraps and base is None:
        raise InputError(f"{name} wraps another method; give it one as base (a checkpoint folder)")
    if base is not None and not kind.wraps:
        raise InputError(f"{name} does not wrap another method; leave base out")
    settings = _options(name, kind.Options, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(settings, backbone, base).to(backbone.device).eval()


def name_of(method: Method) -> str:
    """Find the name a method is listed under; one that is not listed goes by its class."""
    return next((name for name, kind in METHODS.items() if kind is type(method)), type(method).__qualname__)


def _options(name: str, kind: type, given: Mapping[str, Any]) -> Any:
    """Fill a dataclass of options, converting and checking by the type of each default."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    values = {key: value for key, value in given.items() if key != "name"}
    for key, value in values.items():
        if key not in known:
            hint = nearest(key, known) if known else f"{name} has no options"
            raise InputError(f"method {name}: option {key!r} is unknown; {hint}")
        values[key] = _convert(f"method {name}: {key}", value, type(known[key].default))
    return kind(**values)


def _convert(what: str, value: Any, kind: type) -> Any:
    """Give a value the type of its default; text counts as a number where it reads as one."""
    if type(value) is kind:
        return value
    try:
        if kind in (int, float) and not isinstance(value, bool):
            number = float(value)
            if kind is float or number == int(number):
                return kind(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{what}: expected {kind.__name__}, got {value!r}")
