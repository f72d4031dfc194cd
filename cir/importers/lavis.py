"""BLIP-2's retrieval model and SPRC's, as LAVIS saves them, turned into folders `cir.backbones.load` reads.

LAVIS leaves weights that were frozen out of its files: `blip2_pretrained.pth` and `blip2_pretrained_vitL.pth` hold no
vision tower, which is a file of its own (`eva_vit_g.pth`, `clip_vit_L.pth`); `blip2_finetune_coco.pth` and SPRC's files
are whole. Weights keep the precision they are stored in and go from file to file one by one, so that neither the
source (memory-mapped) nor the target is ever held whole; the self-test loads the result once, in float32.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cir import backbones
from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.importers import lavis_keys as keys
from cir.importers import output
from cir.importers.containers import load
from cir.importers.lavis_check import Plain
from cir.importers.lavis_files import BERT, save_weights, vocabulary, write_vocabulary
from cir.methods import build, checkpoint
from cir.schema import Prompt

FORMATS = {"lavis": "BLIP-2 in LAVIS's layout", "sprc": "SPRC's BLIP-2 (Bai et al., ICLR 2024)"}
"""What is imported here, by its name on the command line."""
PASSED_OVER = frozenset({"config", "epoch", "optimizer", "scaler"})
"""Keys of LAVIS's and SPRC's files that are left behind: the state of training."""
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "BlipImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""LAVIS's `blip_image_eval`: squashed to a square, bicubic, normalised by CLIP's constants."""
TOLERANCE = 1e-4
"""Largest difference from the plain run that an import survives, as a share of the largest value."""


@dataclass(frozen=True)
class Source:
    """The weights of one file by LAVIS's name, as stored, and what the file held besides."""

    path: Path
    key: str
    """Where in the file they lay; empty for a bare state dict."""
    tensors: dict[str, Tensor]
    passed_over: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, keys.Shape]:
        """The weights' shapes."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def stored(self) -> str:
        """What they are stored as."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()}
        return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def import_file(
    path: Path, out: Path, format: str = "lavis", *, vision: Path | None = None, tokenizer: str = ""
) -> tuple[str, ...]:
    """Import a file of LAVIS or SPRC as a folder; returns what was found and written, as lines to show.

    `lavis` makes a backbone's folder of `out`, `sprc` a checkpoint of method `sprc` with the backbone in
    `out/backbone`. `vision` is the file of the vision tower where `path` does not hold one, `tokenizer` a folder or Hub
    id with BERT's vocabulary, to which LAVIS adds `[DEC]`. Nothing is left at `out` when it fails. Raises `InputError`
    for what cannot be read, is incomplete, holds more than is known, or computes anything else once converted.
    """
    source = with_tower(read(path), vision)
    prompts = source.tensors.get("prompt_tokens")
    if (prompts is not None) != (format == "sprc"):
        found, other = ("holds", "sprc") if prompts is not None else ("has no", "lavis")
        raise InputError(f"{path}: {found} prompt_tokens; import it as {other}: cir import {other} FILE --out DIR")
    seen, read_off = sizes(source)
    if prompts is not None and prompts.shape != (1, read_off.queries, read_off.width):
        raise InputError(
            f"{path}: prompt_tokens of {tuple(prompts.shape)}; expected {(1, read_off.queries, read_off.width)}"
        )
    words = vocabulary(tokenizer or BERT, read_off.words)
    ln_vision = "vision_model.post_layernorm" if seen.kind == "eva" else "post_layernorm"
    rules = [*keys.tower_rules(seen), *keys.qformer_rules(read_off, ln_vision)]
    dropped = [name for name in source.tensors if keys.LEFT_BEHIND.match(name)]
    keys.account(rules, source.shapes, {"temp", "prompt_tokens", *dropped}, str(path))
    lines = [
        f"{format}: {FORMATS[format]}, {len(source.tensors)} tensors"
        + (f" under {source.key!r}" if source.key else "")
        + f", kept as stored: {source.stored}",
        f"read: {keys.described(seen, read_off)}",
        *_notes(seen),
        f"keys left behind: {', '.join([*source.passed_over, *_grouped(dropped)]) or 'none'}",
    ]
    with output.fresh(out) as folder:
        place = folder / "backbone" if format == "sprc" else folder
        place.mkdir(exist_ok=True)
        output.write_json(place / "config.json", keys.config(seen, read_off, float(source.tensors["temp"])))
        side = {"height": seen.side, "width": seen.side}
        output.write_json(place / "preprocessor_config.json", {**PREPROCESSOR, "size": side})
        write_vocabulary(place, words)
        save_weights(place / "model.safetensors", rules, source.tensors, str(path))
        origin: dict[str, Any] = {"format": format, "file": path.name, "digest": checkpoint.digest(path)}
        origin |= {"container": source.key, "dtype": source.stored, "passed_over": [*source.passed_over, *dropped]}
        if vision is not None:
            origin["vision"] = {"file": vision.name, "digest": checkpoint.digest(vision)}
        output.write_json(place / "import.json", origin)
        backbone = backbones.load(str(place), device="cpu", preprocess="targetpad" if format == "sprc" else "clip")
        lines.append(f"self-test: {self_test(backbone, source, seen, read_off)}")
        if format == "sprc":
            _write_sprc(folder, out, source, backbone, origin)
    return (*lines, f"written: {out}")


def recognised(path: Path) -> str:
    """Say which of `FORMATS` a file is in, by the names of its weights; empty for another, or no file of weights."""
    if not path.is_file() or not zipfile.is_zipfile(path):  # what torch does not map would be read twice
        return ""
    try:
        names = read(path).tensors
    except InputError:
        return ""
    if f"{keys.PRE}word_embeddings.weight" not in names:
        return ""
    return "sprc" if "prompt_tokens" in names else "lavis"


def read(path: Path) -> Source:
    """Read a file's one state dict, `module.` stripped: under any key (`model`, a class's name), or bare.

    Raises `InputError` for a file that holds none or several, something unknown besides, or weights that are no floats.
    """
    loaded = load(path)
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path}: expected a dictionary of tensors, found {type(loaded).__name__}")
    held = [str(k) for k, value in loaded.items() if k not in PASSED_OVER and _is_state(value)]
    key = held[0] if held else ""
    if len(held) > 1 or not (held or _is_state(loaded)):
        names = [str(k) for k in loaded][:5]
        raise InputError(
            f"{path}: expected one state dict, bare or under a key such as 'model'; found the keys {names}"
        )
    rest = [str(k) for k in loaded if k != key] if key else []
    unknown = [name for name in rest if name not in PASSED_OVER]
    if unknown:
        raise InputError(
            f"{path}: unexpected keys {unknown[:5]} beside {key!r}; known: {', '.join(sorted(PASSED_OVER))}"
        )
    tensors: dict[str, Tensor] = {}
    for raw, tensor in (loaded[key] if key else loaded).items():
        name = str(raw)
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name in tensors:
            raise InputError(f"{path}: {name} occurs twice, with and without `module.`")
        tensors[name] = tensor.detach()
    return Source(path, key, tensors, tuple(sorted(rest)))


def with_tower(source: Source, vision: Path | None) -> Source:
    """Add the vision tower's own file to weights that lack one; `InputError` where one is missing, or given twice.

    Of a released tower all blocks but the last are taken, as LAVIS does; what else the file holds is passed over.
    """
    whole = any(name.startswith(keys.TOWER) for name in source.tensors)
    language = [name for name in source.tensors if keys.LANGUAGE.match(name)]
    if language:
        raise InputError(
            f"{source.path}: holds a language model's weights ({language[0]}), so it generates text and cannot "
            "retrieve; expected the first stage's: blip2_pretrained.pth, blip2_pretrained_vitL.pth, "
            "blip2_finetune_coco.pth"
        )
    if whole and vision is not None:
        raise InputError(f"{source.path}: holds its vision tower; leave out --vision")
    if whole:
        return source
    if vision is None:
        raise InputError(
            f"{source.path}: holds no vision tower (LAVIS does not save what was frozen); name its file with --vision: "
            "eva_vit_g.pth, or clip_vit_L.pth for vitL"
        )
    apart = read(vision)
    named = {f"{keys.TOWER}{name}": tensor for name, tensor in apart.tensors.items()}
    own = replace(apart, tensors=named)
    seen = _tower(own)
    used = replace(seen, depth=keys.DEPTHS.get((seen.kind, seen.width), seen.depth))
    if seen.depth < used.depth:
        raise InputError(f"{vision}: {seen.depth} blocks of width {seen.width}; expected {used.depth} or more")
    taken = {name for rule in keys.tower_rules(used) for name in rule.sources}
    inside = tuple(f"{keys.BLOCKS[seen.kind]}{i}." for i in range(used.depth))
    strange = [n for n in named if n not in taken and (n.startswith(inside) or "rel_pos" in n)]
    if strange:
        raise InputError(f"{vision}: weights that BLIP-2's tower does not have, first {strange[:3]}; another model's?")
    left = _grouped(sorted(n.removeprefix(keys.TOWER) for n in named if n not in taken))
    tensors = {**source.tensors, **{name: named[name] for name in named if name in taken}}
    passed = (*source.passed_over, *(f"{vision.name}: {name}" for name in left))
    return replace(source, tensors=tensors, passed_over=passed)


def sizes(source: Source) -> tuple[keys.Tower, keys.QFormer]:
    """Read the sizes of both halves off the shapes; `InputError` unless they belong together."""
    seen, read_off = _tower(source), _qformer(source)
    if "temp" not in source.tensors or source.tensors["temp"].numel() != 1:
        raise InputError(f"{source.path}: temp is missing or no number; an incomplete file?")
    if seen.width != read_off.vision:
        raise InputError(
            f"{source.path}: a vision tower of width {seen.width}, but the Q-Former reads {read_off.vision}; "
            "eva_vit_g.pth goes with blip2_pretrained.pth, clip_vit_L.pth with blip2_pretrained_vitL.pth"
        )
    for what, width, head in (("vision tower", seen.width, seen.kind), ("Q-Former", read_off.width, "qformer")):
        if width % keys.HEAD[head]:
            raise InputError(f"{source.path}: a {what} {width} wide has no heads {keys.HEAD[head]} wide")
    return seen, read_off


def parts_of(state: Mapping[str, Tensor], origin: str = "state dict") -> dict[str, Tensor]:
    """Rename LAVIS's weights behind the vision tower to those of `cir.backbones.qformer.QFormerParts`, in float32.

    Other names are passed over, so that a wrapper's state dict can be given once its prefix is stripped. Raises
    `InputError`, naming the `origin`, where one of the parts is missing or of another shape.
    """
    source = Source(Path(origin), "", dict(state), ())
    rules = keys.qformer_rules(_qformer(source))
    taken = {name for rule in rules for name in rule.sources}
    keys.account(rules, source.shapes, [name for name in state if name not in taken], origin)
    return {name: tensor.detach().float() for name, tensor in converted(rules, state)}


def converted(rules: Iterable[keys.Rule], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the target, one by one."""
    for rule in rules:
        yield from zip(rule.targets, rule(tensors), strict=True)


@torch.no_grad()
def self_test(backbone: Backbone, source: Source, seen: keys.Tower, read_off: keys.QFormer) -> str:
    """Compare a converted backbone with the source's weights in plain torch, on a random picture and two random texts.

    Says the largest differences, as shares of the largest value; `InputError` where one is above `TOLERANCE`.
    """
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, seen.side, seen.side, generator=random)
    length = min(12, read_off.positions)
    ids = torch.randint(read_off.words, (2, length), generator=random)
    prompt = Prompt(ids.numpy(), torch.full((2, 1), -1).numpy(), torch.full((2,), length - 1).numpy())
    plain = Plain(source.tensors, seen, read_off)
    patches = backbone.encode_patches(pixels)
    both = patches.expand(2, -1, -1)
    pairs = {
        "vision tower": (patches, plain.patches(pixels)),
        "images": (backbone.encode_images(pixels), plain.image(patches)),
        "texts": (backbone.encode_text(prompt), plain.text(ids)),
        "matching": (backbone.match(both, prompt), plain.match(both, ids)),  # type: ignore[attr-defined]
    }
    shares = {name: float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for name, (a, b) in pairs.items()}
    shown = ", ".join(f"{name} {share:.1e}" for name, share in shares.items())
    if not all(share <= TOLERANCE for share in shares.values()):  # NaN fails
        raise InputError(f"{source.path}: the converted model computes something else: {shown}; damaged weights?")
    return f"differs from the source in plain torch by {shown} of the largest value ({TOLERANCE:.0e} is allowed)"


def _write_sprc(folder: Path, out: Path, source: Source, backbone: Backbone, origin: Mapping[str, Any]) -> None:
    """Write SPRC's method, which trains a copy of all behind the vision tower, beside the backbone it belongs to."""
    method = build("sprc", {}, backbone)
    state = {f"parts.{name}": tensor for name, tensor in parts_of(source.tensors, str(source.path)).items()}
    state["prompt_tokens"] = source.tensors["prompt_tokens"].float()
    state["temperature"] = source.tensors["temp"].float().reshape(())
    checkpoint.fill(method, state, str(source.path))
    home = str(out / "backbone")
    described = {**checkpoint.described(backbone), "name": home}
    recipe = checkpoint.recipe(method)
    checkpoint.write(folder, method.state_dict(), recipe, described, {"imported": dict(origin)})
    settings = {
        "name": out.name,
        "method": {"name": recipe["method"], **recipe["options"]},
        "backbone": {"name": home, "preprocess": "targetpad"},
        "prompt": {"join": "capital_first"},
    }
    (folder / output.SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False, width=120), encoding="utf-8")


def _tower(source: Source) -> keys.Tower:
    """Read the vision tower's sizes."""
    try:
        return keys.tower(source.shapes)
    except KeyError as error:
        raise InputError(f"{source.path}: {error.args[0]} is missing; neither EVA's ViT-g nor CLIP's ViT-L") from None
    except (ValueError, IndexError):
        raise InputError(f"{source.path}: not the shapes of a vision tower; a damaged file?") from None


def _qformer(source: Source) -> keys.QFormer:
    """Read the Q-Former's sizes."""
    try:
        return keys.qformer(source.shapes)
    except KeyError as error:
        raise InputError(f"{source.path}: {error.args[0]} is missing; not BLIP-2's retrieval model") from None
    except (ValueError, IndexError):
        raise InputError(f"{source.path}: not the shapes of a Q-Former; a damaged file?") from None


def _notes(seen: keys.Tower) -> list[str]:
    """Say what differs between the versions of LAVIS."""
    if seen.kind == "clip" and seen.depth == keys.PYPI_DEPTH:
        return [
            f"note: {seen.depth} blocks, as salesforce-lavis 1.0.2 from PyPI builds it; LAVIS's repository and SPRC "
            f"have {keys.DEPTHS['clip', 1024]}"
        ]
    return []


def _is_state(value: Any) -> bool:
    """Tell a dictionary of floating-point tensors; LAVIS saves one counter among them."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(tensor, Tensor) and (tensor.is_floating_point() or str(name).endswith("position_ids"))
            for name, tensor in value.items()
        )
    )


def _grouped(names: Sequence[str]) -> list[str]:
    """Shorten names that begin with the same two parts to that, with how many there are."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [f"{head}.* ({len(group)})" if len(group) > 1 else group[0] for head, group in groups.items()]
