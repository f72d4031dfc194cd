"""What every method offers: `compose` for search, `losses` for training, and three declarations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cir.backbones.base import Backbone, TextTower
from cir.prompts import Joiner, Template
from cir.randomness import StepRandom
from cir.schema import Query


@dataclass
class NoOptions:
    """The options of a method that has none."""


@runtime_checkable
@runtime_checkable
class Batches(Protocol):
    """A training source made ready for one method: any rows, in any grouping, any number of times."""

    def __len__(self) -> int:
        """Count the rows of the source."""
        ...

    def batch(self, rows: Sequence[int], random: StepRandom) -> Any:
        """Prepare the rows for `losses`: a pure function of its arguments, safe to call from several threads."""
        ...


class Method(nn.Module):
    """One way to turn a reference image and texts into a query vector.

    `needs` says which inputs of a query it reads (`image`, `text`), `trains` holds name patterns, matched in full,
    of the parameters training changes; `paper` cites. `Options` is the dataclass of its settings: the `method:`
    section of a config is checked against it. `learns_from` names the kind of training source (`captions`,
    `triplets`), empty for a method that is not trained; `wraps` says that it takes another method as `base`.
    `fusion` says how several vectors of one query make one score (`Embeddings.fusion`).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"image", "text"})
    trains: tuple[str, ...] = ()
    paper: ClassVar[str] = ""
    learns_from: ClassVar[str] = ""
    wraps: ClassVar[bool] = False
    fusion: ClassVar[Literal["max", "product"]] = "max"
    Options: ClassVar[type] = NoOptions

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
    ) -> Float[Tensor, "b t d"]:
        """Compose unit query vectors from raw reference features and the queries' texts."""
        raise NotImplementedError

    def prepare(self, backbone: Backbone, source: Sequence[Any], *, seed: int, draws: int) -> Batches:
        """Make a training source ready, once per run; `draws` rows will be asked for in all.

        Nothing here may depend on the step: a resumed run prepares again and must see the same batches.
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


class PseudoWordMethod(Method):
    """Textual inversion: the reference becomes pseudo-words inside the prompt; subclasses write `words` only."""

    def words(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b s w"]:
        """Map raw image features to pseudo-words in the text tower's word-embedding space."""
        raise NotImplementedError

    def tower(self, backbone: Backbone) -> TextTower:
        """Choose the text tower queries are encoded with: the frozen one, unless the method brings its own."""
        return backbone.text

    @torch.no_grad()
    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b t d"]:
        """Render each query's prompts, splice, encode; several prompts per query (two caption orders) are averaged."""
        pseudo = self.words(reference.mean(dim=1))
        rendered = template.render(backbone.tokenizer, [join(q.texts) for q in queries], [q.concept for q in queries])
        owner = torch.from_numpy(rendered.owner).to(pseudo.device)
        return averaged(self.tower(backbone).encode(rendered.prompt, pseudo[owner]), owner, len(queries))
