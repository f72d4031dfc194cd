"""`cir world pretrain --model blip2`: the tiny BLIP-2 from the tiny CLIP's vision tower, and what it scores.

BLIP-2's first stage (Li et al., ICML 2023, arXiv:2301.12597, section 3.2): the vision tower is frozen, the Q-Former
learns by contrast and by matching, and in place of the language-model loss from the world's ground truth. The tower is
tiny CLIP's, distilled into the shape that `Blip2VisionModel` has. Matching is learnt late and slowly, so it has a stage
to itself.
"""

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cir import progress
from cir.backbones.tiny_blip2 import Rows, TinyBlip2, start_from, teacher
from cir.config import TrainConfig
from cir.methods.base import Method, Store
from cir.objectives import info_nce, max_similarity
from cir.randomness import StepRandom, seed_of
from cir.train import train
from cir.train.checks import digest
from cir.world import pool, wordpiece
from cir.world.files import write_text
from cir.world.grammar import ALL, BENCH, TRAIN, caption, full_caption
from cir.world.pool import Pool
from cir.world.pretraining import Heads, Truth, truth
from cir.world.render import draw
from cir.world.scenes import KINDS, SHAPES, Scene, edited, propose_many, sample_scene

STEPS = (300, 2000, 1600)
PICTURES = 40_000
POOL_SEED = 0
LEAST_TEMPERATURE = 0.01
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
    start_from(blip.model.vision_model, old, blip.pixels(_pictures(source, range(min(256, len(source))))))

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
    write_text(out / "scores.csv", "".join(f"{name},{value:.4f}\n" for name, value in scores.items()))
    return scores


def _settings(steps: int, batch: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, batch=batch, lr=1e-3, weight_decay=0.05, betas=[0.9, 0.98], clip_norm=1.0, schedule="cosine",
        warmup=min(100, steps // 10), precision="bfloat16", save_every=200,
    )  # fmt: skip


def _run(method: Method, blip: TinyBlip2, source: Pool, settings: TrainConfig, out: Path, seed: int) -> None:
    train(method, blip, source, settings, out, seed=seed)  # type: ignore[arg-type]


def _pictures(source: Pool, index: Sequence[int]) -> Float[Tensor, "b 3 64 64"]:
    """Look up pictures of a pool, pixels from 0 to 255."""
    return torch.from_numpy(source.pictures[np.asarray(index)]).permute(0, 3, 1, 2).float()


@torch.no_grad()
def _kept_tokens(folder: Path, blip: TinyBlip2, source: Pool) -> Float16[np.ndarray, "n p v"]:
    """Encode a pool with the frozen tower, or map what an earlier call encoded with the same weights."""
    path = folder / f"{source.fingerprint}.tokens-{digest(blip.model.vision_model.state_dict())}.npy"
    if not path.exists():
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        shape = (len(source), *blip.tokens(_pictures(source, [0])).shape[1:])
        kept = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
        with progress.bar(len(source), "encoding the pool") as bar:
            for start in range(0, len(source), _BLOCK):
                rows = range(start, min(start + _BLOCK, len(source)))
                kept[rows.start : rows.stop] = blip.tokens(_pictures(source, rows)).numpy()
                bar.advance(len(rows))
        kept.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


class Distillation(Method):
    """Fit the new vision tower to the tokens of the old one, as `ln_vision` will read them: each normalised."""

    needs = frozenset({"image"})
    learns_from = "scenes"
    trains = (r"blip\.model\.vision_model\.(embeddings|encoder)\..*",)

    def __init__(self, blip: TinyBlip2, shown: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)  # it trains a backbone, it does not stand on one
        self.options = self.Options()
        self.blip, self.shown = blip, shown

    def prepare(self, backbone: Any, source: Any, *, seed: int, draws: int, store: Store) -> "Pictures":
        """Read pictures out of the pool."""
        return Pictures(source)

    def losses(self, backbone: Any, batch: Float[Tensor, "b 3 64 64"]) -> dict[str, Tensor]:
        """Mean square difference of the normalised tokens: 0 where they agree, 2 where they are unrelated."""
        with torch.no_grad():
            wanted = self.shown(batch).float()
        found = self.blip.tokens(batch).float()
        return {"tokens": F.mse_loss(F.layer_norm(found, found.shape[-1:]), F.layer_norm(wanted, wanted.shape[-1:]))}


@dataclass
class Pictures:
    """The pictures of a pool, one a row."""

    pool: Pool

    def __len__(self) -> int:
        """Count them."""
        return len(self.pool)

    def batch(self, rows: Sequence[int], random: StepRandom) -> Float[Tensor, "b 3 64 64"]:
        """Collect pictures, pixels from 0 to 255."""
        return _pictures(self.pool, rows)


@dataclass
class Blip2Options:
    """What weighs how much in a run of `steps`.

    `matched` is the share of a batch that the matching head sees (three pairs of each cost as much as the contrast of
    the whole batch), after the share `alone` of the steps: before, no similarity is worth drawing negatives by.
    `aux_weight` is that of the ground truth read from both sides.
    """

    steps: int = 1
    alone: float = 0.25
    matched: float = 0.25
    aux_weight: float = 0.3


@dataclass(frozen=True)
class PairBatch:
    """Frozen tokens of pictures, captions as rows of ids, what they show, and the draws that choose hard negatives."""

    tokens: Float[Tensor, "b p v"]
    rows: Rows
    truth: Truth
    noise: Float[Tensor, "b 2 b"]
    step: int


class Pretraining(Method):
    """Contrast of images and texts (ITC), matching with hard negatives (ITM), and read-outs of the ground truth.

    BLIP-2 has image-grounded text generation beside the first two, which makes the queries gather all that a text may
    say. Here linear heads on the queries' mean and on the text's class token do it, as in the tiny CLIP's pre-training:
    without them the contrast hardly falls in the first 200 steps.
    """

    needs = frozenset({"image", "text"})
    learns_from = "scenes"
    trains = (
        r"heads\.(shape|attribute|cell|background)\..*",
        r"blip\.(temperature|model\.(?!vision_model\.(embeddings|encoder)\.).*)",
    )
    Options = Blip2Options

    def __init__(self, options: Blip2Options, blip: TinyBlip2, tokens: Float16[np.ndarray, "n p v"]) -> None:
        nn.Module.__init__(self)
        self.options, self.blip, self.tokens = options, blip, tokens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("heads"))
            self.heads = Heads(blip.word_width)

    def prepare(self, backbone: Any, source: Any, *, seed: int, draws: int, store: Store) -> "Pairs":
        """Make rows of a scene and its one-edit neighbour."""
        return Pairs(self.blip, source, self.tokens, seed)

    def losses(self, backbone: Any, batch: PairBatch) -> dict[str, Tensor]:
        """Contrast all rows both ways, read the ground truth from both sides, and match a share of the rows."""
        parts = self.blip.parts
        normed = parts.normed(batch.tokens)
        seen, read = self.blip.seen(normed), self.blip.read(batch.rows)
        similar = contrast(self.blip, parts.vision_projection(seen), parts.text_projection(read))
        told = self.heads.scene(seen.float().mean(dim=1), batch.truth) + self.heads.scene(read.float(), batch.truth)
        terms = {"itc": (info_nce(similar) + info_nce(similar.T)) / 2, "aux": self.options.aux_weight * told}
        if batch.step >= self.options.alone * self.options.steps:
            rows = round(self.options.matched * len(normed))
            of_image, of_text = matches(similar[:rows].detach(), similar.T[:rows].detach(), batch.noise[:rows])
            ids, mask = batch.rows
            terms["itm"] = matching(self.blip.match(normed[of_image], (ids[of_text], mask[of_text])))
        return terms


@dataclass
class MatchingOptions:
    """How the matching head is trained alone.

    `matched` is the share of a batch that it sees; the first `full` of a batch have captions that tell everything, so
    that a scene one edit away is a wrong one; of ten rows `easy` have negatives drawn evenly, the others by the
    contrast. `differ_weight` is that of the read-out of what differs.
    """

    matched: float = 0.5
    full: float = 0.4
    easy: int = 3
    differ_weight: float = 0.3


class Matching(Method):
    """Matching with hard negatives, the contrast going on beside it, and a read-out of what differs.

    Against hard negatives alone the matching loss hardly leaves that of a guess. Two things make it fall: full captions
    for the rows it sees, and a linear head on the queries, read together with a text, that tells which shapes (or the
    background) are not as in the text's own scene. The head is thrown away.
    """

    needs = frozenset({"image", "text"})
    learns_from = "scenes"
    trains = (r"differ\..*", r"blip\.(temperature|model\.(?!vision_model\.(embeddings|encoder)\.).*)")
    Options = MatchingOptions

    def __init__(self, options: MatchingOptions, blip: TinyBlip2, tokens: Float16[np.ndarray, "n p v"]) -> None:
        nn.Module.__init__(self)
        self.options, self.blip, self.tokens = options, blip, tokens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("differ"))
            self.differ = nn.Linear(blip.model.query_tokens.shape[1] * blip.word_width, len(SHAPES) + 1)

    def prepare(self, backbone: Any, source: Any, *, seed: int, draws: int, store: Store) -> "Pairs":
        """Make rows of a scene and its one-edit neighbour, the first of a batch with full captions."""
        return Pairs(self.blip, source, self.tokens, seed, self.options.full)

    def losses(self, backbone: Any, batch: PairBatch) -> dict[str, Tensor]:
        """Contrast all rows both ways; match a share of them and tell what differs in each pair."""
        parts = self.blip.parts
        normed = parts.normed(batch.tokens)
        similar = contrast(self.blip, self.blip.images(normed), self.blip.texts(batch.rows))
        rows = round(self.options.matched * len(normed))
        hard = (torch.arange(rows, device=similar.device) % 10 >= self.options.easy).float()[:, None]
        drawn = similar.detach()
        of_image, of_text = matches(drawn[:rows] * hard, drawn.T[:rows] * hard, batch.noise[:rows])
        ids, mask = batch.rows
        fused = parts.fuse(normed[of_image], ids[of_text], mask[of_text])
        queries = fused[:, : self.blip.model.query_tokens.shape[1]].float().flatten(1)
        told = F.binary_cross_entropy_with_logits(
            self.differ(queries), differences(batch.truth[of_image], batch.truth[of_text]), reduction="none"
        )
        return {
            "itc": (info_nce(similar) + info_nce(similar.T)) / 2,
            "itm": matching(parts.matching(fused).float()),
            "differ": self.options.differ_weight * told.sum(dim=1).mean(),
        }


def contrast(blip: TinyBlip2, images: Float[Tensor, "b t d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Logits of texts (rows) and images (columns): greatest cosine over an image's vectors by the temperature."""
    return max_similarity(texts[:, None], images) / blip.temperature.clamp(min=LEAST_TEMPERATURE)


def differences(left: Truth, right: Truth) -> Float[Tensor, "n s"]:
    """Say of two scenes each, for every shape, whether it is another (or only in one), and last of the background."""
    shapes = (left.attributes != right.attributes).any(dim=2)
    return torch.cat([shapes, (left.backgrounds != right.backgrounds)[:, None]], dim=1).float()


def matches(
    texts: Float[Tensor, "m b"], images: Float[Tensor, "m b"], noise: Float[Tensor, "m 2 b"]
) -> tuple[Int[Tensor, " 3*m"], Int[Tensor, " 3*m"]]:
    """Pair rows for the matching head, as indices of images and of texts: each with its own, then with negatives.

    `texts` are the logits of m texts over all images, by which images are drawn for them, `images` those of m images.
    """
    own = torch.arange(len(texts), device=texts.device)
    other_images, other_texts = hard_negatives(texts, noise[:, 0]), hard_negatives(images, noise[:, 1])
    return torch.cat([own, other_images, own]), torch.cat([own, own, other_texts])


def matching(logits: Float[Tensor, "n 2"]) -> Float[Tensor, ""]:
    """Cross-entropy of the matching head where the first third belongs together."""
    return F.cross_entropy(logits, (torch.arange(len(logits), device=logits.device) < len(logits) // 3).long())


@torch.no_grad()
def hard_negatives(logits: Float[Tensor, "m b"], noise: Float[Tensor, "m b"]) -> Int[Tensor, " m"]:
    """Draw one other row each, with probability softmax(logits); row i's own is i.

    The largest of logits plus Gumbel noise is a draw from their softmax (Gumbel-max); `noise` is uniform in [0, 1).
    """
    gumbel = -torch.log(-torch.log(noise.clamp(1e-7, 1 - 1e-7)))
    return (logits.float() + gumbel.to(logits.device)).fill_diagonal_(float("-inf")).argmax(dim=1)


@dataclass
class Pairs:
    """A pool's scenes with their one-edit neighbours, as frozen tokens.

    The first `full` of a batch have captions that tell everything but places, the others such as people write.
    """

    blip: TinyBlip2
    pool: Pool
    tokens: Float16[np.ndarray, "n p v"]
    seed: int
    full: float = 0.0

    def __len__(self) -> int:
        """Count pairs."""
        return len(self.pool) // 2

    def batch(self, rows: Sequence[int], random: StepRandom) -> PairBatch:
        """Collect the tokens of both scenes of each row; captions are drawn afresh for every step."""
        index = [2 * row + side for row in rows for side in (0, 1)]
        noise = random.uniform("negatives", 2, 2, len(index)).flatten(0, 1)
        front = round(self.full * len(index))
        texts = [self._caption(i, random.step, place < front) for place, i in enumerate(index)]
        tokens = torch.from_numpy(self.tokens[index]).float()
        return PairBatch(tokens, self.blip.rows(texts), truth([self.pool[i] for i in index]), noise, random.step)

    def _caption(self, index: int, step: int, full: bool) -> str:
        scene, rng = self.pool.scenes[index], random.Random(seed_of(self.seed, step, index))
        return full_caption(scene, rng, ALL, positions=0.0) if full else caption(scene, rng, ALL, chatter=True)


@torch.no_grad()
def measure(blip: TinyBlip2, count: int = 500, top: int = 10) -> dict[str, float]:
    """Score text-to-image retrieval on the fresh scenes that the tiny CLIP is scored on.

    `R@1 full/train` is the share of full captions (training or held-out words) whose scene ranks first of `count`, by
    the contrastive similarity; `neighbour` is the choice between a scene and two one-edit neighbours. `ITM` are the
    same with the matching head choosing, among the `top` of a ranking where there is one.
    """
    rng = random.Random("measure")
    scenes = [sample_scene(rng) for _ in range(count)]
    normed = _normed(blip, scenes, 1)
    images = _by_block(blip.images, normed)
    writers: dict[str, Callable[[Scene], str]] = {
        "full/train": lambda s: full_caption(s, rng, TRAIN, positions=0.0),
        "full/bench": lambda s: full_caption(s, rng, BENCH, positions=0.0),
        "noisy/train": lambda s: caption(s, rng, TRAIN),
    }
    scores: dict[str, float] = {}
    for name, write in writers.items():
        texts = [write(scene) for scene in scenes]
        best = max_similarity(blip.texts(blip.rows(texts))[:, None], images).topk(min(top, count)).indices
        fits = torch.stack([_fits(blip, normed[column], texts) for column in best.T], dim=1)
        chosen = {"R@1": best[:, 0], "ITM R@1": best.gather(1, fits.argmax(dim=1, keepdim=True))[:, 0]}
        scores |= {f"{how} {name}": float((x == torch.arange(count)).float().mean()) for how, x in chosen.items()}
    texts = [full_caption(scene, rng, TRAIN, positions=0.0) for scene in scenes]
    rivals = [_normed(blip, [_neighbour(scene, rng) for scene in scenes], seed) for seed in (2, 3)]
    vectors = blip.texts(blip.rows(texts))

    def similar(pictures: Tensor) -> Tensor:
        """Compare each picture with its text."""
        units = F.normalize(_by_block(blip.images, pictures), dim=-1)
        return torch.einsum("btd,bd->bt", units, F.normalize(vectors, dim=-1)).amax(dim=1)

    for name, score in {"neighbour": similar, "ITM neighbour": lambda x: _fits(blip, x, texts)}.items():
        right = score(normed)
        scores[name] = float(torch.stack([right > score(rival) for rival in rivals]).all(0).float().mean())
    units = F.normalize(images, dim=-1)
    scores["cosine matched"] = float(similar(normed).mean())
    scores["cosine of an image's vectors"] = float(torch.einsum("btd,bsd->bts", units, units).mean())
    scores["temperature"] = float(blip.temperature)
    return scores


def _normed(blip: TinyBlip2, scenes: Sequence[Scene], seed: int) -> Float[Tensor, "b p v"]:
    """Draw scenes and encode them up to `ln_vision`."""
    pictures = np.stack([draw(scene, seed * 1_000_003 + index)[0] for index, scene in enumerate(scenes)])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(blip.device)
    return _by_block(lambda block: blip.parts.normed(blip.tokens(block)), pixels)


def _fits(blip: TinyBlip2, normed: Float[Tensor, "b p v"], texts: list[str]) -> Float[Tensor, " b"]:
    """Let the matching head say by how much picture i and text i belong together."""
    ids, mask = blip.rows(texts)
    logits = [blip.match(*parts) for parts in _split(normed, ids, mask)]
    return torch.cat(logits).diff(dim=1)[:, 0]


def _split(normed: Tensor, ids: Tensor, mask: Tensor) -> list[tuple[Tensor, Rows]]:
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(normed), _BLOCK)]
    return [(normed[block], (ids[block], mask[block])) for block in blocks]


def _by_block(make: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([make(block) for block in rows.split(_BLOCK)])


def _neighbour(scene: Scene, rng: random.Random) -> Scene:
    """Draw a scene one edit away."""
    while True:
        edits = propose_many(scene, (rng.choice([kind for kind in KINDS if kind != "move"]),), rng)
        if edits:
            return edited(scene, edits, rng)
