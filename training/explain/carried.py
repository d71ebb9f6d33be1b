"""What a bundle carries about its explanations: biases and scales at export, checks once they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.calibrating import next_version, write_bundle
from vision.batching import run_batches
from vision.bundle import Bundle
from vision.engine import Engine
from vision.errors import ParityError
from vision.explanations import EXACT, TOP_SHARE, Explanations, evidence, round_up
from vision.types import FloatArray, ModelOutputs


def describe_outputs(parts: Sequence[ModelOutputs], top_share: float = TOP_SHARE) -> Explanations:
    """Biases and scales from the outputs of some frames.

    A class's bias is what its logit has beyond the sum of its saliency map, the same for every frame. Its scale is the
    largest contribution of a cell in the frames that are predicted to be of the class (the median of those frames), or
    the largest of all frames where there is no such frame; rounded up.

    Raises:
        ParityError: the map does not add up to the logit.
    """
    logits = np.concatenate([part.class_logits for part in parts]).astype(np.float64)
    sums = np.concatenate([part.saliency_map.sum(axis=(2, 3), dtype=np.float64) for part in parts])
    rest = logits - sums
    biases = np.median(rest, axis=0)
    off = float(np.abs(rest - biases).max())
    if off > EXACT:
        raise ParityError(
            f"the saliency map is off by {off:.3g} where bias + sum must be the logit (tolerance {EXACT:g}); "
            "the model explains itself wrongly and is not written"
        )
    largest = np.concatenate([evidence(part.saliency_map).max(axis=(2, 3)) for part in parts])
    predicted = logits.argmax(axis=1)
    scales = []
    for index in range(logits.shape[1]):
        own: FloatArray = largest[predicted == index, index]
        scales.append(round_up(float(np.median(own)) if len(own) else float(largest[:, index].max())))
    return Explanations(tuple(float(value) for value in biases), top_share, evidence_scale=tuple(scales))


def describe_graph(bundle: Bundle, engine: Engine, top_share: float = TOP_SHARE) -> Explanations:
    """The same of a bundle's model, on its golden and check frames; see ``describe_outputs``."""
    frames, _ = bundle.golden()
    if bundle.has_check_frames:
        frames = np.concatenate([frames, bundle.check_frames().frames])
    return describe_outputs(list(run_batches(engine.run, frames)), top_share)


def write_version(bundle: Bundle, explanations: Explanations, out: Path, version: str | None) -> Bundle:
    """The same bundle with other ``explanations`` as a new version; the model and its digest stay.

    Args:
        out: folder of the new bundle; must not exist.
        version: of the new bundle; None counts the old one up.

    Raises:
        SettingsError: ``out`` is there already.
    """
    version = version or next_version(bundle.manifest.version)
    return write_bundle(bundle, replace(bundle.manifest, explanations=explanations, version=version), out)
