"""
Which names of a template exist: its `exists` says so. Asking for one blocks nothing, has a deadline, and is bounded.

What a program or a URL has answered is kept for a while, of a bounded number of names. A program is called with the
label, and exits with 0 if that exists and with 1 if not. A URL, with ``${label}`` in it or with ``?label=…`` added, is
answered by a status of 2xx if the label exists, and by 404 or 410 if not. A file lists one label in each line.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThread
from twisted.web.client import Agent

from jitsu_tw.bounded_web import BoundedEndpoints, Unread
from jitsu_tw.coroutines import deferred
from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import ExistenceUnknown, Prohibited
from jitsu_tw.networks import network
from jitsu_tw.processes import run
from jitsu_tw.settings import Asks
from jitsu_tw.shares import Line, Places
from jitsu_tw.text import abridged

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jitsu_tw.dns.wire import Source
    from jitsu_tw.settings import Existence, Template

#: Programs and URLs that are asked at once: of all clients, and of one client network.
MOST_ASKED: Final = 16
MOST_ASKED_FOR_ONE: Final = 4

#: Names that wait to be asked for: of all clients, and of one client network.
MOST_WAITING: Final = 1000
MOST_WAITING_OF_ONE: Final = 50

#: Seconds that a program or a URL has to answer.
ANSWERS_WITHIN: Final = 5.0

#: Seconds for which an answer is kept: that a name exists, and that it does not.
KEPT_IF_IT_EXISTS: Final = 30.0
KEPT_IF_NOT: Final = 60.0

#: The most names whose answers are kept.
MOST_KEPT: Final = 10_000

#: In octets: the largest list that is read.
LARGEST_LIST: Final = 64 * 1024 * 1024

#: In octets: the longest output of a program that is kept; and in characters, what an error repeats.
LONGEST_OUTPUT: Final = 4096
LONGEST_REASON: Final = 200

#: The answers of a URL that say that a label does not exist.
NOT_THERE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

#: Seconds between two looks at whether a file has changed.
LOOK_EVERY: Final = 1.0


class Listing:
    """
    A file that says which labels exist; or a program, if it can be executed.

    Attributes:
        is_program: whether it is a program.
        labels: that it lists, as DNS has them.
    """

    def __init__(self, path: str) -> None:
        """Read nothing yet."""
        self.path = Path(path)
        self.is_program = False
        self.labels: frozenset[str] = frozenset()
        self._was: tuple[int, ...] = ()

    def look(self) -> None:
        """
        Look at the file, and read it if it is a list that has changed. Blocks.

        Raises:
            ExistenceUnknown: it cannot be read, or has a line that is no label.
        """
        try:
            found = self.path.stat()
            now = found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode
            if now == self._was:
                return
            self.is_program = stat.S_ISREG(found.st_mode) and os.access(self.path, os.X_OK)
            if not self.is_program:
                if found.st_size > LARGEST_LIST:
                    raise ExistenceUnknown(f"{self.path} is larger than {LARGEST_LIST // 1024**2} MiB")
                self.labels = frozenset(_labels(self.path.read_text(), self.path))
            self._was = now
        except OSError as error:
            raise ExistenceUnknown(f"{self.path} cannot be read: {error.strerror}") from error
        except UnicodeError as error:
            raise ExistenceUnknown(f"{self.path} is not text in UTF-8") from error


def _labels(text: str, path: Path) -> set[str]:
    """Return the labels that the lines of a list are; what is behind a # is for people."""
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        if label := line.partition("#")[0].strip().lower():
            try:
                octets = from_text(label)
            except ValueError as error:
                raise ExistenceUnknown(f"{path}:{number}: {error}") from error
            if octets[0] + 2 != len(octets):
                raise ExistenceUnknown(f"{path}:{number}: {label!r} is no label; write only what stands for the *")
            found.add(octets[1:-1].decode("latin-1"))
    return found


class Existing:
    """
    Finds out which names of templates exist.

    It owns, and nobody else writes: the answers that are kept, and those that are waited for.
    """

    def __init__(self, reactor: Any, agent: Any = None) -> None:
        """Ask nothing yet. *reactor* runs programs and keeps the time; *agent* asks URLs, by default Twisted's."""
        self._reactor = reactor
        self._agent = agent or Agent.usingEndpointFactory(reactor, BoundedEndpoints(reactor))
        self._kept: OrderedDict[tuple[str, str], tuple[bool, float]] = OrderedDict()
        self._listings: dict[str, tuple[Listing, float]] = {}
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._places = Places(MOST_WAITING, MOST_WAITING_OF_ONE)
        self._slots: Line[_Asked] = Line(MOST_ASKED, MOST_ASKED_FOR_ONE, self._begin)

    def forget(self) -> None:
        """Forget all answers, because templates have changed."""
        self._kept.clear()
        self._listings.clear()

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
        key = template.name, label
        asked = self._asked.get(key)
        is_new = asked is None
        if asked is None:
            asked = self._asked[key] = _Asked(template, label, network(source.address))
        waiter: Deferred[bool] = Deferred(asked.waiters.discard)
        asked.waiters.add(waiter)
        waiter.addBoth(self._leave, source)
        if is_new:
            self._slots.ask(asked, asked.client)
        return waiter

    def _leave(self, result: Any, source: Source) -> Any:
        self._places.leave(source)
        return result

    # What is known at once.

    def _known(self, template: Template, label: str) -> bool | None:
        """Return whether *label* exists, if that is known; else None."""
        answers = [self._at_once(said, label) for said in template.exists]
        if any(answers):
            return True
        if None not in answers:
            return False
        exists, until = self._kept.get((template.name, label), (None, 0.0))
        return exists if self._reactor.seconds() < until else None

    def _at_once(self, said: Existence, label: str) -> bool | None:
        if said.kind is Asks.PATTERN:
            return fnmatchcase(label, said.text)
        if said.kind is Asks.PATH:
            listing, until = self._listings.get(said.text, (None, 0.0))
            if listing is not None and not listing.is_program and self._reactor.seconds() < until:
                return label in listing.labels
        return None

    # Asking.

    def _begin(self, asked: _Asked) -> None:
        self._ask(asked).addBoth(self._answered, asked)

    @deferred
    async def _ask(self, asked: _Asked) -> bool:
        trouble: ExistenceUnknown | None = None
        for said in asked.template.exists:
            try:
                if await self._one(said, asked):
                    return True
            except ExistenceUnknown as error:
                trouble = error
        if trouble is not None:
            raise trouble
        return False

    async def _one(self, said: Existence, asked: _Asked) -> bool:
        if said.kind is Asks.URL:
            return await self._ask_url(said.text, asked.label)
        if said.kind is Asks.PATH:
            listing, until = self._listings.get(said.text, (Listing(said.text), 0.0))
            if self._reactor.seconds() >= until:
                await self._within(deferToThread(listing.look), said.text)
                self._listings[said.text] = listing, self._reactor.seconds() + LOOK_EVERY
            return await self._ask_program(said.text, asked) if listing.is_program else asked.label in listing.labels
        return fnmatchcase(asked.label, said.text)

    def _within(self, waits: Deferred[Any], what: str) -> Deferred[Any]:
        def late(_: object, seconds: float) -> None:
            raise ExistenceUnknown(f"{what} has not answered within {seconds:g} s")

        return waits.addTimeout(ANSWERS_WITHIN, self._reactor, late)

    async def _ask_program(self, path: str, asked: _Asked) -> bool:
        env = {"PATH": os.environ.get("PATH", os.defpath), "JITSU_TEMPLATE": asked.template.name}
        try:
            process = run(self._reactor, [path, asked.label], within=ANSWERS_WITHIN, env=env, most=LONGEST_OUTPUT)
        except OSError as error:
            raise ExistenceUnknown(f"{path} cannot be run: {error.strerror}") from error
        ended = await process.ended
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
        """Keep an answer, and give it to all that wait for it."""
        key = asked.template.name, asked.label
        del self._asked[key]
        if isinstance(result, bool):
            self._kept[key] = result, self._reactor.seconds() + (KEPT_IF_IT_EXISTS if result else KEPT_IF_NOT)
            self._kept.move_to_end(key)
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._slots.leave(asked, asked.client)
        for waiter in tuple(asked.waiters):
            waiter.callback(result)  # each of them has an end of its own


@attrs.define(eq=False)
class _Asked:
    """
    A label that is asked for.

    Attributes:
        template: that may have it.
        label: in lower case.
        client: the network of the first client that has asked.
        waiters: a Deferred for each question.
    """

    template: Template
    label: str
    client: bytes
    waiters: set[Deferred[bool]] = attrs.field(factory=set)
