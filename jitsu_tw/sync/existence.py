"""
Which names of a template exist, by its `exists`. Nothing here blocks; each question has a deadline, and their number is
bounded.

The answers of programs and URLs are kept for a while, for a bounded number of names. A program is called with the
label, and exits with 0 if the label exists and with 1 if not. A URL, with ``${label}`` in it or with ``?label=…``
added, is answered by a status of 2xx if the label exists, and by 404 or 410 if not. A file lists one label in each
line; a line that is no label is left out, and named in the log.
"""

from __future__ import annotations

import io
import os
import stat
from collections import OrderedDict
from fnmatch import fnmatchcase
from functools import partial
from http import HTTPStatus
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import quote

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.web.client import Agent

from jitsu_tw.bounded_web import BoundedEndpoints, Unread
from jitsu_tw.config.vms import LABEL
from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import ExistenceUnknown, Prohibited
from jitsu_tw.networks import network
from jitsu_tw.processes import Process
from jitsu_tw.settings import Asks
from jitsu_tw.shares import Line, Places
from jitsu_tw.slices import in_slices
from jitsu_tw.text import abridged, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from jitsu_tw.dns.wire import Source
    from jitsu_tw.settings import Existence, Template

T = TypeVar("T")

#: Programs and URLs that are asked at once: of all clients, and of one client network.
MOST_ASKED: Final = 16
MOST_ASKED_FOR_ONE: Final = 4

#: Names that wait to be asked for: of all clients, and of one client network.
MOST_WAITING: Final = 1000
MOST_WAITING_OF_ONE: Final = 50

#: Seconds that a program or a URL has to answer.
ANSWERS_WITHIN: Final = 5.0

#: Seconds for which the answer is kept that a name exists, and the answer that it does not.
KEPT_IF_IT_EXISTS: Final = 30.0
KEPT_IF_NOT: Final = 60.0

#: The most names whose answers are kept.
MOST_KEPT: Final = 10_000

#: In octets: the largest list that is read. It has a million labels of 15 letters, which take 100 MB of memory.
LARGEST_LIST: Final = 16 * 1024 * 1024

#: Into how many sets the labels of a list are divided.
PARTS: Final = 512

#: Lines of a list that are no labels, of which the log has the places.
MOST_NAMED: Final = 3

#: In octets: how much of a program's output is kept; in characters: how much of that an error repeats.
LONGEST_OUTPUT: Final = 4096
LONGEST_REASON: Final = 200

#: The answers of a URL that say that a label does not exist.
NOT_THERE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

#: Seconds in which the log has one line of a file, a program or a URL that cannot be asked.
LOG_EVERY: Final = 60.0

#: Seconds between two looks at whether a file has changed.
LOOK_EVERY: Final = 1.0

#: Seconds for which a list answers as it was read last, while it is read again, so that no question waits for that.
OLD_FOR: Final = 1.0

#: Seconds after which a file that no question was about is forgotten.
FORGET_FILE_AFTER: Final = 600.0


class Labels:
    """
    A set of labels, in many small parts.

    To copy, or to free, one set of a million labels takes 50 ms, in which no other thread of the process runs.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._parts: list[set[str]] = [set() for _ in range(PARTS)]

    def add(self, label: str) -> None:
        """Add *label*."""
        self._parts[hash(label) % PARTS].add(label)

    def __contains__(self, label: str) -> bool:
        """Return whether *label* is in it."""
        return label in self._parts[hash(label) % PARTS]

    def freeing(self) -> Iterator[None]:
        """Free the labels, step by step; nothing is to be looked up any more."""
        while self._parts:
            self._parts.pop()
            yield


@attrs.frozen
class Content:
    """
    What a file is.

    Attributes:
        version: changes when the file does.
        labels: what a list lists, as DNS has it; None for a program.
        bad: the places of lines that are no labels.
        number: how many such lines there are.
    """

    version: tuple[int, ...] = ()
    labels: Labels | None = attrs.field(factory=Labels, eq=False)
    bad: tuple[str, ...] = ()
    number: int = 0


def read(path: Path, known: Content) -> Content:
    """
    Return what the file is now; *known* itself if it has not changed. Blocks.

    Raises:
        ExistenceUnknown: it cannot be read.
    """
    try:
        found = path.stat()
        version = found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode
        if version == known.version:
            return known
        if stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK):
            return Content(version, None)
        if not stat.S_ISREG(found.st_mode):
            raise ExistenceUnknown(f"{path} is no file")
        with path.open("rb") as file:
            octets = file.read(LARGEST_LIST + 1)
        if len(octets) > LARGEST_LIST:
            raise ExistenceUnknown(f"{path} is larger than {LARGEST_LIST // 1024**2} MiB")
        return _listed(octets, path, version)
    except OSError as error:
        raise ExistenceUnknown(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise ExistenceUnknown(f"{path} is not text in UTF-8") from error


def _listed(octets: bytes, path: Path, version: tuple[int, ...]) -> Content:
    """Return the labels that the lines of a list are; what is behind a # is for people."""
    labels, bad, number = Labels(), list[str](), 0
    for at, line in enumerate(io.TextIOWrapper(io.BytesIO(octets), "utf-8", newline="\n"), 1):
        label = line.partition("#")[0].strip().lower()
        if LABEL.fullmatch(label):  # to convert a label of another script takes forty times as long
            labels.add(label)
        elif label:
            in_dns = _wire(label)[1:-1].decode("latin-1")
            if LABEL.fullmatch(in_dns):
                labels.add(in_dns)
            else:
                number += 1
                bad += [f"{path}:{at}"] if len(bad) < MOST_NAMED else []
    return Content(version, labels, tuple(bad), number)


def _wire(label: str) -> bytes:
    """Return the name that *label* is, as DNS has it (RFC 5891 for other scripts); empty if it is none."""
    try:
        return from_text(label)
    except ValueError:
        return b""


class Listing:
    """
    A file that says which labels exist; or a program, if it can be executed.

    Attributes:
        content: what the file was when it was read last.
        trouble: why the file could not be read at the last look; None if it could.
        fresh_until: when the next look at the file is due, in seconds of the reactor.
    """

    log = Logger()

    def __init__(self, path: str, reactor: Any) -> None:
        """Read nothing yet."""
        self.content, self.fresh_until = Content(), 0.0
        self.trouble: ExistenceUnknown | None = None
        self._path, self._reactor = Path(path), reactor
        self._waiting: set[Deferred[None]] = set()
        self._is_read = False

    def look(self) -> Deferred[None]:
        """Look at the file, once for all callers that wait; the Deferred fires afterwards."""
        waiter: Deferred[None] = Deferred(self._waiting.discard)
        self._waiting.add(waiter)
        self.refresh()
        return waiter

    def refresh(self) -> None:
        """Begin to look at the file in a thread, unless a thread is looking already."""
        if not self._is_read:
            self._is_read = True
            late = self._reactor.callLater(ANSWERS_WITHIN, self._late)
            deferToThread(read, self._path, self.content).addBoth(self._looked, late)

    def _late(self) -> None:
        """Wait no longer for the file, which may be that of a server, until it has been read after all."""
        self.trouble = ExistenceUnknown(f"{self._path} has not been read within {ANSWERS_WITHIN:g} s")
        self.fresh_until = inf
        self._tell()

    def _looked(self, result: Content | Failure, late: IDelayedCall) -> None:
        """Note what the file is, and tell the callers that wait."""
        if late.active():
            late.cancel()
        self._is_read, self.fresh_until, self.trouble = False, self._reactor.seconds() + LOOK_EVERY, None
        if not isinstance(result, Content):
            self.trouble = ExistenceUnknown(result.getErrorMessage())
        elif result is not self.content:
            if result.number:
                message = "{places}: left out as no labels: {lines}; write what stands for the *"
                self.log.warn(message, places=", ".join(result.bad), lines=counted(result.number, "line"))
            old, self.content = self.content.labels, result
            if old is not None:
                spawn(self.log, in_slices(self._reactor, old.freeing()))
        self._tell()

    def _tell(self) -> None:
        waiting = tuple(self._waiting)
        self._waiting.clear()
        for waiter in waiting:
            waiter.callback(None)


class Existing:
    """
    Finds out which names of templates exist.

    It owns, and nobody else writes: the answers that are kept, those that are waited for, and the programs that run.

    Attributes:
        troubles: by the text of an `exists`, why it could not be asked the last time.
    """

    log = Logger()

    def __init__(self, reactor: Any, agent: Any = None) -> None:
        """Ask nothing yet. *reactor* runs programs and keeps the time; *agent* asks URLs, by default Twisted's."""
        self._reactor = reactor
        self._agent = agent or Agent.usingEndpointFactory(reactor, BoundedEndpoints(reactor))
        self.troubles: dict[str, str] = {}
        self._quiet_until: dict[str, float] = {}
        self._logged: set[str] = set()
        self._kept: OrderedDict[_Key, tuple[bool, float]] = OrderedDict()
        self._listings: dict[str, Listing] = {}
        self._asked: dict[_Key, _Asked] = {}
        self._programs: set[Process] = set()
        self._places = Places(MOST_WAITING, MOST_WAITING_OF_ONE)
        self._slots: Line[_Asked] = Line(MOST_ASKED, MOST_ASKED_FOR_ONE, self._begin)

    def stop(self) -> None:
        """End the programs that run."""
        for program in self._programs:
            program.end()

    def exists(self, template: Template, label: str, source: Source) -> Deferred[bool]:
        """
        Return whether *label* exists in *template*, for the client *source*.

        Raises:
            Prohibited: (through the Deferred) too many names that the client's network has asked for wait already.
            ExistenceUnknown: (through the Deferred) it cannot be found out now; the message says why.
        """
        known = self._known(template, label)
        if known is not None:
            return succeed(known)
        if not self._places.take(source):
            return fail(Prohibited("this network asks for too many names that are not known yet"))
        return self._find_out(template, label, source).addBoth(self._leave, source)

    def _leave(self, result: Any, source: Source) -> Any:
        self._places.leave(source)
        return result

    @deferred
    async def _find_out(self, template: Template, label: str, source: Source) -> bool:
        await self._look(template)
        known = self._known(template, label)
        if known is not None:
            return known
        new = _Asked(template, label, network(source.address))
        asked = self._asked.setdefault(new.key, new)
        waiter: Deferred[bool] = Deferred(partial(self._give_up, asked))
        asked.waiters.add(waiter)
        if asked is new:
            self._slots.ask(asked, asked.client)
        return await waiter

    def _give_up(self, asked: _Asked, waiter: Deferred[bool]) -> None:
        """Remove *waiter*; a label for which no question waits any more is not asked for."""
        asked.waiters.discard(waiter)
        if not (asked.waiters or asked.begun):
            del self._asked[asked.key]
            self._slots.leave(asked, asked.client)

    # What is known at once.

    def _known(self, template: Template, label: str) -> bool | None:
        """Return whether *label* exists, or None if the program or the URL is to be asked."""
        answers = [self._at_once(said, label) for said in template.exists]
        if any(answers):
            return True
        if None not in answers:
            return False
        exists, until = self._kept.get((template.name, template.exists, label), (None, 0.0))
        return exists if self._reactor.seconds() < until else None

    def _at_once(self, said: Existence, label: str) -> bool | None:
        if said.kind is Asks.PATTERN:
            return fnmatchcase(label, said.text)
        listing, now = self._listings.get(said.text), self._reactor.seconds()
        if listing is None or listing.trouble or not listing.content.version or now >= listing.fresh_until + OLD_FOR:
            return None
        if now >= listing.fresh_until:
            listing.refresh()
        return None if listing.content.labels is None else label in listing.content.labels

    async def _look(self, template: Template) -> None:
        """Look at the files of *template* that have not been looked at for a while."""
        now = self._reactor.seconds()
        for path in (said.text for said in template.exists if said.kind is Asks.PATH):
            listing = self._listings.get(path)
            if listing is None:
                for old, one in tuple(self._listings.items()):
                    if one.fresh_until + FORGET_FILE_AFTER < now:
                        del self._listings[old]
                listing = self._listings[path] = Listing(path, self._reactor)
            if self._reactor.seconds() >= listing.fresh_until:
                await listing.look()
            if listing.trouble is None and listing.content.labels is not None:
                self._note(path, None)

    def _note(self, what: str, trouble: str | None) -> None:
        """Note why *what* cannot be asked, or that it can be; the log has that once a minute at most."""
        now = self._reactor.seconds()
        if trouble is None:
            if self.troubles.pop(what, None) is not None and what in self._logged:
                self._logged.discard(what)
                self.log.info("exists: {what} answers again", what=what)
            return
        if what not in self.troubles and now >= self._quiet_until.get(what, 0.0):
            self._quiet_until[what] = now + LOG_EVERY
            self._logged.add(what)
            self.log.error("exists: whether names exist is not known: {trouble}", trouble=trouble)
        self.troubles[what] = trouble

    # Asking.

    def _begin(self, asked: _Asked) -> None:
        asked.begun = True
        self._ask(asked).addBoth(self._answered, asked)

    @deferred
    async def _ask(self, asked: _Asked) -> bool:
        trouble = ""
        for said in asked.template.exists:
            try:
                exists = await self._one(said, asked)
            except ExistenceUnknown as error:
                trouble = str(error)
                self._note(said.text, trouble)
                continue
            self._note(said.text, None)
            if exists:
                return True
        if trouble:
            raise ExistenceUnknown(trouble)
        return False

    async def _one(self, said: Existence, asked: _Asked) -> bool:
        if said.kind is Asks.URL:
            return await self._ask_url(said.text, asked.label)
        if said.kind is Asks.PATTERN:
            return fnmatchcase(asked.label, said.text)
        listing = self._listings.get(said.text)
        if listing is None or listing.trouble:
            raise ExistenceUnknown(str(listing.trouble) if listing is not None else f"{said.text} was not read")
        if listing.content.labels is None:
            return await self._ask_program(said.text, asked)
        return asked.label in listing.content.labels

    def _within(self, waits: Deferred[T], what: str) -> Deferred[T]:
        def late(_: object, seconds: float) -> NoReturn:
            raise ExistenceUnknown(f"{what} has not answered within {seconds:g} s")

        return waits.addTimeout(ANSWERS_WITHIN, self._reactor, late)

    async def _ask_program(self, path: str, asked: _Asked) -> bool:
        env = {"PATH": os.environ.get("PATH", os.defpath), "JITSU_TEMPLATE": asked.template.name}
        try:
            program = Process(self._reactor, [path, asked.label], within=ANSWERS_WITHIN, env=env, most=LONGEST_OUTPUT)
        except OSError as error:
            raise ExistenceUnknown(f"{path} cannot be run: {error.strerror}") from error
        self._programs.add(program)
        ended = await program.ended
        self._programs.discard(program)
        if ended.late:
            raise ExistenceUnknown(f"{path} has not answered within {ANSWERS_WITHIN:g} s")
        if ended.code not in {0, 1}:
            last = next(iter(ended.err.strip().splitlines()[-1:]), "")
            how = "was ended by a signal" if ended.code is None else f"has ended with {ended.code}, neither 0 nor 1"
            raise ExistenceUnknown(abridged(f"{path} {how}" + (f": {last}" if last else ""), LONGEST_REASON))
        return ended.code == 0

    async def _ask_url(self, url: str, label: str) -> bool:
        server, quoted = url.partition("?")[0], quote(label, safe="")
        whole = url.replace("${label}", quoted)
        if whole == url:
            whole += f"{'&' if '?' in url else '?'}label={quoted}"
        try:
            response = await self._within(self._agent.request(b"GET", whole.encode()), server)
        except ExistenceUnknown:
            raise
        except Exception as error:  # wide: all that a server of another kind can do
            raise ExistenceUnknown(f"{server} cannot be asked: {abridged(str(error), LONGEST_REASON)}") from error
        response.deliverBody(Unread())
        if response.code in NOT_THERE:
            return False
        if not HTTPStatus.OK <= response.code < HTTPStatus.MULTIPLE_CHOICES:
            raise ExistenceUnknown(f"{server} answers with the status {response.code}, none of 2xx, 404 and 410")
        return True

    def _answered(self, result: bool | Failure, asked: _Asked) -> None:  # noqa: FBT001
        """Keep an answer, and give it to all questions that wait for it."""
        key = asked.key
        del self._asked[key]
        if isinstance(result, bool):
            self._kept[key] = result, self._reactor.seconds() + (KEPT_IF_IT_EXISTS if result else KEPT_IF_NOT)
            self._kept.move_to_end(key)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        # The next label may be answered at once, too. Within this call, many labels would nest too deep.
        self._reactor.callLater(0, self._slots.leave, asked, asked.client)
        for waiter in tuple(asked.waiters):
            waiter.callback(result)


#: A template's name, its `exists`, and a label.
_Key = tuple[str, "tuple[Existence, ...]", str]


@attrs.define(eq=False)
class _Asked:
    """
    A label that is asked for.

    Attributes:
        template: the template that the label may exist in.
        label: the label, in lower case.
        client: the network of the first client that has asked.
        waiters: a Deferred for each question.
        begun: it is being asked for.
    """

    template: Template
    label: str
    client: bytes
    waiters: set[Deferred[bool]] = attrs.field(factory=set)
    begun: bool = False

    @property
    def key(self) -> _Key:
        """The key of the answer (`_Key`)."""
        return self.template.name, self.template.exists, self.label
