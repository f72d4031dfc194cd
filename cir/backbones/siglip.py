"""SigLIP, and SigLIP 2 at fixed resolution, in the Hugging Face format (arXiv:2303.15343, 2502.14786)."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cir.backbones.base import TextTower
from cir.backbones.clip import ClipBackbone, VisionTower, read_model
from cir.backbones.text import WholeTower
from cir.errors import InputError


class SiglipVision(VisionTower):
    """SigLIP's vision tower, by Hugging Face's names; its attention-pooling head is the projection."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Pool all patches."""
        return self.vision_model(pixel_values=pixels).pooler_output[:, None]

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Return the last block's tokens before the final norm, all of them patches: no class token."""
        return self.vision_model.encoder(inputs_embeds=self.vision_model.embeddings(pixels)).last_hidden_state


class SiglipBackbone(ClipBackbone):
    """Frozen SigLIP behind `cir.backbones.base.Backbone`.

    Pictures are squashed to a square, text is padded to the full context and sees its padding, and the space has no
    projection layer beyond the text head. Texts are lower-cased and stripped of punctuation by the checkpoint's own
    tokenizer, or not, as its authors chose.
    """

    fixed_length = True
    class_token = False

    def _load(self, folder: Path, dtype: torch.dtype, attention: str) -> Any:
        """Load the whole dual encoder."""
        from transformers import SiglipModel

        return read_model(SiglipModel, folder, dtype, attention)

    def _vision(self) -> VisionTower:
        """Build the vision tower around the loaded weights."""
        return SiglipVision(self._model.vision_model)

    def _tower(self, text_tower: str) -> TextTower:
        """Build the only tower a bidirectional text model can have."""
        if text_tower not in ("auto", "whole", "padded"):  # its rows are padded: to the full context
            raise InputError(f"text_tower {text_tower!r}: SigLIP's text model is not causal; use text_tower=auto")
        return WholeTower(self._model.text_model)

    def _width(self) -> int:
        """Read the joint embedding width."""
        return int(self._model.config.text_config.projection_size)
