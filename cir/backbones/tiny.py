"""A CLIP small enough to train from scratch on two cores, as a plain Hugging Face `CLIPModel`.

The vision tower can be fed a choice of patches (as in FLIP, arXiv:2212.00794): pre-training looks mostly at patches
that show something. With all patches it is `CLIPModel`'s own forward.
"""

import json
import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class TinyClip(nn.Module):
    """The model in training, its tokenizer beside it.

    It has what the training loop asks of a backbone. `scale` of `save` is what search and the contrastive losses of
    adapters later see as exp(logit_scale).
    """

    name = "tiny-clip"
    fingerprint = "in training"
    dtype = torch.float32
    mean: Tensor
    std: Tensor

    def __init__(self, tokenizer: Path, *, width: int = 128, image: int = 64, patch: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer))
        end = self.tokenizer.eos_token_id
        shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32,
                  "hidden_act": "gelu", "projection_dim": width}  # fmt: skip
        text = shared | {"vocab_size": len(self.tokenizer), "num_hidden_layers": 3, "eos_token_id": end,
                         "bos_token_id": self.tokenizer.bos_token_id, "pad_token_id": end,
                         "max_position_embeddings": self.tokenizer.model_max_length}  # fmt: skip
        vision = shared | {"num_hidden_layers": 5, "image_size": image, "patch_size": patch}
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Eager attention: its backward is two times faster on CPU at this size than the fused kernel's.
            self.model = CLIPModel._from_config(config, attn_implementation="eager")
        self.width = self.word_width = width
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def tokens(
        self, pixels: Float[Tensor, "b 3 h w"], keep: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b m v"]:
        """Run the vision tower on pixels from 0 to 255; class token first, then the kept patches (all: None)."""
        tower, embed = self.model.vision_model, self.model.vision_model.embeddings
        patches = embed.patch_embedding((pixels - self.mean) / self.std).flatten(2).transpose(1, 2)
        patches = patches + embed.position_embedding.weight[1:]
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, self.width))
        first = (embed.class_embedding + embed.position_embedding.weight[0]).expand(len(pixels), 1, -1)
        return tower.encoder(inputs_embeds=tower.pre_layrnorm(torch.cat([first, patches], dim=1))).last_hidden_state

    def pooled(self, tokens: Float[Tensor, "b m v"]) -> Float[Tensor, "b v"]:
        """Normalise the class token, as the tower does before projecting."""
        return self.model.vision_model.post_layernorm(tokens[:, 0])

    def images(self, tokens: Float[Tensor, "b m v"]) -> Float[Tensor, "b d"]:
        """Project to unit image vectors, float32."""
        return F.normalize(self.model.visual_projection(self.pooled(tokens)).float(), dim=-1)

    def texts(self, captions: list[str]) -> Float[Tensor, "b d"]:
        """Encode captions to unit vectors, float32; padding goes no further than the longest."""
        rows = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(self.mean.device)
        return F.normalize(self.model.text_projection(self.model.text_model(**rows).pooler_output).float(), dim=-1)

    def save(self, folder: Path, scale: float) -> None:
        """Write what `CLIPModel`, `CLIPTokenizer` and the image processors load."""
        with torch.no_grad():
            self.model.logit_scale.fill_(math.log(scale))
        self.model.save_pretrained(str(folder))
        size = self.model.config.vision_config.image_size
        processor = {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
            "do_convert_rgb": True,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
