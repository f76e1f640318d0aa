"""
Count the packets of guests' conversations, in both directions, to tell use from chatter.

The counters of a guest's interface count all frames: also those that the bridge floods to every port, broadcasts, and
what a guest without users exchanges with its neighbours. Here the kernel counts at the guest's port of the bridge the
unicast IP packets to and from the guest's MAC alone, but for ARP, neighbour discovery, NTP, DHCP and mDNS, and for TCP
segments with SYN or RST, so that neither a port scan nor the guest's answers to it count.

The kernel counts what passes the filter of a packet socket that nobody reads (packet(7), PACKET_STATISTICS): once the
small buffer is full, nothing is copied. A packet costs the filter, about 0.2 microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from synjitsu_tw.capture import open_counter
from synjitsu_tw.packets import RST, SYN

if TYPE_CHECKING:
    from collections.abc import Callable

    from synjitsu_tw.capture import Pcap

#: The most guests whose packets are counted at a time: each takes a file descriptor, and some 100 KiB.
MOST: Final = 1024

#: Seconds after which a counter that was not read is closed.
UNREAD: Final = 300.0

#: UDP ports of what a guest without users exchanges: DHCP, NTP, DHCPv6, mDNS.
CHATTER: Final = (67, 68, 123, 546, 547, 5353)

#: TCP segments of a connection that is being opened or refused, in IPv4 and in IPv6 without extension headers.
_OPENING: Final = f"tcp[13] & {SYN | RST} != 0", f"ip6[6] = 6 and ip6[53] & {SYN | RST} != 0"

#: Router and neighbour solicitations, advertisements and redirects (RFC 4861, 4).
_DISCOVERY: Final = "ip6[6] = 58 and ip6[40] >= 133 and ip6[40] <= 137"


def conversation(mac: bytes) -> str:
    """Return the kernel filter for the packets of the conversations of the guest with *mac*."""
    chatter = [f"udp port {port}" for port in CHATTER]
    without = " or ".join(f"({one})" for one in (*_OPENING, _DISCOVERY, *chatter))
    return f"ether host {mac.hex(':')} and not ether multicast and (ip or ip6) and not ({without})"


@attrs.frozen
class Port:
    """A port of a bridge, by its number and its name; a new one may have the name of one that is gone."""

    index: int
    name: str


@attrs.define(eq=False)
class _Counter:
    """
    A counter of one guest's packets.

    Attributes:
        port: where it counts.
        pcap: its socket.
        total: what it has counted when it was read last.
        read_at: when that was.
    """

    port: Port
    pcap: Pcap
    total: int
    read_at: float


class Counts:
    """The counters of the guests that are asked for."""

    def __init__(self, opens: Callable[[str], Pcap] = open_counter) -> None:
        """Count nothing yet; *opens* opens a port of a bridge."""
        self._opens = opens
        self._counters: dict[bytes, _Counter] = {}

    def read(self, mac: bytes, find_port: Callable[[], Port | None], now: float) -> int | None:
        """
        Return how many packets of conversations the guest with *mac* has exchanged since it was first asked for.

        A guest that moves to another port is counted from 0 there.

        Args:
            mac: the guest's.
            find_port: returns the port of the bridge that the guest is behind; None while that is not known.
            now: the time, in seconds.

        Returns:
            The number; None if it cannot be counted: its port is not known, or `MOST` others are counted.
        """
        try:
            return self._read(mac, find_port, now)
        except OSError:  # the port has vanished
            self.close(mac)
            return None

    def _read(self, mac: bytes, find_port: Callable[[], Port | None], now: float) -> int | None:
        counter = self._counters.get(mac)
        total = 0 if counter is None else counter.pcap.received()
        if counter is not None and total > counter.total:
            counter.total, counter.read_at = total, now
            return total
        port = find_port()  # of a guest of which nothing was counted, as its port may be another one now
        if counter is not None and port in {None, counter.port}:
            counter.read_at = now
            return total
        self.close(mac)
        if port is None or len(self._counters) >= MOST:
            return None
        pcap = self._opens(port.name)
        self._counters[mac] = _Counter(port, pcap, 0, now)
        pcap.setfilter(conversation(mac))
        return 0

    def expire(self, now: float) -> None:
        """Close the counters that nobody reads any more; to be called each second."""
        for mac in [mac for mac, one in self._counters.items() if now - one.read_at >= UNREAD]:
            self.close(mac)

    def close(self, mac: bytes) -> None:
        """Close the counter of the guest with *mac*, if there is one."""
        counter = self._counters.pop(mac, None)
        if counter is not None:
            counter.pcap.close()

    def close_all(self) -> None:
        """Close all counters."""
        for mac in list(self._counters):
            self.close(mac)
