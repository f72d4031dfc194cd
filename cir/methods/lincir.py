"""LinCIR: language-only training of a projector by self-masking projection (Gu et al., CVPR 2024, arXiv:2312.01998)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from cir import keywords
from cir.backbones.base import Backbone
from cir.methods import masking
from cir.methods.base import Batches, Method, PseudoWordMethod, Store
from cir.methods.masking import Masked, clean, fit, mask
from cir.methods.noise import check, perturb
from cir.methods.projector import Phi
from cir.methods.texts import FrozenTexts, TokenRows, fingerprint, rules
from cir.objectives import mse
from cir.randomness import StepRandom
from cir.schema import Prompt


@dataclass
class LinCIROptions:
    """LinCIR's settings; the defaults are those of the released training command."""

    dropout: float = 0.5
    noise: str = "uniform_gaussian"
    """Distribution added to the caption's feature, one of `cir.methods.noise.NOISES`."""
    noise_scale: float = 1.0
    l2_normalize: bool = False
    """Normalise the projector's input, in training (after the noise) and at test time."""
    masking: str = "substring"
    """`substring`, as released, or `whole_word`."""
    tagger: str = "builtin"
    """Finds key words: `builtin` (no download) or `spacy` (en_core_web_sm, as released)."""
    hidden: int = 0
    """Width of the projector's hidden layers; 0 is four times the features', as in every published checkpoint."""


@dataclass(frozen=True)
class CaptionBatch:
    """Features of captions, the captions with key words replaced by slots, and which of those are not a fallback."""

    target: Float[Tensor, "b d"]
    masked: Prompt
    own: Bool[Tensor, " b"]
    random: StepRandom


class LinCIR(PseudoWordMethod):
    """One image feature to one pseudo-word, learnt from captions alone.

    A caption with its key words replaced by phi(noisy caption feature) shall still encode to the caption's own
    feature; at test time phi receives an image feature instead.
    """

    trains = (r"phi\..*",)
    paper = "Gu et al., CVPR 2024, arXiv:2312.01998"
    learns_from = "captions"
    Options = LinCIROptions

    def __init__(self, options: LinCIROptions, backbone: Backbone, base: Method | None = None) -> None:
        super().__init__(options, backbone)
        check(options.noise)
        masking.masking(options.masking)
        self.phi = Phi(backbone.width, backbone.word_width, options.dropout, options.hidden)

    def words(self, image: Float[Tensor, "b d"], random: StepRandom | None = None) -> Float[Tensor, "b 1 w"]:
        """Project raw features to one pseudo-word each; `random` turns dropout on in training mode."""
        return self.phi(F.normalize(image, dim=-1) if self.options.l2_normalize else image, random).unsqueeze(1)

    def prepare(self, backbone: Backbone, source: Sequence[str], *, seed: int, draws: int, store: Store) -> Batches:
        """Clean, tag, mask and tokenise captions, each once; their frozen features are kept where that pays."""
        return Captions(self.options, backbone, source, seed, draws, store)

    def losses(self, backbone: Backbone, batch: CaptionBatch) -> dict[str, Tensor]:
        """Self-masking projection (section 3.2): mse between E(masked caption; s) and the caption's raw feature."""
        noisy = perturb(batch.target, self.options.noise, self.options.noise_scale, batch.random)
        encoded = backbone.text.encode(batch.masked, self.words(noisy, batch.random))
        return {"mse": mse(encoded, batch.target)}


class Captions:
    """Captions prepared for self-masking projection.

    Where a run draws more rows than there are captions, all are cleaned, tagged, masked and tokenised ahead, through
    the store; otherwise each when it is first asked for.
    """

    def __init__(
        self, options: LinCIROptions, backbone: Backbone, source: Sequence[str], seed: int, draws: int, store: Store
    ) -> None:
        self.source = source
        self.backbone = backbone
        self.tagger = keywords.tagger(options.tagger)
        self.rule = masking.masking(options.masking)
        self.seed = seed
        cleaned = (fingerprint(source), rules(masking))
        masked = (*cleaned, options.masking, options.tagger, keywords.version(self.tagger), rules(keywords), str(seed))
        self.frozen = FrozenTexts(backbone, self.text, len(source), draws, store, cleaned)
        ahead = len(source) if len(source) < draws else None
        self.masked = TokenRows(backbone.tokenizer, self._masked, ahead, store, masked)

    def __len__(self) -> int:
        """Count the captions."""
        return len(self.source)

    def text(self, number: int) -> str:
        """Return one caption, cleaned."""
        return clean(self.source[number], self.backbone.tokenizer)

    def batch(self, rows: Sequence[int], random: StepRandom) -> CaptionBatch:
        """Look up or make the rows' features and masked prompts."""
        masked, own = self.masked(rows)
        return CaptionBatch(self.frozen(rows), masked, torch.from_numpy(own), random)

    def _masked(self, number: int) -> Masked:
        caption = self.text(number)
        return fit(mask(caption, self.tagger.chunks(caption), self.rule, self.seed, number), self.backbone.tokenizer)
