"""What every method offers: `compose` for search, `losses` for training, and three declarations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cir.backbones.base import Backbone, ImageSide, Matcher, TextTower, one_vector
from cir.errors import InputError
from cir.prompts import Joiner, Template
from cir.randomness import StepRandom
from cir.schema import Prompt, Query


@dataclass
class NoOptions:
    """The options of a method that has none."""


@runtime_checkable
class Batches(Protocol):
    """A training source made ready for one method: any rows, in any grouping, any number of times."""

    def __len__(self) -> int:
        """Count the rows of the source."""
        ...

    def batch(self, rows: Sequence[int], random: StepRandom) -> Any:
        """Prepare the rows for `losses`: a pure function of its arguments, safe to call from several threads."""
        ...


@runtime_checkable
class Images(Protocol):
    """Images to learn from, seen through the frozen backbone, by row; `cir.backbones.encoded` makes it of files."""

    fingerprint: str

    def __len__(self) -> int:
        """Count the images."""
        ...

    def text(self, row: int) -> str:
        """Return an image's caption, empty where the source has none."""
        ...

    def features(self, rows: Sequence[int]) -> Float[Tensor, "b d"]:
        """Return raw image features, computed once and kept."""
        ...

    def augmented(self, rows: Sequence[int], random: StepRandom) -> Float[Tensor, "b d"]:
        """Return raw features of randomly cropped pictures (Pic2Word's training augmentation), encoded now."""
        ...

    def patches(self, rows: Sequence[int]) -> Float[Tensor, "b p v"]:
        """Return the last block's tokens before the final norm, class token first (`Backbone.encode_patches`)."""
        ...


@runtime_checkable
class ImageTriplets(Protocol):
    """Reference picture, texts, target picture: human triplets to learn from, made by `cir.backbones.encoded_triplets`.

    Pictures have numbers from 0 to `count`; those with the same content share one, so that a picture is never a
    negative of itself. All that is encoded is encoded by the frozen backbone.
    """

    fingerprint: str
    reference: Int64[np.ndarray, " n"]
    """The number of each triplet's reference picture."""
    target: Int64[np.ndarray, " n"]
    """The number of each triplet's target picture."""
    count: int

    def __len__(self) -> int:
        """Count the triplets."""
        ...

    def query(self, row: int) -> Query:
        """Return a triplet as annotated: its texts, and the ids of both pictures."""
        ...

    def features(self, images: Sequence[int]) -> Float[Tensor, "b n d"]:
        """Return raw image features, computed once and kept."""
        ...

    def patches(self, images: Sequence[int]) -> Float[Tensor, "b p v"]:
        """Return patch tokens (`Backbone.encode_patches`), computed once and kept in half precision."""
        ...

    def pixels(self, images: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Decode pictures now, preprocessed as the backbone asks for."""
        ...


@runtime_checkable
class Store(Protocol):
    """Arrays computed once and kept: on disk and memory-mapped in a run, in memory in a test (`NoStore`)."""

    def rows(
        self, kind: str, identity: Sequence[str], count: int, compute: Callable[[int], Iterator[np.ndarray]]
    ) -> np.ndarray:
        """Return `count` rows; `compute(start)` yields blocks of them from row `start` on where they are not there.

        `kind` names what the rows are; they may depend on nothing but `identity` and the backbone.
        """
        ...


class NoStore:
    """A store that keeps nothing: computes in memory every time."""

    def rows(
        self, kind: str, identity: Sequence[str], count: int, compute: Callable[[int], Iterator[np.ndarray]]
    ) -> np.ndarray:
        """Compute the rows."""
        found = np.concatenate(list(compute(0)))
        if len(found) != count:
            raise ValueError(f"{kind}: {len(found)} rows computed, {count} expected")
        return found


class Method(nn.Module):
    """One way to turn a reference image and texts into a query vector.

    `needs` says which inputs of a query it reads (`image`, `text`), `trains` holds name patterns, matched in full,
    of the parameters training changes; `paper` cites. `Options` is the dataclass of its settings: the `method:`
    section of a config is checked against it. `learns_from` names the kind of training source (`captions`,
    `triplets`, `images`, whose rows are `Images`, `image_triplets`), empty for a method that is not trained; `wraps`
    says that it takes another method as `base`. `reads` says what `compose` gets of a reference: its joint features, or
    its patch tokens "b p v". `fusion` says how several vectors of one query make one score (`Embeddings.fusion`).
    `copies` says that it begins with a part of the backbone, so that it cannot be built from widths alone.
    `matches` says that it can score pictures of a ranking again (`match`). With `all_reduce` off every process of a
    training run keeps its own gradients, and the first one's weights are saved. `settled` is set where the weights come
    from a checkpoint: they will not change, so what they make of pictures may be kept.
    """

    needs: frozenset[str] = frozenset({"image", "text"})
    trains: tuple[str, ...] = ()
    paper: ClassVar[str] = ""
    learns_from: ClassVar[str] = ""
    wraps: ClassVar[bool] = False
    reads: Literal["features", "patches"] = "features"
    fusion: ClassVar[Literal["max", "product"]] = "max"
    Options: ClassVar[type] = NoOptions
    copies: ClassVar[bool] = False
    matches: bool = False
    all_reduce: bool = True
    settled: bool = False

    def __init__(self, options: Any, backbone: Backbone, base: "Method | None" = None) -> None:
        super().__init__()
        self.options = options

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b n d"]:
        """Compose unit query vectors from raw reference features and the queries' texts.

        Gradients flow unless the caller turned them off: a second stage of training goes through here.
        """
        raise NotImplementedError

    def image_side(self, backbone: Backbone) -> ImageSide:
        """Say who encodes the gallery, and references where `reads` is `features`: the frozen backbone by default."""
        return backbone

    def query_side(self, backbone: Backbone) -> tuple[str, ...]:
        """Make ready for a second stage that trains the query alone (SPN); returns patterns of what it trains.

        None says that queries are composed with `backbone.text`, which the second stage copies.
        """
        return ()

    def match(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b ..."],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
        candidates: Float[Tensor, "b k p v"],
    ) -> Float[Tensor, "b k"]:
        """Score the first pictures of every query's ranking again, by their patch tokens; higher is better."""
        raise InputError(f"{type(self).__name__} cannot score pictures of a ranking again on this backbone")

    def prepare(self, backbone: Backbone, source: Any, *, seed: int, draws: int, store: Store) -> Batches:
        """Make a training source ready, once per run; `draws` rows will be asked for in all.

        What is long to compute and the same in every run goes through `store`. Nothing here may depend on the step: a
        resumed run prepares again and must see the same batches.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained")

    def losses(self, backbone: Backbone, batch: Any) -> dict[str, Tensor]:
        """Name the terms of the training loss on one prepared batch; the loop sums them."""
        raise NotImplementedError(f"{type(self).__name__} is not trained")


def averaged(vectors: Float[Tensor, "n d"], owner: Int[Tensor, " n"], queries: int) -> Float[Tensor, "q 1 d"]:
    """Make one unit vector per query of its prompts' vectors: each normalised, summed, normalised again (SEARLE)."""
    units = F.normalize(vectors.float(), dim=-1)
    total = units.new_zeros(queries, units.shape[-1]).index_add(0, owner.to(units.device), units)
    return F.normalize(total, dim=-1).unsqueeze(1)


def matched(
    backbone: Matcher,
    prompt: Prompt,
    owner: Int[np.ndarray, " n"],
    candidates: Float[Tensor, "b k p v"],
    pseudo: Float[Tensor, "b s w"] | None = None,
) -> Float[Tensor, "b k"]:
    """Match pictures with the rows of a prompt that belong to each query; the mean over a query's rows."""
    queries, kept = candidates.shape[:2]
    rows = np.repeat(np.arange(len(prompt)), kept)
    patches = candidates[torch.from_numpy(owner)].flatten(0, 1)
    scores = backbone.match(patches, prompt[rows], pseudo, None if pseudo is None else owner[rows]).view(-1, kept)
    of = torch.from_numpy(owner).to(scores.device)
    total = scores.new_zeros(queries, kept).index_add(0, of, scores)
    return total / torch.bincount(of, minlength=queries)[:, None]


class PseudoWordMethod(Method):
    """Textual inversion: the reference becomes pseudo-words inside the prompt; subclasses write `words` only."""

    def __init__(self, options: Any, backbone: Backbone, base: "Method | None" = None) -> None:
        super().__init__(options, backbone, base)
        self.matches = self.reads == "features" and isinstance(backbone, Matcher)

    def words(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b s w"]:
        """Map raw image features to pseudo-words in the text tower's word-embedding space."""
        raise NotImplementedError

    def tower(self, backbone: Backbone) -> TextTower:
        """Choose the text tower queries are encoded with: the frozen one, unless the method brings its own."""
        return backbone.text

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b n d"]:
        """Render each query's prompts, splice, encode; several prompts per query (two caption orders) are averaged."""
        pseudo = self.words(one_vector(reference))
        rendered = template.render(backbone.tokenizer, [join(q.texts) for q in queries], [q.concept for q in queries])
        vectors = self.tower(backbone).encode(rendered.prompt, pseudo, rendered.owner)
        return averaged(vectors, torch.from_numpy(rendered.owner), len(queries))

    def match(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
        candidates: Float[Tensor, "b k p v"],
    ) -> Float[Tensor, "b k"]:
        """Match each query's sentence, pseudo-words in it, with pictures; the mean over its sentences.

        By the backbone's own matching head: a tower that the method trained has no part in it.
        """
        if not isinstance(backbone, Matcher):
            return super().match(backbone, reference, queries, template, join, candidates)
        pseudo = self.words(one_vector(reference))
        rendered = template.render(backbone.tokenizer, [join(q.texts) for q in queries], [q.concept for q in queries])
        return matched(backbone, rendered.prompt, rendered.owner, candidates, pseudo)
