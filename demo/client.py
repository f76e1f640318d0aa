"""
A client: asks for a name, connects to the address, fetches the page, and prints when each happened, as JSON.

Times are in seconds of the system's monotonic clock, which is the same for all processes of a machine. It runs in the
client's namespace, as a program of its own::

    python client.py SERVER PORT NAME HTTP_PORT [VIA]

With VIA, the page is fetched from this address instead of the one in the answer: a guest on QEMU's own network can be
reached only by a port that QEMU forwards.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any, Final

import dns.message
import dns.query
import dns.rcode

#: Seconds to wait for the answer, and for the page.
PATIENCE: Final = 60.0

#: Seconds from one try to connect to the next, where the guest was not ready when the answer came.
EVERY: Final = 0.01


def connect(address: str, port: int) -> socket.socket:
    """Return a connection to *address*, trying until there is one."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((address, port), timeout=PATIENCE)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(EVERY)


def fetch(server: str, port: int, name: str, http_port: int, via: str = "") -> dict[str, Any]:
    """Return the times of a whole visit, and what was seen."""
    query = dns.message.make_query(name, "A", use_edns=0)
    seen: dict[str, Any] = {"query": time.monotonic()}
    answer = dns.query.udp(query, server, timeout=PATIENCE, port=port)
    seen["answered"] = time.monotonic()
    seen["rcode"] = dns.rcode.to_text(answer.rcode())
    seen["remarks"] = [option.to_text() for option in answer.options]
    if not answer.answer:
        return seen
    seen["address"] = answer.answer[-1][0].to_text()
    return seen | get(via or seen["address"], http_port, name)


def get(address: str, port: int, host: str) -> dict[str, Any]:
    """Return the times of fetching the page at *address*, and the page."""
    with connect(address, port) as connection:
        connected = time.monotonic()
        connection.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        octets = connection.recv(65536)
        first = time.monotonic()
        while more := connection.recv(65536):
            octets += more
    head, _, page = octets.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].decode(errors="replace")
    text = page.decode(errors="replace").strip()
    return {"connected": connected, "first octet": first, "status": status, "page": text}


if __name__ == "__main__":
    print(json.dumps(fetch(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])))
