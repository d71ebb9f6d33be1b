"""What to replace a patch with, so that taking it away makes no defect of its own (`defectlens explain`).

    python -m benchmarks.replacing --bundle BUNDLE --data DATA [--folds FILE --fold N]

On good test frames: the mean class score of "good", and the share of frames still called good, after a share of their
patches was replaced at random. A sound replacement leaves both as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from training.cli import data_options
from training.data import read_data
from training.explain.perturb import PATCH, best_reference, replace_patches
from training.explain.subjects import choose_subjects
from training.stores import FrameStore
from vision.bundle import load_bundle
from vision.decision import softmax

Pixels = NDArray[np.uint8]
Flags = NDArray[np.bool_]

SHARES = (0.1, 0.3, 0.5, 0.8)
FRAMES = 40
_INPAINT_RADIUS = 3
_BATCH = 16


def enlarged(chosen: Flags) -> NDArray[np.uint8]:
    """Patches ``[rows, columns]`` to their pixels, 0 or 1."""
    return np.kron(chosen.astype(np.uint8), np.ones((PATCH, PATCH), np.uint8))


def inpainted(frame: Pixels, chosen: Flags) -> Pixels:
    return np.asarray(cv2.inpaint(frame, enlarged(chosen), _INPAINT_RADIUS, cv2.INPAINT_TELEA), np.uint8)


def hard(good: Pixels) -> Callable[[Pixels, Flags], Pixels]:
    """From the nearest of some good frames, without soft edges."""
    return lambda frame, chosen: np.where(enlarged(chosen)[:, :, None] > 0, best_reference(frame, good), frame)


def soft(good: Pixels) -> Callable[[Pixels, Flags], Pixels]:
    """As the product does it."""
    return lambda frame, chosen: replace_patches(frame, best_reference(frame, good), chosen)


@click.command()
@data_options
@click.option("--bundle", "folder", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(data: str, folds: Path | None, fold: int | None, part_pattern: str | None, folder: Path) -> None:
    """Compare replacements; see the module."""
    bundle = load_bundle(folder)
    engine, manifest = bundle.engine(provider="cpu"), bundle.manifest
    if manifest.good_class is None:
        raise click.UsageError("the model has no good class; give a bundle that was trained with good images")
    index = manifest.classes.index(manifest.good_class)
    found = read_data(data, folds=folds, fold=fold, part_pattern=part_pattern)
    store = FrameStore([sample for sample in found.test if not sample.is_defect], manifest.input)
    frames = [store[place][0] for place in range(0, len(store), max(1, len(store) // FRAMES))][:FRAMES]
    check = bundle.check_frames()
    few, many = check.frames[~check.is_defect], choose_subjects(bundle, found, found.test, 1).good
    ways = {
        "in-painted (Telea)": inpainted,
        f"nearest of {len(many)} good frames, hard edges": hard(many),
        f"nearest of {len(few)} good frames, soft edges": soft(few),
        f"nearest of {len(many)} good frames, soft edges": soft(many),
    }

    def good_scores(changed: list[Pixels]) -> NDArray[np.float32]:
        parts = [np.stack(changed[start : start + _BATCH]) for start in range(0, len(changed), _BATCH)]
        logits = np.concatenate([engine.run(part).class_logits for part in parts])
        return np.stack([softmax(logits)[:, index], logits.argmax(axis=1) == index])

    print(f"{len(frames)} good frames; mean good score / share called good")
    print(f"{'as they are':50}", "{:.3f} / {:.3f}".format(*good_scores(frames).mean(axis=1)))
    grid = (manifest.input.height // PATCH, manifest.input.width // PATCH)
    print(f"{'patches replaced':50}", "".join(f"{share:>15.0%}" for share in SHARES))
    for name, way in ways.items():
        cells = []
        for share in SHARES:
            rng = np.random.default_rng(0)
            changed = [way(frame, rng.random(grid) < share) for frame in frames]
            cells.append("{:.3f} / {:.3f}".format(*good_scores(changed).mean(axis=1)))
        print(f"{name:50}", "".join(f"{cell:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
