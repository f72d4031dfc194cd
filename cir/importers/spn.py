"""SPN4CIR's published second stages (Feng et al., ACM MM 2024, arXiv:2404.11317): on SPRC, and on CLIP4Cir's sum.

Their files are `{"state_dict": ...}` of a wrapper around the host. SPRC's (`blip_model.*`) holds the whole first stage
and a second Q-Former for queries; it becomes a checkpoint of method `spn` for the backbone that SPRC's import wrote.
CLIP's (`clip.*`) is a CLIP whose text tower was trained on; it becomes a folder of encoders, to be used with `sum`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir import backbones
from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.importers import lavis, output
from cir.importers import lavis_keys as keys
from cir.importers.clip4cir import CLIP_TOKENIZER, import_clip
from cir.importers.containers import load
from cir.importers.formats import Format
from cir.importers.lavis_check import Plain
from cir.methods import build, checkpoint
from cir.methods.base import Method
from cir.schema import Prompt

FORMAT = Format("spn", "SPN's second stage", "spn", "spn", preprocess="targetpad", join="capital_first")
"""What it is, and how its numbers are made."""
TAU = 0.05
"""What the temperature of the published command on SPRC starts from; the file holds what became of it."""
PASSED_OVER = frozenset({"epoch", "optimizer", "scaler"})
"""Keys beside the state dict that are left behind: the state of training."""
SECOND = {"Qformer_query.": "Qformer.", "text_proj_q.": "text_proj."}
"""Of the query's own Q-Former: names in the file, and those of what it was copied from."""
UNUSED = ("crossattention", "intermediate_query", "output_query")
"""Of a Q-Former's layer: what only reads pictures, and the query's copy of it is never used."""


def import_file(path: Path, out: Path, *, backbone: str = "", tokenizer: str = "") -> tuple[str, ...]:
    """Import a second stage; returns what was found and written, as lines to show.

    On SPRC, `backbone` is the folder `cir import sprc` wrote (its `backbone/`), whose vision tower must be the file's;
    on CLIP, `tokenizer` is a folder or Hub id with CLIP's byte pairs. Nothing is left at `out` when it fails. Raises
    `InputError` for what cannot be read, is incomplete, holds more than is known, or computes anything else once
    converted.
    """
    state, left = _read(path)
    hosts = {name.split(".")[0] for name in state}
    if hosts == {"clip"}:
        return _clip(_stripped(state, "clip."), path, out, tokenizer or CLIP_TOKENIZER, left)
    if hosts == {"blip_model"} and any(name.startswith("blip_model.Qformer_query.") for name in state):
        return _sprc(_stripped(state, "blip_model."), path, out, backbone, left)
    raise InputError(
        f"{path}: weights under {', '.join(sorted(hosts)[:4])}; expected a second stage on SPRC (blip_model.*, with "
        "blip_model.Qformer_query.*) or on CLIP (clip.*); those on BLIP4CIR and TG-CIR have no host here"
    )


def _sprc(tensors: dict[str, Tensor], path: Path, out: Path, backbone: str, left: tuple[str, ...]) -> tuple[str, ...]:
    """Import a second stage on SPRC."""
    if not backbone:
        raise InputError(f"{path}: a second stage on SPRC goes with SPRC's vision tower; import SPRC's own file first "
                         "(cir import sprc), then name DIR/backbone with --backbone")  # fmt: skip
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(SECOND))}
    again = {f"{SECOND[p]}{n.removeprefix(p)}": t for n, t in tensors.items() for p in SECOND if n.startswith(p)}
    _accounted(own, again, path)
    seen = backbones.load(backbone, device="cpu", preprocess=FORMAT.preprocess)
    method = _method(own, again, seen, path)
    tested = _self_test(method, seen, own, again, path)
    dropped = [name for name in tensors if keys.LEFT_BEHIND.match(name) or _unused(name)]
    origin = {"format": FORMAT.name, "file": path.name, "digest": checkpoint.digest(path), "container": "state_dict"}
    with output.fresh(out) as folder:
        recipe = checkpoint.recipe(method)
        details = {"imported": {**origin, "passed_over": [*left, *dropped]}}
        checkpoint.write(folder, method.state_dict(), recipe, checkpoint.described(seen), details)
        settings = {"name": recipe["method"], **recipe["options"]}
        output.settings(folder, FORMAT, out.name, backbone, FORMAT.preprocess, settings)
    return (
        f"spn: {FORMAT.what} on SPRC, {len(tensors)} tensors under 'state_dict'",
        f"keys left behind: {', '.join([*left, f'{len(dropped)} that the query does not use'])}",
        f"temperature: {float(method.state_dict()['temperature']):.4g}",
        f"self-test: {tested}",
        f"written: {out}",
    )


def _accounted(own: Mapping[str, Tensor], again: Mapping[str, Tensor], path: Path) -> None:
    """Check that the file holds a whole SPRC, a whole second Q-Former, and nothing else."""
    seen, read_off = lavis.sizes(lavis.Source(path, "state_dict", dict(own), ()))
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    prompts = (1, read_off.queries, read_off.width)
    if shapes.get("prompt_tokens") != prompts:
        raise InputError(f"{path}: prompt_tokens of {shapes.get('prompt_tokens', 'no size')}; expected {prompts}")
    apart = {"temp", "prompt_tokens", *(name for name in own if keys.LEFT_BEHIND.match(name))}
    rules = keys.qformer_rules(read_off)
    keys.account([*keys.tower_rules(seen), *rules], shapes, apart, str(path))
    copied = [r for r in rules if r.sources[0].startswith(tuple(SECOND.values()))]
    shapes = {name: tuple(tensor.shape) for name, tensor in again.items()}
    apart = {name for name in again if keys.LEFT_BEHIND.match(name)}
    keys.account(copied, shapes, apart, f"{path}, the query's Q-Former")


def _method(own: Mapping[str, Tensor], again: Mapping[str, Tensor], seen: Backbone, path: Path) -> Method:
    """Build the method with the file's weights."""
    base = build("sprc", {"second_stage": True}, seen)
    method = build("spn", {"tau": TAU, "learn_tau": True}, seen, base)
    temperature = own["temp"].float().reshape(())
    queries = lavis.parts_of({**own, **again}, str(path))
    mine = [name for name in method.state_dict() if name.startswith("base.query_text.")]
    state = {
        **{f"base.parts.{name}": tensor for name, tensor in lavis.parts_of(own, str(path)).items()},
        **{name: queries[name.removeprefix("base.query_text.")] for name in mine},
        "base.prompt_tokens": own["prompt_tokens"].float(),
        "base.temperature": temperature,
        "temperature": temperature,
    }
    checkpoint.fill(method, state, str(path))
    return method.eval()


@torch.no_grad()
def _self_test(
    method: Method, seen: Backbone, own: Mapping[str, Tensor], again: Mapping[str, Tensor], path: Path
) -> str:
    """Compare both sides with the file's weights in plain torch, on a random picture and two random texts.

    The picture goes through the backbone's vision tower on one side and through the file's on the other. Says the
    largest differences, as shares of the largest value; `InputError` where one is above `lavis.TOLERANCE`.
    """
    tower, read_off = lavis.sizes(lavis.Source(path, "state_dict", dict(own), ()))
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, tower.side, tower.side, generator=random)
    length = min(12, read_off.positions)
    ids = torch.randint(read_off.words, (2, length), generator=random)
    prompt = Prompt(ids.numpy(), torch.full((2, 1), -1).numpy(), torch.full((2,), length - 1).numpy())
    plain, query = Plain(own, tower, read_off), Plain({**own, **again}, tower, read_off)
    pairs = {
        "vision tower": (seen.encode_patches(pixels), plain.patches(pixels)),
        "images": (method.image_side(seen).encode_images(pixels), plain.image(plain.patches(pixels))),
        "queries' texts": (method.base.query_text.encode(prompt), query.text(ids)),  # type: ignore[union-attr, operator]
    }
    shares = {name: float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for name, (a, b) in pairs.items()}
    shown = ", ".join(f"{name} {share:.1e}" for name, share in shares.items())
    if not all(share <= lavis.TOLERANCE for share in shares.values()):  # NaN fails
        raise InputError(f"{path} with {seen.name}: computes something else: {shown}; another SPRC's backbone?")
    return f"differs from the file in plain torch by {shown} of the largest value ({lavis.TOLERANCE:.0e} is allowed)"


def _clip(tensors: dict[str, Tensor], path: Path, out: Path, tokenizer: str, left: tuple[str, ...]) -> tuple[str, ...]:
    """Import a second stage on CLIP4Cir's sum: CLIP's encoders, the text tower trained on."""
    origin: dict[str, Any] = {"format": FORMAT.name, "file": path.name, "digest": checkpoint.digest(path)}
    origin |= {"container": "state_dict", "passed_over": list(left)}
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    lines = import_clip(floats, path, out, tokenizer, origin)
    return (
        f"spn: {FORMAT.what} on CLIP, {len(tensors)} tensors under 'state_dict'",
        *lines,
        "queries: method.name=sum method.raw=true prompt.join=capital_first",
        f"written: {out}",
    )


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the state dict, `module.` stripped, and name what lies beside it; `InputError` for anything unknown."""
    loaded = load(path)
    state = loaded.get("state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: expected a dictionary with a state dict under 'state_dict', as SPN4CIR's best.pt")
    rest = sorted(str(key) for key in loaded if key != "state_dict")
    unknown = [key for key in rest if key not in PASSED_OVER]
    if unknown:
        raise InputError(f"{path}: unexpected keys {unknown[:5]} beside 'state_dict'")
    tensors: dict[str, Tensor] = {}
    for raw, tensor in state.items():
        name = str(raw).removeprefix("module.")
        if not isinstance(tensor, Tensor) or name in tensors:
            raise InputError(f"{path}: {name}: expected one tensor, found {type(tensor).__name__}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} holds values that are not finite; damaged, or a failed training run?")
        tensors[name] = tensor.detach()
    return tensors, tuple(rest)


def _stripped(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _unused(name: str) -> bool:
    """Tell a weight of the query's Q-Former that encoding text does not read."""
    return name.startswith("Qformer_query.") and ("Qformer_query.cls." in name or any(p in name for p in UNUSED))
