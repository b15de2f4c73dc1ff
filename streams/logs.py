"""Logging of the command line: one line a message on stderr, as text or as JSON.

Only programs configure logging; importing the packages never does. Standard output stays free for what a
command prints. JSON lines have ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message`` and, for
errors, ``traceback``.
"""

import json
import logging
import sys
import time
from typing import Literal

__all__ = ["LogFormat", "configure_logging"]

LogFormat = Literal["text", "json"]


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        line = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    """Time in UTC, level, logger, message."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )


def configure_logging(level: str, log_format: LogFormat) -> None:
    """Send every log record at or above ``level`` to stderr; replaces what was configured before.

    Parameters
    ----------
    level
        debug, info, warning or error.
    log_format
        text for people, json for collectors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
