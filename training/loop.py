"""The training loop: epochs of batches, validation, the epoch that is taken, every epoch a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from training import checkpoint
from training.batches import Batch, TrainingFrames, join
from training.objective import Objective
from training.options import Recipe, TrainOptions
from training.precision import computes_bfloat16, fast_training
from training.stores import Store
from training.validate import Validation
from vision.console import say, track
from vision.errors import SettingsError, TrainingError
from vision.model.detector import Detector

LAST, BEST = "last.safetensors", "best.safetensors"
_WARM_UP_SHARE = 0.05
_FINAL_LEARNING_RATE = 0.01
_CLIP_NORM = 1.0
_WEIGHT_DECAY = 0.02
# Frozen features of one stretch of an epoch may take this much memory.
_FEATURE_BYTES = 3 * 2**30


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; ``best`` is the validation figure of ``best_epoch`` (1-based), the one to be taken so far."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def make_accelerator(options: TrainOptions) -> Accelerator:
    """bfloat16 mixed precision where the CPU or the GPU has instructions for it, else float32.

    Raises:
        SettingsError: CUDA was asked for and there is none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda was asked for, but torch sees no GPU; use --device auto or cpu")
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    mixed = computes_bfloat16(torch.device("cpu" if on_cpu else "cuda"))
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if mixed else "no")


class Trainer:
    """Trains one detector.

    Args:
        detector: with pretrained backbone weights.
        frames: training frames of one epoch after another.
        validation: what each epoch is measured on; never test images. None: the last epoch is taken.
        run: folder for checkpoints and TensorBoard logs.
        later: epochs of the round that follows this one, for the time left that people are told.
    """

    def __init__(
        self,
        detector: Detector,
        recipe: Recipe,
        options: TrainOptions,
        store: Store,
        validation: Validation | None,
        run: Path,
        accelerator: Accelerator,
        later: int = 0,
    ) -> None:
        self._recipe, self._options, self._run, self._later = recipe, options, run, later
        self._accelerator = accelerator
        self._validation = validation
        self._takes_last = validation is None or recipe.takes_last
        self._frames = TrainingFrames(store, detector.config, recipe, options.seed)
        self._store = store
        self._objective = Objective(detector, recipe).to(memory_format=torch.channels_last)
        backbone = [parameter for parameter in detector.backbone.parameters() if parameter.requires_grad]
        in_backbone = {id(parameter) for parameter in detector.backbone.parameters()}
        heads = [parameter for parameter in self._objective.parameters() if id(parameter) not in in_backbone]
        groups = [{"params": heads, "lr": recipe.learning_rate}]
        if recipe.tune_backbone:
            groups.append({"params": backbone, "lr": recipe.backbone_learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        self._step_module, self._optimizer = accelerator.prepare(self._objective, optimizer)

    @property
    def detector(self) -> Detector:
        return self._objective.detector

    def fit(self, *, resume: bool, measure: bool = True) -> Progress:
        """Train to the end or to early stopping; the weights of the epoch taken are loaded when it returns.

        Args:
            measure: begin with the statistics of features that a reconstruction standardises by.
        """
        progress = self._start(resume=resume, measure=measure)
        if self._frames.left_out:
            shown = len(self._frames)
            say(f"an epoch draws {shown} images of {shown + self._frames.left_out}, others each time")
        logs = SummaryWriter(str(self._run / "tensorboard"), purge_step=progress.step)
        with logs as writer, fast_training(self.detector, self._accelerator.device):
            while self._epochs_left(progress):
                progress = self._epoch(progress, writer)
        checkpoint.load(self._run / BEST, self.detector)
        return progress

    def _epochs_left(self, progress: Progress) -> int:
        """At most; none where there were too many without a better one."""
        patience = self._options.patience or max(4, self._recipe.epochs // 2)
        if progress.epoch - progress.best_epoch >= patience:  # never where the last one is taken
            return 0
        return max(0, self._recipe.epochs - progress.epoch)

    def _start(self, *, resume: bool, measure: bool) -> Progress:
        last = self._run / LAST
        if resume and last.is_file():
            progress = Progress(**checkpoint.load(last, self.detector, self._optimizer))
            say(f"resuming after epoch {progress.epoch} of {self._recipe.epochs}")
            return progress
        if measure and self.detector.reconstruction is not None:
            self._measure_features()
        return Progress()

    def _epoch(self, progress: Progress, writer: SummaryWriter) -> Progress:
        epoch, started = progress.epoch + 1, time.monotonic()
        # Dropout draws from torch's generator: seeding it here makes a resumed epoch the same as an uninterrupted one.
        torch.manual_seed(self._options.seed * 100_003 + epoch)
        self._frames.set_epoch(epoch)
        self._step_module.train()
        sums: dict[str, float] = {}
        steps, step = self._steps_an_epoch(), progress.step
        what = f"epoch {epoch}/{self._recipe.epochs}"
        for count, (batch, features) in enumerate(track(self._batches(), what, total=steps, unit="steps"), 1):
            self._set_rate(progress.epoch + min(1.0, count / steps))
            parts = self._step(batch, features)
            step += 1
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
        losses = {name: value / max(1, step - progress.step) for name, value in sums.items()}
        figure, figures = 0.0, dict[str, float]()
        if self._validation is not None:
            figure, figures = self._validation.measure(self.detector, self._accelerator)
        for name, value in {**{f"loss/{key}": value for key, value in losses.items()}, **figures}.items():
            writer.add_scalar(name, value, step)
        better = self._takes_last or figure >= progress.best
        following = Progress(
            epoch=epoch,
            step=step,
            best=figure if better else progress.best,
            best_epoch=epoch if better else progress.best_epoch,
            seconds=progress.seconds + time.monotonic() - started,
        )
        if self._accelerator.is_main_process:
            state = {name: getattr(following, name) for name in Progress.__dataclass_fields__}
            if better:
                checkpoint.save(self._run / BEST, self.detector, None, state)
            checkpoint.save(self._run / LAST, self.detector, self._optimizer, state)
        self._accelerator.wait_for_everyone()
        shown = " ".join(f"{name} {value:.3f}" for name, value in {**losses, **figures}.items())
        left = time_left(following, self._epochs_left(following) + self._later)
        say(f"epoch {epoch}/{self._recipe.epochs}: {shown} ({time.monotonic() - started:.0f} s{left})")
        return following

    def _step(self, batch: Batch, features: list[Tensor] | None) -> dict[str, float]:
        with self._accelerator.autocast():
            loss, parts = self._step_module(batch, features)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value}; lower the learning rate or look at the data, then --resume")
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._step_module.parameters(), _CLIP_NORM)
        self._optimizer.step()
        return {name: float(part) for name, part in parts.items()}

    def _batches(self) -> Iterator[tuple[Batch, list[Tensor] | None]]:
        device = self._accelerator.device
        if self._recipe.tune_backbone:
            for batch in self._loader(self._options.batch):
                if len(batch) > 1:  # batch statistics need more than one frame
                    yield batch.to(device), None
            return
        stretch: list[tuple[Batch, list[Tensor]]] = []
        for batch in self._loader(self._options.batch // 2):
            stretch.append((batch, self._extract(batch)))
            if sum(len(part) for part, _ in stretch) * self._bytes_a_frame(stretch) > _FEATURE_BYTES:
                yield from self._passes(stretch)
                stretch = []
        if stretch:
            yield from self._passes(stretch)

    def _passes(self, stretch: list[tuple[Batch, list[Tensor]]]) -> Iterator[tuple[Batch, list[Tensor]]]:
        """Frozen features again and again, each time in another order; pairs stay together in their batch."""
        device = self._accelerator.device
        for _ in range(self._recipe.passes):
            for index in torch.randperm(len(stretch)).tolist():
                batch, features = stretch[index]
                yield batch.to(device), [level.to(device) for level in features]

    @torch.no_grad()
    def _extract(self, batch: Batch) -> list[Tensor]:
        with self._accelerator.autocast():
            features = self.detector.backbone(batch.frames.to(self._accelerator.device))
        return [level.to("cpu") for level in features]

    @staticmethod
    def _bytes_a_frame(stretch: list[tuple[Batch, list[Tensor]]]) -> int:
        batch, features = stretch[0]
        return sum(level.numel() * level.element_size() for level in features) // max(1, len(batch))

    def _loader(self, items: int) -> Iterable[Batch]:
        workers = 0 if self._accelerator.device.type == "cpu" else 8
        loader = DataLoader(self._frames, batch_size=items, collate_fn=join, num_workers=workers)
        state = self._accelerator
        if state.num_processes == 1:
            return loader
        # Whole batches are dealt out; a share left over at the end is dropped, so that all processes step together.
        whole = len(loader) // state.num_processes
        return (
            batch
            for index, batch in enumerate(loader)
            if index % state.num_processes == state.process_index and index // state.num_processes < whole
        )

    def _steps_an_epoch(self) -> int:
        items = self._options.batch if self._recipe.tune_backbone else self._options.batch // 2
        batches = math.ceil(len(self._frames) / items)
        return max(1, batches // int(self._accelerator.num_processes)) * self._recipe.passes

    def _set_rate(self, epochs: float) -> None:
        done = epochs / self._recipe.epochs
        warm = min(1.0, done / _WARM_UP_SHARE)
        cosine = _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * warm * cosine

    @torch.no_grad()
    def _measure_features(self) -> None:
        """Mean and deviation of every channel over the good training frames, for the reconstruction."""
        detector = self.detector
        if detector.reconstruction is None:
            return
        detector.eval()
        good = [i for i, sample in enumerate(self._store.samples) if sample.label == detector.config.good_class]
        sums: list[Tensor] = []
        squares: list[Tensor] = []
        count = 0
        chunks = [good[start : start + 32] for start in range(0, len(good), 32)]
        for chunk in track(chunks, "measuring features", unit="batches"):
            frames = torch.from_numpy(np.stack([self._store[index][0] for index in chunk]))
            with self._accelerator.autocast():
                features = detector.backbone(frames.to(self._accelerator.device))[1:]
            levels = [level.double() for level in features]
            sums = _add(sums, [level.mean(dim=(2, 3)).sum(dim=0) for level in levels])
            squares = _add(squares, [level.square().mean(dim=(2, 3)).sum(dim=0) for level in levels])
            count += len(chunk)
        means = [total / count for total in sums]
        deviations = [(total / count - mean**2).clamp(min=0).sqrt() for total, mean in zip(squares, means, strict=True)]
        detector.reconstruction.set_statistics(means, deviations)


def _add(totals: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    return values if not totals else [total + value for total, value in zip(totals, values, strict=True)]


def time_left(progress: Progress, epochs: int) -> str:
    """About how long so many more epochs take, in words; early stopping makes it less. Nothing where there are none."""
    if not epochs:
        return ""
    return f"; about {math.ceil(epochs * progress.seconds / progress.epoch / 60)} min of training left"


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


__all__ = ["BEST", "LAST", "Progress", "Trainer", "make_accelerator", "parameters", "time_left"]
