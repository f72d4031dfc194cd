"""What needs no training: either input alone, and vector arithmetic on the two unit vectors.

Texts are plain sentences, without template; several per query (two caption orders) are averaged as unit vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cir.backbones.base import Backbone, Matcher, one_vector
from cir.errors import InputError
from cir.methods.base import Method, matched
from cir.methods.joined import sentences, text_features, text_vectors
from cir.prompts import Joiner, Template
from cir.schema import Query


class ImageOnly(Method):
    """The reference image itself: what a query scores when its text is ignored."""

    needs = frozenset({"image"})
    paper = "baseline"

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b t d"]:
        """Normalise the reference."""
        return F.normalize(reference.float(), dim=-1)


class TextOnly(Method):
    """The text itself: what a query scores when its image is ignored."""

    needs = frozenset({"text"})
    paper = "baseline"

    def __init__(self, options: Any, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone, base)
        self.matches = isinstance(backbone, Matcher)

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b 1 d"]:
        """Encode the joined texts."""
        return text_vectors(backbone, queries, join, template.overflow)

    def match(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
        candidates: Float[Tensor, "b k p v"],
    ) -> Float[Tensor, "b k"]:
        """Match each query's texts with pictures, by the backbone's matching head; the mean over its texts."""
        if not isinstance(backbone, Matcher):
            return super().match(backbone, reference, queries, template, join, candidates)
        prompt, owner = sentences(backbone, queries, join, template.overflow)
        return matched(backbone, prompt, owner.cpu().numpy(), candidates)


class Arithmetic(Method):
    """Unit image vector and unit text vector, combined and normalised; subclasses write `combine` only.

    With `raw` both enter at the length their towers give them.
    """

    paper = "baseline"
    raw = False

    def combine(self, image: Float[Tensor, "b t d"], text: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b t d"]:
        """Combine vectors; the result need not be of unit length."""
        raise NotImplementedError

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b t d"]:
        """Encode the texts, combine with the reference, normalise."""
        if self.raw:
            image, text = reference.float(), text_features(backbone, queries, join, template.overflow)[:, None]
        else:
            image = F.normalize(reference.float(), dim=-1)
            text = text_vectors(backbone, queries, join, template.overflow)
        return F.normalize(self.combine(image, text), dim=-1)


@dataclass
class SumOptions:
    """`weight` is the text's share, from 0 (image only) to 1 (text only).

    `raw` adds the features as the towers give them, whose lengths then weigh too (CLIP4Cir's element-wise sum).
    """

    weight: float = 0.5
    raw: bool = False


class Sum(Arithmetic):
    """(1 - weight) image + weight text."""

    Options = SumOptions

    def __init__(self, options: SumOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        _check_share("weight", options.weight)
        self.raw = options.raw

    def combine(self, image: Float[Tensor, "b t d"], text: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b t d"]:
        """Weigh and add."""
        return torch.lerp(image, text.expand_as(image), self.options.weight)


class Product(Method):
    """The product of the two similarities, image with image and text with image (the baseline of FreeDom and BASIC).

    A query is two vectors, one for the reference (`one_vector`) and one for the text, whose scores are multiplied;
    nothing is clamped (FreeDom, WACV 2025).
    """

    paper = "baseline"
    fusion = "product"

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b t d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b n d"]:
        """Put the unit vectors of the reference and of the text side by side."""
        text = text_vectors(backbone, queries, join, template.overflow)
        image = F.normalize(one_vector(reference.float()), dim=-1)[:, None]
        return torch.cat([image, text], dim=1)


@dataclass
class SlerpOptions:
    """`alpha` is the text's share of the angle; the paper takes 0.8, and 0.9 on CIRR."""

    alpha: float = 0.8


class Slerp(Arithmetic):
    """Spherical interpolation from image to text (Jang et al., ECCV 2024, arXiv:2405.00571)."""

    paper = "Jang et al., ECCV 2024, arXiv:2405.00571"
    Options = SlerpOptions

    def __init__(self, options: SlerpOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        _check_share("alpha", options.alpha)

    def combine(self, image: Float[Tensor, "b t d"], text: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b t d"]:
        """Interpolate along the arc; nearly (anti)parallel pairs along the chord, where the arc is undefined."""
        alpha = self.options.alpha
        cosine = (image * text).sum(dim=-1, keepdim=True).clamp(-1, 1)
        angle = cosine.acos()
        arc = ((1 - alpha) * angle).sin() * image + (alpha * angle).sin() * text
        return torch.where(cosine.abs() > 0.9995, torch.lerp(image, text.expand_as(image), alpha), arc)


def _check_share(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{option}: expected a share from 0 to 1, got {value}")
