"""The items of the benchmark: for each, a step of `cir` and the same step in `reference_training.py`.

Weights, texts and random draws are those of our side, so that both compute the same numbers.
"""

import json
import tempfile
from pathlib import Path

import reference_training as reference
import torch
from fixture import MadeUpImages, Triplet, cirr, made_up, padded, phrases, text_model
from sides import Inverting, Ours, Setting, Side, Variant
from torch import nn

from cir.methods import token_table
from cir.prompts import tokenize
from cir.randomness import StepRandom


def plain_tower(setting: Setting, trained: bool):
    """Build the reference's tower with the same weights."""
    return text_model(setting.size).requires_grad_(trained)


def copied(layers: nn.Module, ours: nn.Module) -> nn.Module:
    """Give the reference's projector our weights; parameters stand in the same order."""
    with torch.no_grad():
        for mine, other in zip(layers.parameters(), ours.parameters(), strict=True):
            mine.copy_(other)
    return layers


def masks(random: StepRandom, name: str, places: dict[str, str], rate: float, width: int):
    """Draw dropout's masks under the names `cir` draws them."""
    return {place: random.keep(f"{name}.{key}", 1 - rate, width).float() for place, key in places.items()}


def noise(random: StepRandom, width: int):
    """Draw LinCIR's and RTD's noise under the names `cir` draws it."""
    return random.uniform("noise.scale", 1), random.normal("noise.gaussian", width)


def plain_side(loss, named, setting: Setting) -> Side:
    """Train what the released scripts train, with AdamW as torch builds it by default."""
    return Side(loss, named, torch.optim.AdamW(list(named.values()), lr=setting.lr))


class LinCIR:
    """Language-only training of a projector."""

    batch = 32
    texts = "captions, made up"

    def __init__(self, setting: Setting):
        self.setting = setting
        self.source = self.captions(setting.batch)

    captions = staticmethod(made_up)

    def ours(self, variant: Variant) -> Ours:
        return Ours("lincir", self.setting, variant, source=self.source)

    def plain(self, ours: Ours) -> Side:
        batch, random, width = ours.batches.batch(ours.rows, ours.random), ours.random, self.setting.size.width
        caption = padded(tokenize(ours.backbone.tokenizer, [[text.lower()] for text in self.source]))
        masked, (scale, gauss) = padded(batch.masked), noise(random, width)
        kept = masks(random, "phi.layers", {"0": "2", "3": "5"}, 0.5, 4 * width)
        tower = plain_tower(self.setting, trained=False)
        layers = copied(reference.phi(width, 4 * width), ours.method.phi)
        return plain_side(
            lambda: reference.lincir(tower, layers, caption, masked, scale, gauss, kept),
            dict(layers.named_parameters()), self.setting,
        )  # fmt: skip


class RTD:
    """A text tower in training; each side of a triplet is a caption."""

    batch = 8
    texts = "captions, made up"

    def __init__(self, setting: Setting):
        self.setting = setting
        texts = self.captions(3 * setting.batch)
        self.source = [Triplet(*texts[i : i + 3]) for i in range(0, len(texts), 3)]

    captions = staticmethod(made_up)

    def ours(self, variant: Variant) -> Ours:
        return Ours("rtd", self.setting, variant, source=self.source, base="lincir")

    def plain(self, ours: Ours) -> Side:
        batch, width = ours.batches.batch(ours.rows, ours.random), self.setting.size.width
        tokenizer = ours.backbone.tokenizer
        target, ref = (
            padded(tokenize(tokenizer, [[getattr(row, side).lower()] for row in self.source]))
            for side in ("target", "reference")
        )
        composed, special = padded(batch.composed), padded(batch.special)
        scale, gauss = noise(ours.random, width)
        frozen, trained = plain_tower(self.setting, trained=False), plain_tower(self.setting, trained=True)
        layers = copied(reference.phi(width, 4 * width), ours.method.base.phi).requires_grad_(False)
        return plain_side(
            lambda: reference.rtd(frozen, trained, layers, target, ref, composed, special, scale, gauss),
            {f"text.{name}": p for name, p in trained.named_parameters()}, self.setting,
        )  # fmt: skip


class LinCIROnCIRR(LinCIR):
    """The same with CIRR's captions, whose key words leave more tokens than those of ordinary captions."""

    texts = "captions of CIRR val"
    captions = staticmethod(cirr)


class RTDOnCIRR(RTD):
    """The same with CIRR's captions."""

    texts = "captions of CIRR val"
    captions = staticmethod(cirr)


class Pic2Word:
    """Images against "a photo of" their word."""

    batch = 32
    texts = "a photo of $"

    def __init__(self, setting: Setting):
        self.setting = setting
        self.source = MadeUpImages(setting.batch, setting.size.width)

    def ours(self, variant: Variant) -> Ours:
        return Ours("pic2word", self.setting, variant, source=self.source)

    def plain(self, ours: Ours) -> Side:
        batch, width = ours.batches.batch(ours.rows, ours.random), self.setting.size.width
        kept = masks(ours.random, "im2text.layers", {"0": "0", "1": "1"}, 0.1, 512)
        tower = plain_tower(self.setting, trained=True)
        layers = copied(reference.im2text(width, 512), ours.method.im2text)
        sentence = padded(batch.prompt)
        return plain_side(
            lambda: reference.pic2word(tower, layers, batch.image, sentence, kept),
            dict(layers.named_parameters()), self.setting,
        )  # fmt: skip


class Searle:
    """Distillation of inverted tokens."""

    batch = 32
    texts = "phrases, made up"

    def __init__(self, setting: Setting):
        self.setting = setting
        self.source = MadeUpImages(setting.batch, setting.size.width)

    def ours(self, variant: Variant) -> Ours:
        with tempfile.TemporaryDirectory() as folder:
            options = {"phrases": str(write_phrases(Path(folder))), "tokens": folder}
            shape = self.setting.batch, self.setting.size.width
            tokens = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
            token_table.write(Path(folder), tokens, [str(i) for i in range(len(tokens))], {"name": "fixture"})
            return Ours("searle", self.setting, variant, options, self.source)

    def plain(self, ours: Ours) -> Side:
        batch, width = ours.batches.batch(ours.rows, ours.random), self.setting.size.width
        kept = masks(ours.random, "phi.layers", {"0": "2", "3": "5"}, 0.5, 4 * width)
        masked, phrase = (padded(batch.phrases[part]) for part in _halves(len(batch.phrases)))
        tower = plain_tower(self.setting, trained=False)
        layers = copied(reference.phi(width, 4 * width), ours.method.phi)
        return plain_side(
            lambda: reference.searle(tower, layers, batch.image, batch.token, phrase, masked, kept),
            dict(layers.named_parameters()), self.setting,
        )  # fmt: skip


def _halves(rows: int) -> tuple[slice, slice]:
    return slice(0, rows // 2), slice(rows // 2, rows)


def write_phrases(folder: Path) -> Path:
    """Write the phrases as the methods read them."""
    path = folder / "phrases.jsonl"
    path.write_text("".join(json.dumps({"concept": c, "phrases": p}) + "\n" for c, p in phrases()))
    return path


class OTI:
    """Inversion of images by optimisation."""

    batch = 32
    texts = "24 templates, phrases made up"

    def __init__(self, setting: Setting):
        self.setting = setting

    def ours(self, variant: Variant) -> Inverting:
        return Inverting(self.setting, variant)

    def plain(self, ours: Inverting) -> Side:
        inversion, known, tokenizer = ours.inversion, ours.inversion.book.vocabulary, ours.backbone.tokenizer
        numbers = inversion.phrases[:, 0].tolist()
        template = padded(inversion.asked.prompt(inversion.sentences[:, 0].tolist()))
        masked = padded(tokenize(tokenizer, [known.first(number) for number in numbers]))
        phrase = padded(tokenize(tokenizer, [[known.phrase(number)] for number in numbers]))
        tower = plain_tower(self.setting, trained=True)
        token = inversion.token.detach().clone().requires_grad_()
        image = inversion.targets
        side = plain_side(
            lambda: reference.oti(tower, token, image, template, phrase, masked), {"token": token}, self.setting
        )
        average = token.detach().clone()
        optimizer = torch.optim.AdamW([token], lr=2e-2)

        def update():
            optimizer.step()
            average.mul_(0.99).add_(token.detach(), alpha=0.01)

        side.update = update
        return side


ITEMS = {
    "lincir": LinCIR,
    "rtd": RTD,
    "pic2word": Pic2Word,
    "oti": OTI,
    "searle": Searle,
    "lincir_cirr": LinCIROnCIRR,
    "rtd_cirr": RTDOnCIRR,
}
