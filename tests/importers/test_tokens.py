import json
import pickle

import pytest
import torch

import cir
from cir.errors import InputError
from cir.importers import import_checkpoint
from cir.methods import checkpoint, token_table


def folder(tmp_path, tokens, names, **files):
    place = tmp_path / "oti"
    place.mkdir()
    torch.save(torch.nn.Parameter(tokens), place / "oti_pseudo_tokens.pt")
    torch.save(tokens + 1, place / "ema_oti_pseudo_tokens.pt")
    (place / "image_names.pkl").write_bytes(pickle.dumps(names))
    (place / "hyperparameters.json").write_text(json.dumps({"learning_rate": 2e-2}))
    for name, raw in files.items():
        (place / name.replace("__", ".")).write_bytes(raw)
    return place


def test_a_folder_becomes_a_table_of_averaged_tokens(tmp_path):
    tokens = torch.randn(3, 32)
    done = import_checkpoint(folder(tmp_path, tokens, ["c", "a", "b"]), tmp_path / "out")
    assert done.format == "oti" and any("3 pseudo-words of width 32 from ema_oti" in line for line in done.lines)
    table = cir.load(tmp_path / "out")
    assert table.names == ("c", "a", "b") and torch.equal(table.words_of(["b", "c", "b"])[:, 0], tokens[[2, 0, 2]] + 1)
    assert table.config.backbone.preprocess == "targetpad"
    assert table.described["details"]["imported"]["settings"] == {"learning_rate": 2e-2}
    with pytest.raises(InputError, match="no token of image 'd' among 3"):
        table.words_of(["a", "d"])
    found, names = token_table.read(tmp_path / "out")
    assert torch.equal(found, tokens + 1) and names == table.names
    with pytest.raises(InputError, match=r"a table of OTI tokens, not a method; cir\.load reads it"):
        checkpoint.describe(tmp_path / "out")


def test_without_averages_the_raw_tokens_are_taken_and_told(tmp_path):
    tokens = torch.randn(2, 1, 32).half()
    place = folder(tmp_path, tokens, ["a", "b"])
    (place / "ema_oti_pseudo_tokens.pt").unlink()
    done = import_checkpoint(place, tmp_path / "out", "oti")
    assert "from oti_pseudo_tokens.pt" in done.lines[0]
    assert torch.equal(cir.load(tmp_path / "out").tokens, tokens[:, 0].float())


@pytest.mark.parametrize(
    ("tokens", "names", "reason"),
    [
        (torch.zeros(2, 4), ["a"], "1 names for 2 tokens; from another run"),
        (torch.zeros(2, 4), ["a", "a"], "1 names occur more than once"),
        (torch.zeros(2, 4), {"a": 1, "b": 2}, "expected a list of image names, found dict"),
        (torch.zeros(2, 4), ["a", 3], "expected a list of image names"),
        (torch.zeros(2, 4), ["a", print], "holds more than lists"),
        (torch.zeros(2), ["a", "b"], r"expected a tensor of images x word width, found \(2,\)"),
        (torch.full((2, 4), float("inf")), ["a", "b"], "not finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, tokens, names, reason):
    with pytest.raises(InputError, match=reason):
        import_checkpoint(folder(tmp_path, tokens, names), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_incomplete_folders_are_told(tmp_path):
    place = folder(tmp_path, torch.zeros(1, 4), ["a"], hyperparameters__json=b"{")
    with pytest.raises(InputError, match=r"hyperparameters\.json: not readable as JSON"):
        import_checkpoint(place, tmp_path / "out")
    (place / "image_names.pkl").unlink()
    with pytest.raises(InputError, match=r"expected ema_oti.*image_names\.pkl in a folder of OTI tokens"):
        import_checkpoint(place, tmp_path / "out", "oti")


def test_a_changed_table_is_refused(tmp_path):
    import_checkpoint(folder(tmp_path, torch.zeros(2, 4), ["a", "b"]), tmp_path / "out")
    (tmp_path / "out" / "names.json").write_text('["a"]')
    with pytest.raises(InputError, match=r"one name in names\.json for each row"):
        cir.load(tmp_path / "out")
    with pytest.raises(InputError, match="1 distinct names for 2 tokens"):
        token_table.write(tmp_path / "x", torch.zeros(2, 4), ["a", "a"], {})


def test_phrases_become_lines(tmp_path):
    found = {"dog": ["a photo of dog that barks", "a photo of dog that ü"], "cat": []}
    (tmp_path / "phrases.pkl").write_bytes(pickle.dumps(found, 4))
    done = import_checkpoint(tmp_path / "phrases.pkl", tmp_path / "out")
    assert done.out == tmp_path / "out" / "phrases.jsonl" and "2 of 2 concepts" in done.lines[0]
    rows = [json.loads(line) for line in done.out.read_text(encoding="utf-8").splitlines()]
    assert {row["concept"]: row["phrases"] for row in rows} == found
    with pytest.raises(InputError, match="already there"):
        import_checkpoint(tmp_path / "phrases.pkl", tmp_path / "out", "phrases")


@pytest.mark.parametrize("value", [["dog"], {}, {"dog": "barks"}, {"dog": [1]}, {3: ["x"]}, {"dog": [print]}])
def test_other_pickles_are_no_phrases(tmp_path, value):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=r"expected|holds more than lists"):
        import_checkpoint(tmp_path / "x.pkl", tmp_path / "out", "phrases")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]
