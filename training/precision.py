"""Convolutions that a CPU trains slowly in bfloat16, computed another way while training lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def fast_convolutions(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While the block runs on a CPU: depthwise convolutions in float32, 1×1 convolutions as matrix products.

    As plain bfloat16 convolutions the 5×5 depthwise ones take 3 times as long and the 1×1 ones 1.2 times (torch 2.15
    with AMX; figures in docs/experiments.md). The weights, and what is computed, stay the same; elsewhere nothing
    changes.
    """
    changed: list[nn.Conv2d] = []
    for module in model.modules() if device.type == "cpu" else ():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.groups == module.in_channels > 1:
            module.__dict__["forward"] = _in_float32(module.forward)
        elif module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1:
            module.__dict__["forward"] = _as_product(module)
        else:
            continue
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def wrapped(maps: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(maps.float())

    return wrapped


def _as_product(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    def wrapped(maps: Tensor) -> Tensor:
        product = F.linear(maps.permute(0, 2, 3, 1), module.weight.flatten(1), module.bias)
        return product.permute(0, 3, 1, 2)

    return wrapped
