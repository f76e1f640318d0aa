"""
Write the query log: one line for each query, or for a sample of them, to a file or to standard output.

A disk may be full, slow or gone, and a pipe unread. So lines are gathered for `FLUSH_EVERY` seconds and written by a
thread, one batch at a time; what does not fit into a batch, or cannot be written, is dropped and counted. The file is
opened for each batch: after logrotate has renamed it, the next batch makes a new one, and no signal is needed.

The format is Jitsu's own, text or JSON lines, and not dnstap: dnstap has no fields for which VM a query has summoned
or why it was refused, and would need a receiver.
"""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime
from math import log, log1p
from typing import TYPE_CHECKING, Any, Final

from dns.rcode import Rcode
from dns.rdatatype import RdataType
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from jitsu_tw.backends.threaded import in_thread
from jitsu_tw.dns.message import Query
from jitsu_tw.dns.rrl import Decision
from jitsu_tw.dns.wire import to_text
from jitsu_tw.rules.lifecycle import ACTIVATING, State
from jitsu_tw.text import abridged, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from jitsu_tw.dns.counters import Counters
    from jitsu_tw.dns.message import Reject
    from jitsu_tw.dns.reply import Reply
    from jitsu_tw.dns.wire import Source

#: The name that stands for standard output.
STDOUT: Final = "-"

#: Seconds between two batches of lines.
FLUSH_EVERY: Final = 1.0

#: The most lines that wait to be written; further ones are dropped. A line has some hundred octets.
MOST_WAITING: Final = 10_000

#: The most characters of a reason in a line.
LONGEST_WHY: Final = 200

#: Seconds that the end of the process waits for the last batch.
ENDS_WITHIN: Final = 2.0

#: Who may read a new file: its owner and the group. It has addresses of clients.
MODE: Final = 0o640


def fields(
    source: Source, query: Query | Reject, reply: Reply, decision: Decision, refusal: str = ""
) -> dict[str, Any]:
    """
    Return what a line has of a query that was not answered warm.

    Args:
        source: the client.
        query: the query.
        reply: the reply to it.
        decision: of the limiter.
        refusal: why it is answered with a request for proof of the address; empty if it is not.
    """
    question = query.question if isinstance(query, Query) else None
    vm: str | None = getattr(question.outcome, "vm", None) if question is not None else None
    why = refusal or "; ".join(text for _, text in reply.ede if text)
    if decision is not Decision.SEND:
        what = "limited"
    elif refusal or reply.rcode == Rcode.REFUSED:
        what = "refused"
    elif vm is None or question is None:
        what = "answered"
    elif reply.rcode:
        what = "failed"
    elif question.met is State.UP:
        what = "up"
    else:
        what = "joined" if question.met in ACTIVATING else "summoned"
    return {
        "client": source.host,
        "protocol": "tcp" if source.tcp else "udp",
        "name": None if question is None else printable(to_text(question.asked)),
        "type": None if question is None else RdataType.to_text(RdataType.make(question.type)),
        "rcode": Rcode.to_text(reply.rcode),
        "what": what,
        "vm": vm,
        "why": printable(abridged(why, LONGEST_WHY)),
    }


def warm_fields(source: Source, query: Query, vm: str, *, limited: bool) -> dict[str, Any]:
    """Return what a line has of a *query* that has a warm answer, for *vm*; *limited*: by the limiter."""
    return {
        "client": source.host,
        "protocol": "udp",
        "name": printable(to_text(query.question.asked)),
        "type": RdataType.to_text(RdataType.make(query.question.type)),
        "rcode": Rcode.to_text(0),
        "what": "limited" if limited else "warm",
        "vm": vm,
        "why": "",
    }


def as_text(line: Mapping[str, Any]) -> str:
    """Return a line as text: its values with spaces between them, ``-`` for what there is not, the reason last."""
    *values, why = (line[key] for key in ("client", "protocol", "name", "type", "rcode", "what", "vm", "why"))
    shown = " ".join("-" if value is None else str(value).replace(" ", r"\x20") for value in values)
    return f"{line['time']} {line['ms']:.3f}ms {shown} {why}".rstrip()


class QueryLog:
    """
    The query log.

    Everything but `_append` runs in the reactor's thread.
    """

    log = Logger()

    def __init__(
        self,
        path: Path,
        one_in: int,
        counters: Counters,
        reactor: Any,
        wall: Callable[[], float],
        *,
        as_json: bool = False,
        thread: Callable[..., Deferred[Any]] = in_thread,
    ) -> None:
        """
        Write nothing yet.

        Args:
            path: the file; the name `STDOUT` stands for standard output.
            one_in: of so many queries, one is logged, chosen at random.
            counters: has the lines that were written and dropped.
            reactor: `IReactorTime`.
            wall: seconds since 1970.
            as_json: write JSON, one object a line.
            thread: calls a function in a thread (`in_thread`).
        """
        self._path, self._is_stdout, self._as_json = str(path), path.name == STDOUT, as_json
        self._counters, self._reactor, self._wall, self._thread = counters, reactor, wall, thread
        self._spread = log1p(-1 / one_in) if one_in > 1 else 0.0
        self._skip = self._gap()
        self._lines: list[str] = []
        self._flushing: Any = None
        self._writing: Deferred[None] = succeed(None)
        self._torn = self._complained = self._is_full = False

    def chosen(self, count: int) -> list[int]:
        """Return which of the next *count* queries to log, by their indexes."""
        found, at = [], self._skip
        while at < count:
            found.append(at)
            at += 1 + self._gap()
        self._skip = at - count
        room = max(0, MOST_WAITING - len(self._lines))
        if len(found) > room:
            self._drop(len(found) - room)
        return found[:room]

    def write(self, line: Mapping[str, Any], took: float) -> None:
        """Write a line soon: what `fields` returns, of a query that took *took* seconds to answer."""
        if len(self._lines) >= MOST_WAITING:
            self._drop(1)
            return
        time = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
        whole = {"time": time, **line, "ms": round(took * 1000, 3)}
        self._lines.append(json.dumps(whole) if self._as_json else as_text(whole))
        self._schedule()

    def stop(self) -> Deferred[None]:
        """Write the last lines; fires when that is done, after `ENDS_WITHIN` seconds at the latest."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._lines:
            self._flush()
        return self._writing.addTimeout(ENDS_WITHIN, self._reactor, _give_up)

    def _gap(self) -> int:
        """Return how many queries to leave out before the next one that is logged."""
        return int(log(1 - random.random()) / self._spread) if self._spread else 0  # noqa: S311

    def _schedule(self) -> None:
        """Schedule the next batch, if there are lines, the last batch is done, and no other is scheduled."""
        if self._lines and self._flushing is None and self._writing.called:
            self._flushing = self._reactor.callLater(FLUSH_EVERY, self._flush)

    def _flush(self) -> None:
        """Begin to write what waits."""
        self._flushing = None
        lines, self._lines = self._lines, []
        self._writing = done = Deferred[None]()
        writing = self._thread(self._reactor, "query log", self._append, lines)
        count, was_full, self._is_full = len(lines), self._is_full, False
        writing.addCallbacks(self._written, self._failed, callbackArgs=(count, was_full), errbackArgs=(count,))
        writing.addCallback(done.callback).addCallback(lambda _: self._schedule())

    def _drop(self, count: int) -> None:
        self._counters.logged["dropped"] += count
        self._is_full = True
        self._complain("there are too many, or the last ones are not written yet")

    def _append(self, lines: list[str]) -> int:
        """Write *lines*, in a thread; return how many have been written whole."""
        octets = ("\n" * self._torn + "\n".join(lines) + "\n").encode()
        descriptor = 1
        if not self._is_stdout:
            # A named pipe that no program reads is an error at once (fifo(7)); one that is read slowly is waited for.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
            descriptor = os.open(self._path, flags, MODE)
            os.set_blocking(descriptor, True)
        try:
            done = os.write(descriptor, octets)
        finally:
            if not self._is_stdout:
                os.close(descriptor)
        lines_done = octets.count(b"\n", 0, done) - self._torn
        self._torn = octets[:done][-1:] != b"\n" if done else self._torn
        return max(0, lines_done)

    def _written(self, done: int, count: int, was_full: bool) -> None:  # noqa: FBT001 -- Deferreds call so
        self._counters.logged["written"] += done
        self._counters.logged["dropped"] += count - done
        if done < count:
            self._complain("no space is left")
        elif not (was_full or self._is_full):
            self._complain("")

    def _failed(self, failure: Any, count: int) -> None:
        self._counters.logged["dropped"] += count
        self._complain(str(failure.value))

    def _complain(self, reason: str) -> None:
        """Log, once, that the lines cannot be written, and why; and that they are again (an empty reason)."""
        if reason and not self._complained:
            self.log.error("query_log: lines are dropped, and queries answered as before: {reason}", reason=reason)
        elif self._complained and not reason:
            self.log.info("query_log: lines are written again")
        self._complained = bool(reason)


def _give_up(_: object, __: float) -> None:
    """Handle that the last batch is still not written."""
