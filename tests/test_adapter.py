import numpy as np
import pytest
import torch
from PIL import Image

import cir
from cir.adapter import Adapter, TokenTable
from cir.backbones import load as load_backbone
from cir.errors import InputError
from cir.methods import build, checkpoint, token_table
from cir.prompts import JOINERS, Template
from cir.schema import Query

TEXTS = ["is red", "has two dogs on grass"]


def features(n=2, width=24, seed=0):
    return 3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def lincir(tiny_backbone):
    return build("lincir", {}, tiny_backbone, seed=2)


@pytest.fixture
def folder(tiny_backbone, lincir, tmp_path):
    return checkpoint.save(tmp_path / "lincir", lincir, tiny_backbone)


def test_words_need_no_backbone_and_no_particular_dtype(folder, lincir, monkeypatch):
    monkeypatch.setattr("cir.runs.load_backbone", lambda *_: pytest.fail("the backbone was loaded"))
    adapter = cir.load(folder, device="cpu")
    assert torch.equal(adapter.words(features()), lincir.words(features())) and not adapter.method.training
    assert adapter.words(features().bfloat16()).dtype == torch.float32
    assert not adapter.words(features().requires_grad_()).requires_grad
    with pytest.raises(InputError, match="features of width 7, this adapter reads width 24"):
        adapter.words(features(width=7))


def composed(method, backbone, texts, template="a photo of $ that {text}", join="both_orders"):
    queries = [Query(str(i), "", (text,) if isinstance(text, str) else tuple(text)) for i, text in enumerate(texts)]
    return method.compose(backbone, features()[:, None], queries, Template(template), JOINERS[join])[:, 0]


def test_composing_is_the_methods(folder, lincir, tiny_backbone):
    adapter = cir.load(folder, device="cpu")  # finds the backbone by the recorded name
    torch.testing.assert_close(adapter.compose(features(), TEXTS), composed(lincir, tiny_backbone, TEXTS))
    both = [["is red", "has a hood"], ["is blue", "is green"]]
    torch.testing.assert_close(adapter.compose(features(), both), composed(lincir, tiny_backbone, both))
    other = adapter.compose(features(), both, template="a $ , {text}", join="second_and_first")
    torch.testing.assert_close(other, composed(lincir, tiny_backbone, both, "a $ , {text}", "second_and_first"))
    torch.testing.assert_close(other, adapter.compose(features(), both, "a $ , {text}", JOINERS["second_and_first"]))
    torch.testing.assert_close(other.norm(dim=-1), torch.ones(2))
    for call, reason in (
        (lambda: adapter.compose(features(), ["one"]), "2 references but 1 texts"),
        (lambda: adapter.compose(features(), TEXTS, join="both"), "join 'both' is unknown"),
        (lambda: adapter.compose(features()[:, None], TEXTS), "reads features, b d, got"),
    ):
        with pytest.raises(InputError, match=reason):
            call()


def test_a_backbone_may_be_given(folder, tiny_backbone, make_clip, tmp_path, caplog):
    queries = cir.load(folder, backbone=tiny_backbone).compose(features(), TEXTS)
    torch.testing.assert_close(
        cir.load(folder, backbone=tiny_backbone.name, device="cpu").compose(features(), TEXTS), queries
    )
    assert not caplog.records
    other = load_backbone(str(make_clip(tmp_path / "other", seed=5)), device="cpu")
    with pytest.raises(InputError, match="trained on backbone"):
        cir.load(folder, backbone=other)
    padded = load_backbone(tiny_backbone.name, device="cpu", preprocess="targetpad")
    cir.load(folder, backbone=padded)
    assert "was made for preprocessing clip, the backbone has targetpad" in caplog.text


def test_a_wrapper_loads_its_tower_when_asked(tiny_backbone, lincir, tmp_path):
    method = build("rtd", {}, tiny_backbone, lincir)
    with torch.no_grad():
        for parameter in method.text.parameters():
            parameter.mul_(1.1)
    adapter = cir.load(checkpoint.save(tmp_path / "rtd", method, tiny_backbone), device="cpu")
    assert adapter._backbone is None and torch.equal(adapter.words(features()), lincir.words(features()))
    adapter.save_pretrained(tmp_path / "early")
    queries = adapter.compose(features(), TEXTS)
    torch.testing.assert_close(queries, composed(method, tiny_backbone, TEXTS))
    assert not torch.allclose(queries, composed(lincir, tiny_backbone, TEXTS), atol=1e-3)
    adapter.save_pretrained(tmp_path / "late")
    for name in ("early", "late"):
        again = Adapter.from_pretrained(tmp_path / name, device="cpu")
        assert torch.equal(again.compose(features(), TEXTS), queries)


def test_patches_are_what_some_methods_read(tiny_backbone, tmp_path):
    method = build("context_i2w", {}, tiny_backbone, seed=1)
    adapter = cir.load(checkpoint.save(tmp_path / "c", method, tiny_backbone), device="cpu")
    pictures = [Image.fromarray(np.full((40, 50, 3), grey, np.uint8)) for grey in (30, 200)]
    patches = adapter.encode_images(pictures, kind="patches")
    assert patches.shape == (2, 17, 48)
    queries = [Query(str(i), "", (text,)) for i, text in enumerate(TEXTS)]
    twin = method.compose(tiny_backbone, patches, queries, Template(), JOINERS["both_orders"])[:, 0]
    torch.testing.assert_close(adapter.compose(patches, TEXTS), twin)
    with pytest.raises(InputError, match="reads patch tokens, b p v, got"):
        adapter.compose(features(), TEXTS)


def test_pictures_and_files_are_encoded_alike(folder, tiny_backbone, tmp_path):
    adapter = cir.load(folder, backbone=tiny_backbone)
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30 + i, 3), np.uint8)) for i in range(5)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    found = adapter.encode_images(
        [*pictures[:2], str(tmp_path / "2.png"), *(tmp_path / f"{i}.png" for i in (3, 4))], batch=2
    )
    pixels = torch.stack([tiny_backbone.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(found, tiny_backbone.encode_images(pixels)[:, 0], atol=1e-5, rtol=1e-4)
    for images, reason in (([], "no images given"), ([tmp_path / "absent.png"], "missing; expected an image file")):
        with pytest.raises(InputError, match=reason):
            adapter.encode_images(images)


def test_saving_keeps_what_was_changed_and_every_setting(folder, lincir, tmp_path, tiny_clip_folder):
    (folder.parent / "config.yaml").write_text(
        f"method: {{name: lincir, noise_scale: 1e-5}}\nbackbone: {{name: {tiny_clip_folder}, preprocess: targetpad}}\n"
        "prompt: {template: 'a $ , {text}', join: first}\n"
    )
    adapter = cir.load(folder, device="cpu")
    with torch.no_grad():
        adapter.method.phi.layers[0].bias.add_(1)
    assert adapter.save_pretrained(tmp_path / "saved") is None
    adapter.save_pretrained(tmp_path / "saved")  # again, over itself
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "README.md", "config.json", "config.yaml", "model.safetensors"
    ]  # fmt: skip
    again = Adapter.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(again.words(features()), adapter.words(features()))
    assert not torch.equal(again.words(features()), lincir.words(features()))
    assert again.config.prompt == adapter.config.prompt and again.config.backbone.preprocess == "targetpad"
    assert float(again.config.method["noise_scale"]) == 1e-5
    assert again.described["backbone"] == adapter.described["backbone"]


def test_run_folders_are_loaded_by_their_best_checkpoint(folder, lincir, tiny_backbone, tmp_path):
    checkpoint.save(tmp_path / "run" / "last", build("lincir", {}, tiny_backbone, seed=9), tiny_backbone)
    checkpoint.save(tmp_path / "run" / "best", lincir, tiny_backbone)
    assert torch.equal(cir.load(tmp_path / "run").words(features()), lincir.words(features()))
    with pytest.raises(InputError, match="no checkpoint here"):
        cir.load(tmp_path)


def test_tokens_compose_as_the_words_they_are(folder, lincir, tiny_backbone, tmp_path):
    words = lincir.words(features())[:, 0].detach()
    description = checkpoint.described(tiny_backbone)
    table = cir.load(token_table.write(tmp_path / "t", words, ["a", "b"], description), backbone=tiny_backbone)
    assert isinstance(table, TokenTable)
    found = table.compose_of(["b", "a"], TEXTS[::-1])
    torch.testing.assert_close(found, composed(lincir, tiny_backbone, TEXTS).flip(0))
    with pytest.raises(InputError, match="2 names but 1 texts"):
        table.compose_of(["a", "b"], ["x"])


def test_without_a_backbone_name_one_must_be_given(folder, tiny_backbone, tmp_path):
    method = checkpoint.projector(folder)
    nameless = {**checkpoint.described(tiny_backbone), "name": "", "fingerprint": ""}
    checkpoint.write(tmp_path / "n", method.state_dict(), checkpoint.recipe(method), nameless)
    adapter = cir.load(tmp_path / "n")
    with pytest.raises(InputError, match=r"does not say its backbone; give one: cir\.load"):
        adapter.compose(features(), TEXTS)
    assert cir.load(tmp_path / "n", backbone=tiny_backbone).compose(features(), TEXTS).shape == (2, 24)


def test_only_load_is_lent_by_the_package():
    with pytest.raises(AttributeError, match="module 'cir' has no attribute 'laod'"):
        _ = cir.laod
