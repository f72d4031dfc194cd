"""SPN: a second stage of training against a static bank of all training images.

Feng et al., "Improving Composed Image Retrieval via Contrastive Learning with Scaling Positives and Negatives",
ACM MM 2024, arXiv:2404.11317.
The image side stays as the first stage left it, so that every training image has one vector (or t of them) for good.
These are all negatives at every step, whatever the batch; only what encodes a query's text is trained.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cir.backbones.base import Backbone, ImageSide, TextTower
from cir.errors import InputError
from cir.methods.base import Batches, ImageTriplets, Method, NoStore, Store
from cir.objectives import info_nce, max_similarity
from cir.progress import bar
from cir.prompts import JOINERS, Joiner, Template, training_text
from cir.randomness import StepRandom
from cir.schema import Prompt, Query

NUMBERS = 1 << 25
"""Numbers in a block of the bank, and of its comparisons with the queries: 128 MB each."""
BLOCK = 64
"""Pictures encoded at once for the bank: fixed, because a batch's shape reaches the last bits."""


@dataclass
class SPNOptions:
    """SPN's settings; the temperatures of the published commands are in docs/methods/spn.md."""

    tau: float = 0.02
    """Temperature of the contrast with the bank."""
    learn_tau: bool = False
    """Train the temperature, from `tau` on (SPRC)."""
    template: str = "a photo of $ that {text}"
    """The sentence in training, for bases that put a pseudo-word into one; should be that of the evaluation."""


@dataclass(frozen=True)
class BankBatch:
    """What queries are composed of, the number of each one's target, and the bank all batches share."""

    reference: Float[Tensor, "b ..."]
    queries: tuple[Query, ...]
    target: Int64[Tensor, " b"]
    bank: Float[Tensor, "m t d"]


class SPN(Method):
    """A wrapper: the base's queries, from a text side trained against the vectors of all training images."""

    paper = "Feng et al., ACM MM 2024, arXiv:2404.11317"
    learns_from = "image_triplets"
    wraps = True
    Options = SPNOptions

    def __init__(self, options: SPNOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        if options.tau <= 0:
            raise InputError(f"method spn: tau: expected a temperature above 0, got {options.tau}")
        self.base = _trainable(base)
        self.base.settled = True  # from here on nothing but copies of its query side changes
        self.needs, self.reads, self.matches = self.base.needs, self.base.reads, self.base.matches
        own = self.base.query_side(backbone)
        self.text: TextTower | None = None if own else deepcopy(backbone.text).float()
        self.temperature = nn.Parameter(torch.tensor(float(options.tau))) if options.learn_tau else None
        self.trains = (
            *(rf"base\.(?:{pattern})" for pattern in own),
            *(() if own else (r"text\..*",)),
            *((r"temperature",) if options.learn_tau else ()),
        )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(re.fullmatch(pattern, name) for pattern in self.trains))
        self.train(self.training)

    def train(self, mode: bool = True) -> "SPN":
        """Switch modes; what was trained before never leaves evaluation: its dropout does not belong to this stage."""
        super().train(mode)
        self.base.eval()
        if self.text is not None:
            self.text.eval()
        return self

    def image_side(self, backbone: Backbone) -> ImageSide:
        """Leave pictures to the base: its gallery is used on."""
        return self.base.image_side(backbone)

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b ..."],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b n d"]:
        """Compose as the base does, with the trained text side."""
        seen = backbone if self.text is None else WithText(backbone, self.text)
        return self.base.compose(seen, reference, queries, template, join)

    def match(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b ..."],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
        candidates: Float[Tensor, "b k p v"],
    ) -> Float[Tensor, "b k"]:
        """Match as the base does: this stage trains nothing that a matching head reads."""
        return self.base.match(backbone, reference, queries, template, join, candidates)

    def prepare(self, backbone: Backbone, source: ImageTriplets, *, seed: int, draws: int, store: Store) -> Batches:
        """Encode all training images once, by the base's image side, and make the bank of them."""
        batches = BankRows(self.reads, backbone, self.image_side(backbone), source, store)
        self._check(backbone, batches.batch([0], StepRandom(seed, 0, 0, 1, 1)))
        return batches

    def losses(self, backbone: Backbone, batch: BankBatch) -> dict[str, Tensor]:
        """Contrast queries with the whole bank: InfoNCE, one direction, the query's own reference a negative too."""
        similarity = bank_similarity(self._queries(backbone, batch), batch.bank, NUMBERS)
        tau = self.options.tau if self.temperature is None else self.temperature
        return {"info_nce": info_nce(similarity / tau, batch.target)}

    def _queries(self, backbone: Backbone, batch: BankBatch) -> Float[Tensor, "b n d"]:
        """Compose the queries of a batch; their texts are joined already, and cut where the tower's context ends."""
        sentence = Template(self.options.template, "cut")
        return self.compose(backbone, batch.reference, batch.queries, sentence, JOINERS["first"])

    def _check(self, backbone: Backbone, batch: BankBatch) -> None:
        """Refuse a base whose queries do not depend on anything that would be trained."""
        with torch.enable_grad():
            reached = self._queries(backbone, batch).requires_grad
        if not reached:
            raise InputError(
                f"method spn: the queries of {type(self.base).__name__} have no gradient to {', '.join(self.trains)}; "
                "its texts are encoded by something else, which the method would have to name (Method.query_side)"
            )


class BankRows:
    """Triplets prepared for SPN: the bank on the backbone's device, and what queries are composed of."""

    def __init__(self, reads: str, backbone: Backbone, side: ImageSide, source: ImageTriplets, store: Store) -> None:
        self.source, self.device = source, backbone.device
        encoded = source.features if side is backbone else _encoded(side, source, store)
        self.lookup = source.patches if reads == "patches" else encoded
        self.bank = _bank(encoded, source.count, backbone.device)

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> BankBatch:
        """Look up the rows' references and targets, and draw their captions."""
        places = np.asarray(rows, dtype=np.int64)
        # Drawn on the CPU whatever the device: the number becomes a choice here.
        drawn = replace(random, device=torch.device("cpu")).uniform("spn.caption").tolist()
        queries = (self.source.query(row) for row in rows)
        return BankBatch(
            reference=self.lookup(self.source.reference[places].tolist()).to(self.device, torch.float32),
            queries=tuple(
                replace(query, texts=(training_text(query.texts, draw),))
                for query, draw in zip(queries, drawn, strict=True)
            ),
            target=torch.from_numpy(self.source.target[places]).to(self.device),
            bank=self.bank,
        )


class WithText:
    """A backbone whose texts a tower in training encodes, with gradient; everything else is the frozen one's."""

    def __init__(self, frozen: Backbone, text: TextTower) -> None:
        self.frozen, self.text = frozen, text
        self.name, self.fingerprint, self.preprocess_id = frozen.name, frozen.fingerprint, frozen.preprocess_id
        self.tokenizer, self.logit_scale = frozen.tokenizer, frozen.logit_scale
        self.width, self.word_width, self.vision_width = frozen.width, frozen.word_width, frozen.vision_width
        self.vectors, self.device, self.dtype = frozen.vectors, frozen.device, frozen.dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self.frozen, name)  # what a family has beyond the protocol

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Turn one picture into pixels, as the weights ask for."""
        return self.frozen.preprocess(image)

    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels, without gradient."""
        return self.frozen.encode_images(pixels)

    def encode_patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the last block's tokens, without gradient."""
        return self.frozen.encode_patches(pixels)

    def encode_text(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode prompts with the tower in training; gradients flow unless the caller turned them off."""
        return self.text.encode(prompt, pseudo, owner).float()


def bank_similarity(
    queries: Float[Tensor, "b n d"], bank: Float[Tensor, "m t d"], numbers: int
) -> Float[Tensor, "b m"]:
    """Compare queries with a bank (`max_similarity`) in blocks of it.

    Neither a block nor the b x n x t comparisons with each of its images are more than so many numbers; both are made
    again for the gradient, so that only b x m numbers stay.
    """
    rows = max(1, numbers // (bank.shape[1] * max(queries.shape[0] * queries.shape[1], bank.shape[2])))
    if rows >= len(bank):
        return max_similarity(queries, bank)
    again = partial(checkpoint, max_similarity, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(queries, block) for block in bank.split(rows)], dim=1)


def _bank(
    encoded: Callable[[Sequence[int]], Float[Tensor, "b t d"]], count: int, device: torch.device
) -> Float[Tensor, "m t d"]:
    """Put the unit vectors of all images on the device, float32."""
    bank = torch.empty(count, *encoded([0]).shape[1:], device=device)
    for first in range(0, count, BLOCK):
        numbers = range(first, min(first + BLOCK, count))
        bank[first : numbers.stop] = F.normalize(encoded(numbers).to(device, torch.float32), dim=-1)
    return bank


def _encoded(side: ImageSide, source: ImageTriplets, store: Store) -> Callable[[Sequence[int]], Float[Tensor, "b t d"]]:
    """Encode all pictures by an image side of the base's own, once; nothing is kept of one that may still change."""
    count = source.count

    def compute(start: int) -> Iterator[np.ndarray]:
        with bar(count, "encoding the bank", enabled=count > BLOCK) as shown:
            shown.skip(start)
            for first in range(start, count, BLOCK):
                numbers = range(first, min(first + BLOCK, count))
                yield side.encode_images(source.pixels(numbers)).float().cpu().numpy()
                shown.advance(len(numbers))

    kept = store if side.fingerprint else NoStore()
    table = kept.rows("bank", (source.fingerprint, side.fingerprint, side.preprocess_id), count, compute)
    return lambda images: torch.from_numpy(np.asarray(table[np.asarray(images, dtype=np.int64)], dtype=np.float32))


def _trainable(base: Method | None) -> Method:
    """Refuse a base without a text to train on, or whose scores are no greatest cosine."""
    name = type(base).__name__
    if base is None or "text" not in base.needs:
        raise InputError(f"method spn: trains what encodes a query's text; {name} reads none")
    if base.fusion != "max":
        raise InputError(
            f"method spn: {name} scores by the {base.fusion} of several vectors, the bank's loss by the greatest; "
            "wrap a method of one query vector, as sum"
        )
    return base
