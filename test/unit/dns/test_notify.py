"""NOTIFY: `jitsu_tw.dns.notify`, on a clock, and once with a secondary of dnspython's on a real port."""

from __future__ import annotations

from typing import Any, Final

import attrs
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.tsig
from dns import rdatatype
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw.dns import notify
from jitsu_tw.dns.notify import AT_ONCE, PAUSES, Notifier
from jitsu_tw.dns.tsig import Key, Keyring
from jitsu_tw.dns.wire import from_text
from jitsu_tw.dns.zone import Zone
from jitsu_tw.settings import Secondary
from test.support import BoundedClock

reactor: Any = default_reactor

KEY: Final = Key("transfer.example", b"a secret of ours")
KEYS: Final = Keyring([KEY])

#: When, in seconds, each of the transmissions to a secondary that never answers leaves.
TIMES: Final = tuple(sum(PAUSES[:count]) for count in range(len(PAUSES)))


def zone(name: str = "jitsu.test") -> Zone:
    """Return a zone with the serial 1."""
    return Zone.made_up(from_text(name), 60)


def read(octets: bytes, key: Key | None = None) -> dns.message.Message:
    """Return what was sent."""
    return dns.message.from_wire(octets, keyring=key)


def answer_to(octets: bytes, key: Key | None = None, rcode: int = 0) -> bytes:
    """Return what a secondary answers."""
    reply = dns.message.make_response(read(octets, key))
    reply.set_rcode(dns.rcode.Rcode(rcode))
    return reply.to_wire() or b""


def observe(case: SynchronousTestCase, hear: Any) -> None:
    """Call *hear* with every log event until *case* has ended."""
    globalLogPublisher.addObserver(hear)
    case.addCleanup(globalLogPublisher.removeObserver, hear)


@attrs.define(eq=False)
class Port:
    """
    A port of a reactor that is none.

    Attributes:
        protocol: gets what comes.
        interface: where it is.
        peer: whom it is connected to.
        sent: the datagrams, and when.
        open: it has not been closed.
    """

    reactor: Reactor
    protocol: Any
    interface: str
    peer: tuple[str, int] | None = None
    sent: list[tuple[float, bytes]] = attrs.Factory(list)
    open: bool = True

    def connect(self, host: str, port: int) -> None:
        """Take datagrams only from there."""
        if "connect" in self.reactor.faults:
            raise OSError(101, "Network is unreachable")
        self.peer = host, port

    def write(self, octets: bytes) -> None:
        """Send a datagram."""
        assert self.open
        assert self.peer is not None
        if "write" in self.reactor.faults:
            raise OSError(22, "Invalid argument")
        self.sent.append((self.reactor.seconds(), octets))
        if "refuse" in self.reactor.faults:
            self.protocol.connectionRefused()

    def stopListening(self) -> None:  # noqa: N802
        """Close."""
        assert self.open
        self.open = False


class Reactor(BoundedClock):
    """A clock with UDP ports, and faults to order: listen, connect, write, refuse."""

    def __init__(self) -> None:
        """Begin without ports."""
        super().__init__()
        self.ports: list[Port] = []
        self.faults: set[str] = set()

    def listenUDP(self, port: int, protocol: Any, interface: str = "") -> Port:  # noqa: N802
        """Return a port, which must be the kernel's to choose."""
        assert port == 0
        if "listen" in self.faults:
            raise CannotListenError(interface, port, OSError(99, "Cannot assign requested address"))
        self.ports.append(Port(self, protocol, interface))
        return self.ports[-1]


class NotifyTestCase(SynchronousTestCase):
    """Has one secondary, and sees what is logged."""

    secondary = Secondary("192.0.2.2")

    def setUp(self) -> None:
        """Make a notifier."""
        self.reactor = Reactor()
        self.notifier = Notifier([self.secondary], KEYS, ["127.0.0.1"], self.reactor)
        self.events: list[Any] = []
        observe(self, self.events.append)

    def warnings(self) -> list[str]:
        """Return what was complained of."""
        return [event["log_format"].format(**event) for event in self.events if event["log_level"].name == "warn"]

    def sent(self) -> list[bytes]:
        """Return all that was sent, in order."""
        return [octets for port in self.reactor.ports for _, octets in port.sent]

    def reply(self, octets: bytes) -> None:
        """Receive a datagram on the open port."""
        (port,) = (port for port in self.reactor.ports if port.open)
        assert port.peer is not None
        port.protocol.datagramReceived(octets, port.peer)

    def done(self) -> bool:
        """Return whether nothing is left: no open port, no call."""
        return not any(port.open for port in self.reactor.ports) and not self.reactor.getDelayedCalls()


class MessageTests(NotifyTestCase):
    """What is sent (RFC 1996, 3.6 and 3.7)."""

    def test_message(self) -> None:
        """Opcode NOTIFY, AA, the zone and SOA as the question, the new SOA record as the answer."""
        self.notifier.tell([zone("Jitsu.test")])
        message = read(self.sent()[0])
        self.assertEqual((dns.opcode.NOTIFY, dns.flags.AA), (message.opcode(), message.flags & ~0x7800))
        self.assertEqual(["Jitsu.test. IN SOA"], [question.to_text() for question in message.question])
        (rrset,) = message.answer
        self.assertEqual(("Jitsu.test.", rdatatype.SOA, 1), (str(rrset.name), rrset.rdtype, rrset[0].serial))
        self.assertEqual(([], -1, False), (message.authority, message.edns, message.had_tsig))

    def test_ids(self) -> None:
        """Ids are not to be guessed: they differ from message to message."""
        zones = [zone(f"z{number}.test") for number in range(AT_ONCE)]
        self.notifier.tell(zones)
        idents = [read(octets).id for octets in self.sent()]
        self.assertEqual(AT_ONCE, len(set(idents)))
        self.assertNotEqual(sorted(idents), idents)

    def test_where(self) -> None:
        """It is sent from a port of its own at the address that the server is bound to, to the secondary alone."""
        for host, bind, expected in (
            ("192.0.2.2", ["192.0.2.1", "2001:db8::1", "192.0.2.9"], "192.0.2.1"),
            ("2001:db8::2", ["192.0.2.1", "2001:db8::1"], "2001:db8::1"),
            ("192.0.2.2", ["2001:db8::1"], "0.0.0.0"),  # noqa: S104
            ("2001:db8::2", [], "::"),
        ):
            self.reactor = Reactor()
            Notifier([Secondary(host, 5353)], KEYS, bind, self.reactor).tell([zone()])
            (port,) = self.reactor.ports
            self.assertEqual((expected, (host, 5353)), (port.interface, port.peer))

    def test_everybody(self) -> None:
        """Each secondary is notified of each zone."""
        notifier = Notifier([self.secondary, Secondary("192.0.2.3")], KEYS, [], self.reactor)
        notifier.tell([zone("a.test"), zone("b.test")])
        self.assertEqual([("192.0.2.2", 2), ("192.0.2.3", 2)],
                         [(port.peer and port.peer[0], len(port.sent)) for port in self.reactor.ports])


class WhenTests(NotifyTestCase):
    """When notifications are sent."""

    def test_serial(self) -> None:
        """At first of all zones; then only of those whose serial is another."""
        zones = [zone("a.test"), zone("b.test")]
        self.notifier.tell(zones)
        for octets in self.sent():
            self.reply(answer_to(octets))
        self.assertTrue(self.done())
        self.notifier.tell(zones)
        self.assertEqual(2, len(self.sent()))
        zones[1].bump()
        self.notifier.tell(zones)
        self.assertEqual("b.test.", str(read(self.sent()[2]).question[0].name))
        self.assertEqual(2, read(self.sent()[2]).answer[0][0].serial)

    def test_lower_serial(self) -> None:
        """A serial that went back is notified, too: a secondary that minds is in the log then."""
        changed = zone()
        changed.bump()
        self.notifier.tell([changed])
        self.reply(answer_to(self.sent()[0]))
        self.notifier.tell([zone()])
        self.assertEqual(2, len(self.sent()))

    def test_replaced(self) -> None:
        """A new change of a zone replaces an unacknowledged one; answers to the old one are ignored."""
        changing = zone()
        self.notifier.tell([changing])
        changing.bump()
        self.notifier.tell([changing])
        first, second = self.sent()
        self.reactor.pump([1.0] * 5)
        self.assertEqual([first, second, second], self.sent())
        self.reply(answer_to(first))
        self.assertFalse(self.done())
        self.reply(answer_to(second))
        self.assertTrue(self.done())

    def test_not_all_at_once(self) -> None:
        """A secondary is notified of many zones at the pace of its answers, and of each once."""
        zones = [zone(f"z{number}.test") for number in range(AT_ONCE * 3 + 1)]
        self.notifier.tell(zones)
        self.assertEqual(AT_ONCE, len(self.sent()))
        for number in range(len(zones)):
            self.assertEqual(min(AT_ONCE + number, len(zones)), len(self.sent()))
            self.reply(answer_to(self.sent()[number]))
        names = {str(read(octets).question[0].name) for octets in self.sent()}
        self.assertEqual((len(zones), True, 1), (len(names), self.done(), len(self.reactor.ports)))

    def test_stop(self) -> None:
        """After a stop, no port and no call is left."""
        self.notifier.tell([zone(f"z{number}.test") for number in range(AT_ONCE + 1)])
        self.notifier.stop()
        self.assertEqual((True, AT_ONCE), (self.done(), len(self.sent())))


class AnswerTests(NotifyTestCase):
    """Answers, and what is none."""

    def test_answered(self) -> None:
        """An answer ends it."""
        self.notifier.tell([zone()])
        self.reply(answer_to(self.sent()[0]))
        self.assertEqual((True, []), (self.done(), self.warnings()))

    def test_refused(self) -> None:
        """An answer with an error ends it as well, and is logged."""
        for rcode in (1, 4, 5, 9):
            self.setUp()
            self.notifier.tell([zone()])
            self.reply(answer_to(self.sent()[0], rcode=rcode))
            self.assertTrue(self.done())
            (line,) = self.warnings()
            word = dns.rcode.to_text(dns.rcode.Rcode(rcode))
            self.assertEqual(f"192.0.2.2, notified of jitsu.test, serial 1, answers {word}", line)

    def test_no_answer(self) -> None:
        """Anything else does not: another id, another question, a query, another opcode, half of it, none of it."""
        self.notifier.tell([zone()])
        good = answer_to(self.sent()[0])
        for octets in (
            bytes([good[0] ^ 1]) + good[1:],
            good.replace(b"\5jitsu", b"\5other"),
            bytes([*good[:2], good[2] & 0x7F, *good[3:]]),
            bytes([*good[:2], good[2] & 0x87, *good[3:]]),
            good[:20],
            good[:1],
            b"",
            good + b"x",
        ):
            self.reply(octets)
            self.assertFalse(self.done(), octets)
        self.reply(good)
        self.assertTrue(self.done())


class RetryTests(NotifyTestCase):
    """Secondaries that do not answer (RFC 1996, 3.6)."""

    def test_times(self) -> None:
        """The same message is sent five times more, ever more slowly; then sending ends, with one log line."""
        self.notifier.tell([zone()])
        self.reactor.pump([0.5] * round(2 * sum(PAUSES) - 1))
        self.assertEqual([], self.warnings())
        self.reactor.pump([0.5])
        self.assertEqual(["192.0.2.2, notified of jitsu.test, serial 1, does not answer"], self.warnings())
        (port,) = self.reactor.ports
        self.assertEqual(list(TIMES), [when for when, _ in port.sent])
        self.assertEqual(1, len({octets for _, octets in port.sent}))
        self.assertTrue(self.done())

    def test_late_answer(self) -> None:
        """An answer to any of them ends it."""
        self.notifier.tell([zone()])
        self.reactor.pump([1.0] * 40)
        self.reply(answer_to(self.sent()[0]))
        self.assertEqual((True, []), (self.done(), self.warnings()))

    def test_logged_once(self) -> None:
        """A silent secondary is logged once, however many zones and changes there are, until it has answered."""
        zones = [zone("a.test"), zone("b.test")]
        for _ in range(2):
            self.notifier.tell(zones)
            self.reactor.pump([5.0] * 100)
            self.assertEqual((True, 1), (self.done(), len(self.warnings())))
            for each in zones:
                each.bump()
        self.notifier.tell(zones[:1])
        self.reply(answer_to(self.sent()[-1]))
        self.notifier.tell(zones)
        self.reactor.pump([5.0] * 100)
        self.assertEqual(2, len(self.warnings()))

    def test_others_go_on(self) -> None:
        """One that is silent does not hold up the others, nor many zones for ever."""
        notifier = Notifier([self.secondary, Secondary("192.0.2.3")], KEYS, [], self.reactor)
        notifier.tell([zone(f"z{number}.test") for number in range(AT_ONCE + 1)])
        silent, quick = self.reactor.ports
        for _, octets in quick.sent:
            quick.protocol.datagramReceived(answer_to(octets), quick.peer)
        self.assertEqual((AT_ONCE + 1, False, AT_ONCE), (len(quick.sent), quick.open, len(silent.sent)))
        self.reactor.pump([5.0] * 200)
        self.assertEqual((AT_ONCE + 1) * len(PAUSES), len(silent.sent))
        self.assertTrue(self.done())

    def test_nobody_listens(self) -> None:
        """"Port unreachable" ends it, and is in the log once."""
        self.reactor.faults.add("refuse")
        zones = [zone(f"z{number}.test") for number in range(AT_ONCE + 1)]
        self.notifier.tell(zones)
        self.reactor.pump([5.0] * 2)
        self.assertEqual((True, len(zones)), (self.done(), len(self.sent())))
        (line,) = self.warnings()
        self.assertIn("does not listen", line)

    def test_no_way(self) -> None:
        """While there is no address, no route or no buffer it is tried again; the reason is in the log in the end."""
        for fault, words in (("listen", "Cannot assign"), ("connect", "unreachable"), ("write", "Invalid argument")):
            self.setUp()
            self.reactor.faults.add(fault)
            self.notifier.tell([zone()])
            self.reactor.pump([1.0] * 6)
            self.assertEqual(([], []), (self.sent(), self.warnings()))
            self.reactor.faults.clear()
            self.reactor.pump([1.0] * 10)
            self.reply(answer_to(self.sent()[0]))
            self.assertEqual((True, []), (self.done(), self.warnings()), fault)
            self.reactor.faults.add(fault)
            self.notifier.tell([zone("other.test")])
            self.reactor.pump([5.0] * 100)
            self.assertTrue(self.done(), fault)
            (line,) = self.warnings()
            self.assertIn(words, line)


class SignedTests(NotifyTestCase):
    """With a key."""

    secondary = Secondary("192.0.2.2", key=from_text("Transfer.example"))

    def test_signed(self) -> None:
        """The message is signed; a signed answer ends it."""
        self.notifier.tell([zone()])
        (octets,) = self.sent()
        self.assertTrue(read(octets, KEY).had_tsig)
        self.reply(answer_to(octets, KEY))
        self.assertEqual((True, []), (self.done(), self.warnings()))

    def test_unsigned(self) -> None:
        """An answer that is unsigned, or signed with another key, or to another message, is none; the log has why."""
        self.notifier.tell([zone(), zone("other.test")])
        octets, other = self.sent()
        guess = Key(str(KEY.name), b"guess")
        message = dns.message.make_response(read(octets, KEY))
        unsigned = dns.message.from_wire(message.to_wire() or b"", keyring=False)
        unsigned.tsig = None
        forged = dns.message.make_response(read(octets, KEY))
        forged.use_tsig(guess)
        replayed = answer_to(other, KEY)
        for wrong in (unsigned.to_wire() or b"", forged.to_wire() or b"", octets[:2] + replayed[2:]):
            self.reply(wrong)
            self.assertEqual(2, len(self.reactor.getDelayedCalls()))
        self.reactor.pump([5.0] * 100)
        self.assertIn("no answer", self.warnings()[0])

    def test_bad_key(self) -> None:
        """That the secondary does not know the key is in the log."""
        self.notifier.tell([zone()])
        reply = dns.message.make_response(read(self.sent()[0], KEY))
        reply.set_rcode(dns.rcode.NOTAUTH)
        reply.use_tsig(KEY, tsig_error=17)
        self.reply(reply.to_wire() or b"")
        self.reactor.pump([5.0] * 100)
        (line,) = self.warnings()
        self.assertIn("key", line)


class Sink(DatagramProtocol):
    """A secondary that loses the first message and answers the second."""

    noisy = False

    def __init__(self) -> None:
        """Begin with nothing received."""
        self.got: list[tuple[bytes, Any]] = []
        self.answered: Deferred[None] = Deferred()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:  # noqa: N802
        """Answer, but not the first time."""
        self.got.append((datagram, addr))
        assert self.transport is not None
        if len(self.got) > 1:
            self.transport.write(answer_to(datagram, KEY), addr)
            self.answered.callback(None)


class LoopbackTests(TestCase):
    """Real ports."""

    timeout = 20

    async def test_answered(self) -> None:
        """A secondary that lost the first message gets it once more, and its answer is understood."""
        self.patch(notify, "PAUSES", (0.05,) * 100)
        sink = Sink()
        port = reactor.listenUDP(0, sink, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        secondary = Secondary("127.0.0.1", port.getHost().port, from_text("transfer.example"))
        notifier = Notifier([secondary], KEYS, ["127.0.0.1"], reactor)
        known: Deferred[None] = Deferred()

        def hear(event: Any) -> None:
            if "has been notified of" in event.get("log_format", "") and not known.called:
                known.callback(None)

        observe(self, hear)
        notifier.tell([zone()])
        await sink.answered
        await known
        (first, source), (second, again) = sink.got
        self.assertEqual((first, source), (second, again))
        self.assertGreater(source[1], 1023)
        notifier.stop()

    async def test_nobody_listens(self) -> None:
        """The kernel's "port unreachable" ends it."""
        port = reactor.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        notifier = Notifier([Secondary("127.0.0.1", number)], KEYS, ["127.0.0.1"], reactor)
        refused: Deferred[None] = Deferred()

        def hear(event: Any) -> None:
            if "does not listen" in event.get("what", ""):
                refused.callback(None)

        observe(self, hear)
        notifier.tell([zone()])
        await refused
        notifier.stop()
