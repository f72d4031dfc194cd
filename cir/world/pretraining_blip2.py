"""Pre-training the tiny BLIP-2: what is learnt, in three stages, as methods the one training loop runs.

Stage 0 distils the tiny CLIP's vision tower, then frozen, into the shape that `Blip2VisionModel` has. Stage 1 is
BLIP-2's first stage (Li et al., ICML 2023, arXiv:2301.12597, section 3.2): the Q-Former learns by contrast and by
matching, and in place of the language-model loss from the world's ground truth. Matching is learnt late and slowly,
so stage 2 is its own.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cir.backbones.tiny_blip2 import Rows, TinyBlip2
from cir.methods.base import Method, Store
from cir.objectives import info_nce, max_similarity
from cir.randomness import StepRandom, seed_of
from cir.world.grammar import ALL, caption, full_caption
from cir.world.pool import Pool
from cir.world.pretraining import Heads, Truth, truth
from cir.world.scenes import SHAPES

LEAST_TEMPERATURE = 0.01


def look_up(source: Pool, index: Sequence[int]) -> Float[Tensor, "b 3 64 64"]:
    """Look up pictures of a pool, pixels from 0 to 255."""
    return torch.from_numpy(source.pictures[np.asarray(index)]).permute(0, 3, 1, 2).float()


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
        return look_up(self.pool, rows)


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
