"""
Decide for which addresses Synjitsu stands in, and for each frame what to send, what to hold and which VM to summon.

Pure: calls from Jitsu, frames and the time come in; actions come out, to be carried out in their order. Nothing here
does I/O, reads a clock or logs.

The laws, all of them here:

- Synjitsu stands in only for an address that was announced. Its guest is known by the announced MACs, and by other MACs
  behind the guest's port of the bridge. Hand-over goes to the MAC that the guest uses for the address.
- Synjitsu never answers a MAC of the guest about the guest's address: the guest would find its address taken
  (RFC 5227; RFC 4862, 5.4).
- While a VM is asleep or boots, every peer shall have the stand-in's MAC for its address, so that no SYN reaches a
  guest whose port is not open yet: a peer that asks gets this MAC, and a peer that has learnt the guest's MAC gets it
  again.
- A SYN for the address counts whatever MAC it is sent to. Other packets for a guest that has sent frames are passed on
  to it: it may be using the network already.
- When the VM is ready, peers get the guest's MAC; a packet that still comes to the stand-in's MAC is passed on to the
  guest, and its sender gets the guest's MAC again.
- If Jitsu has named a port to probe, the guest is ready when it answers a SYN of this host, which is sent past the
  kernel's neighbour table; else when Jitsu sends `Ready`.
- Nothing is sent to a guest's MAC until a frame from it has been seen, as a bridge floods frames for a MAC that it has
  not learnt. Until then this host asks for the address, as any neighbour does, and not often: frames that a guest
  cannot read yet wait in the queue of its tap device, and a small guest may fail at too many at once.
- While a guest that has kept its memory does not run, its peers shall have the stand-in's MAC: those of its flows are
  sent it when the stop begins. A segment with data of a known flow wakes the guest, and is held; a FIN or RST is held,
  and wakes nothing; a keep-alive probe is answered. A segment of no known flow does nothing. If the memory is gone, a
  segment of a flow that was known is refused, so that its client connects anew.
- This host is a peer as well, but frames sent on a bridge never reach the host's own stack: its neighbour table is
  changed instead (`SetNeighbour`).
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Final

from synjitsu_tw import packets
from synjitsu_tw.flows import ALIVE, Flows, Stage
from synjitsu_tw.packets import BROADCAST, FIN, RST, SYN, TCP, UDP, Frame, Neighbour, Packet
from synjitsu_tw.segments import Segments
from synjitsu_tw.syns import EXPIRY, Held, Limits, Syns
from synjitsu_tw.table import (
    CLAIM_EVERY,
    LEARNT,
    Action,
    Claimed,
    Elsewhere,
    Erase,
    Handover,
    Link,
    Listens,
    LookUp,
    Peer,
    Record,
    Refusal,
    Seen,
    Send,
    SendToHost,
    SetNeighbour,
    Standin,
    State,
    Summon,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from synjitsu_tw.flows import TcpFlow

#: Seconds for which the SYNs of a VM whose start failed are refused, unless it is announced again: as long as a client
#: takes to send its third one (Linux).
LINGER: Final = 10.0

#: Seconds between two advertisements of an address to one peer: Linux accepts a change of an entry once a second only
#: (neigh/*/locktime).
ADVERTISE_EVERY: Final = 1.0

#: How many messages of a guest about its own address are handled in a second: more than any well-behaved guest sends;
#: and for all addresses together, as one guest can forge messages of any number of others.
SEEN_PER_SECOND: Final = 8
SEEN_IN_ALL: Final = 256

#: Seconds between two requests to the network for an address whose guest has not shown itself: at first, and at most;
#: and by how much the time grows with each request. So a guest that announces nothing when its network is up is found
#: after a sixteenth of the time that it took, about.
ASK_AFTER: Final = 0.1
ASK_WITHIN: Final = 1.0
ASK_GROWS: Final = 17 / 16

#: A guest that has shown itself is probed again after this part of the time for which it has been silent, but after
#: `PROBE_WITHIN` seconds at most: at once after each of its answers, and ever less often while it does not read its
#: queue.
PROBE_AFTER: Final = 1 / 4
PROBE_WITHIN: Final = 0.25

#: Seconds after which a SYN that the guest has not answered is sent again, doubled each time; and for which that is
#: repeated: then its client sends it again itself. A guest may lose packets while it sets up its interface: a new
#: netmask removes its address for a moment (Linux).
RESEND_AFTER: Final = 0.01
RESEND_WITHIN: Final = 5.0

#: Seconds after which a keep-alive probe that was not answered is sent again, at least: Linux's TCP_KEEPINTVL is one or
#: more; with a margin for clocks.
PROBED_AGAIN: Final = 0.9

#: How many look-ups of an unknown MAC are allowed in a second, for all addresses together.
LOOK_UPS_PER_SECOND: Final = 32

#: Seconds from a guest's first use of another address until Jitsu is told, unless the guest uses its own meanwhile.
ASTRAY: Final = 5.0

#: The source port of probes: outside the range of ports that Linux assigns (32768 to 60999).
PROBE_SOURCE_PORT: Final = 61999


def _ask_due(standin: Standin) -> float:
    """Return when the network is to be asked for the address of a guest that has not shown itself."""
    return -inf if standin.asked_at is None else standin.asked_at + standin.ask_interval


def _probe_due(one: Standin) -> float:
    """Return when a guest that has shown itself is to be probed: when it has been silent for long enough since then."""
    return min(one.probed_at + PROBE_WITHIN, (one.probed_at - PROBE_AFTER * one.heard_at) / (1 - PROBE_AFTER))


def _resend_due(standin: Standin) -> float:
    """Return when the SYNs that a guest was handed are to be looked at: all answered, or to be sent again."""
    since = standin.handed_since if standin.handed else None
    return -inf if since is None else since + standin.resend_interval


class _Rate:
    """Limits how often something may be done in a second: for each address, and for all together."""

    def __init__(self, each: int, in_all: int) -> None:
        """Begin with nothing done."""
        self._each, self._in_all = each, in_all
        self._second, self._done, self._count = 0, Counter[bytes](), 0

    def allows(self, ip: bytes, now: float) -> bool:
        """Return whether it may be done once more for *ip* in this second; if so, count it as done."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
            self._done.clear()
        if self._count >= self._in_all or self._done[ip] >= self._each:
            return False
        self._count += 1
        self._done[ip] += 1
        return True


class Standins:
    """
    All announced addresses, and the packets held for them.

    Attributes:
        links: the ports, by name; the service keeps them up to date.
        table: the stand-ins, by address.
        probed: the stand-ins whose guests boot and are probed, by address.
        handed: the stand-ins whose guests have not shown themselves, or not answered all SYNs, since the SYNs were
            handed over, by address.
        flows: the TCP flows that are known, also those of addresses that are not announced for now.
        counters: how many packets were ever held, handed over, expired, given up by their client, refused, and turned
            away because all slots were used; and how many frames were passed on.
    """

    def __init__(
        self, links: Mapping[str, Link], limits: Limits | None = None, refusal: Refusal = Refusal.SILENCE
    ) -> None:
        """Stand in for no address yet."""
        self.links = links
        self.table: dict[bytes, Standin] = {}
        self.probed: dict[bytes, Standin] = {}
        self.handed: dict[bytes, Standin] = {}
        self.syns = Syns(limits)
        self.flows = Flows()
        self.segments = Segments()
        self.counters: Counter[str] = Counter()
        self._refusal = refusal
        self._failed: dict[bytes, Standin] = {}
        self._guests: dict[bytes, dict[bytes, Standin]] = {}  # MAC -> address -> stand-in
        self._astray: dict[bytes, Standin] = {}
        self._look_ups = _Rate(LOOK_UPS_PER_SECOND, LOOK_UPS_PER_SECOND)
        self._seen = _Rate(SEEN_PER_SECOND, SEEN_IN_ALL)

    # Calls from Jitsu

    def announce(
        self,
        ip: bytes,
        macs: tuple[bytes, ...],
        *,
        now: float,
        asleep: bool,
        runs: bool = False,
        handover: Handover = Handover.WIRE,
        ports: frozenset[int] | None = None,
        wake_udp: frozenset[int] = frozenset(),
        domid: int | None = None,
        probe_port: int | None = None,
        memory: bool | None = None,
    ) -> Iterator[Action]:
        """
        Stand in for *ip* from now on, or change how; `Standin` describes the arguments.

        A guest that *runs* already would read a broadcast advertisement while it checks that its address is free, and
        give the address up (RFC 5227, 2.1.1). So only this host's neighbour table is changed then.
        """
        standin = self.table.setdefault(ip, Standin(ip, state=State.UP))
        was, standin.state = standin.state, State.ASLEEP if asleep else State.BOOTING
        if was is not standin.state:
            self._new_boot(standin)
        standin.booted = standin.booted or not asleep
        self._failed.pop(ip, None)
        self._settle(standin)
        self._identify(standin, macs)
        standin.handover, standin.ports, standin.wake_udp, standin.domid = handover, ports, wake_udp, domid
        standin.probe_port = probe_port
        if probe_port is None:
            self.probed.pop(ip, None)
        else:
            self.probed[ip] = standin
        # VMs that are asleep are many, and need no advertisement: no guest answers at the MAC that a peer may have.
        if not asleep and was is not State.BOOTING:
            for action in self._advertise_to_all(standin, None):
                if not runs or isinstance(action, SetNeighbour):
                    yield action
        if memory is not standin.memory:
            standin.memory = memory
            yield from self._stops(standin, now)

    def _stops(self, standin: Standin, now: float) -> Iterator[Action]:
        """Handle that a guest does not run, if it is known whether its memory is kept; its flows' peers are told."""
        ip = standin.ip
        if standin.memory is None:
            return
        standin.seen_on.clear()
        if standin.memory:
            self.flows.sleeps(ip, now)
        else:
            self.flows.lose(ip, now)
            self.counters["dropped"] += len(self.segments.release(ip))
        for peer in dict.fromkeys(flow.peer for flow in self.flows.of(ip) if flow.stage is not Stage.OPENING):
            standin.remember(peer, None)
        for peer in list(standin.peers):
            standin.advertised_at[peer] = now
            yield from self._advertise(standin, peer, standin.answering_mac(self.links[peer.port]))

    def _new_boot(self, standin: Standin) -> None:
        """Forget what was found out about the guest of an earlier boot."""
        for mac in standin.learnt:
            self._disown(standin, mac)
        standin.learnt.clear()
        standin.seen_on.clear()
        standin.proven = standin.introduced = standin.booted = False
        standin.asked_at, standin.ask_interval = None, ASK_AFTER
        standin.elsewhere, standin.elsewhere_since = b"", None
        self._astray.pop(standin.ip, None)

    def _identify(self, standin: Standin, macs: tuple[bytes, ...]) -> None:
        """Store the guest's MACs that Jitsu has sent."""
        if macs and macs != standin.macs:
            for mac in standin.macs:
                self._disown(standin, mac)
            standin.macs = macs
        for mac in (*standin.macs, *standin.learnt):
            self._guests.setdefault(mac, {})[standin.ip] = standin
        if standin.macs and not (standin.proven and standin.is_guest(standin.mac)):
            standin.mac, standin.proven = standin.macs[0], False

    def _disown(self, standin: Standin, mac: bytes) -> None:
        owned = self._guests.get(mac, {})
        owned.pop(standin.ip, None)
        if not owned:
            self._guests.pop(mac, None)

    def learn(self, ip: bytes, mac: bytes) -> None:
        """Store that *mac* is the guest's too: the service has found it behind the guest's port after a `LookUp`."""
        standin = self.table[ip]
        if len(standin.learnt) < LEARNT:
            standin.learnt[mac] = None
            self._guests.setdefault(mac, {})[ip] = standin

    def ready(self, ip: bytes, macs: tuple[bytes, ...]) -> tuple[Standin, list[Held]]:
        """
        Stand in for *ip* no longer; its guest, which has *macs*, takes its packets now.

        Returns:
            The stand-in, which has the peers, and the packets that were held: for `handover`.
        """
        standin = self.table.setdefault(ip, Standin(ip))
        standin.state = State.UP
        self._identify(standin, macs)
        standin.refused = frozenset()
        self._failed.pop(ip, None)
        self.probed.pop(ip, None)
        standin.advertised_at.clear()
        standin.memory = None
        self.flows.wakes(ip)
        held = self.syns.release(ip) + self.segments.release(ip)
        self.counters["handed_over"] += len(held)
        return standin, held

    def withdraw(self, ip: bytes, now: float, *, failed: bool = False) -> Iterator[Action]:
        """Drop the packets held for *ip* and forget it; if its start *failed*, first refuse its SYNs for `LINGER` s."""
        standin = self.table.get(ip)
        if standin is None:
            return
        self.probed.pop(ip, None)
        self._astray.pop(ip, None)
        self._settle(standin)
        dropped = self.syns.release(ip)
        self.counters["dropped"] += len(dropped) + len(self.segments.release(ip))
        if standin.handover is Handover.XENSTORE:
            yield from (Erase(standin, held) for held in dropped)
        if failed:
            standin.state, standin.until = State.FAILED, now + LINGER
            standin.refused = frozenset(held.packet.flow for held in dropped)
            self._failed[ip] = standin
        else:
            self._forget(standin)

    def _forget(self, standin: Standin) -> None:
        del self.table[standin.ip]
        self._failed.pop(standin.ip, None)
        for mac in (*standin.macs, *standin.learnt):
            self._disown(standin, mac)

    def expire(self, now: float) -> Iterator[Action]:
        """Drop what has expired, forget failed stand-ins, report guests elsewhere; to be called each second."""
        self.flows.expire(now)
        self.counters["expired"] += sum(1 for _ in self.segments.expire(now))
        for held in self.syns.expire(now):
            self.counters["expired"] += 1
            yield from self._erase(held)
        for standin in [standin for standin in self._failed.values() if now >= standin.until]:
            self._forget(standin)
        for ip, standin in list(self._astray.items()):
            if standin.elsewhere_since is not None and now - standin.elsewhere_since >= ASTRAY:
                standin.elsewhere_since = None
                yield Elsewhere(ip, standin.elsewhere)

    # Guests that boot

    def due(self) -> float:
        """Return when `probe` or `resend` has something to do next; infinite if no guest boots."""
        probes = (_probe_due(one) if one.seen_on else _ask_due(one) for one in self.probed.values())
        return min(chain(probes, (_ask_due(one) if one.waiting else _resend_due(one) for one in self.handed.values())),
                   default=inf)  # fmt: skip

    def probe(self, now: float) -> Iterator[Action]:
        """Probe the guests that boot; to be called as `due` says."""
        for standin in self.probed.values():
            if standin.seen_on:
                yield from self._probe(standin, now)
            else:
                yield from self._ask(standin, now)

    def _probe(self, standin: Standin, now: float) -> Iterator[Action]:
        """Probe a guest that has shown itself, at each of its MACs, on the port where that was seen."""
        if now < _probe_due(standin):
            return
        standin.probed_at = now
        assert standin.probe_port is not None
        for mac, port in standin.seen_on.items():
            link = self.links[port]
            src = link.address_towards(standin.ip)
            if src is None:
                continue
            if not standin.introduced:  # from a request the guest learns this host's MAC, and can answer at once
                yield Send(port, packets.solicitation(src, link.host, mac, b"", standin.ip))
            yield Send(port, packets.probe(link.host, mac, src, standin.ip, PROBE_SOURCE_PORT, standin.probe_port))
        standin.introduced = True

    def _ask(self, standin: Standin, now: float) -> Iterator[Action]:
        """Ask the network for the address of a guest that has not shown itself; its answer shows it."""
        if now < _ask_due(standin):
            return
        longer = min(ASK_WITHIN, ASK_GROWS * standin.ask_interval)
        standin.ask_interval = ASK_AFTER if standin.asked_at is None else longer
        standin.asked_at = now
        asked: dict[tuple[str, bytes], bytes] = {}
        for one, ip in standin.waiting:  # in a client's name: this host may have no address there, or in its VLAN
            if ip is not None:
                frame = one.frame
                asked[one.port, frame.tags] = packets.solicitation(ip, frame.src, BROADCAST, frame.tags, standin.ip)
        for port, link in self.links.items():
            src = link.address_towards(standin.ip)
            if src is not None:
                asked[port, b""] = packets.solicitation(src, link.host, BROADCAST, b"", standin.ip)
        yield from (Send(port, octets) for (port, _), octets in asked.items())

    def ask_now(self) -> None:
        """Ask at once for all guests that have not shown themselves: a bridge has begun to forward to a port."""
        for standin in (*self.probed.values(), *self.handed.values()):
            standin.asked_at = None

    def await_guests_again(self) -> None:
        """Wait again for guests that boot to show themselves: a bridge has lost a port, with the MACs behind it."""
        for standin in self.probed.values():
            standin.seen_on.clear()
            standin.introduced = False
        self.ask_now()

    # Delivery

    def deliver(self, standin: Standin, handed: Iterable[tuple[Held, bytes | None]]) -> Iterator[Action]:
        """
        Yield the actions that send a guest its packets, each of which comes with its sender's address if known.

        The guest first gets the senders' MACs, from requests in their names: else it would have to ask for them before
        it answers. Until the guest has shown itself, its packets wait.
        """
        handed = list(handed)
        if standin.mac not in standin.seen_on:
            if handed:
                standin.waiting += handed
                self.handed[standin.ip] = standin
            return
        for peer, ip in {Peer(one.port, one.frame.tags, one.frame.src): ip for one, ip in handed}.items():
            if ip is not None:
                yield Send(peer.port, packets.solicitation(ip, peer.mac, standin.mac, peer.tags, standin.ip))
        for one, ip in handed:
            mtu = self.links[one.port].mtu
            yield from (Send(one.port, octets) for octets in packets.passed_on(one.frame, standin.mac, mtu))
            if one.packet.opens:
                standin.handed[one.packet.flow] = one, ip
                self.handed[standin.ip] = standin

    def resend(self, now: float) -> Iterator[Action]:
        """Send unanswered SYNs again; to be called as `due` says."""
        for standin in list(self.handed.values()):
            if standin.waiting:
                standin.waiting = [(one, ip) for one, ip in standin.waiting if now - one.at < EXPIRY]
                yield from self._ask(standin, now)
                continue
            if standin.handed_since is None:
                standin.handed_since, standin.resend_interval = now, RESEND_AFTER
            if not standin.handed or now - standin.handed_since >= RESEND_WITHIN:
                self._settle(standin)
            elif now >= _resend_due(standin):
                standin.resend_interval *= 2
                yield from self.deliver(standin, standin.handed.values())

    def _settle(self, standin: Standin) -> None:
        """Stop waiting for the guest's answers."""
        standin.handed.clear()
        standin.waiting = []
        standin.handed_since = None
        self.handed.pop(standin.ip, None)

    # Frames

    def frame(self, port: str, octets: bytes, now: float) -> Iterator[Action]:
        """Yield the actions that follow from a frame that was captured on *port*."""
        frame, link = packets.parse(octets), self.links[port]
        if frame is None or frame.src == link.mac:
            return
        for standin in list(self._guests.get(frame.src, {}).values()):
            yield from self._shown(standin, frame.src, port, now)
        content = packets.understand(frame)
        if isinstance(content, Packet) and content.src in self.handed and self.table[content.src].is_guest(frame.src):
            self.handed[content.src].handed.pop(content.answers, None)
        if isinstance(content, Neighbour):
            yield from self._neighbour(port, frame, content, now)
        elif content is not None and content.dport == PROBE_SOURCE_PORT and content.src in self.probed:
            standin = self.probed[content.src]
            yield from self._look_up(standin, frame.src, port, now)
            answered = content.flags & (packets.SYN | packets.ACK) == packets.SYN | packets.ACK
            if answered and content.sport == standin.probe_port and standin.is_guest(frame.src):
                standin.mac, standin.proven = frame.src, True
                if standin.state is State.ASLEEP:
                    del self.probed[content.src]
                yield Listens(content.src)
        elif content is not None and content.dst in self.table:
            standin = self.table[content.dst]
            if not standin.is_guest(frame.src):
                yield from self._packet(port, frame, content, standin, now)
        if isinstance(content, Packet) and content.flags & (SYN | FIN | RST):
            self._note_flow(port, frame, content, now)

    def _note_flow(self, port: str, frame: Frame, packet: Packet, now: float) -> None:
        """Note a segment that may open or end a flow of a VM, but not on a link that this host routes it to or from."""
        link = self.links[port]
        if packet.dport == PROBE_SOURCE_PORT and packet.dst in link.addresses:
            return
        for ip, own, other, by_vm in (
            (packet.src, frame.src, frame.dst, True),
            (packet.dst, frame.dst, frame.src, False),
        ):
            if own != link.host and (ip in self.table or self.flows.has(ip)):
                self.flows.segment(packet, Peer(port, frame.tags, other), now, by_vm=by_vm)

    def _shown(self, standin: Standin, mac: bytes, port: str, now: float) -> Iterator[Action]:
        """Handle a frame from a guest: the bridge has learnt *mac*, and no longer floods frames for it."""
        standin.heard_at = now
        if standin.seen_on.get(mac) == port:
            return
        standin.seen_on[mac] = port
        if standin.ip in self.probed:
            yield from self._probe(standin, now)
        yield from self._no_longer_waiting(standin)

    def _no_longer_waiting(self, standin: Standin) -> Iterator[Action]:
        """Deliver the waiting packets if the guest has shown itself."""
        if standin.waiting and standin.mac in standin.seen_on:
            waiting, standin.waiting = standin.waiting, []
            yield from self.deliver(standin, waiting)

    def _look_up(self, standin: Standin, mac: bytes, port: str, now: float) -> Iterator[Action]:
        """Look up whether an unknown MAC is the guest's, within the rate of look-ups."""
        if not standin.is_guest(mac) and self._look_ups.allows(standin.ip, now):
            yield LookUp(standin.ip, mac, port)

    def _neighbour(self, port: str, frame: Frame, message: Neighbour, now: float) -> Iterator[Action]:
        """Handle a message of ARP or neighbour discovery: a claim of its sender's address, a request, or a reply."""
        link = self.links[port]
        claimed = None if message.checks_duplicate else self.table.get(message.ip)
        if claimed is not None and message.mac != link.mac:
            yield from self._look_up(claimed, message.mac, port, now)
            if claimed.macs and not claimed.is_guest(message.mac):
                if now - claimed.claimed_at >= CLAIM_EVERY:
                    claimed.claimed_at = now
                    yield Claimed(message.ip, message.mac, port)
                self._note_elsewhere(message, now)
                return
            yield from self._guest(claimed, message.mac, port, now, announces=not message.asks)
        elif not message.checks_duplicate:
            self._note_elsewhere(message, now)
        standin = self.table.get(message.target)
        if standin is None or standin is claimed or not standin.stands:
            return
        if message.checks_duplicate and not standin.is_guest(message.mac):
            if not self._look_ups.allows(standin.ip, now):
                return  # the MAC may be the guest's, which would find its address taken
            yield LookUp(standin.ip, message.mac, port)
        if standin.is_guest(frame.src) or standin.is_guest(message.mac):
            if message.checks_duplicate:
                yield from self._guest(standin, message.mac, port, now, announces=True)
        elif message.asks:
            peer = Peer(port, frame.tags, frame.src)
            standin.remember(peer, None if message.checks_duplicate else message.ip)
            if frame.src == link.host:
                yield SetNeighbour(port, standin.ip, standin.answering_mac(link), create=True)
            else:
                yield Send(port, packets.answer(frame, message, standin.answering_mac(link)))
        elif standin.is_guest(frame.dst):  # a reply to the guest, whose sender has learnt the guest's MAC
            peer = Peer(port, frame.tags, frame.src)
            standin.remember(peer, message.ip)
            yield from self._advertise(standin, peer, standin.answering_mac(link))

    def _note_elsewhere(self, message: Neighbour, now: float) -> None:
        """Store that a guest which has booted uses an address, unless it is known to use its own."""
        own = self._guests.get(message.mac, {})
        for standin in own.values():
            fits = len(standin.ip) == len(message.ip) == 4 and standin.booted and not standin.proven
            if fits and message.ip not in own and standin.elsewhere != message.ip:
                standin.elsewhere, standin.elsewhere_since = message.ip, now
                self._astray[standin.ip] = standin

    def _guest(self, standin: Standin, mac: bytes, port: str, now: float, *, announces: bool) -> Iterator[Action]:
        """Handle the guest's own use of its address: peers learn its MAC by that, so they get the stand-in's again."""
        if self._astray.pop(standin.ip, None) is not None and standin.elsewhere_since is None:
            yield Elsewhere(standin.ip, b"")
        standin.elsewhere, standin.elsewhere_since = b"", None
        moved = not standin.stands and not standin.proven and mac != standin.mac
        if standin.macs:
            standin.seen_on.setdefault(mac, port)
            if standin.stands or not standin.proven:
                standin.mac, standin.proven = mac, True
        if moved and standin.handover is Handover.WIRE:  # peers have another MAC of the guest
            yield from self._advertise_to_all(standin, mac)
        yield from self._no_longer_waiting(standin)
        if not self._seen.allows(standin.ip, now):
            return
        if announces:
            yield Seen(standin.ip)
        if standin.stands and standin.handover is Handover.WIRE:
            for peer in list(standin.peers):
                standin.advertised_at[peer] = now
                yield from self._advertise(standin, peer, standin.answering_mac(self.links[peer.port]))

    def _packet(self, port: str, frame: Frame, packet: Packet, standin: Standin, now: float) -> Iterator[Action]:
        """Handle an IP packet that a peer sends to an announced address."""
        link = self.links[port]
        to_pass_on = frame.dst == link.mac and standin.mac
        if not standin.stands:
            if packet.flags & packets.RST and packet.flow in standin.handed:
                one, _ = standin.handed[packet.flow]
                if packet.takes_back(one.packet):
                    del standin.handed[packet.flow]
            if to_pass_on:
                yield from self._pass_on(port, frame, standin)
                yield from self._advertise_again(Peer(port, frame.tags, frame.src), standin, standin.mac, now)
            return
        flow = self.flows.find(packet) if packet.protocol == TCP and not packet.flags & SYN else None
        if flow is not None and flow.stage is not Stage.OPENING:
            yield from self._segment(port, frame, packet, standin, flow, now)
            return
        if packet.flags & packets.RST:
            held = self.syns.drop(packet)
            if held is not None:
                self.counters["given_up"] += 1
                yield from self._erase(held)
        if packet.opens or (packet.protocol == UDP and packet.dport in standin.wake_udp):
            if not self._is_host_probe(frame, packet, standin, link):
                yield from self._hold_first(port, frame, packet, standin, now)
        elif to_pass_on and standin.mac in standin.seen_on and not standin.memory:
            yield from self._pass_on(port, frame, standin)

    def _segment(
        self, port: str, frame: Frame, packet: Packet, standin: Standin, flow: TcpFlow, now: float
    ) -> Iterator[Action]:
        """Handle a segment of a known flow, whose guest does not run, or boots."""
        link, peer = self.links[port], Peer(port, frame.tags, frame.src)
        reply = SendToHost if frame.src == link.host else Send
        if flow.stage not in ALIVE:
            if not packet.flags & RST:
                self.counters["refused"] += 1
                yield reply(port, packets.reset(frame, packet, standin.answering_mac(link)))
            return
        if standin.is_guest(frame.dst):
            yield from self._advertise_again(peer, standin, standin.answering_mac(link), now)
        self.flows.seen(flow, peer, now)
        standin.remember(peer, None)
        runs = standin.state is not State.FAILED and standin.memory is None and standin.mac in standin.seen_on
        if runs and not self.segments.has(packet):
            if frame.dst == link.mac:
                yield from self._pass_on(port, frame, standin)
        elif packet.length or packet.flags & (FIN | RST):
            if packet.flags & RST:  # the client has given up its data
                self.counters["given_up"] += len(self.segments.drop(standin.ip, packet.flow))
            self.counters["held"] += self.segments.hold(Held(port, frame, packet, now))
            if packet.length and not packet.flags & RST and standin.state is State.ASLEEP:
                yield Summon(standin.ip, packet.src, proven=True, flow=True)
        elif self._is_keepalive(flow, packet, now):
            yield reply(port, packets.keepalive_answer(frame, packet, standin.answering_mac(link)))

    @staticmethod
    def _is_keepalive(flow: TcpFlow, packet: Packet, now: float) -> bool:
        """
        Return whether a segment without data is a keep-alive probe: it is sent again, after a second or more.

        Only these are sent again (RFC 9293, 3.8.4). The first one is not answered: it may be an ACK, whose sequence
        number is the next one, so that the answer would acknowledge an octet that the guest has not received.
        """
        before, flow.empty = flow.empty, (packet.sequence, now)
        return before is not None and before[0] == packet.sequence and now - before[1] >= PROBED_AGAIN

    @staticmethod
    def _is_host_probe(frame: Frame, packet: Packet, standin: Standin, link: Link) -> bool:
        """
        Return whether the packet is this host's own, sent to the MAC of a guest that boots.

        Jitsu sends such packets to find out whether the guest is ready, and has set the MAC in this host's neighbour
        table. While the guest is asleep, it does not.
        """
        boots = standin.state is State.BOOTING
        return boots and frame.src == link.host and standin.is_guest(frame.dst) and packet.src in link.addresses

    def _hold_first(self, port: str, frame: Frame, packet: Packet, standin: Standin, now: float) -> Iterator[Action]:
        """Hold a SYN, or a datagram to a port of `wake_udp`; summon its VM if that is asleep."""
        if standin.state is State.FAILED or packet.flow in standin.refused:
            if standin.state is State.FAILED or now < standin.until:
                yield from self._refuse(port, frame, packet, standin)
                return
            standin.refused = frozenset()
        if standin.is_guest(frame.dst) and standin.handover is Handover.WIRE:
            peer = Peer(port, frame.tags, frame.src)
            standin.remember(peer, None)
            yield from self._advertise_again(peer, standin, self.links[port].mac, now)
        wakes = packet.protocol == UDP or standin.ports is None or packet.dport in standin.ports
        if standin.state is State.ASLEEP and not wakes:
            return
        before = self.syns.count(standin.ip)
        held = Held(port, frame, packet, now)
        held.distinct = (hash(frame.payload) or 1) if packet.protocol == UDP else 0
        kept, proven = self.syns.hold(held)
        if not kept:
            self.counters["turned_away"] += 1
        elif held.octets and self.syns.count(standin.ip) > before:
            self.counters["held"] += 1
            if standin.handover is Handover.XENSTORE and packet.opens and len(packet.dst) == 4:
                yield Record(standin, held)
        if standin.state is State.ASLEEP:
            yield Summon(standin.ip, packet.src, proven)

    def _refuse(self, port: str, frame: Frame, packet: Packet, standin: Standin) -> Iterator[Action]:
        self.counters["refused"] += 1
        link = self.links[port]
        if self._refusal is Refusal.SILENCE or frame.src == link.host:
            return
        if self._refusal is Refusal.RST and packet.opens:
            yield Send(port, packets.reset(frame, packet, standin.answering_mac(link)))
        else:
            yield Send(port, packets.unreachable(frame, packet, standin.answering_mac(link)))

    def _erase(self, held: Held) -> Iterator[Action]:
        standin = self.table.get(held.packet.dst)
        if standin is not None and standin.handover is Handover.XENSTORE:
            yield Erase(standin, held)

    def _pass_on(self, port: str, frame: Frame, standin: Standin) -> Iterator[Action]:
        self.counters["passed_on"] += 1
        yield from (Send(port, octets) for octets in packets.passed_on(frame, standin.mac, self.links[port].mtu))

    # Advertising MACs

    def _advertise_to_all(self, standin: Standin, mac: bytes | None) -> Iterator[Action]:
        """Advertise to all, on all ports, that the address is at *mac*; None stands for the stand-in's MAC."""
        for port, link in self.links.items():
            at = mac or standin.answering_mac(link)
            yield Send(port, packets.unsolicited(standin.ip, at, BROADCAST, b""))
            yield SetNeighbour(port, standin.ip, at, create=False)

    def _advertise_again(self, peer: Peer, standin: Standin, mac: bytes, now: float) -> Iterator[Action]:
        """Advertise an address's MAC to one peer, but at most every `ADVERTISE_EVERY` seconds."""
        if now - standin.advertised_at.get(peer, -ADVERTISE_EVERY) >= ADVERTISE_EVERY:
            standin.remember(peer, None)
            standin.advertised_at[peer] = now
            yield from self._advertise(standin, peer, mac)

    def _advertise(self, standin: Standin, peer: Peer, mac: bytes) -> Iterator[Action]:
        """Advertise an address's MAC to one peer, in both forms that systems accept; never to the guest itself."""
        if standin.is_guest(peer.mac):
            return
        if peer.mac == self.links[peer.port].host:
            yield SetNeighbour(peer.port, standin.ip, mac, create=False)
            return
        yield Send(peer.port, packets.unsolicited(standin.ip, mac, peer.mac, peer.tags))
        ip = standin.peers.get(peer)
        if ip is not None:
            yield Send(peer.port, packets.unsolicited(standin.ip, mac, peer.mac, peer.tags, ip))

    def guest_takes_over(self, standin: Standin) -> Iterator[Action]:
        """Advertise the guest's MAC to all, and to each peer by itself."""
        yield from self._advertise_to_all(standin, standin.mac)
        for peer in list(standin.peers):
            if peer.mac != self.links[peer.port].host:  # this host has its entry from `_advertise_to_all`
                yield from self._advertise(standin, peer, standin.mac)
        standin.peers.clear()
