"""RTD: a text tower trained, post hoc, for the sentences of composed retrieval.

Byun et al., "An Efficient Post-hoc Framework for Reducing Task Discrepancy of Text Encoders for Composed Image
Retrieval", ICCV 2025, arXiv:2406.09188.
The image tower, the projector and the gallery stay as they are; only the tower that encodes queries changes. It is
trained on text triplets (reference caption, conditioning text, target caption), without images.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cir.backbones.base import Backbone, TextTower
from cir.errors import InputError, nearest
from cir.methods import masking
from cir.methods.base import Batches, Method, PseudoWordMethod, Store
from cir.methods.masking import clean
from cir.methods.noise import check, perturb
from cir.methods.texts import FrozenTexts, TokenRows, fingerprint, rules
from cir.methods.tuning import KINDS, prepared
from cir.objectives import gather, nt_xent
from cir.prompts import Template, stack
from cir.randomness import StepRandom
from cir.schema import Prompt

ANCHORS = ("frozen", "stop_gradient", "trainable")
CONCATS = ("pseudo_word", "plain_text")
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"gather_negatives": False, "all_reduce": False, "autocast": False},
}
"""What a preset fixes; `released` is what the published training script does in effect (docs/methods/rtd.md)."""


@runtime_checkable
class Triplet(Protocol):
    """A reference caption, a text that says what to change, and the caption of the result."""

    reference: str
    text: str
    target: str


@dataclass(init=False)
class RTDOptions:
    """RTD's settings; the defaults are those of the paper, with the released command's temperature and noise."""

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
    """`all`, `last_<k>` (last k blocks, projection, final norm where there is one), `projection`, `attention`,
    `layer_norm`, or `lora_<rank>` (adapters only)."""
    lora_alpha: int = 16
    """Adapters are scaled by this over their rank."""
    template: str = "a photo of $ that {text}"
    """The composed sentence in training; should be the one of inference."""
    special: str = "a photo of $"
    """The sentence of the refined batch."""
    plain: str = "{reference}, {text}"
    """The composed sentence of `plain_text`: this project's wording, the paper's is not public."""
    gather_negatives: bool = True
    """Take negatives from all processes; off is the released behaviour."""
    all_reduce: bool = True
    """Average gradients over processes; off, each trains a tower of its own and the first one's is kept (released)."""
    autocast: bool = True
    """Let mixed precision reach the tower in training; off, it computes in float32, as released."""
    preset: str = "paper"
    """`paper`, or `released`, which turns the last three off; one that is given otherwise is then an error."""

    def __init__(self, **given: Any) -> None:
        known = {field.name: field.default for field in fields(self)}
        if unknown := given.keys() - known:
            raise TypeError(f"rtd: unknown options {sorted(unknown)}")
        preset = given.get("preset", known["preset"])
        _choose("preset", preset, tuple(PRESETS))
        for name, value in PRESETS[preset].items():
            if given.get(name, value) != value:
                raise InputError(f"method rtd: preset {preset} means {name}={str(value).lower()}, got {given[name]!r}; "
                                 "leave it out, or take preset paper and set each option")  # fmt: skip
        self.__dict__.update(known | PRESETS[preset] | given)


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
        _choose("anchor", options.anchor, ANCHORS)
        _choose("concat", options.concat, CONCATS)
        check(options.noise)
        if options.gather_negatives and not options.all_reduce:
            raise InputError("method rtd: all_reduce=false leaves each process to itself, and a gathered loss gives it "
                             "its own rows' part of the gradient only; set gather_negatives=false too")  # fmt: skip
        self.all_reduce = options.all_reduce
        self.base = _projecting(base).requires_grad_(False)
        self.text = deepcopy(backbone.text).float()
        self.trains = prepared(options.trainable, self.text, options.lora_alpha)
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

    def query_side(self, backbone: Backbone) -> tuple[str, ...]:
        """Let a second stage train the whole tower on, adapters included."""
        return (KINDS["all"],)

    def prepare(self, backbone: Backbone, source: Sequence[Triplet], *, seed: int, draws: int, store: Store) -> Batches:
        """Lay out triplets, each once; frozen features of their captions are cached where that pays."""
        return Triplets(self.options, backbone, source, draws, store)

    def losses(self, backbone: Backbone, batch: TripletBatch) -> dict[str, Tensor]:
        """Target-anchored contrast (section 3): NT-Xent between queries and anchors, row i with row i.

        With a refined batch these are 2b rows a side: target captions, then reference captions.
        """
        queries = self._queries(batch)
        # Behind the queries: weights that autocast first casts without gradient would stay without one.
        anchors = self._anchors(batch)
        if self.options.gather_negatives:
            queries, anchors = gather(queries), gather(anchors)
        return {"nt_xent": nt_xent(anchors, queries, self.options.tau)}

    def _queries(self, batch: TripletBatch) -> Float[Tensor, "n d"]:
        """Encode the composed sentences and, with a refined batch, the references alone, in one call."""
        prompts = [batch.composed] + ([batch.special] if batch.special is not None else [])
        pseudo, owner = None, None
        if self.options.concat == "pseudo_word":
            with torch.no_grad():
                noisy = perturb(batch.reference, self.options.noise, self.options.noise_scale, batch.random)
                pseudo = self.base.words(noisy).float()
            owner = np.tile(np.arange(len(batch.composed)), len(prompts))
        with self._precision():
            return self.text.encode(stack(prompts), pseudo, owner).float()

    def _anchors(self, batch: TripletBatch) -> Float[Tensor, "n d"]:
        """Look up what the queries are pulled to: target captions and, with a refined batch, reference captions."""
        sides = 1 if batch.special is None else 2
        if self.options.anchor == "frozen":
            return torch.cat([batch.target, batch.reference][:sides])
        with torch.set_grad_enabled(self.options.anchor == "trainable"), self._precision():
            return self.text.encode(stack(batch.captions[:sides])).float()

    def _precision(self) -> AbstractContextManager[Any]:
        """Keep mixed precision away from the tower where it should compute in float32."""
        if self.options.autocast:
            return nullcontext()
        return torch.autocast(next(self.text.parameters()).device.type, enabled=False)


class Triplets:
    """Triplets prepared for RTD; captions are cleaned as LinCIR's, the conditioning text stays as it is."""

    def __init__(
        self, options: RTDOptions, backbone: Backbone, source: Sequence[Triplet], draws: int, store: Store
    ) -> None:
        self.options = options
        self.source = source
        self.tokenizer = backbone.tokenizer
        self.template, self.special = Template(options.template), Template(options.special)
        cleaned = (fingerprint(source), rules(masking))
        # One list of captions for both columns, so that a caption in both is encoded once: 2i targets, 2i+1 references.
        self.frozen = FrozenTexts(
            backbone, self._caption, 2 * len(source), 2 * draws, store, (*cleaned, "rtd captions")
        )
        sentence = options.template if options.concat == "pseudo_word" else options.plain
        known = (*cleaned, "rtd composed", options.concat, sentence)
        ahead = len(source) if len(source) < draws else None
        self.composed = TokenRows(self.tokenizer, self._composed, ahead, store, known)
        self.alone = TokenRows(self.tokenizer, lambda _: self.special.fill(""))

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> TripletBatch:
        """Look up or make the rows' features and prompts."""
        sides = [2 * row for row in rows], [2 * row + 1 for row in rows]
        target, reference = self.frozen([*sides[0], *sides[1]]).split(len(rows))
        free = self.options.anchor != "frozen"
        return TripletBatch(
            target=target,
            reference=reference,
            composed=self.composed.prompt(rows),
            special=self._special(rows) if self.options.refined_batch else None,
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

    def _special(self, rows: Sequence[int]) -> Prompt:
        """Collect the sentences of the references alone: one for all where a pseudo-word carries the reference."""
        if self.options.concat == "pseudo_word":
            return self.alone.prompt([0] * len(rows))
        return self.frozen.tokens.prompt([2 * row + 1 for row in rows])


def _projecting(base: Method | None) -> PseudoWordMethod:
    """Refuse a base that cannot make pseudo-words of a caption's feature, which stands for an image's here."""
    name = type(base).__name__
    needed = "rtd wraps a method that projects a joint feature to pseudo-words (lincir, pic2word, searle)"
    if not isinstance(base, PseudoWordMethod) or base.wraps:
        raise InputError(f"{needed}; got {name} as base")
    if base.reads != "features":
        raise InputError(f"{needed}; {name} reads a picture's {base.reads}, and a caption has none")
    if not base.learns_from:
        raise InputError(f"{needed}; {name} has no projector: it optimises pseudo-words image by image")
    return base


def _choose(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{option} {value!r} is unknown; {nearest(value, allowed)}")
