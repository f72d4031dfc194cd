"""Published files through `cir.load`, against the modules written out in plain torch."""

import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import cir
from cir import config as configs
from cir.errors import InputError
from cir.importers import formats, import_checkpoint
from cir.methods import checkpoint


def images(n=5, width=24, seed=7):
    return 3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def affine(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def erf_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def phi_twin(state, x):
    x = erf_gelu(affine(state, "layers.0", x))
    return affine(state, "layers.6", erf_gelu(affine(state, "layers.3", x)))


def im2text_twin(state, x, side=""):
    x = affine(state, f"layers{side}.0.0", x).clamp(min=0)
    return affine(state, f"fc_out{side}", affine(state, f"layers{side}.1.0", x).clamp(min=0))


def norm_twin(state, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def resampler_twin(state, tokens, depth):
    """One picture: latents "4 v" read its patches "p v"."""
    latents = state["VT_Extractor.latents"]
    for i in range(depth):
        at, mlp = f"VT_Extractor.layers.{i}.0", f"VT_Extractor.layers.{i}.1"
        own = norm_twin(state, f"{at}.norm_latents", latents)
        both = torch.cat([norm_twin(state, f"{at}.norm_media", tokens), own])
        q, (k, v) = affine(state, f"{at}.to_q", own), affine(state, f"{at}.to_kv", both).chunk(2, dim=-1)
        heads = []
        for h in range(8):
            part = slice(64 * h, 64 * h + 64)
            heads.append(((q[:, part] @ k[:, part].T) / 8).softmax(-1) @ v[:, part])
        latents = latents + affine(state, f"{at}.to_out", torch.cat(heads, -1))
        inner = erf_gelu(affine(state, f"{mlp}.1", norm_twin(state, f"{mlp}.0", latents)))
        latents = latents + affine(state, f"{mlp}.3", inner)
    return norm_twin(state, "VT_Extractor.norm", latents)


def context_twin(state, tokens, context, depth=2):
    rows = []
    weight = state["W_R.weight_g"] * state["W_R.weight_v"] / state["W_R.weight_v"].norm(dim=1, keepdim=True)
    for patches, text in zip(tokens, context, strict=True):
        seen = (patches @ weight.T) * (state["to_c.weight"] @ text)
        whole = norm_twin(state, "ln_post", seen[:1]) @ state["proj"]
        latents = resampler_twin(state, seen[1:], depth).mean(0, keepdim=True)
        part = norm_twin(state, "ln_post_local", latents) @ state["proj_local"]
        gate = torch.tanh(state["local_gate"])
        rows.append(im2text_twin(state, whole) + gate * im2text_twin(state, part, "_local"))
    return torch.cat(rows)


@pytest.fixture
def file(tmp_path):
    def write(content, name="x.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "format", "method", "preprocess"),
    [
        ("SEARLE_ViT-B32.pt", "auto", "searle", "targetpad"),
        ("phi.pt", "searle", "searle", "targetpad"),
        ("lincir_large.pt", "auto", "lincir", "clip"),
        ("phi_best.pt", "auto", "lincir", "clip"),
        ("phi_best.pt", "phi", "lincir", "clip"),
    ],
)
def test_phi_gives_the_words_of_its_definition(file, tmp_path, phi, name, format, method, preprocess):
    state = phi()
    done = import_checkpoint(file({"epoch": 1, "Phi": state}, name), tmp_path / "out", format)
    adapter = cir.load(tmp_path / "out", device="cpu")
    torch.testing.assert_close(adapter.words(images())[:, 0], phi_twin(state, images()), atol=1e-4, rtol=1e-5)
    assert adapter.described["method"] == method and adapter.config.backbone.preprocess == preprocess
    assert (adapter.config.prompt.template, adapter.config.prompt.join) == ("a photo of $ that {text}", "both_orders")
    assert any("keys left behind: epoch" in line for line in done.lines)
    assert any("SEARLE's was trained with" in line for line in done.lines) == (
        done.format == "phi" and format != "searle"
    )


@pytest.mark.parametrize(("words", "hidden"), [(24, None), (40, 50)])
def test_widths_are_read_off_the_shapes(file, tmp_path, phi, words, hidden):
    state = phi(24, words, hidden)
    import_checkpoint(file(state), tmp_path / "out")
    found = cir.load(tmp_path / "out").words(images())
    assert found.shape == (5, 1, words) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], phi_twin(state, images()), atol=1e-4, rtol=1e-5)


def test_pic2word_from_a_data_parallel_run_with_the_whole_clip(file, tmp_path, im2text, ddp):
    state = im2text()
    whole = {"epoch": 1, "name": "run", "state_dict": {"module.a": torch.zeros(1)}, "optimizer": {"state": {}}}
    path = file({**whole, "state_dict_img2text": ddp(state)})
    done = import_checkpoint(path, tmp_path / "out")
    assert done.format == "pic2word" and any("epoch, name, optimizer, state_dict" in line for line in done.lines)
    adapter = cir.load(tmp_path / "out", device="cpu")
    torch.testing.assert_close(adapter.words(images())[:, 0], im2text_twin(state, images()), atol=1e-4, rtol=1e-5)
    assert (adapter.config.prompt.template, adapter.config.prompt.join) == ("a photo of $ , {text}", "second_and_first")


def test_context_i2w_reads_patches_through_the_text(file, tmp_path, context, ddp):
    state = context()
    done = import_checkpoint(file({"epoch": 1, "state_dict_img2text": ddp(state)}), tmp_path / "out")
    assert done.format == "context-i2w"
    adapter = cir.load(tmp_path / "out", device="cpu")
    tokens, text = images(5 * 10, 16).reshape(5, 10, 16), images(5)
    with torch.no_grad():
        found = adapter.method.im2text(tokens, text)
    torch.testing.assert_close(found, context_twin(state, tokens, text), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(found, context_twin(state | {"local_gate": torch.zeros(1)}, tokens, text), atol=1e-2)
    with pytest.raises(InputError, match="no pseudo-words of images alone"):
        adapter.words(images())


def test_newer_torch_names_of_weight_norm_are_read(file, tmp_path, context):
    state = context()
    newer = {name: tensor for name, tensor in state.items() if not name.startswith("W_R.")}
    newer["W_R.parametrizations.weight.original0"] = state["W_R.weight_g"]
    newer["W_R.parametrizations.weight.original1"] = state["W_R.weight_v"]
    import_checkpoint(file(newer), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["im2text.W_R.weight_g"], state["W_R.weight_g"])


def test_half_precision_and_safetensors(tmp_path, phi):
    halves = {name: tensor.half() for name, tensor in phi().items()}
    save_file(halves, tmp_path / "lincir.safetensors")
    done = import_checkpoint(tmp_path / "lincir.safetensors", tmp_path / "out")
    assert "stored as float16, kept as float32" in done.lines[0]
    twin = phi_twin({name: tensor.float() for name, tensor in halves.items()}, images())
    torch.testing.assert_close(cir.load(tmp_path / "out").words(images())[:, 0], twin, atol=1e-4, rtol=1e-5)


def test_every_key_is_accounted_for(file, tmp_path, phi, im2text, context):
    whole = phi()
    for state, format, reason in (
        ({k: v for k, v in whole.items() if k != "layers.3.bias"}, "auto", r"1 missing \['phi.layers.3.bias'\]"),
        ({k: v for k, v in whole.items() if k != "layers.0.weight"}, "auto", "layers.0.weight is missing"),
        (whole | {"layers.9.weight": torch.zeros(2)}, "auto", r"1 unknown \['phi.layers.9.weight'\]"),
        (whole | {"layers.3.weight": torch.zeros(2, 2)}, "auto", r"1 of another shape \['phi.layers.3.weight'\]"),
        ({k: v for k, v in context().items() if k != "to_c.weight"}, "auto", "to_c.weight is missing"),
        ({"conv.weight": torch.zeros(2)}, "auto", r"parameter names \['conv.weight'\] are of no known format"),
        (whole | {"layers.0.weight": torch.zeros(3)}, "auto", "not the shapes of a projector"),
        (whole, "pic2word", "not Pic2Word's IM2TEXT; its parameter names are those of searle or lincir or phi"),
        (im2text(), "lincir", "not LinCIR's phi; its parameter names are those of pic2word"),
        (whole, "linncir", "format 'linncir' is unknown; did you mean 'lincir'"),
    ):
        with pytest.raises(InputError, match=reason):
            import_checkpoint(file(state), tmp_path / "out", format)
        assert not (tmp_path / "out").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_backbones_are_told_by_width_and_name(file, tmp_path):
    searle, lincir = formats.FORMATS["searle"], formats.FORMATS["lincir"]
    path = tmp_path / "phi.pt"
    assert formats.backbone_for(lincir, 768, path) == "openai/clip-vit-large-patch14"
    assert formats.backbone_for(lincir, 1024, path) == "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert formats.backbone_for(lincir, 1280, path) == "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
    assert formats.backbone_for(searle, 512, path) == "openai/clip-vit-base-patch32"
    assert formats.backbone_for(lincir, 512, tmp_path / "lincir_ViT-B16.pt") == "openai/clip-vit-base-patch16"
    assert formats.backbone_for(searle, 512, tmp_path / "SEARLE_base_16.pt") == "openai/clip-vit-base-patch16"
    assert formats.backbone_for(lincir, 768, tmp_path / "ViT-B32.pt") == "openai/clip-vit-large-patch14"
    assert formats.backbone_for(lincir, 512, path, "my/own") == "my/own"
    assert formats.backbone_for(lincir, 99, path) == ""
    with pytest.raises(
        InputError, match=r"of openai/clip-vit-base-patch32 and of .*patch16; say which with --backbone"
    ):
        formats.backbone_for(lincir, 512, path)


def test_the_folder_says_where_it_comes_from(file, tmp_path, phi):
    path = file({"Phi": phi()}, "lincir.pt")
    import_checkpoint(path, tmp_path / "out", backbone="some/backbone", preprocess="targetpad")
    described = checkpoint.describe(tmp_path / "out")
    assert described["backbone"] == {
        "name": "some/backbone", "fingerprint": "", "width": 24, "word_width": 32, "vision_width": 0
    }  # fmt: skip
    origin = described["details"]["imported"]
    assert origin["file"] == "lincir.pt" and origin["format"] == "lincir" and origin["container"] == "Phi"
    assert origin["digest"] == checkpoint.digest(path)
    config = configs.load(tmp_path / "out" / "config.yaml")
    assert config.backbone.name == "some/backbone" and config.backbone.preprocess == "targetpad"
    assert config.method["name"] == "lincir"


def test_nothing_is_written_over_and_nothing_is_left_half_written(file, tmp_path, phi, monkeypatch):
    path, out = file({"Phi": phi()}, "lincir.pt"), tmp_path / "deep" / "out"
    import_checkpoint(path, out)
    before = {item.name: item.read_bytes() for item in out.iterdir()}
    with pytest.raises(InputError, match="already there; choose another folder"):
        import_checkpoint(path, out)
    assert before == {item.name: item.read_bytes() for item in out.iterdir()}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cir.importers.output.settings", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(path, tmp_path / "deep" / "other")
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["out"]


def test_damaged_values_do_not_pass_the_self_test(file, tmp_path, phi):
    huge = {name: 1e30 * tensor for name, tensor in phi().items()}
    with pytest.raises(InputError, match="not finite; damaged weights"):
        import_checkpoint(file(huge), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rtd(file, tmp_path, phi, tower, tiny_clip_folder, content=None, **options):
    base = import_checkpoint(file({"Phi": phi()}, "lincir.pt"), tmp_path / "base", backbone=str(tiny_clip_folder))
    path = file(content or {"epoch": 1, "CLIPTextModelWithProjection": tower()}, "text_encoder_best.pt")
    return import_checkpoint(path, tmp_path / "rtd", **{"base": base.out, **options})


def test_rtd_puts_its_tower_on_a_projector(file, tmp_path, phi, tower, tiny_clip_folder, tiny_backbone):
    done = rtd(file, tmp_path, phi, tower, tiny_clip_folder)
    assert done.format == "rtd" and any("(2 heads, quick_gelu)" in line for line in done.lines)
    assert any("epoch, text_model.embeddings.position_ids" in line for line in done.lines)
    adapter = cir.load(tmp_path / "rtd", device="cpu")
    torch.testing.assert_close(adapter.words(images())[:, 0], phi_twin(phi(), images()), atol=1e-4, rtol=1e-5)
    queries = adapter.compose(images(), ["is red"] * 5)
    base = cir.load(tmp_path / "base", device="cpu").compose(images(), ["is red"] * 5)
    assert queries.shape == (5, 24) and not torch.allclose(queries, base, atol=1e-3)
    own = adapter.method.text.state_dict()
    assert all(torch.equal(own[name], value) for name, value in tower().items() if name in own) and len(own) == 37
    assert adapter.described["details"]["imported"]["base"]["details"]["imported"]["file"] == "lincir.pt"
    assert yaml.safe_load((tmp_path / "rtd" / "config.yaml").read_text())["backbone"]["preprocess"] == "clip"


def test_rtd_towers_need_a_projector_of_their_widths(file, tmp_path, phi, im2text, tower, tiny_clip_folder):
    with pytest.raises(InputError, match="goes with a projector; import that first and name it with --base"):
        import_checkpoint(file({"CLIPTextModelWithProjection": tower()}), tmp_path / "out")
    other = import_checkpoint(file(im2text(24, 64), "p.pt"), tmp_path / "other")
    with pytest.raises(InputError, match=r"joint width 24 and word width 32, but .* projects from 24 to 64"):
        import_checkpoint(
            file({"CLIPTextModelWithProjection": tower()}),
            tmp_path / "out",
            base=other.out,
            backbone=str(tiny_clip_folder),
        )
    rtd(file, tmp_path, phi, tower, tiny_clip_folder)
    with pytest.raises(InputError, match="holds rtd, which maps no feature to a pseudo-word"):
        import_checkpoint(file({"CLIPTextModelWithProjection": tower()}), tmp_path / "out", base=tmp_path / "rtd")
    with pytest.raises(InputError, match="takes no --base"):
        import_checkpoint(file({"Phi": phi()}), tmp_path / "out", base=other.out)
    assert not (tmp_path / "out").exists()


def test_incomplete_towers_are_refused(file, tmp_path, phi, tower, tiny_clip_folder):
    whole = tower()
    lost = "text_model.encoder.layers.1.mlp.fc2.bias"
    for name, (state, reason) in {
        "a": ({k: v for k, v in whole.items() if k != lost}, rf"1 missing \['{lost}'\]"),
        "b": (whole | {"visual.x": torch.zeros(1)}, r"1 unexpected \['visual.x'\]"),
        "c": ({k: v for k, v in whole.items() if k != "text_projection.weight"}, "text_projection.weight is missing"),
    }.items():
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=reason):
            rtd(file, tmp_path / name, phi, tower, tiny_clip_folder, {"CLIPTextModelWithProjection": state})


def test_json_beside_the_weights_is_plain(file, tmp_path, phi):
    import_checkpoint(file({"Phi": phi()}, "lincir.pt"), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "config.yaml", "model.safetensors"]
    json.loads((tmp_path / "out" / "config.json").read_text())
