"""
Whom we stand in for, and what that means for each frame: what to send, what to hold, whom to summon.

Pure: calls from Jitsu, frames and the time come in; actions come out, to be carried out in their order. Nothing here
does I/O, reads a clock or logs.

The laws, all of them here:

- Only an address that was announced is stood in for. Its guest is known by the MACs that were announced, and by what
  else is behind the guest's port of the bridge. What the guest uses for the address is where hand-over goes.
- No MAC of the guest is ever answered about the guest's address: it would find it taken (RFC 5227; RFC 4862, 5.4).
- While a VM is asleep or boots, every peer is to think that its address is at the stand-in's MAC, so that no SYN meets
  a guest whose port is not open yet: whoever asks is answered, whoever has learnt the guest's MAC is told again.
- A SYN for the address counts whatever MAC it is sent to. What else comes for a guest that shows signs of life is
  passed on to it: it may be using the network already.
- When it is ready, peers are told the guest's MAC; what still comes to the stand-in's is passed on to the guest, and
  its sender told again.
- If Jitsu has named a port to knock at, the guest is ready when it answers a SYN of this host's, which is sent past
  the kernel's neighbour table; else when Jitsu says so.
- Nothing is sent to a guest's MAC until a frame from it has been seen, as a bridge floods what is for a MAC that it has
  not learnt. Until then this host asks for the address, as any neighbour does, and not often: what a guest cannot take
  yet waits in the queue of its tap device, and a small guest chokes on too much at once.
- This host is a peer as well, but frames sent on a bridge never reach the host's own stack: its kernel is told by
  other means (`Tell`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from synjitsu_tw import packets
from synjitsu_tw.packets import BROADCAST, UDP, Frame, Neighbour, Packet
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
    Standin,
    State,
    Summon,
    Tell,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: Seconds for which the SYNs of a VM whose start failed are refused, unless it is announced again: as long as a client
#: takes to send its third one (Linux).
LINGER: Final = 10.0

#: Seconds between two times that one peer is told where an address is: Linux believes news from one source once a
#: second only (neigh/*/locktime).
TELL_EVERY: Final = 1.0

#: How often in a second a guest's showing itself is taken note of: more than any does that means well; and for all
#: addresses together, as one guest can forge what shows any number of others.
SEEN_PER_SECOND: Final = 8
SEEN_IN_ALL: Final = 256

#: Seconds after which the network is asked again for an address whose guest has not shown itself: at first, after
#: twice the time each time, and at most.
ASK_AFTER: Final = 0.05
ASK_WITHIN: Final = 1.0

#: A guest that has shown itself is knocked at again after this part of the time for which nothing has come from it, but
#: within so many seconds: at once after each of its answers, and ever less often while it does not read its queue.
KNOCK_AFTER: Final = 1 / 4
KNOCK_WITHIN: Final = 0.25

#: Seconds after which a guest that has not answered a SYN is sent it again, and for which that goes on, after twice the
#: time each time: then its client sends it again itself. A guest may lose what comes while it sets up its interface: a
#: new netmask takes its address away for a moment (Linux).
AGAIN_AFTER: Final = 0.01
AGAIN_WITHIN: Final = 5.0

#: How often in a second it is looked up whose a MAC is, for all addresses together.
LOOK_UPS_PER_SECOND: Final = 32

#: Seconds for which a guest that uses another address may begin to use its own before Jitsu is told.
ASTRAY: Final = 5.0

#: The port that this host's own SYNs come from: outside the range that Linux takes ports from (32768 to 60999).
KNOCK_PORT: Final = 61999


class _Rate:
    """How often something may be done in a second: for each address, and for all together."""

    def __init__(self, each: int, in_all: int) -> None:
        """Begin with nothing done."""
        self._each, self._in_all = each, in_all
        self._second, self._done, self._count = 0, Counter[bytes](), 0

    def allows(self, ip: bytes, now: float) -> bool:
        """Return whether it may be done once more in this second; it counts as done then."""
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
    All addresses, and what is held for them.

    Attributes:
        links: the ports, by their names; the shell keeps them up to date.
        table: by address.
        knocked: those whose guests boot and are knocked at, by address.
        handed: those whose guests have not shown themselves, or not answered all SYNs, since these were handed over to
            them, by address.
        counters: how many packets were ever held, handed over, expired, given up by their client, refused, and turned
            away for want of room; and how many frames were passed on.
    """

    def __init__(
        self, links: Mapping[str, Link], limits: Limits | None = None, refusal: Refusal = Refusal.SILENCE
    ) -> None:
        """Stand in for nobody yet."""
        self.links = links
        self.table: dict[bytes, Standin] = {}
        self.knocked: dict[bytes, Standin] = {}
        self.handed: dict[bytes, Standin] = {}
        self.syns = Syns(limits)
        self.counters: Counter[str] = Counter()
        self._refusal = refusal
        self._failed: dict[bytes, Standin] = {}
        self._guests: dict[bytes, dict[bytes, Standin]] = {}  # MAC -> address -> stand-in
        self._astray: dict[bytes, Standin] = {}
        self._look_ups = _Rate(LOOK_UPS_PER_SECOND, LOOK_UPS_PER_SECOND)
        self._seen = _Rate(SEEN_PER_SECOND, SEEN_IN_ALL)

    # What Jitsu says

    def announce(
        self,
        ip: bytes,
        macs: tuple[bytes, ...],
        *,
        asleep: bool,
        runs: bool = False,
        handover: Handover = Handover.WIRE,
        ports: frozenset[int] | None = None,
        wake_udp: frozenset[int] = frozenset(),
        domid: int | None = None,
        knock: int | None = None,
        keeps: bool = False,
    ) -> Iterator[Action]:
        """
        Stand in for *ip* from now on, or go on with what is new.

        Its guest, if it *runs* already, would read what is broadcast when it probes its address, and give that up
        (RFC 5227, 2.1.1). Then only this host is told where the address is now.
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
        standin.knock, standin.keeps = knock, keeps
        if asleep or knock is None:
            self.knocked.pop(ip, None)
        else:
            self.knocked[ip] = standin
        # Nothing to say for those that sleep, and are many: whoever knows the guest's MAC finds no guest there.
        if not asleep and was is not State.BOOTING:
            yield from (action for action in self._say(standin, None) if not runs or isinstance(action, Tell))

    def _new_boot(self, standin: Standin) -> None:
        """Forget what was found out about the guest of an earlier boot."""
        for mac in standin.learnt:
            self._disown(standin, mac)
        standin.learnt.clear()
        standin.seen_on.clear()
        standin.proven = standin.introduced = standin.booted = False
        standin.asked_at, standin.ask_after = None, ASK_AFTER
        standin.elsewhere, standin.elsewhere_since = b"", None
        self._astray.pop(standin.ip, None)

    def _identify(self, standin: Standin, macs: tuple[bytes, ...]) -> None:
        """Note the MACs of a guest, as Jitsu knows them now."""
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
        """Note that *mac* is the guest's too, as it is behind the guest's port: in answer to `LookUp`."""
        standin = self.table[ip]
        if len(standin.learnt) < LEARNT:
            standin.learnt[mac] = None
            self._guests.setdefault(mac, {})[ip] = standin

    def ready(self, ip: bytes, macs: tuple[bytes, ...]) -> tuple[Standin, list[Held]]:
        """
        Stand in for *ip* no longer; its guest, which has *macs*, takes its packets now.

        Returns:
            The stand-in, which knows the peers, and what was held: for `handover`.
        """
        standin = self.table.setdefault(ip, Standin(ip))
        standin.state = State.UP
        self._identify(standin, macs)
        standin.refused = frozenset()
        self._failed.pop(ip, None)
        self.knocked.pop(ip, None)
        standin.told.clear()
        held = self.syns.release(ip)
        self.counters["handed_over"] += len(held)
        return standin, held

    def withdraw(self, ip: bytes, now: float, *, failed: bool = False) -> Iterator[Action]:
        """Drop what is held for *ip* and forget it; if its start *failed*, refuse its SYNs for a while first."""
        standin = self.table.get(ip)
        if standin is None:
            return
        self.knocked.pop(ip, None)
        self._astray.pop(ip, None)
        self._settle(standin)
        dropped = self.syns.release(ip)
        self.counters["dropped"] += len(dropped)
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
        """Drop what has waited too long, and forget the failed; to be called every second or so."""
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

    def knock(self, now: float) -> Iterator[Action]:
        """Look whether guests that boot listen; to be called every few milliseconds while any is `knocked` at."""
        for standin in self.knocked.values():
            if standin.seen_on:
                yield from self._knock(standin, now)
            else:
                yield from self._ask(standin, now)

    def _knock(self, standin: Standin, now: float) -> Iterator[Action]:
        """Knock at a guest that has shown itself, wherever it has."""
        if now - standin.knocked_at < min(KNOCK_WITHIN, (now - standin.heard_at) * KNOCK_AFTER):
            return
        standin.knocked_at = now
        assert standin.knock is not None
        for mac, port in standin.seen_on.items():
            link = self.links[port]
            src = link.knocks_from(standin.ip)
            if src is None:
                continue
            if not standin.introduced:  # from a question the guest learns where this host is, and can answer at once
                yield Send(port, packets.asked(src, link.host, mac, b"", standin.ip))
            yield Send(port, packets.knock(link.host, mac, src, standin.ip, KNOCK_PORT, standin.knock))
        standin.introduced = True

    def _ask(self, standin: Standin, now: float) -> Iterator[Action]:
        """Ask the network for the address of a guest that has not shown itself: it does when it answers."""
        if standin.asked_at is not None and now - standin.asked_at < standin.ask_after:
            return
        standin.ask_after = ASK_AFTER if standin.asked_at is None else min(ASK_WITHIN, 2 * standin.ask_after)
        standin.asked_at = now
        asked: dict[tuple[str, bytes], bytes] = {}
        for one, ip in standin.waiting:  # in a client's name, where this host has no address, or is in another VLAN
            if ip is not None:
                frame = one.frame
                asked[one.port, frame.tags] = packets.asked(ip, frame.src, BROADCAST, frame.tags, standin.ip)
        for port, link in self.links.items():
            src = link.knocks_from(standin.ip)
            if src is not None:
                asked[port, b""] = packets.asked(src, link.host, BROADCAST, b"", standin.ip)
        yield from (Send(port, octets) for (port, _), octets in asked.items())

    def ask_now(self) -> None:
        """Ask at once for all guests that have not shown themselves: a bridge has begun to forward to a port."""
        for standin in (*self.knocked.values(), *self.handed.values()):
            standin.asked_at = None

    def look_anew(self) -> None:
        """Wait again for guests that boot to show themselves: a bridge has lost a port, with what it had learnt."""
        for standin in self.knocked.values():
            standin.seen_on.clear()
            standin.introduced = False
        self.ask_now()

    # What is handed over

    def deliver(self, standin: Standin, handed: Iterable[tuple[Held, bytes | None]]) -> Iterator[Action]:
        """
        Yield what sends a guest its packets, each of which has its sender's address with it, if that is known.

        It is told first where the senders are, as if they asked for it: it would have to ask before it answers. Until
        the guest has shown itself, its packets wait.
        """
        handed = list(handed)
        if standin.mac not in standin.seen_on:
            if handed:
                standin.waiting += handed
                self.handed[standin.ip] = standin
            return
        for peer, ip in {Peer(one.port, one.frame.tags, one.frame.src): ip for one, ip in handed}.items():
            if ip is not None:
                yield Send(peer.port, packets.asked(ip, peer.mac, standin.mac, peer.tags, standin.ip))
        for one, ip in handed:
            mtu = self.links[one.port].mtu
            yield from (Send(one.port, octets) for octets in packets.sent_on(one.frame, standin.mac, mtu))
            if one.packet.opens:
                standin.handed[one.packet.flow] = one, ip
                self.handed[standin.ip] = standin

    def again(self, now: float) -> Iterator[Action]:
        """Send again what was not answered; to be called every few milliseconds while there is any `handed`."""
        for standin in list(self.handed.values()):
            if standin.waiting:
                standin.waiting = [(one, ip) for one, ip in standin.waiting if now - one.at < EXPIRY]
                yield from self._ask(standin, now)
                continue
            if standin.handed_since is None:
                standin.handed_since, standin.again_after = now, AGAIN_AFTER
            waited = now - standin.handed_since
            if not standin.handed or waited >= AGAIN_WITHIN:
                self._settle(standin)
            elif waited >= standin.again_after:
                standin.again_after *= 2
                yield from self.deliver(standin, standin.handed.values())

    def _settle(self, standin: Standin) -> None:
        """Look no more whether the guest answers."""
        standin.handed.clear()
        standin.waiting = []
        standin.handed_since = None
        self.handed.pop(standin.ip, None)

    # Frames

    def frame(self, port: str, octets: bytes, now: float) -> Iterator[Action]:
        """Yield what a frame that was seen on *port* leads to."""
        frame, link = packets.parse(octets), self.links[port]
        if frame is None or frame.src == link.mac:
            return
        for standin in list(self._guests.get(frame.src, {}).values()):
            yield from self._shown(standin, frame.src, port, now)
        said = packets.understand(frame)
        if isinstance(said, Packet) and said.src in self.handed and self.table[said.src].is_guest(frame.src):
            self.handed[said.src].handed.pop(said.answers, None)
        if isinstance(said, Neighbour):
            yield from self._neighbour(port, frame, said, now)
        elif said is not None and said.dport == KNOCK_PORT and said.src in self.knocked:
            standin = self.knocked[said.src]
            yield from self._look_up(standin, frame.src, port, now)
            answered = said.flags & (packets.SYN | packets.ACK) == packets.SYN | packets.ACK
            if answered and said.sport == standin.knock and standin.is_guest(frame.src):
                standin.mac, standin.proven = frame.src, True
                yield Listens(said.src)
        elif said is not None and said.dst in self.table:
            standin = self.table[said.dst]
            if standin.is_guest(frame.src):
                return
            yield from self._packet(port, frame, said, standin, now)

    def _shown(self, standin: Standin, mac: bytes, port: str, now: float) -> Iterator[Action]:
        """Handle a frame from a guest: the bridge has learnt where *mac* is, and floods no more what is for it."""
        standin.heard_at = now
        if standin.seen_on.get(mac) == port:
            return
        standin.seen_on[mac] = port
        if standin.ip in self.knocked:
            yield from self._knock(standin, now)
        yield from self._no_longer_waiting(standin)

    def _no_longer_waiting(self, standin: Standin) -> Iterator[Action]:
        """Deliver what waits for a guest to show itself, if it has."""
        if standin.waiting and standin.mac in standin.seen_on:
            waiting, standin.waiting = standin.waiting, []
            yield from self.deliver(standin, waiting)

    def _look_up(self, standin: Standin, mac: bytes, port: str, now: float) -> Iterator[Action]:
        """Look up whether a MAC that is not known as the guest's is the guest's all the same."""
        if not standin.is_guest(mac) and self._look_ups.allows(standin.ip, now):
            yield LookUp(standin.ip, mac, port)

    def _neighbour(self, port: str, frame: Frame, said: Neighbour, now: float) -> Iterator[Action]:
        """Handle a message that asks where an address is, or says where it is."""
        link = self.links[port]
        claimed = None if said.probes else self.table.get(said.ip)
        if claimed is not None and said.mac != link.mac:
            yield from self._look_up(claimed, said.mac, port, now)
            if claimed.macs and not claimed.is_guest(said.mac):
                if now - claimed.claimed_at >= CLAIM_EVERY:
                    claimed.claimed_at = now
                    yield Claimed(said.ip, said.mac, port)
                self._note_elsewhere(said, now)
                return
            yield from self._guest(claimed, said.mac, port, now, announces=not said.asks)
        elif not said.probes:
            self._note_elsewhere(said, now)
        standin = self.table.get(said.target)
        if standin is None or standin is claimed or not standin.stands:
            return
        if said.probes and not standin.is_guest(said.mac):
            if not self._look_ups.allows(standin.ip, now):
                return  # it may be the guest's, which would find its address taken
            yield LookUp(standin.ip, said.mac, port)
        if standin.is_guest(frame.src) or standin.is_guest(said.mac):
            if said.probes:  # it looks whether its address is free
                yield from self._guest(standin, said.mac, port, now, announces=True)
        elif said.asks:
            peer = Peer(port, frame.tags, frame.src)
            standin.remember(peer, None if said.probes else said.ip)
            if frame.src == link.host:
                yield Tell(port, standin.ip, standin.seat(link), create=True)
            else:
                yield Send(port, packets.answer(frame, said, standin.seat(link)))
        elif standin.is_guest(frame.dst):  # it has answered the guest, and learnt its MAC from the question
            peer = Peer(port, frame.tags, frame.src)
            standin.remember(peer, said.ip)
            yield from self._tell(standin, peer, standin.seat(link))

    def _note_elsewhere(self, said: Neighbour, now: float) -> None:
        """Note that a guest which has booted uses an address, if it is not known to use its own."""
        own = self._guests.get(said.mac, {})
        for standin in own.values():
            fits = len(standin.ip) == len(said.ip) == 4 and standin.booted and not standin.proven
            if fits and said.ip not in own and standin.elsewhere != said.ip:
                standin.elsewhere, standin.elsewhere_since = said.ip, now
                self._astray[standin.ip] = standin

    def _guest(self, standin: Standin, mac: bytes, port: str, now: float, *, announces: bool) -> Iterator[Action]:
        """Handle the guest's own use of its address, by which peers learn its MAC: they are told the stand-in's."""
        if self._astray.pop(standin.ip, None) is not None and standin.elsewhere_since is None:
            yield Elsewhere(standin.ip, b"")
        standin.elsewhere, standin.elsewhere_since = b"", None
        moved = not standin.stands and not standin.proven and mac != standin.mac
        if standin.macs:
            standin.seen_on.setdefault(mac, port)
            if standin.stands or not standin.proven:
                standin.mac, standin.proven = mac, True
        if moved and standin.handover is Handover.WIRE:  # peers were told another MAC of the guest's
            yield from self._say(standin, mac)
        yield from self._no_longer_waiting(standin)
        if not self._seen.allows(standin.ip, now):
            return
        if announces:
            yield Seen(standin.ip)
        if standin.stands and standin.handover is Handover.WIRE:
            for peer in list(standin.peers):
                standin.told[peer] = now
                yield from self._tell(standin, peer, standin.seat(self.links[peer.port]))

    def _packet(self, port: str, frame: Frame, packet: Packet, standin: Standin, now: float) -> Iterator[Action]:
        """Somebody sends an IP packet to an address of ours."""
        link = self.links[port]
        ours = frame.dst == link.mac and standin.mac
        if not standin.stands:
            if packet.flags & packets.RST and packet.flow in standin.handed:
                one, _ = standin.handed[packet.flow]
                if packet.takes_back(one.packet):
                    del standin.handed[packet.flow]
            if ours:
                yield from self._pass_on(port, frame, standin)
                yield from self._retell(Peer(port, frame.tags, frame.src), standin, standin.mac, now)
            return
        if packet.flags & packets.RST:
            held = self.syns.drop(packet)
            if held is not None:
                self.counters["given_up"] += 1
                yield from self._erase(held)
        if packet.opens or (packet.protocol == UDP and packet.dport in standin.wake_udp):
            if not self._is_knock(frame, packet, standin, link):
                yield from self._first(port, frame, packet, standin, now)
        elif ours and standin.mac in standin.seen_on:
            yield from self._pass_on(port, frame, standin)

    @staticmethod
    def _is_knock(frame: Frame, packet: Packet, standin: Standin, link: Link) -> bool:
        """
        Return whether this host itself sends to the MAC of a guest that boots.

        It was told it, to find out whether the guest is ready. While the guest is asleep, nobody needs to.
        """
        boots = standin.state is State.BOOTING
        return boots and frame.src == link.host and standin.is_guest(frame.dst) and packet.src in link.addresses

    def _first(self, port: str, frame: Frame, packet: Packet, standin: Standin, now: float) -> Iterator[Action]:
        """A SYN or a datagram that may open a conversation."""
        if standin.state is State.FAILED or packet.flow in standin.refused:
            if standin.state is State.FAILED or now < standin.until:
                yield from self._refuse(port, frame, packet, standin)
                return
            standin.refused = frozenset()
        if standin.is_guest(frame.dst) and standin.handover is Handover.WIRE:
            peer = Peer(port, frame.tags, frame.src)
            standin.remember(peer, None)
            yield from self._retell(peer, standin, self.links[port].mac, now)
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
            yield Send(port, packets.reset(frame, packet, standin.seat(link)))
        else:
            yield Send(port, packets.unreachable(frame, packet, standin.seat(link)))

    def _erase(self, held: Held) -> Iterator[Action]:
        standin = self.table.get(held.packet.dst)
        if standin is not None and standin.handover is Handover.XENSTORE:
            yield Erase(standin, held)

    def _pass_on(self, port: str, frame: Frame, standin: Standin) -> Iterator[Action]:
        self.counters["passed_on"] += 1
        yield from (Send(port, octets) for octets in packets.sent_on(frame, standin.mac, self.links[port].mtu))

    # Telling peers

    def _say(self, standin: Standin, mac: bytes | None) -> Iterator[Action]:
        """Tell all, on all ports, that the address is at *mac*, or at the stand-in's."""
        for port, link in self.links.items():
            at = mac or standin.seat(link)
            yield Send(port, packets.told(standin.ip, at, BROADCAST, b""))
            yield Tell(port, standin.ip, at, create=False)

    def _retell(self, peer: Peer, standin: Standin, mac: bytes, now: float) -> Iterator[Action]:
        """Tell one peer, but not too often."""
        if now - standin.told.get(peer, -TELL_EVERY) >= TELL_EVERY:
            standin.remember(peer, None)
            standin.told[peer] = now
            yield from self._tell(standin, peer, mac)

    def _tell(self, standin: Standin, peer: Peer, mac: bytes) -> Iterator[Action]:
        """Tell one peer, in both forms that systems believe; not one that has turned out to be the guest itself."""
        if standin.is_guest(peer.mac):
            return
        if peer.mac == self.links[peer.port].host:
            yield Tell(peer.port, standin.ip, mac, create=False)
            return
        yield Send(peer.port, packets.told(standin.ip, mac, peer.mac, peer.tags))
        ip = standin.peers.get(peer)
        if ip is not None:
            yield Send(peer.port, packets.told(standin.ip, mac, peer.mac, peer.tags, ip))

    def guest_takes_over(self, standin: Standin) -> Iterator[Action]:
        """Yield what tells all, and each peer by itself, that the address is at the guest's MAC now."""
        yield from self._say(standin, standin.mac)
        for peer in list(standin.peers):
            if peer.mac != self.links[peer.port].host:  # this host has been told
                yield from self._tell(standin, peer, standin.mac)
        standin.peers.clear()
