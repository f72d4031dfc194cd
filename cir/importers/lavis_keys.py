"""LAVIS's names of BLIP-2's weights, and where each goes: the key map as data, for both vision towers.

Li et al., ICML 2023, arXiv:2301.12597; names and shapes are those of LAVIS's `Blip2Qformer`, which SPRC and SPN keep. A
`Rule` says which weights of the source make which of the target, and what shape they must have, so that a file is
accounted for in both directions. Attention heads are not seen in shapes: they are 88 wide in EVA's ViT-g (Fang et al.,
CVPR 2023, arXiv:2211.07636), 64 wide in CLIP's ViT-L and in BERT.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cir.errors import InputError

Shape = tuple[int, ...]
TOWER, PRE, BLOCK = "visual_encoder.", "Qformer.bert.embeddings.", "Qformer.bert.encoder.layer."
BLOCKS = {"eva": f"{TOWER}blocks.", "clip": f"{TOWER}transformer.resblocks."}
HEAD = {"eva": 88, "clip": 64, "qformer": 64}
"""Width of an attention head."""
DEPTHS = {("eva", 1408): 39, ("clip", 1024): 23}
"""Blocks of the released towers: all but the last, whose output BLIP-2 does not use (section 3.4)."""
PYPI_DEPTH = 21
"""Blocks of CLIP's ViT-L in salesforce-lavis 1.0.2 from PyPI; its repository and SPRC have 23."""
LEFT_BEHIND = re.compile(r"Qformer\.cls\.|Qformer\.bert\.embeddings\.position_ids$")
"""What a retriever has no use for: the head that writes captions, a counter of positions."""
LANGUAGE = re.compile(r"(opt|t5|llm|llama|vicuna)_(model|proj)\.|llama_|llm_")
"""Weights of BLIP-2 with a language model behind it (second stage), which has lost the heads that retrieve."""


@dataclass(frozen=True)
class Rule:
    """Weights of the source, with their shapes, and the names of what becomes of them.

    `same`: copied; `qkv`: the biases of queries and values, between them zeros for the keys, which have none; `thirds`:
    the weights of queries, keys and values below one another, taken apart.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    shape: Shape
    how: Literal["same", "qkv", "thirds"] = "same"

    def __call__(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Make the targets of the sources."""
        found = [tensors[name] for name in self.sources]
        if self.how == "qkv":
            return [torch.cat([found[0], torch.zeros_like(found[0]), found[1]])]
        return list(found[0].chunk(3)) if self.how == "thirds" else found

    @property
    def made(self) -> Shape:
        """The shape of each target."""
        first, *rest = self.shape
        return (first * 3 if self.how == "qkv" else first // 3 if self.how == "thirds" else first, *rest)


@dataclass(frozen=True)
class Tower:
    """What shapes say of a vision tower: its kind, width, blocks, the width inside a block, patch and picture side."""

    kind: Literal["eva", "clip"]
    width: int
    depth: int
    inner: int
    patch: int
    side: int


@dataclass(frozen=True)
class QFormer:
    """What shapes say of a Q-Former: widths, layers, every how many one sees the picture, words, positions, queries.

    `vision` is the width of the tokens it sees, `joint` that of the space where picture and text meet.
    """

    width: int
    layers: int
    every: int
    inner: int
    words: int
    positions: int
    queries: int
    vision: int
    joint: int


def tower(shapes: Mapping[str, Shape]) -> Tower:
    """Read the vision tower's sizes off the shapes; KeyError and ValueError for what is none."""
    kind: Literal["eva", "clip"] = "eva" if f"{TOWER}pos_embed" in shapes else "clip"
    patches, positions, inner = (
        ("patch_embed.proj", "pos_embed", "mlp.fc1") if kind == "eva" else ("conv1", "positional_embedding", "mlp.c_fc")
    )
    width, _, patch, _ = shapes[f"{TOWER}{patches}.weight"]
    count = shapes[f"{TOWER}{positions}"][-2] - 1
    depth = _count(shapes, BLOCKS[kind])
    return Tower(kind, width, depth, shapes[f"{BLOCKS[kind]}0.{inner}.weight"][0], patch, patch * math.isqrt(count))


def qformer(shapes: Mapping[str, Shape]) -> QFormer:
    """Read the Q-Former's sizes off the shapes; KeyError and ValueError for what is none."""
    words, width = shapes[f"{PRE}word_embeddings.weight"]
    layers = _count(shapes, BLOCK)
    sees = [i for i in range(layers) if f"{BLOCK}{i}.crossattention.self.key.weight" in shapes]
    return QFormer(
        width=width,
        layers=layers,
        every=sees[1] - sees[0] if len(sees) > 1 else layers,
        inner=shapes[f"{BLOCK}0.intermediate.dense.weight"][0],
        words=words,
        positions=shapes[f"{PRE}position_embeddings.weight"][0],
        queries=shapes["query_tokens"][1],
        vision=shapes["ln_vision.weight"][0],
        joint=shapes["text_proj.weight"][0],
    )


def tower_rules(sizes: Tower) -> list[Rule]:
    """Give the rules of a vision tower: names of `Blip2VisionModel`, or of `CLIPVisionModel`, under `vision_model`."""
    v, side = sizes.width, sizes.patch
    positions = (sizes.side // sizes.patch) ** 2 + 1
    rules = _eva(v, positions, side) if sizes.kind == "eva" else _clip(v, positions, side)
    for i in range(sizes.depth):
        source, target = f"{BLOCKS[sizes.kind]}{i}.", f"vision_model.encoder.layers.{i}."
        rules += _eva_block(source, target, v, sizes.inner) if sizes.kind == "eva" else _clip_block(source, target, v)
    return rules


def _eva(v: int, positions: int, side: int) -> list[Rule]:
    into = "vision_model.embeddings."
    return [
        _same(f"{TOWER}cls_token", f"{into}class_embedding", 1, 1, v),
        _same(f"{TOWER}pos_embed", f"{into}position_embedding", 1, positions, v),
        _same(f"{TOWER}patch_embed.proj.weight", f"{into}patch_embedding.weight", v, 3, side, side),
        _same(f"{TOWER}patch_embed.proj.bias", f"{into}patch_embedding.bias", v),
    ]


def _eva_block(source: str, target: str, v: int, inner: int) -> list[Rule]:
    biases = (f"{source}attn.q_bias", f"{source}attn.v_bias")
    return [
        *_affine(f"{source}norm1", f"{target}layer_norm1", v),
        *_affine(f"{source}norm2", f"{target}layer_norm2", v),
        _same(f"{source}attn.qkv.weight", f"{target}self_attn.qkv.weight", 3 * v, v),
        Rule(biases, (f"{target}self_attn.qkv.bias",), (v,), "qkv"),
        *_affine(f"{source}attn.proj", f"{target}self_attn.projection", v, v),
        *_affine(f"{source}mlp.fc1", f"{target}mlp.fc1", inner, v),
        *_affine(f"{source}mlp.fc2", f"{target}mlp.fc2", v, inner),
    ]


def _clip(v: int, positions: int, side: int) -> list[Rule]:
    into = "vision_model.embeddings."
    return [
        _same(f"{TOWER}class_embedding", f"{into}class_embedding", v),
        _same(f"{TOWER}positional_embedding", f"{into}position_embedding.weight", positions, v),
        _same(f"{TOWER}conv1.weight", f"{into}patch_embedding.weight", v, 3, side, side),
        *_affine(f"{TOWER}ln_pre", "vision_model.pre_layrnorm", v),
    ]


def _clip_block(source: str, target: str, v: int) -> list[Rule]:
    parts = [tuple(f"{target}self_attn.{part}_proj.{kind}" for part in "qkv") for kind in ("weight", "bias")]
    return [
        *_affine(f"{source}ln_1", f"{target}layer_norm1", v),
        *_affine(f"{source}ln_2", f"{target}layer_norm2", v),
        Rule((f"{source}attn.in_proj_weight",), parts[0], (3 * v, v), "thirds"),
        Rule((f"{source}attn.in_proj_bias",), parts[1], (3 * v,), "thirds"),
        *_affine(f"{source}attn.out_proj", f"{target}self_attn.out_proj", v, v),
        *_affine(f"{source}mlp.c_fc", f"{target}mlp.fc1", 4 * v, v),
        *_affine(f"{source}mlp.c_proj", f"{target}mlp.fc2", v, 4 * v),
    ]


def qformer_rules(sizes: QFormer, ln_vision: str = "post_layernorm") -> list[Rule]:
    """Give the rules of all behind the vision tower: names of `QFormerParts`, `ln_vision` under the given name."""
    h, inner = sizes.width, sizes.inner
    rules = [
        _same("query_tokens", "query_tokens", 1, sizes.queries, h),
        _same(f"{PRE}word_embeddings.weight", "embeddings.word_embeddings.weight", sizes.words, h),
        _same(f"{PRE}position_embeddings.weight", "embeddings.position_embeddings.weight", sizes.positions, h),
        *_affine(f"{PRE}LayerNorm", "qformer.layernorm", h),
        *_affine("ln_vision", ln_vision, sizes.vision),
        *_affine("vision_proj", "vision_projection", sizes.joint, h),
        *_affine("text_proj", "text_projection", sizes.joint, h),
        *_affine("itm_head", "itm_head", 2, h),
    ]
    for i in range(sizes.layers):
        source, target = f"{BLOCK}{i}.", f"qformer.encoder.layer.{i}."
        attentions = {"attention": h, **({"crossattention": sizes.vision} if i % sizes.every == 0 else {})}
        for name, seen in attentions.items():
            inside, into = f"{source}{name}.self.", f"{target}{name}.attention."
            rules += _affine(f"{inside}query", f"{into}query", h, h)
            rules += _affine(f"{inside}key", f"{into}key", h, seen)
            rules += _affine(f"{inside}value", f"{into}value", h, seen)
            rules += _affine(f"{source}{name}.output.dense", f"{target}{name}.output.dense", h, h)
            rules += _affine(f"{source}{name}.output.LayerNorm", f"{target}{name}.output.LayerNorm", h)
        for tail in ("", "_query"):  # text and queries have a feed-forward network each
            rules += _affine(f"{source}intermediate{tail}.dense", f"{target}intermediate{tail}.dense", inner, h)
            rules += _affine(f"{source}output{tail}.dense", f"{target}output{tail}.dense", h, inner)
            rules += _affine(f"{source}output{tail}.LayerNorm", f"{target}output{tail}.LayerNorm", h)
    return rules


def account(rules: Sequence[Rule], shapes: Mapping[str, Shape], apart: Collection[str], origin: str) -> None:
    """Check that a file holds the sources of the rules in their shapes, and nothing else but what is named `apart`.

    Raises `InputError`, naming the `origin`, with the first names that are missing, unknown or of another shape.
    """
    wanted = {name: rule.shape for rule in rules for name in rule.sources}
    missing = [name for name in wanted if name not in shapes]
    unknown = [name for name in shapes if name not in wanted and name not in apart]
    wrong = [f"{n} {shapes[n]} for {wanted[n]}" for n in wanted if n in shapes and shapes[n] != wanted[n]]
    if missing or unknown or wrong:
        raise InputError(
            f"{origin}: not a whole BLIP-2 retrieval model: {len(missing)} weights missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {wrong[:3]}"
        )


def config(seen: Tower, read: QFormer, temperature: float) -> dict[str, Any]:
    """Write the config.json of a `Blip2ForImageTextRetrieval` folder, as `cir.backbones.blip2` reads it."""
    eva = seen.kind == "eva"
    vision = {
        "model_type": "blip_2_vision_model" if eva else "clip_vision_model",
        "hidden_size": seen.width,
        "intermediate_size": seen.inner,
        "num_hidden_layers": seen.depth,
        "num_attention_heads": seen.width // HEAD[seen.kind],
        "image_size": seen.side,
        "patch_size": seen.patch,
        "hidden_act": "gelu" if eva else "quick_gelu",
        "layer_norm_eps": 1e-6 if eva else 1e-5,
        **({"qkv_bias": True} if eva else {}),
    }
    text = {
        "model_type": "blip_2_qformer",
        "vocab_size": read.words,
        "hidden_size": read.width,
        "num_hidden_layers": read.layers,
        "num_attention_heads": read.width // HEAD["qformer"],
        "intermediate_size": read.inner,
        "max_position_embeddings": read.positions,
        "cross_attention_frequency": read.every,
        "encoder_hidden_size": read.vision,
        "layer_norm_eps": 1e-12,
        "use_qformer_text_input": True,
    }
    return {
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "num_query_tokens": read.queries,
        "image_text_hidden_size": read.joint,
        "vision_config": vision,
        "qformer_config": text,
        "cir": {"temperature": temperature},
    }


def described(seen: Tower, read: QFormer) -> str:
    """Say the sizes in a line."""
    name = "EVA" if seen.kind == "eva" else "CLIP"
    sizes = asdict(read)
    return (
        f"{name} tower of {seen.depth} blocks, width {seen.width}, {seen.side} px in patches of {seen.patch}; "
        "Q-Former of {layers} layers, width {width}, {queries} queries, {words:,} words, joint width {joint}".format(
            **sizes
        )
    )


def _count(names: Iterable[str], prefix: str) -> int:
    """Count the layers numbered behind a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})


def _same(source: str, target: str, *shape: int) -> Rule:
    return Rule((source,), (target,), shape)


def _affine(source: str, target: str, *shape: int) -> list[Rule]:
    """Give the rules of a linear layer or a norm."""
    weight, bias = ((f"{source}.{kind}", f"{target}.{kind}") for kind in ("weight", "bias"))
    return [_same(*weight, *shape), _same(*bias, shape[0])]
