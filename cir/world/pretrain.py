"""`cir world pretrain`: the tiny CLIP from nothing, in two stages of the one training loop, and what it scores."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cir.backbones.tiny import TinyClip
from cir.config import TrainConfig
from cir.train import train
from cir.world import pool, tokenizer
from cir.world.files import write_text
from cir.world.grammar import BENCH, TRAIN, caption, full_caption
from cir.world.pretraining import LAST_SCALE, Pretraining, StageOptions
from cir.world.render import draw
from cir.world.scenes import KINDS, Scene, edited, propose_many, sample_scene

STEPS = (2400, 1600)
SINGLES, PAIRS = 40_000, 80_000
POOL_SEED = 0


def pretrain(out: Path, seed: int = 0, steps: tuple[int, int] = STEPS, pool_scale: float = 1.0) -> dict[str, float]:
    """Train in `out`, or resume; leaves the model in `out/model` and returns what it scores."""
    words = out / "tokenizer"
    if not (words / "tokenizer_config.json").exists():
        tokenizer.build(words)
    clip = TinyClip(words, seed=seed)
    for stage, count in enumerate(steps):
        contrastive = stage == 1
        size = round((PAIRS if contrastive else SINGLES) * pool_scale)
        source = pool.load(out / "pool", size, POOL_SEED, single=not contrastive)
        options = StageOptions(
            contrastive, patches=28 if contrastive else 16, whole=0.15 * contrastive, steps=count,
            aux_weight=0.3 if contrastive else 1.0,
        )  # fmt: skip
        settings = TrainConfig(
            steps=count, batch=80 if contrastive else 128, lr=1e-3, weight_decay=0.05, betas=[0.9, 0.98], clip_norm=1.0,
            schedule="cosine", warmup=min(100, count // 10), precision="bfloat16", save_every=200,
        )  # fmt: skip
        train(Pretraining(options, clip), clip, source, settings, out / f"stage-{stage}", seed=seed)  # type: ignore[arg-type]
    scores = measure(clip)
    model = out / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    clip.save(model, LAST_SCALE)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(words / name, model / name)
    write_text(out / "scores.csv", "".join(f"{name},{value:.4f}\n" for name, value in scores.items()))
    return scores


@torch.no_grad()
def measure(clip: TinyClip, count: int = 500) -> dict[str, float]:
    """Score text-to-image retrieval on fresh scenes, and describe the space.

    `R@1 full/train` is the share of full captions (training or held-out words) whose scene ranks first of `count`;
    `neighbour` is the choice between a scene and two one-edit neighbours; then the mean cosines of matched pairs, of
    random pictures, of random pairs, and the distance between the modalities' means.
    """
    rng = random.Random("measure")
    scenes = [sample_scene(rng) for _ in range(count)]
    images = _images(clip, scenes, 1)
    writers: dict[str, Callable[[Scene], str]] = {
        "R@1 full/train": lambda s: full_caption(s, rng, TRAIN, positions=0.0),
        "R@1 full/bench": lambda s: full_caption(s, rng, BENCH, positions=0.0),
        "R@1 noisy/train": lambda s: caption(s, rng, TRAIN),
    }
    scores: dict[str, float] = {}
    for name, write in writers.items():
        texts = clip.texts([write(scene) for scene in scenes])
        similar = texts @ images.T
        scores[name] = float((similar.argmax(dim=1) == torch.arange(count)).float().mean())
    texts = clip.texts([full_caption(scene, rng, TRAIN, positions=0.0) for scene in scenes])
    rivals = [_images(clip, [_neighbour(scene, rng) for scene in scenes], seed) for seed in (2, 3)]
    right = (texts * images).sum(1)
    scores["neighbour"] = float(torch.stack([right > (texts * r).sum(1) for r in rivals]).all(0).float().mean())
    between, across = images @ images.T, texts @ images.T
    scores["cosine matched"] = float(right.mean())
    scores["cosine images"] = float((between.sum() - between.trace()) / (count * (count - 1)))
    scores["cosine random pair"] = float((across.sum() - across.trace()) / (count * (count - 1)))
    scores["gap"] = float((images.mean(0) - texts.mean(0)).norm())
    return scores


def _neighbour(scene: Scene, rng: random.Random) -> Scene:
    """Draw a scene one edit away."""
    while True:
        edits = propose_many(scene, (rng.choice([kind for kind in KINDS if kind != "move"]),), rng)
        if edits:
            return edited(scene, edits, rng)


def _images(clip: TinyClip, scenes: list[Scene], seed: int) -> torch.Tensor:
    pictures = np.stack([draw(scene, seed * 1_000_003 + index)[0] for index, scene in enumerate(scenes)])
    return clip.images(clip.tokens(torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(clip.device)))
