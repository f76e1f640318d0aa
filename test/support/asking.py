"""
A client that asks name servers for addresses all the time: a program of its own, as it runs in a network namespace.

``asking.py EVERY SERVER,SERVER NAME,NAME`` asks each server for each name every ``EVERY`` seconds, without waiting for
answers, and prints what becomes of each question as a line of JSON, as the fields of `test.support.cluster.Answer`.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from typing import Final

import dns.edns
import dns.message
import dns.rcode

#: A question that has no answer by then, in seconds, will have none.
LOST_AFTER: Final = 4.0


def tell(asked: float, server: int, name: str, reply: dns.message.Message | None) -> None:
    """Print what became of a question."""
    ips = [] if reply is None else [record.address for rrset in reply.answer for record in rrset]
    edes = [] if reply is None else [option for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    rcode = "none" if reply is None else dns.rcode.to_text(reply.rcode())
    words = [[int(ede.code), ede.text or ""] for ede in edes]
    said = {"asked": asked, "took": time.monotonic() - asked, "server": server, "name": name, "rcode": rcode}
    sys.stdout.write(json.dumps(said | {"ips": ips, "edes": words}) + "\n")
    sys.stdout.flush()


def main(every: float, servers: list[str], names: list[str]) -> None:
    """Ask until a signal ends the program."""
    sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in servers]
    for one, server in zip(sockets, servers, strict=True):
        one.setblocking(False)  # noqa: FBT003
        one.connect((server, 53))
    waiting: dict[int, tuple[float, int, str]] = {}
    number, again = 0, time.monotonic()
    while True:
        now = time.monotonic()
        if now >= again:
            again = now + every
            for place, one in enumerate(sockets):
                for name in names:
                    number = (number + 1) % 65536
                    query = dns.message.make_query(name, "A", use_edns=0)
                    query.id = number
                    waiting[number] = now, place, name
                    try:
                        one.send(query.to_wire())
                    except OSError:  # nobody listened there a moment ago
                        one.send(query.to_wire())
        for one in select.select(sockets, [], [], max(0.0, again - time.monotonic()))[0]:
            try:
                reply = dns.message.from_wire(one.recv(4096))
            except OSError:
                continue  # nobody listens there; that there is no answer will be seen
            if reply.id in waiting:
                tell(*waiting.pop(reply.id), reply)
        while waiting and (oldest := next(iter(waiting.values())))[0] + LOST_AFTER < time.monotonic():
            del waiting[next(iter(waiting))]
            tell(*oldest, None)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","))
