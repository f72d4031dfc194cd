"""BLIP-2 as a retriever: its image-text retrieval model in the Hugging Face format (arXiv:2301.12597, section 3.1).

Two layouts of a folder are read, both with `model_type: "blip-2"` in config.json:

- `Blip2ForImageTextRetrieval` as `transformers` saves it (EVA ViT-g: Salesforce/blip2-itm-vit-g, -coco). Its
  `vision_model.post_layernorm` is LAVIS's `ln_vision`.
- The same over CLIP's ViT-L (LAVIS's `pretrain_vitL`), for which `transformers` has no class. config.json has
  `vision_config: {"model_type": "clip_vision_model", ...}` with 23 layers and quick-GELU; weights are
  `vision_model.*` with the names of `CLIPVisionModel` (`vision_model.embeddings.class_embedding`,
  `vision_model.pre_layrnorm.weight`, `vision_model.encoder.layers.0.self_attn.q_proj.weight`, ...) without its
  `post_layernorm`, `post_layernorm.{weight,bias}` on the top level for `ln_vision`, and the rest as above.

The contrastive temperature has no place in either; it is `"cir": {"temperature": 0.07}` in config.json (0.07 where
absent: the value LAVIS begins training with).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForImageTextRetrieval, CLIPVisionConfig, CLIPVisionModel
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel, Blip2QFormerModel, Blip2TextEmbeddings

from cir.backbones import weights
from cir.backbones.clip import read_model
from cir.backbones.preprocess import from_folder
from cir.backbones.qformer import Blip2TextTower, QFormerParts, spliced, up_to_end
from cir.backbones.tokens import blip_caption, load_tokenizer
from cir.errors import InputError, nearest
from cir.schema import Prompt

CONTEXT = 32
"""Text positions, [CLS] and [SEP] included: LAVIS's `max_txt_len`, with which BLIP-2 was trained."""
TEMPERATURE = 0.07
MATCHED_AT_ONCE = 64
"""Pairs of picture and text in one pass of `match`: about 0.4 GB of activations with ViT-g's 257 tokens of 1,408."""


# Without a class statement: `transformers` makes dataclasses of configs, whose constructor takes more than it declares,
# which the shape checks that tests put around a module's classes would refuse.
Blip2ClipConfig: Any = type(
    "Blip2ClipConfig",
    (Blip2Config,),
    {"sub_configs_defaults": {**Blip2Config.sub_configs_defaults, "vision_config": CLIPVisionConfig}},
)
"""`Blip2Config` whose vision tower is CLIP's."""


class Blip2ClipForImageTextRetrieval(Blip2PreTrainedModel):
    """`Blip2ForImageTextRetrieval` over CLIP's ViT, whose last block's tokens go to `ln_vision` (LAVIS, ViT-L)."""

    config_class = Blip2ClipConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        qformer, joint = config.qformer_config, config.image_text_hidden_size
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)
        self.vision_model.post_layernorm = nn.Identity()
        self.post_layernorm = nn.LayerNorm(config.vision_config.hidden_size)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, qformer.hidden_size))
        self.embeddings = Blip2TextEmbeddings(qformer)
        self.qformer = Blip2QFormerModel._from_config(qformer)
        self.vision_projection = nn.Linear(qformer.hidden_size, joint)
        self.text_projection = nn.Linear(qformer.hidden_size, joint)
        self.itm_head = nn.Linear(qformer.hidden_size, 2)
        self.post_init()


class Blip2Backbone:
    """Frozen BLIP-2 behind `cir.backbones.base.Backbone` and `Matcher`.

    An image is t = 32 vectors, one per query token; its similarity with a text is the best of their cosines. The vision
    tower computes in `dtype`, all behind it in float32. Build it with `cir.backbones.load`, which checks the arguments.
    """

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
        if text_tower not in ("auto", "padded"):
            raise InputError(f"text_tower {text_tower!r}: BLIP-2's text pass is not causal; use text_tower=auto")
        self.name = name
        self.device = device
        self.dtype = dtype
        config = weights.read_config(folder)
        self.logit_scale = 1 / _temperature(config, folder)
        self._preprocess = from_folder(folder, preprocess)
        self.preprocess_id = self._preprocess.id
        self._vision, self.parts = _read(config, folder, attention)
        self._vision.to(device, dtype).eval().requires_grad_(False)
        self.parts.to(device).eval().requires_grad_(False)
        self._check_size(folder)
        self.text = Blip2TextTower(self.parts).eval()
        words = self.parts.embeddings.word_embeddings.num_embeddings
        context = min(CONTEXT, self.parts.embeddings.position_embeddings.num_embeddings)
        self.tokenizer = load_tokenizer(folder, context, False, kind="BertTokenizer", clean=blip_caption)
        if max(self.tokenizer.end, *self.tokenizer.start, self.tokenizer.slot, self.tokenizer.pad) >= words:
            raise InputError(f"{folder}: the tokenizer's special ids are outside the weights' vocabulary of {words:,}")
        self.word_width = self.text.word_width
        self.width = int(self.parts.text_projection.out_features)
        self.vectors = self.parts.vectors
        self.vision_width = int(self._vision.config.hidden_size)
        self.fingerprint = weights.fingerprint(folder)

    def _check_size(self, folder: Path) -> None:
        """Refuse a preprocessing whose result the vision tower cannot take."""
        size = int(self._vision.config.image_size)
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
        """Encode pixels, without gradient: the projected query outputs, raw float32 on the backbone's device."""
        tokens = self.parts.normed(self.encode_patches(pixels))
        return self.parts.vision_projection(self.parts.image(tokens)).float()

    @torch.no_grad()
    def encode_patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p v"]:
        """Encode pixels into the last block's tokens before `ln_vision`: float32, on the backbone's device."""
        pixels = pixels.to(self.device, self.dtype, non_blocking=True)
        return self._vision(pixel_values=pixels).last_hidden_state.float()

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

    @torch.no_grad()
    def match(
        self,
        patches: Float[Tensor, "n p v"],
        prompt: Prompt,
        pseudo: Float[Tensor, "o m w"] | None = None,
        owner: Int[np.ndarray, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Give the probability that picture i (`encode_patches`) and row i of the prompt belong together.

        The matching head (image-text matching, section 3.2) reads queries that have seen picture and text; its two
        logits are averaged over the queries, the second one's softmax is the probability. Pairs are taken in blocks,
        moved to the device one by one. Raises InputError where pictures and rows differ in number.
        """
        if len(patches) != len(prompt):
            raise InputError(f"match: {len(patches)} pictures for {len(prompt)} texts; expected one each")
        owner = np.arange(len(prompt)) if owner is None else owner
        found = [torch.zeros(0, device=self.device)]
        for start in range(0, len(prompt), MATCHED_AT_ONCE):
            rows = slice(start, start + MATCHED_AT_ONCE)
            found.append(self._match(patches[rows], prompt[rows], pseudo, owner[rows]))
        return torch.cat(found)

    def _match(
        self,
        patches: Float[Tensor, "n p v"],
        prompt: Prompt,
        pseudo: Float[Tensor, "o m w"] | None,
        owner: Int[np.ndarray, " n"],
    ) -> Float[Tensor, " n"]:
        """Match one block."""
        ids, ends, slots, owners = (
            torch.from_numpy(a).to(self.device) for a in (prompt.ids, prompt.ends, prompt.slots, owner)
        )
        ids, mask = up_to_end(ids, ends)
        pseudo = None if pseudo is None else pseudo.to(self.device)
        words = spliced(self.parts.embeddings, ids, slots, pseudo, owners)
        fused = self.parts.fuse(self.parts.normed(patches.to(self.device)), ids, mask, words=words)
        return self.parts.matching(fused).float().softmax(dim=1)[:, 1]


def _read(config: dict[str, Any], folder: Path, attention: str) -> tuple[Any, QFormerParts]:
    """Load the vision tower, whose output is the last block's tokens, and the parts behind it, all in float32.

    Raises InputError for other BLIP-2 models, and unless the folder's weights are exactly those of its config.
    """
    kind = (config.get("vision_config") or {}).get("model_type", "blip_2_vision_model")
    models = {"blip_2_vision_model": Blip2ForImageTextRetrieval, "clip_vision_model": Blip2ClipForImageTextRetrieval}
    if kind not in models:
        raise InputError(f"{folder}: vision tower {kind!r} in its config.json; {nearest(kind, models)}")
    if not (config.get("qformer_config") or {}).get("use_qformer_text_input"):
        raise InputError(
            f"{folder}: this BLIP-2 generates text and has no text side to search with; use one for image-text "
            "retrieval, such as Salesforce/blip2-itm-vit-g"
        )
    model = read_model(models[kind], folder, torch.float32, attention)
    _check_names(model, folder)
    vision = model.vision_model
    if kind == "clip_vision_model":
        return vision, QFormerParts(model, model.post_layernorm)
    parts = QFormerParts(model, vision.post_layernorm)
    vision.post_layernorm = nn.Identity()
    return vision, parts


def _check_names(model: Any, folder: Path) -> None:
    """Refuse weights that the model has no place for: a tower with more blocks than its config says computes."""
    from safetensors import safe_open

    known = set(model.state_dict())
    for path in weights.weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as file:
            unknown = sorted(name for name in set(file.keys()) - known if not name.endswith("position_ids"))
        if unknown:
            raise InputError(
                f"{path}: {len(unknown)} weights that {type(model).__name__} does not have, first {unknown[:3]}; "
                "do config.json and the weights belong together?"
            )


def _temperature(config: dict[str, Any], folder: Path) -> float:
    """Read the contrastive temperature, which `transformers` has no place for."""
    value = (config.get("cir") or {}).get("temperature", TEMPERATURE)
    if not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{folder}: cir.temperature {value!r} in its config.json; expected a positive number")
    return float(value)
