"""
Synjitsu at work: carries out what `standins` says, and speaks with Jitsu over AMP.

Everything that is decided is decided in `standins`; here are the reactor, the interfaces, the kernel, the log and
the clock.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from twisted.application.service import Service
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from jitsu_tw import messages
from jitsu_tw.dns.connections import Connections
from jitsu_tw.messages import Refused
from jitsu_tw.networks import why_no_guest
from synjitsu_tw import handover
from synjitsu_tw.capture import Capture, filter_for, open_pcap
from synjitsu_tw.conversation import Conversation
from synjitsu_tw.kernel import Kernel, NotABridgeError, own_mac
from synjitsu_tw.standins import Standins
from synjitsu_tw.syns import EXPIRY
from synjitsu_tw.table import (
    Action,
    Claimed,
    Elsewhere,
    Erase,
    Handover,
    Link,
    Listens,
    LookUp,
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
    from synjitsu_tw.kernel import Interface
    from synjitsu_tw.table import Standin

#: Seconds between two looks at what has waited too long.
TICK: Final = 1.0

#: Seconds between two looks at guests that boot or have just booted: whether they listen, and answer what was held.
LOOK: Final = 0.002

#: Seconds between two looks at this host's interfaces while guests boot: making a tap changes many things at once.
LOOK_AT_LINKS: Final = 0.02

#: After such a look, the next one is due after so many times as long as it took: with a hundred taps it takes 60 ms, in
#: which no packet is handed over, and making one more tap changes something ten times.
LINKS_REST: Final = 4.0

#: Seconds for which the VMs of a Jitsu that has gone are stood in for: it may come back.
ORPHANED: Final = 15.0

#: How many summons one Jitsu may have before it has taken the first; the second half is for clients that have sent more
#: than once. A flood from forged sources does not go on for long if it starts the VM, and cannot fill these if not.
SUMMONS: Final = 128


#: Connections that have not said `Hello`, and Jitsus: how many there may be, and how many of one network.
STRANGERS: Final = (32, 16)
JITSUS: Final = (64, 32)

#: How many addresses may be announced: more than 100,000 VMs have.
MOST_STANDINS: Final = 250_000

#: How many UDP ports may be worth a start, of all VMs: each makes the kernel's filter longer.
MOST_UDP: Final = 256


#: What is logged of an interface, once.
NO_BRIDGE: Final = (
    "it is no bridge of Linux's, in which Synjitsu could have a port of its own: frames for VMs that are off or boot "
    "may be flooded to others, and may be lost while nothing is plugged in"
)
NO_PORT: Final = (
    "Synjitsu cannot have a port of its own in this bridge ({}): while nothing else is plugged in, nothing wakes a VM, "
    "and frames for VMs that boot are flooded to others"
)
STP: Final = (
    "the spanning tree protocol is on, so that the bridge forwards nothing to a VM in the first seconds after its "
    "start; a network of libvirt's need not have it: <bridge stp='off' delay='0'/>"
)


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
        secret: what Jitsu has to show; empty for nothing.
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
        secret: str = "",
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
        self._refused: dict[bytes, Conversation] = {}
        self._gateways: frozenset[bytes] = frozenset()
        self._forwarding: frozenset[int] = frozenset()
        self._looked_at_links = self._links_rest_until = 0.0
        self._reported: dict[str, str] = {}
        self._may_tell = True
        self._tick = LoopingCall(self.tick)
        self._tick.clock = reactor
        self._look = LoopingCall(self.look)
        self._look.clock = reactor
        self.xenstore: XenstoreHandover | None = None
        self.factory = Factory.forProtocol(Conversation)
        self.factory.synjitsu = self  # type: ignore[attr-defined]
        self.factory.secret = secret  # type: ignore[attr-defined]
        self.factory.reactor = reactor  # type: ignore[attr-defined]
        self.factory.strangers = Connections(*STRANGERS)  # type: ignore[attr-defined]
        self.factory.jitsus = Connections(*JITSUS)  # type: ignore[attr-defined]
        self.factory.noisy = False

    def open(self) -> None:
        """
        Open the interfaces, which takes privileges.

        Raises:
            CaptureError: one of them cannot be opened.
        """
        for name, capture in self._captures.items():
            capture.open(filter_for(self.standins.links[name].mac, **self._wanted))
        self._look_at_links()
        self._look_at_addresses()

    def startService(self) -> None:  # noqa: N802
        """Begin."""
        super().startService()
        for ip, mac in self._listed.items():
            try:
                self.announce(None, ip, (mac,), asleep=False)
            except Refused as refused:
                self.log.error("--standin is refused: {reason}", reason=str(refused))
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

    def announce(self, owner: Conversation | None, ip: bytes, macs: tuple[bytes, ...], **more: Any) -> None:
        """
        Stand in for an address.

        Raises:
            Refused: it may not be.
        """
        if len(self.standins.table) >= MOST_STANDINS and ip not in self.standins.table:
            raise Refused(f"{MOST_STANDINS} addresses are stood in for, and no more can be")
        udp = self._wanted["udp"] | more.get("wake_udp", frozenset())
        if len(udp) > MOST_UDP:
            raise Refused(f"wake_udp: there may be {MOST_UDP} different ports, of all VMs together")
        if not more["asleep"]:  # there may be a hundred thousand that are
            self._look_at_host()
        self._own(owner, ip)
        version = "ipv4" if len(ip) == 4 else "ipv6"
        self._want(**{version: True, "udp": udp, "knocks": self._wanted["knocks"] or more.get("knock") is not None})
        before = self.standins.table.get(ip)
        known = before is not None and (before.stands, before.domid)
        self._do(self.standins.announce(ip, macs, **more))
        standin = self.standins.table[ip]
        if standin.handover is Handover.XENSTORE and known != (True, standin.domid):
            self._announce_in_xenstore(standin)
        self._look_soon()

    def _obstacle(self, ip: bytes) -> str | None:
        """Return why an address may not be stood in for; None if it may."""
        links, address = self.standins.links, ip_address(ip)
        text = str(address)
        if why := why_no_guest(address, (one for link in links.values() for one in link.networks)):
            return why
        if any(ip in link.addresses for link in links.values()):
            return f"{text} is an address of this host"
        if ip in self._gateways:
            return f"{text} is the gateway of this host's default route"
        if any(link.has(ip) for link in links.values()) or any(self._kernel.is_behind(name, ip) for name in links):
            return None
        return f"{text} is in no network of {', '.join(links)}: correct the VM's ip, or give the bridge its network"

    def ready(self, owner: Conversation | None, ip: bytes, macs: tuple[bytes, ...]) -> None:
        """Hand an address over to its guest. Raises Refused if it may not be stood in for."""
        self._own(owner, ip)
        self._hand_over(ip, macs)

    def _hand_over(self, ip: bytes, macs: tuple[bytes, ...] = ()) -> None:
        before = self.standins.table.get(ip)
        stood = before is not None and before.stands
        standin, held = self.standins.ready(ip, macs)
        if stood:  # else peers know where the guest is
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
        self._refused.pop(ip, None)
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
        self._refused = {ip: other for ip, other in self._refused.items() if other is not owner}
        for ip in [ip for ip, other in self._owners.items() if other is owner]:
            del self._owners[ip]
            self._orphans[ip] = until

    def _own(self, owner: Conversation | None, ip: bytes) -> None:
        obstacle = self._obstacle(ip)
        if obstacle is not None:
            self.withdraw(ip, failed=False)
            if owner is not None and len(self._refused) < MOST_STANDINS:
                self._refused[ip] = owner
            raise Refused(obstacle)
        self._refused.pop(ip, None)
        self._orphans.pop(ip, None)
        if owner is not None:
            self._owners[ip] = owner

    def _let_go(self, ip: bytes) -> None:
        """Forget an address; if its VM boots, as far as is known, give it what is held, as nobody else will."""
        del self._orphans[ip]
        standin = self.standins.table.get(ip)
        if standin is not None and standin.state is State.BOOTING and standin.mac:
            self._hand_over(ip)
            if ip in self.standins.handed:  # the guest has not shown itself, or not answered
                self._orphans[ip] = self._reactor.seconds() + EXPIRY
                return
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
        """
        Look whether guests that boot listen, and whether those that do have answered.

        The answers are read first: the reactor runs timers that are late before it reads what has come meanwhile, and a
        SYN that is sent again to a guest which has answered it looks like a new connection.
        """
        for capture in self._captures.values():
            capture.doRead()
        now = self._reactor.seconds()
        if now - self._looked_at_links >= LOOK_AT_LINKS:
            self._look_at_changed_links(now)
        self._do(self.standins.knock(now))
        self._do(self.standins.again(now))
        if not self.standins.knocked and not self.standins.handed:
            self._look.stop()

    def _look_at_host(self) -> None:
        """Look at what has changed on this host."""
        self._look_at_changed_links(self._reactor.seconds())
        if self._kernel.addresses_changed():
            self._look_at_addresses()

    def _look_at_changed_links(self, now: float) -> None:
        """Look at this host's interfaces if they have changed; a little later, if the last look took long."""
        if now >= self._links_rest_until and self._kernel.links_changed():
            self._look_at_links()
            ended = self._reactor.seconds()
            self._links_rest_until = ended + LINKS_REST * (ended - now)

    def _look_at_links(self) -> None:
        """Read MACs and MTUs, and have a port in each bridge."""
        self._looked_at_links = self._reactor.seconds()
        forwarding: set[int] = set()
        for name, link in self.standins.links.items():
            forwarding |= {port.index for port in self._have_port(name, link) if port.forwards}
            with suppress(OSError):  # it has gone for now
                found = self._kernel.interface(name)
                link.host, link.mtu = found.mac, found.mtu
        if self._forwarding - forwarding:
            self.standins.look_anew()
        elif forwarding - self._forwarding:
            self.standins.ask_now()
        self._forwarding = frozenset(forwarding)

    def _have_port(self, name: str, link: Link) -> list[Interface]:
        """Have a port in a bridge, or report why not; return the bridge's other ports."""
        try:
            bridge, ports = self._kernel.have_port(name, link.mac)
        except NotABridgeError:
            self._report(name, NO_BRIDGE)
        except OSError as error:
            remedy = "; it takes CAP_NET_ADMIN" if error.errno in {errno.EPERM, errno.EACCES} else ""
            if error.errno != errno.ENODEV:  # it has gone for now
                self._report(name, NO_PORT.format(f"{error.strerror}{remedy}"))
        else:
            if bridge.stp:
                self._report(name, STP)
            return ports
        return []

    def _report(self, name: str, report: str) -> None:
        """Log what is to be known of an interface, once."""
        if self._reported.get(name) != report:
            self._reported[name] = report
            self.log.warn("{interface}: {report}", interface=name, report=report)

    def _look_at_addresses(self) -> None:
        """Read this host's addresses and gateways; stand in no longer for what has become one of them."""
        found = self._kernel.addresses()
        own = frozenset(one.ip.packed for addresses in found.values() for one in addresses)
        gateways = self._kernel.gateways()
        links, table = self.standins.links, self.standins.table
        same = gateways == self._gateways and all(link.networks == found.get(name, []) for name, link in links.items())
        if same and all(link.addresses == own for link in links.values()):
            return
        self._gateways = gateways
        for name, link in links.items():
            link.addresses, link.networks = own, found.get(name, [])
        # Where only an address elsewhere has changed, as with each tap, nothing is new for a hundred thousand others.
        found_again = [ip for ip in own if ip in table] if same else list(table)
        lost = {ip: obstacle for ip in found_again if (obstacle := self._obstacle(ip)) is not None}
        for ip, obstacle in lost.items():
            owner = self._owners.get(ip)
            self.withdraw(ip, failed=False)
            if owner is not None:
                self._refused[ip] = owner
            self.log.warn("{ip} is stood in for no longer: {obstacle}", ip=str(ip_address(ip)), obstacle=obstacle)
        # What was refused before may be right now: Jitsu announces everything on a new connection.
        for owner in {owner for ip, owner in self._refused.items() if self._obstacle(ip) is None}:
            assert owner.transport is not None
            owner.transport.loseConnection()

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
            elif isinstance(action, LookUp):
                self._look_up(action)
            elif isinstance(action, Elsewhere):
                self._elsewhere(action)
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

    def _look_up(self, action: LookUp) -> None:
        standin = self.standins.table[action.ip]
        known = frozenset((*standin.macs, *standin.learnt))
        if self._kernel.is_same_port(action.port, action.mac, known, standin.domid):
            self.standins.learn(action.ip, action.mac)
            self.log.info("{ip}: {mac} is its guest's as well", ip=str(ip_address(action.ip)), mac=action.mac.hex(":"))

    def _elsewhere(self, action: Elsewhere) -> None:
        owner = self._owners.get(action.ip)
        if owner is not None:
            found = str(ip_address(action.found)) if action.found else ""
            sent = owner.callRemote(messages.Elsewhere, ip=str(ip_address(action.ip)), found=found)
            sent.addErrback(_went_away)

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
