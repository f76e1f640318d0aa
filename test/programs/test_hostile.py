"""
Hostile input: it is refused in words or codes, the next good input still works, and no traceback is logged.

Each row of a table in `test.hostile` is a test here. To extend the suite by one, append a row to the table of its way
in; the docstring of that module says what a row's input is, and what is expected:

==================================  ================================================================================
`test.hostile.requests`             trees that are pushed, through the hooks of a running Jitsu and past them
`test.hostile.configuration`        the text of jitsu.yaml
`test.hostile.zones`                the text of a zone file
`test.hostile.questions`            datagrams, and messages by TCP
`test.hostile.control`              HTTP
`test.hostile.guests`               HTTP of guests
`test.hostile.messages`             AMP between Jitsu and Synjitsu, in both directions
`test.hostile.frames`               Ethernet frames before Synjitsu
==================================  ================================================================================

What a row is for must make its test fail when its guard is removed. Then see it pass:
``python -m twisted.trial test.programs.test_hostile.ZoneTests``, or whichever class reads that table.
"""

from __future__ import annotations

import atexit
import functools
import gc
import io
import re
import shutil
import socket
import subprocess
import tempfile
from ipaddress import ip_interface
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import dns.message
import dns.query
import dns.rcode
import pygit2
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import messages
from jitsu_tw.config import build
from jitsu_tw.dns.zone import Zone
from jitsu_tw.errors import ConfigError
from jitsu_tw.store import push
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.history import MAIN
from jitsu_tw.sync.change_requests import LOOK_EVERY
from jitsu_tw.synjitsu_client import SynjitsuClient, _Conversation
from synjitsu_tw.conversation import Conversation
from synjitsu_tw.service import Synjitsu
from synjitsu_tw.standins import Standins
from synjitsu_tw.table import Link, Send
from test.hostile import Row, configuration, control, frames, guests, questions, requests, zones
from test.hostile import messages as boxes
from test.programs.test_tap import HOST, PATIENCE, SECRET, ProcessTestCase
from test.support.control import GuestDesk
from test.support.fakepcap import FakePcap
from test.unit.sync.test_requests import ANN, RequestsTestCase
from test.unit.synjitsu.test_conversation import FakeKernel
from test.unit.synjitsu.test_packets import CLIENT, GUEST, OURS, PEER, VM, VM6, arp_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from test.hostile.requests import Row as RequestRow

SERVED: Final = f"""
persistdb: state.git
delay: 0
vms:
  - {{name: www, dns: www.jitsu.test, ip: 10.0.0.1, uuid: {requests.WWW}, idle: 86400}}
  - {{name: db, dns: db.jitsu.test, ip: 10.0.0.2, uuid: {requests.DB}}}
"""


def each(rows: Iterable[Any]) -> Callable[[type], type]:
    """Add a test for each of *rows* to a class whose `check` takes a row."""

    def decorate(cases: type) -> type:
        for row in rows:
            name = "test_" + re.sub(r"\W+", "_", row.name)
            assert not hasattr(cases, name), f"two rows are called {row.name}"

            def test(self: Any, row: Row = row) -> None:
                self.check(row)
                self.assertEqual([], self.flushLoggedErrors())

            test.__name__, test.__doc__ = name, f"{row.name[0].upper()}{row.name[1:]}."
            setattr(cases, name, test)
        return cases

    return decorate


@functools.cache
def server() -> ProcessTestCase:
    """Return what has the one server of all the tests here; it ends with the tests."""
    served = ProcessTestCase()
    served.setUp()
    atexit.register(shutil.rmtree, served.folder)
    atexit.register(served.end, served.serve("--zone", "jitsu.zone", configuration=SERVED))
    served.until_logged("serving ")
    return served


class ServerTestCase(SynchronousTestCase):
    """Looks at the log of the one server when each test ends."""

    def setUp(self) -> None:
        """Make the server."""
        self.served = server()
        before = len(self.served.log())
        self.addCleanup(self.quiet, before)

    def quiet(self, before: int) -> None:
        """Check that the server has logged no traceback since its log was as long as *before*."""
        self.assertNotIn("Traceback", self.served.log()[before:])

    def good_question(self) -> None:
        """Check that a question is answered."""
        self.assertEqual("10.0.0.1", self.served.ask("www.jitsu.test").answer[0][0].to_text())


@functools.cache
def clone() -> Path:
    """Return the one clone of the state of `server`, with whose objects it has them, too; it ends with the tests."""
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path)
    subprocess.run(["git", "clone", "-q", "--bare", "--shared", str(server().folder / "state.git"), "."],
                   cwd=path, check=True, timeout=PATIENCE)  # fmt: skip
    return path


@each(requests.ROWS)
class PushTests(ServerTestCase):
    """
    Requests that are pushed, so that the hooks see them first.

    A push is two hooks, each a Python that starts. So the good push of each test runs the hooks here, without git.
    """

    def setUp(self) -> None:
        """Clone the state."""
        super().setUp()
        self.state, self.clone = pygit2.Repository(str(self.served.folder / "state.git")), clone()

    def push(self, *what: str) -> str:
        """Push from the clone; return git's output."""
        run = subprocess.run(["git", "push", "origin", *what], cwd=self.clone,
                             check=False, capture_output=True, text=True, timeout=PATIENCE)  # fmt: skip
        return run.stdout + run.stderr

    def commit(self, repository: pygit2.Repository, name: str, make: requests.Make) -> str:
        """Write a request for what `main` is now to the clone or to the state; return its commit."""
        base = self.state.references[MAIN].peel(pygit2.Commit)
        return str(repository.create_commit(None, ANN, ANN, name, make(repository, base.tree_id), [base.id]))

    def good(self, repository: pygit2.Repository) -> str:
        """Write a request for another TTL of the VM db."""
        path = f"jitsu/vm/{requests.DB}/dns/db.jitsu.test/ttl"
        ttl = self.state.references[MAIN].peel(pygit2.Tree)[path]
        assert isinstance(ttl, pygit2.Blob)
        return self.commit(repository, "one second more", requests.file(path, b"%d" % (int(ttl.data) + 1)))

    def check(self, row: RequestRow) -> None:
        """Push the tree of *row*; then let an operator change the TTL of another VM."""
        commit = self.commit(pygit2.Repository(str(self.clone)), row.name, row.input)
        self.assertRegex(self.push(f"{commit}:{REQUEST}{row.branch}"), row.expected)
        path, update = Path(self.state.path), f"{'0' * 40} {self.good(self.state)} {REQUEST}good".encode()
        self.assertEqual([], list(push.pre_receive(path, [update], {})))
        told = io.BytesIO(b"000dversion=10000%04x%b0000" % (len(update) + 4, update))
        self.assertEqual(["good is merged"], list(push.proc_receive(path, told, io.BytesIO())))
        self.state.references.delete(REJECTED + row.branch)

    def test_good(self) -> None:
        """A good request is merged while its sender waits."""
        commit = self.good(pygit2.Repository(str(self.clone)))
        self.assertIn("good is merged", self.push(f"{commit}:{REQUEST}good"))


@each(requests.ROWS)
class RequestTests(RequestsTestCase):
    """Requests that no hook has seen, as Jitsu reads them."""

    def check(self, row: RequestRow) -> None:
        """Put the tree of *row* into the repository; then let an operator change the TTL of another VM."""
        repository = pygit2.Repository(str(self.path))
        base = repository.references[MAIN].peel(pygit2.Commit)
        commit = repository.create_commit(None, ANN, ANN, row.name, row.input(repository, base.tree_id), [base.id])
        self.push(commit, row.branch)
        ttl = {f"jitsu/vm/{requests.DB}/dns/db.jitsu.test/ttl": "7"}
        self.push(self.commit(ttl, base.id), "zz")
        self.clock.advance(LOOK_EVERY)
        references = pygit2.Repository(str(self.path)).references
        self.assertEqual([], [name for name in references if name.startswith(REQUEST)])
        self.assertRegex(references[REJECTED + row.branch].peel(pygit2.Commit).message, row.expected)
        self.assertEqual(7, self.ttl("db"))


@each(configuration.ROWS)
class ConfigurationTests(SynchronousTestCase):
    """Configurations."""

    def read(self, text: str | bytes) -> Any:
        """Return the settings of a file."""
        path = Path(self.mktemp())
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.place = str(path)
        return build.load({}, (), path)[0]

    def check(self, row: Row) -> None:
        """Read it, and a good one."""
        words = str(self.assertRaises(ConfigError, self.read, row.input))
        self.assertTrue(words.startswith(self.place), words)
        self.assertRegex(words.removeprefix(self.place), row.expected)
        self.assertEqual(["www"], [vm.name for vm in self.read(configuration.GOOD).vms])


@each(zones.ROWS)
class ZoneTests(SynchronousTestCase):
    """Zone files."""

    def read(self, text: str | bytes) -> Zone:
        """Return the zone of a file."""
        folder = Path(self.mktemp())
        folder.mkdir()
        self.place = str(folder / "a.zone")
        Path(self.place).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Zone.read(self.place)

    def check(self, row: Row) -> None:
        """Read it, and a good one."""
        if row.expected:
            words = str(self.assertRaises(ConfigError, self.read, row.input))
            self.assertTrue(words.startswith(self.place), words)
            self.assertRegex(words.removeprefix(self.place), row.expected)
        else:
            self.read(row.input)
        self.assertIsNotNone(self.read(zones.GOOD).get(b"\2ns\7example\3org\0"))


@each(questions.ROWS)
class QuestionTests(ServerTestCase):
    """Questions to a server that runs. Both transports read in order: silence is when the next question is answered."""

    def check(self, row: Row) -> None:
        """Ask by UDP and by TCP, with a good question right behind it."""
        good = dns.message.make_query("www.jitsu.test", "A", id=0x4711).to_wire()
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect((HOST, self.served.port))
            client.send(row.input)
            client.send(good)
            replies = [client.recv(4096)]
            if row.expected:
                replies.append(client.recv(4096))
        self.judge(row, replies, good)
        with socket.create_connection((HOST, self.served.port), PATIENCE) as client, client.makefile("rb") as replied:
            client.sendall(b"".join(len(one).to_bytes(2) + one for one in (row.input, good)))
            client.shutdown(socket.SHUT_WR)
            replies = []
            while len(length := replied.read(2)) == 2:
                replies.append(replied.read(int.from_bytes(length)))
        if row.expected or replies:  # who talks nonsense by TCP may be cut off
            self.judge(row, replies, good)
        self.good_question()

    def judge(self, row: Row, replies: list[bytes], good: bytes) -> None:
        """Check that the *replies* are what is expected, and the answer to the *good* question."""
        answered = [reply for reply in replies if reply[:2] == good[:2]]
        self.assertEqual(1, len(answered), replies)
        self.assertEqual(0, answered[0][3] & 15)
        codes = [dns.rcode.to_text(dns.rcode.Rcode(reply[3] & 15)) for reply in replies if reply not in answered]
        self.assertRegex(" ".join(codes), f"^({row.expected})$")


@each(control.ROWS)
class ControlTests(ServerTestCase):
    """HTTP to a server that runs."""

    def check(self, row: Row) -> None:
        """Send it, read what comes, and look whether the next client is served."""
        self.assertRegex(self.status(row.input), f"^({row.expected})$")
        self.assertEqual("200", self.status(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))

    def status(self, octets: bytes) -> str:
        """Return the status of the answer to *octets*; "" if the connection ends without one."""
        with socket.create_connection((HOST, self.served.control), PATIENCE) as client:
            line = b""
            try:
                client.sendall(octets)
                while b"\r\n" not in line and (more := client.recv(4096)):
                    line += more
            except ConnectionError:
                pass
        return line.split()[1].decode() if line else ""


@each(guests.ROWS)
class GuestTests(SynchronousTestCase):
    """HTTP to the endpoint that guests ask, before fleets of the memory backend."""

    def check(self, row: Row) -> None:
        """Send it, compare the statuses, and look whether another guest is served, and no VM is held or stopped."""
        macs = {guests.OTHER_IP: guests.OTHER_MAC}
        desk = GuestDesk(macs, www=(guests.IP, guests.MAC), db=(guests.OTHER_IP, guests.OTHER_MAC))
        host, macs[host], octets = row.input
        self.assertRegex(" ".join(desk.statuses(host, octets)), f"^({row.expected})$")
        self.assertEqual(["200"], desk.statuses(guests.OTHER_IP, b"GET /self HTTP/1.1\r\nHost: 10.0.0.254\r\n\r\n"))
        for machine in desk.fleet.machines.values():
            lease = desk.fleet.leases.lease(machine.vm.name)
            assert lease is not None
            self.assertEqual((-inf, -inf), (lease.held_until, lease.done_at))


@each(boxes.ROWS)
class MessageTests(SynchronousTestCase):
    """AMP, as each side reads it."""

    def setUp(self) -> None:
        """Make a Synjitsu on one bridge, and a Jitsu that stores its messages."""
        kernel, self.told = FakeKernel(), list[Any]()
        kernel.own = ("10.0.0.1/24",)
        real: Any = kernel
        self.synjitsu = Synjitsu(["br0"], Clock(), kernel=real, opens=FakePcap, secret=SECRET)
        self.synjitsu._read_addresses()
        self.standin = SynjitsuClient(
            "unix:/nonexistent", lambda *what: self.told.append(what), self.told.append, Clock(), self.told.append,
            lambda *what: self.told.append(what),
        )  # fmt: skip

    def connect(self, to: str, *, met: bool = True) -> tuple[amp.AMP, StringTransport]:
        """Return a side and its connection."""
        side: Any = Conversation() if to == "synjitsu" else _Conversation()
        side.factory = self.synjitsu.factory if to == "synjitsu" else SimpleNamespace(standin=self.standin)
        transport = StringTransport()
        side.makeConnection(transport)
        if to == "synjitsu" and met:
            hello = {b"_command": b"Hello", b"version": str(messages.VERSION).encode(), b"secret": SECRET.encode()}
            self.assertEqual({b"_answer": b"1"}, self.ask(side, transport, hello))
        return side, transport

    def ask(self, side: amp.AMP, transport: StringTransport, what: dict[bytes, bytes] | bytes) -> dict[bytes, bytes]:
        """Return the answer to a box, or to octets; nothing if there is none."""
        transport.clear()
        side.dataReceived(what if isinstance(what, bytes) else amp.Box(what | {b"_ask": b"1"}).serialize())
        answers = amp.parseString(transport.value())
        return dict(answers[0]) if answers else {}

    def check(self, row: boxes.Row) -> None:
        """Send it, and a good one on a connection of its own."""
        side, transport = self.connect(row.to, met=row.met)
        answer = self.ask(side, transport, row.input)
        words = b" ".join(answer.get(key, b"") for key in (b"_error_code", b"_error_description")).decode().strip()
        self.assertRegex(words, row.expected or "^$")
        self.assertNotIn(b"_answer", answer)
        side.connectionLost(Failure(ConnectionDone()))
        good = boxes.ANNOUNCE if row.to == "synjitsu" else {b"_command": b"Seen", b"ip": b"10.0.0.10"}
        self.told.clear()
        self.assertEqual({b"_answer": b"1"}, self.ask(*self.connect(row.to), good))
        if row.to == "synjitsu":
            self.assertEqual([VM], list(self.synjitsu.standins.table))
        else:
            self.assertEqual(["10.0.0.10"], self.told)
            del side, self.standin
            gc.collect()  # a failure that nobody has looked at is logged then


@each(frames.ROWS)
class FrameTests(SynchronousTestCase):
    """Frames, while a VM boots."""

    def check(self, row: Row) -> None:
        """See it, and a good question for the address."""
        link = Link(OURS, bytes.fromhex("0200000000aa"), {bytes([10, 0, 0, 1])},
                    networks=[ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")])  # fmt: skip
        standins = Standins({"br0": link})
        for ip in (VM, VM6):
            list(standins.announce(ip, (GUEST,), now=0.0, asleep=False))
        self.assertEqual([], list(standins.frame("br0", row.input, 100.0)))
        self.assertEqual(0, standins.syns.total)
        (answer,) = standins.frame("br0", arp_frame(1, PEER, CLIENT, VM), 100.0)
        self.assertIsInstance(answer, Send)
