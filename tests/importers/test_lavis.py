"""LAVIS's files through `cir import lavis`, against what LAVIS itself computed (tests/importers/lavis/*.npz).

The recorded models are small ones of salesforce-lavis 1.0.2 whose weights are a function of their names
(experiments/lavis/weights.py), run in its own environment by experiments/lavis/small.py.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F
from typer.testing import CliRunner

from cir import backbones
from cir import config as configs
from cir.cli import app
from cir.errors import InputError
from cir.importers import lavis, lavis_files, lavis_keys
from cir.methods import checkpoint
from cir.prompts import tokenize

HERE = Path(__file__).parent
ALLOWED = 2e-5


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


weights = module(HERE.parents[1] / "experiments" / "lavis" / "weights.py")


def recorded(name):
    with np.load(HERE / "lavis" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


RECORDED = {name: recorded(name) for name in ("eva", "clip")}


def state_of(name):
    """The state dict that LAVIS saved, counters included."""
    found = {}
    for key, shape in json.loads(str(RECORDED[name]["shapes"])).items():
        if key.endswith("position_ids"):
            found[key] = torch.arange(shape[-1]).expand(1, -1)
        elif key == "Qformer.cls.predictions.decoder.weight":  # tied
            found[key] = torch.from_numpy(weights.weight("Qformer.bert.embeddings.word_embeddings.weight", shape))
        else:
            found[key] = torch.from_numpy(weights.weight(key, tuple(shape)))
    return found


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with the vocabulary the small models were made with, without LAVIS's own token."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(map(str, RECORDED["eva"]["words"])) + "\n")
    return str(folder)


@pytest.fixture
def run_import(tmp_path, bert):
    """Save a state dict as LAVIS does, and import it."""

    def run(state, format="lavis", *, key="model", out="out", **options):
        torch.save({key: state, "epoch": 3} if key else state, tmp_path / "x.pth")
        return lavis.import_file(tmp_path / "x.pth", tmp_path / out, format, **{"tokenizer": bert, **options})

    return run


@torch.no_grad()
def outputs(backbone, name):
    prompt = tokenize(backbone.tokenizer, [[str(text)] for text in RECORDED[name]["texts"]])
    pixels = torch.from_numpy(weights.uniform("pixels", (len(prompt), 3, 28, 28)))
    patches = backbone.encode_patches(pixels)
    images, words = (
        F.normalize(backbone.encode_images(pixels), dim=-1),
        F.normalize(backbone.encode_text(prompt), dim=-1),
    )
    turned = range(len(prompt))
    return {
        "ids": torch.from_numpy(prompt.ids),
        "patches": patches,
        "image_embeds_proj": images,
        "text": words,
        "itm": torch.stack([backbone.match(patches.roll(row, 0), prompt) for row in turned]),
        "itc": torch.stack([torch.einsum("btd,bd->bt", images.roll(row, 0), words).amax(1) for row in turned]),
    }


def wanted(name):
    theirs = {key: torch.from_numpy(value) for key, value in RECORDED[name].items() if value.dtype.kind in "fi"}
    theirs["text"] = theirs["text_embeds_proj"][:, 0]
    theirs["itm"] = theirs["itm"].softmax(-1)[..., 1]
    return theirs


@pytest.mark.parametrize("name", ["eva", "clip"])
def test_an_import_computes_what_lavis_does(run_import, tmp_path, name):
    lines = run_import(state_of(name))
    backbone = backbones.load(str(tmp_path / "out"), device="cpu")
    theirs = wanted(name)
    for key, mine in outputs(backbone, name).items():
        assert mine.shape == theirs[key].shape, key
        assert float((mine - theirs[key]).abs().max()) <= ALLOWED, key
    assert backbone.logit_scale == 1 / weights.TEMPERATURE and backbone.vectors == 8 and backbone.width == 32
    assert any(line.startswith("keys left behind: epoch, Qformer.bert.embeddings.position_ids, Qformer.cls.* (7)")
               for line in lines)  # fmt: skip
    assert any(line.startswith("self-test: ") for line in lines)


def test_the_recorded_outputs_see_the_epsilon_of_ln_vision(run_import, tmp_path):
    run_import(state_of("eva"))
    backbone = backbones.load(str(tmp_path / "out"), device="cpu")
    backbone.parts.post_layernorm.eps = 1e-6
    found = outputs(backbone, "eva")["image_embeds_proj"]
    assert float((found - wanted("eva")["image_embeds_proj"]).abs().max()) > 3 * ALLOWED


def test_weights_stay_as_stored_and_are_placed_by_hand(run_import, tmp_path):
    """LAVIS halves linear layers and convolutions of the tower; its loose biases, norms and the Q-Former stay."""
    state = state_of("eva")
    halved = {
        key: value.half()
        if key.startswith("visual_encoder") and ("proj" in key or "fc" in key or "qkv" in key)
        else value
        for key, value in state.items()
    }
    lines = run_import(halved, key="")
    made = load_file(tmp_path / "out" / "model.safetensors")
    block, out = "visual_encoder.blocks.1.", "vision_model.encoder.layers.1."
    assert torch.equal(made[f"{out}mlp.fc1.weight"], halved[f"{block}mlp.fc1.weight"])
    assert made[f"{out}mlp.fc1.weight"].dtype == torch.float16
    assert made["qformer.layernorm.weight"].dtype == made[f"{out}self_attn.qkv.bias"].dtype == torch.float32
    q, k, v = made[f"{out}self_attn.qkv.bias"].chunk(3)
    assert torch.equal(q, state[f"{block}attn.q_bias"]) and not k.any() and torch.equal(v, state[f"{block}attn.v_bias"])
    assert torch.equal(made["vision_model.post_layernorm.bias"], state["ln_vision.bias"])
    assert torch.equal(made["text_projection.weight"], state["text_proj.weight"])
    layer = "Qformer.bert.encoder.layer.2."
    assert torch.equal(
        made["qformer.encoder.layer.2.crossattention.attention.key.weight"],
        state[f"{layer}crossattention.self.key.weight"],
    )
    assert torch.equal(
        made["qformer.encoder.layer.2.output_query.LayerNorm.bias"], state[f"{layer}output_query.LayerNorm.bias"]
    )
    assert any("kept as stored: float16, float32" in line for line in lines)
    dropped = [key for key in state if key.startswith("Qformer.cls.") or key.endswith("position_ids")]
    biases = 2  # q_bias and v_bias of two blocks become one each
    assert len(made) == len(state) - len(dropped) - len(["temp"]) - biases


def test_clip_towers_take_queries_keys_and_values_apart(run_import, tmp_path):
    state = state_of("clip")
    run_import(state)
    made = load_file(tmp_path / "out" / "model.safetensors")
    packed = state["visual_encoder.transformer.resblocks.1.attn.in_proj_weight"]
    for row, part in enumerate("qkv"):
        target = made[f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"]
        assert torch.equal(target, packed[128 * row : 128 * row + 128])
    assert torch.equal(made["post_layernorm.weight"], state["ln_vision.weight"])


def test_a_tower_in_a_file_of_its_own(run_import, tmp_path, monkeypatch):
    """LAVIS does not save what was frozen; of the tower's file all blocks but the last are taken."""
    state = state_of("eva")
    run_import(state)
    whole = load_file(tmp_path / "out" / "model.safetensors")
    tower = {key.removeprefix("visual_encoder."): value for key, value in state.items() if key.startswith("visual_enc")}
    rest = {key: value for key, value in state.items() if not key.startswith("visual_encoder")}
    last = {key.replace("blocks.1.", "blocks.2."): 2 * value for key, value in tower.items() if "blocks.1." in key}
    torch.save({**tower, **last, "norm.weight": torch.ones(176)}, tmp_path / "eva.pth")
    monkeypatch.setitem(lavis_keys.DEPTHS, ("eva", 176), 2)
    (tmp_path / "out").rename(tmp_path / "whole")
    lines = run_import(rest, vision=tmp_path / "eva.pth")
    parted = load_file(tmp_path / "out" / "model.safetensors")
    assert parted.keys() == whole.keys() and all(torch.equal(parted[key], whole[key]) for key in whole)
    assert any("eva.pth: blocks.2.* (13), eva.pth: norm.weight" in line for line in lines)
    (tmp_path / "out").rename(tmp_path / "parted")
    with pytest.raises(InputError, match="holds no vision tower"):
        run_import(rest)
    with pytest.raises(InputError, match="leave out --vision"):
        run_import(state, vision=tmp_path / "eva.pth")
    assert json.loads((tmp_path / "parted" / "import.json").read_text())["vision"]["file"] == "eva.pth"
    torch.save({key: value for key, value in tower.items() if "blocks.1." not in key}, tmp_path / "eva.pth")
    with pytest.raises(InputError, match="1 blocks of width 176; expected 2 or more"):
        run_import(rest, vision=tmp_path / "eva.pth")
    torch.save({**tower, "blocks.0.gamma_1": torch.ones(176)}, tmp_path / "eva.pth")
    with pytest.raises(InputError, match="that BLIP-2's tower does not have, first"):
        run_import(rest, vision=tmp_path / "eva.pth")
    clip = {
        key.removeprefix("visual_encoder."): v for key, v in state_of("clip").items() if key.startswith("visual_enc")
    }
    torch.save(clip, tmp_path / "clip.pth")
    with pytest.raises(InputError, match="width 128, but the Q-Former reads 176"):
        run_import(rest, vision=tmp_path / "clip.pth")


def without(key):
    return lambda state: state.pop(key)


def put(key, value):
    return lambda state: state.__setitem__(key, value)


def spoilt(key):
    return lambda state: state.__setitem__(key, torch.full_like(state[key], torch.nan))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (without("Qformer.bert.encoder.layer.1.output_query.dense.bias"), "1 weights missing .*output_query"),
        (without("visual_encoder.blocks.1.attn.v_bias"), "1 weights missing .*v_bias"),
        (without("itm_head.weight"), "1 weights missing .*itm_head"),
        (without("temp"), "temp is missing"),
        (without("query_tokens"), "query_tokens is missing"),
        (put("opt_proj.weight", torch.zeros(2, 2)), "language model"),
        (put("t5_model.shared.weight", torch.zeros(2, 2)), "language model"),
        (put("visual_encoder.blocks.0.gamma_1", torch.zeros(176)), "1 unknown .*gamma_1"),
        (put("text_proj.bias", torch.zeros(31)), r"1 of another shape .*text_proj.bias \(31,\) for \(32,\)"),
        (put("prompt_tokens", torch.zeros(1, 8, 128)), "import it as sprc"),
        (put("text_proj.bias", torch.zeros(32).double()), "stored as torch.float64"),
        (put("text_proj.bias", torch.zeros(32).int()), "expected one state dict"),
        (spoilt("text_proj.bias"), "not finite"),
        (spoilt("visual_encoder.blocks.0.attn.q_bias"), "not finite"),
    ],
)
def test_what_is_not_whole_or_known_is_refused_and_leaves_nothing(run_import, tmp_path, spoil, match):
    state = state_of("eva")
    spoil(state)
    with pytest.raises(InputError, match=match):
        run_import(state)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_files_that_are_something_else_are_refused(run_import, tmp_path, bert):
    state = state_of("eva")
    torch.save({"model": state, "ema": state}, tmp_path / "y.pth")
    with pytest.raises(InputError, match="expected one state dict"):
        lavis.import_file(tmp_path / "y.pth", tmp_path / "out", tokenizer=bert)
    torch.save({"model": state, "notes": "x"}, tmp_path / "y.pth")
    with pytest.raises(InputError, match="unexpected keys \\['notes'\\]"):
        lavis.import_file(tmp_path / "y.pth", tmp_path / "out", tokenizer=bert)
    with pytest.raises(InputError, match="has no prompt_tokens"):
        run_import(state, "sprc")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(InputError, match="2 words for 183 embeddings"):
        run_import(state, tokenizer=str(tmp_path / "words"))
    with pytest.raises(InputError, match=r"no vocab\.txt"):
        run_import(state, tokenizer=str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("side", "key", "value"), [
    ("vision_config", "layer_norm_eps", 1e-2),
    ("vision_config", "num_attention_heads", 4),
    ("vision_config", "hidden_act", "relu"),
    ("qformer_config", "hidden_act", "relu"),
    ("qformer_config", "layer_norm_eps", 1e-2),
])  # fmt: skip
def test_the_self_test_sees_a_config_that_computes_something_else(run_import, tmp_path, monkeypatch, side, key, value):
    right = lavis_keys.config

    def wrong(*arguments):
        made = right(*arguments)
        made[side][key] = value
        return made

    monkeypatch.setattr(lavis_keys, "config", wrong)
    with pytest.raises(InputError, match="computes something else"):
        run_import(state_of("eva"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_the_self_test_sees_weights_in_each_others_place(run_import, monkeypatch):
    right = lavis_keys.Rule.__call__

    def wrong(rule, tensors):
        made = right(rule, tensors)
        return [made[0].roll(1, 0)] if rule.how == "qkv" else made

    monkeypatch.setattr(lavis_keys.Rule, "__call__", wrong)
    with pytest.raises(InputError, match="computes something else"):
        run_import(state_of("eva"))


def test_files_of_lavis_own_training_and_of_data_parallel_runs(tmp_path, bert):
    state = {f"module.{key}": value for key, value in state_of("eva").items()}
    beside = {
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]},
        "config": {"run": {"seed": 42}},
        "scaler": None,
    }
    torch.save({"model": state, **beside, "epoch": 4}, tmp_path / "x.pth")
    lines = lavis.import_file(tmp_path / "x.pth", tmp_path / "out", tokenizer=bert)
    assert any(line.startswith("keys left behind: config, epoch, optimizer, scaler, ") for line in lines)


def test_the_shallow_tower_of_the_package_index_is_named():
    tower = lavis_keys.Tower("clip", 1024, 21, 4096, 14, 224)
    assert any("21 blocks" in line and "have 23" in line for line in lavis._notes(tower))
    assert not lavis._notes(dataclasses.replace(tower, depth=23))


def test_sizes_are_those_of_the_published_models():
    """ViT-g at 364 px, from the shapes that LAVIS's configuration gives."""
    shapes = {
        "visual_encoder.pos_embed": (1, 677, 1408),
        "visual_encoder.patch_embed.proj.weight": (1408, 3, 14, 14),
        **{f"visual_encoder.blocks.{i}.mlp.fc1.weight": (6144, 1408) for i in range(39)},
    }
    assert lavis_keys.tower(shapes) == lavis_keys.Tower("eva", 1408, 39, 6144, 14, 364)
    names = [name for rule in lavis_keys.tower_rules(lavis_keys.tower(shapes)) for name in rule.sources]
    assert len(names) == len(set(names)) == 4 + 39 * 13


def test_weights_are_written_one_by_one_as_the_format_says(tmp_path):
    tensors = {
        "a": torch.arange(5).half(),  # ten bytes, which would leave the next one unaligned
        "b": torch.randn(3, 2, 2),
        "c": torch.randn(6, 2).bfloat16().T.contiguous().T,  # not contiguous
    }
    rules = [
        lavis_keys.Rule(("a",), ("x.a",), (5,)),
        lavis_keys.Rule(("c",), ("q", "k", "v"), (6, 2), "thirds"),
        lavis_keys.Rule(("b",), ("x.b",), (3, 2, 2)),
    ]
    lavis_files.save_weights(tmp_path / "x.safetensors", rules, tensors, "x")
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["x.a"], tensors["a"]) and torch.equal(found["x.b"], tensors["b"])
    assert all(torch.equal(found[name], tensors["c"][2 * i : 2 * i + 2]) for i, name in enumerate("qkv"))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_words_are_read_from_either_file_and_the_token_is_added_once(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    content = {
        "model": {"vocab": {word: row for row, word in enumerate(words)}},
        "added_tokens": [{"content": "[PAD]", "id": 0}, {"content": "[DEC]", "id": 6}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert lavis_files.vocabulary(str(tmp_path), 7) == [*words, "[DEC]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    assert lavis_files.vocabulary(str(tmp_path), 7) == [*words, "[DEC]"]
    assert lavis_files.vocabulary(str(tmp_path), 6) == words
    with pytest.raises(InputError, match="6 words for 8 embeddings"):
        lavis_files.vocabulary(str(tmp_path), 8)


def test_parts_of_gives_what_the_backbones_parts_hold(run_import, tmp_path):
    state = state_of("clip")
    run_import(state)
    own = backbones.load(str(tmp_path / "out"), device="cpu").parts.state_dict()
    found = lavis.parts_of({**state, "something.else": torch.zeros(1)})
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    state.pop("vision_proj.weight")
    with pytest.raises(InputError, match=r"best\.pt: .*vision_proj\.weight"):
        lavis.parts_of(state, "best.pt")


def test_sprc_becomes_a_backbone_and_a_method_on_it(run_import, tmp_path):
    """Released as `{"epoch", "Blip2QformerCirAlignPrompt": sd}`: LAVIS's names, and shared prompts."""
    prompts = torch.from_numpy(weights.uniform("prompt_tokens", (1, 8, 128)))
    state = {**state_of("eva"), "prompt_tokens": prompts}
    lines = run_import(state, "sprc", key="Blip2QformerCirAlignPrompt")
    assert lines[0].startswith("sprc: SPRC's BLIP-2") and "under 'Blip2QformerCirAlignPrompt'" in lines[0]
    settings, out = configs.load(tmp_path / "out" / "config.yaml"), tmp_path / "out"
    assert (settings.backbone.name, settings.backbone.preprocess) == (str(out / "backbone"), "targetpad")
    assert settings.method["name"] == "sprc" and settings.prompt.join == "capital_first"
    backbone = backbones.load(settings.backbone.name, device="cpu", preprocess=settings.backbone.preprocess)
    method = checkpoint.load(out, backbone)
    own = method.state_dict()
    assert torch.equal(own["prompt_tokens"], prompts) and float(own["temperature"]) == weights.TEMPERATURE
    assert torch.equal(own["parts.post_layernorm.bias"], state["ln_vision.bias"])
    assert torch.equal(
        own["parts.qformer.encoder.layer.0.crossattention.attention.value.weight"],
        state["Qformer.bert.encoder.layer.0.crossattention.self.value.weight"],
    )
    with pytest.raises(InputError, match=r"prompt_tokens of \(1, 4, 128\); expected \(1, 8, 128\)"):
        run_import({**state, "prompt_tokens": prompts[:, :4]}, "sprc", out="other")


def test_the_command(tmp_path, bert):
    torch.save({"model": state_of("clip")}, tmp_path / "x.pth")
    call = lambda *words: CliRunner().invoke(app, ["import", *map(str, words)])  # noqa: E731
    done = call("auto", tmp_path / "x.pth", "--out", tmp_path / "out", "--tokenizer", bert)
    assert done.exit_code == 0 and "read: CLIP tower of 2 blocks, width 128, 28 px" in done.output, done.output
    assert lavis.recognised(tmp_path / "x.pth") == "lavis" and not lavis.recognised(tmp_path)
    for words, reason in (
        (["lavis", tmp_path / "x.pth", "--backbone", "a/b"], "format lavis takes no --backbone"),
        (["lincir", tmp_path / "x.pth", "--vision", tmp_path / "x.pth"], "format lincir takes no --vision"),
        (["lavis", tmp_path / "absent.pth"], "no such file"),
        (["sprc", tmp_path / "x.pth", "--tokenizer", bert], "has no prompt_tokens"),
    ):
        done = call(*words, "--out", tmp_path / "other")
        assert done.exit_code == 2 and reason in done.output and done.output.count("\n") == 1, done.output
        assert not (tmp_path / "other").exists()
