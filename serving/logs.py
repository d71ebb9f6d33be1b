"""Log lines made of named fields: ``event=answered request_id='r1' ...``, or the same as one JSON object a line."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

from vision.console import plain, set_up_logging

LogFormat = Literal["text", "json"]
# Words of callers, which may hold anything: always in quotes, so that nobody can fake another field or line.
_FOREIGN = frozenset({"request_id", "camera_id", "part_id", "lot", "message"})
_SAFE = re.compile(r"[\w./:+-]+", re.ASCII)


class Event:
    """What is logged: ``_log.info(Event("ready", address=address))``. Rendered only if somebody listens."""

    __slots__ = ("fields",)

    def __init__(self, event: str, **fields: Any) -> None:
        self.fields = {"event": event, **fields}

    def __str__(self) -> str:
        return " ".join(f"{key}={_quoted(key, value)}" for key, value in self.fields.items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, then the event's fields or the plain message."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, Event):
            entry |= record.msg.fields
        else:
            entry["message"] = record.getMessage()
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(plain(entry), ensure_ascii=False)


def set_up_serving_logs(log_format: LogFormat, *, verbose: bool) -> None:
    """Log to stderr: text as every command does, or JSON for whatever collects the lines."""
    set_up_logging(verbose=verbose)
    if log_format == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.getLogger().handlers[:] = [handler]


def _quoted(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and (key in _FOREIGN or not _SAFE.fullmatch(value)):
        return repr(value)
    return str(value)
