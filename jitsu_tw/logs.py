"""
What writes the log: as text, where twistd would write it, or as one JSON object a line (``--log-json``), for what
collects logs: journald, Loki, Elasticsearch.

Much of what is logged comes from outside: names, authors of requests, messages of hypervisors and of other programs. It
is made safe here, in one place, for all lines: an event is one line of bounded length, without control characters.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.logger import FileLogObserver, ILogObserver, LegacyLogObserverWrapper, formatEvent
from twisted.python.logfile import LogFile
from twisted.scripts._twistd_unix import UnixAppLogger
from zope.interface import provider

from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.logger import LogEvent

#: The room of what Twisted's older log says: its values are not of the message.
_OLD: Final = "log_legacy"

#: Characters of a message, of a value in it and of a traceback that are logged, at most.
LONGEST: Final = 10_000
LONGEST_TRACEBACK: Final = 100_000

#: How Twisted's messages begin that peers cause as often as they like, and how many of these are logged in a minute.
_REPEATED: Final = ("EMFILE ", "Re-reserving EMFILE", "{cls} connection ")
MOST_REPEATED: Final = 30

#: syslog(3): what it is told of a failure, as by Twisted's own observer.
_ALERT: Final = 1


def line(event: LogEvent) -> str | None:
    """
    Return an event as a line: ``time``, ``level``, ``room`` (whose words they are), ``message``, and the
    ``values`` in it.

    A fault of ours has its ``traceback`` too. What is no event for people (it has no words) is None.
    """
    message = formatEvent(event)[:LONGEST]
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
        said["traceback"] = failure.getTraceback()[:LONGEST_TRACEBACK]
    values = {} if said["room"] == _OLD else {
        key: _bounded(value) for key, value in event.items() if not key.startswith("log_") and _is_plain(value)
    }  # fmt: skip
    return json.dumps({**said, "values": values}) + "\n"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _bounded(value: Any) -> Any:
    """Return a value for JSON, which has no infinities; a long one is cut."""
    if isinstance(value, str) or (isinstance(value, float) and not isfinite(value)):
        return str(value)[:LONGEST]
    return value


def escaped(event: LogEvent) -> LogEvent:
    """Return an event whose words are one printable line; each line of its traceback, if it has one, is one as well."""
    words, failure = printable(formatEvent(event)[:LONGEST]), event.get("log_failure")
    safe = {key: value for key, value in event.items() if key != "log_failure"}
    if failure is not None:
        words = "\n".join([words, *map(printable, failure.getTraceback()[:LONGEST_TRACEBACK].split("\n"))])
        safe["syslogPriority"] = _ALERT
    return {**safe, "log_format": "{log_words}", "log_words": words}


def bounded(write: ILogObserver) -> ILogObserver:
    """Return what writes by *write*, but of the messages that peers can repeat only `MOST_REPEATED` in a minute."""
    since, number = 0.0, 0

    @provider(ILogObserver)
    def rarely(event: LogEvent) -> None:
        nonlocal since, number
        if (event.get("log_format") or "").startswith(_REPEATED):
            if not 0 <= event["log_time"] - since < 60:
                since, number = event["log_time"], 0
            number += 1
            if number > MOST_REPEATED:
                return
            if number == MOST_REPEATED:
                event = {**event, "log_format": event["log_format"] + " (more like that is not logged for a minute)"}
        write(event)

    return cast("ILogObserver", rarely)


def observer(options: Mapping[str, Any], *, as_json: bool) -> ILogObserver:
    """Return what writes the log to where twistd, with these *options*, would write it; see twistd(1)."""
    if as_json:
        name = options.get("logfile")
        if name == "-" or (options.get("nodaemon", True) and not name):
            out: Any = sys.stdout
        else:
            out = LogFile.fromFullPath(name or "twistd.log")
        return bounded(cast("ILogObserver", FileLogObserver(out, line)))
    twistd: Any = UnixAppLogger(options)._getLogObserver()  # noqa: SLF001 -- so that --syslog and SIGUSR1 work as always
    if not ILogObserver.providedBy(twistd):
        twistd = LegacyLogObserverWrapper(twistd)  # of syslog

    @provider(ILogObserver)
    def write(event: LogEvent) -> None:
        twistd(escaped(event))

    return bounded(cast("ILogObserver", write))


def set_up(application: Any, options: Mapping[str, Any] | None, *, as_json: bool = False) -> None:
    """Let *application* log so, unless twistd, with these *options*, runs another logger, or does not run it."""
    if options is not None and not options.get("logger"):
        application.setComponent(ILogObserver, observer(options, as_json=as_json))
