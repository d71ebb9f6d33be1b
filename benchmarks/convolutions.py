"""How long convolutions of EfficientNet-Lite0 take to train on this CPU, plain and as `training.precision` runs them.

    python -m benchmarks.convolutions

Prints one row a layer: forward and backward in ms under bfloat16 autocast, and the ratio of their sums.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time

import torch
from torch import Tensor, nn

from training.precision import fast_training

# (name, layer, input) as they occur at 224x288 px, batch 16.
LAYERS = (
    ("depthwise 5x5/2, 144 ch, 59x75", nn.Conv2d(144, 144, 5, 2, groups=144, bias=False), (16, 144, 59, 75)),
    ("depthwise 5x5, 672 ch, 14x18", nn.Conv2d(672, 672, 5, padding=2, groups=672, bias=False), (16, 672, 14, 18)),
    ("depthwise 3x3, 64 ch, 28x36", nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), (16, 64, 28, 36)),
    ("1x1, 1152 to 192 ch, 7x9", nn.Conv2d(1152, 192, 1, bias=False), (16, 1152, 7, 9)),
    ("1x1, 64 to 64 ch, 56x72", nn.Conv2d(64, 64, 1, bias=False), (16, 64, 56, 72)),
)
ROUNDS = 6


def milliseconds(layer: nn.Module, maps: Tensor) -> tuple[float, float]:
    """The fastest forward and backward pass of some, the first left out."""
    forward, backward = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(maps)
        middle = time.perf_counter()
        result.backward(torch.ones_like(result))
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    return 1000 * min(forward[1:]), 1000 * min(backward[1:])


def main() -> None:
    print(f"{'layer':<32} {'plain fwd':>10} {'bwd':>8} {'fast fwd':>10} {'bwd':>8} {'ratio':>7}")
    for name, layer, shape in LAYERS:
        net = nn.Sequential(layer).to(memory_format=torch.channels_last)
        maps = torch.randn(shape).to(torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_(True)
        plain = milliseconds(net, maps)
        with fast_training(net, torch.device("cpu")):
            fast = milliseconds(net, maps)
        row = "".join(f"{value:>{width}.1f}" for value, width in zip((*plain, *fast), (11, 9, 11, 9), strict=True))
        print(f"{name:<32}{row} {sum(plain) / sum(fast):>6.1f}x")


if __name__ == "__main__":
    main()
