"""What happens while the program runs, as records of the logger `edgeft`: one line of JSON each, on request.

What a person should know of is a plain line on stderr where no log was asked for; the other events show nothing then.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from .errors import UsageError

LOG = logging.getLogger("edgeft")
VARIABLE, FORMATS = "EDGEFT_LOG", ("text", "json")


def event(name: str, message: str = "", level: int = logging.INFO, **fields: Any) -> None:
    """Record an event; `fields` must be what JSON can hold."""
    if LOG.isEnabledFor(level):
        LOG.log(level, message or name, extra={"edgeft_event": name, "edgeft_fields": fields})


def warn(name: str, message: str, **fields: Any) -> None:
    """Record an event that a person should know of: it shows, whether or not a log was asked for."""
    if LOG.handlers:  # ours, or an application's that wants them
        event(name, message, logging.WARNING, **fields)
    else:
        print(message, file=sys.stderr, flush=True)


class JsonLines(logging.Formatter):
    """A record as one line: time (UTC), level, event, its fields, and the message where it says more."""

    def format(self, record: logging.LogRecord) -> str:
        name, message = getattr(record, "edgeft_event", record.name), record.getMessage()
        line = {"time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(), "event": name, **getattr(record, "edgeft_fields", {}),
                **({"message": message} if message != name else {})}
        return json.dumps(line, default=str)  # ASCII: no text can break out of its line


def log_json(stream: TextIO | None = None) -> None:
    """From now on write every event to `stream`, by default stderr, as a line of JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


def log_as(form: str | None = None) -> None:
    """Log as `form` says, or with None as EDGEFT_LOG does; UsageError if that is neither text nor json."""
    form = form or os.environ.get(VARIABLE) or "text"
    if form not in FORMATS:
        raise UsageError(f"{VARIABLE} must be {' or '.join(FORMATS)}, found {form!r}.")
    if form == "json":
        log_json()


def logs_json() -> bool:
    """Whether lines of JSON were asked for."""
    return any(isinstance(handler.formatter, JsonLines) for handler in LOG.handlers)
