"""RTD: a text tower trained, post hoc, for the sentences of composed retrieval.

Byun et al., "Reducing Task Discrepancy of Text Encoders for Composed Image Retrieval", ICCV 2025, arXiv:2406.09188.
The image tower, the projector and the gallery stay as they are; only the tower that encodes queries changes. It is
trained on text triplets (reference caption, conditioning text, target caption), without images.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cir.backbones.base import Backbone, TextTower
from cir.errors import InputError, nearest
from cir.methods.base import Batches, Method, PseudoWordMethod, Store
from cir.methods.masking import clean
from cir.methods.noise import check, perturb
from cir.methods.texts import FrozenTexts, TokenRows, encode_by_length
from cir.objectives import gather, nt_xent
from cir.prompts import Template
from cir.randomness import StepRandom
from cir.schema import Prompt

ANCHORS = ("frozen", "stop_gradient", "trainable")
CONCATS = ("pseudo_word", "plain_text")


@runtime_checkable
class Triplet(Protocol):
    """A reference caption, a text that says what to change, and the caption of the result."""

    reference: str
    text: str
    target: str


@dataclass
class RTDOptions:
    """RTD's settings; the defaults are those of the released training command, negatives apart."""

    anchor: str = "frozen"
    """What the queries are contrasted with: features of the `frozen` tower, of the tower in training (`trainable`),
    or of the latter without gradient (`stop_gradient`)."""
    refined_batch: bool = True
    """Add the pairs (reference as pseudo-word -> reference caption): hard negatives of the composed pairs."""
    concat: str = "pseudo_word"
    """How the reference caption enters the query: a `pseudo_word` in the inference template, or as `plain_text`."""
    noise: str = "uniform_gaussian"
    noise_scale: float = 0.5
    tau: float = 0.07
    trainable: str = "all"
    """`all`, `last_<k>` (last k blocks, final norm and projection) or `projection`."""
    template: str = "a photo of $ that {text}"
    """The composed sentence in training; should be the one of inference."""
    special: str = "a photo of $"
    """The sentence of the refined batch."""
    plain: str = "{reference}, {text}"
    """The composed sentence of `plain_text`: this project's wording, the paper's is not public."""
    gather_negatives: bool = True
    """Take negatives from all processes; off is the released behaviour."""


@dataclass(frozen=True)
class TripletBatch:
    """Frozen features of both captions, and the token rows the tower in training encodes."""

    target: Float[Tensor, "b d"]
    reference: Float[Tensor, "b d"]
    composed: Prompt
    special: Prompt | None
    captions: tuple[Prompt, ...]
    """Target and reference captions as token rows, only where the anchor is not frozen."""
    random: StepRandom


class RTD(PseudoWordMethod):
    """A wrapper: the base method's pseudo-words, encoded by a text tower of its own."""

    trains: tuple[str, ...] = (r"text\..*",)
    paper = "Byun et al., ICCV 2025, arXiv:2406.09188"
    learns_from = "triplets"
    wraps = True
    Options = RTDOptions

    def __init__(self, options: RTDOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        if not isinstance(base, PseudoWordMethod):
            raise InputError(f"rtd wraps a method that makes pseudo-words (lincir); got {type(base).__name__} as base")
        _choose("anchor", options.anchor, ANCHORS)
        _choose("concat", options.concat, CONCATS)
        check(options.noise)
        self.base = base.requires_grad_(False)
        self.text = deepcopy(backbone.text).float()
        self.trains = patterns(options.trainable, self.text)
        self.train(self.training)

    def train(self, mode: bool = True) -> "RTD":
        """Switch modes; base and tower never leave evaluation: neither's dropout belongs to this training."""
        super().train(mode)
        self.base.eval()
        self.text.eval()
        return self

    def words(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b s w"]:
        """Take the base's pseudo-words."""
        return self.base.words(image)

    def tower(self, backbone: Backbone) -> TextTower:
        """Encode queries with the trained tower."""
        return self.text

    def prepare(self, backbone: Backbone, source: Sequence[Triplet], *, seed: int, draws: int, store: Store) -> Batches:
        """Lay out triplets, each once; frozen features of their captions are cached where that pays."""
        return Triplets(self.options, backbone, source, draws)

    def losses(self, backbone: Backbone, batch: TripletBatch) -> dict[str, Tensor]:
        """Target-anchored contrast (section 3): NT-Xent between queries and anchors, row i with row i."""
        queries = self._queries(batch)
        anchors = self._anchors(batch)
        if self.options.gather_negatives:
            queries, anchors = gather(queries), gather(anchors)
        return {"nt_xent": nt_xent(anchors, queries, self.options.tau)}

    def _queries(self, batch: TripletBatch) -> Float[Tensor, "n d"]:
        """Encode the composed sentences and, with a refined batch, the references alone."""
        pseudo = None
        if self.options.concat == "pseudo_word":
            with torch.no_grad():
                noisy = perturb(batch.reference, self.options.noise, self.options.noise_scale, batch.random)
                pseudo = self.base.words(noisy)
        prompts = [batch.composed] + ([batch.special] if batch.special is not None else [])
        return torch.cat([encode_by_length(self.text, prompt, pseudo) for prompt in prompts]).float()

    def _anchors(self, batch: TripletBatch) -> Float[Tensor, "n d"]:
        """Look up what the queries are pulled to: target captions and, with a refined batch, reference captions."""
        if self.options.anchor == "frozen":
            features = [batch.target, batch.reference]
        else:
            # Behind the queries: weights that autocast first casts without gradient would stay without one.
            with torch.set_grad_enabled(self.options.anchor == "trainable"):
                features = [encode_by_length(self.text, prompt).float() for prompt in batch.captions]
        return torch.cat(features if batch.special is not None else features[:1])


class Triplets:
    """Triplets prepared for RTD; captions are cleaned as LinCIR's, the conditioning text stays as it is."""

    def __init__(self, options: RTDOptions, backbone: Backbone, source: Sequence[Triplet], draws: int) -> None:
        self.options = options
        self.source = source
        self.tokenizer = backbone.tokenizer
        self.template, self.special = Template(options.template), Template(options.special)
        # One list of captions for both columns, so that a caption in both is encoded once: 2i targets, 2i+1 references.
        self.frozen = FrozenTexts(backbone, self._caption, 2 * len(source), 2 * draws)
        self.composed = TokenRows(self.tokenizer, self._composed)
        self.alone = TokenRows(self.tokenizer, self._alone)

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> TripletBatch:
        """Look up or make the rows' features and prompts."""
        sides = [2 * row for row in rows], [2 * row + 1 for row in rows]
        target, reference = (self.frozen(side) for side in sides)
        free = self.options.anchor != "frozen"
        return TripletBatch(
            target=target,
            reference=reference,
            composed=self.composed.prompt(rows),
            special=self.alone.prompt(rows) if self.options.refined_batch else None,
            captions=tuple(self.frozen.tokens.prompt(side) for side in sides) if free else (),
            random=random,
        )

    def _caption(self, number: int) -> str:
        triplet = self.source[number // 2]
        return clean(triplet.reference if number % 2 else triplet.target, self.tokenizer)

    def _composed(self, row: int) -> list[str]:
        text = self.source[row].text
        if self.options.concat == "pseudo_word":
            return self.template.fill(text)
        words = {"{reference}": self._caption(2 * row + 1), "{text}": text}
        return [re.sub(r"{reference}|{text}", lambda m: words[m[0]], self.options.plain)]

    def _alone(self, row: int) -> list[str]:
        return self.special.fill("") if self.options.concat == "pseudo_word" else [self._caption(2 * row + 1)]


def patterns(trainable: str, text: TextTower) -> tuple[str, ...]:
    """Translate `all`, `last_<k>` or `projection` into name patterns for a text tower's parameters."""
    projection = r"text\.(.*\.)?(text_projection|head)\..*"
    if trainable in ("all", "projection"):
        return (r"text\..*",) if trainable == "all" else (projection,)
    numbers = {int(found[1]) for name, _ in text.named_parameters() if (found := re.search(r"layers\.(\d+)\.", name))}
    blocks = max(numbers, default=-1) + 1
    wanted = re.fullmatch(r"last_(\d+)", trainable)
    if not wanted or not 1 <= int(wanted[1]) <= blocks:
        raise InputError(f"trainable {trainable!r}: expected all, projection, or last_1 to last_{blocks}")
    last = "|".join(map(str, range(blocks - int(wanted[1]), blocks)))
    return (rf"text\..*layers\.({last})\..*", r"text\..*final_layer_norm\..*", projection)


def _choose(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{option} {value!r} is unknown; {nearest(value, allowed)}")
