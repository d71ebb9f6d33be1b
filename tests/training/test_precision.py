from __future__ import annotations

import pytest
import torch
from torch import nn

from training.precision import fast_convolutions


class _Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 3, stride=2, bias=False)
        )


def test_the_fast_way_computes_the_same_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    net, maps = _Net(), torch.randn(2, 8, 12, 10)
    plain = net(maps)
    plain.sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with fast_convolutions(net, torch.device("cpu")):
        fast = net(maps)
        fast.sum().backward()
    torch.testing.assert_close(fast, plain)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all("forward" not in vars(module) for module in net)
    with fast_convolutions(net, torch.device("cuda")):
        assert all("forward" not in vars(module) for module in net)


def test_depthwise_convolutions_stay_in_float32_under_autocast() -> None:
    net, maps = _Net(), torch.randn(1, 8, 12, 10)
    with fast_convolutions(net, torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
        pointwise = net[0](maps)
        assert pointwise.dtype == torch.bfloat16
        assert net[1](pointwise).dtype == torch.float32


def test_the_plain_way_is_back_after_an_error() -> None:
    net = _Net()
    with pytest.raises(KeyboardInterrupt), fast_convolutions(net, torch.device("cpu")):
        raise KeyboardInterrupt
    assert all("forward" not in vars(module) for module in net)
