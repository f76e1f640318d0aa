"""
Run Synjitsu: carry out the actions of `standins`, and serve Jitsu over AMP.

All decisions are in `standins`; here are the reactor, the interfaces, the kernel, the log and the clock.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from itertools import islice
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
from synjitsu_tw.flowfile import FlowFile
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
    SendToHost,
    SetNeighbour,
    State,
    Summon,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from synjitsu_tw.capture import Pcap
    from synjitsu_tw.handover import XenstoreHandover
    from synjitsu_tw.links import Interface
    from synjitsu_tw.table import Standin

#: Seconds between two checks for expired packets and orphaned addresses.
TICK: Final = 1.0

#: Seconds between two checks for changes of this host: what they are is known when Jitsu next announces a VM that
#: starts, which would wait some milliseconds for it.
READ_HOST_EVERY: Final = 0.1

#: Seconds between two probes of guests that boot, and two checks whether guests have answered held SYNs, at least.
PROBE_EVERY: Final = 0.002

#: Seconds between two readings of this host's interfaces while guests boot: making a tap changes many things at once.
READ_LINKS_EVERY: Final = 0.02

#: After a reading, the pause until the next, as a multiple of its duration: with a hundred taps it takes 5 ms, in
#: which no packet is handed over, and making one more tap changes something ten times.
LINKS_PAUSE: Final = 4.0

#: Seconds for which Synjitsu stands in for the VMs of a Jitsu whose connection is lost: it may connect again.
ORPHANED: Final = 15.0

#: How many summons may be sent to one Jitsu before it acknowledges the first; the second half is for clients that have
#: sent more than once. A flood from forged sources ends soon if it starts the VM, and cannot use that half if not.
SUMMONS: Final = 128

#: How many flows are saved in one tick: some ten milliseconds of work.
SAVED_PER_TICK: Final = 2000

#: Connections before their `Hello`, and those of Jitsus: how many there may be, and how many from one network.
BEFORE_HELLO: Final = (32, 16)
JITSUS: Final = (64, 32)

#: How many addresses may be announced: more than 100,000 VMs have.
MOST_STANDINS: Final = 250_000

#: How many UDP ports may start VMs, of all VMs together: each makes the kernel's filter longer.
MOST_UDP: Final = 256


#: Warnings about an interface, each logged once.
NO_BRIDGE: Final = (
    "it is no Linux bridge, so that Synjitsu cannot have a port of its own in it: frames for VMs that are off or boot "
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
    Stands in for addresses on some interfaces.

    Args:
        interfaces: their names.
        reactor: Twisted's.
        listed: pairs of address and MAC to stand in for without Jitsu, until the guest shows itself.
        refusal: the answer to SYNs for a VM whose start has just failed.
        kernel: reads and changes this host's network.
        opens: makes an interface's pcap.
        secret: the secret that Jitsu has to show; empty for none.
        flows: the name of the file that keeps the flows during a restart; empty for none.
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
        flows: str = "",
    ) -> None:
        """Store the arguments; `open` opens the interfaces, and `startService` begins."""
        self._reactor, self._listed = reactor, listed or {}
        self._kernel = kernel or Kernel()
        links = {name: Link(own_mac(name)) for name in interfaces}
        self.standins = Standins(links, refusal=refusal)
        self._captures = {name: Capture(name, self._receives(name), reactor, opens) for name in interfaces}
        self._wanted: dict[str, Any] = {"ipv4": False, "ipv6": False, "udp": frozenset(), "probes": False}
        self._flow_file = FlowFile(flows, reactor.seconds)
        self._owners: dict[bytes, Conversation] = {}
        self._orphans: dict[bytes, float] = {}
        self._refused: dict[bytes, Conversation] = {}
        self._gateways: frozenset[bytes] = frozenset()
        self._forwarding: frozenset[int] = frozenset()
        self._links_read_at = self._links_pause_until = 0.0
        self._reported: dict[str, str] = {}
        self._may_set_neighbours = True
        self._loops = {TICK: LoopingCall(self.tick), READ_HOST_EVERY: LoopingCall(self._read_host_changes)}
        for loop in self._loops.values():
            loop.clock = reactor
        self._probing: IDelayedCall | None = None
        self.xenstore: XenstoreHandover | None = None
        self.factory = Factory.forProtocol(Conversation)
        self.factory.synjitsu = self  # type: ignore[attr-defined]
        self.factory.secret = secret  # type: ignore[attr-defined]
        self.factory.reactor = reactor  # type: ignore[attr-defined]
        self.factory.before_hello = Connections(*BEFORE_HELLO)  # type: ignore[attr-defined]
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
        self._read_links()
        self._read_addresses()

    def read_flows(self) -> None:
        """Open the file of flows, and know those in it; to be called after `open`, before `startService`."""
        known = [flow for flow in self._flow_file.read() if flow.peer.port in self._captures]
        self.standins.flows.restore(known)
        lengths = {len(flow.ip) for flow in known}
        self._widen_filters(ipv4=4 in lengths, ipv6=16 in lengths)

    def startService(self) -> None:  # noqa: N802
        """Stand in for the listed addresses, and begin to check for expired packets."""
        super().startService()
        for ip, mac in self._listed.items():
            try:
                self.announce(None, ip, (mac,), asleep=False)
            except Refused as refused:
                self.log.error("--standin is refused: {reason}", reason=str(refused))
        for every, loop in self._loops.items():
            loop.start(every, now=False)
        self.log.info(
            "standing in on {interfaces} for the VMs that Jitsu announces, at {macs}",
            interfaces=", ".join(self._captures),
            macs=", ".join(link.mac.hex(":") for link in self.standins.links.values()),
        )

    def stopService(self) -> None:  # noqa: N802
        """Close the interfaces. Peers keep the stand-in's MAC, as Synjitsu's next start expects."""
        super().stopService()
        for loop in self._loops.values():
            if loop.running:
                loop.stop()
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
        for capture in self._captures.values():
            capture.close()
        self._kernel.close()
        self._save_flows()
        self._flow_file.close()

    # Calls from Jitsu

    def announce(self, owner: Conversation | None, ip: bytes, macs: tuple[bytes, ...], **more: Any) -> None:
        """
        Stand in for an address; `Standins.announce` describes the arguments.

        Raises:
            Refused: Synjitsu may not stand in for it, or there are too many addresses or UDP ports.
        """
        if len(self.standins.table) >= MOST_STANDINS and ip not in self.standins.table:
            raise Refused(f"Synjitsu stands in for {MOST_STANDINS} addresses, and cannot for more")
        udp = self._wanted["udp"] | more.get("wake_udp", frozenset())
        if len(udp) > MOST_UDP:
            raise Refused(f"wake_udp: there may be {MOST_UDP} different ports, of all VMs together")
        if not more["asleep"]:  # of those that are, there may be a hundred thousand
            self._read_host_changes()
        self._own(owner, ip)
        version = "ipv4" if len(ip) == 4 else "ipv6"
        probes = self._wanted["probes"] or more.get("probe_port") is not None
        self._widen_filters(**{version: True, "udp": udp, "probes": probes})
        before = self.standins.table.get(ip)
        known = before is not None and (before.stands, before.domid)
        self._do(self.standins.announce(ip, macs, now=self._reactor.seconds(), **more))
        standin = self.standins.table[ip]
        if standin.handover is Handover.XENSTORE and known != (True, standin.domid):
            self._announce_in_xenstore(standin)
        self._start_probing()

    def _obstacle(self, ip: bytes) -> str | None:
        """Return why Synjitsu may not stand in for an address; None if it may."""
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
        """
        Hand an address over to its guest.

        Raises:
            Refused: Synjitsu may not stand in for it.
        """
        self._own(owner, ip)
        self._hand_over(ip, macs)

    def _hand_over(self, ip: bytes, macs: tuple[bytes, ...] = ()) -> None:
        before = self.standins.table.get(ip)
        stood = before is not None and before.stands
        standin, held = self.standins.ready(ip, macs)
        if stood:  # else peers have the guest's MAC
            self._do(handover.wire(self.standins, standin, held))
        self._start_probing()
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
        """Release the addresses that an earlier Jitsu had announced and this one has not."""
        for ip in list(self._orphans):
            self._release(ip)

    def lost(self, owner: Conversation) -> None:
        """Handle the loss of the connection to a Jitsu: keep its addresses for `ORPHANED` seconds."""
        until = self._reactor.seconds() + ORPHANED
        self._refused = {ip: other for ip, other in self._refused.items() if other is not owner}
        for ip in [ip for ip, other in self._owners.items() if other is owner]:
            del self._owners[ip]
            self._orphans[ip] = until

    def _own(self, owner: Conversation | None, ip: bytes) -> None:
        """Store that *owner* has announced *ip*; withdraw the address and raise Refused if there is an obstacle."""
        obstacle = self._obstacle(ip)
        if obstacle is not None:
            self.withdraw(ip, failed=False)
            if owner is not None and len(self._refused) < MOST_STANDINS:
                self._refused[ip] = owner
            raise Refused(obstacle)
        self._refused.pop(ip, None)
        self._orphans.pop(ip, None)
        if owner is not None and self._owners.get(ip) is not owner:
            self._owners[ip] = owner
            if self.standins.flows.count(ip, 0.0)[0]:
                self._report_flows(ip)

    def _release(self, ip: bytes) -> None:
        """Forget an orphaned address; if its VM boots, first hand over the held packets, as no Jitsu will do it."""
        del self._orphans[ip]
        standin = self.standins.table.get(ip)
        if standin is not None and standin.state is State.BOOTING and standin.mac:
            self._hand_over(ip)
            if ip in self.standins.handed:  # the guest has not shown itself, or not answered
                self._orphans[ip] = self._reactor.seconds() + EXPIRY
                return
        self.withdraw(ip, failed=False)

    def packets(self, ip: bytes) -> int:
        """
        Return how many packets of conversations the guest at *ip* has exchanged since that was first asked.

        Raises:
            Refused: it cannot be counted.
        """
        standin, now = self.standins.table.get(ip), self._reactor.seconds()
        if standin is not None and standin.mac:
            for name in self.standins.links:
                count = self._kernel.counts.read(standin.mac, partial(self._kernel.port_of, name, standin.mac), now)
                if count is not None:
                    return count
        raise Refused("the guest has not been seen at a port of a bridge")

    def counters(self) -> dict[str, int]:
        """Return how many packets of each kind there have been, and how many packets and octets are held now."""
        kinds = ("held", "handed_over", "expired", "given_up", "refused", "dropped", "turned_away", "passed_on")
        counted = {kind: self.standins.counters[kind] for kind in kinds}
        syns = self.standins.syns
        segments, flows = self.standins.segments, self.standins.flows
        return counted | {
            "held_now": syns.total + segments.total,
            "octets_now": syns.octets + segments.octets,
            "standins_now": len(self.standins.table),
            "flows_now": len(flows),
        }

    # Frames and time

    def _receives(self, port: str) -> Callable[[list[bytes]], None]:
        """Return the function that handles the frames captured on *port*."""

        def receive(frames: list[bytes]) -> None:
            now = self._reactor.seconds()
            for octets in frames:
                self._do(self.standins.frame(port, octets, now))
            if self._probing is not None:
                self._probe_later()

        return receive

    def tick(self) -> None:
        """Drop what has expired, release orphaned addresses, and report flows to Jitsu."""
        now = self._reactor.seconds()
        self._do(self.standins.expire(now))
        self._kernel.counts.expire(now)
        self._save_flows(SAVED_PER_TICK)
        changed, self.standins.flows.changed = self.standins.flows.changed, set()
        for ip in changed:
            self._report_flows(ip)
        for ip in [ip for ip, until in self._orphans.items() if now >= until]:
            self._release(ip)

    def _save_flows(self, most: int | None = None) -> None:
        """Write the flows that have changed to their file: all, or *most* of them, the first to change first."""
        unsaved = self.standins.flows.unsaved
        slots = list(islice(unsaved, most))
        self._flow_file.write({slot: unsaved.pop(slot) for slot in slots})

    def _report_flows(self, ip: bytes) -> None:
        """Tell Jitsu how many flows of a VM are open."""
        owner = self._owners.get(ip)
        if owner is not None:
            count, silent = self.standins.flows.count(ip, self._reactor.seconds())
            sent = owner.callRemote(messages.Flows, ip=str(ip_address(ip)), open=count, silent=silent)
            sent.addErrback(_ignore_loss)

    def _start_probing(self) -> None:
        if (self.standins.probed or self.standins.handed) and self._probing is None:
            self.probe()

    def _probe_later(self) -> None:
        """Call `probe` when something is due, and as often as links are to be read; not if no guest boots."""
        if self.standins.probed or self.standins.handed:
            now = self._reactor.seconds()
            wait = min(max(PROBE_EVERY, self.standins.due() - now), READ_LINKS_EVERY)
            if self._probing is None:
                self._probing = self._reactor.callLater(wait, self.probe)
            elif self._probing.getTime() > now + wait:  # never later: frames may come more often than probes
                self._probing.reset(wait)

    def probe(self) -> None:
        """
        Probe the guests that boot, and send held SYNs again that guests have not answered.

        Captured answers are read first: the reactor runs late timers before it reads what has arrived meanwhile, and a
        SYN that is sent again to a guest which has answered it looks like a new connection.
        """
        self._probing = None
        for capture in self._captures.values():
            capture.doRead()
        now = self._reactor.seconds()
        if now - self._links_read_at >= READ_LINKS_EVERY:
            self._read_changed_links(now)
        self._do(self.standins.probe(now))
        self._do(self.standins.resend(now))
        self._probe_later()

    def _read_host_changes(self) -> None:
        """Read this host's interfaces, addresses and gateways if they have changed."""
        self._read_changed_links(self._reactor.seconds())
        if self._kernel.addresses_changed():
            self._read_addresses()

    def _read_changed_links(self, now: float) -> None:
        """Read this host's interfaces if they have changed, unless the last reading took long and was just now."""
        if now >= self._links_pause_until and self._kernel.links_changed():
            self._read_links()
            ended = self._reactor.seconds()
            self._links_pause_until = ended + LINKS_PAUSE * (ended - now)

    def _read_links(self) -> None:
        """Read the interfaces' MACs and MTUs, and ensure Synjitsu's port in each bridge."""
        self._links_read_at = self._reactor.seconds()
        forwarding: set[int] = set()
        for name, link in self.standins.links.items():
            forwarding |= {port.index for port in self._ensure_port(name, link) if port.forwards}
            with suppress(OSError):  # the interface does not exist for now
                found = self._kernel.interface(name)
                link.host, link.mtu = found.mac, found.mtu
        if self._forwarding - forwarding:
            self.standins.await_guests_again()
        elif forwarding - self._forwarding:
            self.standins.ask_now()
        self._forwarding = frozenset(forwarding)

    def _ensure_port(self, name: str, link: Link) -> list[Interface]:
        """Ensure Synjitsu's port in a bridge, or report why there is none; return the bridge's other ports."""
        try:
            bridge, ports = self._kernel.ensure_port(name, link.mac)
        except NotABridgeError:
            self._report(name, NO_BRIDGE)
        except OSError as error:
            remedy = "; it takes CAP_NET_ADMIN" if error.errno in {errno.EPERM, errno.EACCES} else ""
            if error.errno != errno.ENODEV:  # the interface does not exist for now
                self._report(name, NO_PORT.format(f"{error.strerror}{remedy}"))
        else:
            if bridge.stp:
                self._report(name, STP)
            return ports
        return []

    def _report(self, name: str, report: str) -> None:
        """Log a warning about an interface, once."""
        if self._reported.get(name) != report:
            self._reported[name] = report
            self.log.warn("{interface}: {report}", interface=name, report=report)

    def _read_addresses(self) -> None:
        """Read this host's addresses and gateways; stand in no longer for an address that has become one of them."""
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
        # Where only an address on another interface has changed, as with each tap, it alone is checked, not 100,000.
        affected = [ip for ip in own if ip in table] if same else list(table)
        lost = {ip: obstacle for ip in affected if (obstacle := self._obstacle(ip)) is not None}
        for ip, obstacle in lost.items():
            owner = self._owners.get(ip)
            self.withdraw(ip, failed=False)
            if owner is not None:
                self._refused[ip] = owner
            self.log.warn("no longer standing in for {ip}: {obstacle}", ip=str(ip_address(ip)), obstacle=obstacle)
        # An address that was refused may be allowed now: Jitsu announces all of them on a new connection.
        for owner in {owner for ip, owner in self._refused.items() if self._obstacle(ip) is None}:
            assert owner.transport is not None
            owner.transport.loseConnection()

    def _widen_filters(self, **changes: Any) -> None:
        """Add *changes* to the kernel filters. Filters only grow, as changing one may lose a frame."""
        wanted = self._wanted | changes
        if wanted != self._wanted:
            self._wanted = wanted
            for name, capture in self._captures.items():
                capture.set_filter(filter_for(self.standins.links[name].mac, **wanted))

    # Actions

    def _do(self, actions: Iterable[Action]) -> None:
        """Carry out the actions of `standins`, in their order."""
        for action in actions:
            if isinstance(action, Send):
                self._captures[action.port].send(action.octets)
            elif isinstance(action, SendToHost):
                self._send_to_host(action)
            elif isinstance(action, SetNeighbour):
                self._set_neighbour(action)
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
                    "{mac} on {port} claims {ip}, the address of a VM that does not have this MAC: it is ignored",
                    mac=action.mac.hex(":"),
                    port=action.port,
                    ip=str(ip_address(action.ip)),
                )
            elif self.xenstore is not None and isinstance(action, Record):
                self.xenstore.record(action.held)
            elif self.xenstore is not None and isinstance(action, Erase):
                self.xenstore.erase(action.held)

    def _send_to_host(self, action: SendToHost) -> None:
        try:
            self._kernel.send_to_host(action.port, action.octets)
        except OSError as error:  # as without a port in the bridge, which is logged
            self.log.debug("{interface}: a frame is lost: {error}", interface=action.port, error=error)

    def _set_neighbour(self, action: SetNeighbour) -> None:
        try:
            self._kernel.set_neighbour(action.port, action.ip, action.mac, create=action.create)
        except OSError as error:
            if self._may_set_neighbours:
                self._may_set_neighbours = False
                self.log.warn(
                    "cannot change this host's neighbour table ({error}): connections of this host, and those that it "
                    "routes, may lose their first packets; it takes CAP_NET_ADMIN",
                    error=error,
                )

    def _look_up(self, action: LookUp) -> None:
        standin = self.standins.table[action.ip]
        known = frozenset((*standin.macs, *standin.learnt))
        if self._kernel.is_same_port(action.port, action.mac, known, standin.domid):
            self.standins.learn(action.ip, action.mac)
            self.log.info("{ip}: {mac} is its guest's, too", ip=str(ip_address(action.ip)), mac=action.mac.hex(":"))

    def _elsewhere(self, action: Elsewhere) -> None:
        owner = self._owners.get(action.ip)
        if owner is not None:
            found = str(ip_address(action.found)) if action.found else ""
            sent = owner.callRemote(messages.Elsewhere, ip=str(ip_address(action.ip)), found=found)
            sent.addErrback(_ignore_loss)

    def _summon(self, action: Summon) -> None:
        owner = self._owners.get(action.ip)
        if owner is not None and owner.summons < (SUMMONS if action.proven else SUMMONS // 2):
            owner.summons += 1
            ip, source = str(ip_address(action.ip)), str(ip_address(action.source))
            sent = owner.callRemote(messages.Summon, ip=ip, source=source, flow=action.flow)
            sent.addBoth(owner.summoned)

    def _listens(self, ip: bytes) -> None:
        standin = self.standins.table[ip]
        if standin.state is State.BOOTING:
            self._hand_over(ip)
        owner = self._owners.get(ip)
        if owner is not None:
            owner.callRemote(messages.Listens, ip=str(ip_address(ip))).addErrback(_ignore_loss)

    def _seen(self, ip: bytes) -> None:
        owner = self._owners.get(ip)
        if owner is not None:
            owner.callRemote(messages.Seen, ip=str(ip_address(ip))).addErrback(_ignore_loss)
        elif ip in self._listed and self.standins.table[ip].stands:
            self._hand_over(ip)

    # Xenstore

    def managed(self, ip: bytes) -> None:
        """Handle that a guest takes its SYNs itself from now on."""
        standin = self.standins.table.get(ip)
        if standin is not None and standin.handover is Handover.XENSTORE and standin.stands:
            self._hand_over(ip)

    def announce_in_xenstore(self) -> None:
        """Announce all addresses with handover by Xenstore there, as it has none of them."""
        for standin in self.standins.table.values():
            if standin.handover is Handover.XENSTORE and standin.stands:
                self._announce_in_xenstore(standin)

    def _announce_in_xenstore(self, standin: Standin) -> None:
        if self.xenstore is not None:
            self.xenstore.announce(standin, self.standins.syns.of(standin.ip))


def _ignore_loss(failure: Failure) -> None:
    """Ignore that the connection to Jitsu was lost, or that Jitsu did not accept a message."""
    failure.trap(ConnectionClosed, *messages.NO_ANSWER)
