"""`defectlens whatif` and `escapes`: what a quality manager asks after the fact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from serving.chosen_answers import chosen_answers, take_chosen
from serving.whatif_page import ROWS, write_page
from vision.bundle import load_bundle
from vision.calibration.asking import read_asked
from vision.calibration.choose import About, Classes, choose_point
from vision.calibration.escapes import Escapes, count_reviews, estimate_escapes
from vision.calibration.evidence import percent
from vision.calibration.pixels import PixelThresholds
from vision.calibration.replay import Change, Outcome, Replay, Thresholds
from vision.calibration.stored import read_lines, read_scores
from vision.console import exits_cleanly, finish, json_option, plain, say
from vision.errors import SettingsError
from vision.manifest import Manifest

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_NOW, _THEN = "as it was", "what if"


@click.command()
@click.option(
    "--scores",
    type=_FILE,
    help="predictions.jsonl of `evaluate` (with labels) or answers.jsonl of `inspect` (without).",
)
@chosen_answers
@click.option("--out", type=_FOLDER, required=True, help="Folder for whatif.html and whatif.json.")
@click.option(
    "--bundle", type=_FOLDER, help="Bundle that gave the scores: its thresholds and class thresholds are shown."
)
@click.option("--image-threshold", type=float, help="Reject from this raw anomaly score on.")
@click.option("--review-threshold", type=float, help="Review from this one on. Default: --image-threshold, no review.")
@click.option("--max-overkill", type=float, help="At most this share of good parts is not passed.")
@click.option("--min-recall", type=float, help="At least this share of defective parts is not passed.")
@click.option("--cost", metavar="NAME=PRICE,...", help="overkill=1,escape=50[,review=0.2]: least expected cost.")
@click.option("--max-review", type=float, help="Share of good parts that may go to a person.")
@click.option("--confidence", type=float, help="See `calibrate`.")
@click.option("--defect-rate", type=float, help="Share of defective parts in production; for --cost.")
@json_option
@exits_cleanly
def whatif(
    scores: Path | None,
    out: Path,
    bundle: Path | None,
    image_threshold: float | None,
    review_threshold: float | None,
    max_review: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay stored scores under other thresholds: overkill, escapes and review, and which parts would change.

    Nothing is changed: this shows what a threshold would have done. To change a bundle, use `defectlens calibrate` on
    calibration images; thresholds chosen on the images that they are measured on look better than they are.

    \b
    Example:
      defectlens whatif --scores reports/parts/predictions.jsonl --max-overkill 0.01 --out whatif
      defectlens whatif --scores answers/answers.jsonl --image-threshold 3.5 --review-threshold 2 --out whatif
      defectlens whatif --audit audit --lot L2 --image-threshold 3.5 --out whatif
    """
    loaded = None if bundle is None else load_bundle(bundle)
    manifest = None if loaded is None else loaded.manifest
    chosen, rule = take_chosen(options), options
    if (scores is None) == (chosen is None):
        raise SettingsError("take either --scores FILE or --audit DIR_OR_URL")
    if chosen is not None:
        replay, title = Replay(chosen.scores(loaded)), chosen.title
    else:
        path = Path(str(scores))
        replay, title = Replay(read_scores(path)), path.name
    notes = [*([] if chosen is None else chosen.notes), *_notes(replay, manifest)]
    then = _thresholds(replay, manifest, image_threshold, review_threshold, max_review, rule, notes)
    now = None if manifest is None else Thresholds.of(manifest.operating_point)
    verdicts = {_NOW: replay.stored_verdicts(), _THEN: replay.verdicts(then)}
    outcomes = {name: replay.outcome(found) for name, found in verdicts.items()}
    changes = replay.changes(verdicts[_THEN])
    curve = replay.curve(then)
    out.mkdir(parents=True, exist_ok=True)
    thresholds = {_NOW: now, _THEN: then}
    write_page(
        out / "whatif.html",
        title=title,
        frames=len(replay.frames),
        outcomes=outcomes,
        thresholds=thresholds,
        curve=curve,
        changes=changes,
        notes=notes,
    )
    document = {
        "scores": title,
        "frames": len(replay.frames),
        "thresholds": {name: None if one is None else asdict(one) for name, one in thresholds.items()},
        "rates": {name: _rates(outcome) for name, outcome in outcomes.items()},
        "curve": [{"threshold": point.threshold, "rates": _rates(point)} for point in curve],
        "changes": [_change(change) for change in changes],
        "notes": notes,
    }
    text = json.dumps(plain(document), indent=2, ensure_ascii=False)
    (out / "whatif.json").write_text(text + "\n", encoding="utf-8")
    for line in (*_table(outcomes), *(f"note: {note}" for note in notes)):
        say(line)
    figures: dict[str, Any] = {"frames": len(replay.frames), "image_threshold": then.image}
    figures |= {"review_threshold": then.review, "changes": len(changes), "page": out / "whatif.html"}
    if as_json:
        figures["rates"] = document["rates"]
    finish(figures, as_json=as_json)


def _thresholds(
    replay: Replay,
    manifest: Manifest | None,
    image: float | None,
    review: float | None,
    max_review: float | None,
    rule: dict[str, Any],
    notes: list[str],
) -> Thresholds:
    classes = {} if manifest is None else manifest.operating_point.class_thresholds
    if image is not None or review is not None:
        if any(value is not None for value in (*rule.values(), max_review)):
            raise SettingsError("give thresholds, or a rule to choose them by, and not both")
        image = review if image is None else image
        review = image if review is None else review
        if image is None or review is None or review > image:
            raise SettingsError(f"the review threshold must not be above the image threshold; got {review} and {image}")
        return Thresholds(image, review, classes)
    asked = read_asked(**rule)
    images = replay.images(() if manifest is None else manifest.defect_classes)
    if not len(images):
        raise SettingsError(
            "these scores have no labels, and a rule weighs good parts against defective ones: give "
            "--image-threshold, or predictions.jsonl of `defectlens evaluate`"
        )
    point = choose_point(
        images,
        asked,
        max_review=max_review,
        classes=Classes(classes),
        pixels=PixelThresholds(),
        about=About("stored scores", ""),
    )
    found = Thresholds.of(point)
    if found is None or point.basis is None:
        raise SettingsError("no thresholds follow from these scores")
    notes.append(f"Asked for: {point.basis.promise}. This would rest on {point.basis.basis}, {point.basis.method}.")
    notes += point.basis.notes  # such as class thresholds that were raised to make room
    notes.append(
        "The thresholds were chosen on the very scores that they are measured on here, so that their rates look better "
        "than they are. If these are test images, choosing by them spoils them as a measure; `defectlens calibrate` "
        "chooses on calibration images."
    )
    return found


def _notes(replay: Replay, manifest: Manifest | None) -> list[str]:
    notes = []
    if replay.left_out:
        notes.append(f"{replay.left_out} stored frames have no anomaly score and are left out.")
    unlabelled = len(replay.frames) - int(replay.good.sum()) - int(replay.bad.sum())
    if unlabelled:
        notes.append(
            f"Of {unlabelled} frames nobody said what they truly are: they count for passes, review and rejects."
        )
    if manifest is None:
        notes.append("Without --bundle class thresholds are not replayed: what a class alone stopped would be passed.")
    elif manifest.operating_point.class_thresholds and not replay.has_probabilities:
        raise SettingsError(
            "the bundle has class thresholds, and these scores hold no class probabilities; evaluate again"
        )
    return notes


def _rates(found: Any) -> dict[str, Any]:
    return {name: {**asdict(rate), "value": rate.value} for name, rate in found.rates.items()}


def _change(change: Change) -> dict[str, Any]:
    return {**asdict(change), "before": change.before.name, "after": change.after.name}


def _table(outcomes: dict[str, Outcome]) -> list[str]:
    lines = [f"{'':16}" + "".join(f"{name:>36}" for name in outcomes)]
    for key, name, _ in ROWS:
        rates = [outcome.rates.get(key) for outcome in outcomes.values()]
        if any(rate is not None for rate in rates):
            cells = [
                "–" if rate is None else f"{percent(rate.value)} ({percent(rate.low)} to {percent(rate.high)})"
                for rate in rates
            ]
            lines.append(f"{name:16}" + "".join(f"{cell:>36}" for cell in cells))
    return lines


@click.command()
@click.option("--checked", type=click.IntRange(1), help="Passed parts that a person checked, drawn at random.")
@click.option("--found", type=click.IntRange(0), help="Of these, how many were defective.")
@click.option("--passed", type=click.IntRange(1), help="All passed parts that the checked ones were drawn from.")
@click.option("--caught", type=click.IntRange(0), help="Defective parts that were not passed, in the same time.")
@click.option(
    "--reviews",
    type=_FILE,
    help='JSON lines with "verdict" and, where somebody checked, "defective"; instead of the four numbers.',
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the interval.")
@chosen_answers
@json_option
@exits_cleanly
def escapes(
    checked: int | None,
    found: int | None,
    passed: int | None,
    caught: int | None,
    reviews: Path | None,
    confidence: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate how many passed parts are defective, from passed parts that a person checked.

    The checked parts must be a random sample of the passed ones: who checks only what looks odd finds more, and learns
    nothing about the rest.

    \b
    Example:
      defectlens escapes --checked 500 --found 2
      defectlens escapes --checked 500 --found 2 --passed 20000 --caught 340
      defectlens escapes --reviews checked.jsonl
      defectlens escapes --audit audit --since 2026-01-01
    """
    chosen = take_chosen(options)
    counts: dict[str, int | None] = {"checked": checked, "found": found, "passed": passed, "caught": caught}
    given = [chosen is not None, reviews is not None, any(value is not None for value in counts.values())]
    if sum(given) > 1:
        raise SettingsError(
            "--reviews and --audit hold the numbers; take one; leave --checked, --found, --passed and --caught away"
        )
    if chosen is not None:
        counts = dict(chosen.escape_counts())
    elif reviews is not None:
        counts = dict(count_reviews(read_lines(reviews)))
        if not counts["checked"]:
            raise SettingsError(f'{reviews} holds no passed part that somebody checked (verdict PASS with "defective")')
    if counts["checked"] is None or counts["found"] is None:
        raise SettingsError("give --checked N and --found K, a file by --reviews or a store by --audit")
    estimate = estimate_escapes(
        counts["checked"], counts["found"], passed=counts["passed"], caught=counts["caught"], confidence=confidence
    )
    for line in describe_escapes(estimate):
        say(line)
    if as_json:
        finish(
            {**counts, **asdict(estimate), "share": {**asdict(estimate.share), "value": estimate.share.value}},
            as_json=True,
        )


def describe_escapes(estimate: Escapes) -> Sequence[str]:
    """In words, for people."""
    share, sure = estimate.share, percent(estimate.confidence)
    lines = [
        f"{share.hits} of {share.of} checked parts were defective: {percent(share.value)} of passed parts, with {sure} "
        f"confidence between {percent(share.low)} and {percent(share.high)}"
    ]
    if estimate.count is not None:
        lines.append(f"of {estimate.passed} passed parts, {estimate.count[0]} to {estimate.count[1]} are defective")
    if estimate.escape_rate is not None:
        low, likeliest, high = estimate.escape_rate
        lines.append(
            f"escape rate (defective parts passed ÷ defective parts): {percent(likeliest)}, between {percent(low)} and "
            f"{percent(high)}"
        )
    if estimate.more_checks is None:
        lines.append("even all passed parts would not halve the interval")
    else:
        lines.append(
            f"{estimate.more_checks} more checks would halve the interval, if as large a share of them is defective"
        )
    lines.append("this holds if the checked parts were drawn at random from the passed ones")
    return lines
