"""The tensors of a snapshot: trained weights, their moving average, the optimizer's moments, the method's buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cir.optim import Average


def pack(
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    method: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Name every tensor the next step depends on; of `method`, what it keeps in buffers (a memory of past batches)."""
    tensors: dict[str, Tensor] = {f"weights/{name}": parameter for name, parameter in named.items()}
    tensors |= {f"buffers/{name}": value for name, value in buffers(method).items()}
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.values.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in entry.items()}
    return tensors


def buffers(method: nn.Module | None) -> dict[str, Tensor]:
    """List the buffers that belong to a method's state: those that are not marked as computed again."""
    if method is None:
        return {}
    parameters = {name for name, _ in method.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in method.state_dict().items() if name not in parameters}


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    method: nn.Module | None = None,
) -> None:
    """Put packed tensors back, bit for bit."""
    kept = buffers(method)
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "weights":
            named[rest].copy_(tensor)
        elif kind == "buffers":
            kept[rest].copy_(tensor)
        elif kind == "average" and average is not None:
            average.values[rest].copy_(tensor)
        else:
            index, _, key = rest.partition("/")
            entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
