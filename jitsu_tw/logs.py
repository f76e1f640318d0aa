"""The log as one JSON object a line (``--log-json``), for what collects logs: journald, Loki, Elasticsearch."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import FileLogObserver, formatEvent
from twisted.python.logfile import LogFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.logger import LogEvent

#: The room of what Twisted's older log says: its values are not of the message.
_OLD: Final = "log_legacy"


def line(event: LogEvent) -> str | None:
    """
    Return an event as a line: ``time``, ``level``, ``room`` (whose words they are), ``message``, and the
    ``values`` in it.

    A fault of ours has its ``traceback`` too. What is no event for people (it has no words) is None.
    """
    message = formatEvent(event)
    failure = event.get("log_failure")
    if not message and failure is None:
        return None
    said: dict[str, Any] = {
        "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
        "level": event["log_level"].name,
        "room": event.get("log_namespace", ""),
        "message": message,
    }
    if failure is not None:
        said["traceback"] = failure.getTraceback()
    values = {} if said["room"] == _OLD else {
        key: value for key, value in event.items() if not key.startswith("log_") and _is_plain(value)
    }  # fmt: skip
    return json.dumps({**said, "values": values}) + "\n"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def observer(options: Mapping[str, Any] | None) -> FileLogObserver:
    """Return what writes the log to where twistd, with these *options*, would write it; see twistd(1)."""
    name, in_front = (options or {}).get("logfile"), (options or {}).get("nodaemon", True)
    if name == "-" or (in_front and not name):
        out: Any = sys.stdout
    else:
        out = LogFile.fromFullPath(name or "twistd.log")
    return FileLogObserver(out, line)
