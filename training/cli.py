"""`defectlens train`, `evaluate` and `export`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from training.data import read_data
from training.drawn import Overlays
from training.evaluate import evaluate as evaluate_predictor
from training.export import export_bundle
from training.mixer_choice import CHOICES as MIXER_CHOICES
from training.options import PRESETS, TrainOptions
from training.predictor import BundlePredictor, EnginePredictor, Predictor
from training.run import load_run, renamed, train_run
from training.torch_engine import TorchEngine
from vision.bundle import load_bundle
from vision.console import exits_cleanly, finish, json_option, say, set_up_logging
from vision.engine import PRECISIONS, Precision
from vision.errors import DataError, SettingsError
from vision.model.backbone import DEFAULT_BACKBONE

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_HEADLINE = ("image_auroc", "image_ap", "accuracy", "pixel_auroc", "pixel_ap", "aupro", "miou", "overkill_rate")


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which images: ``data``, ``folds``, ``fold`` and ``part_pattern``."""
    for option in (
        click.option("--part-pattern", help="Regular expression on file names; its first group names the part."),
        click.option("--fold", type=int, help="Number of the fold that is the test set."),
        click.option(
            "--folds",
            type=_FILE,
            help="JSON file with folds: fold K is the test set, the others train (of elpv: in place of its quarter).",
        ),
        click.option("--data", required=True, help="Folder in the MVTec layout, or `elpv` for the PyPI data set."),
    ):
        command = option(command)
    return command


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every training takes: ``preset``, ``backbone``, ``weights``, ``size``, ``tile``, ``epochs``, ``batch`` and
    ``device``.
    """
    for option in (
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto: a GPU if any.",
        ),
        click.option("--batch", default=16, show_default=True, help="Frames a step."),
        click.option(
            "--epochs",
            type=int,
            help="Default: chosen from the data, more for few images. With labelled defects about 1.4 times as many as "
            "are asked for, in two rounds; where the second shows few images, at a lower learning rate.",
        ),
        click.option(
            "--size",
            type=int,
            help="Side in px of a square with as many pixels as the input. Default: the frames', within the preset.",
        ),
        click.option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            default="balanced",
            show_default=True,
            help="fast: small input, half the epochs; accurate: large input, half as many epochs again.",
        ),
        click.option(
            "--tile",
            default="auto",
            show_default=True,
            help="auto: large frames go through the network in overlapping tiles where one input would lose small "
            "defects; off: never; a number: frames at their own size (up to 20 megapixels), in tiles of at most so "
            "many px.",
        ),
        click.option(
            "--weights", type=_FILE, help="Backbone weights: the model hub's .safetensors of that timm model."
        ),
        click.option(
            "--backbone",
            default=DEFAULT_BACKBONE,
            show_default=True,
            help="Any timm CNN with strides 4 to 32 for frames of any size.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@data_options
@click.option("--out", type=_FOLDER, required=True, help="Folder for the run; must not hold another one.")
@budget_options
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same split and the same model.")
@click.option(
    "--mixer",
    type=click.Choice(list(MIXER_CHOICES)),
    default="auto",
    show_default=True,
    help="Token mixer. auto: dense attention, and sparse where a frame, or a tile of it, has more than 512x512 px.",
)
@click.option("--flips/--no-flips", default=None, help="Mirror frames. Default: only with labelled defects.")
@click.option(
    "--reconstruction",
    is_flag=True,
    help="Also train attention blocks to rebuild normal features, if few defects are labelled: 3x the time.",
)
@click.option(
    "--patience",
    type=int,
    help="Stop the first round after so many epochs without a better one, and take the best. Default: half of them, at "
    "least 4; with good parts and no masks the last epoch is taken.",
)
@click.option("--resume", is_flag=True, help="Go on where the run in --out was interrupted.")
@json_option
@exits_cleanly
def train(
    data: str,
    folds: Path | None,
    fold: int | None,
    part_pattern: str | None,
    out: Path,
    weights: Path | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on a folder of images.

    Normal images alone are enough; labelled defects and masks are used where there are any. If the data have a test
    part, the finished model is measured on it once, into OUT/evaluation.

    \b
    Example:
      defectlens train --data parts/ --out runs/parts
      defectlens train --data tiles/ --folds folds.json --fold 0 --out runs/tiles-0
    """
    set_up_logging()
    images = read_data(data, folds=folds, fold=fold, part_pattern=part_pattern)
    chosen = TrainOptions(weights=str(weights) if weights else None, **options)
    run = train_run(images, chosen, out, resume=resume)
    figures: dict[str, Any] = dict(run.figures)
    if images.test:
        predictor = EnginePredictor(TorchEngine(run.detector), run.manifest, digest=None)
        report = evaluate_predictor(predictor, images, images.test, out / "evaluation", seed=chosen.seed)
        figures.update({name: report[name] for name in _HEADLINE if report.get(name) is not None})
        figures["report"] = out / "evaluation" / "report.html"
    say(f"run written to {out}; next: defectlens export --run {out} --out BUNDLE")
    finish({"run": out, **figures}, as_json=as_json)


@click.command()
@click.option("--run", "run_folder", type=_FOLDER, required=True, help="Folder that `defectlens train` wrote.")
@click.option("--out", type=_FOLDER, required=True, help="Folder of the new bundle; must not exist.")
@click.option("--name", help="Name of the bundle. Default: the name of its folder.")
@click.option("--version", "bundle_version", default="1", show_default=True, help="Version of the bundle.")
@click.option(
    "--quantize",
    multiple=True,
    type=click.Choice(["int8", "fp16"]),
    help="Add a model of fewer bits: int8 for CPUs, fp16 for CUDA. May be given twice.",
)
@json_option
@exits_cleanly
def export(
    run_folder: Path, out: Path, name: str | None, bundle_version: str, quantize: tuple[Precision, ...], as_json: bool
) -> None:
    """Turn a training run into a verified ONNX bundle.

    Nothing is written unless ONNX Runtime agrees with torch on real frames (scores to 1e-4, maps to 1e-3), and a model
    of fewer bits with both on validation frames: image AUROC may fall by 0.2 points, and 5 % (fp16: 2 %) of the
    verdicts may change.

    \b
    Example:
      defectlens export --run runs/parts --out bundles/parts
      defectlens export --run runs/parts --out bundles/parts-int8 --quantize int8
    """
    set_up_logging()
    started = time.monotonic()
    run = renamed(load_run(run_folder), name or out.name, bundle_version)
    bundle = export_bundle(run, out, quantize=quantize)
    worst = max(max(values.values()) for values in bundle.manifest.parity["batches"].values())
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    say(f"bundle written to {out}; next: defectlens serve --bundle {out}")
    figures = {"bundle": out, "digest": bundle.digest, "bytes": size, "largest_difference": worst}
    if quantize:
        figures["reduced"] = bundle.manifest.parity["reduced"]
    finish({**figures, "seconds": time.monotonic() - started}, as_json=as_json)


@click.command()
@data_options
@click.option("--bundle", "bundle_folder", type=_FOLDER, required=True, help="Bundle to measure.")
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="Which images to measure on.",
)
@click.option("--server", help="Ask the server at this address instead of running the bundle here.")
@click.option(
    "--provider",
    type=click.Choice(list(PRECISIONS)),
    default="auto",
    show_default=True,
    help="Where the model runs.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS["openvino"]),
    default="fp32",
    show_default=True,
    help="What it computes in.",
)
@click.option("--out", type=_FOLDER, required=True, help="Folder for report.json, report.html, predictions.jsonl.")
@click.option(
    "--overlays",
    type=click.Choice(["jpeg", "png"]),
    help="Draw every image too: OUT/overlays in this format, and all of them in OUT/lot.html.",
)
@click.option("--overlay-class", help="With --overlays: show the evidence for this class, not the anomaly map.")
@click.option(
    "--full-colour",
    type=float,
    help="With --overlays: the map's value from which colours are full. Default: the bundle's, for every lot the same.",
)
@json_option
@click.pass_context
@exits_cleanly
def evaluate(
    context: click.Context,
    data: str,
    folds: Path | None,
    fold: int | None,
    part_pattern: str | None,
    bundle_folder: Path,
    split: str,
    server: str | None,
    provider: Any,
    precision: Any,
    out: Path,
    overlays: Any,
    overlay_class: str | None,
    full_colour: float | None,
    as_json: bool,
) -> None:
    """Measure a bundle on labelled images; write a report.

    With --server the same images go through a running server, which must serve this very bundle.

    \b
    Example:
      defectlens evaluate --bundle bundles/parts --data parts/ --out reports/parts
      defectlens evaluate --bundle bundles/parts --data parts/ --out reports/parts --overlays jpeg
    """
    set_up_logging()
    if overlays is None and (overlay_class is not None or full_colour is not None):
        raise SettingsError("--overlay-class and --full-colour are about overlays; give --overlays jpeg too")
    bundle = load_bundle(bundle_folder)
    images = read_data(data, folds=folds, fold=fold, part_pattern=part_pattern)
    samples = images.test if split == "test" else images.train
    if not samples:
        raise DataError(f"{images.root} has no {split} images to measure on")
    predictor: Predictor
    if server is None:
        predictor = BundlePredictor(bundle, provider, precision)
    else:
        remote = (context.obj or {}).get("remote_predictor")
        if remote is None:
            raise SettingsError("--server works from the `defectlens` command, which knows the client")
        predictor = remote(server, bundle)
    out.mkdir(parents=True, exist_ok=True)
    drawn = None
    if overlays is not None:
        drawn = Overlays(
            out,
            bundle.manifest,
            images.root,
            bundle.manifest.input.white_level,
            kind=overlays,
            class_name=overlay_class,
            full_colour=full_colour,
        )
    with drawn or nullcontext():
        report = evaluate_predictor(predictor, images, samples, out, overlays=drawn)
    say(f"report: {out / 'report.html'}")
    figures = {name: report[name] for name in _HEADLINE if report.get(name) is not None}
    if drawn is not None:
        figures["page"] = out / "lot.html"
    finish({"images": len(samples), **figures, "report": out / "report.html"}, as_json=as_json)
