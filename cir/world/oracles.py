"""Rows that bound the world's table: queries that are told what no method knows.

`oracle_target` searches with a full caption of the target, the best text can do on this backbone; `oracle_reference`
puts the text behind a full caption of the reference, the best a perfect pseudo-word could do with a text tower that
was never taught to edit.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cir.backbones.base import Backbone
from cir.methods.base import Method, NoOptions, averaged
from cir.prompts import Joiner, Template, tokenize
from cir.schema import Query

ORACLES = ("oracle_reference", "oracle_target")


class Oracle(Method):
    """Full captions in the place of the reference: of the target alone, or of the reference with the text behind."""

    def __init__(self, backbone: Backbone, name: str, captions: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(NoOptions(), backbone)
        self.name, self.captions = name, captions
        self.needs = frozenset({"text"})  # type: ignore[misc]

    @torch.no_grad()
    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b t d"]:
        """Encode the caption; several orders of the text are averaged as methods do."""
        rows, owner = [], []
        for index, query in enumerate(queries):
            caption = self.captions[query.id]
            told = self.name == "oracle_target"
            texts = [caption["target"]] if told else [f"{caption['reference']} that {t}" for t in join(query.texts)]
            rows += [[text] for text in texts]
            owner += [index] * len(texts)
        vectors = backbone.encode_text(tokenize(backbone.tokenizer, rows))
        return averaged(vectors, torch.tensor(owner), len(queries))


def read(root: Path) -> dict[str, dict[str, str]]:
    """Read the captions that lie beside a world's benchmark."""
    captions: dict[str, dict[str, str]] = json.loads((root / "oracle.json").read_text(encoding="utf-8"))
    return captions
