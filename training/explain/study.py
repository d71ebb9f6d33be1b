"""The whole measurement of a bundle's explanations: what ``defectlens explain`` does, without the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from training.data import DataSet, Sample
from training.explain.carried import describe_graph
from training.explain.figures import mean_with_interval
from training.explain.heads import Head, ablate, contact_sheet, head_maps, named_blocks
from training.explain.measure import Measured, check_run, forget_progress, identity_of, measure
from training.explain.methods import METHODS, OURS
from training.explain.perturb import PATCH, best_reference, replace_patches
from training.explain.randomise import correlations
from training.explain.report import write_report
from training.explain.results import METRICS, check_classes, compare, promises, times_random
from training.explain.subjects import Subject, Subjects, choose_subjects
from training.metrics import F64
from training.predictor import FrameEngine
from training.run import Run
from training.splits import split
from training.stores import FrameStore
from vision.batching import run_batches
from vision.bundle import Bundle
from vision.console import plain, say
from vision.decision import softmax
from vision.explanations import Explanations

_RANDOM_FRAMES = 12
# In the test of the replacement itself: so much of so many good frames.
_REPLACED_SHARE, _TESTED_GOOD = 0.3, 32
_SHEET_ROWS = 6


@dataclass(frozen=True)
class Study:
    """What came out: ``report`` as in ``explain.json``, and what a bundle would carry of it."""

    report: dict[str, Any]
    explanations: Explanations


def study(
    bundle: Bundle, data: DataSet, samples: Sequence[Sample], out: Path, *, run: Run | None, images: int, seed: int = 0
) -> Study:
    """Measure, and write ``explain.json``, ``report.html`` and, with a run, ``heads-*.png`` into ``out``.

    Args:
        run: of the bundle; without it gradient methods, randomisation and heads are left out.
        images: how many defect frames at most; 0 takes all.

    Raises:
        DataError: there is nothing to measure on.
        SettingsError: the run is of another model, or ``out`` holds the progress of another measurement.
    """
    out.mkdir(parents=True, exist_ok=True)
    detector = None
    if run is not None:
        check_run(run.detector, bundle)
        detector = run.detector.cpu().eval()
    subjects = choose_subjects(bundle, data, samples, images)
    say(f"{len(subjects.chosen)} of {subjects.available} defect frames with masks")
    engine = bundle.engine()
    identity = identity_of(bundle, data.digest, subjects.chosen, seed=seed, run=run is not None)
    measured = measure(subjects.chosen, engine, detector, out, identity, seed=seed)
    notes = list(subjects.notes)
    randomised: dict[str, dict[str, F64]] = {}
    heads: list[Head] | None = None
    if run is None:
        missing = ", ".join(method.title for method in METHODS.values() if method.needs_run)
        notes.append(f"Without --run: no {missing}, no test with random weights, and nothing about single heads.")
    else:
        randomised = correlations(run.detector, subjects.chosen[:_RANDOM_FRAMES], seed)
        heads = _ablate(run, data, notes)
    classes = bundle.manifest.classes
    checks = check_classes(measured, classes, list(randomised[OURS].values())[-1] if randomised else None, seed)
    comparison, times = compare(measured, seed), times_random(measured, seed)
    report = {
        "bundle": {"name": bundle.manifest.name, "version": bundle.manifest.version, "digest": bundle.digest},
        "model_digest": bundle.manifest.model_digest,
        "data": data.root.name,
        "data_digest": data.digest,
        "frames": len(measured),
        "available_frames": subjects.available,
        "frames_by_class": _counts(measured),
        "methods": {name: asdict(METHODS[name]) for name in measured[0].maps},
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "comparison": _as_dict(comparison),
        "times_random": asdict(times),
        "promises": promises(comparison, times),
        "checks": {name: asdict(check) for name, check in checks.items()},
        "randomisation": {name: _means(values, seed) for name, values in randomised.items()},
        "heads": None if heads is None else [{**asdict(head), "is_missed": head.is_missed} for head in heads],
        "replacement": _replacement(measured, subjects, engine, bundle, seed),
        "notes": [*notes, *data.remarks],
        "seed": seed,
    }
    report = {name: plain(value) for name, value in report.items()}
    sheets = {} if run is None else _write_sheets(run, subjects.chosen, heads, out)
    (out / "explain.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(report, measured, sheets, out / "report.html")
    forget_progress(out)
    words = f"{len(measured)} defect frames of {data.root.name}"
    known = bundle.manifest.explanations or describe_graph(bundle, engine)
    return Study(report, replace(known, checks=checks, measured=words))


def _as_dict(comparison: dict[str, Any]) -> dict[str, Any]:
    return {
        metric: {name: asdict(standing) for name, standing in methods.items()} for metric, methods in comparison.items()
    }


def _counts(measured: Sequence[Measured]) -> dict[str, int]:
    labels = [one.subject.sample.label for one in measured]
    return {label: labels.count(label) for label in sorted(set(labels))}


def _means(stages: dict[str, F64], seed: int) -> dict[str, Any]:
    found = {stage: mean_with_interval(values, seed) for stage, values in stages.items()}
    return {stage: None if value is None else asdict(value) for stage, value in found.items()}


def _ablate(run: Run, data: DataSet, notes: list[str]) -> list[Head] | None:
    """Silence heads on the validation part of the run's own data; None where these are not at hand."""
    if run.manifest.provenance.get("data_digest") != data.digest:
        notes.append(
            "Heads were not silenced: --data is not what the run was trained on, so its validation part is unknown."
        )
        return None
    seed = int(run.manifest.provenance["options"]["seed"])
    parts = split(data, seed)
    if not parts.validation:
        notes.append("Heads were not silenced: the data are too few for a validation part.")
        return None
    return ablate(run.detector, FrameStore(parts.validation, run.manifest.input), seed)


def _replacement(
    measured: Sequence[Measured], subjects: Subjects, engine: FrameEngine, bundle: Bundle, seed: int
) -> dict[str, Any]:
    """Whether taking patches away does what it should: the class goes with them, and good parts stay good."""
    curves = [one.curves["random"] for one in measured]
    figures: dict[str, Any] = {
        "class_score_whole": float(np.mean([curve.insertion[-1] for curve in curves])),
        "class_score_all_replaced": float(np.mean([curve.insertion[0] for curve in curves])),
    }
    good_class = bundle.manifest.good_class
    if good_class is None or len(subjects.good) < 2:
        return figures
    index = bundle.manifest.classes.index(good_class)
    rng = np.random.default_rng((seed, 17))
    grid = tuple(side // PATCH for side in subjects.good.shape[1:3])
    whole, patched = [], []
    for place in range(0, len(subjects.good), max(1, len(subjects.good) // _TESTED_GOOD)):
        whole.append(subjects.good[place])
        reference = best_reference(whole[-1], np.delete(subjects.good, place, axis=0))
        patched.append(replace_patches(whole[-1], reference, rng.random(grid) < _REPLACED_SHARE))
    for name, frames in (("good_score_whole", np.stack(whole)), ("good_score_patched", np.stack(patched))):
        logits = np.concatenate([part.class_logits for part in run_batches(engine.run, frames)])
        figures[name] = float(softmax(logits)[:, index].mean())
    return {**figures, "patched_share": _REPLACED_SHARE}


def _write_sheets(run: Run, subjects: Sequence[Subject], heads: Sequence[Head] | None, out: Path) -> dict[str, Path]:
    """A contact sheet a block; by block, where it was written."""
    rows = [(subject, head_maps(run.detector, subject)) for subject in subjects[:_SHEET_ROWS]]
    sheets = {}
    for block in named_blocks(run.detector):
        missed = None if heads is None else [head.is_missed for head in heads if head.block == block]
        sheet = contact_sheet(block, [(subject, maps[block]) for subject, maps in rows], missed)
        sheets[block] = out / f"heads-{block.replace(' ', '-')}.png"
        cv2.imwrite(str(sheets[block]), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return sheets
