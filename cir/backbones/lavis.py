"""Features of a LAVIS model for `cir score`, through files: LAVIS runs in an environment of its own (docs/lavis.md).

    python cir/backbones/lavis.py job.json --out features --type coco

reads a job (`write_job`, made here), and writes `gallery.npz` and `queries.npz` as `cir score` takes them. This file is
run by LAVIS's Python, where `cir` is not: it imports nothing of it, and is kept to what Python 3.8 understands.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, Mapping, Sequence  # noqa: UP035  # of Python 3.8

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from cir.schema import Benchmark

FORMAT = 1
COMPOSE = ("text", "image", "sum")
"""What a query is: its text, its reference, or half of each (the baselines `text_only`, `image_only`, `sum`)."""


def write_job(path: Path, benchmark: Benchmark, join: Callable[[Sequence[str]], list[str]]) -> None:
    """Write what LAVIS is to encode for a benchmark: pictures by id, and queries with their joined texts.

    Raises `InputError` for a benchmark whose images are parts of files, which a job cannot name, or are absent.
    """
    from cir.errors import InputError

    if benchmark.views:
        raise InputError(f"{benchmark.name}: images are parts of files; a job can only name whole ones")
    names = [*benchmark.gallery, *(query.reference for query in benchmark.queries)]
    absent = [name for name in names if name not in benchmark.paths]
    if absent:
        raise InputError(f"{benchmark.name}: {len(absent):,} images have no file, first {absent[:3]}")
    job = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "fingerprint": benchmark.fingerprint,
        "images": {name: str((benchmark.root / benchmark.paths[name]).resolve()) for name in dict.fromkeys(names)},
        "gallery": list(benchmark.gallery),
        "queries": [
            {"id": query.id, "reference": query.reference, "texts": join(query.texts)} for query in benchmark.queries
        ],
    }
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, path)


def read_job(path: Path) -> dict[str, Any]:
    """Read a job; SystemExit for another format."""
    job = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(job, dict) or job.get("format") != FORMAT:
        raise SystemExit(f"{path}: not a job of format {FORMAT}; write it again")
    return job


def serve(
    model: Any,
    job: Mapping[str, Any],
    out: Path,
    *,
    compose: str = "text",
    pixels: Callable[[Image.Image], torch.Tensor],
    clean: Callable[[str], str],
    batch: int = 32,
    dtype: str = "float32",
) -> None:
    """Encode a job with a LAVIS `Blip2Qformer` and write `gallery.npz` (n x t x d) and `queries.npz` (n x 1 or t x d).

    Vectors have unit length. `pixels` and `clean` are LAVIS's processors of pictures and texts. Several texts of a
    query are averaged as unit vectors; a reference is all of its t vectors, of which the best one counts in search.
    """
    if compose not in COMPOSE:
        raise ValueError(f"compose {compose!r}; known: {', '.join(COMPOSE)}")
    out.mkdir(parents=True, exist_ok=True)
    names = list(job["images"]) if compose != "text" else list(job["gallery"])
    rows = {name: row for row, name in enumerate(names)}
    files = [job["images"][name] for name in names]
    images = np.concatenate([v.astype(dtype) for v in _images(model, files, pixels, batch)])
    gallery = [rows[name] for name in job["gallery"]]
    np.savez(out / "gallery.npz", ids=np.array(job["gallery"]), vectors=images[gallery])
    queries = job["queries"]
    text = np.zeros((len(queries), 1, images.shape[-1]), dtype=np.float32)
    if compose != "image":
        flat = [clean(one) for query in queries for one in query["texts"]]
        owner = [row for row, query in enumerate(queries) for _ in query["texts"]]
        np.add.at(text[:, 0], owner, np.concatenate(list(_texts(model, flat, batch))))
        text = _unit(text)
    if compose != "text":
        text = _unit(text + images[[rows[query["reference"]] for query in queries]].astype(np.float32))
    np.savez(out / "queries.npz", ids=np.array([query["id"] for query in queries]), vectors=text)


def _images(
    model: Any, files: Sequence[str], pixels: Callable[[Image.Image], torch.Tensor], batch: int
) -> Iterable[np.ndarray]:
    """Yield the unit query vectors "b t d" of pictures, which threads decode."""

    def read(file: str) -> torch.Tensor:
        with Image.open(file) as picture:
            return pixels(picture.convert("RGB"))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for part in _batches(files, batch, "images"):
            sample = {"image": torch.stack(list(threads.map(read, part))).to(model.device)}
            yield model.extract_features(sample, mode="image").image_embeds_proj.float().cpu().numpy()


@torch.no_grad()
def _texts(model: Any, texts: Sequence[str], batch: int) -> Iterable[np.ndarray]:
    """Yield the unit [CLS] vectors "b d" of texts, cut to the length BLIP-2 was trained with."""
    for part in _batches(texts, batch, "texts"):
        tokens = model.tokenizer(
            list(part), padding=True, truncation=True, max_length=model.max_txt_len, return_tensors="pt"
        ).to(model.device)
        vectors = model.text_proj(model.forward_text(tokens))
        yield torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def _batches(items: Sequence[str], size: int, what: str) -> Iterable[Sequence[str]]:
    from tqdm import tqdm

    for start in tqdm(range(0, len(items), size), desc=what, mininterval=5):
        yield items[start : start + size]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _load(model: Any, path: str) -> None:
    """Give a model the weights of a file, which may lack the vision tower; SystemExit for what does not fit."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    found = model.load_state_dict(state.get("model", state), strict=False)
    missing = [name for name in found.missing_keys if not name.startswith("visual_encoder.")]
    if missing or found.unexpected_keys:
        raise SystemExit(f"{path}: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}; another model's?")


def main(arguments: List[str] | None = None) -> None:  # noqa: UP006  # of Python 3.8
    """Load one of LAVIS's released models and encode a job with it."""
    parser = argparse.ArgumentParser(description="Encode a job of cir with a BLIP-2 of LAVIS.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of gallery.npz and queries.npz")
    parser.add_argument("--type", default="pretrain", help="pretrain, pretrain_vitL or coco; LAVIS downloads them")
    parser.add_argument("--checkpoint", default=None, help="weights of one's own, loaded on top by LAVIS")
    parser.add_argument("--compose", default="text", choices=COMPOSE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the files")
    given = parser.parse_args(arguments)
    from lavis.models import load_model_and_preprocess

    job = read_job(given.job)
    model, visual, text = load_model_and_preprocess("blip2", given.type, is_eval=True, device=given.device)
    if given.checkpoint is not None:
        _load(model, given.checkpoint)
    serve(
        model,
        job,
        given.out,
        compose=given.compose,
        pixels=visual["eval"],
        clean=text["eval"],
        batch=given.batch,
        dtype=given.dtype,
    )


if __name__ == "__main__":
    main()
