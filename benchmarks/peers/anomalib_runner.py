"""One of anomalib's models, fitted and asked; runs in an environment of its own, which ``benchmarks.accuracy`` is told.

    python anomalib_runner.py JOB.json

The job names the frames (uint8 ``[N, H, W, 3]`` RGB at the model's input size, already as defectlens would see them),
the backbone's weights and what the model is given; see ``Job``. Written into the job's folder: ``outputs.npz`` (scores
``[N]``, maps ``[N, H, W]``, higher is worse), ``model.pt`` (what inference needs), ``model.onnx`` where anomalib can
export it, and last ``figures.json``. Nothing of defectlens is imported here, and anomalib nowhere else.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import nn

_FEATURE_STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
"""What a ResNet, which the papers and anomalib's defaults speak of, calls its stages, and their strides."""


@dataclass(frozen=True)
class Job:
    """``mean`` and ``std`` are those of the backbone's weights, in 0..255; ``options`` go to the peer's maker.

    ``epochs``: 1 for peers that only look at each frame once.
    """

    peer: str
    digest: str
    train: str
    test: str
    weights: str
    backbone: str
    mean: list[float]
    std: list[float]
    epochs: int
    batch: int
    seed: int
    threads: int
    options: dict[str, Any]


def layers(names: Sequence[str], infos: Sequence[dict[str, Any]]) -> list[str]:
    """The backbone's own names of the layers at the strides of a ResNet's ``names``.

    Raises:
        ValueError: it has none at such a stride.
    """
    found = {info["reduction"]: info["module"] for info in infos}
    wanted = [_FEATURE_STRIDES[name] for name in names]
    if missing := [stride for stride in wanted if stride not in found]:
        raise ValueError(f"the backbone has no features at strides {missing}; it has {sorted(found)}")
    return [found[stride] for stride in wanted]


def with_weights(create: Callable[..., nn.Module], path: Path) -> Callable[..., nn.Module]:
    """``timm.create_model`` that takes ImageNet weights from a file, where anomalib would have them downloaded."""
    tensors = load_file(path)

    def create_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        model = create(name, pretrained=False, **options)
        if pretrained:
            model.load_state_dict({key: tensors[key] for key in model.state_dict()})
        return model

    return create_model


class Frames(torch.utils.data.Dataset[torch.Tensor]):
    """float32 ``[3, H, W]`` in 0..1 of a file of frames."""

    def __init__(self, path: str) -> None:
        self._frames = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self._frames[index])).permute(2, 0, 1).float().div_(255.0)


def batches(frames: Frames, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(frames), size):
        yield torch.stack([frames[index] for index in range(start, min(start + size, len(frames)))])


def values_of_layer(backbone: str, layer: str, size: tuple[int, int], pooling: int) -> int:
    """How many numbers a layer of the backbone has of one frame, averaged over cells of ``pooling`` places a side."""
    net = timm.create_model(backbone, features_only=True)
    index = net.feature_info.module_name().index(layer)
    with torch.no_grad():
        features = net.eval()(torch.zeros(1, 3, *size))[index]
    _, channels, rows, columns = features.shape
    return int(channels * (rows // pooling) * (columns // pooling))


def build(job: Job, size: tuple[int, int]) -> Any:
    """The peer's Lightning module for frames of ``size``, with anomalib's defaults but for what the job says."""
    from anomalib import models
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Normalize

    scale = Normalize([value / 255.0 for value in job.mean], [value / 255.0 for value in job.std])
    plain = {"pre_processor": PreProcessor(scale), "post_processor": False, "evaluator": False, "visualizer": False}
    options = dict(job.options)
    infos = timm.create_model(job.backbone, features_only=True).feature_info.info
    if "layers" in options:
        options["layers"] = layers(options["layers"], infos)
    if "layer" in options:
        options["layer"] = layers([options["layer"]], infos)[0]
    if "pooling_kernel_size" in options:  # FRE's encoder has as many inputs as the layer has values
        options["input_dim"] = values_of_layer(job.backbone, options["layer"], size, options["pooling_kernel_size"])
    return getattr(models, job.peer)(backbone=job.backbone, **options, **plain)


def fit(model: Any, frames: Frames, job: Job, folder: Path) -> None:
    """Anomalib's own engine, for a fixed number of epochs; the weights of the last one stay."""
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine

    def collate(images: list[torch.Tensor]) -> Any:
        return ImageBatch(image=torch.stack(images), gt_label=torch.zeros(len(images), dtype=torch.long))

    loader = torch.utils.data.DataLoader(frames, job.batch, shuffle=True, collate_fn=collate)
    engine = Engine(
        default_root_dir=folder / "engine",
        max_epochs=job.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
    )
    engine.fit(model, train_dataloaders=loader)
    shutil.rmtree(folder / "engine", ignore_errors=True)  # the checkpoints


def predict(model: Any, frames: Frames, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[N]`` and maps ``[N, H, W]``."""
    scores, maps = [], []
    model.eval()
    with torch.no_grad():
        for images in batches(frames, batch):
            answer = model(images)
            scores.append(answer.pred_score.reshape(len(images)).float().numpy())
            maps.append(answer.anomaly_map.reshape(len(images), *images.shape[-2:]).float().numpy())
    return np.concatenate(scores), np.concatenate(maps)


def export(model: Any, size: tuple[int, int], folder: Path) -> str | None:
    """Write ``model.onnx``; why it cannot be had, or None."""
    try:
        # One frame a run, as its latency is measured: with a free batch size some graphs take two frames and no other.
        path = Path(model.to_onnx(folder / "exported", input_size=size, opset_version=20, dynamic_shapes=None))
        # Weights beside the graph stay beside it.
        for file in path.parent.iterdir():
            shutil.move(file, folder / file.name)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    finally:
        shutil.rmtree(folder / "exported", ignore_errors=True)
    return None


def run(job: Job, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(job.threads)
    import lightning

    timm.create_model = with_weights(timm.create_model, Path(job.weights))
    lightning.seed_everything(job.seed, verbose=False)
    train, test = Frames(job.train), Frames(job.test)
    size = tuple(train[0].shape[-2:])
    model = build(job, size)
    # The CPU's time, unlike the wall clock's, does not run while others hold the cores.
    wall, cpu = time.monotonic(), time.process_time()
    fit(model, train, job, folder)
    figures: dict[str, Any] = {"fit_seconds": time.monotonic() - wall, "fit_cpu_seconds": time.process_time() - cpu}
    figures["peak_mib"] = _peak_mib()
    torch.save(model.model.state_dict(), folder / "model.pt")
    scores, maps = predict(model, test, job.batch)
    np.savez(folder / "outputs.npz", scores=scores, maps=maps)
    figures["model_bytes"] = (folder / "model.pt").stat().st_size
    figures["export_error"] = export(model, size, folder)
    names = ("anomalib", "lightning", "torch", "timm")
    figures["versions"] = {name: version(name) for name in names}
    return figures


def _peak_mib() -> float:
    """The most memory this process had resident; ``ru_maxrss`` would begin with that of the process it came from."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main(path: str) -> None:
    job_file = Path(path)
    figures = run(Job(**json.loads(job_file.read_text(encoding="utf-8"))), job_file.parent)
    (job_file.parent / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
