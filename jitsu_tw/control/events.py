"""
What happens, as it happens: server-sent events (HTML, 9.2), for the dashboard, jitsuctl and any other client.

A client that reads too slowly costs a bounded queue: events that do not fit are left out, and an event ``missed`` says
how many, so that the client can ask for the state anew.
"""

from __future__ import annotations

import json
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from jitsu_tw.control.describe import describe
from jitsu_tw.control.routes import RefusalError, header, number
from jitsu_tw.dns.wire import Source
from jitsu_tw.shares import Places
from jitsu_tw.vm.journal import MOST_EVENTS

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.control.web import Request
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.journal import Event

#: The most readers, of all clients, and of one client network or by UNIX sockets.
MOST_READERS: Final = 64
MOST_FROM_ONE: Final = 32

#: An address that no client has: it stands for the clients on UNIX sockets.
UNIX: Final = "0.0.0.0"  # noqa: S104

#: The most events that wait for a slow reader.
MOST_WAITING: Final = 256

#: Seconds between comments that are sent so that a dead connection is noticed (HTML, 9.2.7).
STILL_HERE: Final = 15.0

#: Digits of an id: more than any has.
LONGEST_ID: Final = 20


def written(event: dict[str, Any]) -> bytes:
    """Return an event as a stream has it."""
    head = f"id: {event['id']}\n" if "id" in event else ""
    return f"{head}event: {event['kind']}\ndata: {json.dumps(event)}\n\n".encode()


@implementer(IPushProducer)
class Reader:
    """A client that gets events."""

    def __init__(self, request: Request) -> None:
        """Send events to the client of *request*."""
        self._request = request
        self._waiting: deque[bytes] = deque()
        self._paused = False
        self._missed = 0
        request.registerProducer(self, streaming=True)

    def send(self, octets: bytes) -> None:
        """Send *octets* now, or when the client has read what it was sent; leave them out if too much waits already."""
        if not self._paused:
            self._request.write(octets)
        elif len(self._waiting) < MOST_WAITING and not self._missed:
            self._waiting.append(octets)
        else:
            self._missed += 1

    def pauseProducing(self) -> None:  # noqa: N802
        """Wait: the client is slow."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """Send what waits."""
        self._paused = False
        while self._waiting and not self._paused:
            self._request.write(self._waiting.popleft())
        if self._missed and not self._paused:
            missed, self._missed = self._missed, 0
            self._request.write(written({"kind": "missed", "events": missed}))

    def stopProducing(self) -> None:  # noqa: N802
        """Send no more: `Events` learns by itself that the client is gone."""
        self._paused, self._missed = True, 1


class Events:
    """``/v1/events``."""

    def __init__(self, fleet: Fleet, reactor: IReactorTime) -> None:
        """Send what happens in *fleet*."""
        self._fleet = fleet
        self._readers: set[Reader] = set()
        self._places = Places(MOST_READERS, MOST_FROM_ONE)
        self._still_here = LoopingCall(self._send, b": still here\n\n")
        self._still_here.clock = reactor
        fleet.journal.on_event.append(self._tell)

    def stream(self, request: Request) -> Any:
        """
        Send the last events, as many as ``last`` says or all since ``Last-Event-ID``; then, with ``follow``, more.

        An event that is sent as it happens has also the VM as it is then, and the activation under way.
        """
        last, follow = number(request, "last", 0, MOST_EVENTS), number(request, "follow", 1, 1)
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        if request.method == b"HEAD":
            return b""
        source = Source(getattr(request.getClientAddress(), "host", UNIX), 0, proven=True)
        if follow and not self._places.take(source):
            raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, "as many listen as may; try again later")
        events, since = self._fleet.journal.events, header(request, b"last-event-id")
        if since.isascii() and since.isdigit() and len(since) < LONGEST_ID:
            past = [one for one in events if one.id > int(since)]
        else:
            past = list(events)[max(0, len(events) - last) :]
        begin = b"retry: 1000\n\n" + b"".join(written(one.as_json()) for one in past)
        if not follow:
            return begin
        request.write(begin)
        reader = Reader(request)
        self._readers.add(reader)
        request.notifyFinish().addBoth(self._gone, source, reader)
        if not self._still_here.running:
            self._still_here.start(STILL_HERE, now=False)
        return NOT_DONE_YET

    def _gone(self, _: object, source: Source, reader: Reader) -> None:
        self._places.leave(source)
        self._readers.discard(reader)
        if not self._readers and self._still_here.running:
            self._still_here.stop()

    def _tell(self, event: Event) -> None:
        if not self._readers:
            return
        shown = event.as_json()
        machine = self._fleet.machines.get(event.vm)
        if machine is not None:
            shown["machine"] = describe(self._fleet, machine)
            running = self._fleet.journal.running(event.vm)
            if running is not None:
                shown["activation"] = running.as_json()
        self._send(written(shown))

    def _send(self, octets: bytes) -> None:
        for reader in list(self._readers):
            reader.send(octets)
