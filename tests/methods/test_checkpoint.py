import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cir.errors import InputError
from cir.methods import build, checkpoint
from cir.methods.shape import BackboneShape


@pytest.fixture
def saved(tiny_backbone, tmp_path):
    method = build("lincir", {"dropout": 0.25}, tiny_backbone, seed=4)
    return checkpoint.save(tmp_path / "run", method, tiny_backbone, {"steps": 3})


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    edit(folder, weights=checkpoint.digest(folder / "model.safetensors"))


def test_a_wrapper_carries_its_base(tiny_backbone, tmp_path):
    base = build("lincir", {"l2_normalize": True}, tiny_backbone, seed=4)
    checkpoint.save(tmp_path, build("rtd", {"tau": 0.1}, tiny_backbone, base), tiny_backbone)
    loaded = checkpoint.load(tmp_path, tiny_backbone)
    assert loaded.options.tau == 0.1 and loaded.base.options.l2_normalize and not loaded.base.training
    assert torch.equal(loaded.base.phi.layers[0].weight, base.phi.layers[0].weight)
    assert not any(name.startswith(".") for name in (p.name for p in tmp_path.iterdir()))


def test_the_description_says_what_and_on_which_backbone(saved, tiny_backbone):
    config = checkpoint.describe(saved)
    assert config["method"] == "lincir" and config["options"]["dropout"] == 0.25
    assert config["backbone"]["fingerprint"] == tiny_backbone.fingerprint and config["details"] == {"steps": 3}


@pytest.mark.parametrize(("key", "value"), [("fingerprint", "0" * 16), ("width", 99), ("word_width", 99)])
def test_another_backbone_is_refused(saved, tiny_backbone, key, value):
    known = {name: getattr(tiny_backbone, name) for name in ("name", "fingerprint", "width", "word_width")}
    with pytest.raises(InputError, match=f"trained on backbone .*{key}"):
        checkpoint.load(saved, BackboneShape(**{**known, key: value}))


def test_without_a_fingerprint_the_widths_decide_and_another_name_is_told(saved, tiny_backbone, caplog):
    own = checkpoint.describe(saved)["backbone"]
    edit(saved, backbone={**own, "fingerprint": ""})
    checkpoint.load(saved, tiny_backbone)
    assert not caplog.records
    edit(saved, backbone={**own, "fingerprint": "", "name": "somebody/else"})
    checkpoint.load(saved, tiny_backbone)
    assert "belongs to 'somebody/else'" in caplog.text and "only the widths were compared" in caplog.text
    edit(saved, backbone={**own, "fingerprint": "", "width": 99})
    with pytest.raises(InputError, match=r"trained on backbone .*width 99"):
        checkpoint.load(saved, tiny_backbone)


def test_pseudo_words_need_no_backbone(tiny_backbone, tmp_path):
    base = build("lincir", {}, tiny_backbone, seed=4)
    image = torch.randn(3, tiny_backbone.width, generator=torch.Generator().manual_seed(0))
    for name, method in (("lincir", base), ("rtd", build("rtd", {}, tiny_backbone, base))):
        folder = checkpoint.save(tmp_path / name, method, tiny_backbone)
        projector = checkpoint.projector(folder)
        assert not projector.training and torch.equal(projector.words(image), base.words(image))


def test_a_shape_refuses_what_needs_weights():
    shape = BackboneShape(24, 32)
    for ask in (lambda: shape.tokenizer.end, lambda: shape.text.word_width, lambda: shape.encode_images(0)):
        with pytest.raises(InputError, match="only the backbone's widths are known here"):
            ask()


def test_a_failed_write_leaves_nothing(saved, tiny_backbone, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(saved, build("lincir", {}, tiny_backbone), tiny_backbone)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    checkpoint.load(saved, tiny_backbone)


def test_every_key_is_accounted_for(saved, tiny_backbone):
    whole = load_file(saved / "model.safetensors")
    rewrite(saved, {k: v for k, v in whole.items() if k != "phi.layers.3.bias"} | {"phi.extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"1 missing \['phi.layers.3.bias'\], 1 unknown \['phi.extra'\]"):
        checkpoint.load(saved, tiny_backbone)
    rewrite(saved, whole | {"phi.layers.0.bias": torch.zeros(3)})
    with pytest.raises(InputError, match=r"1 of another shape \['phi.layers.0.bias'\]"):
        checkpoint.load(saved, tiny_backbone)


def test_edited_weights_are_refused(saved, tiny_backbone):
    path = saved / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"differs from what config.json describes"):
        checkpoint.load(saved, tiny_backbone)


def test_unusable_folders_say_so(saved, tiny_backbone, tmp_path):
    with pytest.raises(InputError, match="no checkpoint here"):
        checkpoint.load(tmp_path / "absent", tiny_backbone)
    edit(saved, format=99)
    with pytest.raises(InputError, match="checkpoint format 99, this version reads 1"):
        checkpoint.load(saved, tiny_backbone)
    edit(saved, format=1, method=3)
    with pytest.raises(InputError, match="method absent or of another type"):
        checkpoint.load(saved, tiny_backbone)
    (saved / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        checkpoint.load(saved, tiny_backbone)


def test_weights_of_another_format_are_refused(saved, tiny_backbone):
    (saved / "model.safetensors").write_bytes(b"not safetensors")
    edit(saved, weights=checkpoint.digest(saved / "model.safetensors"))
    with pytest.raises(InputError, match="not readable as safetensors"):
        checkpoint.load(saved, tiny_backbone)
