"""
A client of cold starts, a process of its own in the client's namespace: it asks, connects and fetches, each once.

It visits each VM that a line of standard input names, with a family of IP, and prints what it saw, as JSON. If the line
has an address too, it connects to this one at once, as if the name server did not wait for the VM::

    python -m bench.speed.visitor INTERFACE
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.message
import dns.query

from demo.lab import HOST_IP

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that a client waits for an answer, a connection or a page, and until Linux sends a SYN again, less a little.
PATIENCE: Final = 30.0
RETRANSMITS: Final = 0.95

#: Of <linux/if_ether.h> and <netinet/tcp.h>.
_ETH_P_ALL: Final = 0x0003
_TOTAL_RETRANS: Final = slice(100, 104)


@dataclass(frozen=True)
class Start:
    """
    What a client saw of a cold start; times are in milliseconds after its query, None if it did not come so far.

    Attributes:
        answered: the name server's answer came.
        connected: the connection was there.
        octet: the first octet of the page came.
        listens: the guest began to listen, as its page says.
        again: how many SYNs were sent again.
        resets: how many TCP resets came for the connection.
        deaf: for how long the bridge forwards nothing to a new port.
        error: why it failed.
    """

    answered: float | None = None
    connected: float | None = None
    octet: float | None = None
    listens: float | None = None
    again: int = 0
    resets: int = 0
    deaf: float = 0.0
    error: str | None = None

    def faults(self) -> Iterator[str]:
        """Yield what a client must not see."""
        if self.error is not None:
            yield self.error
        if self.resets:
            yield f"{self.resets} resets"
        if self.again and self.answered is not None and self.listens is not None:
            boot = max(self.listens - self.answered, self.deaf)
            if boot < RETRANSMITS * 1000:
                yield f"{self.again} SYNs sent again, though the guest listened after {boot:.0f} ms"


def visit(name: str, family: int, resets: Resets, address: str = "") -> Start:
    """Ask for *name*, connect to its address (at once, if *address* is given), and fetch the page; each once."""
    begin = time.monotonic()
    seen: dict[str, Any] = {}

    def mark(what: str, when: float | None = None) -> None:
        seen[what] = ((time.monotonic() if when is None else when) - begin) * 1000

    with (
        socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family]) as connection,
        socket.socket(type=socket.SOCK_DGRAM) as asking,
    ):
        connection.settimeout(PATIENCE)
        try:
            question = dns.message.make_query(f"{name}.jitsu.test", {4: "A", 6: "AAAA"}[family], use_edns=0)
            if address:
                asking.sendto(question.to_wire(), (HOST_IP, 53))
            else:
                address = dns.query.udp(question, HOST_IP, timeout=PATIENCE).answer[-1][0].to_text()
            mark("answered")
            connection.bind(("", 0))
            connection.connect((address, 80))
            mark("connected")
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            page = connection.recv(65536)
            mark("octet")
            now = time.monotonic()
            while more := connection.recv(65536):
                page += more
            mark("listens", listens(page.decode(), now)) if b"listening since" in page else None
            if page.split(b" ", 2)[1:2] != [b"200"]:  # HTTP/1.0 or 1.1
                seen["error"] = "no page"
        except (OSError, dns.exception.DNSException, IndexError) as error:
            seen["error"] = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        port = connection.getsockname()[1]
    return Start(again=int.from_bytes(info[_TOTAL_RETRANS], sys.byteorder), resets=resets.count(port), **seen)


def listens(page: str, now: float) -> float:
    """Return when a guest began to listen, from its page, which it made *now*."""
    words = dict(line.split(": ", 1) for line in page.splitlines() if ": " in line)
    up = float(page.partition("up for ")[2].split()[0])
    return now - up + float(words["listening since"].split()[0])


class Resets:
    """Sees the TCP resets that come in by an interface."""

    def __init__(self, interface: str) -> None:
        """Begin."""
        self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._frames.bind((interface, _ETH_P_ALL))
        self._frames.settimeout(0)

    def count(self, port: int) -> int:
        """Return how many came for a local *port* since the last call."""
        found = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                octets, (_, _, kind, *_) = self._frames.recvfrom(256)
                segment = octets[54:] if octets[12:14] == b"\x86\xdd" else octets[34:]
                is_tcp = octets[20:21] == b"\6" if octets[12:14] == b"\x86\xdd" else octets[23:24] == b"\6"
                to_us = kind != socket.PACKET_OUTGOING and int.from_bytes(segment[2:4]) == port
                found += bool(is_tcp and to_us and len(segment) > 13 and segment[13] & 4)
        return found


def main(interface: str) -> None:
    """Visit VMs until standard input ends."""
    resets = Resets(interface)
    print("ready", flush=True)
    for line in sys.stdin:
        name, family, *address = line.split()
        print(json.dumps(asdict(visit(name, int(family), resets, *address))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
