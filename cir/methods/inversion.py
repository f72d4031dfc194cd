"""Optimisation-based textual inversion (OTI) of SEARLE (Baldrati et al., ICCV 2023, arXiv:2303.15247, section 3.1).

One pseudo-word per image, found by gradient descent: sentences with it shall encode to where the image lies, and
phrases about the image's concepts shall keep their meaning with it in place of the concept.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods.concepts import ASKED, closest
from cir.methods.phrases import Phrasebook
from cir.methods.texts import TokenRows
from cir.prompts import stack
from cir.randomness import seed_of

RULES = "1"
"""Part of what kept tokens are known by: raise it when the same settings come to other tokens."""


@dataclass
class InversionOptions:
    """The inversion's settings; the defaults are those of the released code, the number of images at once apart."""

    steps: int = 350
    lr: float = 2e-2
    weight_decay: float = 0.01
    ema: float = 0.99
    """Decay of the moving average of the token, which is the result."""
    image_weight: float = 1.0
    text_weight: float = 0.5
    """Weight of the phrases' loss; 0 needs no concepts. The sum of both is divided by the sum of the weights."""
    top_k: int = 15
    """Concepts per image, of those whose phrases all contain their name."""
    sigma: float = 0.02
    """Spread of the token at the start."""
    seed: int = 42
    batch: int = 256
    """Images inverted at once: 32 in the released code."""
    mean_over: int = 0
    """How many images the loss is averaged over: 0 for those inverted together, as released. Only Adam's eps sees it;
    a fixed number (32 there) makes the token of an image independent of its company."""
    text_noise_std: float = 0.0
    """Spread of Gaussian noise added to the sentence's unit feature: an option after iSEARLE (arXiv:2405.02951),
    whose own setting is not public."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("top_k", 1), ("mean_over", 0)):
            if getattr(self, name) < least:
                raise InputError(f"inversion, {name}: got {getattr(self, name)}, expected at least {least}")
        if self.image_weight + self.text_weight <= 0 or min(self.image_weight, self.text_weight) < 0:
            raise InputError("inversion: image_weight and text_weight must not be negative, nor both zero")


@dataclass(frozen=True)
class Inverted:
    """Moving averages of the tokens, which later stages use, and the tokens after the last step."""

    tokens: Float32[Tensor, "n w"]
    last: Float32[Tensor, "n w"]


def digests(features: Float[Tensor, "n d"]) -> list[str]:
    """Identify images by the bytes of their features."""
    rows = features.detach().float().cpu().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows]


class Inversion:
    """Images in inversion together, none of which sees another.

    `features` are raw; `keys` name the images' random streams, so that the draws of an image are the same in any
    company and order. `book` is needed unless `text_weight` is 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: Float[Tensor, "n d"],
        keys: Sequence[str],
        options: InversionOptions,
        book: Phrasebook | None = None,
    ) -> None:
        if len(keys) != len(features):
            raise ValueError(f"inversion: {len(keys)} keys for {len(features)} images")
        self.backbone, self.options, self.book, self.keys = backbone, options, book, list(keys)
        self.targets = features.detach().to(backbone.device, torch.float32).clone()
        start = np.stack([self._stream(key, "token").standard_normal(backbone.word_width) for key in keys])
        token = torch.from_numpy(options.sigma * start).float().to(backbone.device)
        self.token = token.clone().requires_grad_()
        self.average = token
        self.optimizer = torch.optim.AdamW([self.token], lr=options.lr, weight_decay=options.weight_decay)
        self.done = 0
        self.asked = TokenRows(backbone.tokenizer, ASKED.__getitem__)
        self.owner = np.arange(len(keys))
        self.sentences = (self._uniform("sentence") * len(ASKED)).astype(np.int64)
        self.phrases = self._draw_phrases() if options.text_weight else None
        self._noise = [self._stream(key, "noise") for key in keys] if options.text_noise_std else []

    def losses(self) -> dict[str, Float[Tensor, " n"]]:
        """Compute both terms of the next step per image, unweighted: one minus the cosine.

        `image`: a random one of 24 sentences with the token against the image. `text`: a random phrase with the token
        in place of its concept, against the phrase.
        """
        prompts = [self.asked.prompt(self.sentences[:, self.done].tolist())]
        meant = None
        if self.phrases is not None and self.book is not None:
            numbers = self.phrases[:, self.done].tolist()
            prompts += self.book.rows(self.book.first, numbers)
            meant = self.book.cached(numbers)
        owner = np.tile(self.owner, len(prompts))
        encoded = self.backbone.text.encode(stack(prompts), self.token[:, None], owner).float()
        said = encoded.unflatten(0, (len(prompts), len(self.keys)))
        terms = {"image": 1 - F.cosine_similarity(self._noisy(said[0]), self.targets)}
        if self.phrases is not None:
            terms["text"] = 1 - F.cosine_similarity(said[1], said[2].detach() if meant is None else meant)
        return terms

    def step(self) -> dict[str, Float[Tensor, " n"]]:
        """Take one step of AdamW and of the moving average; return the terms before it."""
        options, terms = self.options, self.losses()
        weights = {"image": options.image_weight, "text": options.text_weight}
        total = torch.stack([weights[name] * term.sum() for name, term in terms.items()]).sum() / sum(weights.values())
        # Only towards the token: a tower that someone left trainable gets no gradient.
        (self.token.grad,) = torch.autograd.grad(total / (options.mean_over or len(self.keys)), [self.token])
        self.optimizer.step()
        self.average.mul_(options.ema).add_(self.token.detach(), alpha=1 - options.ema)
        self.done += 1
        return {name: term.detach() for name, term in terms.items()}

    def _stream(self, key: str, name: str) -> np.random.Generator:
        return np.random.default_rng(seed_of(self.options.seed, "inversion", name, key))

    def _uniform(self, name: str) -> Float[np.ndarray, "n s"]:
        """Draw a number from [0, 1) per image and step."""
        return np.stack([self._stream(key, name).random(self.options.steps) for key in self.keys])

    def _draw_phrases(self) -> Int64[np.ndarray, "n s"]:
        """Draw a phrase per image and step, uniform over the phrases of the image's closest good concepts."""
        if self.book is None:
            raise InputError("inversion: text_weight needs phrases; name a file of them, or set text_weight to 0")
        known = self.book.vocabulary
        good = np.flatnonzero(known.good)
        near = closest(self.targets, torch.from_numpy(np.asarray(self.book.concepts)[good]), self.options.top_k)
        return known.any_phrase(good[near], self._uniform("phrase"))

    def _noisy(self, said: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        if not self._noise:
            return said
        drawn = np.stack([stream.standard_normal(said.shape[1], dtype=np.float32) for stream in self._noise])
        return F.normalize(said, dim=-1) + self.options.text_noise_std * torch.from_numpy(drawn).to(said)


def invert(
    backbone: Backbone,
    features: Float[Tensor, "n d"],
    keys: Sequence[str],
    options: InversionOptions,
    book: Phrasebook | None = None,
    advance: Callable[[int], None] | None = None,
) -> Inverted:
    """Find a pseudo-word for each raw image feature, `options.batch` images at a time; float32, on the backbone.

    `advance` hears after every step how many images took it. See `Inversion` for `keys` and `book`.
    """
    found = []
    # Evaluation runs in inference mode, whose tensors cannot be optimised.
    with torch.inference_mode(False), torch.enable_grad():
        for first in range(0, len(features), options.batch):
            part = slice(first, first + options.batch)
            inversion = Inversion(backbone, features[part], keys[part], options, book)
            for _ in range(options.steps):
                inversion.step()
                if advance is not None:
                    advance(len(inversion.keys))
            found.append((inversion.average, inversion.token.detach()))
    empty = torch.empty(0, backbone.word_width, device=backbone.device)
    averages, last = zip(*found, strict=True) if found else ((empty,), (empty,))
    return Inverted(torch.cat(averages), torch.cat(last))
