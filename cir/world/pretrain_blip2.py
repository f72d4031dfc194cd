"""`cir world pretrain --model blip2`: the tiny BLIP-2 from the tiny CLIP's vision tower, and what it scores."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor
from torch.nn import functional as F

from cir import progress
from cir.backbones.tiny_blip2 import TinyBlip2, start_from, teacher
from cir.config import TrainConfig
from cir.methods.base import Method
from cir.objectives import max_similarity
from cir.train import train
from cir.train.checks import digest
from cir.world import pool, wordpiece
from cir.world.measuring import FreshScenes, share, write_scores
from cir.world.pool import Pool
from cir.world.pretraining_blip2 import (
    Blip2Options,
    Distillation,
    Matching,
    MatchingOptions,
    Pretraining,
    look_up,
)

STEPS = (300, 2000, 1600)
PICTURES = 40_000
POOL_SEED = 0
TEACHER = Path(__file__).parents[2] / "checkpoints" / "tiny-clip"
_BLOCK = 250


def pretrain(
    out: Path,
    seed: int = 0,
    steps: tuple[int, int, int] = STEPS,
    pool_scale: float = 1.0,
    clip: Path = TEACHER,
    scenes: int = 500,
) -> dict[str, float]:
    """Train in `out`, or resume; leaves the model in `out/model` and returns what it scores on `scenes` fresh scenes.

    `clip` is the folder of the CLIP whose vision tower is taken over.
    """
    words = out / "tokenizer"
    if not (words / "tokenizer_config.json").exists():
        wordpiece.build(words)
    blip = TinyBlip2(words, seed=seed)
    old = teacher(clip)
    source = pool.load(out / "pool", round(PICTURES * pool_scale), POOL_SEED, single=False)
    start_from(blip.model.vision_model, old, blip.pixels(look_up(source, range(min(256, len(source))))))

    def shown(pictures: Tensor) -> Tensor:
        """Return the old tower's last tokens."""
        return old.vision_model(pixel_values=blip.pixels(pictures)).last_hidden_state

    _run(Distillation(blip, shown), blip, source, _settings(steps[0], 64), out / "stage-0", seed)
    tokens = _kept_tokens(out / "pool", blip, source)
    method = Pretraining(Blip2Options(steps[1]), blip, tokens)
    _run(method, blip, source, _settings(steps[1], 64), out / "stage-1", seed)
    last = Matching(MatchingOptions(), blip, tokens)
    _run(last, blip, source, replace(_settings(steps[2], 64), lr=5e-4), out / "stage-2", seed)
    scores = measure(blip, scenes)
    model = out / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    blip.save(model)
    for name in wordpiece.FILES:
        shutil.copyfile(words / name, model / name)
    write_scores(out, scores)
    return scores


def _settings(steps: int, batch: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch=batch, lr=1e-3, weight_decay=0.05, betas=[0.9, 0.98], clip_norm=1.0, schedule="cosine",
        warmup=min(100, steps // 10), precision="bfloat16", save_every=200,
    )  # fmt: skip


def _run(method: Method, blip: TinyBlip2, source: Pool, settings: TrainConfig, out: Path, seed: int) -> None:
    train(method, blip, source, settings, out, seed=seed)  # type: ignore[arg-type]


@torch.no_grad()
def _kept_tokens(folder: Path, blip: TinyBlip2, source: Pool) -> Float16[np.ndarray, "n p v"]:
    """Encode a pool with the frozen tower, or map what an earlier call encoded with the same weights."""
    path = folder / f"{source.fingerprint}.tokens-{digest(blip.model.vision_model.state_dict())}.npy"
    if not path.exists():
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        shape = (len(source), *blip.tokens(look_up(source, [0])).shape[1:])
        kept = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
        with progress.bar(len(source), "encoding the pool") as bar:
            for start in range(0, len(source), _BLOCK):
                rows = range(start, min(start + _BLOCK, len(source)))
                kept[rows.start : rows.stop] = blip.tokens(look_up(source, rows)).numpy()
                bar.advance(len(rows))
        kept.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def measure(blip: TinyBlip2, count: int = 500, top: int = 10) -> dict[str, float]:
    """Score text-to-image retrieval on the fresh scenes that the tiny CLIP is scored on.

    `R@1 full/train` is the share of full captions (training or held-out words) whose scene ranks first of `count`, by
    the contrastive similarity; `neighbour` is the choice between a scene and two one-edit neighbours. `ITM` are the
    same with the matching head choosing, among the `top` of a ranking where there is one.
    """
    fresh = FreshScenes(count)
    normed = _normed(blip, fresh.pictures())
    images = _by_block(blip.images, normed)
    scores: dict[str, float] = {}
    for name, texts in fresh.captions():
        best = max_similarity(blip.texts(blip.rows(texts))[:, None], images).topk(min(top, count)).indices
        fits = torch.stack([_fits(blip, normed[column], texts) for column in best.T], dim=1)
        chosen = {"R@1": best[:, 0], "ITM R@1": best.gather(1, fits.argmax(dim=1, keepdim=True))[:, 0]}
        scores |= {f"{how} {name}": share(found == torch.arange(count)) for how, found in chosen.items()}
    asked, drawn = fresh.choice()
    rivals, vectors = [_normed(blip, pictures) for pictures in drawn], blip.texts(blip.rows(asked))

    def similar(tokens: Tensor) -> Tensor:
        """Compare each picture with its text."""
        units = F.normalize(_by_block(blip.images, tokens), dim=-1)
        return torch.einsum("btd,bd->bt", units, F.normalize(vectors, dim=-1)).amax(dim=1)

    for name, score in {"neighbour": similar, "ITM neighbour": lambda tokens: _fits(blip, tokens, asked)}.items():
        right = score(normed)
        scores[name] = share(torch.stack([right > score(rival) for rival in rivals]).all(0))
    units = F.normalize(images, dim=-1)
    scores["cosine matched"] = float(similar(normed).mean())
    scores["cosine of an image's vectors"] = float(torch.einsum("btd,bsd->bts", units, units).mean())
    scores["temperature"] = float(blip.temperature)
    return scores


def _normed(blip: TinyBlip2, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
    """Encode pictures up to `ln_vision`."""
    return _by_block(lambda block: blip.parts.normed(blip.tokens(block)), pictures.to(blip.device))


def _fits(blip: TinyBlip2, normed: Float[Tensor, "b p v"], texts: list[str]) -> Float[Tensor, " b"]:
    """Let the matching head say by how much picture i and text i belong together."""
    blocks = zip(*(part.split(_BLOCK) for part in (normed, *blip.rows(texts))), strict=True)
    return torch.cat([blip.match(tokens, (ids, mask)) for tokens, ids, mask in blocks]).diff(dim=1)[:, 0]


def _by_block(make: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([make(block) for block in rows.split(_BLOCK)])
