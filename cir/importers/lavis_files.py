"""The files of a converted BLIP-2: weights written one by one, and BERT's vocabulary with LAVIS's token."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cir.errors import InputError
from cir.importers.lavis_keys import Rule
from cir.progress import bar

BERT = "bert-base-uncased"
DEC = "[DEC]"
"""LAVIS's begin-of-caption token, added behind BERT's words."""
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of precisions in a safetensors header."""


def save_weights(path: Path, rules: Sequence[Rule], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Write what the rules make of the tensors as a safetensors file, holding one weight at a time.

    The format's own writer wants all of them in memory at once. Raises `InputError`, naming the `origin`, for weights
    that are not finite or of a precision the format's readers do not take.
    """
    ordered = sorted(rules, key=lambda rule: -tensors[rule.sources[0]].itemsize)  # keeps every weight aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for rule in ordered:
        first = tensors[rule.sources[0]]
        if first.dtype not in DTYPES:
            raise InputError(
                f"{origin}: {rule.sources[0]} is stored as {first.dtype}; expected a float of 16 or 32 bits"
            )
        size = torch.Size(rule.made).numel() * first.itemsize
        for name in rule.targets:
            header[name] = {"dtype": DTYPES[first.dtype], "shape": list(rule.made), "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file, bar(end >> 20, f"writing {path.name} (MB)", end > 1 << 28) as shown:
        file.write(len(text).to_bytes(8, "little") + text)
        written = 0
        for rule in ordered:
            for name, tensor in zip(rule.targets, rule(tensors), strict=True):
                if not bool(torch.isfinite(tensor).all()):
                    raise InputError(f"{origin}: {name} holds values that are not finite; a damaged file?")
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                written += tensor.numel() * tensor.itemsize
            shown.advance((written >> 20) - shown.done)


def vocabulary(name: str, wanted: int) -> list[str]:
    """Read BERT's words in the order of their ids from a folder or the Hub, with `[DEC]` behind them.

    `wanted` is how many word embeddings there are. Raises `InputError` where the words are not as many.
    """
    folder = _found(name)
    words = _words(folder)
    if len(words) == wanted - 1 and DEC not in words:
        words = [*words, DEC]
    if len(words) != wanted:
        raise InputError(
            f"tokenizer {name!r}: {len(words):,} words for {wanted:,} embeddings; expected {BERT}'s, or a folder with "
            "the vocab.txt the model was trained with"
        )
    return words


def write_vocabulary(folder: Path, words: Sequence[str]) -> None:
    """Write a tokenizer's files: BERT's, in lower case, `[DEC]` as the token that begins a caption."""
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "bos_token": DEC, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _found(name: str) -> Path:
    """Find the tokenizer's folder: a local one, or the Hub's, downloaded where it is not cached."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["vocab.txt", "tokenizer.json"]))
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises
        reason = str(error).strip().splitlines()[0][:120]
        raise InputError(
            f"tokenizer {name!r}: no such folder, and the hub did not give it ({type(error).__name__}: {reason}); name "
            "a folder with BERT's vocab.txt with --tokenizer"
        ) from None


def _words(folder: Path) -> list[str]:
    """Read the words from `vocab.txt`, or from `tokenizer.json` with those added later."""
    if (folder / "vocab.txt").is_file():
        return (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids = {**content["model"]["vocab"], **{one["content"]: one["id"] for one in content.get("added_tokens", [])}}
        by_id = {int(number): str(word) for word, number in ids.items()}
        return [by_id[number] for number in range(len(by_id))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: no vocab.txt, and no tokenizer.json of BERT's kind ({error!r})") from None
