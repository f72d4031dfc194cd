"""The loop: what it computes, what it keeps, and that an interruption leaves no trace."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cir.config import TrainConfig
from cir.errors import InputError, RunError
from cir.methods import NoStore, build, checkpoint
from cir.methods.lincir import LinCIR
from cir.train import train
from cir.train.order import Feed, Share, rows_at

WORDS = "a red blue dress shirt two dogs cats on grass sofa person umbrella rain the photo of shorter sleeves".split()


def captions(count=60, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(count)]


CONFIG = TrainConfig(steps=12, batch=8, lr=1e-3, log_every=1, save_every=4, eps=1e-4)


def run(backbone, out, config=CONFIG, **options):
    method = build("lincir", {}, backbone, seed=1)
    return method, train(method, backbone, captions(), config, out, **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


def history(folder, timed=("seconds", "rows_per_second")):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


class Interrupt(Exception):
    pass


def stop_at(step):
    def evaluate(method, at):
        if at == step:
            raise Interrupt
        return {"bench:R@1": 0.0}

    return evaluate


# What it computes


def test_the_loss_falls_and_all_is_logged(tiny_backbone, tmp_path):
    config = replace(CONFIG, steps=100, lr=3e-3, log_every=20)
    method, result = run(tiny_backbone, tmp_path, config)
    lines = history(tmp_path, timed=())
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[0].keys() == {"step", "loss", "mse", "lr", "gradient_norm", "rows_per_second", "seconds"}
    assert result.steps == 100 and result.seconds > 0 and result.peak_mb > 50 and result.best is None
    assert result.checkpoint == tmp_path / "last" and result.history == tmp_path / "history.jsonl"
    assert sum(c.trained for c in result.trained) == sum(p.numel() for p in method.parameters())
    assert not method.training
    assert_same(weights(result.checkpoint), dict(method.state_dict()))


def test_scalars_reach_tensorboard(tiny_backbone, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny_backbone, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in history(tmp_path)}, rel=1e-6)


def test_one_step_equals_adamw_written_out(tiny_backbone, tmp_path):
    method = build("lincir", {}, tiny_backbone, seed=1)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    config = replace(CONFIG, steps=1, lr=0.01, weight_decay=0.1, schedule="cosine", warmup=2, clip_norm=0.01)
    twin = build("lincir", {}, tiny_backbone, seed=1).train()
    batches = twin.prepare(tiny_backbone, captions(), seed=0, draws=8, store=NoStore())
    feed = Feed(batches, Share(8), 0, 0, torch.device("cpu"))
    twin.losses(tiny_backbone, feed.make(0, 0))["mse"].backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
    train(method, tiny_backbone, captions(), config, tmp_path)
    for name, p in twin.named_parameters():
        g = p.grad * 0.01 / (norm + 1e-6)
        lr = 0.01 / 2  # first of two warm-up steps
        expected = before[name] * (1 - lr * 0.1) - lr * g / (g.abs() + 1e-4)
        torch.testing.assert_close(dict(method.named_parameters())[name].detach(), expected, atol=1e-6, rtol=1e-3)
    assert history(tmp_path)[0]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_accumulation_equals_the_big_batch(tiny_backbone, tmp_path):
    whole, _ = run(tiny_backbone, tmp_path / "a")
    parts, _ = run(tiny_backbone, tmp_path / "b", replace(CONFIG, accumulate=4))
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3)
    start = build("lincir", {}, tiny_backbone, seed=1)
    assert not torch.allclose(whole.phi.layers[0].weight, start.phi.layers[0].weight, atol=1e-3)


def test_threads_that_prepare_ahead_change_nothing(tiny_backbone, tmp_path):
    one, _ = run(tiny_backbone, tmp_path / "a")
    two, _ = run(tiny_backbone, tmp_path / "b", replace(CONFIG, workers=3))
    assert_same(dict(one.state_dict()), dict(two.state_dict()))


def test_the_seed_changes_the_run(tiny_backbone, tmp_path):
    one, _ = run(tiny_backbone, tmp_path / "a", seed=0)
    two, _ = run(tiny_backbone, tmp_path / "b", seed=1)
    assert not torch.equal(one.phi.layers[0].weight, two.phi.layers[0].weight)


def test_the_average_is_what_is_kept(tiny_backbone, tmp_path):
    seen = {}

    def evaluate(method, step):
        assert not method.training
        seen[step] = method.phi.layers[0].bias.detach().clone()
        return {"bench:R@1": 0.0}

    config = replace(CONFIG, ema=0.9, evaluate_every=6)
    method, result = run(tiny_backbone, tmp_path, config, evaluate=evaluate)
    raw, _ = run(tiny_backbone, tmp_path / "raw")
    assert torch.equal(seen[12], method.phi.layers[0].bias)
    assert torch.equal(seen[12], weights(result.checkpoint)["phi.layers.0.bias"])
    assert not torch.equal(seen[12], raw.phi.layers[0].bias)  # the weights went their own way meanwhile


# What it keeps


def test_the_best_is_kept_and_returned(tiny_backbone, tmp_path):
    seen = {}

    def evaluate(method, step):
        seen[step] = method.phi.layers[0].bias.detach().clone()
        return {"bench:R@1": -abs(step - 6.0), "bench:R@5": step}

    config = replace(CONFIG, evaluate_every=3, select="bench:R@1")
    method, result = run(tiny_backbone, tmp_path, config, evaluate=evaluate)
    assert result.best == {"step": 6, "value": 0.0, "metric": "bench:R@1"}
    assert result.checkpoint == tmp_path / "best" and list(seen) == [3, 6, 9, 12]
    assert torch.equal(method.phi.layers[0].bias, seen[6])
    assert torch.equal(weights(tmp_path / "last")["phi.layers.0.bias"], seen[12])
    loaded = checkpoint.load(result.checkpoint, tiny_backbone)
    assert torch.equal(loaded.phi.layers[0].bias, seen[6])


def test_two_snapshots_stay(tiny_backbone, tmp_path):
    run(tiny_backbone, tmp_path)
    assert [p.name for p in sorted((tmp_path / "snapshots").iterdir())] == ["step-00000008", "step-00000012"]


def test_a_finished_run_is_not_trained_again(tiny_backbone, tmp_path):
    one, first = run(tiny_backbone, tmp_path)
    before = (tmp_path / "history.jsonl").read_bytes()
    two, second = run(tiny_backbone, tmp_path)
    assert (tmp_path / "history.jsonl").read_bytes() == before and second.seconds == first.seconds
    assert_same(dict(one.state_dict()), dict(two.state_dict()))


def test_another_run_in_the_folder_is_refused_and_can_be_replaced(tiny_backbone, tmp_path):
    run(tiny_backbone, tmp_path)
    other = replace(CONFIG, lr=2e-3, log_every=3)
    with pytest.raises(InputError, match=r"holds another run: train\.lr is 0\.002, was 0\.001\. Choose"):
        run(tiny_backbone, tmp_path, other)
    with pytest.raises(InputError, match=r"seed is 5, was 0"):
        run(tiny_backbone, tmp_path, seed=5)
    run(tiny_backbone, tmp_path, replace(CONFIG, log_every=3, save_every=5, workers=1))  # these reach no weight
    (tmp_path / "notes.txt").write_text("mine")
    _, result = run(tiny_backbone, tmp_path, other, resume=False)
    assert result.steps == 12 and [line["step"] for line in history(tmp_path)] == [3, 6, 9, 12]
    assert (tmp_path / "notes.txt").exists()


# Interruptions


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.9, "schedule": "linear", "accumulate": 2}, {"precision": "bfloat16"}, {"precision": "float16"}],
    ids=str,
)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tiny_backbone, tmp_path, changes):
    config = replace(CONFIG, evaluate_every=1, **changes)
    whole, _ = run(tiny_backbone, tmp_path / "a", config, evaluate=stop_at(0))
    for step in (7, 10):  # after the snapshots at 4 and 8: three and two steps are done twice
        with pytest.raises(Interrupt):
            run(tiny_backbone, tmp_path / "b", config, evaluate=stop_at(step))
    resumed, _ = run(tiny_backbone, tmp_path / "b", config, evaluate=stop_at(0))
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert history(tmp_path / "a") == history(tmp_path / "b")


def test_the_best_so_far_survives_an_interruption(tiny_backbone, tmp_path):
    def score(fail):
        def evaluate(method, step):
            if step == fail:
                raise Interrupt
            return {"b:m": -abs(step - 2.0)}

        return evaluate

    config = replace(CONFIG, evaluate_every=1, select="b:m")
    with pytest.raises(Interrupt):
        run(tiny_backbone, tmp_path, config, evaluate=score(7))
    _, result = run(tiny_backbone, tmp_path, config, evaluate=score(0))
    assert result.best["step"] == 2
    assert checkpoint.describe(result.checkpoint)["details"]["steps"] == 2


def test_a_half_written_snapshot_and_history_line_are_ignored(tiny_backbone, tmp_path):
    whole, _ = run(tiny_backbone, tmp_path / "a")
    with pytest.raises(Interrupt):
        run(tiny_backbone, tmp_path / "b", replace(CONFIG, evaluate_every=1), evaluate=stop_at(7))
    out = tmp_path / "b"
    staged = out / "snapshots" / ".step-00000008.1234"
    staged.mkdir()
    (staged / "tensors").write_bytes(b"half")
    with open(out / "history.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    (out / "run.json").write_text((tmp_path / "a" / "run.json").read_text())
    resumed, _ = run(tiny_backbone, out)
    assert not staged.exists()
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert [line["step"] for line in history(out) if "loss" in line] == list(range(1, 13))


def test_a_damaged_snapshot_is_named(tiny_backbone, tmp_path):
    run(tiny_backbone, tmp_path)
    (tmp_path / "snapshots" / "step-00000012" / "tensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"step-00000012: not readable"):
        run(tiny_backbone, tmp_path)


def test_a_loss_that_is_not_finite_stops_with_step_and_last_good_snapshot(tiny_backbone, tmp_path, monkeypatch):
    honest = LinCIR.losses

    def losses(self, backbone, batch):
        terms = honest(self, backbone, batch)
        return {"mse": terms["mse"] * float("nan")} if batch.random.step == 9 else terms

    monkeypatch.setattr(LinCIR, "losses", losses)
    with pytest.raises(RunError, match=r"loss is \{'mse': nan\} at step 10; the last good snapshot is .*step-00000008"):
        run(tiny_backbone, tmp_path)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "snapshots/step-00000008/tensors").values())


def test_a_gradient_that_is_not_finite_stops(tiny_backbone, tmp_path, monkeypatch):
    honest = LinCIR.losses

    def losses(self, backbone, batch):
        terms = honest(self, backbone, batch)
        return {"mse": terms["mse"] + 0 * (terms["mse"] * 0).sqrt()}  # finite, its derivative is not

    monkeypatch.setattr(LinCIR, "losses", losses)
    with pytest.raises(RunError, match=r"gradient norm is nan at step 1; no snapshot was written yet"):
        run(tiny_backbone, tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "train.steps"),
        ({"batch": 9, "accumulate": 2}, "expected a multiple of 2"),
        ({"select": "b:m"}, "needs evaluations"),
        ({"precision": "float8"}, "train.precision"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"ema": 1.5}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_met_are_named(tiny_backbone, tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        run(tiny_backbone, tmp_path, replace(CONFIG, **changes))


def test_what_cannot_be_trained_is_refused(tiny_backbone, tmp_path):
    with pytest.raises(InputError, match="Sum is not trained"):
        train(build("sum", {}, tiny_backbone), tiny_backbone, captions(), CONFIG, tmp_path)
    with pytest.raises(InputError, match="holds no rows"):
        train(build("lincir", {}, tiny_backbone), tiny_backbone, [], CONFIG, tmp_path)
    config = replace(CONFIG, evaluate_every=2, select="bench:R@2")
    with pytest.raises(InputError, match=r"'bench:R@2' is not evaluated; did you mean 'bench:R@1'"):
        run(tiny_backbone, tmp_path, config, evaluate=stop_at(0))


# Data order


def test_every_epoch_visits_every_row_once_in_another_order():
    epochs = [rows_at(3, 7 * e, 7, 7) for e in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert rows_at(3, 5, 6, 7) == (epochs[0] + epochs[1])[5:11]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_each_micro_batch(size):
    for micro in range(2):
        bounds = [Share(16, 2, rank, size).bounds(micro) for rank in range(size)]
        covered = np.concatenate([np.arange(*b) for b in bounds])
        assert covered.tolist() == list(range(8 * micro, 8 * micro + 8))
