"""What a CPU trains slowly in bfloat16, computed another way while training lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from vision.model.attention import DenseAttention

# Without one of them torch converts to float32 and back around each operation.
_BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the CPU (of x86: nothing was measured on others) or the GPU computes in bfloat16, and does not merely
    emulate it: on a CPU without the instructions at 1.6 times the time of float32 (docs/experiments.md), on a GPU older
    than NVIDIA's Ampere.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)


@contextmanager
def fast_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While the block runs on a CPU, what needs a gradient is computed in the way whose gradient is cheap.

    Depthwise convolutions have their backward pass in float32, 1×1 convolutions are matrix products, and dense
    attention is in float32: as bfloat16 the backward passes of the first and the last take 3 and 4 times as long (torch
    2.15 with AMX; figures in docs/experiments.md). Weights, and what is computed, stay the same; what is computed
    without a gradient, and other devices, change nothing.
    """
    changed: list[tuple[nn.Module, str]] = []
    for module in model.modules() if device.type == "cpu" else ():
        name = "forward"
        if isinstance(module, DenseAttention):
            name, fast = "attend", _attention_in_float32(module.attend)
        elif not isinstance(module, nn.Conv2d):
            continue
        elif module.groups == module.in_channels > 1 and type(module) in (nn.Conv2d, Conv2dSame):
            fast = _depthwise(module)
        elif module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1:
            fast = _as_product(module)
        else:
            continue
        module.__dict__[name] = _where_a_gradient_is_needed(module, getattr(module, name), fast)
        changed.append((module, name))
    try:
        yield
    finally:
        for module, name in changed:
            del module.__dict__[name]


def _where_a_gradient_is_needed(
    module: nn.Module, plain: Callable[..., Tensor], fast: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    trained = any(parameter.requires_grad for parameter in module.parameters())

    def wrapped(maps: Tensor, *others: Any) -> Tensor:
        needed = torch.is_grad_enabled() and (trained or maps.requires_grad)
        return fast(maps, *others) if needed else plain(maps, *others)

    return wrapped


def _attention_in_float32(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapped(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), grid)

    return wrapped


def _depthwise(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    same = isinstance(module, Conv2dSame)  # timm's, with the uneven padding of TensorFlow

    def wrapped(maps: Tensor) -> Tensor:
        stride, dilation = module.stride, module.dilation
        if same:
            maps = pad_same(maps, module.kernel_size, stride, dilation)
        padding = (0, 0) if same else module.padding
        return torch.as_tensor(_Depthwise.apply(maps, module.weight, module.bias, stride, padding, dilation))

    return wrapped


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution that is forward as autocast would have it, and backward in float32."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
    ) -> Tensor:
        context.save_for_backward(maps, weight)
        context.shape = (None if bias is None else list(bias.shape), stride, padding, dilation)
        return F.conv2d(maps, weight, bias, stride, padding, dilation, groups=len(weight))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = context.saved_tensors
        bias, stride, padding, dilation = context.shape
        wanted = context.needs_input_grad[:3]
        to_maps, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradient.float(),
            maps.float(),
            weight.float(),
            bias,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            len(weight),
            wanted,
        )
        return None if to_maps is None else to_maps.to(maps.dtype), to_weight, to_bias, None, None, None


def _as_product(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    def wrapped(maps: Tensor) -> Tensor:
        product = F.linear(maps.permute(0, 2, 3, 1), module.weight.flatten(1), module.bias)
        return product.permute(0, 3, 1, 2)

    return wrapped
