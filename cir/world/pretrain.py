"""`cir world pretrain`: the tiny CLIP from nothing, in two stages of the one training loop, and what it scores."""

import shutil
from pathlib import Path

import torch

from cir.backbones.tiny import TinyClip
from cir.config import TrainConfig
from cir.train import train
from cir.world import pool, tokenizer
from cir.world.measuring import FreshScenes, share, write_scores
from cir.world.pretraining import LAST_SCALE, Pretraining, StageOptions

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
    write_scores(out, scores)
    return scores


@torch.no_grad()
def measure(clip: TinyClip, count: int = 500) -> dict[str, float]:
    """Score text-to-image retrieval on fresh scenes, and describe the space.

    `R@1 full/train` is the share of full captions (training or held-out words) whose scene ranks first of `count`;
    `neighbour` is the choice between a scene and two one-edit neighbours; then the mean cosines of matched pairs, of
    random pictures, of random pairs, and the distance between the modalities' means.
    """
    fresh = FreshScenes(count)
    images = _images(clip, fresh.pictures())
    scores: dict[str, float] = {}
    for name, captions in fresh.captions():
        scores[f"R@1 {name}"] = share((clip.texts(captions) @ images.T).argmax(dim=1) == torch.arange(count))
    asked, rivals = fresh.choice()
    texts = clip.texts(asked)
    right = (texts * images).sum(1)
    scores["neighbour"] = share(torch.stack([right > (texts * _images(clip, r)).sum(1) for r in rivals]).all(0))
    between, across = images @ images.T, texts @ images.T
    scores["cosine matched"] = float(right.mean())
    scores["cosine images"] = float((between.sum() - between.trace()) / (count * (count - 1)))
    scores["cosine random pair"] = float((across.sum() - across.trace()) / (count * (count - 1)))
    scores["gap"] = float((images.mean(0) - texts.mean(0)).norm())
    return scores


def _images(clip: TinyClip, pictures: torch.Tensor) -> torch.Tensor:
    return clip.images(clip.tokens(pictures.to(clip.device)))
