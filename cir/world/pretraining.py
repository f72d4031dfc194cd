"""Pre-training the tiny CLIP: what is learnt, in two stages, as methods the one training loop runs.

Stage 0 trains the vision tower alone on single objects, against ground truth: which shape, colour, fill and size each
patch shows, and what the class token should know. Without it, shape is not learnt in any affordable time. Stage 1 adds
the text tower and CLIP's contrastive loss on pairs of a scene and its one-edit neighbour. The logit scale ends at
100, as real CLIP's does: it gives the space CLIP's modality gap.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cir.backbones.tiny import TinyClip
from cir.methods.base import Method, Store
from cir.objectives import clip_ce
from cir.randomness import StepRandom, seed_of
from cir.world.grammar import ALL, caption
from cir.world.pool import GRID, Pool
from cir.world.scenes import BACKGROUNDS, CELLS, COLOURS, FILLS, SHAPES, SIZES, Scene

_SIZES = {"colour": len(COLOURS), "fill": len(FILLS), "size": len(SIZES)}
FIRST_SCALE, LAST_SCALE = 20.0, 100.0
CLIMB = (0.75, 0.85)


@dataclass(frozen=True)
class Truth:
    """Ground truth of scenes as index tensors; -1 where there is none."""

    groups: Int[Tensor, "n 3 4"]  # per group: shape, colour, fill, size
    shapes: Float[Tensor, "n 8"]  # presence
    attributes: Int[Tensor, "n 8 4"]  # per shape: colour, fill, size, count - 1
    cells: Float[Tensor, "n 9"]  # presence
    backgrounds: Int[Tensor, " n"]

    def __getitem__(self, rows: Int[Tensor, " b"]) -> "Truth":
        """Select scenes."""
        return Truth(
            self.groups[rows], self.shapes[rows], self.attributes[rows], self.cells[rows], self.backgrounds[rows]
        )


def truth(scenes: Sequence[Scene]) -> Truth:
    """Look up the ground truth of scenes."""
    n = len(scenes)
    groups, attributes = np.full((n, 3, 4), -1), np.full((n, len(SHAPES), 4), -1)
    shapes, cells = np.zeros((n, len(SHAPES)), np.float32), np.zeros((n, CELLS), np.float32)
    for i, scene in enumerate(scenes):
        for j, (group, occupied) in enumerate(zip(scene.groups, scene.cells, strict=True)):
            shape = SHAPES.index(group.shape)
            values = [COLOURS.index(group.colour), FILLS.index(group.fill), SIZES.index(group.size)]
            groups[i, j], attributes[i, shape] = [shape, *values], [*values, group.count - 1]
            shapes[i, shape] = 1
            cells[i, list(occupied)] = 1
    backgrounds = np.array([BACKGROUNDS.index(scene.background) for scene in scenes])
    return Truth(*(torch.from_numpy(a) for a in (groups, shapes, attributes, cells, backgrounds)))


class Heads(nn.Module):
    """Linear read-outs of the ground truth; thrown away after pre-training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, len(SHAPES) + 1 + sum(_SIZES.values()))
        self.shape = nn.Linear(width, len(SHAPES))
        self.attribute = nn.Linear(width, len(SHAPES) * (sum(_SIZES.values()) + 3))
        self.cell = nn.Linear(width, CELLS)
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def patches(self, tokens: Float[Tensor, "b n v"], shown: Int[Tensor, "b n"], told: Truth) -> Tensor:
        """Cross-entropy of each patch's shape (or none), and of the other attributes where it shows a group."""
        rows = told.groups.gather(1, shown.clamp(min=0)[..., None].expand(-1, -1, 4))
        on = shown >= 0
        logits = self.patch(tokens).split([len(SHAPES) + 1, *_SIZES.values()], dim=-1)
        labels = [torch.where(on, rows[..., 0], len(SHAPES))] + [torch.where(on, rows[..., k], -1) for k in (1, 2, 3)]
        return _cross_entropies(logits, labels)

    def scene(self, pooled: Float[Tensor, "b v"], told: Truth) -> Tensor:
        """Ask the class token for what it should know: shapes, each shape's attributes and count, cells, background.

        Binary terms are summed over their classes: averaged, shape would weigh a tenth and not be learnt.
        """
        present = F.binary_cross_entropy_with_logits(self.shape(pooled), told.shapes, reduction="none").sum(1).mean()
        where = F.binary_cross_entropy_with_logits(self.cell(pooled), told.cells, reduction="none").sum(1).mean()
        logits = self.attribute(pooled).unflatten(1, (len(SHAPES), -1)).split([*_SIZES.values(), 3], dim=-1)
        bound = _cross_entropies(logits, [told.attributes[..., k] for k in range(4)])
        return present + where + bound + F.cross_entropy(self.background(pooled), told.backgrounds)


def _cross_entropies(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Sum the mean cross-entropies of several attributes; -1 is ignored."""
    terms = [
        F.cross_entropy(x.flatten(0, 1), y.flatten(), ignore_index=-1) for x, y in zip(logits, labels, strict=True)
    ]
    return torch.stack(terms).sum()


@dataclass(frozen=True)
class SceneBatch:
    """Pictures, the patches to look at, what they show, and captions (stage 1)."""

    pixels: Float[Tensor, "b 3 64 64"]
    keep: Int[Tensor, "b n"] | None
    shown: Int[Tensor, "b n"]
    truth: Truth
    captions: list[str]
    step: int


@dataclass
class StageOptions:
    """`patches` kept per picture; the last `whole` of the steps see all of them. `steps` is the run's length."""

    contrastive: bool = False
    patches: int = 16
    whole: float = 0.0
    steps: int = 1
    aux_weight: float = 1.0


class Pretraining(Method):
    """One stage of the tiny CLIP's pre-training."""

    needs = frozenset({"image", "text"})
    learns_from = "scenes"
    Options = StageOptions

    def __init__(self, options: StageOptions, clip: TinyClip) -> None:
        nn.Module.__init__(self)  # it trains a backbone, it does not stand on one
        self.options = options
        self.clip = clip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("heads"))
            self.heads = Heads(clip.width)
        vision = r"clip\.model\.(vision_model|visual_projection)\..*"
        text = r"clip\.model\.(text_model|text_projection)\..*"
        self.trains = (
            (r"heads\..*", vision, text)
            if options.contrastive
            else (r"heads\..*", vision.replace("|visual_projection", ""))
        )

    def prepare(self, backbone: Any, source: Any, *, seed: int, draws: int, store: Store) -> "SceneBatches":
        """Index a pool of pictures; in stage 1 a row is a pair of neighbours."""
        return SceneBatches(self.options, source, seed)

    def losses(self, backbone: Any, batch: SceneBatch) -> dict[str, Tensor]:
        """Read-out losses, and in stage 1 CLIP's contrastive loss at the scale of this step."""
        tokens = self.clip.tokens(batch.pixels, batch.keep)
        pooled = self.clip.pooled(tokens).float()
        aux = self.heads.patches(tokens[:, 1:].float(), batch.shown, batch.truth) + self.heads.scene(
            pooled, batch.truth
        )
        terms = {"aux": self.options.aux_weight * aux}
        if self.options.contrastive:
            terms["clip"] = clip_ce(
                self.clip.images(tokens), self.clip.texts(batch.captions), scale_at(batch.step, self.options.steps)
            )
        return terms


def scale_at(step: int, steps: int) -> float:
    """Stay at 20, climb to 100 along an exponential between three quarters and 85 % of the steps, stay there.

    Late and short on purpose: at 100 from the start the modalities end further apart than a projector trained on text
    alone can bridge.
    """
    done = min(1.0, max(0.0, (step / steps - CLIMB[0]) / (CLIMB[1] - CLIMB[0])))
    return FIRST_SCALE * (LAST_SCALE / FIRST_SCALE) ** done


class SceneBatches:
    """A pool made ready for one stage."""

    def __init__(self, options: StageOptions, pool: Pool, seed: int) -> None:
        self.options, self.pool, self.seed = options, pool, seed
        self.truth = truth(pool.scenes)
        self.patches = torch.from_numpy(pool.patches).flatten(1)

    def __len__(self) -> int:
        """Count rows: pictures in stage 0, pairs in stage 1."""
        return len(self.pool.scenes) // (2 if self.options.contrastive else 1)

    def batch(self, rows: Sequence[int], random: StepRandom) -> SceneBatch:
        """Collect the pictures of the rows; captions are drawn afresh for every step."""
        paired = self.options.contrastive
        index = np.array([2 * row + side for row in rows for side in (0, 1)] if paired else rows)
        pixels = torch.from_numpy(self.pool.pictures[index]).permute(0, 3, 1, 2).float()
        shown = self.patches[torch.from_numpy(index)]
        keep = None
        if random.step < self.options.steps * (1 - self.options.whole):
            noise = random.uniform("patches", (2 if paired else 1) * GRID * GRID).reshape(len(index), -1)
            keep = _choose(shown >= 0, noise, self.options.patches)
            shown = shown.gather(1, keep)
        captions = self._captions(index, random.step) if paired else []
        return SceneBatch(pixels, keep, shown, self.truth[torch.from_numpy(index)], captions, random.step)

    def _captions(self, index: np.ndarray, step: int) -> list[str]:
        return [
            caption(self.pool.scenes[i], random.Random(seed_of(self.seed, step, int(i))), ALL, chatter=True)
            for i in index
        ]


def _choose(on: Bool[Tensor, "b p"], noise: Float[Tensor, "b p"], count: int) -> Int[Tensor, "b n"]:
    """Choose patches that show something before those that do not, at random within each kind."""
    return (on.float() + noise).topk(count, dim=1).indices
