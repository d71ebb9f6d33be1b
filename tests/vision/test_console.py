from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vision import console
from vision.errors import BundleError, DefectLensError, OverloadedError


def test_json_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"score": 0.5, "path": Path("a/b"), "nothing": float("nan"), "many": (1, float("inf")), "ünïcode": "×"}
    console.finish(figures, as_json=True)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {"score": 0.5, "path": "a/b", "nothing": None, "many": [1, None], "ünïcode": "×"}
    assert err == ""


def test_words_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]not markup[/bold] " + "x" * 200)
    console.finish({"image_auroc": 0.98765, "frames": 12}, as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "[bold]not markup[/bold] " + "x" * 200
    assert lines[1:] == ["  image_auroc  0.9877", "  frames       12"]


def test_no_figures_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    console.finish({}, as_json=False)
    assert capsys.readouterr() == ("", "")


def test_track_off_a_terminal_is_line_based(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    read = []
    for letter in console.track(iter("abcdef"), "reading", total=6):
        read.append(letter)
        now += 4.0
    assert read == list("abcdef")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reading: 4/6 images, 0.2/s, 8 s left"]


def test_what_the_first_item_takes_to_come_tells_nothing_of_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)

    def late() -> Iterator[str]:
        nonlocal now
        now += 600.0
        yield from "abcdef"

    for _ in console.track(late(), "epoch 1/4", total=6, unit="steps"):
        now += 5.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "epoch 1/4: 3/6 steps, 0.2/s, 15 s left"


def test_track_counts_the_time_of_items_that_come_slowly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)

    def slow() -> Iterator[str]:
        nonlocal now
        for letter in "abcd":
            now += 20.0
            yield letter

    assert list(console.track(slow(), "Evaluating", total=4)) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Evaluating: 2/4 images, 0.1/s, 40 s left"


def test_track_stops_with_its_reader() -> None:
    seen = []

    def endless() -> Iterator[int]:
        for number in range(10**9):
            seen.append(number)
            yield number

    for number in console.track(endless(), "reading", total=10**9):
        if number == 3:
            break
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "code"), [(BundleError("bad bundle"), 2), (OverloadedError("full"), 1), (DefectLensError("other"), 1)]
)
def test_our_errors_become_exit_codes(error: DefectLensError, code: int) -> None:
    @click.command()
    @console.exits_cleanly
    def fails() -> None:
        raise error

    result = CliRunner().invoke(fails)
    assert result.exit_code == code


def test_other_errors_keep_their_traceback() -> None:
    @click.command()
    @console.exits_cleanly
    def fails() -> None:
        raise ZeroDivisionError

    result = CliRunner().invoke(fails)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_logging_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        console.set_up_logging()
        logging.getLogger("test").info("hello")
        logging.getLogger("test").debug("not shown")
        console.set_up_logging(verbose=True)
        logging.getLogger("test").debug("shown")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    out, err = capfd.readouterr()
    assert out == ""
    assert "INFO test: hello" in err
    assert "not shown" not in err
    assert "DEBUG test: shown" in err
