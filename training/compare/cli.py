"""`defectlens compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from training.cli import budget_options, data_options
from training.compare.study import study
from training.compare.variants import VARIANTS, choose_variants, run_trials
from training.data import read_data
from training.options import TrainOptions
from vision.console import exits_cleanly, finish, json_option, say, set_up_logging
from vision.errors import SettingsError

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@data_options
@click.option(
    "--out", type=_FOLDER, required=True, help="Folder for the runs and the report; goes on with what is there."
)
@click.option(
    "--variants",
    default="cnn,lstm,attention-1,attention-8,sparse",
    show_default=True,
    help=f"Of {', '.join(VARIANTS)}.",
)
@click.option("--seeds", default=3, show_default=True, help="Trainings of each variant.")
@budget_options
@json_option
@exits_cleanly
def compare(
    data: str,
    folds: Path | None,
    fold: int | None,
    part_pattern: str | None,
    out: Path,
    variants: str,
    seeds: int,
    weights: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train the same model with several token mixers under the same budget and seeds; write a report.

    Interrupted, the same command goes on where it was. The report says which variant makes the fewest errors, whether
    that is more than chance, and what each costs.

    \b
    Example:
      defectlens compare --data parts/ --out compare --variants cnn,attention-8
    """
    set_up_logging()
    chosen = choose_variants(variants)
    if seeds < 1:
        raise SettingsError(f"--seeds must be at least 1; got {seeds}")
    images = read_data(data, folds=folds, fold=fold, part_pattern=part_pattern)
    asked = TrainOptions(weights=str(weights) if weights else None, **options)
    trials = run_trials(images, asked, chosen, range(seeds), out)
    report = study(trials, images, out)
    say(f"report: {out / 'report.html'}")
    finish(
        {
            "best": report["best"],
            "errors": {name: one["errors"] for name, one in report["variants"].items()},
            "report": out / "report.html",
        },
        as_json=as_json,
    )
