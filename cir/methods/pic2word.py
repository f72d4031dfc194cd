"""Pic2Word: a picture as one word, learnt from unlabelled images (Saito et al., CVPR 2023, arXiv:2302.03084)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cir.backbones.base import Backbone
from cir.errors import InputError, nearest
from cir.methods.base import Batches, Images, Method, PseudoWordMethod, Store
from cir.methods.projector import Im2Text
from cir.objectives import clip_ce, gather
from cir.prompts import Template, tokenize
from cir.randomness import StepRandom
from cir.schema import Prompt

AUGMENTATIONS = ("none", "crop")


@dataclass
class Pic2WordOptions:
    """Pic2Word's settings; the defaults are those of the released training command, augmentation apart."""

    middle: int = 512
    """Width of the projector's hidden layers: 512 whatever the backbone."""
    layers: int = 2
    """Hidden layers of the projector."""
    dropout: float = 0.1
    augment: str = "none"
    """`crop` encodes a random crop (90-100 % of the area) at every step, as in the paper; with `none` each image is
    encoded once."""
    prompt: str = "a photo of $"
    """The sentence the pseudo-word is trained in."""
    scale: float = 0.0
    """What cosines are multiplied by in the loss; 0 takes the frozen model's own exp(logit_scale)."""
    gather_negatives: bool = True
    """Take negatives from all processes; off leaves those of the own process."""


@dataclass(frozen=True)
class ImageBatch:
    """Raw features of images, and the sentence that their pseudo-words stand in, once per image."""

    image: Float[Tensor, "b d"]
    prompt: Prompt
    random: StepRandom


class Pic2Word(PseudoWordMethod):
    """One image feature to one pseudo-word: "a photo of $" shall encode to where the image lies."""

    trains = (r"im2text\..*",)
    paper = "Saito et al., CVPR 2023, arXiv:2302.03084"
    learns_from = "images"
    Options = Pic2WordOptions

    def __init__(self, options: Pic2WordOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        if options.augment not in AUGMENTATIONS:
            raise InputError(f"augment {options.augment!r} is unknown; {nearest(options.augment, AUGMENTATIONS)}")
        if not Template(options.prompt).slots:
            raise InputError(f"prompt {options.prompt!r}: expected a slot, as in 'a photo of $'")
        self.im2text = Im2Text(backbone.width, backbone.word_width, options.middle, options.layers, options.dropout)

    def words(self, image: Float[Tensor, "b d"], random: StepRandom | None = None) -> Float[Tensor, "b 1 w"]:
        """Project raw features to one pseudo-word each; `random` turns dropout on in training mode."""
        return self.im2text(image, random).unsqueeze(1)

    def prepare(self, backbone: Backbone, source: Images, *, seed: int, draws: int, store: Store) -> Batches:
        """Make images ready; what they are encoded to is kept by the source."""
        if self.options.augment == "none":
            source.features([0])  # all are encoded with the first: now, not behind the progress of training
        return ImageRows(self.options, backbone, source)

    def losses(self, backbone: Backbone, batch: ImageBatch) -> dict[str, Tensor]:
        """Contrast images with their sentences, both ways (section 3.1): `clip_ce` at the frozen model's scale."""
        image = batch.image
        sentence = backbone.text.encode(batch.prompt, self.words(image, batch.random)).float()
        if self.options.gather_negatives:
            image, sentence = gather(image), gather(sentence)
        return {"clip_ce": clip_ce(image, sentence, self.options.scale or backbone.logit_scale)}


class ImageRows:
    """Images prepared for Pic2Word: their raw features, and the sentence laid out once."""

    def __init__(self, options: Pic2WordOptions, backbone: Backbone, images: Images) -> None:
        self.images = images
        self.augment = options.augment == "crop"
        self.device = backbone.device
        self.sentence = tokenize(backbone.tokenizer, [Template(options.prompt).fill("")])

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def batch(self, rows: Sequence[int], random: StepRandom) -> ImageBatch:
        """Look up the rows' features, or encode crops of them."""
        image = self.images.augmented(rows, random) if self.augment else self.images.features(rows)
        return ImageBatch(
            image=image.to(self.device, torch.float32, non_blocking=True),
            prompt=self.sentence[np.zeros(len(rows), dtype=np.int64)],
            random=random,
        )
