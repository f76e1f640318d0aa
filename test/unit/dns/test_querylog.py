"""The query log: what its lines say, which queries are in it, and that a bad disk costs lines only."""

from __future__ import annotations

import errno
import json
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any, Final

import attrs
import dns.message
import dns.rdataclass
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import querylog
from jitsu_tw.dns.counters import Counters
from jitsu_tw.dns.querylog import ENDS_WITHIN, FLUSH_EVERY, MOST_WAITING, QueryLog
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.rrl import Limiter
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.wire import Source
from test.support import EPOCH
from test.unit.dns.test_server import ServerTestCase

#: Seconds that a thread has at most for what takes no time. Nothing is measured here.
PATIENCE: Final = 20.0


def at_once(_: Any, __: str, function: Any, *arguments: Any) -> Deferred[Any]:
    """Call a function as `in_thread` does, in this thread."""
    try:
        return succeed(function(*arguments))
    except OSError as error:
        return fail(error)


def in_time(_: Any, __: str, function: Any, *arguments: Any) -> Deferred[Any]:
    """Call a function as `in_thread` does; one that does not return within `PATIENCE` fails."""
    done: list[Deferred[Any]] = []
    thread = Thread(target=lambda: done.append(at_once(None, "", function, *arguments)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return done[0] if done else fail(TimeoutError("it blocks"))


class LineTests(ServerTestCase):
    """The lines, of a server that logs all queries."""

    def setUp(self) -> None:
        """Log to a file."""
        super().setUp()
        self.path = Path(self.mktemp())
        self.begin()

    def begin(self, one_in: int = 1, *, as_json: bool = True, **settings: Any) -> None:
        """Begin anew, with *settings*."""
        self.world.settings = attrs.evolve(self.world.settings, **settings)
        self.world.begin()
        self.warm = self.world.warm
        self.querylog = QueryLog(
            self.path, one_in, self.warm.counters, self.world.clock, lambda: EPOCH, as_json=as_json, thread=at_once
        )
        self.chain = Chain([JitsuResolver(self.zones, self.world.fleet), ZoneAuthority(self.zones)])
        self.server = Server(self.chain, self.warm, self.world.fleet, self.zones, log=self.querylog)

    def lines(self) -> list[str]:
        """Return the lines that have been written; the file is emptied."""
        self.world.pump(FLUSH_EVERY + 0.1)
        text = self.path.read_text() if self.path.exists() else ""
        self.path.write_text("")
        return text.splitlines()

    def line(self) -> dict[str, Any]:
        """Return the one line that has been written, of JSON."""
        (line,) = self.lines()
        found: dict[str, Any] = json.loads(line)
        return found

    def said(self, *keys: str) -> tuple[Any, ...]:
        """Return these values of the one line."""
        line = self.line()
        return tuple(line[key] for key in keys)

    def test_line(self) -> None:
        """A line has when, who, what, and what came of it."""
        self.send(dns.message.make_query("wWw.jitsu.test", "A").to_wire())
        self.assertEqual({
            "time": self.time(), "client": "192.0.2.1", "protocol": "udp", "name": "wWw.jitsu.test", "type": "A",
            "rcode": "NOERROR", "what": "summoned", "vm": "www", "why": "", "ms": 0.0,
        }, self.line())  # fmt: skip

    @staticmethod
    def time() -> str:
        """Return the time of all lines."""
        return datetime.fromtimestamp(EPOCH, UTC).isoformat(timespec="milliseconds")

    def test_outcomes(self) -> None:
        """It is told whether a VM was summoned, joined or up, the start has failed, or the client was refused."""
        octets = dns.message.make_query("never.jitsu.test", "A").to_wire()
        for source in (Source("192.0.2.1", 1), Source("2001:db8::1", 1, tcp=True)):
            self.send(octets, source)
        self.world.pump(1.5)
        summoned, joined = map(json.loads, self.lines())
        self.assertEqual(("summoned", "udp", "never is still starting", "192.0.2.1"),
                         tuple(summoned[key] for key in ("what", "protocol", "why", "client")))  # fmt: skip
        self.assertEqual(("joined", "tcp", "2001:db8::1"), tuple(joined[key] for key in ("what", "protocol", "client")))
        self.assertAlmostEqual(1200, summoned["ms"], delta=101)
        self.ask("bad.jitsu.test")
        self.assertEqual(("failed", "bad", "SERVFAIL"), self.said("what", "vm", "rcode"))
        for what in ("summoned", "up"):
            self.send(dns.message.make_query("www.jitsu.test", "A").to_wire(), Source("192.0.2.1", 1, tcp=True))
            self.assertEqual((what, "www"), self.said("what", "vm"))
        for name, rcode, what in (("static.jitsu.test", "NOERROR", "answered"),
                                  ("no.jitsu.test", "NXDOMAIN", "answered"),
                                  ("www.example.com", "REFUSED", "refused")):  # fmt: skip
            self.ask(name)
            self.assertEqual((rcode, what, None), self.said("rcode", "what", "vm"))

    def test_refused(self) -> None:
        """A client that may not start VMs is in the log with the reason."""
        self.begin(summon_from=())
        self.ask("www.jitsu.test")
        rcode, what, vm, why = self.said("rcode", "what", "vm", "why")
        self.assertEqual(("REFUSED", "refused", "www"), (rcode, what, vm))
        self.assertIn("www", why)

    def test_unproven(self) -> None:
        """A request for proof of an address is a refusal."""
        self.begin(verify_source=True)
        self.ask("www.jitsu.test")
        what, why = self.said("what", "why")
        self.assertEqual("refused", what)
        self.assertNotEqual("", why)

    def test_warm(self) -> None:
        """Warm answers are in the log; what the limiter truncates or drops, too, and as that."""
        octets = dns.message.make_query("WWW.jitsu.test", "A").to_wire()
        self.send(octets)
        self.lines()
        self.assertIsNotNone(self.hit(octets, ("192.0.2.7", 1)))
        self.assertEqual(("warm", "192.0.2.7", "udp", "WWW.jitsu.test", "A", "NOERROR", "www"),
                         self.said("what", "client", "protocol", "name", "type", "rcode", "vm"))  # fmt: skip
        self.server.limiter = Limiter(bytes(16), 1, slip=2)
        for ident in range(3):
            self.hit(bytes([0, ident]) + octets[2:])
        self.assertEqual(["warm", "limited", "limited"], [json.loads(line)["what"] for line in self.lines()])
        self.assertEqual(["limited"] * 2, [self.limited(name) for name in ("nobody.jitsu.test", "static.jitsu.test")])

    def limited(self, name: str) -> str:
        """Return what the last line says of a name that was asked for twice."""
        for _ in range(2):
            self.send(dns.message.make_query(name, "A").to_wire())
        what: str = json.loads(self.lines()[-1])["what"]
        return what

    def test_cold_in_a_batch(self) -> None:
        """A query that has no warm answer is logged once, when it is answered."""
        octets = dns.message.make_query("static.jitsu.test", "A").to_wire()
        self.hit(octets)
        self.assertEqual([], self.lines())
        self.send(octets)
        self.assertEqual(1, len(self.lines()))

    def test_malformed(self) -> None:
        """A query whose question cannot be read is in the log without one; a packet that gets no answer is not."""
        self.send(bytes(12))
        self.assertEqual((None, None, "FORMERR", "answered"), self.said("name", "type", "rcode", "what"))
        self.send(b"")
        self.assertEqual([], self.lines())

    def test_text(self) -> None:
        """As text, a line has the same values; what there is not is a dash."""
        self.begin(as_json=False)
        self.ask("static.jitsu.test")
        self.send(bytes(12))
        self.ask("never.jitsu.test", "TYPE4711")
        self.assertEqual([
            f"{self.time()} 0.000ms 192.0.2.1 udp static.jitsu.test A NOERROR answered -",
            f"{self.time()} 0.000ms 192.0.2.1 udp - - FORMERR answered -",
            f"{self.time()} 0.000ms 192.0.2.1 udp never.jitsu.test TYPE4711 NOERROR answered -",
        ], self.lines())  # fmt: skip

    def test_hostile(self) -> None:
        """A name of any octets makes one line, of the same number of words, without control characters."""
        for as_json in (False, True):
            self.begin(as_json=as_json)
            for label in (b"a b\n2026", b"\x1b[2J", b"\xe2\x80\xae\xff", b'"\\', bytes(range(60))):
                query = dns.message.make_query("x.example.org", "A").to_wire()
                self.send(query[:12] + bytes([len(label)]) + label + query[14:])
            lines = self.lines()
            self.assertEqual(5, len(lines))
            for line in lines:
                self.assertTrue(line.isascii() and line.isprintable(), line)
                if as_json:
                    self.assertEqual("example.org", json.loads(line)["name"][-11:])
                else:
                    self.assertEqual(9, len(line.split()), line)

    def test_sample(self) -> None:
        """Of many queries, one in so many is logged, of warm ones and others alike; each has the same chance."""
        self.patch(querylog, "random", random.Random(7))
        self.begin(one_in=20)
        octets = dns.message.make_query("www.jitsu.test", "A").to_wire()
        self.send(octets)
        self.lines()
        for _ in range(4000):
            self.hit(octets)
            self.send(dns.message.make_query("static.jitsu.test", "A").to_wire())
        found = [json.loads(line)["what"] for line in self.lines()]
        for what in ("warm", "answered"):
            self.assertTrue(140 < found.count(what) < 260, found.count(what))


class WriteTests(SynchronousTestCase):
    """How lines are written, and what becomes of them when they cannot be."""

    def setUp(self) -> None:
        """Make a log."""
        self.clock, self.counters, self.path = Clock(), Counters(), Path(self.mktemp())
        self.calls: list[tuple[Deferred[Any], Any]] = []
        self.begin(at_once)
        self.events: list[str] = []
        observer: Any = lambda event: self.events.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def begin(self, thread: Any) -> None:
        """Begin anew, with *thread*."""
        self.log = QueryLog(self.path, 1, self.counters, self.clock, lambda: EPOCH, thread=thread)

    def later(self, _: Any, __: str, function: Any, *arguments: Any) -> Deferred[Any]:
        """Call a function as a thread that has not ended yet."""
        self.calls.append((Deferred(), lambda: function(*arguments)))
        return self.calls[-1][0]

    def write(self, *names: str) -> None:
        """Write lines."""
        for name in names:
            self.log.write(dict.fromkeys(("client", "protocol", "type", "rcode", "what", "vm"), "x")
                           | {"name": name, "why": ""}, 0)  # fmt: skip

    def written(self, path: Path | None = None) -> list[str]:
        """Return the names in the file."""
        return [line.split()[4] for line in (path or self.path).read_text().splitlines() if line]

    def logged(self) -> tuple[int, int]:
        """Return how many lines were written and dropped."""
        return self.counters.logged["written"], self.counters.logged["dropped"]

    def test_batches(self) -> None:
        """Lines of a second are written together; nothing is scheduled while there are none."""
        self.assertEqual([], self.clock.getDelayedCalls())
        self.write("a", "b")
        self.assertFalse(self.path.exists())
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual((["a", "b"], (2, 0), []), (self.written(), self.logged(), self.clock.getDelayedCalls()))
        self.assertEqual(0o640, self.path.stat().st_mode & 0o777)

    def test_words(self) -> None:
        """A value with a blank, such as the name of a VM, stays one word."""
        self.write("my vm")
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual([r"my\x20vm"], self.written())

    def test_rotated(self) -> None:
        """A file that is renamed is left alone; the next lines make a new one."""
        old = self.path.with_suffix(".1")
        for name in "ab":
            self.write(name)
            self.clock.advance(FLUSH_EVERY)
            if name == "a":
                self.path.rename(old)
        self.assertEqual((["a"], ["b"]), (self.written(old), self.written()))

    def test_failed(self) -> None:
        """Lines that cannot be written are dropped and counted, which is logged once, and that it has ended, too."""
        self.path.mkdir()
        for _ in range(3):
            self.write("a", "b")
            self.clock.advance(FLUSH_EVERY)
        self.assertEqual((0, 6), self.logged())
        (event,) = self.events
        self.assertIn("lines are dropped", event)
        self.path.rmdir()
        for _ in range(2):
            self.write("c")
            self.clock.advance(FLUSH_EVERY)
        self.assertEqual((["c", "c"], (2, 6)), (self.written(), self.logged()))
        self.assertEqual(["query_log: lines are written again"], self.events[1:])

    def test_pipe(self) -> None:
        """A named pipe that no program reads is an error like others, not lines that wait; then its reader gets all."""
        os.mkfifo(self.path)
        self.begin(in_time)
        self.write("a")
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual((0, 1), self.logged())
        (event,) = self.events
        self.assertIn("No such device or address", event)
        reader = os.open(self.path, os.O_RDWR)  # so that it has no end while nobody writes
        self.addCleanup(os.close, reader)
        found = bytearray()

        def read() -> None:
            while found.count(b"\n") < MOST_WAITING:
                found.extend(os.read(reader, 1 << 20))

        reading = Thread(target=read, daemon=True)
        reading.start()
        self.write(*["x" * 100] * MOST_WAITING)
        self.clock.advance(FLUSH_EVERY)
        reading.join(PATIENCE)
        self.assertEqual((MOST_WAITING, 1), self.logged())
        self.assertEqual(MOST_WAITING, found.count(b"\n"))

    def test_full_disk(self) -> None:
        """Where a disk takes a part, whole lines count, the torn one is dropped, and later ones begin anew."""
        write, room = os.write, [110]

        def scarce(descriptor: int, octets: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            done = write(descriptor, octets[: room[0]])
            room[0] -= done
            return done

        self.patch(os, "write", scarce)
        self.write("first", "second", "third")
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual((1, 2), self.logged())
        self.write("fourth")
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual((1, 3), self.logged())
        room[0] = 10_000
        self.write("fifth", "sixth")
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual((["first", "second", "fifth", "sixth"], (3, 3)), (self.written(), self.logged()))

    def test_bounded(self) -> None:
        """While a thread does not return, no other begins, and a bounded number of lines waits."""
        self.begin(self.later)
        self.write("first")
        self.clock.advance(FLUSH_EVERY)
        for _ in range(MOST_WAITING + 5):
            self.write("x")
        self.assertEqual([], self.log.chosen(3))
        self.clock.advance(10 * FLUSH_EVERY)
        self.assertEqual((1, (0, 8)), (len(self.calls), self.logged()))
        self.assertEqual(1, len(self.events))
        self.calls[0][0].callback(1)
        self.clock.advance(FLUSH_EVERY)
        self.assertEqual((2, (1, 8)), (len(self.calls), self.logged()))
        self.calls[1][0].callback(MOST_WAITING)
        self.assertEqual((MOST_WAITING + 1, 8), self.logged())
        self.assertEqual(1, len(self.events), "lines were dropped meanwhile, so it is not over")

    def test_stop(self) -> None:
        """At the end, the last lines are written, and waited for; not for ever."""
        self.write("a")
        self.assertTrue(self.log.stop().called)
        self.assertEqual(["a"], self.written())
        self.begin(self.later)
        self.assertTrue(self.log.stop().called)
        self.write("b")
        ended = self.log.stop()
        self.assertFalse(ended.called)
        self.clock.advance(ENDS_WITHIN)
        self.assertTrue(ended.called)
        self.calls[0][0].callback(1)

    def test_stdout(self) -> None:
        """The name - stands for standard output, which stays open."""
        done: list[tuple[int, bytes]] = []

        def write(number: int, octets: bytes) -> int:
            done.append((number, octets))
            return len(octets)

        self.patch(os, "write", write)
        self.path = Path(self.mktemp()) / "-"
        self.begin(at_once)
        for _ in range(2):
            self.write("a")
            self.clock.advance(FLUSH_EVERY)
        self.assertEqual([1, 1], [number for number, _ in done])
        os.fstat(1)
