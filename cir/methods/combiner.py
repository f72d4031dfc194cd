"""Combiner: a small network that mixes image and text features of a frozen CLIP; CLIP4Cir's second stage.

Baldrati et al., "Effective Conditioned and Composed Image Retrieval Combining CLIP-based Features", CVPR 2022, and
"Composed Image Retrieval using Contrastive Learning and Task-oriented CLIP-based Features", TOMM 2023,
arXiv:2308.11485.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cir.backbones.base import Backbone, one_vector
from cir.errors import InputError
from cir.methods.base import Batches, ImageTriplets, Method, Store
from cir.methods.joined import text_features
from cir.methods.projector import dropped
from cir.methods.texts import FrozenTexts
from cir.objectives import gather, info_nce, max_similarity
from cir.prompts import Joiner, Template, training_text
from cir.randomness import StepRandom
from cir.schema import Query


@dataclass
class CombinerOptions:
    """Combiner's settings; the defaults are those of the released training command."""

    projection: int = 0
    """P, the width both features are projected to; 0 is four times their own, as released."""
    hidden: int = 0
    """H, the width of the hidden layers; 0 is eight times the features', as released."""
    dropout: float = 0.5
    scale: float = 100.0
    """What cosines are multiplied by in the loss: one over the temperature."""
    gather_negatives: bool = True
    """Take negatives from all processes; off leaves those of the own process."""


@dataclass(frozen=True)
class FeatureBatch:
    """Raw features of references, targets and texts, row by row."""

    reference: Float[Tensor, "b t d"]
    target: Float[Tensor, "b t d"]
    text: Float[Tensor, "b d"]
    random: StepRandom


class Combiner(Method):
    """A residual mix: query = norm(v(i, t) + lambda(i, t) t + (1 - lambda(i, t)) i), of raw features i and t.

    Parameter names are those of the published checkpoints. On a backbone with several vectors per image i is their
    mean direction (`one_vector`), and a target is compared by the best of its vectors.
    """

    trains = (r"(text_projection_layer|image_projection_layer|combiner_layer|output_layer|dynamic_scalar)\..*",)
    paper = "Baldrati et al., CVPR 2022; TOMM 2023, arXiv:2308.11485"
    learns_from = "image_triplets"
    Options = CombinerOptions

    def __init__(self, options: CombinerOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        if not 0 <= options.dropout < 1:
            raise InputError(f"dropout: expected a share from 0 to below 1, got {options.dropout}")
        width = backbone.width
        projection, hidden = options.projection or 4 * width, options.hidden or 8 * width
        self.text_projection_layer = nn.Linear(width, projection)
        self.image_projection_layer = nn.Linear(width, projection)
        self.combiner_layer = nn.Linear(2 * projection, hidden)
        self.output_layer = nn.Linear(hidden, width)
        # Indices 0 and 3 are the published names; ReLU, dropout and sigmoid lie between and behind them.
        self.dynamic_scalar = nn.Sequential(
            nn.Linear(2 * projection, hidden), nn.ReLU(), nn.Identity(), nn.Linear(hidden, 1), nn.Sigmoid()
        )

    def combine(
        self, image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], random: StepRandom | None = None
    ) -> Float[Tensor, "b d"]:
        """Mix raw features into unit queries (arXiv:2308.11485, section 3.3); `random` turns dropout on in training."""
        drawn = random if self.training else None
        shared = torch.cat(
            [
                self._dropped(F.relu(self.text_projection_layer(text)), drawn, "text"),
                self._dropped(F.relu(self.image_projection_layer(image)), drawn, "image"),
            ],
            dim=-1,
        )
        mixed = self.output_layer(self._dropped(F.relu(self.combiner_layer(shared)), drawn, "mixed"))
        first, relu, _, second, sigmoid = self.dynamic_scalar
        share = sigmoid(second(self._dropped(relu(first(shared)), drawn, "share"))).float()
        return F.normalize(mixed.float() + share * text + (1 - share) * image, dim=-1)

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b 1 d"]:
        """Encode the joined texts, without template, and mix them with the references."""
        text = text_features(backbone, queries, join, template.overflow)
        return self.combine(one_vector(reference.float()), text)[:, None]

    def prepare(self, backbone: Backbone, source: ImageTriplets, *, seed: int, draws: int, store: Store) -> Batches:
        """Make triplets ready: all is frozen, so pictures and texts are encoded once and kept where that pays."""
        source.features([0])  # all are encoded with the first: now, not behind the progress of training
        return Triplets(backbone, source, draws, store)

    def losses(self, backbone: Backbone, batch: FeatureBatch) -> dict[str, Tensor]:
        """Contrast queries with the batch's targets, in that direction only."""
        query, target = self.combine(one_vector(batch.reference), batch.text, batch.random), batch.target
        if self.options.gather_negatives:
            query, target = gather(query), gather(target.flatten(1)).unflatten(1, target.shape[1:])
        return {"info_nce": info_nce(self.options.scale * max_similarity(query[:, None], target))}

    def _dropped(self, x: Float[Tensor, "b m"], random: StepRandom | None, name: str) -> Float[Tensor, "b m"]:
        return x if random is None else dropped(x, self.options.dropout, random, f"combiner.{name}")


class Triplets:
    """Triplets prepared for the Combiner: features looked up, one of the training captions drawn per row.

    A single text is read as it is, n > 1 in the n + 2 ways of `cir.prompts.training_text`; each is a text of its own to
    `FrozenTexts`, those of a triplet one behind the other.
    """

    def __init__(self, backbone: Backbone, source: ImageTriplets, draws: int, store: Store) -> None:
        self.source = source
        self.device = backbone.device
        texts = (len(source.query(row).texts) for row in range(len(source)))
        self.ways = np.array([count + 2 if count > 1 else 1 for count in texts])
        self.first = np.cumsum(self.ways) - self.ways
        known = (source.fingerprint, "training texts")
        self.frozen = FrozenTexts(backbone, self._text, int(self.ways.sum()), draws, store, known)

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> FeatureBatch:
        """Look up the rows' features."""
        wanted = np.asarray(rows, dtype=np.int64)
        drawn = replace(random, device=torch.device("cpu")).uniform("text").double().numpy()
        text = self.frozen((self.first[wanted] + (drawn * self.ways[wanted]).astype(np.int64)).tolist())
        return FeatureBatch(
            self._features(self.source.reference[wanted]), self._features(self.source.target[wanted]), text, random
        )

    def _features(self, images: Int64[np.ndarray, " b"]) -> Float[Tensor, "b t d"]:
        return self.source.features(images.tolist()).to(self.device, torch.float32, non_blocking=True)

    def _text(self, number: int) -> str:
        """Write out one way to read a triplet's texts."""
        row = int(np.searchsorted(self.first, number, side="right")) - 1
        way = number - self.first[row]
        return training_text(self.source.query(row).texts, (way + 0.5) / self.ways[row])
