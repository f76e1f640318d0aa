"""Xenstore, against Xen's own daemon with guests that are none; the daemon is killed, frozen and missing, too."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from jitsu_tw import xenstore
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.xenstore import TRIES, Tree, Watch, Xenstore
from jitsu_tw.xswire import Command, TooLongError
from test.xenlab.xenstored import Tools, Xenstored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from jitsu_tw.xenstore import Transaction


class Seen:
    """The calls of a watch, in their order."""

    def __init__(self, store: Xenstore, path: str) -> None:
        """Watch *path*."""
        self.paths: list[str] = []
        self.watch: Watch = store.watch(path, self.paths.append)

    async def next(self) -> str:
        """Return the next call's path."""
        await until(lambda: bool(self.paths))
        return self.paths.pop(0)


def said(logged: Sequence[Any]) -> list[str]:
    """Return the lines of a log."""
    return [formatEvent(event) for event in logged]


def writing(values: Mapping[str, str]) -> Callable[[Transaction], Awaitable[None]]:
    """Return a change that writes *values* by path."""

    async def write(tree: Transaction) -> None:
        for path, value in values.items():
            await tree.write(path, value)

    return write


async def until(done: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise AssertionError("it does not come to be so")
        await deferLater(reactor, 0.002)


class XenstoreTestCase(TestCase):
    """A daemon, and a connection to it."""

    timeout = 30

    def setUp(self) -> None:
        """Start both."""
        self.daemon = Xenstored()
        self.daemon.__enter__()
        self.addCleanup(self.daemon.__exit__, None, None, None)
        self.store = Xenstore(reactor, self.daemon.path)
        self.store.start()
        self.addCleanup(self.store.close)

    async def fails(self, kind: type[BackendError], work: Coroutine[Any, Any, object], *words: str) -> None:
        """Check that *work* fails, with *words* in the error."""
        try:
            await work
        except BackendError as error:
            self.assertIs(kind, type(error) if type(error) is BackendLost else BackendError)
            for word in words:
                self.assertIn(word, str(error))
        else:
            self.fail("it works")


class OperationTests(XenstoreTestCase):
    """What can be done to the tree."""

    async def test_values(self) -> None:
        """What is written is read, whatever it is; missing nodes above it are made."""
        for value in ("1", "", "two\nlines", "d\u00f6mer", "\udcff\udc80", "x" * 4000, "a\0b"):
            await self.store.write("/a/b/c", value)
            self.assertEqual(value, await self.store.read("/a/b/c"))
        self.assertEqual("", await self.store.read("/a/b"))

    async def test_missing(self) -> None:
        """A missing node has no value, no children, no permissions, and need not be removed."""
        self.assertIsNone(await self.store.read("/a/b"))
        self.assertEqual([], await self.store.list("/a/b"))
        self.assertIsNone(await self.store.get_permissions("/a/b"))
        await self.store.remove("/a/b")
        await self.fails(BackendError, self.store.set_permissions("/a/b", ["n0"]), "/a/b", "No such file")

    async def test_tree(self) -> None:
        """Children are listed; what is removed is gone with all below it."""
        for path in ("/a/x/1", "/a/y", "/a/z"):
            await self.store.write(path, "")
        self.assertEqual(["x", "y", "z"], sorted(await self.store.list("/a")))
        self.assertEqual([], await self.store.list("/a/y"))
        await self.store.remove("/a/x")
        self.assertIsNone(await self.store.read("/a/x/1"))
        self.assertEqual(["y", "z"], sorted(await self.store.list("/a")))

    async def test_many_children(self) -> None:
        """More children than fit in one message, or in two, are listed all the same."""
        for number in (340, 341, 342, 1000):
            names = {f"{one:011}" for one in range(number)}
            await self.store.transaction(writing({f"/a/{name}": "" for name in names}))
            listed = await self.store.list("/a")
            self.assertEqual((names, number), (set(listed), len(listed)))
            self.assertEqual(listed, await self.store.transaction(lambda tree: tree.list("/a")))

    async def test_order(self) -> None:
        """What is begun first is done first, without waiting."""
        for number in range(50):
            Deferred.fromCoroutine(self.store.write("/a", str(number)))
        self.assertEqual("49", await self.store.read("/a"))

    async def test_refused(self) -> None:
        """A refused request is a BackendError, and the connection goes on."""
        for path in ("", "/a/", "//a", "/a b", "/a\n", "/a\0", "/\u00f6", "/" + "a" * 3072):
            await self.fails(BackendError, self.store.read(path), "no path of Xenstore")
            self.assertRaises(BackendError, self.store.watch, path, print)
        await self.fails(BackendError, self.store.write("/a", "x" * 4096), "write /a", "4096")
        await self.fails(BackendError, self.store.set_permissions("/a", ["x0"]), "x0")
        await self.fails(BackendError, self.store.remove("/"), "remove /", "Invalid argument")
        await self.store.write("/a", "1")
        self.assertEqual("1", await self.store.read("/a"))

    async def test_domain_path(self) -> None:
        """A domain's path is returned."""
        self.assertEqual("/local/domain/5", await self.store.domain_path(5))

    async def test_cancelled(self) -> None:
        """A cancelled call has no result; the connection goes on."""
        with self.daemon.frozen():
            read = Deferred.fromCoroutine(self.store.read("/a"))
            read.cancel()
            await self.assertFailure(read, CancelledError)
        self.assertIsNone(await self.store.read("/a"))


class PartsTests(SynchronousTestCase):
    """A list of children in parts, of a daemon that is played."""

    def listed(self, *answers: bytes) -> list[str] | Exception:
        """Return what is listed where the daemon gives *answers*, or the error."""
        left = list(answers)

        class Played(Tree):
            def ask(self, what: str, command: Command, *_: bytes) -> Deferred[bytes]:
                if command is Command.DIRECTORY:
                    return fail(TooLongError(what))
                return succeed(left.pop(0))

        listing: Deferred[Any] = Deferred.fromCoroutine(Played().list("/a"))
        listing.addErrback(lambda failure: failure.value)
        names: list[str] | Exception = self.successResultOf(listing)
        self.assertEqual([], left)
        return names

    def test_parts(self) -> None:
        """Parts of one generation are put together; children that have changed meanwhile are listed again."""
        for answers, expected in (
            ((b"7\0one\0", b"7\0two\0\0"), ["one", "two"]),
            ((b"7\0one\0", b"7\0\0"), ["one"]),
            ((b"7\0\0",), []),
            ((b"7\0one\0", b"8\0two\0\0", b"8\0new\0", b"8\0two\0\0"), ["new", "two"]),
            ((b"7\0one\0", b"7\0", b"7\0one\0\0"), ["one"]),
        ):
            self.assertEqual(expected, self.listed(*answers))

    def test_never_still(self) -> None:
        """Children that change without end are given up."""
        answers = [part for number in range(TRIES) for part in (b"%d\0a\0" % number, b"x\0b\0\0")]
        self.assertIsInstance(self.listed(*answers), BackendError)


class GuestTests(XenstoreTestCase):
    """What guests may do, and leave behind."""

    async def test_permissions(self) -> None:
        """A guest may write below its data, and elsewhere only where it is let."""
        await self.store.write("/ip/10-0-0-5", "")
        with self.daemon.guest(5) as guest, self.daemon.guest(6) as other:
            guest.write("data/ready", "1")
            self.assertEqual("1", await self.store.read("/local/domain/5/data/ready"))
            self.assertEqual(["n5"], await self.store.get_permissions("/local/domain/5/data/ready"))
            for path in ("mine", "/ip", "/ip/10-0-0-5", "/ip/10-0-0-5/80", "/local/domain/6/data/ready"):
                self.assertRaises(PermissionError, guest.write, path, "1")
            await self.store.set_permissions("/ip/10-0-0-5", ["n0", "b5"])
            self.assertEqual(["n0", "b5"], await self.store.get_permissions("/ip/10-0-0-5"))
            guest.write("/ip/10-0-0-5", "managed")
            guest.write("/ip/10-0-0-5/80", "")
            self.assertEqual("managed", await self.store.read("/ip/10-0-0-5"))
            self.assertRaises(PermissionError, other.write, "/ip/10-0-0-5", "1")
            self.assertRaises(PermissionError, other.read, "/ip/10-0-0-5")
            self.assertRaises(PermissionError, guest.write, "/ip/10-0-0-6", "1")

    async def test_strange_octets(self) -> None:
        """What a guest writes that is no text can be read, and written again as it was."""
        with self.daemon.guest(5) as guest:
            guest.write("data/x", b"\xff\xc3(\x01")
            value = await self.store.read("/local/domain/5/data/x")
            assert value is not None
            await self.store.write("/local/domain/5/data/y", value)
            self.assertEqual(b"\xff\xc3(\x01", guest.read("data/y"))

    async def test_release(self) -> None:
        """The end of a domain is reported; its nodes are removed, and their watches called."""
        guest = self.daemon.guest(5)
        guest.create()
        await self.store.write("/jitsu", "")
        await self.store.set_permissions("/jitsu", ["n0", "b5"])
        guest.write("data/ready", "1")
        released, key = Seen(self.store, "@releaseDomain"), Seen(self.store, "/local/domain/5/data/ready")
        self.assertEqual("@releaseDomain", await released.next())
        self.assertEqual("/local/domain/5/data/ready", await key.next())
        guest.destroy()
        self.assertEqual("@releaseDomain", await released.next())
        self.assertEqual("/local/domain/5/data/ready", await key.next())
        self.assertIsNone(await self.store.read("/local/domain/5/data/ready"))
        self.assertEqual("", await self.store.read("/jitsu"))

    async def test_introduce(self) -> None:
        """The introduction of a domain is reported."""
        introduced = Seen(self.store, "@introduceDomain")
        self.assertEqual("@introduceDomain", await introduced.next())
        with self.daemon.guest(7, "www"):
            self.assertEqual("@introduceDomain", await introduced.next())
            self.assertEqual("www", await self.store.read("/local/domain/7/name"))


class TransactionTests(XenstoreTestCase):
    """Changes that are one."""

    async def test_changes(self) -> None:
        """Values are written and removed as one."""

        async def change(tree: Transaction) -> None:
            await tree.remove("/a/old")
            await tree.write("/a/new", "2")
            await tree.write("/a/empty", "")
            await tree.remove("/b/missing")

        await self.store.write("/a/old", "1")
        await self.store.transaction(change)
        self.assertEqual(["empty", "new"], sorted(await self.store.list("/a")))

    async def test_function(self) -> None:
        """A function sees its own changes, and what it returns comes back."""

        async def change(tree: Transaction) -> list[str]:
            await tree.write("/a/x", "1")
            await tree.set_permissions("/a/x", ["r0"])
            self.assertEqual("1", await tree.read("/a/x"))
            self.assertEqual(["r0"], await tree.get_permissions("/a/x"))
            await tree.write("/a/y", "1")
            await tree.remove("/a/y")
            return await tree.list("/a")

        self.assertEqual(["x"], await self.store.transaction(change))
        self.assertEqual(["x"], await self.store.list("/a"))

    async def test_raises(self) -> None:
        """What a function raises comes out, and nothing has been changed."""

        async def change(tree: Transaction) -> None:
            await tree.write("/a", "1")
            raise KeyError("a")

        await self.assertFailure(Deferred.fromCoroutine(self.store.transaction(change)), KeyError)
        self.assertIsNone(await self.store.read("/a"))

    async def test_conflict(self) -> None:
        """A transaction with a conflict sees the new state, and is tried again; in the end there is an error."""
        await self.store.write("/count", "0")
        calls: list[str | None] = []
        with self.daemon.guest(5) as guest:
            await self.store.set_permissions("/count", ["n0", "b5"])

            async def change(tree: Transaction) -> None:
                calls.append(await tree.read("/count"))
                if len(calls) <= conflicts:
                    guest.write("/count", str(len(calls)))
                await tree.write("/count", f"{await tree.read('/count')} and ours")

            conflicts = 2
            await self.store.transaction(change)
            self.assertEqual(["0", "1", "2"], calls)
            self.assertEqual("2 and ours", await self.store.read("/count"))
            conflicts = 1000
            calls.clear()
            await self.fails(BackendError, self.store.transaction(change), "quicker", str(TRIES))
            self.assertEqual(TRIES, len(calls))
        self.assertEqual(str(TRIES), await self.store.read("/count"))


class WatchTests(XenstoreTestCase):
    """Streams of changes."""

    async def test_watch(self) -> None:
        """A watch is called at once, then for each change at or below its path, and for nothing else."""
        seen = Seen(self.store, "/a/b")
        self.assertEqual("/a/b", await seen.next())
        await self.store.write("/a/c", "1")
        for change, expected in (
            (self.store.write("/a/b", "1"), "/a/b"),
            (self.store.write("/a/b/c", "1"), "/a/b/c"),
            (self.store.set_permissions("/a/b", ["r0"]), "/a/b"),
            (self.store.remove("/a/b/c"), "/a/b/c"),
            (self.store.remove("/a/b"), "/a/b"),
        ):
            await change
            self.assertEqual(expected, await seen.next())
        self.assertEqual([], seen.paths)

    async def test_stop(self) -> None:
        """A stopped watch is not called any more, not even for pending events, and the daemon forgets it."""
        one, other = Seen(self.store, "/a"), Seen(self.store, "/a")
        self.assertEqual(["/a", "/a"], [await one.next(), await other.next()])
        Deferred.fromCoroutine(self.store.write("/a", "1"))
        time.sleep(0.1)  # noqa: ASYNC251  The event comes while the reactor is busy.
        one.watch.stop()
        one.watch.stop()
        self.assertEqual("/a", await other.next())
        await self.store.write("/a", "2")
        self.assertEqual("/a", await other.next())
        self.assertEqual([], one.paths)
        # A watch that the daemon knew still could not be set once more.
        await self.store.ask("watch /a", Command.WATCH, b"/a\0", b"1\0")

    async def test_callback_fails(self) -> None:
        """One callback that fails is logged, and keeps nobody else from hearing."""

        def fail(_: str) -> None:
            raise KeyError("callback")

        self.store.watch("/a", fail)
        other = Seen(self.store, "/a")
        self.assertEqual("/a", await other.next())
        self.assertEqual(1, len(self.flushLoggedErrors(KeyError)))

    async def test_many(self) -> None:
        """A thousand watches are each called for their own paths."""
        seen = [Seen(self.store, f"/a/{number}") for number in range(1000)]
        for number, one in enumerate(seen):
            self.assertEqual(f"/a/{number}", await one.next())
        await self.store.transaction(writing({f"/a/{number}": "" for number in range(0, 1000, 100)}))
        for number in range(0, 1000, 100):
            self.assertEqual(f"/a/{number}", await seen[number].next())
        self.assertEqual([], [path for one in seen for path in one.paths])

    async def test_flood(self) -> None:
        """Endless changes of a node do not fill the reactor's queue: one call may stand for many changes."""
        seen = Seen(self.store, "/a")
        self.assertEqual("/a", await seen.next())
        with Tools(self.daemon.path) as tools:
            for _ in range(500):
                tools.write("/a", "1")
        self.assertEqual("/a", await seen.next())
        await self.store.read("/a")
        self.assertLess(len(seen.paths), 10)

    async def test_refused_by_the_daemon(self) -> None:
        """A watch that the daemon does not take is logged."""
        self.assertEqual("/a", await Seen(self.store, "/a").next())
        self.store._tokens -= 1
        with capturedLogs() as logged:
            Seen(self.store, "/a")
            await until(lambda: "Xenstore: /a is not watched: Xenstore: watch /a: File exists" in said(logged))


class LossTests(XenstoreTestCase):
    """The daemon dies, hangs, or is not there."""

    async def test_killed(self) -> None:
        """A pending call fails when the daemon has died, not when it is slow; a new one is found and watched again."""
        self.patch(xenstore, "ANSWERS_WITHIN", 86400.0)
        seen = Seen(self.store, "/a")
        self.assertEqual("/a", await seen.next())
        with self.daemon.frozen():
            waiting = [Deferred.fromCoroutine(self.store.read("/a")) for _ in range(3)]
            waiting.append(Deferred.fromCoroutine(self.store.transaction(writing({"/a": "1"}))))
            await deferLater(reactor, 0.05)
            self.assertEqual([False] * 4, [one.called for one in waiting])
            self.daemon.kill()
        for one in waiting:
            await self.assertFailure(one, BackendLost)
        await until(lambda: not self.store.connected)
        await self.fails(BackendLost, self.store.read("/a"))
        await deferLater(reactor, 0.3)
        await self.fails(BackendLost, self.store.read("/a"), self.daemon.path, "XENSTORED_PATH")
        self.assertEqual([], seen.paths)
        self.daemon.start()
        self.assertEqual("/a", await seen.next())
        self.assertTrue(self.store.connected)
        await self.store.write("/a", "2")
        self.assertEqual("/a", await seen.next())
        self.assertEqual("2", await self.store.read("/a"))

    async def test_killed_again_and_again(self) -> None:
        """Every time it comes back; no thread and no file is left of the times before."""
        seen = Seen(self.store, "/a")
        self.assertEqual("/a", await seen.next())

        def had() -> tuple[int, int]:
            return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

        before = had()
        for _ in range(5):
            self.daemon.kill()
            self.daemon.start()
            self.assertEqual("/a", await seen.next())
        self.assertEqual(before, had())

    async def test_stopped_while_away(self) -> None:
        """A watch that is stopped while there is no daemon is not set again; one that is made then, is."""
        gone = Seen(self.store, "/a")
        self.assertEqual("/a", await gone.next())
        self.daemon.kill()
        await until(lambda: not self.store.connected)
        gone.watch.stop()
        new = Seen(self.store, "/b")
        self.daemon.start()
        self.assertEqual("/b", await new.next())
        await self.store.write("/a", "1")
        await self.store.write("/b", "1")
        self.assertEqual("/b", await new.next())
        self.assertEqual([], gone.paths)

    async def test_many_files(self) -> None:
        """The daemon is found again by a process that has more than 1,024 files open."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        seen = Seen(self.store, "/a")
        self.assertEqual("/a", await seen.next())
        self.daemon.kill()
        await until(lambda: not self.store.connected)
        files = [os.dup(0) for _ in range(1100)]
        try:
            self.daemon.start()
            self.assertEqual("/a", await seen.next())
            self.assertIsNone(await self.store.read("/a"))
            await self.store.close()
        finally:
            for file in files:
                os.close(file)

    async def test_hangs(self) -> None:
        """A daemon that hangs keeps nobody from closing; what waits fails."""
        self.assertIsNone(await self.store.read("/a"))
        with self.daemon.frozen():
            waiting = [Deferred.fromCoroutine(self.store.write("/a", "x" * 4000)) for _ in range(200)]
            await deferLater(reactor, 0.1)
            await self.store.close()
            for one in waiting:
                await self.assertFailure(one, BackendLost)

    async def test_hangs_for_a_while(self) -> None:
        """An operation that is not answered is given up; when the daemon goes on, the next one is answered."""
        self.patch(xenstore, "ANSWERS_WITHIN", 0.1)
        self.assertIsNone(await self.store.read("/a"))
        with self.daemon.frozen():
            await self.fails(BackendLost, self.store.read("/a"), "has not answered within 0.1 s")
        self.patch(xenstore, "ANSWERS_WITHIN", 10.0)
        self.assertIsNone(await self.store.read("/a"))

    async def test_rubbish(self) -> None:
        """A daemon that speaks another language is left, and tried again."""
        greeted: list[object] = []

        class Web(Protocol):
            def connectionMade(self) -> None:  # noqa: N802
                greeted.append(self)
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        factory: Any = Factory.forProtocol(Web)
        factory.noisy = False
        path = str(self.daemon.folder / "web")
        port = await UNIXServerEndpoint(reactor, path).listen(factory)
        self.addCleanup(port.stopListening)
        store = Xenstore(reactor, path)
        store.start()
        with capturedLogs() as logged:
            await self.fails(BackendLost, store.read("/a"))
            await until(lambda: len(greeted) > 1)
        await store.close()
        self.assertIn("cannot read what the daemon says", "".join(said(logged)))

    async def test_close(self) -> None:
        """What waits when it is closed fails, and what comes later too."""
        await self.store.read("/a")
        waiting = Deferred.fromCoroutine(self.store.read("/a"))
        closing = gatherResults([self.store.close(), self.store.close()])
        await waiting.addErrback(lambda failure: failure.trap(BackendLost))
        await closing
        await self.fails(BackendLost, self.store.read("/a"), "closed")


class NowhereTests(TestCase):
    """No daemon at all."""

    timeout = 10

    def store(self, path: str | None = None) -> Xenstore:
        """Return one that has been started."""
        store = Xenstore(reactor, path)
        store.start()
        self.addCleanup(store.close)
        return store

    async def reason(self, store: Xenstore) -> str:
        """Return why it cannot be read."""
        try:
            await store.read("/a")
        except BackendLost as error:
            return str(error)
        raise AssertionError("it can be read")

    async def test_nowhere(self) -> None:
        """The error names the sockets that were tried, what is wrong with them, and the remedy; it is logged once."""
        self.patch(os, "environ", {})
        with capturedLogs() as logged:
            reason = await self.reason(self.store())
            await deferLater(reactor, 0.3)
        for word in ("/run/xenstored/socket: No such file", "/var/run/xenstored/socket", "dom0", "XENSTORED_PATH"):
            self.assertIn(word, reason)
        self.assertEqual([reason], said(logged))

    async def test_path(self) -> None:
        """The path that is given wins over the one of the environment, and that over the usual ones."""
        self.patch(os, "environ", {"XENSTORED_PATH": "/nowhere/at/all"})
        reason = await self.reason(self.store())
        self.assertIn("/nowhere/at/all: No such file", reason)
        self.assertNotIn("/run/xenstored", reason)
        reason = await self.reason(self.store(__file__))
        self.assertIn(f"{__file__}: Connection refused", reason)
        self.assertNotIn("nowhere", reason)

    async def test_comes_later(self) -> None:
        """A daemon that comes later is found, and watches that have been waiting are set."""
        with Xenstored() as daemon:
            daemon.kill()
            store = self.store(daemon.path)
            seen = Seen(store, "/a")
            self.assertIn("no connection", await self.reason(store))
            daemon.start()
            self.assertEqual("/a", await seen.next())
            await store.close()

    async def test_nobody_accepts(self) -> None:
        """A daemon that accepts nobody is tried again, and keeps nobody from closing."""
        path = self.mktemp()
        with contextlib.ExitStack() as sockets:
            listening = sockets.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(path)
            listening.listen(0)
            for _ in range(2):
                other = sockets.enter_context(socket.socket(socket.AF_UNIX))
                other.settimeout(0)
                other.connect_ex(path)
            store = self.store(path)
            for _ in range(3):
                self.assertIn("it accepts nobody", await self.reason(store))
                await deferLater(reactor, 0.05)
            await store.close()

    async def test_closed_at_once(self) -> None:
        """One that is closed while it connects leaves nothing behind."""
        with Xenstored() as daemon:
            for _ in range(5):
                await self.store(daemon.path).close()

    async def test_not_started(self) -> None:
        """A client that was not started raises an error, and can be closed."""
        store = Xenstore(reactor)
        self.assertIn("not been started", await self.reason(store))
        await store.close()
