"""`cir import` and what follows it: exit codes, and evaluation of an imported folder."""

import pytest
import torch
from typer.testing import CliRunner

from cir.cli import app


@pytest.fixture
def call():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


def test_importing_says_what_was_found(call, tmp_path, phi):
    torch.save({"epoch": 1, "Phi": phi()}, tmp_path / "SEARLE_x.pt")
    done = call("import", "auto", tmp_path / "SEARLE_x.pt", "--out", tmp_path / "out", "--backbone", "a/b")
    assert done.exit_code == 0, done.output
    for line in ("searle: SEARLE's phi, 6 tensors under 'Phi'", "keys left behind: epoch", "backbone: a/b",
                 "preprocess: targetpad", "self-test: 3 random features"):  # fmt: skip
        assert line in done.output


def test_input_at_fault_exits_with_two_and_one_line(call, tmp_path, phi):
    torch.save({"Phi": phi(512)}, tmp_path / "lincir.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for arguments, reason in (
        (["auto", tmp_path / "absent.pt"], "no such file"),
        (["auto", tmp_path / "module.pt"], "would run code from the file"),
        (["auto", tmp_path / "lincir.pt"], "say which with --backbone"),
        (["auto", tmp_path / "lincir.pt", "--preprocess", "pad"], "preprocess 'pad' is unknown"),
        (["rtdd", tmp_path / "lincir.pt"], "did you mean 'rtd'"),
        (["lincir", tmp_path / "lincir.pt", "--base", tmp_path / "nothing"], "no checkpoint here"),
    ):
        done = call("import", *arguments, "--out", tmp_path / "out")
        assert done.exit_code == 2 and reason in done.output and done.output.count("\n") == 1, done.output
        assert not (tmp_path / "out").exists()


def test_an_imported_folder_is_evaluated_with_its_own_settings(
    call, tmp_path, phi, im2text, small_world, tiny_clip_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save({"Phi": phi()}, tmp_path / "SEARLE.pt")
    torch.save({"state_dict_img2text": im2text()}, tmp_path / "p.pt")
    for name, preprocess, template in (
        ("SEARLE", "targetpad-1.25", "a photo of $ that {text}"),
        ("p", "clip", "a photo of $ , {text}"),
    ):
        made = call("import", "auto", f"{name}.pt", "--out", name, "--backbone", tiny_clip_folder)
        assert made.exit_code == 0, made.output
        done = call(
            "evaluate",
            name,
            "world/cirr/val",
            f"data.root={small_world}",
            "data.subset=20",
            "prompt.overflow=cut",
            "--out",
            f"records-{name}",
        )
        assert done.exit_code == 0, done.output
        (path,) = tmp_path.glob(f"records-{name}/**/*.json")
        text = path.read_text()
        assert preprocess in text and template in text
