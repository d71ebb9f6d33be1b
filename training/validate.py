"""One figure after each epoch, on validation frames: what an early end and a choice of the epoch go by."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from training.masks import mask_on_grid
from training.metrics import image_auroc
from training.options import Recipe
from training.probes import in_turns
from training.stores import FrameStore
from training.synthesis import add_defect_in
from vision.model.config import ModelConfig
from vision.model.detector import Detector, DetectorOutputs

# After every epoch no more frames than this are looked at, and no more than fit into so much memory with their masks.
_MOST_FRAMES, _MOST_BYTES = 1024, 2 * 2**30


class Validation:
    """Validation frames, kept as they are, and, for a recipe with synthetic defects, each good one again with a defect.
    Of very many a selection, as even over the labels as they allow.

    The figure is the mean of what the data allow: image AUROC of each signal, mean recall over the classes, and Dice of
    the mask.
    """

    def __init__(self, store: FrameStore, config: ModelConfig, recipe: Recipe, seed: int) -> None:
        frames, masks, labels, defective = [], [], [], []
        rng = np.random.default_rng((seed, 7))
        for index in _selection(store, seed, copies=2 if recipe.synthetic else 1):
            sample, (frame, mask) = store.samples[index], store[index]
            frames.append(frame)
            masks.append(mask)
            labels.append(config.classes.index(sample.label))
            defective.append(sample.label != config.good_class)
            if recipe.synthetic and sample.label == config.good_class:
                other = store[int(rng.integers(len(store)))][0]
                damaged, damage = add_defect_in(frame, other, rng, config.piece)
                frames.append(damaged)
                masks.append(damage)
                labels.append(1 if config.classes[1:] == ("anomaly",) else -1)
                defective.append(True)
        self._frames, self._masks = frames, masks
        self._labels = np.array(labels)
        self._defective = np.array(defective)

    def measure(self, detector: Detector, accelerator: Accelerator) -> tuple[float, dict[str, float]]:
        """The figure (higher is better) and its parts, named for the log."""
        if not self._frames:
            return 0.0, {}
        rows = self._run(detector, accelerator)
        predicted = np.concatenate([row["predicted"] for row in rows])
        parts = {"val/recall": _mean_recall(self._labels, predicted)}
        for name in ("mask", "reconstruction"):
            if name in rows[0]:
                scores = np.concatenate([row[name] for row in rows])
                parts[f"val/auroc_{name}"] = image_auroc(scores, self._defective)
        if "overlap" in rows[0]:
            overlap, total = (sum(float(row[key].sum()) for row in rows) for key in ("overlap", "total"))
            if total:
                parts["val/dice"] = 2 * overlap / total
        parts = {name: value for name, value in parts.items() if np.isfinite(value)}
        return float(np.mean(list(parts.values()))) if parts else 0.0, parts

    @torch.no_grad()
    def _run(self, detector: Detector, accelerator: Accelerator) -> list[dict[str, NDArray[np.float32]]]:
        detector.eval()
        rows = []
        batch = detector.config.inference_batch
        for start in range(0, len(self._frames), batch):
            frames = torch.from_numpy(np.stack(self._frames[start : start + batch])).to(accelerator.device)
            with accelerator.autocast():
                outputs: DetectorOutputs = detector(frames)
            row: dict[str, Tensor] = {"predicted": outputs.class_logits.argmax(dim=1)}
            if outputs.mask_logits is not None:
                logits = outputs.mask_logits[:, 0]
                row["mask"] = detector.pool(logits)
                masks = [mask_on_grid(mask, logits.shape[1:]) for mask in self._masks[start : start + batch]]
                truth = torch.from_numpy(np.stack(masks)).float()
                found = (logits.cpu() > 0).float()
                row["overlap"] = (found * truth).sum(dim=(1, 2))
                row["total"] = torch.where(
                    truth.sum(dim=(1, 2)) > 0, found.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)), 0.0
                )
                if outputs.distances is not None:
                    size = (logits.shape[-2], logits.shape[-1])
                    row["reconstruction"] = detector.pool(detector.reconstruction_map(outputs.distances, size))
            rows.append({name: value.float().cpu().numpy() for name, value in row.items()})
        return rows


def _selection(store: FrameStore, seed: int, *, copies: int) -> list[int]:
    """Places of the frames to look at, in their order; there may be ``copies`` of each."""
    if not len(store):
        return []
    most = min(_MOST_FRAMES, _MOST_BYTES // sum(part.nbytes for part in store[0])) // copies
    if len(store) <= most:
        return list(range(len(store)))
    drawn = np.random.default_rng((seed, 17)).permutation(len(store))
    turns = in_turns([store.samples[int(place)].label for place in drawn])
    return sorted(int(drawn[turn]) for turn in turns[:most])


def _mean_recall(labels: NDArray[np.int64], predicted: NDArray[np.float32]) -> float:
    recalls = [float((predicted[labels == label] == label).mean()) for label in np.unique(labels[labels >= 0])]
    return float(np.mean(recalls)) if recalls else float("nan")
