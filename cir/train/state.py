"""The tensors of a snapshot: trained weights, their moving average, the optimizer's moments."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cir.optim import Average


def pack(
    named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, average: Average | None
) -> dict[str, Tensor]:
    """Name every tensor the next step depends on."""
    tensors: dict[str, Tensor] = {f"weights/{name}": parameter for name, parameter in named.items()}
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.values.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in entry.items()}
    return tensors


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> None:
    """Put packed tensors back, bit for bit."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "weights":
            named[rest].copy_(tensor)
        elif kind == "average" and average is not None:
            average.values[rest].copy_(tensor)
        else:
            index, _, key = rest.partition("/")
            entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
