"""Checkpoint folders on the Hugging Face Hub: fetched, described by a model card, uploaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cir.config import RunConfig
from cir.errors import InputError
from cir.methods import METHODS, checkpoint

FILES = (checkpoint.WEIGHTS, checkpoint.CONFIG, "config.yaml", "names.json")
"""What of a repository is fetched; code and pickles in it are not."""
CARD = "README.md"
LIBRARY = "cir"


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Find a checkpoint's folder: a local path, or the Hub's `owner/name`, downloaded where it is not cached.

    The keywords are those of the Hub's `from_pretrained`. Raises `InputError` for what neither has.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    text = str(name)
    if text.startswith((".", "~", "/")) or text.count("/") != 1 or path.suffix in (".yaml", ".yml"):
        raise InputError(f"{text}: no such folder; expected a checkpoint, a run folder, or a hub id owner/name")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            text,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=list(FILES),
        )
    except (OSError, ValueError, RuntimeError) as error:  # what the hub's client raises
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"{text}: no such folder, and the hub did not give it ({type(error).__name__}: {reason}); check the name"
        ) from None
    return Path(found)


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "Add checkpoint",
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    allow_patterns: Sequence[str] | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    delete_patterns: Sequence[str] | str | None = None,
) -> str:
    """Create the repository where it is not there and upload a folder in one commit; returns the commit's address."""
    from huggingface_hub import HfApi

    def listed(patterns: Sequence[str] | str | None) -> list[str] | str | None:
        return patterns if patterns is None or isinstance(patterns, str) else list(patterns)

    api = HfApi(token=token)
    made = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=made,
        folder_path=folder,
        commit_message=commit_message,
        revision=branch,
        create_pr=create_pr,
        allow_patterns=listed(allow_patterns),
        ignore_patterns=listed(ignore_patterns),
        delete_patterns=listed(delete_patterns),
    )
    return str(commit)


def card(described: Mapping[str, Any], config: RunConfig, title: str) -> str:
    """Write a model card: method, paper, backbone, preprocessing, sentence, licence, and how to load it."""
    name = str(described.get("method", "oti"))
    paper = METHODS[name].paper if name in METHODS else "Baldrati et al., ICCV 2023, arXiv:2303.15247"
    origin = (described.get("details") or {}).get("imported") or {}
    licence = str(origin.get("licence", ""))
    head = {
        **({"license": licence} if licence else {}),
        "library_name": LIBRARY,
        "tags": ["composed-image-retrieval", "zero-shot-composed-image-retrieval", name],
        **({"base_model": config.backbone.name} if config.backbone.name.count("/") == 1 else {}),
    }
    rows = {
        "method": f"`{name}`" + (f" on `{described['base']['method']}`" if described.get("base") else ""),
        "paper": paper,
        "backbone": f"`{config.backbone.name}`, frozen, not in this repository"
        if config.backbone.name
        else "not recorded",
        "preprocessing": f"`{config.backbone.preprocess}`",
        "sentence": f"`{config.prompt.template}`, texts joined by `{config.prompt.join}`",
        "origin": f"imported from `{origin['file']}`" if origin else "trained with `cir train`",
        "licence": _licence(licence, bool(origin)),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    front = yaml.safe_dump(head, sort_keys=False).strip()
    return f"---\n{front}\n---\n\n# {title}\n\n{INTRODUCTION}\n\n| | |\n|---|---|\n{table}\n\n{_use(described, title)}"


def _use(described: Mapping[str, Any], title: str) -> str:
    """Show the lines that load and use it."""
    lines = ["import cir", "", f"adapter = cir.load({(title if '/' in title else 'OWNER/' + title)!r})"]
    if "method" not in described:
        lines.append('queries = adapter.compose_of([adapter.names[0]], ["is red"])  # unit vectors')
    else:
        reads = METHODS[described["method"]].reads if described["method"] in METHODS else "features"
        kind = ', kind="patches"' if reads == "patches" else ""
        lines.append(f'features = adapter.encode_images(["reference.jpg"]{kind})')
        lines.append('queries = adapter.compose(features, ["is red and has long sleeves"])  # unit vectors')
    return "\n".join(["```python", *lines, "```", ""])


def _licence(licence: str, imported: bool) -> str:
    """Say whose terms hold."""
    if licence:
        return f"`{licence}`, as the authors' release, which asks before being passed on; the backbone has its own"
    whose = "that of the file it was imported from" if imported else "that of whoever trained it"
    return f"{whose}; the backbone and the training data have their own"


INTRODUCTION = (
    "An adapter for composed image retrieval: it finds images from a reference image and a text that says what to\n"
    "change. The weights are plain safetensors; loading them runs no code of this repository."
)
