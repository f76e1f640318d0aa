"""
What twistd does not do for its plugins: check the files that it writes, raise the limit of open files, and ignore
signals while a service stops.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType


def cannot_write(twistd: Mapping[str, Any] | None) -> str:
    """
    Return why twistd, with its own options *twistd*, cannot write its pid file or its log; empty if it can.

    twistd itself would end with a traceback, and, as a daemon, only after it has left the terminal.
    """
    options = dict(twistd or {})
    log = options.get("logfile") or ("" if options.get("nodaemon") else "twistd.log")
    if options.get("syslog") or options.get("logger") or log == "-":
        log = ""
    pid = options.get("pidfile") if not options.get("chroot") else ""  # with chroot, its folder is not there yet
    for name, words, value in (("pidfile", "the pid file", pid), ("logfile", "the log", log)):
        path = Path(os.fsdecode(value or "")).absolute()
        if value and not os.access(path if path.exists() else path.parent, os.W_OK):
            none = ", or none with --pidfile=" if name == "pidfile" else ""
            return f"cannot write {words} {path}; choose another with twistd --{name}=PATH{none}"
    return ""


def open_files(needed: int) -> str:
    """Raise this process's limit of open files to *needed*; return a warning if the system does not allow it, or ""."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            return (
                f"this process may open {soft} files, fewer than the {needed} that all kinds of clients may take "
                "together: one kind may keep others out; raise the limit, by LimitNOFILE= of systemd or ulimit -n"
            )
    return ""


def stop_once() -> None:
    """
    Ignore all SIGINTs and SIGTERMs but the first: the reactor, which runs, would log a traceback for each.

    They may come before the service is told to stop: the reactor stops only when it gets to it.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, frame: FrameType | None) -> None:
        for one in handlers:
            signal.signal(one, lambda *_: None)
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in handlers:
        signal.signal(number, first)
