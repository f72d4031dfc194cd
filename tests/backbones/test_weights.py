"""Which device a process takes."""

import pytest
import torch

from cir.backbones.weights import pick_device


@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize(("rank", "index"), [("0", 0), ("1", 1), ("5", 1)])
def test_processes_share_out_the_gpus(monkeypatch, asked, rank, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device(asked) == torch.device("cuda", index)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == torch.device("cpu")
