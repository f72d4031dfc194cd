"""One published file in, one folder of this project out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cir.backbones.bare import computation, text_tower, try_tower
from cir.errors import InputError, nearest
from cir.importers import clip4cir, containers, formats, lavis, output, projectors, spn, tokens
from cir.importers.containers import Container
from cir.importers.formats import FORMATS, Format
from cir.methods import METHODS, checkpoint, token_table
from cir.methods.base import PseudoWordMethod
from cir.methods.shape import BackboneShape

PREPROCESS = ("clip", "targetpad")


@dataclass(frozen=True)
class Imported:
    """What an import found and wrote, as lines to show."""

    format: str
    out: Path
    lines: tuple[str, ...]


def import_checkpoint(
    path: Path,
    out: Path,
    format: str = "auto",
    *,
    backbone: str = "",
    preprocess: str = "",
    base: Path | None = None,
    tokenizer: str = "",
    vision: Path | None = None,
) -> Imported:
    """Read a published checkpoint and write it as a folder that `cir.load` and `cir evaluate` take.

    `format` is a name in `FORMATS`, or `auto`; `backbone` and `preprocess` override what the format and the shapes
    say; `base` is the checkpoint folder of the projector that an RTD text tower goes with, `tokenizer` a folder or hub
    id with the tokenizer of imported encoders, `vision` the file of the vision tower where LAVIS's holds none. Nothing
    is left at `out` when it fails. Raises `InputError` for what cannot be read, is incomplete, or needs foreign code to
    load.
    """
    if preprocess and preprocess not in PREPROCESS:
        raise InputError(f"preprocess {preprocess!r} is unknown; {nearest(preprocess, PREPROCESS)}")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    format = (lavis.recognised(path) or format) if format == "auto" else format
    if format in lavis.FORMATS:
        if backbone or preprocess or base is not None:
            raise InputError(f"{path}: format {format} takes no --backbone, --preprocess or --base")
        return Imported(format, out, lavis.import_file(path, out, format, vision=vision, tokenizer=tokenizer))
    if vision is not None:
        raise InputError(f"{path}: format {format} takes no --vision; only lavis has a vision tower apart")
    if format == "spn":
        if preprocess or base is not None:
            raise InputError(f"{path}: format spn takes no --preprocess or --base")
        return Imported(format, out, spn.import_file(path, out, backbone=backbone, tokenizer=tokenizer))
    if format != "auto":
        formats.named(format)
    if format == "phrases" or (format == "auto" and path.suffix in (".pkl", ".pickle")):
        return _phrases(path, out)
    if format == "oti" or (format == "auto" and tokens.is_tokens(path)):
        return _tokens(path, out, backbone, preprocess)
    container = containers.read(path)
    made = formats.choose(format, container.tensors, path)
    if base is not None and made.name != "rtd":
        raise InputError(f"{path}: {made.what} takes no --base; only an RTD text tower goes with a projector")
    if tokenizer and made.name != "clip":
        raise InputError(f"{path}: {made.what} takes no --tokenizer; only encoders have one")
    if made.name == "clip":
        if backbone or preprocess:
            raise InputError(f"{path}: holds encoders, a backbone of their own; leave --backbone and --preprocess out")
        return _clip(container, out, tokenizer)
    if made.name == "clip4cir":
        return _combiner(container, out, backbone, preprocess)
    if made.name == "rtd":
        return _tower(container, out, backbone, preprocess, base)
    return _projector(made, container, out, backbone, preprocess)


def _projector(made: Format, container: Container, out: Path, backbone: str, preprocess: str) -> Imported:
    """Import phi, IM2TEXT or Context-I2W's projector."""
    path = container.path
    state = projectors.renamed(made, container.tensors)
    found = projectors.widths(made.holds, state, path)
    name = formats.backbone_for(made, found.width, path, backbone)
    method = projectors.as_method(made, found, state, name, path)
    tested = projectors.self_test(method, found, path)
    shape = BackboneShape(found.width, found.word_width, vision_width=found.vision_width, name=name)
    with output.fresh(out) as folder:
        used = preprocess or made.preprocess
        recipe = checkpoint.recipe(method)
        checkpoint.save(folder, method, shape, {"imported": _origin(made, container)})
        output.settings(folder, made, out.name, name, used, {"name": recipe["method"], **recipe["options"]})
    return _report(made, container, out, name, used, (_padding(made, preprocess), f"self-test: {tested}"))


def _tower(container: Container, out: Path, backbone: str, preprocess: str, base: Path | None) -> Imported:
    """Import RTD's text tower together with the projector it goes with."""
    made, path = FORMATS["rtd"], container.path
    if base is None:
        raise InputError(f"{path}: an RTD text tower goes with a projector; import that first and name it with --base")
    own = _projector_at(base)
    name = backbone or own["backbone"]["name"]
    # Old transformers saved a counter of positions with the weights.
    counters = tuple(key for key in container.tensors if key.endswith("position_ids"))
    state = {key: tensor for key, tensor in container.tensors.items() if key not in counters}
    container = replace(container, passed_over=(*container.passed_over, *counters))
    how = computation(name, own["backbone"]["word_width"])
    try_tower(text_tower(state, how, str(path)), str(path))
    _same_widths(state["text_projection.weight"].shape, own["backbone"], path, base)
    below = checkpoint.read_weights(base / checkpoint.WEIGHTS, own["weights"])
    weights = {f"text.{key}": tensor for key, tensor in state.items()} | {f"base.{k}": t for k, t in below.items()}
    recipe = {"method": "rtd", "options": {}, "base": {key: own[key] for key in ("method", "options")}}
    used = preprocess or made.preprocess
    with output.fresh(out) as folder:
        origin = {**_origin(made, container), "base": {"folder": base.name, "details": own.get("details", {})}}
        checkpoint.write(folder, weights, recipe, {**own["backbone"], "name": name}, {"imported": origin})
        output.settings(folder, made, out.name, name, used, {"name": "rtd"})
    heads = f"{how.heads} heads, {how.activation}" + ("" if how.known else " (inferred)")
    tested = f"self-test: two rows through the tower ({heads}) gave finite vectors"
    return _report(made, container, out, name, used, (f"base: {own['method']} from {base}", tested))


def _clip(container: Container, out: Path, tokenizer: str) -> Imported:
    """Import a CLIP as a folder of encoders."""
    made, used = FORMATS["clip"], tokenizer or clip4cir.CLIP_TOKENIZER
    lines = clip4cir.import_clip(container.tensors, container.path, out, used, _origin(made, container))
    return _report(made, container, out, str(out), made.preprocess, lines)


def _combiner(container: Container, out: Path, backbone: str, preprocess: str) -> Imported:
    """Import CLIP4Cir's Combiner."""
    made = FORMATS["clip4cir"]
    used, origin = preprocess or made.preprocess, _origin(made, container)
    lines = clip4cir.import_combiner(made, container.tensors, container.path, out, backbone, used, origin)
    return _report(made, container, out, backbone, used, lines)


def _projector_at(base: Path) -> dict[str, Any]:
    """Read the description of the projector an RTD tower goes with."""
    own = checkpoint.describe(base)
    kind = METHODS.get(own["method"])
    if kind is None or kind.wraps or not issubclass(kind, PseudoWordMethod):
        raise InputError(
            f"{base}: holds {own['method']}, which maps no feature to a pseudo-word; name a projector's folder"
        )
    return own


def _same_widths(tower: Sequence[int], projector: Mapping[str, Any], path: Path, base: Path) -> None:
    """Compare a tower's projection (d, w) with the widths a projector is for."""
    if tuple(tower) != (projector["width"], projector["word_width"]):
        raise InputError(
            f"{path}: a tower of joint width {tower[0]} and word width {tower[1]}, but {base} projects from "
            f"{projector['width']} to {projector['word_width']}; another backbone's?"
        )


def _tokens(path: Path, out: Path, backbone: str, preprocess: str) -> Imported:
    """Import a folder of OTI tokens."""
    made = FORMATS["oti"]
    table, names, details = tokens.read_tokens(path)
    width = table.shape[1]
    name = formats.backbone_for(made, width, path, backbone)
    used = preprocess or made.preprocess
    shape = BackboneShape(width, width, name=name)
    with output.fresh(out) as folder:
        origin = {"format": "oti", "file": path.name, "licence": made.licence, **details}
        token_table.write(folder, table, names, checkpoint.described(shape), {"imported": origin})
        output.settings(folder, made, out.name, name, used, {"name": "oti"})
    lines = (
        f"oti: {len(names):,} pseudo-words of width {width} from {details['table']}",
        f"backbone: {name or _unknown()}",
        f"preprocess: {used}",
        f"written: {out}",
    )
    return Imported("oti", out, lines)


def _phrases(path: Path, out: Path) -> Imported:
    """Import SEARLE's phrases."""
    goal, concepts, phrases = tokens.import_phrases(path, out)
    return Imported("phrases", goal, (f"phrases: {phrases:,} of {concepts:,} concepts", f"written: {goal}"))


def _origin(made: Format, container: Container) -> dict[str, Any]:
    """Keep where a checkpoint comes from."""
    return {
        "format": made.name,
        "file": container.path.name,
        "digest": checkpoint.digest(container.path),
        "container": container.key,
        "dtype": container.dtype,
        "passed_over": list(container.passed_over),
        "licence": made.licence,
    }


def _report(
    made: Format, container: Container, out: Path, backbone: str, preprocess: str, more: tuple[str, ...]
) -> Imported:
    """Say what was imported, key by key where keys were left behind."""
    lines = (
        f"{made.name}: {made.what}, {len(container.tensors)} tensors"
        + (f" under {container.key!r}" if container.key else "")
        + f", stored as {container.dtype}, kept as float32",
        f"keys left behind: {', '.join(container.passed_over) or 'none'}",
        f"backbone: {backbone or _unknown()}",
        f"preprocess: {preprocess}",
        *(line for line in more if line),
        f"written: {out}",
    )
    return Imported(made.name, out, lines)


def _padding(made: Format, given: str) -> str:
    """Warn where the preprocessing is a guess."""
    if made.name == "phi" and not given:
        return "note: the file does not say whose phi it is; SEARLE's was trained with --preprocess targetpad"
    return ""


def _unknown() -> str:
    return "none of this width is known; name one with backbone.name=... or cir.load(..., backbone=...)"
