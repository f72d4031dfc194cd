"""One side of an item: a step of a method of `cir`, in the ways that are measured.

A side is built once; `gradients()` computes loss and gradients of one batch, always the same one, `update()` moves the
weights.
"""

import contextlib
from dataclasses import dataclass

import torch
from fixture import MadeUpImages, Size, TextBackbone, phrases, text_model

from cir.backbones.counting import count_tokens
from cir.methods import NoStore, build
from cir.optim import adamw, trainables
from cir.randomness import StepRandom

MANY = 10**12


@dataclass(frozen=True)
class Setting:
    """What is measured: a size, a batch, and where."""

    size: Size
    batch: int
    device: str = "cpu"
    compiled: bool = False
    lr: float = 1e-5


@dataclass(frozen=True)
class Variant:
    """A way to run `cir`: frozen features kept from an earlier pass, and the precision."""

    name: str
    cached: bool = False
    bf16: bool = False


EXACT = Variant("exact")
CACHED = Variant("cached", cached=True)
BF16 = Variant("cached, bf16", cached=True, bf16=True)


class Side:
    """Gradients and updates of one batch; `named` are the parameters that learn, in the same order on both sides."""

    def __init__(self, loss, named, optimizer):
        self.loss, self.named, self.optimizer = loss, named, optimizer

    def gradients(self):
        """Compute the loss and, from nothing, the gradients of one batch."""
        for parameter in self.named.values():
            parameter.grad = None
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def update(self):
        """Move the weights."""
        self.optimizer.step()


class Ours(Side):
    """A method of `cir` on the packed tower."""

    def __init__(self, name: str, setting: Setting, variant: Variant, options=None, source=None, base=None):
        # RTD copies the tower it trains from the frozen one: mixed precision casts it on the way.
        dtype = torch.bfloat16 if variant.bf16 and name != "rtd" else torch.float32
        self.backbone = TextBackbone(text_model(setting.size), dtype, setting.device)
        wrapped = build(base, {}, self.backbone, seed=1) if base else None
        self.method = build(name, options or {}, self.backbone, wrapped, seed=0).train()
        draws = MANY if variant.cached else 1
        self.batches = self.method.prepare(self.backbone, source, seed=0, draws=draws, store=NoStore())
        self.rows = list(range(setting.batch))
        self.random = StepRandom(0, 0, 0, setting.batch, setting.batch, torch.device(setting.device))
        self.mixed = variant.bf16
        named = trainables(self.method, self.method.trains)
        super().__init__(self._loss, named, adamw(named, lr=setting.lr))
        if setting.compiled:
            compile_blocks(self.backbone.text, getattr(self.method, "text", None))

    def _loss(self):
        batch = self.batches.batch(self.rows, self.random)
        kind = self.backbone.device.type
        with torch.autocast(kind, dtype=torch.bfloat16) if self.mixed else contextlib.nullcontext():
            return sum(self.method.losses(self.backbone, batch).values())

    def towers(self):
        """Name the text towers whose products count."""
        own = getattr(self.method, "text", None)
        return [self.backbone.text] + ([own] if own is not None else [])


def compile_blocks(*towers) -> None:
    """Compile what has no dynamic layout: the MLPs and norms, whose number of tokens may vary."""
    for tower in towers:
        for layer in tower.text_model.encoder.layers if tower is not None else ():
            for part in (layer.mlp, layer.layer_norm1, layer.layer_norm2):
                part.compile(dynamic=True)


class Inverting(Side):
    """One iteration of `cir.methods.inversion`; every call computes the first one's loss and gradient again."""

    def __init__(self, setting: Setting, variant: Variant):
        from cir.methods.inversion import Inversion, InversionOptions
        from cir.methods.phrases import Phrasebook, Vocabulary

        dtype = torch.bfloat16 if variant.bf16 else torch.float32
        self.backbone = TextBackbone(text_model(setting.size), dtype, setting.device)
        vocabulary = Vocabulary(phrases())
        book = Phrasebook(self.backbone, vocabulary, draws=MANY if variant.cached else 0, store=NoStore())
        features = MadeUpImages(setting.batch, setting.size.width).vectors
        options = InversionOptions(steps=2, batch=setting.batch)
        keys = [str(i) for i in range(setting.batch)]
        self.inversion = Inversion(self.backbone, features, keys, options, book)
        super().__init__(self._loss, {"token": self.inversion.token}, self.inversion.optimizer)
        if setting.compiled:
            compile_blocks(self.backbone.text)

    def _loss(self):
        terms = self.inversion.losses()
        return (terms["image"] + 0.5 * terms["text"]).mean() / 1.5

    def update(self):
        self.optimizer.step()
        self.inversion.average.mul_(0.99).add_(self.inversion.token.detach(), alpha=0.01)

    def towers(self):
        return [self.backbone.text]


def passes(side) -> dict[str, float]:
    """Count the token passes of one step, per tower added up (`cir.backbones.counting`)."""
    with contextlib.ExitStack() as stack:
        counts = [stack.enter_context(count_tokens(tower)) for tower in side.towers()]
        side.gradients()
    names = ("forward", "backward_inputs", "weight_gradients", "total")
    found = {name: sum(getattr(count, name) for count in counts) for name in names}
    return found | {"frozen_weight_gradients": counts[0].weight_gradients}
