from __future__ import annotations

import inspect
import re

from vision import errors
from vision.errors import DataError, DefectLensError, ImageError, InputError


def _classes() -> dict[str, type]:
    return {name: item for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}


def test_one_tree() -> None:
    assert all(issubclass(item, DefectLensError) for item in _classes().values())


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = re.findall(r"\b([A-Z]\w+Error)\b", errors.__doc__ or "")
    assert sorted(drawn) == sorted(_classes())


def test_the_drawing_shows_the_right_parents() -> None:
    parents: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([ │├└─]*)(\w+Error)\b", line):
            depth = len(match[1])
            parents[depth] = match[2]
            above = max((known for known in parents if known < depth), default=None)
            if above is not None:
                assert _classes()[match[2]].__base__ is _classes()[parents[above]], line


def test_what_the_caller_can_mend() -> None:
    assert issubclass(ImageError, InputError)
    assert not issubclass(errors.OverloadedError, InputError)
    assert not issubclass(errors.DeadlineError, InputError)


def test_data_errors_list_every_problem() -> None:
    error = DataError("2 problems", ["first", "second"])
    assert str(error) == "2 problems\n  - first\n  - second"
    assert error.problems == ("first", "second")
