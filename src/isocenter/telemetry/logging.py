"""Structured logs: one JSON object a line on stderr. Only named fields are written, so nothing slips in by accident."""

import datetime
import logging
import sys
from typing import Final

import orjson

LOGGER_NAME: Final = "isocenter"

FOREIGN: Final = {"uvicorn.error": "http_server", "asyncio": "event_loop"}
"""Loggers of libraries, and the event that each of their lines is: their sentences may quote what a caller sent."""

FIELDS: Final = (
    "request_id", "model", "version", "state", "code", "status", "total_ms", "bytes", "port", "host", "url",
    "digest", "uptime_s", "answered", "kind", "seconds", "models", "signal", "left", "role", "pid", "times",
)  # fmt: skip
"""Every field that a line may carry. File names, pixels, headers and texts of callers are not among them."""


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "event", …fields}`; the event is a fixed word, never an interpolated sentence."""

    def __init__(self, event: str = "") -> None:
        """`event` stands in place of every record's own."""
        super().__init__()
        self._event = event

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        when = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": self._event or record.getMessage(),
        }
        line.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info and record.exc_info[0] is not None:
            # The class and the place, not the message: a message may quote what a caller sent.
            line["exception"] = record.exc_info[0].__name__
            line["at"] = _place(record)
        return orjson.dumps(line, default=str).decode()


def set_up_logging(level: str) -> logging.Logger:
    """Send the product's log lines to stderr, and those of the libraries beneath it from warnings on.

    Levels: debug (a line a request), info (life of the server), warning, error.
    """
    logger = logging.getLogger(LOGGER_NAME)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    for name, event in FOREIGN.items():
        foreign, beside = logging.getLogger(name), logging.StreamHandler(sys.stderr)
        beside.setFormatter(JsonFormatter(event))
        foreign.handlers[:] = [beside]
        foreign.setLevel(logging.WARNING)
        foreign.propagate = False
    return logger


def _place(record: logging.LogRecord) -> str:
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f"{code.co_qualname}:{trace.tb_lineno}"
