"""A BLIP-2 retriever small enough to train on one core, as a plain Hugging Face `Blip2ForImageTextRetrieval`.

Same parts and same calls as ViT-g's: an EVA-style vision tower, `ln_vision`, a Q-Former with learnt queries whose text
side is a BERT, projections into a joint space, and a head for image-text matching.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForImageTextRetrieval, CLIPModel

from cir.backbones.blip2 import CONTEXT, TEMPERATURE
from cir.backbones.clip import read_model
from cir.backbones.qformer import QFormerParts, up_to_end
from cir.backbones.tiny import MEAN, STD
from cir.backbones.tokens import blip_caption, load_tokenizer
from cir.errors import InputError
from cir.prompts import tokenize

Rows = tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]
"""Token rows and where they are not padding."""


class TinyBlip2(nn.Module):
    """The model in training, its tokenizer beside it; it has what the training loop asks of a backbone."""

    name = "tiny-blip2"
    fingerprint = "in training"
    dtype = torch.float32
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tokenizer: Path,
        *,
        width: int = 128,
        joint: int = 64,
        layers: int = 4,
        queries: int = 32,
        image: int = 64,
        patch: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer, CONTEXT, False, kind="BertTokenizer", clean=blip_caption)
        entries = len((tokenizer / "vocab.txt").read_text(encoding="utf-8").splitlines())
        shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
        vision = shared | {"num_hidden_layers": 5, "image_size": image, "patch_size": patch, "initializer_range": 0.02}
        former = shared | {"num_hidden_layers": layers, "vocab_size": entries, "use_qformer_text_input": True,
                           "max_position_embeddings": 2 * CONTEXT,
                           "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
        unused = {"model_type": "opt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                  "word_embed_proj_dim": 8, "ffn_dim": 8, "vocab_size": 8}  # fmt: skip
        config = Blip2Config(vision_config=vision, qformer_config=former, text_config=unused, num_query_tokens=queries,
                             image_text_hidden_size=joint)  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Eager attention: its backward is two times faster on CPU at this size than the fused kernel's.
            self.model = Blip2ForImageTextRetrieval._from_config(config, attn_implementation="eager")
            # Hugging Face starts all queries at zero, where they would stay equal; LAVIS draws them like this.
            nn.init.normal_(self.model.query_tokens, std=0.02)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.width, self.word_width, self.vision_width = joint, width, width
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def pixels(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise pixels from 0 to 255 as CLIP does."""
        return (pictures - self.mean) / self.std

    def tokens(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Run the vision tower on pixels from 0 to 255: class token and patches, before `ln_vision`."""
        tower = self.model.vision_model
        return tower.encoder(inputs_embeds=tower.embeddings(self.pixels(pictures))).last_hidden_state

    @property
    def parts(self) -> QFormerParts:
        """What lies behind the vision tower, as functions; it shares the model's weights."""
        return QFormerParts(self.model, self.model.vision_model.post_layernorm)

    def seen(self, normed: Float[Tensor, "b p v"]) -> Float[Tensor, "b t h"]:
        """Let the queries read pictures (tokens after `ln_vision`)."""
        return self.parts.image(normed)

    def read(self, rows: Rows) -> Float[Tensor, "b h"]:
        """Read texts without any picture: the state at the class token."""
        parts, (ids, mask) = self.parts, rows
        return parts.text(parts.embed(ids), mask)[:, 0]

    def images(self, normed: Float[Tensor, "b p v"]) -> Float[Tensor, "b t d"]:
        """Project what the queries saw; raw float32."""
        return self.model.vision_projection(self.seen(normed)).float()

    def texts(self, rows: Rows) -> Float[Tensor, "b d"]:
        """Project what was read; raw float32."""
        return self.model.text_projection(self.read(rows)).float()

    def match(self, normed: Float[Tensor, "b p v"], rows: Rows) -> Float[Tensor, "b 2"]:
        """Read picture i and text i together: logits of "they do not belong together" and of "they do"."""
        parts = self.parts
        return parts.matching(parts.fuse(normed, *rows)).float()

    def rows(self, captions: list[str]) -> Rows:
        """Tokenise captions as `Blip2Backbone` does, cut to the context; padding goes no further than the longest."""
        prompt = tokenize(self.tokenizer, [[text] for text in captions], overflow="cut")
        return up_to_end(*(torch.from_numpy(a).to(self.device) for a in (prompt.ids, prompt.ends)))

    def save(self, folder: Path) -> None:
        """Write what `Blip2ForImageTextRetrieval`, `BertTokenizer` and the image processors load.

        The temperature has no place in Hugging Face's weights; config.json has it under `cir`.
        """
        self.model.config.cir = {"temperature": float(self.temperature.detach())}
        self.model.save_pretrained(str(folder))
        size = self.model.config.vision_config.image_size
        processor = {
            "image_processor_type": "BlipImageProcessor", "do_resize": True, "size": {"height": size, "width": size},
            "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN,
            "image_std": STD, "do_convert_rgb": True,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")


@torch.no_grad()
def start_from(tower: Any, clip: Any, pictures: Float[Tensor, "b 3 h w"]) -> None:
    """Copy a `CLIPModel`'s vision tower into a `Blip2VisionModel` of its shape, all but its norm before the blocks.

    That norm, y = g (e - mean e) / std e + b, is absent here. It is folded into the embeddings: exactly for the class
    token, which no picture changes; for patches with the deviation averaged over `pictures` (normalised).
    """
    theirs = clip.vision_model
    before, after = theirs.embeddings, tower.embeddings
    norm = theirs.pre_layrnorm
    patches = before(pictures)[:, 1:]
    scale = norm.weight / (patches.var(dim=-1, unbiased=False) + norm.eps).sqrt().mean()

    def fold(x: Tensor) -> Tensor:
        """Centre the rows and scale their features."""
        return (x - x.mean(dim=-1, keepdim=True)) * scale

    kernel = before.patch_embedding.weight  # v 3 h w
    after.patch_embedding.weight.copy_(fold(kernel.flatten(1).T).T.reshape(kernel.shape))
    after.patch_embedding.bias.zero_()
    positions = fold(before.position_embedding.weight) + norm.bias
    after.position_embedding.copy_(positions[None])
    first = norm(before.class_embedding + before.position_embedding.weight[0])
    after.class_embedding.copy_((first - positions[0])[None, None])
    for old, new in zip(theirs.encoder.layers, tower.encoder.layers, strict=True):
        attention = [getattr(old.self_attn, f"{name}_proj") for name in "qkv"]
        new.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in attention]))
        new.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in attention]))
        new.self_attn.projection.load_state_dict(old.self_attn.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(new, name).load_state_dict(getattr(old, name).state_dict())


def teacher(folder: Path) -> CLIPModel:
    """Load the CLIP whose vision tower is taken over; InputError where there is none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no CLIP here; expected the folder of the tiny CLIP, with config.json")
    model: CLIPModel = read_model(CLIPModel, folder, torch.float32, "eager").eval()
    return model
