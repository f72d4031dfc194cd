"""Where a checkpoint lies, what its config says, and the fingerprint of its weights."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from cir.errors import InputError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager")

WEIGHTS = ("model.safetensors", "model-*.safetensors")
OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*.bin")
SMALL_FILES = ("*.json", "*.txt", "*.model")

VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures"}
"""Keys of config.json that say who wrote it, not what the model computes."""


def locate(name: str) -> Path:
    """Find the folder of a checkpoint: a local one, or the hub's, downloaded where it is not in the local cache.

    Old checkpoints without safetensors come as `.bin`, which `transformers` reads with `weights_only`. Raises
    InputError, in one line, with what was looked for.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _complete(folder, name)
    if name.startswith((".", "~", "/")) or name.count("/") != 1:
        raise InputError(f"backbone {name!r}: no such folder; expected one with config.json, or a hub id owner/name")
    found = _download(name, (*SMALL_FILES, *WEIGHTS))
    if not _files(found, WEIGHTS):
        found = _download(name, (*SMALL_FILES, *OLD_WEIGHTS))
    return _complete(found, name)


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    """Fetch a hub checkpoint's files, or find them in the local cache when offline."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"backbone {name!r}: no such folder, and the hub did not give it ({type(error).__name__}: {reason}); "
            "check the name, or download it once while online"
        ) from None


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """List the files of a folder that match, by name."""
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def weight_files(folder: Path) -> list[Path]:
    """Name the files that hold the weights: safetensors where there are any."""
    return _files(folder, WEIGHTS) or _files(folder, OLD_WEIGHTS)


def _complete(folder: Path, name: str) -> Path:
    """Check that the two files nothing works without are there."""
    if not (folder / "config.json").is_file():
        raise InputError(f"backbone {name!r}: {folder} has no config.json; expected a checkpoint as transformers saves")
    if not weight_files(folder):
        raise InputError(f"backbone {name!r}: {folder} has no weights; looked for {', '.join(WEIGHTS + OLD_WEIGHTS)}")
    return folder


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read one of a checkpoint's JSON files; InputError where it is not an object."""
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); is the download complete?") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits over the weight files' bytes and what config.json says about the computation."""
    config = _without_volatile(read_config(folder))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    block = bytearray(1 << 22)
    view = memoryview(block)
    for path in weight_files(folder):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(block):
                digest.update(view[:size])
    return digest.hexdigest()[:16]


def _without_volatile(config: Any) -> Any:
    """Drop the volatile keys at every level."""
    if isinstance(config, dict):
        return {key: _without_volatile(value) for key, value in config.items() if key not in VOLATILE}
    return config


def pick_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1`, `mps` into a device that exists here.

    `auto` and `cuda` take the GPU of this process's `LOCAL_RANK`, so that the processes of torchrun share them out.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if device == "auto":
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r}: {nearest(device, ('auto', 'cpu', 'cuda', 'mps'))}") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use device=auto"
        )
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Turn a name into a dtype that makes sense on the device."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    if dtype == "float16" and device.type == "cpu":
        raise InputError("dtype float16 is several times slower than float32 on a CPU; use bfloat16 or float32")
    return DTYPES[dtype]


def pick_attention(attention: str) -> str:
    """Check the name of an attention implementation."""
    if attention not in ATTENTION:
        raise InputError(f"attention {attention!r}: {nearest(attention, ATTENTION)}")
    return attention
