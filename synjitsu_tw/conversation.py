"""
What Synjitsu understands of what Jitsu says over AMP; `jitsu_tw.messages` has the commands.

It turns text into values, refuses what makes no sense, and hands the rest to the service.
"""

from __future__ import annotations

import heapq
from hmac import compare_digest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp

from jitsu_tw import messages
from jitsu_tw.messages import Refused, WrongVersion
from synjitsu_tw.table import Handover

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from synjitsu_tw.service import Synjitsu


class Conversation(amp.AMP):
    """
    One Jitsu.

    Attributes:
        summons: how many it has not taken yet.
    """

    log = Logger()
    factory: Any

    def __init__(self) -> None:
        """Begin with nothing said."""
        super().__init__()
        self._met = False
        self.summons = 0

    @property
    def _synjitsu(self) -> Synjitsu:
        if not self._met:
            raise Refused("Hello must come first")
        synjitsu: Synjitsu = self.factory.synjitsu
        return synjitsu

    def summoned(self, result: Any) -> None:
        """Take note that a summons has been taken, or never will be."""
        self.summons -= 1
        if result is not None and not isinstance(result, dict):
            self._not_taken(result)

    def _not_taken(self, failure: Failure) -> None:
        if failure.check(ConnectionClosed) is None:
            self.log.warn("Jitsu did not take a summons: {reason}", reason=failure.getErrorMessage())

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Tell the service."""
        super().connectionLost(reason)
        self.factory.synjitsu.lost(self)

    @messages.Hello.responder
    def _hello(self, version: int, secret: str | None = None) -> dict[str, Any]:
        if version != messages.VERSION:
            raise WrongVersion(f"Jitsu speaks version {version}, Synjitsu {messages.VERSION}: update the older one")
        if not compare_digest((secret or "").encode(), self.factory.secret.encode()):
            raise Refused("this Jitsu has not the same secret: see --secret of Synjitsu and synjitsu_secret of Jitsu")
        self._met = True
        return {}

    @messages.Announce.responder
    def _announce(
        self,
        ip: str,
        macs: list[str],
        asleep: bool,  # noqa: FBT001 -- AMP gives names
        runs: bool,  # noqa: FBT001
        handover: str,
        wake_udp: list[int],
        keeps: bool,  # noqa: FBT001
        ports: list[int] | None = None,
        domid: int | None = None,
        knock: int | None = None,
    ) -> dict[str, Any]:
        synjitsu, address = self._synjitsu, _address(ip)
        if handover not in {kind.value for kind in Handover}:
            raise Refused(f"{handover!r} is no kind of handover")
        kind = Handover(handover)
        if kind is Handover.XENSTORE and (synjitsu.xenstore is None or len(address) != 4):
            raise Refused("handover by Xenstore is for IPv4, and where Synjitsu runs with --xenstore")
        synjitsu.announce(
            self,
            address,
            _macs(macs),
            asleep=asleep,
            runs=runs,
            handover=kind,
            ports=None if ports is None else frozenset(ports),
            wake_udp=frozenset(wake_udp),
            domid=domid,
            knock=knock,
            keeps=keeps,
        )
        return {}

    @messages.AnnouncedAll.responder
    def _announced_all(self) -> dict[str, Any]:
        self._synjitsu.announced_all()
        return {}

    @messages.Ready.responder
    def _ready(self, ip: str, macs: list[str]) -> dict[str, Any]:
        synjitsu, address = self._synjitsu, _address(ip)
        known = synjitsu.standins.table.get(address)
        if not macs and (known is None or not known.mac):
            raise Refused(f"the MAC of {ip} is not known")
        synjitsu.ready(self, address, _macs(macs))
        return {}

    @messages.Withdraw.responder
    def _withdraw(self, ip: str, failed: bool) -> dict[str, Any]:  # noqa: FBT001
        self._synjitsu.withdraw(_address(ip), failed=failed)
        return {}

    @messages.Counters.responder
    def _counters(self) -> dict[str, Any]:
        return {"counters": [{"name": name, "count": count} for name, count in self._synjitsu.counters().items()]}

    @messages.Status.responder
    def _status(self, after: str) -> dict[str, Any]:
        standins = self._synjitsu.standins
        start = _address(after) if after else b""
        ips = heapq.nsmallest(messages.PAGE, (ip for ip in standins.table if _order(ip) > _order(start)), key=_order)
        return {
            "standins": [
                {
                    "ip": str(ip_address(ip)),
                    "mac": standins.table[ip].mac.hex(":"),
                    "state": standins.table[ip].state.value,
                    "handover": standins.table[ip].handover.value,
                    "held": standins.syns.count(ip),
                }
                for ip in ips
            ]
        }


def _order(ip: bytes) -> tuple[int, bytes]:
    return len(ip), ip


def _address(text: str) -> bytes:
    try:
        return ip_address(text).packed
    except ValueError:
        raise Refused(f"{text!r} is no IP address") from None


def _macs(texts: list[str]) -> tuple[bytes, ...]:
    """Return MACs in octets."""
    try:
        macs = tuple(bytes.fromhex(text.replace(":", "")) for text in texts)
    except ValueError:
        macs = (b"",)
    if any(len(mac) != 6 for mac in macs):
        raise Refused(f"{', '.join(map(repr, texts))}: no MAC addresses")
    return macs
