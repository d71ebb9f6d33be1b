"""How every command talks: progress and words on stderr, figures as one JSON line on stdout, exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision.errors import DefectLensError, InputError

P = ParamSpec("P")
T = TypeVar("T")

EXIT_FAILURE = 1
EXIT_WRONG_INPUT = 2
# Without a terminal (CI, a service's log) a long job says one line this often, in seconds.
_LINE_INTERVAL_S = 10.0

console = Console(stderr=True)
json_option = click.option("--json", "as_json", is_flag=True, help="End with one JSON line of the figures on stdout.")


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr, so that stdout stays machine-readable."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def finish(figures: dict[str, Any], *, as_json: bool) -> None:
    """Print the figures: one JSON line on stdout with ``--json``, aligned lines on stderr otherwise."""
    if as_json:
        click.echo(json.dumps(plain(figures), ensure_ascii=False))
        return
    width = max((len(key) for key in figures), default=0)
    for key, value in figures.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        say(f"  {key:<{width}}  {shown}")


def plain(value: Any) -> Any:
    """Paths, tuples and NaN to what JSON knows (NaN and infinity become null)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def track(items: Iterable[T], what: str, *, total: int | None = None, unit: str = "images") -> Iterator[T]:
    """Iterate with a progress bar, rate and time left; on anything but a terminal, with a line now and then.

    Without ``total`` the length of ``items`` counts; what has none (a camera) shows neither an end nor time left.
    The clock starts after the first item: a camera may wait for it, and frozen features are computed before.
    """
    count = total if total is not None or not isinstance(items, Sized) else len(items)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[rate]}"), console=console, transient=True) as progress:
            task = progress.add_task(what, total=count, rate="")
            start = time.monotonic()
            for done, item in enumerate(items, 1):
                yield item
                now = time.monotonic()
                start = start if done > 1 else now
                speed = f"{(done - 1) / (now - start):.1f} {unit}/s" if now > start else ""
                progress.update(task, completed=done, rate=speed)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == 1:
            start = said = now
        if now - said >= _LINE_INTERVAL_S:
            said = now
            rate = (done - 1) / (now - start)
            if count is None:
                say(f"{what}: {done} {unit}, {rate:.1f}/s")
            else:
                say(f"{what}: {done}/{count} {unit}, {rate:.1f}/s, {(count - done) / rate:.0f} s left")


def set_up_logging(*, verbose: bool = False) -> None:
    """Log to stderr: coloured on a terminal, plain lines elsewhere."""
    level = logging.DEBUG if verbose else logging.INFO
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False)
        logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)
    else:
        text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(level=level, format=text, stream=sys.stderr, force=True)


def exits_cleanly(command: Callable[P, T]) -> Callable[P, T]:
    """Our own errors become one message on stderr and the right exit code; anything else keeps its traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except DefectLensError as error:
            say(f"error: {error}")
            raise SystemExit(EXIT_WRONG_INPUT if isinstance(error, InputError) else EXIT_FAILURE) from error

    return wrapped
