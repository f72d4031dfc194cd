"""What every backbone offers: frozen image and text towers behind one protocol, and the splice."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cir.prompts import PromptTokenizer
from cir.schema import Prompt


def splice(
    words: Float[Tensor, "b l w"], slots: Int[Tensor, "b s"], pseudo: Float[Tensor, "b n w"]
) -> Float[Tensor, "b l w"]:
    """Put pseudo-words into their slots, by position; every other word stays as it was.

    A slot of -1 is unused. With n = 1 every slot of a row takes the same vector (LinCIR's "all slots"), with
    n = s slot j takes vector j; any other n is an error.
    """
    if pseudo.shape[1] not in (1, slots.shape[1]):
        raise ValueError(f"splice: {pseudo.shape[1]} pseudo-words for {slots.shape[1]} slot columns")
    length = words.shape[1]
    padded = torch.cat([words, words.new_zeros(len(words), 1, words.shape[2])], dim=1)  # unused slots land here
    index = torch.where(slots < 0, length, slots)[..., None].expand(-1, -1, words.shape[2])
    values = pseudo.to(words.dtype).expand(-1, slots.shape[1], -1)
    return padded.scatter(1, index, values)[:, :length]


def one_vector(features: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
    """Make one raw feature of an image's vectors: the only one (CLIP), or the mean direction of them (BLIP-2).

    BLIP-2 compares an image by the best of its t unit vectors (arXiv:2301.12597, section 3.2), whose lengths mean
    nothing; what a method maps to pseudo-words has to be one vector, and no published method says which.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    return F.normalize(F.normalize(features.float(), dim=-1).mean(dim=1), dim=-1)


@runtime_checkable
class Tokenizer(PromptTokenizer, Protocol):
    """A prompt's tokenizer that can also turn ids back into text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids back into text."""
        ...


class TextTower(nn.Module):
    """A text tower that can be deep-copied and trained (RTD trains one): prompts in, raw vectors out."""

    word_width: int

    def forward(
        self,
        ids: Int[Tensor, "b l"],
        ends: Int[Tensor, " b"],
        slots: Int[Tensor, "b s"] | None = None,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode token rows, pseudo-words spliced in before the position embedding is added; not normalised.

        Row i takes the pseudo-words of `pseudo[owner[i]]`, of `pseudo[i]` where `owner` is left out. Rows of one
        owner have equal words up to the first token that differs, which a tower may compute once.
        """
        raise NotImplementedError

    def encode(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode a rendered prompt on the tower's device; gradients flow unless the caller turned them off."""
        device = next(self.parameters()).device
        ids, ends, slots = (torch.from_numpy(a).to(device) for a in (prompt.ids, prompt.ends, prompt.slots))
        if pseudo is None:
            return self(ids, ends)
        return self(ids, ends, slots, pseudo, None if owner is None else torch.from_numpy(owner).to(device))


@runtime_checkable
class BackboneLike(Protocol):
    """What the training loop and checkpoints read of a backbone: what it is, how wide, where it computes."""

    name: str
    fingerprint: str
    width: int
    word_width: int
    device: torch.device
    dtype: torch.dtype


@runtime_checkable
class ImageSide(Protocol):
    """What turns pictures into vectors: the image half of a backbone, or one that a method has trained for itself.

    Outputs are raw (not normalised) float32, whatever `dtype` the towers compute in.
    """

    fingerprint: str
    """Sixteen hex digits over the weights; empty while they are in training, and then nothing is cached."""
    preprocess_id: str
    """Name and fingerprint of the preprocessing, e.g. `targetpad-1.25:1f3a…`; part of every feature cache key."""
    width: int
    """d, the joint embedding width."""
    vectors: int
    """t, vectors per image (1 for CLIP, 32 for BLIP-2)."""
    vision_width: int
    """v, the width of the vision tower's patch tokens."""
    device: torch.device
    dtype: torch.dtype

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Turn one picture into pixels, as the weights ask for."""
        ...

    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels, without gradient."""
        ...

    def encode_patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the last block's tokens, class token first, before the final norm; without gradient."""
        ...


@runtime_checkable
class Backbone(ImageSide, Protocol):
    """Frozen image and text encoders that share a space of width `d`.

    Outputs are raw (not normalised) float32: projection methods read raw features, search normalises.
    """

    name: str
    """What the user asked for: a hub id or a folder."""
    tokenizer: Tokenizer
    text: TextTower
    """The frozen text tower; deep-copy it to train it."""
    word_width: int
    """w, the width of token embeddings."""
    logit_scale: float
    """The frozen model's own exp(logit_scale)."""

    def encode_text(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode prompts with the frozen tower, without gradient; rows take pseudo-words as in `TextTower.forward`."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """A backbone with an image-text matching head, which looks at a picture and a sentence together."""

    def match(
        self,
        patches: Float[Tensor, "n p v"],
        prompt: Prompt,
        pseudo: Float[Tensor, "o m w"] | None = None,
        owner: Int[np.ndarray, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Give the probability that picture i (`encode_patches`) and row i of the prompt belong together.

        Without gradient; rows take pseudo-words as in `TextTower.forward`.
        """
        ...
