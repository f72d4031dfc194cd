"""What the training benchmark computes on: a text tower of a given size with random weights, and texts of real lengths.

Nothing is downloaded. Captions are made up, 14.7 tokens long on average and 9.5 with their key words masked; CIRR's own
are read as well where its annotations are found (`CIR_CAPTIONS`, by default beside the repository). Token ids are made
up too (a digest of the word): speed depends on how many tokens there are and on which texts begin alike.
"""

import json
import os
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

START, END, SLOT, CONTEXT = 49406, 49407, 259, 77
BESIDE = Path(__file__).resolve().parents[3] / "shared/data/CIRR/cirr/captions/cap.rc2.val.json"
REAL_CAPTIONS = Path(os.environ.get("CIR_CAPTIONS", BESIDE))


@dataclass(frozen=True)
class Size:
    """A text tower's size; `width` is that of words, states and, here, the joint space."""

    layers: int = 12
    width: int = 768
    heads: int = 12

    @property
    def mlp(self) -> int:
        return 4 * self.width


REAL = Size()
"""ViT-L/14's text tower."""
SMALL = Size(width=48, heads=4)
"""As many layers, so that counts of token passes are the same."""
SIZES = {"vitl14": REAL, "vitg14": Size(layers=32, width=1280, heads=20), "small": SMALL}


class FixtureTokenizer:
    """Words and punctuation as one token each, long words as two; special ids are CLIP's."""

    start, end, pad, slot, context, fixed_length = (START,), END, END, SLOT, CONTEXT, False
    fingerprint = "fixture"

    def __init__(self):
        self.words = {}

    def pieces(self, text: str) -> list[int]:
        """Turn text into ids."""
        ids = []
        for word in re.findall(r"[^\W_]+|[^\w\s]|_", text.lower()):
            parts = [word] if len(word) < 10 else [word[:5], word[5:]]
            for part in parts:
                number = 320 + zlib.crc32(part.encode()) % 49000
                self.words[number] = part
                ids.append(number)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids back into text."""
        return " ".join(self.words[i] for i in ids)


def text_model(size: Size, seed: int = 0) -> nn.Module:
    """Build Hugging Face's text model with random weights, spread so that texts differ as much as trained ones do."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=END + 1, hidden_size=size.width, intermediate_size=size.mlp, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, max_position_embeddings=CONTEXT, projection_dim=size.width,
        hidden_act="quick_gelu", eos_token_id=END, bos_token_id=START, pad_token_id=END,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in model.text_model.embeddings.parameters():
            parameter.mul_(20)
    return model.requires_grad_(False)


class TextBackbone:
    """`cir.backbones.base.Backbone` around a text model alone."""

    name, fingerprint, preprocess_id = "fixture", "fixture", "none"
    vectors, vision_width, logit_scale = 1, 8, 100.0

    def __init__(self, model: nn.Module, dtype=torch.float32, device="cpu", attention="rows"):
        from cir.backbones.packed import PackedTower

        model = model.to(device, dtype)
        self.text = PackedTower(model.text_model, model.text_projection, attention).eval()
        self.tokenizer = FixtureTokenizer()
        self.width = self.word_width = self.text.word_width
        self.device, self.dtype = torch.device(device), dtype

    def preprocess(self, image):
        raise NotImplementedError("the fixture sees no pictures")

    encode_images = encode_patches = preprocess

    @torch.no_grad()
    def encode_text(self, prompt, pseudo=None, owner=None):
        return self.text.encode(prompt, pseudo, owner).float()


class MadeUpImages:
    """`cir.methods.base.Images` of random features."""

    fingerprint = "made-up"

    def __init__(self, count: int, width: int):
        self.vectors = 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.vectors)

    def text(self, row):
        return ""

    def features(self, rows):
        return self.vectors[list(rows)]

    def augmented(self, rows, random):
        raise NotImplementedError("no pictures")

    patches = augmented


SUBJECTS = (
    "a small brown dog,the black puppy,two monkeys,a white bottle,the old wooden table,a group of penguins,"
    "a bowl of fruit,a young man,the yellow school bus,a laptop,a pair of grey gloves,a stack of books,"
    "one large gorilla,the round fish tank,a glass of red wine,the striped curtain,a seal,a wolf,"
    "some tall bookcase,a plate of pasta,the silver safety pin,a vase of fresh flowers,"
    "the same red couch,an empty cardboard box"
).split(",")
VERBS = (
    "lying on,stands next to,sitting in front of,on,with,has the same colour as,instead of,running across,behind,faces,"
    "is shown from above with,together with,under,is not looking at"
).split(",")
PLACES = (
    "the green grass,a plain white background,the deep blue water,another dog,a snowy field,the kitchen counter,"
    "its owner,the beach,a wooden floor,the camera,an open window,a busy city street,some grey rocks,the left side,"
    "a pink blanket,the living room sofa"
).split(",")
TAILS = (
    "and more of them,with a clear blue sky,at night,in black and white,while a person holds it,from a closer angle,,,"
    "next to a small child"
).split(",")


def made_up(count: int, seed: int = 0) -> list[str]:
    """Write captions of CIRR's lengths, 10 to 25 tokens with start and end, in its manner."""
    draw = random.Random(seed)
    lists = (SUBJECTS, VERBS, PLACES, TAILS)
    texts: list[str] = []
    while len(texts) < count:
        text = " ".join(part for part in map(draw.choice, lists) if part)
        if 10 <= tokens(text) <= 25:
            texts.append(text)
    return texts


def tokens(text: str) -> int:
    """Count a text's tokens, start and end included."""
    return len(FixtureTokenizer().pieces(text)) + 2


def cirr(count: int) -> list[str]:
    """Draw CIRR's captions of 10 to 25 tokens."""
    found = [row["caption"] for row in json.loads(REAL_CAPTIONS.read_text(encoding="utf-8"))]
    found = [text for text in found if 10 <= tokens(text) <= 25]
    random.Random(0).shuffle(found)
    return found[:count]


@dataclass
class Triplet:
    """A text triplet."""

    reference: str
    text: str
    target: str


CONCEPTS = (
    "dog,acoustic guitar,penguin,bottle,school bus,laptop,wine glass,bookcase,gorilla,goldfish,safety pin,hyena,"
    "vase,couch,curtain,cardboard box,bicycle,mountain,bowl,umbrella,horse,bridge,candle,lighthouse"
).split(",")
STATES = (
    "is being used,sits quietly,was taken,is shown,has been left,stands,can be seen,looks good,was found,hangs,"
    "I made,we bought,makes people smile,is for sale,was built,does not belong,lies,you will love,lives,grew up"
).split(",")
JOINED = "in,by,at,near,for,after,with,before,from,without".split(",")
WHERE = (
    "the end of the day,a small village,his own house,a new home,the world,my best friend,the middle of a river,"
    "our first winter,some very old trees,an art museum,two of them,the local market,her garden,the other side,"
    "a rainy afternoon,no good reason"
).split(",")
LAST = "of course,this year,once more,at home,every day,for free,all alone,in spring,as usual,last night".split(",")


def phrases() -> list[tuple[str, list[str]]]:
    """Write sentences about concepts in the manner of SEARLE's: "a photo of {concept} that", then some words."""
    draw = random.Random(1)
    return [
        (
            name,
            [f"a photo of {name} that " + " ".join(map(draw.choice, (STATES, JOINED, WHERE, LAST))) for _ in range(16)],
        )
        for name in CONCEPTS
    ]


def padded(prompt) -> torch.Tensor:
    """Turn a `cir.schema.Prompt` into the 77 columns the released scripts make, filled with 0 behind the end."""
    ids = np.zeros((len(prompt.ids), CONTEXT), dtype=np.int64)
    for row, (tokens, end) in enumerate(zip(prompt.ids, prompt.ends, strict=True)):
        ids[row, : end + 1] = tokens[: end + 1]
    return torch.from_numpy(ids)
