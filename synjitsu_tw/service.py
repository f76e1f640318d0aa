"""
Synjitsu at work: carries out what `standins` says, and speaks with Jitsu over AMP.

Everything that is decided is decided in `standins`; here are the reactor, the interfaces, the kernel, the log and
the clock.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from twisted.application.service import Service
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw import messages
from synjitsu_tw import handover
from synjitsu_tw.capture import Capture, filter_for, open_pcap
from synjitsu_tw.conversation import Conversation
from synjitsu_tw.kernel import Kernel, own_mac
from synjitsu_tw.standins import Standins
from synjitsu_tw.table import (
    Action,
    Claimed,
    Erase,
    Handover,
    Link,
    Listens,
    Record,
    Refusal,
    Seen,
    Send,
    State,
    Summon,
    Tell,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.python.failure import Failure

    from synjitsu_tw.capture import Pcap
    from synjitsu_tw.handover import XenstoreHandover
    from synjitsu_tw.table import Standin

#: Seconds between two looks at what has waited too long.
TICK: Final = 1.0

#: Seconds between two looks at guests that boot or have just booted: whether they listen, and answer what was held.
LOOK: Final = 0.005

#: Seconds for which the VMs of a Jitsu that has gone are stood in for: it may come back.
ORPHANED: Final = 15.0

#: How many summons one Jitsu may have before it has taken the first; the second half is for clients that have sent more
#: than once. A flood from forged sources does not go on for long if it starts the VM, and cannot fill these if not.
SUMMONS: Final = 128


class Synjitsu(Service):
    """
    Stands in on some interfaces.

    Args:
        interfaces: their names.
        reactor: Twisted's.
        listed: pairs of address and MAC to stand in for without Jitsu, until the guest shows itself.
        refusal: what SYNs get that come for a VM whose start has just failed.
        kernel: asked and told about this host.
        opens: makes an interface's pcap.
    """

    log = Logger()

    def __init__(
        self,
        interfaces: Sequence[str],
        reactor: Any,
        listed: Mapping[bytes, bytes] | None = None,
        refusal: Refusal = Refusal.SILENCE,
        kernel: Kernel | None = None,
        opens: Callable[[str], Pcap] = open_pcap,
    ) -> None:
        """Open nothing yet."""
        self._reactor, self._listed = reactor, listed or {}
        self._kernel = kernel or Kernel()
        links = {name: Link(own_mac(name)) for name in interfaces}
        self.standins = Standins(links, refusal=refusal)
        self._captures = {name: Capture(name, self._receives(name), reactor, opens) for name in interfaces}
        self._wanted: dict[str, Any] = {"ipv4": False, "ipv6": False, "udp": frozenset(), "knocks": False}
        self._owners: dict[bytes, Conversation] = {}
        self._orphans: dict[bytes, float] = {}
        self._may_tell = True
        self._tick = LoopingCall(self.tick)
        self._tick.clock = reactor
        self._look = LoopingCall(self.look)
        self._look.clock = reactor
        self.xenstore: XenstoreHandover | None = None
        self.factory = Factory.forProtocol(Conversation)
        self.factory.synjitsu = self  # type: ignore[attr-defined]
        self.factory.noisy = False

    def open(self) -> None:
        """
        Open the interfaces, which takes privileges.

        Raises:
            CaptureError: one of them cannot be opened.
        """
        for name, capture in self._captures.items():
            capture.open(filter_for(self.standins.links[name].mac, **self._wanted))

    def startService(self) -> None:  # noqa: N802
        """Begin."""
        super().startService()
        self._look_at_host()
        for ip, mac in self._listed.items():
            self.announce(None, ip, mac, asleep=False)
        self._tick.start(TICK, now=False)
        self.log.info(
            "standing in on {interfaces} for the VMs that Jitsu announces, at {macs}",
            interfaces=", ".join(self._captures),
            macs=", ".join(link.mac.hex(":") for link in self.standins.links.values()),
        )

    def stopService(self) -> None:  # noqa: N802
        """End. Nobody is told: who starts us again shall find peers as they were."""
        super().stopService()
        for call in (self._tick, self._look):
            if call.running:
                call.stop()
        for capture in self._captures.values():
            capture.close()
        self._kernel.close()

    # What Jitsu says

    def announce(self, owner: Conversation | None, ip: bytes, mac: bytes, **more: Any) -> None:
        """Stand in for an address."""
        self._own(owner, ip)
        version = "ipv4" if len(ip) == 4 else "ipv6"
        udp, knocks = more.get("wake_udp", frozenset()), more.get("knock") is not None
        self._want(
            **{version: True, "udp": self._wanted["udp"] | udp, "knocks": self._wanted["knocks"] or knocks}
        )
        if not more["asleep"]:  # there may be a hundred thousand that are
            self._look_at_host()
        before = self.standins.table.get(ip)
        known = before is not None and (before.stands, before.domid)
        self._do(self.standins.announce(ip, mac, **more))
        standin = self.standins.table[ip]
        if standin.handover is Handover.XENSTORE and known != (True, standin.domid):
            self._announce_in_xenstore(standin)
        self._look_soon()

    def ready(self, owner: Conversation | None, ip: bytes, mac: bytes) -> None:
        """Hand an address over to its guest."""
        self._own(owner, ip)
        self._hand_over(ip, mac)

    def _hand_over(self, ip: bytes, mac: bytes = b"") -> None:
        standin, held = self.standins.ready(ip, mac)
        self._do(handover.wire(self.standins, standin, held))
        self._look_soon()
        if held:
            self.log.info(
                "{ip}: handed over to {mac}: {count} packets, the first of them held for {seconds:.3f} s",
                ip=str(ip_address(ip)),
                mac=standin.mac.hex(":"),
                count=len(held),
                seconds=self._reactor.seconds() - min(one.since for one in held),
            )

    def withdraw(self, ip: bytes, *, failed: bool) -> None:
        """Stand in for an address no longer."""
        self._owners.pop(ip, None)
        self._orphans.pop(ip, None)
        standin = self.standins.table.get(ip)
        self._do(self.standins.withdraw(ip, self._reactor.seconds(), failed=failed))
        if self.xenstore is not None and standin is not None and standin.handover is Handover.XENSTORE:
            self.xenstore.forget(ip)

    def announced_all(self) -> None:
        """A Jitsu has said everything: what an earlier one had announced, and this one has not, is let go."""
        for ip in list(self._orphans):
            self._let_go(ip)

    def lost(self, owner: Conversation) -> None:
        """A Jitsu has gone; it may come back."""
        until = self._reactor.seconds() + ORPHANED
        for ip in [ip for ip, other in self._owners.items() if other is owner]:
            del self._owners[ip]
            self._orphans[ip] = until

    def _own(self, owner: Conversation | None, ip: bytes) -> None:
        self._orphans.pop(ip, None)
        if owner is not None:
            self._owners[ip] = owner

    def _let_go(self, ip: bytes) -> None:
        """Forget an address; if its VM boots, as far as is known, give it what is held, as nobody else will."""
        del self._orphans[ip]
        standin = self.standins.table.get(ip)
        if standin is not None and standin.state is State.BOOTING and standin.mac:
            self._hand_over(ip)
        self.withdraw(ip, failed=False)

    def counters(self) -> dict[str, int]:
        """Return how much there has been, and how much is held."""
        kinds = ("held", "handed_over", "expired", "given_up", "refused", "dropped", "turned_away", "passed_on")
        counted = {kind: self.standins.counters[kind] for kind in kinds}
        syns = self.standins.syns
        return counted | {"held_now": syns.total, "octets_now": syns.octets, "standins_now": len(self.standins.table)}

    # Frames and time

    def _receives(self, port: str) -> Callable[[list[bytes]], None]:
        """Return what takes the frames of one interface."""

        def receive(frames: list[bytes]) -> None:
            now = self._reactor.seconds()
            for octets in frames:
                self._do(self.standins.frame(port, octets, now))

        return receive

    def tick(self) -> None:
        """Look at what has waited too long, and at what has changed on this host."""
        now = self._reactor.seconds()
        self._look_at_host()
        self._do(self.standins.expire(now))
        for ip in [ip for ip, until in self._orphans.items() if now >= until]:
            self._let_go(ip)

    def _look_soon(self) -> None:
        if (self.standins.knocked or self.standins.handed) and not self._look.running:
            self._look.start(LOOK)

    def look(self) -> None:
        """Look whether guests that boot listen, and whether those that do have answered."""
        now = self._reactor.seconds()
        self._do(self.standins.knock(now))
        self._do(self.standins.again(now))
        if not self.standins.knocked and not self.standins.handed:
            self._look.stop()

    def _look_at_host(self) -> None:
        addresses = self._kernel.addresses()
        for name, link in self.standins.links.items():
            link.addresses = addresses
            try:
                link.host, link.mtu = self._kernel.mac(name), self._kernel.mtu(name)
                link.knocks_from = self._kernel.knocks_from(name)
            except OSError:  # it has gone for now
                continue

    def _want(self, **changes: Any) -> None:
        """See to it that all that is needed passes the filters. They only grow: changing one may lose a frame."""
        wanted = self._wanted | changes
        if wanted != self._wanted:
            self._wanted = wanted
            for name, capture in self._captures.items():
                capture.narrow(filter_for(self.standins.links[name].mac, **wanted))

    # Actions

    def _do(self, actions: Iterable[Action]) -> None:
        """Carry out what `standins` says, in its order."""
        for action in actions:
            if isinstance(action, Send):
                self._captures[action.port].send(action.octets)
            elif isinstance(action, Tell):
                self._tell(action)
            elif isinstance(action, Summon):
                self._summon(action)
            elif isinstance(action, Seen):
                self._seen(action.ip)
            elif isinstance(action, Listens):
                self._listens(action.ip)
            elif isinstance(action, Claimed):
                self.log.warn(
                    "{mac} on {port} says that it is {ip}, which is another VM's: not served",
                    mac=action.mac.hex(":"),
                    port=action.port,
                    ip=str(ip_address(action.ip)),
                )
            elif self.xenstore is not None and isinstance(action, Record):
                self.xenstore.record(action.held)
            elif self.xenstore is not None and isinstance(action, Erase):
                self.xenstore.erase(action.held)

    def _tell(self, action: Tell) -> None:
        try:
            self._kernel.tell(action.port, action.ip, action.mac, create=action.create)
        except OSError as error:
            if self._may_tell:
                self._may_tell = False
                self.log.warn(
                    "cannot tell this host's kernel where VMs are ({error}): its own connections, and those that it "
                    "routes, may lose their first packets; it takes CAP_NET_ADMIN",
                    error=error,
                )

    def _summon(self, action: Summon) -> None:
        owner = self._owners.get(action.ip)
        if owner is not None and owner.summons < (SUMMONS if action.proven else SUMMONS // 2):
            owner.summons += 1
            sent = owner.callRemote(
                messages.Summon, ip=str(ip_address(action.ip)), source=str(ip_address(action.source))
            )
            sent.addBoth(owner.summoned)

    def _listens(self, ip: bytes) -> None:
        standin = self.standins.table[ip]
        if standin.state is State.BOOTING:
            if not standin.keeps:
                self._hand_over(ip)
            owner = self._owners.get(ip)
            if owner is not None:
                owner.callRemote(messages.Listens, ip=str(ip_address(ip))).addErrback(_went_away)

    def _seen(self, ip: bytes) -> None:
        owner = self._owners.get(ip)
        if owner is not None:
            owner.callRemote(messages.Seen, ip=str(ip_address(ip))).addErrback(_went_away)
        elif ip in self._listed and self.standins.table[ip].stands:
            self._hand_over(ip)

    # Xenstore

    def managed(self, ip: bytes) -> None:
        """A guest takes its SYNs itself from now on."""
        standin = self.standins.table.get(ip)
        if standin is not None and standin.handover is Handover.XENSTORE and standin.stands:
            self._hand_over(ip)

    def announce_in_xenstore(self) -> None:
        """Write down all that Xenstore is to have, as it has nothing."""
        for standin in self.standins.table.values():
            if standin.handover is Handover.XENSTORE and standin.stands:
                self._announce_in_xenstore(standin)

    def _announce_in_xenstore(self, standin: Standin) -> None:
        if self.xenstore is not None:
            self.xenstore.announce(standin, self.standins.syns.of(standin.ip))


def _went_away(failure: Failure) -> None:
    failure.trap(ConnectionClosed)
