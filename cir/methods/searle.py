"""SEARLE: a projector distilled from optimised pseudo-words (Baldrati et al., ICCV 2023, arXiv:2303.15247, section 3).

Every training image is inverted once (`cir.methods.inversion`); then phi learns to reach the same pseudo-words from the
images' features in one pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from cir import progress
from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods.base import Batches, Images, Method, PseudoWordMethod, Store
from cir.methods.concepts import assigned
from cir.methods.inversion import RULES, InversionOptions, invert
from cir.methods.phrases import Phrasebook, read
from cir.methods.projector import Phi
from cir.objectives import cosine, gather, nt_xent
from cir.prompts import stack
from cir.randomness import StepRandom
from cir.schema import Prompt

GROUP = 8
"""Similar images that stand together in a batch with hard negatives."""


@dataclass
class SEARLEOptions:
    """SEARLE's settings; the defaults are those of the released training command."""

    concepts: str = ""
    """A class list, one name per line, or a CSV with a column DisplayName; empty takes those of `phrases`."""
    phrases: str = ""
    """Lines of `{"concept": ..., "phrases": [...]}`; not needed where both text weights are 0."""
    tokens: str = ""
    """A folder of inverted tokens (`cir import oti`); empty inverts the images here."""
    dropout: float = 0.5
    tau: float = 0.25
    token_weight: float = 1.0
    """Weight of the contrast between the projector's pseudo-words and the optimised ones."""
    text_weight: float = 0.75
    """Weight of the phrases' loss; 0 leaves it out."""
    top_k: int = 150
    """Concepts per image from which a phrase's is drawn; those with a phrase that lacks their name are passed over."""
    gather_negatives: bool = True
    """Take negatives from all processes; off leaves those of the own process."""
    hard_negative_fraction: float = 0.0
    """Share of a batch in groups of similar images: an option after iSEARLE (arXiv:2405.02951), whose own sampler is
    not public."""
    oti_steps: int = 350
    oti_lr: float = 2e-2
    oti_text_weight: float = 0.5
    oti_top_k: int = 15
    oti_batch: int = 256
    oti_mean_over: int = 0
    oti_seed: int = 42
    """Of the inversion alone, so that runs with other seeds share its tokens."""
    text_noise_std: float = 0.0
    """Of the inversion (`InversionOptions`)."""
    hidden: int = 0
    """Width of the projector's hidden layers; 0 is four times the features', as in every published checkpoint."""

    def inversion(self) -> InversionOptions:
        """Collect the inversion's settings."""
        return InversionOptions(
            steps=self.oti_steps,
            lr=self.oti_lr,
            text_weight=self.oti_text_weight,
            top_k=self.oti_top_k,
            seed=self.oti_seed,
            batch=self.oti_batch,
            mean_over=self.oti_mean_over,
            text_noise_std=self.text_noise_std,
        )


@dataclass(frozen=True)
class DistillationBatch:
    """Raw image features, their optimised tokens, and phrases with a slot (behind them, uncached, the phrases)."""

    image: Float[Tensor, "b d"]
    token: Float32[Tensor, "b w"]
    phrases: Prompt | None
    meaning: Float[Tensor, "b d"] | None
    """The phrases' features, None where they are encoded along."""
    random: StepRandom


class SEARLE(PseudoWordMethod):
    """One image feature to one pseudo-word, as optimisation would have found it."""

    trains = (r"phi\..*",)
    paper = "Baldrati et al., ICCV 2023, arXiv:2303.15247"
    learns_from = "images"
    Options = SEARLEOptions

    def __init__(self, options: SEARLEOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        options.inversion()  # refuses what it cannot do
        if not 0 <= options.hard_negative_fraction <= 1:
            raise InputError(f"hard_negative_fraction: got {options.hard_negative_fraction}, expected a share, 0 to 1")
        if min(options.token_weight, options.text_weight) < 0 or options.token_weight + options.text_weight == 0:
            raise InputError("token_weight and text_weight must not be negative, nor both zero")
        self.phi = Phi(backbone.width, backbone.word_width, options.dropout, options.hidden)

    def words(self, image: Float[Tensor, "b d"], random: StepRandom | None = None) -> Float[Tensor, "b 1 w"]:
        """Project raw features to one pseudo-word each; `random` turns dropout on in training mode."""
        return self.phi(image, random).unsqueeze(1)

    def prepare(self, backbone: Backbone, source: Images, *, seed: int, draws: int, store: Store) -> Batches:
        """Invert the images, or read their tokens, and find their concepts; all of it through the store."""
        return Distillation(self.options, backbone, source, draws, store)

    def losses(self, backbone: Backbone, batch: DistillationBatch) -> dict[str, Tensor]:
        """Distil (section 3.2): NT-Xent with the optimised tokens, and the cosine of a phrase with and without s."""
        options, made = self.options, self.words(batch.image, batch.random)
        token, own = batch.token, made[:, 0].float()
        if options.gather_negatives:
            token, own = gather(token), gather(own)
        terms = {"nt_xent": options.token_weight * nt_xent(token, own, options.tau)} if options.token_weight else {}
        if batch.phrases is not None:
            rows = len(made)
            owner = np.tile(np.arange(rows), len(batch.phrases) // rows)
            said = backbone.text.encode(batch.phrases, made, owner).float()
            meaning = said[rows:].detach() if batch.meaning is None else batch.meaning
            terms["cosine"] = options.text_weight * cosine(said[:rows], meaning)
        return terms


class Distillation:
    """Images prepared for SEARLE: features, optimised tokens, concepts, and similar images where those are asked for.

    Each row's phrase is drawn from the step; so are hard negatives (`_with_similar`), whatever the process.
    """

    def __init__(self, options: SEARLEOptions, backbone: Backbone, source: Images, draws: int, store: Store) -> None:
        self.options, self.backbone, self.source, self.store = options, backbone, source, store
        inversions = len(source) * options.oti_steps if not options.tokens else 0
        text_weights = (options.text_weight, options.oti_text_weight if inversions else 0)
        self.seen = (source.fingerprint, backbone.preprocess_id)
        book = None
        if any(text_weights):
            vocabulary = read(options.concepts, options.phrases)
            book = Phrasebook(backbone, vocabulary, draws=inversions + draws, store=store)
        if options.tokens:
            self.tokens = read_tokens(Path(options.tokens), source, backbone.word_width)
        else:
            self.tokens = self._inverted(book if options.oti_text_weight else None)
        self.book = book if options.text_weight else None
        if self.book is not None:
            self.slotted = self.book.every  # made here, before threads ask for it
            identity = (*self.seen, self.book.vocabulary.fingerprint)
            self.near = self._closest(self.book.concepts, options.top_k, "concepts of images", identity)
        if options.hard_negative_fraction:
            everything = source.features(range(len(source))).float().cpu().numpy()
            self.similar = self._closest(everything, GROUP, "similar images", self.seen)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> DistillationBatch:
        """Look up the rows' features and tokens, and draw a phrase for each."""
        # Drawn on the CPU whatever the device: the numbers become indices here.
        drawn = replace(random, device=torch.device("cpu"))
        if self.options.hard_negative_fraction:
            rows = self._with_similar(rows, drawn)
        places = np.asarray(rows, dtype=np.int64)
        token = torch.from_numpy(np.asarray(self.tokens[places], dtype=np.float32)).to(self.backbone.device)
        phrases, meaning = None, None
        if self.book is not None:
            uniform = drawn.uniform("searle.phrase", 2).double().numpy()
            numbers = self.book.vocabulary.phrase_of_any(self.near[places], uniform).tolist()
            phrases, meaning = stack(self.book.rows(self.slotted, numbers)), self.book.cached(numbers)
        image = self.source.features(rows).to(self.backbone.device)
        return DistillationBatch(image, token, phrases, meaning, random)

    def _inverted(self, book: Phrasebook | None) -> Float32[np.ndarray, "n w"]:
        """Invert all images once, block by block."""
        options, count = self.options.inversion(), len(self.source)

        def compute(start: int) -> Iterator[np.ndarray]:
            with progress.bar(count * options.steps, "inverting images (image steps)") as shown:
                shown.skip(start * options.steps)
                for first in range(start, count, options.batch):
                    rows = range(first, min(first + options.batch, count))
                    keys = [_key(self.source, row) for row in rows]
                    images = self.source.features(rows)
                    yield invert(self.backbone, images, keys, options, book, shown.advance).tokens.cpu().numpy()

        phrases = "" if book is None else book.vocabulary.fingerprint
        return self.store.rows("inverted", (*self.seen, phrases, RULES, repr(options)), count, compute)

    def _closest(
        self, others: Float[np.ndarray, "c d"], k: int, kind: str, identity: Sequence[str]
    ) -> Int64[np.ndarray, "n k"]:
        return assigned(self.source.features, len(self.source), others, k, self.store, kind, identity)

    def _with_similar(self, rows: Sequence[int], drawn: StepRandom) -> list[int]:
        """Replace a share of the rows, spread evenly over the batch, by groups of similar images.

        A group is a random image of the source and its closest ones. It depends on seed, step and the rows' places in
        the global batch only: any process finds the same groups.
        """
        share, total = self.options.hard_negative_fraction, drawn.total
        groups = replace(drawn, start=0, stop=total).uniform("searle.similar")
        mixed = list(rows)
        for at, place in enumerate(range(drawn.start, drawn.stop)):
            before = int(place * share)
            if int((place + 1) * share) > before:
                anchor = int(groups[before // GROUP].double() * len(self.source))
                mixed[at] = int(self.similar[anchor][before % GROUP % self.similar.shape[1]])
        return mixed


def read_tokens(folder: Path, source: Images, width: int) -> Float32[np.ndarray, "n w"]:
    """Read inverted tokens and put them in the order of a source, by the images' names or, without, as they come.

    Names are compared as they are, then without folders and endings. Raises `InputError` for images without a token
    and for tokens of another width.
    """
    from cir.methods import token_table  # it knows all methods, this one too

    table, names = token_table.read(folder)
    tokens = table.float().numpy()
    if tokens.shape[1] != width:
        raise InputError(f"{folder}: tokens of width {tokens.shape[1]}, this backbone's words have {width}")
    wanted = [_key(source, row) for row in range(len(source))]
    if not hasattr(source, "name"):
        if len(tokens) != len(wanted):
            raise InputError(f"{folder}: {len(tokens):,} tokens, but the training source has {len(wanted):,} images")
        return tokens
    place = {Path(name).stem: row for row, name in enumerate(names)} | {n: row for row, n in enumerate(names)}
    rows = [place.get(name, place.get(Path(name).stem)) for name in wanted]
    absent = [name for name, row in zip(wanted, rows, strict=True) if row is None]
    if absent:
        raise InputError(f"{folder}: no token for {len(absent):,} of {len(wanted):,} images, first {absent[:3]}")
    return tokens[np.array(rows, dtype=np.int64)]


def _key(source: Images, row: int) -> str:
    """Name an image: as its source does, else by the source and the row."""
    name = getattr(source, "name", None)
    return str(name(row)) if callable(name) else f"{source.fingerprint}/{row}"
