"""YAML in, checked dataclasses out: files of settings that people write by hand, read layer by layer.

Unknown keys, wrong types and resolvers are an `InputError` of one line, with file, dotted key and the nearest known
key. Resolvers (`${oc.env:HOME}`) could read the machine and are refused; `${seed}` names another key.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cir.errors import InputError, nearest

Layer = tuple[str, dict[str, Any]]
"""Where it came from, for messages, and what it says."""
Kind = TypeVar("Kind")


def build(
    kind: type[Kind], layers: Sequence[Layer], origin: str, prepare: Callable[..., dict[str, Any]] | None = None
) -> Kind:
    """Merge layers over a dataclass's defaults, later ones win; `prepare(merged, layer)` may adapt a layer before."""
    merged = OmegaConf.structured(kind)
    for source, layer in layers:
        _refuse_unknown(layer, kind, source)
        _refuse_resolvers(layer, source)
        try:
            merged = OmegaConf.merge(merged, layer if prepare is None else prepare(merged, layer))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise InputError(_line(error, source)) from None
    try:
        OmegaConf.resolve(merged)
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise InputError(_line(error, origin)) from None
    assert isinstance(built, kind)
    return built


def inherited(path: Path) -> list[Layer]:
    """Read a file and the one it inherits, oldest first."""
    own = read(path)
    if "inherit" not in own:
        return [(str(path), own)]
    parent = own.pop("inherit")
    if not isinstance(parent, str):
        raise InputError(f"{path}: inherit: expected the path of one YAML file, got {parent!r}")
    inherited = read(path.parent / parent)
    if "inherit" in inherited:
        raise InputError(f"{path}: inherits {parent}, which inherits itself; inherit once, never twice")
    return [(str(path.parent / parent), inherited), (str(path), own)]


def read(path: Path) -> dict[str, Any]:
    """Read one YAML file as a plain mapping; interpolations stay as text."""
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        known = [str(other.relative_to(folder)) for other in folder.glob("*.y*ml")]
        hint = f"; {nearest(path.name, known)}" if known else ""
        raise InputError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a YAML file, found a folder") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        if isinstance(error, PermissionError):
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        raise InputError(f"{path}: not a mapping of keys: {error}") from None
    if not isinstance(content, DictConfig):
        raise InputError(f"{path}: expected a mapping of keys such as `method:`, found a list")
    plain = OmegaConf.to_container(content, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def override(item: str) -> dict[str, Any]:
    """Parse one `dotted.key=value`, the value as YAML."""
    key, equals, text = item.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"override {item!r}: expected key=value, for example train.steps=100")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"override {item!r}: value is not valid YAML: {' '.join(str(error).split())}") from None
    assert isinstance(value, dict)
    nested = value["value"]
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _fields(kind: Any) -> dict[str, Any]:
    return {item.name: item for item in dataclasses.fields(kind)}


def _refuse_unknown(layer: Any, kind: Any, origin: str, prefix: str = "") -> None:
    """Name the first key no dataclass declares; free-form sections (`method`, `data.roots`) are not looked into."""
    known = _fields(kind)
    for key, value in layer.items():
        if key not in known:
            raise InputError(f"{origin}: {prefix}{key}: unknown key; {nearest(str(key), known)}")
        inner = known[key].type
        if not dataclasses.is_dataclass(inner):
            continue
        if not isinstance(value, Mapping):
            raise InputError(f"{origin}: {prefix}{key}: expected a section of keys, got {value!r}")
        _refuse_unknown(value, inner, origin, f"{prefix}{key}.")


def _strings(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a nested container with its dotted key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{prefix}.{index}")
    elif isinstance(value, str):
        yield prefix, value


def _refuse_resolvers(layer: Mapping[str, Any], origin: str) -> None:
    """Allow `${seed}`, refuse `${oc.env:HOME}`: a config from a stranger must not read the machine."""
    for key, text in _strings(layer):
        if re.search(r"\$\{[^}]*:", text):
            raise InputError(f"{origin}: {key}: resolvers are not allowed, got {text!r}; write the value itself")


def _line(error: Exception, origin: str) -> str:
    """Turn OmegaConf's many-line message into one line with the dotted key."""
    key = getattr(error, "full_key", None)
    reason = str(error).strip().split("\n")[0]
    return f"{origin}: {key}: {reason}" if key else f"{origin}: {reason}"
