"""
Write the log: as text, where twistd would write it, or as one JSON object a line (``--log-json``), for collectors of
logs: journald, Loki, Elasticsearch.

Many logged values come from outside: names, authors of requests, messages of hypervisors and of other programs. They
are made safe here, for all lines: an event is one line of bounded length, without control characters.
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

#: The namespace of messages from Twisted's older log: their values do not belong to the message.
_OLD: Final = "log_legacy"

#: The most characters of a message, of a value in it and of a traceback that are logged.
LONGEST: Final = 10_000
LONGEST_TRACEBACK: Final = 100_000

#: The beginnings of Twisted's messages that peers can cause at will, and how many of these are logged in a minute.
_REPEATED: Final = ("EMFILE ", "Re-reserving EMFILE", "{cls} connection ")
MOST_REPEATED: Final = 30

#: syslog(3): the priority of a failure, as in Twisted's own observer.
_ALERT: Final = 1


def line(event: LogEvent) -> str | None:
    """
    Return an event as a line of JSON: ``time``, ``level``, ``room`` (its namespace), ``message``, and the ``values`` in
    it; an internal error has its ``traceback``, too. Return None for an event without a message.
    """
    message = formatEvent(event)[:LONGEST]
    failure = event.get("log_failure")
    if not message and failure is None:
        return None
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds"),
        "level": event["log_level"].name,
        "room": event.get("log_namespace", ""),
        "message": message,
    }
    if failure is not None:
        fields["traceback"] = failure.getTraceback()[:LONGEST_TRACEBACK]
    values = {} if fields["room"] == _OLD else {
        key: _bounded(value) for key, value in event.items() if not key.startswith("log_") and _is_plain(value)
    }  # fmt: skip
    return json.dumps({**fields, "values": values}) + "\n"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _bounded(value: Any) -> Any:
    """Return a value for JSON: infinities, which JSON does not have, as text; long texts cut."""
    if isinstance(value, str) or (isinstance(value, float) and not isfinite(value)):
        return str(value)[:LONGEST]
    return value


def escaped(event: LogEvent) -> LogEvent:
    """Return an event whose message is one printable line; so is each line of its traceback, if it has one."""
    words, failure = printable(formatEvent(event)[:LONGEST]), event.get("log_failure")
    safe = {key: value for key, value in event.items() if key != "log_failure"}
    if failure is not None:
        words = "\n".join([words, *map(printable, failure.getTraceback()[:LONGEST_TRACEBACK].split("\n"))])
        safe["syslogPriority"] = _ALERT
    return {**safe, "log_format": "{log_words}", "log_words": words}


def bounded(write: ILogObserver) -> ILogObserver:
    """Return an observer that calls *write*; of messages that peers can cause at will, `MOST_REPEATED` in a minute."""
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
                more = " (further such lines are not logged for a minute)"
                event = {**event, "log_format": event["log_format"] + more}
        write(event)

    return cast("ILogObserver", rarely)


def observer(options: Mapping[str, Any], *, as_json: bool) -> ILogObserver:
    """Return the observer that writes the log to where twistd, with these *options*, would write it (twistd(1))."""
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
    """Set the log observer of *application*, unless twistd's *options* name another logger; None: no twistd runs it."""
    if options is not None and not options.get("logger"):
        application.setComponent(ILogObserver, observer(options, as_json=as_json))
