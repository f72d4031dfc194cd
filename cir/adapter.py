"""A trained or imported checkpoint in three lines of Python: pseudo-words, composed queries, the Hub.

`cir.load(folder or hub id)` gives an `Adapter`, or a `TokenTable` for OTI tokens. Backbones are loaded on first use.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cir import hub, runs
from cir.backbones.base import Backbone, ImageSide, one_vector
from cir.errors import InputError, nearest
from cir.methods import METHODS, Method, PseudoWordMethod, checkpoint, token_table
from cir.methods.base import averaged
from cir.pretrained import Pretrained
from cir.prompts import Joiner
from cir.schema import Query

Texts = Sequence[str] | Sequence[Sequence[str]]


class Adapter(Pretrained):
    """A method with its weights, in evaluation mode and float32.

    `cir.load("checkpoints/lincir-l14").words(torch.randn(2, 768))` has the shape (2, 1, 768).
    """

    def _open(self) -> None:
        """Read the projector, where there is one; what copies a part of the backbone waits for it."""
        inner = checkpoint.innermost(self.described)
        copies = METHODS.get(inner["method"], Method).copies
        self._projector = None if copies else checkpoint.projector(self.folder, self.device)
        self._method = None if self.described.get("base") else self._projector

    @staticmethod
    def describe(folder: Path) -> dict[str, Any]:
        """Read the description of a method's checkpoint."""
        return checkpoint.describe(folder)

    @property
    def method(self) -> Method:
        """The method itself; that of a wrapper (RTD) has a text tower, so its backbone is loaded for it."""
        if self._method is None:
            self._method = checkpoint.load(self.folder, self.backbone)
        return self._method

    @torch.no_grad()
    def words(self, image_features: Float[Tensor, "b ..."]) -> Float[Tensor, "b s w"]:
        """Map raw (not normalised) image features, "b d" or "b t d", to pseudo-words; needs no backbone.

        On the features' device.
        """
        image_features = one_vector(image_features) if image_features.ndim == 3 else image_features
        if not isinstance(self._projector, PseudoWordMethod):
            raise InputError(f"{self.described['method']}: no pseudo-words of images alone; use compose")
        width = self.described["backbone"]["width"]
        if image_features.shape[1] != width:
            raise InputError(f"words: features of width {image_features.shape[1]}, this adapter reads width {width}")
        return self._projector.words(image_features.to(self.device, torch.float32)).to(image_features.device)

    @torch.no_grad()
    def compose(
        self,
        image_features: Float[Tensor, "b ..."],
        texts: Texts,
        template: str | None = None,
        join: str | Joiner | None = None,
    ) -> Float[Tensor, "b d"]:
        """Compose unit query vectors from raw reference features "b d" and one text, or several, per reference.

        A method that reads patch tokens takes those instead ("b p v", of `encode_images(kind="patches")`). `template`
        and `join` default to the recorded ones. Vectors come on the features' device.
        """
        if len(texts) != len(image_features):
            raise InputError(f"compose: {len(image_features)} references but {len(texts)} texts; expected one per row")
        backbone, patches = self.backbone, self.method.reads == "patches"
        several = image_features.ndim == 3 and image_features.shape[1] == backbone.vectors > 1
        if image_features.ndim != 3 if patches else not (several or image_features.ndim == 2):
            wanted = "patch tokens, b p v" if patches else "features, b d" + ", or b t d" * (backbone.vectors > 1)
            raise InputError(f"compose: {self.described['method']} reads {wanted}, got {tuple(image_features.shape)}")
        given = image_features.to(backbone.device, torch.float32)
        given = given if given.ndim == 3 else given[:, None]
        queries = [Query(str(row), "", _several(text)) for row, text in enumerate(texts)]
        vectors = self.method.compose(backbone, given, queries, self._template(template), self._joiner(join))
        return vectors[:, 0].float().to(image_features.device)

    def _images(self) -> ImageSide:
        """Encode pictures as the method's gallery is encoded."""
        return self.method.image_side(self.backbone)

    def _save(self, folder: Path) -> None:
        """Write the file's weights, those in memory laid over them."""
        described = self.described
        tensors = checkpoint.read_weights(self.folder / checkpoint.WEIGHTS, described["weights"])
        prefix, inner = "", described
        while self._method is None and inner.get("base"):
            prefix, inner = f"{prefix}base.", inner["base"]
        current = (self._method or self._projector or self.method).state_dict()
        tensors |= {prefix + name: tensor for name, tensor in current.items()}
        recipe: dict[str, Any] = {key: described[key] for key in ("method", "options", "base") if key in described}
        checkpoint.write(folder, tensors, recipe, described["backbone"], described.get("details"))


class TokenTable(Pretrained):
    """Pseudo-words by image name: what optimisation-based inversion (SEARLE-OTI, arXiv:2303.15247) leaves behind."""

    def _open(self) -> None:
        """Read tokens and names."""
        self.tokens, self.names = token_table.read(self.folder)
        self._rows = {name: row for row, name in enumerate(self.names)}

    @staticmethod
    def describe(folder: Path) -> dict[str, Any]:
        """Read the description of a table."""
        found = token_table.describe(folder)
        if found is None:
            raise InputError(f"{folder}: no table of pseudo-words; `cir.load` tells what a folder holds")
        return found

    def words_of(self, names: Sequence[str]) -> Float[Tensor, "b 1 w"]:
        """Look up the pseudo-words of images; `InputError` names the nearest known one for a name that is not there."""
        for name in names:
            if name not in self._rows:
                raise InputError(
                    f"{self.folder}: no token of image {name!r} among {len(self.names):,}; {self._near(name)}"
                )
        return self.tokens[[self._rows[name] for name in names]][:, None]

    @torch.no_grad()
    def compose_of(
        self, names: Sequence[str], texts: Texts, template: str | None = None, join: str | Joiner | None = None
    ) -> Float[Tensor, "b d"]:
        """Compose unit query vectors from the images' pseudo-words and their texts, as `Adapter.compose` does."""
        if len(texts) != len(names):
            raise InputError(f"compose_of: {len(names)} names but {len(texts)} texts; expected one per name")
        backbone, rule = self.backbone, self._joiner(join)
        rows = [rule(_several(text)) for text in texts]
        rendered = self._template(template).render(backbone.tokenizer, rows)
        vectors = backbone.encode_text(rendered.prompt, self.words_of(names), rendered.owner)
        owner = torch.from_numpy(np.ascontiguousarray(rendered.owner))
        return averaged(vectors, owner, len(names))[:, 0].cpu()

    def _near(self, name: str) -> str:
        return nearest(name, self.names[:1000])

    def _save(self, folder: Path) -> None:
        token_table.write(folder, self.tokens, self.names, self.described["backbone"], self.described.get("details"))


def load(
    path: str | Path, backbone: Backbone | str | None = None, device: str | torch.device | None = None
) -> Adapter | TokenTable:
    """Load a checkpoint: an imported folder, one that `cir train` wrote, or a Hub repository `owner/name`.

    `backbone` overrides the recorded one, by name or already loaded; it is not touched before it is needed. `device`
    defaults to the backbone's or the recorded one. Raises `InputError` for anything that is no checkpoint.
    """
    folder = runs.find_checkpoint(hub.locate(path))
    table = token_table.describe(folder)
    if table is not None:
        return TokenTable(folder, table, backbone, device)
    return Adapter(folder, checkpoint.describe(folder), backbone, device)


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    """Take one text as a list of one."""
    return (texts,) if isinstance(texts, str) else tuple(texts)
