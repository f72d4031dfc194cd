"""What cells are called: names that people read, folders that file systems take, settings as a config nests them."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir.errors import InputError

LONGEST = 120
"""Characters of a folder's name; longer ones end in a digest."""


def name(settings: Mapping[str, Any]) -> str:
    """Name a cell of a grid by what varies.

    >>> name({"method.noise": "gaussian", "train.batch": 64, "base": "runs/lincir.yaml"})
    'method.noise=gaussian, train.batch=64, base=lincir'
    """
    return ", ".join(f"{key}={value(one)}" for key, one in settings.items())


def value(one: Any) -> str:
    """Write a setting's value; a YAML file goes by its stem.

    >>> value(0.001), value(True), value([64, 128]), value("runs/lincir.yaml"), value("")
    ('0.001', 'true', '[64, 128]', 'lincir', "''")
    """
    if isinstance(one, str):
        return Path(one).stem if one.endswith((".yaml", ".yml")) else one or "''"
    return json.dumps(one, ensure_ascii=False).replace('"', "")


def slug(name: str) -> str:
    """Turn a cell's name into a folder's name, character by character, so that other names give other folders.

    >>> slug("method.noise=gaussian, train.batch=64")
    'method.noise-gaussian_train.batch-64'
    """
    plain = re.sub(r"[^\w.+-]", "-", name.replace(", ", "_"), flags=re.ASCII)
    if not name.isascii() or len(plain) > LONGEST or not plain.strip("-."):
        return f"{plain[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return plain


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nest dotted keys as a config's sections; raises `InputError` where one key is a part of another.

    >>> nested({"train.steps": 600, "train.lr": 0.1, "seed": 1})
    {'train': {'steps': 600, 'lr': 0.1}, 'seed': 1}
    """
    result: dict[str, Any] = {}
    for key, one in settings.items():
        *sections, last = str(key).split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"{key}: {section} has a value of its own already")
        if last in place:
            raise InputError(f"{key}: stands there twice")
        place[last] = dict(one) if isinstance(one, dict) else one
    return result


def lookup(sections: Mapping[str, Any], key: str) -> Any:
    """Find a dotted key's value in nested sections, "" where there is none.

    >>> lookup({"train": {"steps": 600}}, "train.steps"), lookup({"train": {"steps": 600}}, "method.tau")
    (600, '')
    """
    place: Any = sections
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return ""
        place = place[part]
    return place
