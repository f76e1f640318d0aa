"""
How many packets a machine has sent, by the port of this host's bridge that its MAC is behind (bridge(8), sysfs(5)).

The kernel's table of a bridge forgets a MAC that has been silent for five minutes: a port that was found once counts as
long as it is there.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: `__fdb_entry` of <linux/if_bridge.h>: MAC, port, whether it is the port's own, age, the port's high octet.
_ENTRY: Final = struct.Struct("=6sBBIBxH")

#: In octets: how much of the table of one bridge is read.
_MOST: Final = 1 << 20


class Ports:
    """
    The ports that MACs are behind.

    Attributes:
        interfaces: where the kernel has the host's interfaces.
    """

    interfaces = Path("/sys/class/net")

    def __init__(self) -> None:
        """Begin with no port known."""
        self._known: dict[str, tuple[str, str]] = {}

    def sent(self, mac: str) -> int | None:
        """
        Return how many packets the machine with this MAC has sent.

        None if its MAC is behind no port of a bridge, or behind one with others: then it is not known whose they are.
        """
        name, number = self._known.pop(mac, ("", ""))
        with contextlib.suppress(OSError):  # the port has gone at this moment
            if not name or self._number(name) != number:
                name = self._find(mac)
            if name:
                self._known[mac] = name, self._read(name, "ifindex")
                return int(self._read(name, "statistics/rx_packets"))
        return None

    def _number(self, name: str) -> str:
        """Return the kernel's number of an interface; empty if it has gone."""
        with contextlib.suppress(OSError):
            return self._read(name, "ifindex")
        return ""

    def _read(self, name: str, what: str) -> str:
        return (self.interfaces / name / what).read_text().strip()

    def _find(self, mac: str) -> str:
        """Return the name of the interface that *mac* alone is behind; empty if there is none."""
        for table in self.interfaces.glob("*/brforward"):
            behind: dict[int, set[str]] = {}
            for found, port in _entries(table):
                behind.setdefault(port, set()).add(found)
            for number, macs in behind.items():
                if mac in macs:
                    return self._name(table.parent, number) if macs == {mac} else ""
        return ""

    @staticmethod
    def _name(bridge: Path, port: int) -> str:
        """Return the name of the interface that is a *port* of the *bridge*; empty if it has gone."""
        for link in (bridge / "brif").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if int((link / "port_no").read_text(), 16) == port:
                    return link.name
        return ""


def _entries(table: Path) -> Iterator[tuple[str, int]]:
    """Yield the MACs that a bridge has learnt, each with the number of its port."""
    with contextlib.suppress(OSError), table.open("rb") as file:
        octets = file.read(_MOST)
        for mac, low, own, _, high, _ in _ENTRY.iter_unpack(octets[: len(octets) // _ENTRY.size * _ENTRY.size]):
            if not own:
                yield mac.hex(":"), high << 8 | low
