"""
Bind the sockets of the DNS server, for UDP and TCP alike, and check which of their addresses this host has.

An address may be bound before the host has it: its interface comes up later, or IPv6 still checks that it has no
duplicate (RFC 4862, 5.4). Queries to it are answered as soon as the host has it; until then, the log and ``/healthz``
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

#: Of <linux/in.h> and <linux/in6.h>: the option to bind an address that this host does not have.
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78

#: The wildcard address of each family.
ALL: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104

#: Seconds between two checks of which addresses this host has.
CHECK_EVERY: Final = 5.0


def set_up(made: socket.socket) -> None:
    """Prepare the socket *made* to be bound: to an address that this host may not have, and to IPv6 without IPv4."""
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)


def to_bind(hosts: Iterable[str]) -> list[str]:
    """Return the addresses *hosts* without those that a wildcard among them covers: ``::`` covers all of IPv6."""
    wanted = list(dict.fromkeys(hosts))
    return [host for host in wanted if host in ALL.values() or ALL[ip_address(host).version] not in wanted]


def is_here(host: str) -> bool:
    """
    Return whether this host has the address *host*, and may send from it.

    Raises:
        OSError: the check failed: this process has no file descriptor left.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as tries:
        try:
            tries.bind((host, 0))
        except OSError:
            return False
    return True


class Addresses:
    """
    The addresses that the configuration binds.

    Attributes:
        missing: those that this host did not have at the last check.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Check no address yet; *reactor* is `IReactorTime`."""
        self.missing: list[str] = []
        self._hosts: list[str] = []
        self._checking = LoopingCall(self._check)
        self._checking.clock = reactor

    def start(self, hosts: Iterable[str]) -> None:
        """Check now, and every `CHECK_EVERY` seconds, whether this host has the addresses *hosts*."""
        self._hosts = list(hosts)
        self._checking.start(CHECK_EVERY)

    def stop(self) -> None:
        """Stop checking."""
        if self._checking.running:
            self._checking.stop()

    def problems(self) -> list[str]:
        """Return a sentence on each address that this host does not have."""
        return [f"bind: {host} is no address of this host" for host in self.missing]

    def _check(self) -> None:
        before = self.missing
        try:
            self.missing = [host for host in self._hosts if not is_here(host)]
        except OSError:
            return  # the next check may succeed
        for host in self.missing:
            if host not in before:
                self.log.warn("bind: {host} is no address of this host; it is served as soon as it is one", host=host)
        for host in before:
            if host not in self.missing:
                self.log.info("bind: {host} is an address of this host now, and served", host=host)
