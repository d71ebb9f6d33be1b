"""Which token mixers are compared, and the runs of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.data import DataSet
from training.evaluate import evaluate
from training.export import export_bundle
from training.options import TrainOptions
from training.predictor import EnginePredictor
from training.run import RUN_FILE, Run, load_run, renamed, train_run
from training.torch_engine import TorchEngine
from vision.bundle import Bundle, load_bundle
from vision.console import say
from vision.errors import DataError, SettingsError


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to let places hear of each other; ``meaning`` says it in words."""

    name: str
    mixer: str
    heads: int
    meaning: str


VARIANTS = {
    one.name: one
    for one in (
        Variant("cnn", "none", 8, "no mixing: a CNN with a head on every place"),
        Variant("lstm", "lstm", 8, "a bidirectional scan of rows and columns"),
        Variant("attention-1", "dense", 1, "attention between all places, one head"),
        Variant("attention-8", "dense", 8, "attention between all places, eight heads"),
        Variant("sparse", "sparse", 8, "attention within windows and to a few prototypes of the frame"),
        Variant("linear", "linear", 8, "linear attention, eight heads"),
    )
}


def choose_variants(names: str) -> list[Variant]:
    """Variants by a comma-separated list of their names.

    Raises:
        SettingsError: an unknown or repeated name, or fewer than two.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in VARIANTS]:
        raise SettingsError(f"unknown variant {', '.join(map(repr, unknown))}; choose from {', '.join(VARIANTS)}")
    if len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise SettingsError(f"a comparison needs at least two variants, each once; got {names!r}")
    return [VARIANTS[name] for name in wanted]


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant trained with one seed: its folder, the report of its evaluation, what it said of each image, and how
    long the training took, in seconds.
    """

    variant: Variant
    seed: int
    folder: Path
    report: dict[str, Any]
    predictions: list[dict[str, Any]]
    training_seconds: float


def by_variant(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Trials by the name of their variant, in the order in which variants and seeds came."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.variant.name, []).append(trial)
    return groups


def run_trials(
    data: DataSet, options: TrainOptions, variants: Sequence[Variant], seeds: Sequence[int], out: Path
) -> list[Trial]:
    """Train and measure every variant with every seed; what has been finished in ``out`` is not done again.

    One seed after the other, so that what is there after an interruption can be compared. All variants of a seed have
    the same split, images, augmentations and number of steps.

    Raises:
        DataError: the data have no test part to compare on.
        SettingsError: ``out`` holds a comparison of other data or options, or an unfinished one of another version.
    """
    if not data.test:
        raise DataError(f"{data.root} has no test images to compare on; add test/good/ and test/<defect>/")
    trials = []
    jobs = [(seed, variant, out / variant.name / f"seed-{seed}") for seed in seeds for variant in variants]
    _check_versions([folder for _, _, folder in jobs])
    for number, (seed, variant, folder) in enumerate(jobs, 1):
        done = _is_done(folder)
        say(f"{number} of {len(jobs)}: {variant.name}, seed {seed}" + (" is there already" if done else ""))
        chosen = replace(options, mixer=variant.mixer, heads=variant.heads, seed=seed)
        run = None if done else train_run(data, chosen, folder, resume=True)
        if run is not None:
            predictor = EnginePredictor(TorchEngine(run.detector), run.manifest, digest=None)
            evaluate(predictor, data, data.test, folder / "evaluation", seed=seed)
        trials.append(_read(variant, seed, folder, data, chosen))
    return trials


def _is_done(folder: Path) -> bool:
    return (folder / "evaluation" / "report.json").is_file()


def _check_versions(folders: Sequence[Path]) -> None:
    """Raise ``SettingsError`` where runs that are there, finished or not, and those to come are of different released
    versions: another may train in another way.
    """
    begun = [folder for folder in folders if (folder / RUN_FILE).is_file()]
    versions = {str(folder): _run_document(folder).get("version", "an earlier version") for folder in begun}
    if not all(_is_done(folder) for folder in folders):
        versions["what is left to train"] = version("defectlens")
    first, expected = next(iter(versions.items()))
    for name, other in versions.items():
        if other != expected:
            raise SettingsError(
                f"a comparison is of one version of defectlens: {first} is of {expected}, {name} of {other}; go on "
                f"with {expected}, or give another --out"
            )


def _run_document(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))


def _read(variant: Variant, seed: int, folder: Path, data: DataSet, options: TrainOptions) -> Trial:
    report = json.loads((folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
    run = _run_document(folder)
    asked, had = options.as_dict(), {"heads": 8, "tile": "auto", **run["manifest"]["provenance"]["options"]}
    differs = sorted(key for key, value in asked.items() if had.get(key) != value and key != "device")
    if report["data_digest"] != data.digest or differs:
        what = ", ".join(differs) or "the data"
        raise SettingsError(f"{folder} holds a run with another {what}; give another --out")
    lines = (folder / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = float(run["figures"]["training_seconds"])
    return Trial(variant, seed, folder, report, [json.loads(line) for line in lines], seconds)


def bundle_of(trial: Trial) -> tuple[Run, Bundle]:
    """The trial's run and its exported bundle, which is written if it is not there yet."""
    folder = trial.folder / "bundle"
    run = load_run(trial.folder)
    if not (folder / "bundle.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        export_bundle(renamed(run, trial.variant.name, str(trial.seed)), folder)
    return run, load_bundle(folder)
