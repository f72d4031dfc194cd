"""What methods share that train BLIP-2's Q-Former on triplets: a copy of it, token rows, batches, dropout, a gallery.

The copy is of `cir.backbones.qformer.QFormerParts`, which a BLIP-2 backbone has as `parts`, with its functions.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor, nn

from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods import joined
from cir.methods.base import ImageTriplets
from cir.prompts import Joiner, PromptTokenizer, tokenize, training_text
from cir.randomness import StepRandom
from cir.schema import Prompt, Query


def copied(backbone: Backbone, method: str, dropout: float) -> Any:
    """Copy the backbone's Q-Former with all around it (`QFormerParts`), float32, to train; dropout draws by rows.

    Raises `InputError` for a backbone that has none, or a share of dropout outside [0, 1).
    """
    parts = getattr(backbone, "parts", None)
    if parts is None:
        raise InputError(f"method {method}: trains BLIP-2's Q-Former, and {backbone.name} has none; choose a BLIP-2 "
                         "backbone, as backbone.name=Salesforce/blip2-itm-vit-g")  # fmt: skip
    if not 0 <= dropout < 1:
        raise InputError(f"method {method}: dropout: expected a share from 0 to below 1, got {dropout}")
    copy = deepcopy(parts).float().requires_grad_(True)
    drop_by_rows(copy, dropout)
    return copy


@dataclass(frozen=True)
class TextRows:
    """Texts as token ids of one fixed length, [CLS] first, and where they have tokens."""

    ids: Int64[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: PromptTokenizer, device: torch.device) -> "TextRows":
        """Fill a prompt's rows up to the tokenizer's context."""
        ids = np.full((len(prompt), tokenizer.context), tokenizer.pad, dtype=np.int64)
        ids[:, : prompt.ids.shape[1]] = prompt.ids
        mask = np.arange(tokenizer.context) <= prompt.ends[:, None]
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))

    def __getitem__(self, rows: Int64[Tensor, " n"]) -> "TextRows":
        """Select rows, in the order given, repeats allowed."""
        return TextRows(self.ids[rows], self.mask[rows])


def sentences(backbone: Backbone, queries: Sequence[Query], join: Joiner) -> tuple[TextRows, Int64[Tensor, " n"]]:
    """Lay out the queries' joined texts, cut to the context; row i belongs to query `owner[i]`.

    Raises `InputError` for queries without text.
    """
    prompt, owner = joined.sentences(backbone, queries, join, "cut")
    return TextRows.of(prompt, backbone.tokenizer, backbone.device), owner


@dataclass(frozen=True)
class TripletBatch:
    """Triplets to learn from: the pictures in them, each once, and where reference and target are among those."""

    patches: Float[Tensor, "u p v"]
    reference: Int64[Tensor, " b"]
    target: Int64[Tensor, " b"]
    number: Int64[Tensor, " b"]
    """Of each target picture, its number in the source: equal for equal pictures, also across processes."""
    prompt: Prompt
    text: TextRows
    random: StepRandom


class TripletRows:
    """Triplets prepared for a Q-Former: the frozen tower's tokens from the source, texts drawn and laid out."""

    def __init__(self, backbone: Backbone, source: ImageTriplets) -> None:
        source.patches([0])  # all are encoded with the first: now, not behind the progress of training
        self.source, self.device, self.tokenizer = source, backbone.device, backbone.tokenizer

    def __len__(self) -> int:
        """Count the triplets."""
        return len(self.source)

    def batch(self, rows: Sequence[int], random: StepRandom) -> TripletBatch:
        """Look up the rows' pictures and draw their texts (`cir.prompts.training_text`)."""
        places = np.asarray(rows, dtype=np.int64)
        # On the CPU whatever the device: the number becomes a choice here.
        draws = replace(random, device=torch.device("cpu")).uniform("caption").tolist()
        texts = [training_text(self.source.query(row).texts, draw) for row, draw in zip(rows, draws, strict=True)]
        prompt = tokenize(self.tokenizer, [[text] for text in texts], "cut")
        pair = np.stack([self.source.reference[places], self.source.target[places]])
        distinct, where = np.unique(pair, return_inverse=True)
        reference, target = torch.from_numpy(where.reshape(pair.shape)).to(self.device)
        return TripletBatch(
            patches=self.source.patches(distinct.tolist()).to(self.device, torch.float32),
            reference=reference,
            target=target,
            number=torch.from_numpy(pair[1]).to(self.device),
            prompt=prompt,
            text=TextRows.of(prompt, self.tokenizer, self.device),
            random=random,
        )


class RowDropout(nn.Module):
    """Dropout over states "n l h" whose masks are drawn for the global batch, so that shares of it see their rows'.

    It acts in training mode, inside `drawing`. A pass may hold several blocks of the batch's rows, one after the other;
    each has a name, and masks of its own.
    """

    def __init__(self, rate: float, name: str) -> None:
        super().__init__()
        self.rate, self.name = rate, name
        self.random: StepRandom | None = None
        self.blocks: tuple[str, ...] = ()

    def forward(self, x: Float[Tensor, "n l h"]) -> Float[Tensor, "n l h"]:
        """Drop a share of the entries and scale the others up."""
        if not self.training or self.random is None or not self.rate:
            return x
        kept = 1 - self.rate
        masks = [self.random.keep(f"{block}/{self.name}", kept, *x.shape[1:]) for block in self.blocks]
        return torch.where(torch.cat(masks).to(x.device), x / kept, 0.0)


def drop_by_rows(module: nn.Module, rate: float) -> None:
    """Put `RowDropout` in the place of every `nn.Dropout`, and turn that inside attention off.

    Masks of attention weights are made inside a fused kernel, which takes no masks from outside.
    """
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Dropout):
            module.set_submodule(name, RowDropout(rate, name))
        if hasattr(child, "attention_dropout"):
            child.attention_dropout = 0.0


@contextmanager
def drawing(module: nn.Module, random: StepRandom, *blocks: str) -> Iterator[None]:
    """Let a module's dropout act on one pass that holds these blocks of the batch's rows."""
    places = [child for child in module.modules() if isinstance(child, RowDropout)]
    for place in places:
        place.random, place.blocks = random, blocks
    try:
        yield
    finally:
        for place in places:
            place.random, place.blocks = None, ()


class QFormerImages:
    """Pictures through the frozen vision tower and a trained Q-Former: an `ImageSide`, t = 32 vectors per picture."""

    def __init__(self, backbone: Backbone, parts: Any, settled: bool) -> None:
        """Take the backbone's vision tower; `settled` says that the weights stay, which gives them a fingerprint."""
        self.backbone, self.parts = backbone, parts
        self.preprocess_id, self.device, self.dtype = backbone.preprocess_id, backbone.device, backbone.dtype
        self.width, self.vectors = int(parts.vision_projection.out_features), int(parts.vectors)
        self.vision_width = backbone.vision_width
        self.fingerprint = _digest(backbone.fingerprint, parts) if settled else ""

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Turn one picture into pixels, as the backbone does."""
        return self.backbone.preprocess(image)

    def encode_patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the frozen tower's tokens, before `ln_vision`."""
        return self.backbone.encode_patches(pixels)

    @torch.no_grad()
    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels into a vector per query token, without gradient."""
        return targets(self.parts, self.parts.normed(self.encode_patches(pixels))).float()


def embedded(side: Any, ids: Int64[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
    """Embed a text with its positions, by the parts or by a BLIP-2 text tower; not normed yet."""
    return side.embeddings.word_embeddings(ids) + side.embeddings.position_embeddings.weight[: ids.shape[1]]


def as_text(side: Any, words: Float[Tensor, "b n h"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n h"]:
    """Encode words, prompts among them, by the parts or by a BLIP-2 text tower: no picture, all of them text."""
    return side.qformer(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state


def targets(parts: Any, tokens: Float[Tensor, "b p v"]) -> Float[Tensor, "b t d"]:
    """Encode pictures (normed tokens) as what is searched for: projected query outputs, not normalised."""
    return parts.vision_projection(parts.image(tokens))


def _digest(origin: str, parts: nn.Module) -> str:
    """Sixteen hex digits over the weights that an image goes through."""
    total = hashlib.sha256(origin.encode())
    for name, tensor in parts.state_dict().items():
        if name.startswith(("post_layernorm.", "query_tokens", "qformer.", "vision_projection.")):
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
