"""Which names of a template exist: by patterns, lists, programs and URLs, real ones where these are asked."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
from twisted.internet import reactor as default_reactor
from twisted.internet._resolver import GAIResolver
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, succeed
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from jitsu_tw import bounded_web
from jitsu_tw.dns.wire import Source
from jitsu_tw.errors import ExistenceUnknown, Prohibited
from jitsu_tw.settings import Asks, Existence
from jitsu_tw.slices import SLICE, in_slices
from jitsu_tw.sync import existence
from jitsu_tw.sync.existence import (
    ANSWERS_WITHIN,
    KEPT_IF_IT_EXISTS,
    KEPT_IF_NOT,
    LOG_EVERY,
    LOOK_EVERY,
    MOST_ASKED,
    MOST_ASKED_FOR_ONE,
    MOST_KEPT,
    MOST_WAITING,
    MOST_WAITING_OF_ONE,
    OLD_FOR,
    PARTS,
    Content,
    Existing,
    read,
)
from test.support import BoundedClock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from jitsu_tw.settings import Template

reactor: Any = default_reactor

HERE: Final = Source("192.0.2.1", 4711, proven=True)


@attrs.frozen
class Site_:  # noqa: N801 -- a template, as far as `Existing` looks at one
    """A template of a name, whose names exist as *exists* says."""

    exists: tuple[Existence, ...]
    name: str = "site"


def template(*texts: str, name: str = "site") -> Template:
    """Return a template whose `exists` has these *texts*."""
    return cast("Template", Site_(tuple(map(Existence.parse, texts)), name))


def client(number: int) -> Source:
    """Return a client of a network of its own."""
    return Source(f"10.{number // 256}.{number % 256}.1", 53, proven=True)


class Held:
    """In place of a program: answers when the test says so."""

    def __init__(self, test: SynchronousTestCase, existing: Existing) -> None:
        """Answer in place of all programs."""
        self.asked: dict[str, Deferred[bool]] = {}

        def ask(_: str, asked: Any) -> Deferred[bool]:
            answer = self.asked[asked.label] = Deferred()
            return answer

        test.patch(existing, "_ask_program", ask)


class PatternTests(SynchronousTestCase):
    """Labels and patterns in the configuration."""

    def test_table(self) -> None:
        """A label exists if one of the patterns matches the whole of it."""
        existing = Existing(BoundedClock())
        table = {"alice": True, "alice2": False, "user-7": True, "user-": True, "xuser-7": False, "v1": True,
                 "v12": False, "w1": True, "w3": False, "xn--mller-kva": True}  # fmt: skip
        site = template("alice", "user-*", "v?", "w[12]", "xn--mller-kva")
        self.assertEqual(table, {label: self.successResultOf(existing.exists(site, label, HERE)) for label in table})

    def test_parsed(self) -> None:
        """What `exists` is, by how it is written; what is none of these is refused with what would be right."""
        kinds = {"user-*": Asks.PATTERN, "/x/y": Asks.PATH, "./names": Asks.PATH, "http://a/": Asks.URL}
        self.assertEqual(kinds, {text: Existence.parse(text).kind for text in kinds})
        for text in ("Alice", "a.b", "müller", "", "a b"):
            with self.assertRaises(ValueError) as caught:
                Existence.parse(text)
            self.assertIn("write one like alice or user-*", str(caught.exception))

    def test_nothing_kept(self) -> None:
        """A million random names leave nothing behind, and nothing is asked or called later for them."""
        clock = BoundedClock()
        existing, site = Existing(clock), template("alice")
        for number in range(1000):
            existing.exists(site, f"r{number}", client(number))
        self.assertEqual(
            [0, 0, 0, 0],
            [len(each) for each in (existing._kept, existing._asked, existing._listings, clock.getDelayedCalls())],
        )


class ListTests(SynchronousTestCase):
    """A file that lists labels."""

    def setUp(self) -> None:
        """Begin with a file, in threads that take no time."""
        self.path = Path(self.mktemp())
        self.clock = BoundedClock()
        self.existing = Existing(self.clock)
        self.reads = 0

        def now(function: Any, *args: Any) -> Deferred[Any]:
            self.reads += 1
            return deferred_of(function, *args)

        self.patch(existence, "deferToThread", now)

    def write(self, text: str | bytes) -> None:
        """Write the file anew, as an editor does."""
        new = self.path.with_suffix(".new")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        new.replace(self.path)

    def has(self, label: str) -> bool:
        """Return whether *label* exists."""
        return self.successResultOf(self.existing.exists(template(str(self.path.absolute())), label, HERE))

    def why_not(self, label: str = "alice") -> str:
        """Return why it is not known whether *label* exists."""
        answer = self.existing.exists(template(str(self.path.absolute())), label, HERE)
        self.clock.advance(0)
        return str(self.failureResultOf(answer, ExistenceUnknown).value)

    def test_lines(self) -> None:
        """A line is a label in any case and script; what is behind # is for people, and so are empty lines."""
        self.write("alice\n\n  Bob  # the second\n# carol\nmüller\n" + "x" * 63 + "\nxn--bcher-kva\r\ndave")
        labels = ("alice", "bob", "carol", "xn--mller-kva", "x" * 63, "xn--bcher-kva", "dave", "", "#")
        self.assertEqual([True, True, False, True, True, True, True, False, False], [self.has(one) for one in labels])

    def test_bad_lines(self) -> None:
        """Lines that are no labels are left out, and named once, the first three of them; the others count."""
        self.write("alice\na.b\nsome words\n" + "x" * 64 + "\n\x00\nbob\n")
        with capturedLogs() as logs:
            self.assertEqual([True, True, False], [self.has(one) for one in ("alice", "bob", "a")])
            self.clock.advance(LOOK_EVERY)
            self.assertTrue(self.has("alice"))
        (line,) = [str(formatEvent(one)) for one in logs]
        self.assertIn(f"{self.path.absolute()}:2, ", line)
        self.assertIn(":4: left out as no labels: 4 lines", line)

    def test_changed(self) -> None:
        """A list that has changed is read again a second later; one that has not is only looked at, once a second."""
        self.write("alice\n")
        self.assertEqual([True, False], [self.has("alice"), self.has("bob")])
        self.write("bob\ncarol\n")
        self.assertFalse(self.has("bob"))
        self.clock.advance(LOOK_EVERY + OLD_FOR)
        self.assertEqual([False, True], [self.has("alice"), self.has("bob")])
        self.assertEqual(2, self.reads)
        known = Content()
        first = read(self.path, known)
        self.assertIs(first, read(self.path, first))

    def test_many_questions(self) -> None:
        """A list about which many ask answers as it was while it is looked at again, and then as it is; none waits."""
        self.write("alice\n")
        self.has("alice")
        self.write("bob\n")
        held: Deferred[None] = Deferred()
        self.patch(existence, "deferToThread", lambda *args: self._held(held, *args))
        self.clock.advance(LOOK_EVERY)
        self.assertEqual({True}, {self.has("alice") for _ in range(MOST_WAITING_OF_ONE + 1)})
        held.callback(None)
        self.assertEqual((False, True, 2), (self.has("alice"), self.has("bob"), self.reads))

    def test_slow_look(self) -> None:
        """What a list was is not answered for long: if the look takes longer, the questions wait for it."""
        self.write("alice\n")
        self.has("alice")
        held: Deferred[None] = Deferred()
        self.patch(existence, "deferToThread", lambda *args: self._held(held, *args))
        self.clock.advance(LOOK_EVERY)
        self.has("alice")
        self.clock.advance(OLD_FOR)
        waits = self.existing.exists(template(str(self.path.absolute())), "alice", HERE)
        self.assertNoResult(waits)
        held.callback(None)
        self.assertTrue(self.successResultOf(waits))

    def test_hangs(self) -> None:
        """A list that is not read in time is a trouble until it is read, also if no client has waited for that."""
        self.write("alice\n")
        held: Deferred[None] = Deferred()
        self.patch(existence, "deferToThread", lambda *args: self._held(held, *args))
        site = template(str(self.path.absolute()))
        waits = self.existing.exists(site, "alice", HERE)
        waits.cancel()
        self.failureResultOf(waits)
        self.clock.advance(ANSWERS_WITHIN)
        self.assertIn("has not been read within 5 s", self.why_not())
        self.clock.advance(100)
        self.assertIn("has not been read within 5 s", self.why_not("bob"))
        self.assertEqual([str(self.path.absolute())], list(self.existing.troubles))
        held.callback(None)
        self.assertTrue(self.has("alice"))
        self.clock.advance(LOOK_EVERY + OLD_FOR)
        self.assertTrue(self.has("alice"))
        self.assertEqual(({}, []), (self.existing.troubles, self.clock.getDelayedCalls()))

    def test_unusable(self) -> None:
        """A file that is not there, too large, no text, or no file is named; it is looked at again a second later."""
        self.assertIn("cannot be read: No such file", self.why_not())
        self.why_not("bob")
        self.assertEqual(1, self.reads)
        large = b"a\n" * (existence.LARGEST_LIST // 2 + 1)
        for content, words in ((b"\xff\xfe", "is not text in UTF-8"), (large, "larger than 16 MiB")):
            self.write(content)
            self.clock.advance(LOOK_EVERY)
            self.assertIn(words, self.why_not())
        self.path.unlink()
        os.mkfifo(self.path)
        self.clock.advance(LOOK_EVERY)
        self.assertIn("is no file", self.why_not())
        self.assertEqual([f"{self.path.absolute()} is no file"], list(self.existing.troubles.values()))
        self.path.unlink()
        self.write("alice\n")
        self.clock.advance(LOOK_EVERY)
        self.assertTrue(self.has("alice"))

    def test_beside_patterns(self) -> None:
        """A pattern decides at once, whatever becomes of the file beside it."""
        site = template("user-*", str(self.path.absolute()))
        self.assertTrue(self.successResultOf(self.existing.exists(site, "user-1", HERE)))
        self.assertEqual(0, self.reads)

    def test_trouble_ends(self) -> None:
        """A trouble is known as long as it lasts."""
        path = str(self.path.absolute())
        self.why_not()
        self.assertEqual([path], list(self.existing.troubles))
        self.write("alice\n")
        self.clock.advance(LOOK_EVERY)
        self.has("alice")
        self.assertEqual([], list(self.existing.troubles))

    def test_one_look(self) -> None:
        """However many wait for a file, it is read once; each of them is answered, the deepest call stack is small."""
        self.write("alice\n")
        held: Deferred[None] = Deferred()
        self.patch(existence, "deferToThread", lambda *args: self._held(held, *args))
        site = template(str(self.path.absolute()))
        answers = [self.existing.exists(site, f"r{number}", client(number)) for number in range(900)]
        held.callback(None)
        self.clock.advance(0)
        self.assertEqual([False] * 900, [self.successResultOf(one) for one in answers])
        self.assertEqual(1, self.reads)

    def _held(self, held: Deferred[None], function: Any, *args: Any) -> Deferred[Any]:
        self.reads += 1
        return held.addCallback(lambda _: function(*args))

    def test_unreadable_for_many(self) -> None:
        """However many wait for a file that cannot be read, each is told so."""
        held: Deferred[None] = Deferred()
        self.patch(existence, "deferToThread", lambda *args: self._held(held, *args))
        site = template(str(self.path.absolute()))
        answers = [self.existing.exists(site, f"r{number}", client(number)) for number in range(900)]
        held.callback(None)
        for _ in range(900):
            self.clock.advance(0)
        for one in answers:
            self.failureResultOf(one, ExistenceUnknown)

    def test_old_files(self) -> None:
        """Files of templates that are no more are forgotten."""
        for number in range(3):
            self.existing.exists(template(f"/nowhere/{number}"), "a", HERE).addErrback(lambda _: None)
            self.clock.advance(existence.FORGET_FILE_AFTER + LOOK_EVERY + 1)
        self.assertEqual(["/nowhere/2"], list(self.existing._listings))

    def test_freed(self) -> None:
        """The labels of a list that has changed are freed in slices of time: there may be a million of them."""
        self.write("".join(f"user-{number}\n" for number in range(1000)))
        self.has("alice")
        (listing,) = self.existing._listings.values()
        old = listing.content.labels
        assert old is not None
        self.assertLess(max(map(len, old._parts)), 20)
        self.patch(existence, "in_slices", lambda reactor, work: in_slices(reactor, self._slowly(work)))
        self.write("alice\n")
        self.clock.advance(LOOK_EVERY + OLD_FOR)
        self.assertTrue(self.has("alice"))
        self.assertGreater(len(old._parts), PARTS - 10)
        self.clock.pump([1] * PARTS)
        self.assertEqual([], old._parts)

    def _slowly(self, work: Iterable[None]) -> Iterator[None]:
        for _ in work:
            self.clock.rightNow += SLICE
            yield

    def test_million(self) -> None:
        """A list of very many labels is read in a moment, by the quick way for plain ones."""
        self.write("".join(f"user-{number}\n" for number in range(20_000)))
        self.patch(existence, "_wire", None)
        self.assertTrue(self.has("user-19999"))


def deferred_of(function: Any, *args: Any) -> Deferred[Any]:
    """Call *function* now, as a thread would."""
    return succeed(None).addCallback(lambda _: function(*args))


class AskingTests(SynchronousTestCase):
    """What holds for programs and URLs alike: what is kept, how many are asked, and who is refused."""

    def setUp(self) -> None:
        """Begin with a program whose answers the test gives."""
        self.clock = BoundedClock()
        self.existing = Existing(self.clock)
        self.held = Held(self, self.existing)
        self.patch(existence, "deferToThread", lambda *_: succeed(Content((1,), None)))
        self.site = template("/bin/exists")

    def ask(self, label: str = "alice", source: Source = HERE) -> Deferred[bool]:
        """Ask for *label*."""
        return self.existing.exists(self.site, label, source)

    def answer(self, label: str, answer: Any) -> None:
        """Answer for *label*."""
        self.held.asked.pop(label).callback(answer)
        self.clock.advance(0)

    def test_kept(self) -> None:
        """An answer is kept for a while, shorter if the label exists: then its VM may have been forgotten."""
        for exists, seconds in ((True, KEPT_IF_IT_EXISTS), (False, KEPT_IF_NOT)):
            label = f"a{exists}".lower()
            self.ask(label)
            self.answer(label, exists)
            self.clock.advance(seconds - LOOK_EVERY / 2)
            self.assertIs(exists, self.successResultOf(self.ask(label)))
            self.clock.advance(LOOK_EVERY)
            self.assertNoResult(self.ask(label))

    def test_logged(self) -> None:
        """The log tells when a program cannot be asked, and when it can be again: once a minute at most."""
        with capturedLogs() as logs:
            for label, answer in (("a", False), ("b", False), ("c", True), ("d", False), ("e", True), ("f", False)):
                if label == "f":
                    self.clock.advance(LOG_EVERY)
                question = self.ask(label)
                self.answer(label, answer or Failure_(ExistenceUnknown("the database is down")))
                question.addErrback(lambda failure: failure.trap(ExistenceUnknown))
        why = "exists: whether names exist is not known: the database is down"
        self.assertEqual([why, "exists: /bin/exists answers again", why], [str(formatEvent(one)) for one in logs])

    def test_failure_not_kept(self) -> None:
        """That it could not be found out is not kept."""
        first = self.ask()
        self.answer("alice", Failure_(ExistenceUnknown("no")))
        self.failureResultOf(first, ExistenceUnknown)
        self.assertEqual({"/bin/exists": "no"}, self.existing.troubles)
        self.assertNoResult(self.ask())
        self.answer("alice", True)  # noqa: FBT003
        self.assertEqual({}, self.existing.troubles)

    def test_kept_by_what_is_asked(self) -> None:
        """Answers are those of a template and its `exists`: one that says otherwise from now on asks anew."""
        self.ask()
        self.answer("alice", True)  # noqa: FBT003
        for other in (template("/bin/other"), template("/bin/exists", name="more")):
            self.assertNoResult(self.existing.exists(other, "alice", HERE))

    def test_bounded(self) -> None:
        """No more answers are kept than that, the oldest are dropped first."""
        self.patch(existence, "MOST_KEPT", 3)
        for number in range(5):
            self.ask(f"r{number}")
            self.answer(f"r{number}", False)  # noqa: FBT003
        self.assertEqual(["r2", "r3", "r4"], [label for *_, label in self.existing._kept])
        self.assertLess(MOST_KEPT, 100_000)

    def test_joined(self) -> None:
        """Many that ask for one label have one answer."""
        answers = [self.ask(source=client(number)) for number in range(20)]
        self.answer("alice", True)  # noqa: FBT003
        self.assertEqual([True] * 20, [self.successResultOf(one) for one in answers])

    def test_at_once(self) -> None:
        """Only so many are asked at once, and of one network fewer; the networks take turns."""
        for number in range(30):
            self.ask(f"r{number}")
        self.assertEqual(MOST_ASKED_FOR_ONE, len(self.held.asked))
        for number in range(30):
            self.ask(f"s{number}", client(number))
        self.assertEqual(MOST_ASKED, len(self.held.asked))
        waits = self.ask("t", Source("198.51.100.1", 1, proven=True))
        self.answer("s0", False)  # noqa: FBT003
        for _ in range(40):
            if "t" in self.held.asked:
                break
            self.answer(next(iter(self.held.asked)), False)  # noqa: FBT003
        self.answer("t", True)  # noqa: FBT003
        self.assertTrue(self.successResultOf(waits))
        self.assertTrue(any(label.startswith("r") for label in self.held.asked), "the flood was not served first")

    def test_refused(self) -> None:
        """A network of which many wait is refused, and another is not; when some are answered, so is the first one."""
        for number in range(MOST_WAITING_OF_ONE):
            self.ask(f"r{number}")
        self.failureResultOf(self.ask("more"), Prohibited)
        self.assertNoResult(self.ask("more", client(1)))
        self.answer("r0", False)  # noqa: FBT003
        self.assertNoResult(self.ask("more"))

    def test_given_up(self) -> None:
        """A name that no client waits for any more is not asked for, and takes no memory; one that is asked goes on."""
        answers = [self.ask(f"r{number}", client(number)) for number in range(MOST_WAITING)]
        for one in answers:
            one.addErrback(lambda _: None)
            one.cancel()
        self.assertEqual(MOST_ASKED, len(self.existing._asked))
        for label in list(self.held.asked):
            self.answer(label, True)  # noqa: FBT003
        self.assertEqual(({}, {}), (self.existing._asked, self.held.asked))
        self.assertTrue(self.successResultOf(self.ask("r0")))

    def test_queue_of_failures(self) -> None:
        """Names that waited, and can be answered at once now, are so one after the other, not by nested calls."""
        for number in range(900):
            self.ask(f"r{number}", client(number)).addErrback(lambda _: None)
        self.existing._listings["/bin/exists"].trouble = ExistenceUnknown("it is gone")
        for label in list(self.held.asked):
            self.held.asked.pop(label).callback(False)  # noqa: FBT003
        for _ in range(900):
            self.clock.advance(0)
        self.assertEqual(({}, {}), (self.existing._asked, self.held.asked))

    def test_one_fails(self) -> None:
        """Where one of several cannot be asked, another may say yes; if none does, it is not known."""
        self.site = template("/bin/exists", "/bin/exists")
        first = self.ask()
        self.answer("alice", Failure_(ExistenceUnknown("no")))
        self.answer("alice", True)  # noqa: FBT003
        self.assertTrue(self.successResultOf(first))
        second = self.ask("bob")
        self.answer("bob", Failure_(ExistenceUnknown("no")))
        self.answer("bob", False)  # noqa: FBT003
        self.failureResultOf(second, ExistenceUnknown)


def Failure_(error: Exception) -> Any:  # noqa: N802
    """Return a failure with *error*."""
    from twisted.python.failure import Failure

    return Failure(error)


class ProgramTests(TestCase):
    """Real programs."""

    def setUp(self) -> None:
        """Begin with a folder."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.existing = Existing(reactor)

    def ask(self, script: str, label: str = "alice", *, interpreter: str = "#!/bin/sh") -> Deferred[bool]:
        """Ask a program that is this *script*."""
        path = self.folder / "exists"
        path.write_text(f"{interpreter}\n{script}\n")
        path.chmod(0o755)
        return self.existing.exists(template(str(path)), label, HERE)

    @inlineCallbacks
    def why_not(self, script: str, **more: Any) -> Generator[Deferred[Any], Any, str]:
        """Return why it is not known, after the program *script*."""
        failure = yield self.assertFailure(self.ask(script, **more), ExistenceUnknown)
        return str(failure)

    @inlineCallbacks
    def test_answers(self) -> Generator[Deferred[Any], Any, None]:
        """A program is called with the label, and answers by its exit status; it knows the template's name."""
        script = '[ "$JITSU_TEMPLATE $# $1" = "site 1 alice" ]'
        found = yield self.ask(script)
        self.assertTrue(found)
        found = yield self.existing.exists(template(str(self.folder / "exists")), "bob", HERE)
        self.assertFalse(found)

    @inlineCallbacks
    def test_other_ends(self) -> Generator[Deferred[Any], Any, None]:
        """Another status or a signal is no answer; the last line that it has said of it is repeated, up to a length."""
        why = yield self.why_not("echo first >&2; echo the database is down >&2; exit 2")
        self.assertTrue(why.endswith("exists has ended with 2, neither 0 nor 1: the database is down"), why)
        why = yield self.why_not("kill -9 $$")
        self.assertIn("was ended by a signal", why)
        why = yield self.why_not("head -c 1000000 /dev/zero | tr '\\\\0' x >&2; exit 3")
        self.assertLess(len(why), 300)

    @inlineCallbacks
    def test_flood(self) -> Generator[Deferred[Any], Any, None]:
        """A program that writes without end is read, not kept, and ended in time."""
        self.patch(existence, "ANSWERS_WITHIN", 0.3)
        why = yield self.why_not("cat /dev/zero")
        self.assertIn("has not answered within 0.3 s", why)

    @inlineCallbacks
    def test_hangs(self) -> Generator[Deferred[Any], Any, None]:
        """A program that does not answer is killed."""
        self.patch(existence, "ANSWERS_WITHIN", 0.3)
        why = yield self.why_not(f"echo $$ > {self.folder}/pid; exec sleep 60")
        self.assertIn("has not answered within 0.3 s", why)
        pid = int((self.folder / "pid").read_text())
        yield deferLater(reactor, 0.05)
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, signal.SIG_DFL)
        self.assertEqual(5.0, ANSWERS_WITHIN)

    @inlineCallbacks
    def test_stop(self) -> Generator[Deferred[Any], Any, None]:
        """Programs end with Jitsu."""
        asked = self.ask(f"echo $$ > {self.folder}/pid; exec sleep 60")
        while not (self.folder / "pid").exists() or not (self.folder / "pid").read_text():
            yield deferLater(reactor, 0.01)
        self.existing.stop()
        yield self.assertFailure(asked, ExistenceUnknown)
        with self.assertRaises(ProcessLookupError):
            os.kill(int((self.folder / "pid").read_text()), signal.SIG_DFL)

    @inlineCallbacks
    def test_cannot_run(self) -> Generator[Deferred[Any], Any, None]:
        """A program that cannot be run is no answer."""
        why = yield self.why_not("", interpreter="#!/nowhere/sh")
        self.assertIn("/exists cannot be run: No such file or directory", why)

    @inlineCallbacks
    def test_not_executable(self) -> Generator[Deferred[Any], Any, None]:
        """A file is a list until it can be executed, and again when it cannot be any more."""
        path = self.folder / "exists"
        path.write_text("alice\nexit 1\n")
        self.patch(existence, "LOOK_EVERY", 0.01)
        self.patch(existence, "OLD_FOR", 0.0)
        site = template(str(path))
        found = yield self.existing.exists(site, "alice", HERE)
        self.assertTrue(found)
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
        yield deferLater(reactor, 0.02)
        found = yield self.existing.exists(site, "alice", HERE)
        self.assertFalse(found)


class Answers(Resource):
    """A web server's answers, by the label that is asked for."""

    isLeaf = True  # noqa: N815

    def __init__(self) -> None:
        """Begin without a question."""
        super().__init__()
        self.asked: list[str] = []
        self.endless: list[Any] = []

    def render_GET(self, request: Any) -> Any:  # noqa: N802
        """Answer."""
        self.asked.append(request.uri.decode())
        label = request.args.get(b"label", [request.path.rpartition(b"/")[2]])[0].decode()
        if label == "hangs":
            self.endless.append(request)
            return NOT_DONE_YET
        if label == "endless":
            self.endless.append(request)
            self.pour(request)
            return NOT_DONE_YET
        if label == "headers":
            for number in range(2000):
                request.setHeader(f"X-{number}".encode(), b"x" * 60)
            return b""
        if label == "moved":
            request.redirect(b"/yes")
            return b""
        request.setResponseCode({"gone": 410, "no": 404, "broken": 500, "nothing": 204}.get(label, 200))
        return b"yes"

    def pour(self, request: Any) -> None:
        """Write without end, until the client closes the connection."""
        if request.channel is not None and request in self.endless:
            request.write(b"x" * 10_000)
            reactor.callLater(0.01, self.pour, request)


class UrlTests(TestCase):
    """A real HTTP server on loopback."""

    def setUp(self) -> None:
        """Begin with a server."""
        self.answers = Answers()
        self.port = reactor.listenTCP(0, Site(self.answers), interface="127.0.0.1")
        self.addCleanup(self.close)
        self.existing = Existing(reactor)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/sites"

    @inlineCallbacks
    def close(self) -> Generator[Deferred[Any], Any, None]:
        """End the server, and what it still does."""
        self.answers.endless.clear()
        yield self.port.stopListening()
        yield deferLater(reactor, 0.05)

    def ask(self, label: str, url: str = "") -> Deferred[bool]:
        """Ask for *label*."""
        return self.existing.exists(template(url or self.url), label, HERE)

    @inlineCallbacks
    def test_answers(self) -> Generator[Deferred[Any], Any, None]:
        """A status of 2xx is yes, 404 and 410 are no; the body is not waited for."""
        found = []
        for label in ("yes", "nothing", "no", "gone", "endless"):
            found.append((yield self.ask(label)))  # noqa: PERF401
        self.assertEqual([True, True, False, False, True], found)

    @inlineCallbacks
    def test_where(self) -> Generator[Deferred[Any], Any, None]:
        """The label stands where the URL says, or is added as an argument."""
        for url in (self.url, f"{self.url}?x=1", f"{self.url}/${{label}}", f"{self.url}?name=${{label}}"):
            yield self.ask("alice", url)
        self.assertEqual(
            ["/sites?label=alice", "/sites?x=1&label=alice", "/sites/alice", "/sites?name=alice"], self.answers.asked
        )

    @inlineCallbacks
    def test_other_answers(self) -> Generator[Deferred[Any], Any, None]:
        """Another status, a redirection among them, is no answer; nor is a server that cannot be asked."""
        for label, words in (("broken", "status 500"), ("moved", "status 302"), ("headers", "cannot be asked")):
            failure = yield self.assertFailure(self.ask(label), ExistenceUnknown)
            self.assertIn(words, str(failure))
        failure = yield self.assertFailure(self.ask("a", "http://127.0.0.1:1/"), ExistenceUnknown)
        self.assertIn("http://127.0.0.1:1/ cannot be asked: ", str(failure))

    @inlineCallbacks
    def test_hangs(self) -> Generator[Deferred[Any], Any, None]:
        """A server that does not answer is given up."""
        self.patch(existence, "ANSWERS_WITHIN", 0.2)
        failure = yield self.assertFailure(self.ask("hangs"), ExistenceUnknown)
        self.assertIn("has not answered within 0.2 s", str(failure))


    @inlineCallbacks
    def test_names_hang(self) -> Generator[Deferred[Any], Any, None]:
        """Names of servers that cannot be looked up keep no other work of the reactor's threads waiting."""
        answered, ended = Event(), list[bool]()
        self.addCleanup(answered.set)

        def lookup(*_: Any, **__: Any) -> Any:
            ended.append(answered.wait(2))
            raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")

        self.patch(bounded_web, "GAIResolver", partial(GAIResolver, getaddrinfo=cast("Any", lookup)))
        url = "http://names.invalid/"
        asked = [self.existing.exists(template(url), str(n), Source(f"192.0.{n}.1", 1)) for n in range(MOST_ASKED)]
        before = yield deferToThread(ended.copy)
        self.assertEqual([], before)
        answered.set()
        for one in asked:
            yield self.assertFailure(one, ExistenceUnknown)


class ThreadTests(TestCase):
    """Real threads."""

    @inlineCallbacks
    def test_list(self) -> Generator[Deferred[Any], Any, None]:
        """A list is read in a thread, for all that ask at one moment."""
        path = Path(self.mktemp()).absolute()
        path.write_text("alice\n")
        ask = partial(Existing(reactor).exists, template(str(path)))
        found = yield DeferredList([ask(label, client(number)) for number, label in enumerate(["alice", "bob"] * 50)])
        self.assertEqual([(True, True), (True, False)] * 50, found)
