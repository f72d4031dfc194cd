"""Fine-tuning of CLIP for composed queries, image plus text; CLIP4Cir's first stage.

Baldrati et al., "Conditioned and Composed Image Retrieval Combining and Partially Fine-tuning CLIP-based Features",
CVPR Workshops 2022, and "Composed Image Retrieval using Contrastive Learning and Task-oriented CLIP-based Features",
TOMM 2023, arXiv:2308.11485.
"""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cir.backbones.base import Backbone, ImageSide
from cir.errors import InputError, nearest
from cir.methods.base import Batches, ImageTriplets, Method, Store
from cir.methods.joined import text_features
from cir.objectives import gather, info_nce, max_similarity
from cir.prompts import Joiner, Template, tokenize, training_text
from cir.randomness import StepRandom
from cir.schema import Prompt, Query

ENCODERS = ("both", "text", "image")


@dataclass
class ClipFinetuneOptions:
    """The settings of CLIP4Cir's first stage; the defaults are those of the released command."""

    encoder: str = "both"
    """Which towers train: `both`, `text` or `image`."""
    scale: float = 100.0
    """What cosines are multiplied by in the loss: one over the temperature, fixed."""
    recompute: int = 0
    """Pictures that go through the vision tower at a time, to be computed again in the backward pass: memory of so many
    for a third more time, the same gradients. 0 is all at once."""
    gather_negatives: bool = True
    """Take negatives from all processes; off leaves those of the own process."""


@dataclass(frozen=True)
class PictureBatch:
    """The distinct pictures of a batch, where each row's reference and target are among them, and its text.

    Pictures are pixels "n 3 h w" where the vision tower trains, raw features "n 1 d" where it does not.
    """

    pictures: Float[Tensor, "n ..."]
    reference: Int64[Tensor, " b"]
    target: Int64[Tensor, " b"]
    prompt: Prompt


class ClipFinetune(Method):
    """query = norm(image + text), target = norm(image), raw features of towers that train; no further parameters.

    The towers never leave evaluation mode: no dropout, and the batch statistics of a ResNet stay as they are.
    """

    paper = "Baldrati et al., CVPR Workshops 2022; TOMM 2023, arXiv:2308.11485"
    learns_from = "image_triplets"
    copies = True
    Options = ClipFinetuneOptions

    def __init__(self, options: ClipFinetuneOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        if options.encoder not in ENCODERS:
            raise InputError(f"encoder {options.encoder!r} is unknown; {nearest(options.encoder, ENCODERS)}")
        self.text = deepcopy(backbone.text).float() if options.encoder != "image" else None
        self.vision = deepcopy(_vision(backbone)).float() if options.encoder != "text" else None
        self.trains = tuple(rf"{name}\..*" for name in ("text", "vision") if getattr(self, name) is not None)
        self._fingerprint = ""

    def train(self, mode: bool = True) -> "ClipFinetune":
        """Switch modes; the towers never leave evaluation."""
        super().train(mode)
        for tower in (self.text, self.vision):
            if tower is not None:
                tower.eval()
        return self

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b 1 d"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b 1 d"]:
        """Add raw features of references, as `image_side` gives them, and of the joined texts, without template."""
        text = text_features(backbone, queries, join, template.overflow, self.text)
        return F.normalize(reference.float() + text[:, None], dim=-1)

    def image_side(self, backbone: Backbone) -> ImageSide:
        """Encode galleries and references with the trained vision tower; with `encoder: text` the backbone does."""
        if self.vision is None:
            return backbone
        if self.settled and not self._fingerprint:
            self._fingerprint = _digest(self.vision, backbone.fingerprint)
        return TunedImages(backbone, self.vision, self._fingerprint if self.settled else "")

    def query_side(self, backbone: Backbone) -> tuple[str, ...]:
        """Let a second stage train the text tower on, the method's own where it has one."""
        return () if self.text is None else (r"text\..*",)

    def prepare(self, backbone: Backbone, source: ImageTriplets, *, seed: int, draws: int, store: Store) -> Batches:
        """Make triplets ready; what a frozen vision tower makes of pictures is kept by the source."""
        if self.vision is None:
            source.features([0])  # all are encoded with the first: now, not behind the progress of training
        return Triplets(backbone, source, pixels=self.vision is not None)

    def losses(self, backbone: Backbone, batch: PictureBatch) -> dict[str, Tensor]:
        """Contrast queries with the batch's targets, in that direction only (arXiv:2308.11485, equation 2)."""
        images = self._images(batch.pictures)
        if self.text is None:
            text = backbone.encode_text(batch.prompt)
        else:
            text = self.text.encode(batch.prompt).float()
        query, target = F.normalize(images[batch.reference] + text, dim=-1), images[batch.target]
        if self.options.gather_negatives:
            query, target = gather(query), gather(target)
        return {"info_nce": info_nce(self.options.scale * max_similarity(query[:, None], target[:, None]))}

    def _images(self, pictures: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Encode each distinct picture of a batch once."""
        if self.vision is None:
            return pictures[:, 0]
        if not self.options.recompute:
            return self.vision(pictures)[:, 0].float()
        parts = pictures.split(self.options.recompute)
        encoded = [checkpoint(self.vision, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(encoded)[:, 0].float()


class TunedImages:
    """A trained vision tower behind `cir.backbones.base.ImageSide`, in float32, with its backbone's preprocessing.

    `fingerprint` is empty while the tower is in training.
    """

    def __init__(self, backbone: Backbone, tower: Any, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.preprocess_id = backbone.preprocess_id
        self.width, self.vectors, self.vision_width = backbone.width, backbone.vectors, backbone.vision_width
        self.device, self.dtype = backbone.device, torch.float32
        self._backbone, self._tower = backbone, tower

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Turn one picture into pixels, as the backbone does."""
        return self._backbone.preprocess(image)

    @torch.no_grad()
    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels, without gradient: raw features."""
        return self._tower(pixels.to(self.device, self.dtype, non_blocking=True)).float()

    @torch.no_grad()
    def encode_patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the last block's tokens before the final norm, without gradient."""
        return self._tower.patches(pixels.to(self.device, self.dtype, non_blocking=True)).float()


class Triplets:
    """Triplets prepared for fine-tuning: pictures decoded and texts laid out when they are asked for."""

    def __init__(self, backbone: Backbone, source: ImageTriplets, pixels: bool) -> None:
        self.source = source
        self.look = source.pixels if pixels else source.features
        self.tokenizer, self.device = backbone.tokenizer, backbone.device

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> PictureBatch:
        """Decode, or look up, each distinct picture of the rows once, and draw one of each row's training captions."""
        wanted = np.asarray(rows, dtype=np.int64)
        both = np.concatenate([self.source.reference[wanted], self.source.target[wanted]])
        images, places = np.unique(both, return_inverse=True)
        reference, target = torch.from_numpy(places.astype(np.int64)).to(self.device).split(len(wanted))
        # On the CPU whatever the device: the same captions everywhere, and no waiting for the device.
        drawn = replace(random, device=torch.device("cpu")).uniform("text").tolist()
        texts = [[training_text(self.source.query(row).texts, draw)] for row, draw in zip(rows, drawn, strict=True)]
        return PictureBatch(
            pictures=self.look(images.tolist()).to(self.device, torch.float32, non_blocking=True),
            reference=reference,
            target=target,
            prompt=tokenize(self.tokenizer, texts, "cut"),
        )


def _vision(backbone: Backbone) -> nn.Module:
    """Take a backbone's vision tower, one raw vector per picture and ready to be trained."""
    tower = getattr(backbone, "vision", None)
    if not isinstance(tower, nn.Module) or backbone.vectors != 1:
        raise InputError(
            f"method clip_finetune: {backbone.name} has no vision tower of one vector per picture to add a text to "
            "(CLIP and SigLIP have); on BLIP-2 use sprc"
        )
    return tower


def _digest(module: nn.Module, computation: str) -> str:
    """Sixteen hex digits over a module's weights, and the identity of what says how it computes."""
    total = hashlib.sha256(computation.encode())
    for name, tensor in module.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
