"""The images of a one-class comparison: surely good ones to train, the whole test part, the same pixels for all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from training.data import DataSet, Sample, read_data, read_frame
from vision.errors import DataError
from vision.model.backbone import Backbone, load_pretrained
from vision.preprocess import InputSpec, to_model_input
from vision.types import Frame

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class OneClass:
    """``train`` has good images alone; ``test`` the whole test part, of which ambiguous images are not measured."""

    data: DataSet
    train: tuple[Sample, ...]

    @property
    def test(self) -> tuple[Sample, ...]:
        return self.data.test


def one_class(data: DataSet) -> OneClass:
    """Leave out the training images that are, or may be, of defects.

    Raises:
        DataError: nothing is left to train with, or nothing to measure.
    """
    train = tuple(sample for sample in data.train if not sample.is_defect and not sample.is_ambiguous)
    if not train:
        raise DataError(f"{data.root} has no good training image; put some into train/good")
    kinds = {sample.is_defect for sample in data.test if not sample.is_ambiguous}
    if kinds != {True, False}:
        raise DataError(f"{data.root} needs good and defective test images; put them into test/good and test/<defect>")
    return OneClass(data, train)


def training_folder(source: str, folder: Path) -> str:
    """Where defectlens finds the same training images: ``source`` itself, or links to its good ones in ``folder``."""
    images = one_class(read_data(source))
    if len(images.train) == len(images.data.train):
        return source
    good = folder / TRAIN / "good"
    good.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(images.train):
        link = good / f"{index:05d}_{sample.path.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(sample.path.resolve())
    return str(folder)


def write_frames(images: OneClass, spec: InputSpec, folder: Path) -> str:
    """``train.npy`` and ``test.npy``, uint8 ``[N, H, W, 3]`` RGB as defectlens's own model sees them; their digest."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, samples in ((TRAIN, images.train), (TEST, images.test)):
        frames = np.stack([_input(sample, spec) for sample in samples])
        # A runner that has the old file open keeps it: written beside it and moved there.
        beside = folder / f"{name}.{os.getpid()}.npy"
        np.save(beside, frames)
        beside.replace(folder / f"{name}.npy")
        digest.update(frames.tobytes())
    return digest.hexdigest()


def write_weights(backbone: str, weights: Path | None, path: Path) -> tuple[list[float], list[float], str]:
    """The backbone's ImageNet weights with timm's names; their mean and deviation in 0..255, and their origin."""
    model = Backbone(backbone)
    origin = load_pretrained(model, weights)
    beside = path.with_suffix(f".{os.getpid()}")
    save_file({name: value.contiguous() for name, value in model.net.state_dict().items()}, beside)
    beside.replace(path)
    return model.mean.flatten().tolist(), model.std.flatten().tolist(), origin


def _input(sample: Sample, spec: InputSpec) -> Frame:
    return to_model_input(read_frame(sample.path, spec.white_level), spec)
