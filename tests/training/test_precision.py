from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from training.precision import computes_bfloat16, fast_training
from vision.model.attention import DenseAttention


class _Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(8, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            Conv2dSame(16, 16, 5, stride=2, groups=16, bias=False),
            nn.Conv2d(16, 8, 3, stride=2, bias=False),
        )


class _Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = DenseAttention(16, 2)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.as_tensor(self.attention(maps.flatten(2).transpose(1, 2), maps.shape[-2:]))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),  # Ice Lake
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),  # Zen 4
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, True),  # Sapphire Rapids
        ({"architecture": "arm64", "neon": True}, False),
    ],
)
def test_a_cpu_without_instructions_for_it_only_emulates_bfloat16(
    capabilities: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True)])  # Turing, Ampere
def test_an_older_gpu_only_emulates_bfloat16(major: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    assert computes_bfloat16(torch.device("cuda")) is expected


@pytest.mark.parametrize("make", [_Net, _Attending])
def test_the_fast_way_computes_the_same_and_leaves_no_trace(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, maps = make(), torch.randn(2, 8 if make is _Net else 16, 13, 10, requires_grad=True)
    plain = net(maps)
    plain.square().sum().backward()
    expected = [*(parameter.grad.clone() for parameter in net.parameters()), maps.grad.clone()]
    net.zero_grad()
    maps.grad = None
    with fast_training(net, torch.device("cpu")):
        fast = net(maps)
        fast.square().sum().backward()
    torch.testing.assert_close(fast, plain)
    for parameter, gradient in zip([*net.parameters(), maps], expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert _untouched(net)
    with fast_training(net, torch.device("cuda")):
        assert _untouched(net)


def test_depthwise_convolutions_are_bfloat16_forward_and_float32_backward() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    maps, gradient = torch.randn(4, 16, 40, 40).bfloat16(), torch.randn(4, 16, 40, 40).bfloat16()
    with fast_training(layer, torch.device("cpu")), torch.autocast("cpu", torch.bfloat16):
        found = layer(maps)
    assert found.dtype == torch.bfloat16
    found.backward(gradient)
    exact = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    exact.load_state_dict(layer.state_dict())
    exact(maps.float()).backward(gradient.float())
    torch.testing.assert_close(layer.weight.grad, exact.weight.grad, rtol=1e-5, atol=1e-3)  # bfloat16 would keep 1e-2
    torch.testing.assert_close(layer.bias.grad, exact.bias.grad, rtol=1e-5, atol=1e-3)


def test_what_needs_no_gradient_is_computed_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, maps = _Net().requires_grad_(False), torch.randn(1, 8, 12, 10)
    monkeypatch.setattr("training.precision._Depthwise.apply", lambda *_: pytest.fail("the fast way was taken"))
    with fast_training(frozen, torch.device("cpu")):
        frozen(maps)
    trained = _Net()
    with fast_training(trained, torch.device("cpu")), torch.no_grad():
        trained(maps)


def test_the_plain_way_is_back_after_an_error() -> None:
    net = _Net()
    with pytest.raises(KeyboardInterrupt), fast_training(net, torch.device("cpu")):
        raise KeyboardInterrupt
    assert _untouched(net)


def _untouched(net: nn.Module) -> bool:
    return all("forward" not in vars(module) and "attend" not in vars(module) for module in net.modules())
