"""``defectlens demo``: the whole river on real parts, every step by the command that a user would type."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from training.data import DataSet, read_data
from training.processes import Children, Process, has_ended
from training.scan import relative
from vision.console import exits_cleanly, finish, json_option, say
from vision.errors import DefectLensError, ParityError, SettingsError
from vision.parity import SCORE_TOLERANCE

# Chosen for two CPU cores: everything together takes some ten minutes there.
TRAIN_OPTIONS: dict[str, str] = {"--size": "160", "--epochs": "4", "--seed": "0"}

_SERVER_START_S = 120.0
_POLL_S = 0.1


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything that the demo makes; its own results of an earlier run are replaced.",
)
@click.option("--data", default="elpv", show_default=True, help="elpv, or a folder of your own in the MVTec layout.")
@click.option("--epochs", type=click.IntRange(min=1), help=f"Instead of {TRAIN_OPTIONS['--epochs']}.")
@click.option(
    "--size", type=click.IntRange(min=32), help=f"Input size in pixels, instead of {TRAIN_OPTIONS['--size']}."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stream this many of the held-out frames, instead of all.")
@json_option
@exits_cleanly
def demo(out: Path, data: str, epochs: int | None, size: int | None, limit: int | None, as_json: bool) -> None:
    """Train, export, evaluate, serve and inspect on real solar cells.

    A model is trained on the train split of the ELPV cells, exported and evaluated on cells it never saw. A server is
    started in a process of its own, the held-out cells are streamed through it, and its scores are compared with the
    evaluation's. Nothing is left running, however the demo ends.

    \b
    Example:
      defectlens demo
      defectlens demo --data parts/ --out demo-parts --epochs 5 --json
    """
    dataset = read_data(data)
    if not dataset.test:
        raise SettingsError(f"{data} has no test images, and the demo streams those; give a data set with a test split")
    options = TRAIN_OPTIONS | {
        name: str(value) for name, value in (("--epochs", epochs), ("--size", size)) if value is not None
    }
    places = _Places(out)
    places.clear()
    names = places.link_frames(dataset, limit)
    with Children() as children:
        figures = _Steps(children, places, data).run([word for pair in options.items() for word in pair])
    figures["largest_score_difference"] = compare(places.predictions, places.jsonl, names)
    say("\nWhere to look:")
    say(f"  {figures['overlays']}/  what an inspector sees, one overlay for each cell")
    say(f"  {places.report}  figures with intervals, curves and the worst mistakes")
    say(f"  {places.bundle}/  what you would deploy: defectlens serve --bundle {places.bundle}")
    finish(figures, as_json=as_json)


class _Places:
    """Where the demo writes, below one folder."""

    def __init__(self, out: Path) -> None:
        self.run, self.bundle, self.evaluation = out / "run", out / "bundle", out / "evaluation"
        self.frames, self.answers = out / "frames", out / "answers"
        self.jsonl, self.server_log, self.ready = out / "answers.jsonl", out / "server.log", out / "server-ready"
        self.report, self.predictions = self.evaluation / "report.html", self.evaluation / "predictions.jsonl"
        self.out = out

    def clear(self) -> None:
        """Remove what an earlier demo wrote, and nothing else."""
        for folder in (self.run, self.bundle, self.evaluation, self.frames, self.answers):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.jsonl, self.ready):
            file.unlink(missing_ok=True)

    def link_frames(self, dataset: DataSet, limit: int | None) -> dict[str, str]:
        """Put the held-out images into a folder of their own; what evaluation calls each of its files."""
        self.frames.mkdir(parents=True)
        names = {}
        for index, sample in enumerate(dataset.test[:limit]):
            link = self.frames / f"{index:05d}_{sample.label}{sample.path.suffix}"
            names[link.name] = relative(sample.path, dataset.root)
            try:
                link.symlink_to(sample.path.resolve())
            except OSError:  # a file system without links
                shutil.copy(sample.path, link)
        return names


class _Steps:
    def __init__(self, children: Children, places: _Places, data: str) -> None:
        self._children, self._places, self._data = children, places, data
        self._seconds: dict[str, float] = {}

    def run(self, train_options: Sequence[str]) -> dict[str, Any]:
        places = self._places
        self._command("train", "--data", self._data, "--out", places.run, *train_options)
        self._command("export", "--run", places.run, "--out", places.bundle)
        self._command("evaluate", "--bundle", places.bundle, "--data", self._data, "--out", places.evaluation)
        measured = json.loads((places.evaluation / "report.json").read_text(encoding="utf-8"))
        streamed = self._stream()
        return {
            "image_auroc": measured["image_auroc"],
            "frames": streamed["frames"],
            "verdicts": streamed["verdicts"],
            "by_verdict": streamed["by_verdict"],
            "p50_ms": streamed["p50_ms"],
            "p99_ms": streamed["p99_ms"],
            "frames_per_second": streamed["frames_per_second"],
            "overlays": streamed["overlays"],
            "report": places.report,
            "bundle": places.bundle,
            "provider": streamed["provider"],
            "seconds": {name: round(value, 1) for name, value in self._seconds.items()},
        }

    def _command(self, name: str, *arguments: str | Path) -> dict[str, Any]:
        """Run one of our commands; the figures of its last line."""
        say(f"\n== {name}: defectlens {name} {' '.join(map(str, arguments))}")
        start = time.monotonic()
        output = self._children.run([sys.executable, "-m", "defectlens", name, *arguments, "--json"])
        self._seconds[name] = time.monotonic() - start
        figures: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return figures

    def _stream(self) -> dict[str, Any]:
        places = self._places
        arguments: list[str | Path] = [
            "--bundle",
            places.bundle,
            "--address",
            "127.0.0.1:0",
            "--ready-file",
            places.ready,
        ]
        say(f"\n== serve: defectlens serve {' '.join(map(str, arguments))}  (its log: {places.server_log})")
        start = time.monotonic()
        with places.server_log.open("wb") as log:
            server = self._children.start(
                [sys.executable, "-m", "defectlens", "serve", *arguments], stdout=log, stderr=log
            )
        address = self._wait_for(server)
        self._seconds["serve"] = time.monotonic() - start
        streamed = self._command(
            "inspect",
            *("--server", address, "--source", places.frames, "--out", places.answers),
            *("--overlays", "--jsonl", places.jsonl),
        )
        if (code := self._children.stop(server)) != 0:
            raise DefectLensError(
                f"the server ended with exit code {code} when it was stopped; see {places.server_log}"
            )
        return streamed

    def _wait_for(self, server: Process) -> str:
        """The address that the server writes once it is ready."""
        end = time.monotonic() + _SERVER_START_S
        while not self._places.ready.is_file():
            if has_ended(server) or time.monotonic() > end:
                raise DefectLensError(f"the server did not become ready; see {self._places.server_log}")
            time.sleep(_POLL_S)
        return self._places.ready.read_text(encoding="utf-8").strip()


def compare(predictions: Path, answers: Path, names: dict[str, str]) -> float:
    """The largest difference between the evaluation's scores and the server's for the same image.

    Args:
        predictions: JSON lines of ``defectlens evaluate``.
        answers: JSON lines of ``defectlens inspect``.
        names: the file name of each frame, and the ``path`` of its prediction.

    Raises:
        ParityError: a frame without an answer, another verdict, or scores further apart than published.
    """
    expected = {line["path"]: line for line in _read_lines(predictions)}
    got = {names[Path(line["path"]).name]: line for line in _read_lines(answers)}
    if missing := set(names.values()) - got.keys():
        raise ParityError(f"{len(missing)} frames have no answer, {min(missing)} for one; see {answers}")
    largest = 0.0
    for path, answer in got.items():
        difference = _difference(expected[path], answer)
        if answer["verdict"] != expected[path]["verdict"] or not difference <= SCORE_TOLERANCE:
            raise ParityError(
                f"{path} is {expected[path]['verdict']} in the evaluation and {answer['verdict']} from the server, and "
                f"the scores differ by {difference:.3g} (tolerance {SCORE_TOLERANCE:g}); "
                f"compare {predictions} with {answers}"
            )
        largest = max(largest, difference)
    return largest


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    pairs = [(one["class_scores"][name], other["class_scores"][name]) for name in one["class_scores"]]
    if one["anomaly_score"] is not None or other["anomaly_score"] is not None:
        pairs.append((one["anomaly_score"], other["anomaly_score"]))
    if any(value is None for pair in pairs for value in pair):
        return float("inf")
    return max(abs(float(a) - float(b)) for a, b in pairs)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
