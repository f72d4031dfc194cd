"""SigLIP, and SigLIP 2 at fixed resolution, in the Hugging Face format (arXiv:2303.15343, 2502.14786)."""

from pathlib import Path
from typing import Any

import torch

from cir.backbones.base import TextTower
from cir.backbones.clip import ClipBackbone, read_model
from cir.backbones.text import WholeTower
from cir.errors import InputError


class SiglipBackbone(ClipBackbone):
    """Frozen SigLIP behind `cir.backbones.base.Backbone`.

    Pictures are squashed to a square, text is padded to the full context and sees its padding, and the space has no
    projection layer beyond the text head. Texts are lower-cased and stripped of punctuation by the checkpoint's own
    tokenizer, or not, as its authors chose.
    """

    fixed_length = True

    def _load(self, folder: Path, dtype: torch.dtype, attention: str) -> Any:
        """Load the whole dual encoder."""
        from transformers import SiglipModel

        return read_model(SiglipModel, folder, dtype, attention)

    def _tower(self, text_tower: str) -> TextTower:
        """Build the only tower a bidirectional text model can have."""
        if text_tower != "padded":
            raise InputError(f"text_tower {text_tower!r}: SigLIP's text model is not causal; use text_tower=padded")
        return WholeTower(self._model.text_model)

    def _width(self) -> int:
        """Read the joint embedding width."""
        return int(self._model.config.text_config.projection_size)
