"""SPN4CIR's second stages: files made up from LAVIS's and OpenAI's names, imported and compared with both hosts."""

import json

import pytest
import torch
from torch.nn import functional as F

from cir.backbones import load
from cir.errors import InputError
from cir.importers import lavis, spn
from cir.importers import lavis_keys as keys
from cir.importers.lavis_check import Plain
from cir.importers.openai_check import plain_images
from cir.importers.openai_clip import measured
from cir.methods import checkpoint
from cir.prompts import JOINERS, Template
from cir.schema import Query

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "red", "has", "a", "longer", "hood", "and", *"bcdefghij"]
TOWER = keys.Tower("eva", width=88, depth=2, inner=96, patch=8, side=16)
QFORMER = keys.QFormer(
    width=64, layers=2, every=2, inner=48, words=len(WORDS) + 1, positions=40, queries=6, vision=88, joint=16
)


def spread(names_and_shapes, seed):
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=random) * (s[-1] ** -0.5 if len(s) > 1 else 0.3) for n, s in names_and_shapes}


def whole(rules, seed):
    return spread([(name, rule.shape) for rule in rules for name in rule.sources], seed)


@pytest.fixture(scope="module")
def sprc_weights():
    tensors = whole([*keys.tower_rules(TOWER), *keys.qformer_rules(QFORMER)], 0)
    tensors |= spread([("prompt_tokens", (1, 6, 64)), ("Qformer.cls.predictions.bias", (len(WORDS) + 1,))], 2)
    tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(40)[None]
    return {**tensors, "temp": torch.tensor(0.06)}


@pytest.fixture(scope="module")
def second_weights(sprc_weights):
    """The whole wrapper: the first stage's weights, and a copy of Q-Former and projection that has moved."""
    tensors = {f"blip_model.{name}": tensor for name, tensor in sprc_weights.items()}
    for new, old in (("Qformer_query.", "Qformer."), ("text_proj_q.", "text_proj.")):
        for name, tensor in sprc_weights.items():
            if name.startswith(old):
                moved = tensor + 0.2 * tensor.roll(1, -1) if tensor.is_floating_point() else tensor
                tensors[f"blip_model.{new}{name.removeprefix(old)}"] = moved
    return {**tensors, "blip_model.temp": torch.tensor(0.04)}


@pytest.fixture(scope="module")
def imported(sprc_weights, tmp_path_factory):
    """SPRC's own file, imported: what a second stage's file goes with."""
    folder = tmp_path_factory.mktemp("sprc")
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save({"epoch": 3, "Blip2QformerCirAlignPrompt": sprc_weights}, folder / "sprc.pt")
    lavis.import_file(folder / "sprc.pt", folder / "out", "sprc", tokenizer=str(folder / "words"))
    return folder / "out"


def saved(path, tensors, **more):
    torch.save({"state_dict": tensors, **more}, path)
    return path


def test_queries_are_those_of_the_files_second_qformer(imported, second_weights, tmp_path):
    file = saved(tmp_path / "best.pt", second_weights, epoch=2)
    lines = spn.import_file(file, tmp_path / "out", backbone=str(imported / "backbone"))
    assert any("temperature: 0.04" in line for line in lines) and any("epoch" in line for line in lines)
    backbone = load(str(imported / "backbone"), device="cpu", preprocess="targetpad")
    method = checkpoint.load(tmp_path / "out", backbone)
    first = checkpoint.load(imported, backbone)
    assert method.temperature.item() == pytest.approx(0.04) and method.options.learn_tau

    tensors = {name.removeprefix("blip_model."): tensor for name, tensor in second_weights.items()}
    fusing = Plain(tensors, TOWER, QFORMER)
    again = {name.replace("_query.bert", ".bert").replace("proj_q.", "proj."): t
             for name, t in tensors.items() if "Qformer_query." in name or "proj_q." in name}  # fmt: skip
    asking = Plain({**tensors, **again}, TOWER, QFORMER)
    picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    text = "is red and has a longer hood"
    ids = torch.tensor([[2, *(WORDS.index(word) for word in text.split()), 3]])
    # Passes 1 and 2 by hand: queries that read picture and text, then all of it as text, the pooled place behind them.
    tokens = fusing._norm("ln_vision", fusing.patches(picture))
    both = torch.cat([fusing._get("query_tokens"), fusing._words(ids)], dim=1)
    prompts = fusing._run(both, tokens, ids, 6)[:, :6]
    states = asking._run(torch.cat([prompts, asking._words(ids)], dim=1), None, ids, 0)
    expected = F.normalize(asking._linear("text_proj", states[:, 6]), dim=-1)

    patches = backbone.encode_patches(picture)
    asked = ([Query("0", "a", (text,))], Template(), JOINERS["first"])
    with torch.no_grad():
        ours, before = (m.compose(backbone, patches, *asked)[:, 0] for m in (method, first))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-2)
    gallery = [m.image_side(backbone).encode_images(picture) for m in (method, first)]
    torch.testing.assert_close(*gallery)
    torch.testing.assert_close(gallery[0], fusing.image(fusing.patches(picture)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("blip_model.Qformer_query.bert.encoder.layer.1.output.dense.bias"), "Former: .*1 weights"),
        (lambda t: t.pop("blip_model.text_proj_q.weight"), "query's Q-Former: .*1 weights missing"),
        (lambda t: t.pop("blip_model.prompt_tokens"), "prompt_tokens of no size"),
        (lambda t: t.update({"blip_model.adapter.weight": torch.zeros(2)}), r"1 unknown \['adapter.weight'\]"),
        (lambda t: t.update({"blip_model.Qformer_query.odd": torch.zeros(2)}), r"1 unknown \['Qformer.odd'\]"),
        (lambda t: t.update({"blip_model.temp": torch.tensor(float("nan"))}), "temp holds values that are not finite"),
        (lambda t: t.update({"tgcir.w": torch.zeros(2)}), "weights under blip_model, tgcir; expected a second stage"),
        (lambda t: t["blip_model.visual_encoder.blocks.0.mlp.fc1.bias"].add_(0.5), "another SPRC's backbone"),
    ],
)  # fmt: skip
def test_what_is_missing_unknown_or_another_models_is_named_and_leaves_nothing(
    imported, second_weights, tmp_path, change, match
):
    tensors = {name: tensor.clone() for name, tensor in second_weights.items()}
    change(tensors)
    file = saved(tmp_path / "best.pt", tensors)
    with pytest.raises(InputError, match=match):
        spn.import_file(file, tmp_path / "out", backbone=str(imported / "backbone"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_the_wrong_kind_of_file_is_refused(second_weights, imported, tmp_path):
    file = saved(tmp_path / "best.pt", second_weights)
    with pytest.raises(InputError, match="name DIR/backbone with --backbone"):
        spn.import_file(file, tmp_path / "out")
    with pytest.raises(InputError, match=r"unexpected keys \['args'\] beside 'state_dict'"):
        spn.import_file(saved(tmp_path / "best.pt", second_weights, args=1), tmp_path / "out")
    torch.save(second_weights, tmp_path / "bare.pt")
    with pytest.raises(InputError, match="expected a dictionary with a state dict"):
        spn.import_file(tmp_path / "bare.pt", tmp_path / "out", backbone=str(imported / "backbone"))
    host = {name: t for name, t in second_weights.items() if "Qformer_query" not in name}
    with pytest.raises(InputError, match="BLIP4CIR and TG-CIR have no host here"):
        spn.import_file(saved(tmp_path / "host.pt", host), tmp_path / "out", backbone=str(imported / "backbone"))


def openai_clip(vocabulary, side=16):
    """A small CLIP under OpenAI's names, both towers of one block, one head of 64."""
    block = {"ln_1.weight": (64,), "ln_1.bias": (64,), "ln_2.weight": (64,), "ln_2.bias": (64,),
             "attn.in_proj_weight": (192, 64), "attn.in_proj_bias": (192,),
             "attn.out_proj.weight": (64, 64), "attn.out_proj.bias": (64,), "mlp.c_fc.weight": (256, 64),
             "mlp.c_fc.bias": (256,), "mlp.c_proj.weight": (64, 256), "mlp.c_proj.bias": (64,)}  # fmt: skip
    shapes = {"token_embedding.weight": (vocabulary, 64), "positional_embedding": (77, 64), "ln_final.weight": (64,),
              "ln_final.bias": (64,), "text_projection": (64, 24), "logit_scale": (), "visual.proj": (64, 24),
              "visual.class_embedding": (64,), "visual.positional_embedding": ((side // 8) ** 2 + 1, 64),
              "visual.conv1.weight": (64, 3, 8, 8), "visual.ln_pre.weight": (64,), "visual.ln_pre.bias": (64,),
              "visual.ln_post.weight": (64,), "visual.ln_post.bias": (64,)}  # fmt: skip
    for where in ("transformer.resblocks.0.", "visual.transformer.resblocks.0."):
        shapes |= {f"{where}{name}": shape for name, shape in block.items()}
    return spread([(name, shape) for name, shape in shapes.items() if shape], 3) | {"logit_scale": torch.tensor(4.6)}


def test_a_second_stage_on_clip_becomes_encoders_for_the_sum(tiny_clip_folder, tmp_path):
    words = json.loads((tiny_clip_folder / "config.json").read_text())["text_config"]["vocab_size"]
    tensors = openai_clip(words)
    file = saved(tmp_path / "best.pt", {f"clip.{name}": tensor.half() for name, tensor in tensors.items()})
    lines = spn.import_file(file, tmp_path / "out", tokenizer=str(tiny_clip_folder))
    assert any("method.name=sum method.raw=true" in line for line in lines)
    backbone = load(str(tmp_path / "out"), device="cpu", preprocess="targetpad")
    sizes = measured({name: tensor.half().float() for name, tensor in tensors.items()}, file)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    image = plain_images({name: tensor.half().float() for name, tensor in tensors.items()}, sizes, pixels)
    torch.testing.assert_close(backbone.encode_images(pixels)[:, 0], image, atol=1e-4, rtol=1e-3)
    saved(file, {f"clip.{name}": tensor for name, tensor in tensors.items()} | {"clip.extra": torch.zeros(2)})
    with pytest.raises(InputError, match="1 unexpected tensors"):
        spn.import_file(file, tmp_path / "other", tokenizer=str(tiny_clip_folder))
    assert not (tmp_path / "other").exists()
