from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from cir.errors import InputError
from cir.importers import containers


def saved(tmp_path, content, name="x.pt", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def equal(found, state):
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_containers_of_the_literature(tmp_path, phi, im2text, ddp, zipped):
    options = {"_use_new_zipfile_serialization": zipped}
    found = containers.read(saved(tmp_path, {"epoch": 3, "Phi": phi()}, **options))
    assert found.key == "Phi" and found.passed_over == ("epoch",) and equal(found.tensors, phi())
    whole = {
        "epoch": 29,
        "name": "run",
        "state_dict": ddp({"visual.proj": torch.zeros(2, 2)}),
        "optimizer": {"state": {}},
    }
    found = containers.read(saved(tmp_path, {**whole, "state_dict_img2text": ddp(im2text())}, **options))
    assert found.key == "state_dict_img2text" and equal(found.tensors, im2text())
    assert found.passed_over == ("epoch", "name", "optimizer", "state_dict")
    found = containers.read(saved(tmp_path, ddp(phi()), **options))
    assert found.key == "" and found.passed_over == () and equal(found.tensors, phi())


def test_half_precision_becomes_float32_and_is_told(tmp_path, phi):
    halves = {name: tensor.half() for name, tensor in phi().items()}
    found = containers.read(saved(tmp_path, {"Phi": halves}))
    assert found.dtype == "float16" and equal(found.tensors, {name: tensor.float() for name, tensor in halves.items()})


def test_safetensors_hold_bare_state_dicts(tmp_path, phi):
    save_file(phi(), tmp_path / "x.safetensors")
    assert equal(containers.read(tmp_path / "x.safetensors").tensors, phi())
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not readable as safetensors"):
        containers.read(tmp_path / "y.safetensors")


def test_what_is_not_a_container_is_told(tmp_path, phi):
    for content, reason in (
        ({"Phi": phi(), "extra": 1}, r"unexpected keys \['extra'\] beside Phi"),
        ({"Phi": phi(), "state_dict_img2text": phi()}, "holds Phi and state_dict_img2text"),
        ({"weights": phi()}, r"expected a state dict, or one under Phi.*found the keys \['weights'\]"),
        ({}, "expected a state dict"),
        ({"Phi": {}}, "expected a state dict, found dict of 0"),
        ({"Phi": {"layers.0.weight": 3}}, "layers.0.weight: expected a tensor, found int"),
        ([1, 2], "expected a dictionary of tensors, found list"),
        ({"Phi": {"a": torch.tensor([float("nan")])}}, "a holds values that are not finite"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "a occurs twice"),
    ):
        with pytest.raises(InputError, match=reason):
            containers.read(saved(tmp_path, content))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match=r"text\.pt: not a checkpoint that torch reads"):
        containers.read(tmp_path / "text.pt")
    with pytest.raises(InputError, match="no such file"):
        containers.read(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="a folder; expected a checkpoint file"):
        containers.read(tmp_path)


class Acting:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_modules_and_actions_are_refused(tmp_path):
    for content in (torch.nn.Linear(2, 2), {"Phi": torch.nn.Linear(2, 2)}, {"args": SimpleNamespace(a=1)}):
        with pytest.raises(InputError, match=r"would run code from the file.*state_dict\(\)"):
            containers.read(saved(tmp_path, content))
    trace = tmp_path / "trace"
    path = saved(tmp_path, {"Phi": {}, "x": Acting(trace)}, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="would run code from the file"):
        containers.read(path)
    assert not trace.exists()


def test_a_text_file_is_no_checkpoint_and_none_of_its_words_are_torch_advice(tmp_path):
    (tmp_path / "captions.pt").write_text("A man wearing a red hat.")
    with pytest.raises(InputError, match=r"captions\.pt: not a checkpoint that torch reads; expected a \.pt or"):
        containers.read(tmp_path / "captions.pt")
