"""Context-I2W: a picture as one word, read through its text (Tang et al., AAAI 2024, arXiv:2309.16137).

What of a reference becomes the pseudo-word depends on the modification text, so the projector sees the picture's
patch tokens and the feature of the text, in which a special token stands for the unknown subject.
"""

import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cir import keywords
from cir.backbones.base import Backbone
from cir.errors import InputError
from cir.methods.base import Batches, Images, Method, Store, averaged
from cir.methods.projector import hidden_layers, through
from cir.methods.resampler import Resampler
from cir.methods.texts import TokenRows, rules
from cir.objectives import clip_ce, gather
from cir.prompts import Joiner, Template, tokenize
from cir.randomness import StepRandom, seed_of
from cir.schema import Prompt, Query

NO_SPAN = ("a photo of", "")
"""The pieces of the context of a caption in which no noun is found: "a photo of" and the subject."""


@dataclass
class ContextI2WOptions:
    """Context-I2W's settings; the released repository gives no training command."""

    middle: int = 512
    """Width of the hidden layers of both branches."""
    dropout: float = 0.1
    depth: int = 6
    """Layers of the resampler."""
    prompt: str = "a photo of $"
    """The sentence the pseudo-word is trained in."""
    tagger: str = "builtin"
    """Finds the nouns of a caption: `builtin` (no download) or `spacy` (en_core_web_sm)."""
    scale: float = 0.0
    """What cosines are multiplied by in the loss; 0 takes the frozen model's own exp(logit_scale)."""
    gather_negatives: bool = True
    """Take negatives from all processes; off leaves those of the own process."""


@dataclass(frozen=True)
class ContextBatch:
    """Images as features and as tokens, their captions without the subject, and the sentence of the pseudo-word."""

    image: Float[Tensor, "b d"]
    tokens: Float[Tensor, "b p v"]
    context: Prompt
    prompt: Prompt
    random: StepRandom


class WeightNorm(nn.Module):
    """A linear layer without bias whose rows have length g: weight = g v / ||v|| (arXiv:1602.07868).

    Kept as `weight_g` "o 1" and `weight_v` "o i", as in the published checkpoints.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=1, keepdim=True))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Multiply by the normalised weight, which is made in the parameters' own precision."""
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class ContextProjector(nn.Module):
    """Tokens of a picture, seen through a context, to one pseudo-word (sections 3.2 and 3.3).

    Two branches: the class token through a norm, a projection and an MLP (global); the patches through a resampler,
    averaged, then the same with weights of its own (local), added by a gate that starts closed. Every parameter has
    the name it has in the published checkpoints (`VT_Extractor` is the resampler).
    """

    LATENTS = 4

    def __init__(
        self, width: int, word_width: int, vision_width: int, middle: int = 512, dropout: float = 0.1, depth: int = 6
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.to_c = nn.Linear(width, vision_width, bias=False)
        self.W_R = WeightNorm(vision_width, vision_width)
        self.VT_Extractor = Resampler(vision_width, depth, latents=self.LATENTS)
        self.ln_post = nn.LayerNorm(vision_width)
        self.ln_post_local = nn.LayerNorm(vision_width)
        self.proj = nn.Parameter(vision_width**-0.5 * torch.randn(vision_width, width))
        self.proj_local = nn.Parameter(vision_width**-0.5 * torch.randn(vision_width, width))
        self.layers = hidden_layers(width, middle, 2)
        self.layers_local = hidden_layers(width, middle, 2)
        self.fc_out = nn.Linear(middle, word_width)
        self.fc_out_local = nn.Linear(middle, word_width)
        self.local_gate = nn.Parameter(torch.zeros(()))

    def forward(
        self, tokens: Float[Tensor, "b p v"], context: Float[Tensor, "b d"], random: StepRandom | None = None
    ) -> Float[Tensor, "b w"]:
        """Project raw tokens (class token first, before the vision tower's last norm) through raw text features.

        Dropout is on in training mode when `random` is given, and takes its masks from there.
        """
        drawn = random if self.training else None
        seen = self.W_R(tokens) * self.to_c(context)[:, None]
        whole = self.ln_post(seen[:, 0]) @ self.proj
        part = self.ln_post_local(self.VT_Extractor(seen[:, 1:]).mean(dim=1)) @ self.proj_local
        whole = self.fc_out(through(self.layers, whole, self.dropout, drawn, "context.layers"))
        part = self.fc_out_local(through(self.layers_local, part, self.dropout, drawn, "context.layers_local"))
        return whole + self.local_gate.tanh() * part

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take a gate that was saved as a vector of one."""
        gate = state.get(f"{prefix}local_gate")
        if gate is not None and gate.numel() == 1:
            state[f"{prefix}local_gate"] = gate.reshape(())
        super()._load_from_state_dict(state, prefix, *rest)


class ContextI2W(Method):
    """A projector that reads patches through the text; the text tower stays frozen.

    Each rendered prompt is encoded twice: plainly, with the subject token in the slot, for the context, then with the
    pseudo-word in the same slot.
    """

    trains = (r"im2text\..*",)
    paper = "Tang et al., AAAI 2024, arXiv:2309.16137"
    learns_from = "images"
    reads = "patches"
    Options = ContextI2WOptions

    def __init__(self, options: ContextI2WOptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        if not getattr(backbone, "class_token", True):
            raise InputError(
                f"context_i2w reads the class token of the vision tower, and {backbone.name} has none (SigLIP pools "
                "its patches); use a CLIP backbone"
            )
        if not backbone.vision_width:
            raise InputError("context_i2w reads patch tokens, and the width of this backbone's is not known")
        if not Template(options.prompt).slots:
            raise InputError(f"prompt {options.prompt!r}: expected a slot, as in 'a photo of $'")
        self.im2text = ContextProjector(
            backbone.width, backbone.word_width, backbone.vision_width, options.middle, options.dropout, options.depth
        )

    def compose(
        self,
        backbone: Backbone,
        reference: Float[Tensor, "b p v"],
        queries: Sequence[Query],
        template: Template,
        join: Joiner,
    ) -> Float[Tensor, "b n d"]:
        """Compose from the references' patch tokens: one pseudo-word per rendered prompt, since it depends on it."""
        if not template.slots:
            raise InputError(f"prompt.template {template.text!r}: context_i2w needs a slot `$` for its pseudo-word")
        rendered = template.render(backbone.tokenizer, [join(q.texts) for q in queries], [q.concept for q in queries])
        owner = torch.from_numpy(rendered.owner).to(reference.device)
        context = backbone.encode_text(subjects(rendered.prompt, backbone))
        pseudo = self.im2text(reference[owner], context)
        return averaged(backbone.encode_text(rendered.prompt, pseudo[:, None]), owner, len(queries))

    def prepare(self, backbone: Backbone, source: Images, *, seed: int, draws: int, store: Store) -> Batches:
        """Make images and captions ready: one noun of each caption, drawn from (seed, row), becomes the subject."""
        source.features([0])  # all are encoded with the first: now, not behind the progress of training
        return CaptionedImages(self.options, backbone, source, seed, draws, store)

    def losses(self, backbone: Backbone, batch: ContextBatch) -> dict[str, Tensor]:
        """Contrast images with "a photo of" their pseudo-words, both ways: Pic2Word's loss (arXiv:2302.03084)."""
        context = backbone.encode_text(batch.context)
        pseudo = self.im2text(batch.tokens, context, batch.random)
        image, sentence = batch.image, backbone.text.encode(batch.prompt, pseudo[:, None]).float()
        if self.options.gather_negatives:
            image, sentence = gather(image), gather(sentence)
        return {"clip_ce": clip_ce(image, sentence, self.options.scale or backbone.logit_scale)}


class CaptionedImages:
    """Images prepared for Context-I2W: features, patch tokens, and the captions around their subject."""

    def __init__(
        self, options: ContextI2WOptions, backbone: Backbone, images: Images, seed: int, draws: int, store: Store
    ) -> None:
        self.images = images
        self.backbone = backbone
        self.tagger = keywords.tagger(options.tagger)
        self.seed = seed
        self.sentence = tokenize(backbone.tokenizer, [Template(options.prompt).fill("")])
        ahead = len(images) if len(images) < draws else None
        code = rules(keywords, sys.modules[__name__])
        known = ("context", images.fingerprint, options.tagger, keywords.version(self.tagger), code)
        self.contexts = TokenRows(backbone.tokenizer, self._pieces, ahead, store, (*known, str(seed)))

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def batch(self, rows: Sequence[int], random: StepRandom) -> ContextBatch:
        """Look up the rows' features and contexts, and encode their patches."""
        device = self.backbone.device
        return ContextBatch(
            image=self.images.features(rows).to(device, torch.float32, non_blocking=True),
            tokens=self.images.patches(rows).to(device, torch.float32, non_blocking=True),
            context=subjects(self.contexts.prompt(rows), self.backbone),
            prompt=self.sentence[np.zeros(len(rows), dtype=np.int64)],
            random=random,
        )

    def _pieces(self, row: int) -> Sequence[str]:
        caption = self.images.text(row)
        found = spans(caption, self.tagger.chunks(caption))
        if not found:
            return NO_SPAN
        start, stop = random.Random(seed_of(self.seed, row, "subject")).choice(found)
        return caption[:start], caption[stop:]


def spans(caption: str, chunks: Sequence[str]) -> list[tuple[int, int]]:
    """Find where a tagger's chunks stand in the caption, in order; those without a noun or adjective are left out.

    >>> spans("the dog that chases the cat", ["the dog", "that", "the cat"])
    [(0, 7), (20, 27)]
    """
    found, position = [], 0
    for chunk in chunks:
        # A tagger joins words by one blank; the caption may have none (around a hyphen) or several.
        words = r"\s*".join(map(re.escape, chunk.split()))
        match = re.compile(rf"(?<!\w){words}(?!\w)").search(caption, position)
        if match is None:
            continue
        position = match.end()
        if not all(word.lower() in keywords.DETERMINERS for word in chunk.split()):
            found.append(match.span())
    return found


def subjects(prompt: Prompt, backbone: Backbone) -> Prompt:
    """Put the subject token into every slot, as a plain word: the last entry of CLIP's vocabulary (49405).

    It is the released code's `<|replace|>`: its embedding row belongs to a rare word and stays as it is.
    """
    ids = prompt.ids.copy()
    row, column = np.nonzero(prompt.slots >= 0)
    ids[row, prompt.slots[row, column]] = backbone.tokenizer.end - 2
    return Prompt(ids, np.zeros((len(ids), 0), dtype=np.int64), prompt.ends)
