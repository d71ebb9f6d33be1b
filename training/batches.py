"""From samples to tensors: frames at input size, augmented or given a defect, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from training.augment import Augmentation
from training.copy_paste import CopyPaste, copied_shares
from training.data import NO_DEFECT, Sample
from training.options import Recipe
from training.stores import Store
from training.synthesis import add_defect
from vision.model.config import ModelConfig
from vision.model.localizer import MAP_STRIDE

# An epoch draws no more images than this: learning goes by steps, and a week's production would take days.
_EPOCH_DRAWS = 4096


@dataclass
class Batch:
    """Tensors of N frames.

    ``frames`` uint8 ``[N, H, W, 3]``; ``mask`` float ``[N, H/4, W/4]`` in 0..1, used where ``has_mask`` ``[N]``;
    ``target`` float ``[N, C]`` soft class target (a row of zeros: the class is not known); ``defect`` float ``[N]`` in
    0..1; ``defect_class`` long ``[N]``, index among the defect classes or −1; ``clean_row`` long ``[N]``, the row that
    shows the same frame without its defect (itself for good frames), −1 where there is none.
    """

    frames: Tensor
    mask: Tensor
    has_mask: Tensor
    target: Tensor
    defect: Tensor
    defect_class: Tensor
    clean_row: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, entry.name).to(device, non_blocking=True) for entry in fields(self)))

    def __len__(self) -> int:
        return int(self.frames.shape[0])


def join(parts: Sequence[Batch]) -> Batch:
    """Stack batches; rows that point at each other keep doing so."""
    offset = 0
    columns: dict[str, list[Tensor]] = {entry.name: [] for entry in fields(Batch)}
    for part in parts:
        for name, column in columns.items():
            value = getattr(part, name)
            column.append(torch.where(value >= 0, value + offset, value) if name == "clean_row" else value)
        offset += len(part)
    return Batch(**{name: torch.cat(column) for name, column in columns.items()})


def draws(labels: Sequence[str]) -> dict[str, float]:
    """How often an image of each label is drawn in an epoch: on average once, rare labels more often, by the root of
    their number.
    """
    counts = Counter(labels)
    usual = len(labels) / sum(count**0.5 for count in counts.values())
    return {label: usual * count**-0.5 for label, count in counts.items()}


def shown(samples: Sequence[Sample], good: str | None, copies: float) -> dict[str, float]:
    """How often an epoch that is not cut short shows an image of each label, on average: as often as it is drawn, but
    the share ``copies`` of the good ones has a copy of a defect and its label.
    """
    labels = [sample.label for sample in samples]
    often, counts, shares = draws(labels), Counter(labels), copied_shares(samples, good)
    if good not in often or not shares:
        return often
    copied = copies * often[good] * counts[good]
    often[good] *= 1.0 - copies
    return {label: times + copied * shares.get(label, 0.0) / counts[label] for label, times in often.items()}


class TrainingFrames(Dataset[Batch]):
    """Item *i* of an epoch: one row, or two where a good frame also appears with a defect.

    Every draw depends on (seed, epoch, item) alone: a resumed run sees what an uninterrupted one would have seen.
    """

    def __init__(self, store: Store, config: ModelConfig, recipe: Recipe, seed: int) -> None:
        self._store = store
        self._config = config
        self._recipe = recipe
        self._seed = seed
        self._augment = Augmentation(flips=recipe.flips, strength=recipe.augmentation)
        self._good: list[int] = []
        self._order: list[int] = []
        self.left_out = 0
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the epoch's order: each sample about once, rare classes more often (by the root of their number). Where
        these are too many for one epoch, ``left_out`` draws are not made, whichever these are.
        """
        self._epoch = epoch
        self._store.set_epoch(epoch)
        rng = np.random.default_rng((self._seed, epoch))
        labels = [sample.label for sample in self._store.samples]
        self._copy_paste = CopyPaste(self._store, self._config.good_class, self._augment)
        self._good = [index for index, label in enumerate(labels) if label == self._config.good_class]
        often = draws(labels)
        times = np.floor(np.array([often[label] for label in labels]) + rng.random(len(labels))).astype(int)
        drawn = rng.permutation(np.repeat(np.arange(len(labels)), times))
        self._order = [int(index) for index in drawn[:_EPOCH_DRAWS]]
        self.left_out = len(drawn) - len(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, item: int) -> Batch:
        index = self._order[item]
        rng = np.random.default_rng((self._seed, self._epoch, item, 1))
        frame, mask = self._augment(*self._store[index], seed=int(rng.integers(2**32)))
        sample = self._store.samples[index]
        row = self._row(frame, mask, sample)
        if sample.label != self._config.good_class:
            return row
        copied = self._copied_row(frame, rng)
        if not self._recipe.synthetic:
            return row if copied is None else copied
        pair = join([row, self._synthetic_row(frame, rng) if copied is None else copied])
        pair.clean_row = torch.zeros(2, dtype=torch.long)  # both rows show the frame that row 0 shows undamaged
        return pair

    def _row(self, frame: NDArray[np.uint8], mask: NDArray[np.uint8], sample: Sample) -> Batch:
        classes, good = self._config.classes, self._config.good_class
        is_good = sample.label == good
        target = torch.zeros(1, len(classes))
        clean = is_good or sample.label == NO_DEFECT
        if good is None:
            target[0] = torch.tensor([float(name == sample.label) for name in classes])
        else:
            defect_class = classes[1] if is_good else sample.label
            target[0, classes.index(defect_class)] = sample.defect_probability
            target[0, 0] = 1.0 - sample.defect_probability
        return Batch(
            frames=torch.from_numpy(frame)[None],
            mask=_shrink(mask),
            # A cell that is perhaps defective has no known mask, not an empty one.
            has_mask=torch.tensor([sample.mask is not None or (clean and not sample.is_ambiguous)]),
            target=target,
            defect=torch.tensor([sample.defect_probability], dtype=torch.float32),
            defect_class=torch.tensor([-1 if clean else self._config.defect_classes.index(sample.label)]),
            clean_row=torch.tensor([0 if is_good else -1]),
        )

    def _copied_row(self, frame: NDArray[np.uint8], rng: np.random.Generator) -> Batch | None:
        """In some cases: the frame with a labelled defect of another one, if there are such."""
        if not self._recipe.copy_paste or rng.random() >= self._recipe.copy_paste:
            return None
        pasted = self._copy_paste(frame, rng)
        return None if pasted is None else self._row(*pasted)

    def _synthetic_row(self, frame: NDArray[np.uint8], rng: np.random.Generator) -> Batch:
        other, _ = self._store[self._good[int(rng.integers(len(self._good)))]]
        damaged, mask = add_defect(frame, other, rng)
        target = torch.zeros(1, len(self._config.classes))
        if self._config.classes[1:] == ("anomaly",):
            target[0, 1] = 1.0  # the only case in which the class of a synthetic defect is known
        return Batch(
            frames=torch.from_numpy(damaged)[None],
            mask=_shrink(mask),
            has_mask=torch.tensor([True]),
            target=target,
            defect=torch.ones(1),
            defect_class=torch.tensor([-1]),
            clean_row=torch.tensor([-1]),
        )


def _shrink(mask: NDArray[np.uint8]) -> Tensor:
    """Mask to the map's grid: 1 where a quarter of the cell is defective, the covered share below that."""
    height, width = mask.shape[0] // MAP_STRIDE, mask.shape[1] // MAP_STRIDE
    cells = mask.reshape(height, MAP_STRIDE, width, MAP_STRIDE).astype(np.float32).mean(axis=(1, 3))
    return torch.from_numpy(np.where(cells >= 0.25, 1.0, cells).astype(np.float32))[None]
