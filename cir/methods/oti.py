"""SEARLE-OTI: each reference image inverted when it is asked for (Baldrati et al., ICCV 2023, arXiv:2303.15247)."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cir import progress
from cir.backbones.base import Backbone
from cir.methods.base import Method, NoStore, PseudoWordMethod
from cir.methods.inversion import Inversion, InversionOptions, Inverted, digests, invert
from cir.methods.phrases import Phrasebook, read

__all__ = ["OTI", "Inversion", "InversionOptions", "Inverted", "OTIOptions", "digests", "invert"]

REMEMBERED = 1 << 16
"""Tokens kept, by the bytes of the feature they belong to."""
WORTH_A_BAR = 32
"""Images from which on progress is shown."""


@dataclass
class OTIOptions(InversionOptions):
    """The inversion's settings, and where concepts and their phrases are read from."""

    concepts: str = ""
    """A class list, one name per line, or a CSV with a column DisplayName; empty takes those of `phrases`."""
    phrases: str = ""
    """Lines of `{"concept": ..., "phrases": [...]}`."""
    phrase_cache: int = 1 << 16
    """All phrases are encoded ahead where there are at most so many; otherwise each as it is drawn."""


class OTI(PseudoWordMethod):
    """One pseudo-word per image by optimisation: 350 steps of three texts per distinct image, and no projector.

    Random streams are named by the feature's bytes, and tokens are remembered by them, so that an image is inverted
    once however many queries ask about it.
    """

    paper = "Baldrati et al., ICCV 2023, arXiv:2303.15247"
    Options = OTIOptions

    def __init__(self, options: OTIOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        self._held = (backbone,)  # in a tuple: the frozen towers are no parameters of this method
        self._tokens: OrderedDict[str, Tensor] = OrderedDict()
        self._book: Phrasebook | None = None

    def words(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b 1 w"]:
        """Invert raw features, those of equal images once."""
        keys = digests(image)
        missing = {key: row for row, key in enumerate(keys) if key not in self._tokens}
        fresh = {}
        if missing:
            found = self._invert(image[list(missing.values())], list(missing))
            fresh = dict(zip(missing, found.unbind(), strict=True))
        rows = torch.stack([fresh[key] if key in fresh else self._tokens[key] for key in keys])
        self._remember(fresh)
        return rows.to(image.device).unsqueeze(1)

    def _invert(self, features: Float[Tensor, "n d"], keys: list[str]) -> Float[Tensor, "n w"]:
        total = len(keys) * self.options.steps
        with progress.bar(total, "inverting images (image steps)", len(keys) >= WORTH_A_BAR) as shown:
            return invert(self._held[0], features, keys, self.options, self._phrasebook(), shown.advance).tokens

    def _phrasebook(self) -> Phrasebook | None:
        """Read the phrases and encode the concepts when they are first needed."""
        if self._book is None and self.options.text_weight:
            vocabulary = read(self.options.concepts, self.options.phrases)
            draws = len(vocabulary) + 1 if len(vocabulary) <= self.options.phrase_cache else 0
            with torch.inference_mode(False):
                self._book = Phrasebook(self._held[0], vocabulary, draws=draws, store=NoStore())
        return self._book

    def _remember(self, fresh: dict[str, Tensor]) -> None:
        self._tokens |= fresh
        while len(self._tokens) > REMEMBERED:
            self._tokens.popitem(last=False)
