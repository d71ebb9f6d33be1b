"""What each attention head looks at, and which heads the model would not miss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.explain.figures import resampled_means
from training.explain.methods import watched_blocks
from training.explain.subjects import Subject
from training.metrics import bootstrap_draws, image_auroc, percentile_interval, share_interval
from training.stores import FrameStore, in_batches
from vision.console import track
from vision.drawing import BACKGROUND, INK, SOFT_INK, Canvas, blend, fitting, put_text
from vision.explanations import Estimate
from vision.model.detector import Detector
from vision.model.mixers import Block
from vision.postprocess import resize_map
from vision.types import FloatArray

MOST_LOSS = 0.03
"""A head is not missed if, with 95 % confidence, losing it costs at most this much accuracy and image AUROC. A smaller
loss cannot be excluded on a usual validation part: 3 points take 122 frames of which not a single one changes."""
_RESAMPLES = 1000
_CELL_PX, _GAP_PX, _TOP_PX, _LEFT_PX = 116, 6, 64, 150


@dataclass(frozen=True, slots=True)
class Head:
    """One head: the ``loss`` of accuracy and of image AUROC when it is silenced (positive: worse without it)."""

    block: str
    head: int
    accuracy_loss: Estimate
    auroc_loss: Estimate | None

    @property
    def is_missed(self) -> bool:
        """False where both losses are surely small."""
        ends = [self.accuracy_loss.high, *([] if self.auroc_loss is None else [self.auroc_loss.high])]
        return max(ends) > MOST_LOSS


def named_blocks(detector: Detector) -> dict[str, Block]:
    """The attention blocks under the names that people read, in the order of computation."""
    found = {f"block {index + 1}": block for index, block in enumerate(detector.blocks)}
    if detector.reconstruction is not None:
        found |= {f"reconstruction {index + 1}": one for index, one in enumerate(detector.reconstruction.blocks)}
    return {name: block for name, block in found.items() if isinstance(block, Block) and block.attention is not None}


@contextmanager
def silenced(block: Block, head: int) -> Iterator[None]:
    """While it is open, one head of a block contributes nothing."""
    attention = block.attention
    if attention is None:
        raise ValueError("a block without attention has no heads")
    out, heads = attention.out, attention.heads

    def silence(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        parts = inputs[0].clone().reshape(*inputs[0].shape[:-1], heads, -1)
        parts[..., head, :] = 0.0
        return parts.reshape(inputs[0].shape)

    handle = out.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def ablate(detector: Detector, store: FrameStore, seed: int) -> list[Head]:
    """Silence one head at a time on frames that did not train the model, or in its second round alone.

    Samples whose label the model does not know count in the image AUROC alone.
    """
    config = detector.config
    labels = np.array([config.classes.index(one.label) if one.label in config.classes else -1 for one in store.samples])
    defective = np.array([one.is_defect for one in store.samples])
    whole = _answers(detector, store)
    blocks = named_blocks(detector)
    pairs = [(name, head) for name, block in blocks.items() if block.attention for head in range(block.attention.heads)]
    result = []
    for name, head in track(pairs, "Silencing heads", unit="heads"):
        with silenced(blocks[name], head):
            without = _answers(detector, store)
        result.append(Head(name, head + 1, *_losses(whole, without, labels, defective, seed)))
    return result


@dataclass(frozen=True, slots=True)
class _Answers:
    predicted: NDArray[np.int64]
    score: FloatArray | None


@torch.no_grad()
def _answers(detector: Detector, store: FrameStore) -> _Answers:
    detector.eval()
    predicted, scores = [], []
    for _, pictures, _ in in_batches(store, detector.config.inference_batch):
        outputs = detector(torch.from_numpy(pictures))
        predicted.append(outputs.class_logits.argmax(dim=1).numpy())
        if outputs.anomaly_score is not None:
            scores.append(outputs.anomaly_score.numpy())
    return _Answers(np.concatenate(predicted), np.concatenate(scores) if scores else None)


def _losses(
    whole: _Answers, without: _Answers, labels: NDArray[np.int64], defective: NDArray[np.bool_], seed: int
) -> tuple[Estimate, Estimate | None]:
    known = labels >= 0
    lost = (whole.predicted == labels)[known].astype(np.float64) - (without.predicted == labels)[known]
    low, high = percentile_interval(resampled_means(lost, seed))
    if not lost.any():  # resampling would claim certainty; this is the bound of Clopper and Pearson (Biometrika 1934)
        low, high = share_interval(np.zeros(len(lost), np.bool_), seed)
        low = -high
    accuracy = Estimate(float(lost.mean()), low, high)
    if whole.score is None or without.score is None or defective.all() or not defective.any():
        return accuracy, None
    before, after = whole.score, without.score
    draws = bootstrap_draws(len(defective), seed, _RESAMPLES)
    changes = [image_auroc(before, defective, draw) - image_auroc(after, defective, draw) for draw in draws]
    ones = np.ones(len(defective))
    loss = image_auroc(before, defective, ones) - image_auroc(after, defective, ones)
    return accuracy, Estimate(loss, *percentile_interval(np.asarray(changes)))


@torch.no_grad()
def head_maps(detector: Detector, subject: Subject) -> dict[str, FloatArray]:
    """By block, what its heads look at: ``[heads, rows, columns]``, each adding up to 1.

    A head looks from every token at every token. Shown is where those tokens look that decide: in the main blocks
    weighed by the attention of the class's query, in the reconstruction by the tokens' distance from normal.
    """
    detector.eval()
    blocks = named_blocks(detector)
    with watched_blocks(list(blocks.values())) as looks:
        features = detector.backbone(torch.from_numpy(subject.frame)[None])
        outputs = detector.read(features)
    rows, columns = features[2].shape[-2:]
    deciding = _on_tokens(outputs.attention_map[:, subject.target], (rows, columns))
    from_normal = deciding
    if outputs.distances is not None:
        from_normal = _on_tokens(outputs.distances[1], (rows, columns))
    # The blocks ran in this order: the main ones, then those of the reconstruction.
    result = {}
    for name, look in zip(blocks, looks, strict=True):
        asked = from_normal if name.startswith("reconstruction") else deciding
        seen = torch.einsum("t,hts->hs", asked, look[0])
        result[name] = seen.reshape(-1, rows, columns).numpy()
    return result


def _on_tokens(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[1, h, w]`` averaged onto the tokens and made to add up to 1: ``[T]``."""
    means = torch.nn.functional.adaptive_avg_pool2d(values[:, None], grid).flatten()
    return means / means.sum().clamp(min=1e-12)


def contact_sheet(block: str, rows: Sequence[tuple[Subject, FloatArray]], missed: Sequence[bool] | None) -> Canvas:
    """One block on one sheet: a row a frame, a column a head.

    Args:
        rows: subjects and what the block's heads look at, ``[heads, h, w]``; at least one.
        missed: by head, whether the model would miss it; None: not measured.
    """
    heads = len(rows[0][1])
    height, width = rows[0][0].frame.shape[:2]
    scale = _CELL_PX / max(height, width)
    cell = (round(width * scale), round(height * scale))
    step = (cell[0] + _GAP_PX, cell[1] + _GAP_PX)
    canvas: Canvas = np.empty((_TOP_PX + len(rows) * step[1], _LEFT_PX + (1 + heads) * step[0], 3), np.uint8)
    canvas[:] = BACKGROUND
    put_text(canvas, f"What the heads of {block} look at", _GAP_PX, 8, 0.5, INK)
    for head in range(heads):
        note = "" if missed is None or missed[head] else " spare"
        left = _LEFT_PX + (1 + head) * step[0]
        put_text(canvas, *_fit(f"head {head + 1}{note}", left, _TOP_PX - 22, cell[0], INK))
    for index, (subject, maps) in enumerate(rows):
        top = _TOP_PX + index * step[1]
        put_text(canvas, *_fit(subject.sample.label, _GAP_PX, top + 6, _LEFT_PX - 2 * _GAP_PX, INK))
        put_text(canvas, *_fit(subject.sample.path.name, _GAP_PX, top + 26, _LEFT_PX - 2 * _GAP_PX, SOFT_INK))
        small = np.asarray(cv2.resize(subject.frame, cell, interpolation=cv2.INTER_AREA), np.uint8)
        marked = small.copy()
        mask = cv2.resize(subject.mask.astype(np.uint8), cell, interpolation=cv2.INTER_AREA)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(marked, outlines, -1, INK, 1)
        _put(canvas, marked, top, _LEFT_PX)
        for head, values in enumerate(maps):
            share = resize_map(values / max(float(values.max()), 1e-12), cell[1], cell[0]).clip(0, 1)
            _put(canvas, blend(small, share, 0.75), top, _LEFT_PX + (1 + head) * step[0])
    return canvas


def _fit(text: str, left: int, top: int, width: int, colour: tuple[int, int, int]) -> tuple:  # type: ignore[type-arg]
    shown, scale = fitting(text, 0.42, width)
    return shown, left, top, scale, colour


def _put(canvas: Canvas, picture: Canvas, top: int, left: int) -> None:
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
