"""`defectlens calibrate`. Works with the serving installation: nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from training.calibrating import PixelChoice, Wishes, calibrate_bundle, write_bundle
from training.calibration_data import check_unseen, read_calibration_data
from vision.bundle import check_new, load_bundle
from vision.calibration.asking import read_asked
from vision.calibration.evidence import percent
from vision.console import exits_cleanly, finish, json_option, say, set_up_logging
from vision.decision import OperatingPoint
from vision.engine import PRECISIONS
from vision.errors import SettingsError

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.option("--bundle", "bundle_folder", type=_FOLDER, required=True, help="Bundle to choose an operating point for.")
@click.option(
    "--data",
    required=True,
    metavar="GOOD[,DEFECTS]",
    help="Folder of good images; and one of defective images, a subfolder for each class. Or one folder with good/ and "
    "classes beside it, or in the MVTec layout.",
)
@click.option("--out", type=_FOLDER, required=True, help="Folder of the new bundle; must not exist.")
@click.option("--max-overkill", type=float, help="At most this share of good parts is not passed, e.g. 0.01.")
@click.option("--min-recall", type=float, help="At least this share of defective parts is not passed, e.g. 0.995.")
@click.option("--cost", metavar="NAME=PRICE,...", help="overkill=1,escape=50[,review=0.2]: least expected cost.")
@click.option(
    "--max-review",
    type=float,
    help="Send up to this share of good parts to a person instead of rejecting them. Default: no review band.",
)
@click.option(
    "--confidence",
    type=float,
    help="Keep --max-overkill in this very calibration with this probability, e.g. 0.95, and not only on average. For "
    "--min-recall 0.95 is the default.",
)
@click.option("--defect-rate", type=float, help="Share of defective parts in production; for --cost.")
@click.option(
    "--lot-pattern", help="Regular expression on file names; its first group names the lot: bounds count lots."
)
@click.option(
    "--class-threshold",
    "class_thresholds",
    multiple=True,
    metavar="CLASS=P",
    help="A part is rejected from this probability of the class on; `none` for no class at all. May be given often.",
)
@click.option("--unknown-below", type=float, help="A reject is an unknown defect if its classes are less probable.")
@click.option(
    "--pixel-threshold", default="keep", show_default=True, metavar="keep|best|NUMBER", help="best: by the masks."
)
@click.option("--fit-probabilities", is_flag=True, help="Fit class probabilities anew on these images.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Part of the MVTec layout; the test part is no independent measure afterwards.",
)
@click.option("--folds", type=_FILE, help="JSON file with folds, see `train`.")
@click.option("--fold", type=int, help="Number of the fold that is the test set.")
@click.option(
    "--leave-out-seen", is_flag=True, help="Leave out images that the model was trained on, instead of refusing."
)
@click.option("--version", "version", help="Version of the new bundle. Default: the old one's last number, one higher.")
@click.option(
    "--provider", type=click.Choice(list(PRECISIONS)), default="auto", show_default=True, help="Where the model runs."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS["openvino"]),
    default="fp32",
    show_default=True,
    help="What it computes in; choose what the stations use.",
)
@json_option
@exits_cleanly
def calibrate(
    bundle_folder: Path,
    data: str,
    out: Path,
    max_review: float | None,
    lot_pattern: str | None,
    class_thresholds: tuple[str, ...],
    unknown_below: float | None,
    pixel_threshold: str,
    fit_probabilities: bool,
    split: str,
    folds: Path | None,
    fold: int | None,
    leave_out_seen: bool,
    version: str | None,
    provider: Any,
    precision: Any,
    as_json: bool,
    **rule: Any,
) -> None:
    """Choose a bundle's thresholds by what they must keep, on images that its model has not seen.

    The model runs on the calibration images; the thresholds that keep what was asked are written into a new version of
    the bundle, with the evidence. The model itself stays as it is, digest and all. Needs no training installation.

    \b
    Example:
      defectlens calibrate --bundle bundles/parts --data good/ --max-overkill 0.01 --out bundles/parts-2
      defectlens calibrate --bundle bundles/parts --data good/,defects/ --min-recall 0.99 --out bundles/parts-2
      defectlens calibrate --bundle bundles/parts --data good/,defects/ --cost overkill=1,escape=50,review=0.2 \\
        --defect-rate 0.02 --out bundles/parts-2
      defectlens calibrate --bundle bundles/parts --data good/ --max-overkill 0.02 --confidence 0.95 \\
        --lot-pattern '^(lot\\d+)_' --out bundles/parts-2
    """
    set_up_logging()
    asked = read_asked(**rule)
    wishes = Wishes(
        read_class_thresholds(class_thresholds), unknown_below, _pixel_choice(pixel_threshold), fit_probabilities
    )
    check_new(out)
    bundle = load_bundle(bundle_folder)
    found = read_calibration_data(data, split=split, folds=folds, fold=fold, lot_pattern=lot_pattern)
    found = check_unseen(found, bundle, leave_out=leave_out_seen)
    engine = bundle.engine(provider=provider, precision=precision)
    manifest = calibrate_bundle(bundle, engine, found, asked, wishes, max_review=max_review)
    if version is not None:
        manifest = replace(manifest, version=version)
    written = write_bundle(bundle, manifest, out)
    point = manifest.operating_point
    for line in describe(point):
        say(line)
    say(f"bundle written to {out}; next: defectlens evaluate --bundle {out} --data DATA --out REPORT")
    about = {
        "bundle": out,
        "version": manifest.version,
        "digest": written.digest,
        "model_digest": written.manifest.model_digest,
    }
    finish({**about, **(figures(point) if as_json else {})}, as_json=as_json)


def read_class_thresholds(given: Sequence[str]) -> dict[str, float] | None:
    """``CLASS=P`` texts by class; None where one of them is ``none``.

    Raises:
        SettingsError: something else.
    """
    if "none" in given:
        if len(given) > 1:
            raise SettingsError("--class-threshold none stands alone: it switches every class off")
        return None
    found = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise SettingsError(f"--class-threshold takes CLASS=P such as crack=0.7, or none; got {text!r}")
    return found


def describe(point: OperatingPoint) -> list[str]:
    """The operating point and what it rests on, for people."""
    lines = [
        f"reject from {point.image_threshold:.4g}, review from {point.review_threshold:.4g}, pixels from "
        f"{point.pixel_threshold:.4g} (raw anomaly score)"
    ]
    if point.class_pixel_thresholds:
        own = ", ".join(f"{name} {value:.4g}" for name, value in point.class_pixel_thresholds.items())
        lines.append(f"pixels where a class is favoured that has its own threshold: {own}")
    if point.class_thresholds:
        classes = ", ".join(f"{name} {value:.3g}" for name, value in point.class_thresholds.items())
        lines.append(f"reject whatever the score from a probability of: {classes}")
    basis = point.basis
    if basis is None:
        return lines
    lines += basis.lines()
    lines.append("on the calibration images themselves (95 % intervals, no promise):")
    for name, rate in basis.measured.items():
        if rate.of:
            interval = f"{percent(rate.low)} to {percent(rate.high)}"
            lines.append(f"  {name:<18} {percent(rate.value):>8}  ({rate.hits} of {rate.of}; {interval})")
    return lines


def figures(point: OperatingPoint) -> dict[str, Any]:
    """The same for machines."""
    basis = point.basis
    found: dict[str, Any] = {
        "image_threshold": point.image_threshold,
        "review_threshold": point.review_threshold,
        "pixel_threshold": point.pixel_threshold,
        "class_thresholds": point.class_thresholds,
        "class_pixel_thresholds": point.class_pixel_thresholds,
        "unknown_below": point.unknown_below,
    }
    if basis is not None:
        found |= {
            "promise": basis.promise,
            "not_passed_bound": basis.not_passed_bound,
            "rejected_bound": basis.rejected_bound,
            "recall_bound": basis.recall_bound,
            "confidence": basis.confidence,
            "good_images": basis.good_images,
            "defective_images": basis.defective_images,
            "lots": basis.lots,
            "data_digest": basis.data_digest,
            "measured": {name: rate.value for name, rate in basis.measured.items() if rate.of},
            **basis.figures,
        }
    return found


def _pixel_choice(text: str) -> PixelChoice:
    if text == "keep":
        return "keep"
    if text == "best":
        return "best"
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"--pixel-threshold is keep, best or a number; got {text!r}") from None
