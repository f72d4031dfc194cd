"""CLIP in the Hugging Face format: OpenAI, LAION and MetaCLIP weights, or a folder of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from cir.backbones import weights
from cir.backbones.base import TextTower
from cir.backbones.preprocess import from_folder
from cir.backbones.text import TEXT_TOWERS
from cir.backbones.tokens import load_tokenizer
from cir.errors import InputError, nearest
from cir.schema import Prompt


class VisionTower(nn.Module):
    """A vision tower that can be deep-copied and trained (CLIP4Cir trains one): pixels in, raw vectors out.

    Pixels are of the tower's own dtype; gradients flow unless the caller turned them off. Its parameters have the names
    they have in the checkpoint's own file.
    """

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels into the joint space; not normalised."""
        raise NotImplementedError

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the last block's tokens before the final norm (`Backbone.encode_patches`)."""
        raise NotImplementedError


class ClipVision(VisionTower):
    """CLIP's vision tower with its projection, by Hugging Face's names."""

    def __init__(self, vision_model: Any, visual_projection: nn.Linear) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Project the class token behind the final norm."""
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)[:, None]

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Return the last block's tokens before the final norm, class token first."""
        return self.vision_model(pixel_values=pixels).last_hidden_state


class ClipBackbone:
    """Frozen CLIP behind `cir.backbones.base.Backbone` (arXiv:2103.00020); subclasses say how another family differs.

    Build it with `cir.backbones.load`, which checks the arguments.
    """

    fixed_length = False
    vectors = 1
    class_token = True
    """Whether the first of `encode_patches`' tokens is a class token; Context-I2W reads it."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        preprocess: str,
        text_tower: str,
        attention: str,
    ) -> None:
        self.name = name
        self.device = device
        self.dtype = dtype
        self._preprocess = from_folder(folder, preprocess)
        self.preprocess_id = self._preprocess.id
        model = self._load(folder, dtype, attention).to(device).eval().requires_grad_(False)
        self._model = model
        self._check_size(folder)
        self.vision = self._vision().eval()
        self.text = self._tower(text_tower).eval()
        self.tokenizer = load_tokenizer(folder, self._context(), self.fixed_length)
        if not 0 <= self.tokenizer.end < model.config.text_config.vocab_size:
            raise InputError(
                f"{folder}: the tokenizer's end id {self.tokenizer.end} is outside the weights' vocabulary"
            )
        self.word_width = self.text.word_width
        self.width = self._width()
        self.vision_width = int(model.config.vision_config.hidden_size)
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.fingerprint = weights.fingerprint(folder)

    def _load(self, folder: Path, dtype: torch.dtype, attention: str) -> Any:
        """Load the whole dual encoder."""
        from transformers import CLIPModel

        return read_model(CLIPModel, folder, dtype, attention)

    def _vision(self) -> VisionTower:
        """Build the vision tower around the loaded weights."""
        return ClipVision(self._model.vision_model, self._model.visual_projection)

    def _tower(self, text_tower: str) -> TextTower:
        """Build the named text tower around the loaded weights."""
        name = "packed" if text_tower == "auto" else text_tower
        if name not in TEXT_TOWERS:
            raise InputError(f"text_tower {text_tower!r}: {nearest(text_tower, ['auto', *TEXT_TOWERS])}")
        return TEXT_TOWERS[name](self._model.text_model, self._model.text_projection)

    def _width(self) -> int:
        """Read the joint embedding width."""
        return int(self._model.config.projection_dim)

    def _context(self) -> int:
        """Read the number of text positions."""
        return int(self._model.config.text_config.max_position_embeddings)

    def _check_size(self, folder: Path) -> None:
        """Refuse a preprocessing whose result the vision tower cannot take."""
        size = int(self._model.config.vision_config.image_size)
        if self._preprocess.size != (size, size):
            raise InputError(
                f"{folder}: the preprocessing makes {self._preprocess.size} pixels, the vision tower takes "
                f"{(size, size)}; a preprocessor_config.json of other weights?"
            )

    def preprocess(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Turn one picture into pixels, as the weights ask for."""
        return self._preprocess(image)

    @torch.no_grad()
    def encode_images(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
        """Encode pixels, without gradient: raw float32 features on the backbone's device."""
        pixels = pixels.to(self.device, self.dtype, non_blocking=True)
        return self.vision(pixels).float()

    @torch.no_grad()
    def encode_patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the last block's tokens before the final norm: float32, on the backbone's device."""
        pixels = pixels.to(self.device, self.dtype, non_blocking=True)
        return self.vision.patches(pixels).float()

    @torch.no_grad()
    def encode_text(
        self,
        prompt: Prompt,
        pseudo: Float[Tensor, "o n w"] | None = None,
        owner: Int[np.ndarray, " b"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Encode prompts with the frozen tower, without gradient: raw float32 features on the backbone's device."""
        if not len(prompt):  # attention cannot reshape an empty batch
            return torch.zeros(0, self.width, device=self.device)
        return self.text.encode(prompt, None if pseudo is None else pseudo.to(self.device), owner).float()


def read_model(cls: Any, folder: Path, dtype: torch.dtype, attention: str) -> Any:
    """Load a model of the given class; InputError where weights and config do not belong together.

    Every weight must be in the file: `transformers` would otherwise fill the gaps with random numbers and go on.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what its report would say is checked below
    logging.disable_progress_bar()
    try:
        model, info = cls.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{folder}: weights not readable ({reason:.200}); is the download complete?") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    absent = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if absent or info.get("mismatched_keys"):
        raise InputError(
            f"{folder}: {len(absent)} weights of {cls.__name__} absent, first {absent[:3]}, "
            f"{len(info.get('mismatched_keys') or ())} of another shape; wrong files or an incomplete download?"
        )
    return model
