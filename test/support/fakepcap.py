"""Frames without an interface."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from synjitsu_tw.capture import ETHERNET

if TYPE_CHECKING:
    from collections.abc import Callable


class FakePcap:
    """
    A `synjitsu_tw.capture.Pcap` without an interface: what a test puts there is captured.

    Attributes:
        sent: what was sent, in order.
        filters: what it was told to let pass, in order.
        fails: if set, what the next dispatch raises.
        count: what `received` returns.
        closed: it was closed.
    """

    def __init__(self, interface: str = "br0") -> None:
        """Begin with nothing to capture."""
        self.interface = interface
        self.sent: list[bytes] = []
        self.filters: list[str] = []
        self.fails: OSError | None = None
        self.count = 0
        self.closed = False
        self._there: deque[bytes] = deque()
        self._ours, self._theirs = socket.socketpair()

    def put(self, *frames: bytes) -> None:
        """Capture *frames*."""
        self._there.extend(frames)
        self._theirs.send(b"." * len(frames))

    def fileno(self) -> int:
        """Return what becomes readable when there are frames."""
        return self._ours.fileno()

    def datalink(self) -> int:
        """Return Ethernet's number."""
        return ETHERNET

    def setfilter(self, value: str) -> None:
        """Remember a filter; nothing is filtered."""
        self.filters.append(value)

    def dispatch(self, cnt: int, callback: Callable[[Any, bytes], Any]) -> None:
        """Hand out at most *cnt* frames."""
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        count = min(cnt, len(self._there))
        os.read(self.fileno(), count)
        for _ in range(count):
            callback(None, self._there.popleft())

    def sendpacket(self, buf: bytes) -> int:
        """Remember a frame."""
        self.sent.append(buf)
        return len(buf)

    def received(self) -> int:
        """Return `count`."""
        return self.count

    def close(self) -> None:
        """Close the sockets."""
        self.closed = True
        self._ours.close()
        self._theirs.close()
