"""`defectlens explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from training.cli import data_options
from training.data import read_data
from training.explain.carried import write_version
from training.explain.methods import OURS
from training.explain.results import METRICS
from training.explain.study import study
from training.run import load_run
from vision.bundle import load_bundle
from vision.console import exits_cleanly, finish, json_option, say, set_up_logging
from vision.errors import DataError, SettingsError

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@data_options
@click.option("--bundle", "bundle_folder", type=_FOLDER, required=True, help="Bundle whose explanations are measured.")
@click.option(
    "--run", "run_folder", type=_FOLDER, help="The bundle's run: for gradient methods, random weights, heads."
)
@click.option("--out", type=_FOLDER, required=True, help="Folder for report.html, explain.json and contact sheets.")
@click.option("--images", default=60, show_default=True, help="Defect frames to explain, classes in turn; 0 takes all.")
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="Which images to measure on.",
)
@click.option("--seed", default=0, show_default=True, help="Of random maps, random weights and intervals.")
@click.option("--write", "write_folder", type=_FOLDER, help="Folder of a new version of the bundle with these figures.")
@click.option("--version", "bundle_version", help="Version of that bundle. Default: the old one counted up.")
@json_option
@exits_cleanly
def explain(
    data: str,
    folds: Path | None,
    fold: int | None,
    part_pattern: str | None,
    bundle_folder: Path,
    run_folder: Path | None,
    out: Path,
    images: int,
    split: str,
    seed: int,
    write_folder: Path | None,
    bundle_version: str | None,
    as_json: bool,
) -> None:
    """Measure how good a bundle's explanations are, beside the usual ways to explain; write a report.

    Needs defect images with masks. What was measured of an interrupted run is kept in OUT and not measured again.

    \b
    Example:
      defectlens explain --bundle bundles/parts --run runs/parts --data parts/ --out reports/why
      defectlens explain --bundle bundles/parts --data parts/ --out reports/why --write bundles/parts-2
    """
    set_up_logging()
    if images < 0:
        raise SettingsError(f"--images must be at least 0; got {images}")
    if write_folder is not None and write_folder.exists():
        raise SettingsError(f"{write_folder} is already there; a bundle is never overwritten, give another --write")
    bundle = load_bundle(bundle_folder)
    run = None if run_folder is None else load_run(run_folder)
    found = read_data(data, folds=folds, fold=fold, part_pattern=part_pattern)
    samples = found.test if split == "test" else found.train
    if not samples:
        raise DataError(f"{found.root} has no {split} images to explain")
    result = study(bundle, found, samples, out, run=run, images=images, seed=seed)
    figures: dict[str, Any] = {"frames": result.report["frames"]}
    for name in METRICS:
        standing = result.report["comparison"][name][OURS]
        figures |= {name: standing["figure"]["value"], f"{name}_verdict": standing["verdict"]}
    figures["times_random"] = result.report["times_random"]["value"]
    figures["checks"] = {name: check["status"] for name, check in result.report["checks"].items()}
    if write_folder is not None:
        written = write_version(bundle, result.explanations, write_folder, bundle_version)
        say(f"bundle written to {write_folder}, version {written.manifest.version}")
        figures |= {"bundle": write_folder, "version": written.manifest.version}
    say(f"report: {out / 'report.html'}")
    finish({**figures, "report": out / "report.html"}, as_json=as_json)
