"""CLIP4Cir's published files: a CLIP fine-tuned on triplets, and the Combiner trained on its features.

Baldrati et al., TOMM 2023, arXiv:2308.11485. The CLIP, a state dict under OpenAI's names, becomes a folder of encoders;
the Combiner a checkpoint of the method, for use with that folder.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cir.backbones import load
from cir.backbones.weights import read_config
from cir.errors import InputError
from cir.importers import output
from cir.importers.formats import Format
from cir.importers.openai_check import plain_images, plain_texts
from cir.importers.openai_clip import LEFT_BEHIND, Sizes, config, measured, preprocessor, renamed
from cir.methods import build, checkpoint
from cir.methods.base import Method
from cir.methods.shape import BackboneShape
from cir.schema import Prompt

TOLERANCE = 1e-4
"""How far a vector may be from the plain computation, in parts of the largest component."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
"""Where the byte pairs come from unless told; they are the same for all of OpenAI's models."""


def import_clip(
    tensors: Mapping[str, Tensor], path: Path, out: Path, tokenizer: str, origin: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write the encoders' folder, try it against a plain computation on the source, and say what was done, in lines.

    `tokenizer` is a folder or a hub id with CLIP's byte pairs. Raises `InputError`, leaving nothing at `out`, for
    tensors that are missing, unexpected or of a shape no CLIP has, and where the two computations differ.
    """
    left = tuple(name for name in tensors if LEFT_BEHIND.fullmatch(name))
    kept = {name: tensor for name, tensor in tensors.items() if name not in left}
    sizes = measured(kept, path)
    with output.fresh(out) as folder:
        save_file(renamed(kept, bool(sizes.stages), path), folder / "model.safetensors", metadata={"format": "pt"})
        output.write_json(folder / "config.json", config(sizes))
        output.write_json(folder / "preprocessor_config.json", preprocessor(sizes.side))
        output.write_json(folder / "import.json", {**origin, "tokenizer": tokenizer, "left_behind": list(left)})
        copy_tokenizer(tokenizer, folder)
        tested = self_test(kept, sizes, folder, path)
    tower = f"ResNet {'-'.join(map(str, sizes.stages))}" if sizes.stages else f"ViT, patch {sizes.vision['patch_size']}"
    return (
        f"encoders: {tower}, {sizes.side} px, joint width {sizes.joint}, words of {sizes.text['hidden_size']}",
        f"tensors left behind: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''} ({len(left)})",
        f"tokenizer: {tokenizer}",
        f"self-test: {tested}",
    )


def copy_tokenizer(name: str, folder: Path) -> None:
    """Copy a tokenizer's files from a folder or the hub; `InputError` where there are none."""
    source = Path(name).expanduser()
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        try:
            source = Path(snapshot_download(name, allow_patterns=list(TOKENIZER)))
        except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises
            reason = next(iter(str(error).strip().splitlines()), "")[:120]
            raise InputError(
                f"tokenizer {name!r}: no such folder, and the hub did not give it ({type(error).__name__}: {reason}); "
                "name a folder with --tokenizer"
            ) from None
    found = [source / file for file in TOKENIZER if (source / file).is_file()]
    if not {"tokenizer.json", "vocab.json"} & {file.name for file in found}:
        raise InputError(f"tokenizer {name!r}: {source} has neither tokenizer.json nor vocab.json")
    for file in found:
        shutil.copyfile(file, folder / file.name)


@torch.no_grad()
def self_test(tensors: Mapping[str, Tensor], sizes: Sizes, folder: Path, path: Path) -> str:
    """Compare the folder's encoders with the plain ones (`openai_check`) on random input; says how far apart they are.

    Raises `InputError` where that is more than `TOLERANCE`, or not a number.
    """
    backbone = load(str(folder), device="cpu")
    if backbone.tokenizer.end != sizes.text["eos_token_id"]:  # type: ignore[attr-defined]
        raise InputError(
            f"{path}: the tokenizer does not belong to {sizes.text['vocab_size']:,} words; see --tokenizer"
        )
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, sizes.side, sizes.side, generator=random)
    ids = torch.randint(sizes.text["bos_token_id"], (2, 9), generator=random)
    ids[0, 5:] = ids[1, 8] = sizes.text["eos_token_id"]
    ends = torch.tensor([5, 8])
    prompt = Prompt(ids.numpy(), ids[:, :0].numpy(), ends.numpy())
    pairs = {
        "image": (backbone.encode_images(pixels)[:, 0], plain_images(tensors, sizes, pixels)),
        "text": (backbone.encode_text(prompt), plain_texts(tensors, sizes, ids, ends)),
    }
    shown = []
    for what, (ours, plain) in pairs.items():
        far = float((ours - plain).abs().max() / plain.abs().max())
        if not far <= TOLERANCE:
            raise InputError(f"{path}: {what} vectors of the converted encoders are off by {far:.1e} of their size")
        shown.append(f"{what} vectors within {far:.0e} of their size")
    return ", ".join(shown) + " of a plain computation on the file's tensors"


def import_combiner(
    made: Format,
    tensors: Mapping[str, Tensor],
    path: Path,
    out: Path,
    backbone: str,
    preprocess: str,
    origin: Mapping[str, Any],
) -> tuple[str, ...]:
    """Write the method's checkpoint for the encoders in the folder `backbone`; says what was done, in lines.

    Raises `InputError`, leaving nothing at `out`, for tensors that are missing, unexpected or of another shape, and for
    a backbone that is no folder or of another joint width.
    """
    method, shape = combiner(tensors, path, backbone)
    tested = try_combiner(method, tensors, path)
    with output.fresh(out) as folder:
        recipe = checkpoint.recipe(method)
        checkpoint.save(folder, method, shape, {"imported": dict(origin)})
        output.settings(folder, made, out.name, backbone, preprocess, {"name": recipe["method"], **recipe["options"]})
    return (f"self-test: {tested}",)


def combiner(tensors: Mapping[str, Tensor], path: Path, backbone: str) -> tuple[Method, BackboneShape]:
    """Build the method with the file's weights, whose names and widths are its own."""
    if not (Path(backbone).expanduser() / "config.json").is_file() or not backbone:
        raise InputError(
            f"{path}: a Combiner goes with the fine-tuned CLIP it was trained on; import that first, then name its "
            f"folder with --backbone{f', not {backbone!r}' if backbone else ''}"
        )
    own = read_config(Path(backbone).expanduser())
    try:
        projection, width = tensors["text_projection_layer.weight"].shape
        hidden = len(tensors["combiner_layer.weight"])
        joint, words, vision = own["projection_dim"], own["text_config"]["hidden_size"], own["vision_config"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} with {backbone}: not a Combiner and its CLIP ({error} is missing)") from None
    if joint != width:
        raise InputError(f"{path}: mixes features of width {width}, but {backbone} makes {joint}; another CLIP's?")
    shape = BackboneShape(width, words, vision_width=vision["hidden_size"], name=backbone)
    given = {"projection": (projection, 4 * width), "hidden": (hidden, 8 * width)}
    options = {name: found for name, (found, usual) in given.items() if found != usual}
    method = build("combiner", options, shape)
    checkpoint.fill(method, dict(tensors), str(path))
    return method.eval(), shape


@torch.no_grad()
def try_combiner(method: Method, tensors: Mapping[str, Tensor], path: Path) -> str:
    """Compare the method with its formula (arXiv:2308.11485, section 3.3) on random features."""
    random = torch.Generator().manual_seed(0)
    width = tensors["text_projection_layer.weight"].shape[1]
    image, text = torch.randn(2, 3, width, generator=random)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    shared = torch.cat(
        [linear("text_projection_layer", text).relu(), linear("image_projection_layer", image).relu()], 1
    )
    mixed = linear("output_layer", linear("combiner_layer", shared).relu())
    share = linear("dynamic_scalar.3", linear("dynamic_scalar.0", shared).relu()).sigmoid()
    plain = F.normalize(mixed + share * text + (1 - share) * image, dim=1)
    far = float((method.combine(image, text) - plain).abs().max() / plain.abs().max())  # type: ignore[operator]
    if not far <= TOLERANCE:
        raise InputError(f"{path}: queries of the converted Combiner are off by {far:.1e} of their size; damaged?")
    return f"3 random queries within {far:.0e} of the formula"
