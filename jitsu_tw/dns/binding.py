"""
How the sockets of a DNS server are bound, by UDP and TCP alike, and which of their addresses this host has.

An address may be bound before the host has it: its interface comes up later, or IPv6 still looks for duplicates of it
(RFC 4862, 5.4). It is served from the moment when the host has it; until then, the log and ``/healthz``
name it; a mistyped address stays there.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Of <linux/in.h> and <linux/in6.h>: an address may be bound that this host does not have.
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78

#: What stands for all addresses of a family.
ALL: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104

#: Seconds between two looks at which addresses this host has.
LOOK_EVERY: Final = 5.0


def set_up(made: socket.socket) -> None:
    """Prepare *made*, which is not bound yet: for IPv6 alone if it is of that family, whether the address is there."""
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)


def to_bind(hosts: Iterable[str]) -> list[str]:
    """Return the addresses *hosts* without those that another one of them stands for: ``::`` does for all of IPv6."""
    wanted = list(dict.fromkeys(hosts))
    return [host for host in wanted if host in ALL.values() or ALL[ip_address(host).version] not in wanted]


def is_here(host: str) -> bool:
    """
    Return whether this host has the address *host*, and may send from it.

    Raises:
        OSError: that cannot be found out: this process has no descriptor left.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as tries:
        try:
            tries.bind((host, 0))
        except OSError:
            return False
    return True


class Addresses:
    """
    The addresses that are to be served.

    Attributes:
        missing: those that this host does not have, as of the last look.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Look after no address yet; *reactor* is `IReactorTime`."""
        self.missing: list[str] = []
        self._hosts: list[str] = []
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self, hosts: Iterable[str]) -> None:
        """Look, from now on, whether this host has the addresses *hosts*."""
        self._hosts = list(hosts)
        self._looking.start(LOOK_EVERY)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def problems(self) -> list[str]:
        """Return a sentence on each address that cannot be served."""
        return [f"bind: {host} is no address of this host" for host in self.missing]

    def _look(self) -> None:
        before = self.missing
        try:
            self.missing = [host for host in self._hosts if not is_here(host)]
        except OSError:
            return  # the next look finds out
        for host in self.missing:
            if host not in before:
                self.log.warn("bind: {host} is no address of this host; it is served as soon as it is one", host=host)
        for host in before:
            if host not in self.missing:
                self.log.info("bind: {host} is an address of this host now, and served", host=host)
