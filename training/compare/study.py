"""``compare.json`` and ``report.html`` of trained variants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training.compare.cost import Cost, measure_costs
from training.compare.figures import Contest, Errors, Measure, choose_measure, spreads
from training.compare.ranking import TOP_SHARE, mask_share_in_top
from training.compare.report import write_report
from training.compare.variants import Trial, bundle_of, by_variant
from training.data import DataSet
from vision.console import plain, say, track


def study(trials: Sequence[Trial], data: DataSet, out: Path) -> dict[str, Any]:
    """Measure costs, compare errors, write both files into ``out`` and return what is in ``compare.json``."""
    groups = by_variant(trials)
    names, first = list(groups), {name: group[0] for name, group in groups.items()}
    models, ranked = {}, {}
    for name, trial in track(first.items(), "Exporting", total=len(first), unit="variants"):
        run, bundle = bundle_of(trial)
        models[name] = (run.detector, bundle)
        engine = bundle.engine(provider="cpu")
        ranked[name] = mask_share_in_top(engine, bundle.manifest, data.test, data.white_level)
    costs = measure_costs(models)
    measure = choose_measure(trials)
    errors = Errors(trials, measure)
    contests = [errors.contest(errors.best, name) for name in names if name != errors.best]
    figures = spreads(trials)
    lines = verdict(contests, costs, measure, len({trial.seed for trial in trials}))
    report = {
        "data": data.root.name,
        "data_digest": data.digest,
        "test_images": len(data.test),
        "seeds": sorted({trial.seed for trial in trials}),
        "measure": measure,
        "input": [models[names[0]][0].config.height, models[names[0]][0].config.width],
        "variants": {
            name: {
                "meaning": first[name].variant.meaning,
                "figures": {key: asdict(value) for key, value in figures[name].items()},
                "errors": errors.whole[name],
                "errors_interval": errors.interval(name),
                "cost": asdict(costs[name]),
                "training_seconds": float(np.mean([trial.training_seconds for trial in groups[name]])),
                "mask_share_in_top_tokens": float(ranked[name].mean()) if len(ranked[name]) else None,
            }
            for name in names
        },
        "top_share": TOP_SHARE,
        "best": errors.best,
        "contests": [{**asdict(contest), "is_significant": contest.is_significant} for contest in contests],
        "verdict": lines,
    }
    report = {key: plain(value) for key, value in report.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_report(report, out / "report.html")
    for line in lines:
        say(line)
    return report


def verdict(contests: Sequence[Contest], costs: dict[str, Cost], measure: Measure, seeds: int) -> list[str]:
    """Sentences a reader can act on: the best against each other one, and which is the cheapest that is no worse."""
    best = contests[0].first
    what = "errors" if measure == "labels" else "misordered pairs of a good and a defective image"
    lines = []
    for contest in contests:
        times = costs[best].ms / costs[contest.second].ms
        low, high = (100.0 * value for value in contest.interval)
        measured = f"difference {100.0 * contest.difference:+.2f} points, {low:+.2f} to {high:+.2f}"
        if contest.is_significant:
            lines.append(
                f"{best} makes {contest.fewer:.0%} fewer {what} than {contest.second} at {times:.2f}× the time "
                f"({measured})."
            )
        else:
            lines.append(f"{best} against {contest.second}: not significant ({measured}), {times:.2f}× the time.")
    equals = [best, *(contest.second for contest in contests if not contest.is_significant)]
    cheapest = min(equals, key=lambda name: costs[name].ms)
    if cheapest != best:
        lines.append(f"{cheapest} is the cheapest of those that are not shown to be worse than {best}.")
    perfect = [best, *(one.second for one in contests if one.errors[1] == 0.0)] if contests[0].errors[0] == 0.0 else []
    if len(perfect) > 1:
        lines.append(f"{', '.join(perfect)} make no error at all: these test images cannot tell them apart.")
    if seeds < 3:
        lines.append(
            f"Of {seeds} seed{'s' if seeds > 1 else ''} only: chance in training is hardly in these intervals."
        )
    return lines
