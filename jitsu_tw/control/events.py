"""
What happens, as it happens: server-sent events (HTML, 9.2), for the dashboard, jitsuctl and whoever else listens.

A reader that is slower than what happens costs a bounded queue: what does not fit is left out, and the reader is told
by an event ``missed`` how much that was, so that it can look anew.
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
from jitsu_tw.control.web import FleetPage, header, number, reply
from jitsu_tw.dns.wire import Source
from jitsu_tw.shares import Places
from jitsu_tw.vm.journal import MOST_EVENTS

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.control.web import Request
    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.journal import Event

#: How many readers there may be, and how many of one client network, or by UNIX sockets.
MOST_READERS: Final = 64
MOST_FROM_ONE: Final = 32

#: An address that no client has, for those on UNIX sockets.
UNIX: Final = "0.0.0.0"  # noqa: S104

#: How many events wait for a reader that is slow.
MOST_WAITING: Final = 256

#: After so many seconds without an event a comment is sent, so that a dead connection is noticed (HTML, 9.2.7).
STILL_HERE: Final = 15.0

#: Digits of the greatest id, and then some.
LONGEST_ID: Final = 20


def written(event: dict[str, Any]) -> bytes:
    """Return an event as a stream has it."""
    head = f"id: {event['id']}\n" if "id" in event else ""
    return f"{head}event: {event['kind']}\ndata: {json.dumps(event)}\n\n".encode()


@implementer(IPushProducer)
class Reader:
    """One who listens."""

    def __init__(self, request: Request) -> None:
        """Send to who made *request*."""
        self._request = request
        self._waiting: deque[bytes] = deque()
        self._paused = False
        self._missed = 0
        request.registerProducer(self, True)  # noqa: FBT003

    def send(self, octets: bytes) -> None:
        """Send now, or when the reader has read what it has; or leave out if too much waits already."""
        if not self._paused:
            self._request.write(octets)
        elif len(self._waiting) < MOST_WAITING and not self._missed:
            self._waiting.append(octets)
        else:
            self._missed += 1

    def pauseProducing(self) -> None:  # noqa: N802
        """Wait: the reader is slow."""
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        """Go on."""
        self._paused = False
        while self._waiting and not self._paused:
            self._request.write(self._waiting.popleft())
        if self._missed and not self._paused:
            missed, self._missed = self._missed, 0
            self._request.write(written({"kind": "missed", "events": missed}))

    def stopProducing(self) -> None:  # noqa: N802
        """Send no more: `Events` hears by itself that the reader is gone."""
        self._paused, self._missed = True, 1


class Events(FleetPage):
    """``/v1/events``."""

    isLeaf = True  # noqa: N815

    def __init__(self, fleet: Fleet, reactor: IReactorTime) -> None:
        """Tell what happens in *fleet*."""
        super().__init__(fleet)
        self._readers: set[Reader] = set()
        self._places = Places(MOST_READERS, MOST_FROM_ONE)
        self._still_here = LoopingCall(self._say, b": still here\n\n")
        self._still_here.clock = reactor
        fleet.journal.on_event.append(self._tell)

    def render_GET(self, request: Request) -> Any:  # noqa: N802
        """
        Send the last events, as many as ``last`` says or all since ``Last-Event-ID``; then, with ``follow``, more.

        What is sent as it happens has also the VM as it is then, and the activation under way.
        """
        try:
            last, follow = number(request, "last", 0, MOST_EVENTS), number(request, "follow", 1, 1)
        except ValueError as error:
            return reply(request, {"error": str(error)}, HTTPStatus.BAD_REQUEST)
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        if request.method == b"HEAD":
            return b""
        source = Source(getattr(request.getClientAddress(), "host", UNIX), 0, proven=True)
        if follow and not self._places.take(source):
            why = "as many listen as may; try again later"
            return reply(request, {"error": why}, HTTPStatus.SERVICE_UNAVAILABLE)
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
        said = event.as_json()
        machine = self._fleet.machines.get(event.vm)
        if machine is not None:
            said["machine"] = describe(self._fleet, machine)
            running = self._fleet.journal.running(event.vm)
            if running is not None:
                said["activation"] = running.as_json()
        self._say(written(said))

    def _say(self, octets: bytes) -> None:
        for reader in list(self._readers):
            reader.send(octets)
