"""Xen's program `xl`, as calls: each is a process with a deadline; errors are xl's own, its tables become values."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger

from jitsu_tw.coroutines import deferred
from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.ijitsu import SHUT_DOWN
from jitsu_tw.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many xl may run at once, besides the one that lists.
PROCESSES: Final = 16

#: Seconds that a call may take; then it is killed. What moves a guest's memory to or from a disk may take longer.
DEADLINE: Final = 60.0
DEADLINES: Final = {"create": 180.0, "restore": 600.0, "save": 600.0}

#: Where xl may be when it is not on the path (cron's and some users' have no sbin).
SBIN: Final = "/usr/sbin:/sbin:/usr/local/sbin"

#: What xl and libxl write to standard error when nothing is wrong.
_CHATTER: Final = re.compile(
    r"Parsing config|xc: (info|progress|detail)|Saving to|Loading new|\s*Savefile|Shutting down"
)

#: Where in its source libxl found an error; the message comes after it.
_SOURCE: Final = re.compile(r"^(libxl|libxlu|xc): error: (\S+:\d+:\w+: )?")

#: What xl writes where there is no Xen, or where Jitsu may not use it.
_LOST: Final = re.compile(r"privileged command interface|hypervisor information|xenstore connection|cannot open.*libxl")

#: These end with 0 whatever has happened (Xen 4.17); only their output shows it.
_QUIET: Final = frozenset({"pause", "unpause"})

_LINE: Final = re.compile(
    r"(?P<name>.*\S)\s+(?P<domid>\d+)\s+\d+\s+\d+\s+(?P<flags>[-rbpscd]{6})\s+(?P<time>[\d.]+)"
    r"\s+(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s+(?P<reason>[0-9a-f]+|-)(?:\s.*)?"
)

#: Why a domain is down, in Xen's numbers (xen/include/public/sched.h).
SUSPENDED: Final = 2
REASONS: Final = {
    0: SHUT_DOWN, 1: "the guest wanted to reboot", 3: "the guest crashed", 4: "its watchdog ended it",
}  # fmt: skip


@attrs.frozen
class Domain:
    """
    A line of ``xl list``.

    Attributes:
        domid: Xen's number for it, which no other has until the host's next boot.
        down: it is off, or nearly: only its remains are there, and xl is about to clear them away.
        paused: it is neither down nor does it run.
        reason: why it is down, in Xen's numbers; None if it is not.
        cpu_time: the seconds that its virtual CPUs have run, which changes at all times.
    """

    name: str
    domid: int
    uuid: str
    down: bool = False
    paused: bool = False
    reason: int | None = None
    cpu_time: float = attrs.field(default=0.0, eq=False)

    def __str__(self) -> str:
        """Return what the domain is doing."""
        if self.down:
            return "it is being destroyed" if self.reason is None else REASONS.get(self.reason, "the guest went down")
        return "paused" if self.paused else "it runs"


def parse_list(text: str) -> Iterator[Domain]:
    """Yield the domains that have a name, except dom0, of ``xl list -v``."""
    for line in text.splitlines()[1:]:
        match = _LINE.fullmatch(line)
        if match is None or match["name"] == "(null)" or match["domid"] == "0":
            continue
        flags = match["flags"]
        reason = None if match["reason"] == "-" else int(match["reason"], 16)
        # Xen counts a domain that is being saved as down; it may yet run on.
        down = "d" in flags or "c" in flags or ("s" in flags and reason != SUSPENDED)
        paused = not down and "p" in flags and "s" not in flags
        reason = reason if down else None
        yield Domain(match["name"], int(match["domid"]), match["uuid"], down, paused, reason, float(match["time"]))


def parse_free(text: str) -> int | None:
    """
    Return the octets that are free for guests, from ``xl info``.

    None where dom0 has them: if Xen's command line does not limit dom0's memory, xl takes a guest's memory from dom0
    (``autoballoon`` in xl.conf(5)).
    """
    found = dict(re.findall(r"^(\w+)\s*: (.*)$", text, re.MULTILINE))
    if "dom0_mem=" not in found.get("xen_commandline", "") or not found.get("free_memory", "").isdigit():
        return None
    return int(found["free_memory"]) * 2**20


def reason(verb: str, code: int | None, out: str, err: str) -> str:
    """Return why a call failed: xl's first messages, which are the cause of the others."""
    lines = [_SOURCE.sub("", line.strip()) for line in err.splitlines() if line.strip() and not _CHATTER.match(line)]
    lines = lines or [line.strip() for line in out.splitlines() if line.strip()][-1:]
    return f"xl {verb}: {'; '.join(dict.fromkeys(lines[:2])) or f'it ended with code {code} and no message'}"


class Xl:
    """The program."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Begin with nothing running."""
        self._reactor = reactor
        self._slots = DeferredSemaphore(PROCESSES)
        self._listing = False
        self._askers: list[Deferred[tuple[Domain, ...]]] = []
        self._enders: list[Deferred[None]] = []

    @staticmethod
    def program() -> str:
        """
        Return where xl is.

        Raises:
            BackendLost: it is not there.
        """
        found = shutil.which("xl", path=f"{os.environ.get('PATH', '')}:{SBIN}")
        if found is None:
            raise BackendLost("there is no xl here; it is in Debian's xen-utils-common, and works in Xen's dom0")
        return found

    async def run(self, verb: str, *arguments: str) -> str:
        """
        Run ``xl VERB ARGUMENTS`` to its end, when a slot is free, and return its output.

        Raises:
            BackendError: it failed, with its own message; or it did not end, and was killed.
            BackendLost: there is no Xen here, or no xl.
        """
        return await self._slots.run(self._run, verb, *arguments)

    @deferred
    async def _run(self, verb: str, *arguments: str) -> str:
        deadline = DEADLINES.get(verb, DEADLINE)
        # The messages that are known are those of the C locale; xl's scripts may need the rest of the environment.
        environment = {**os.environ, "LC_ALL": "C"}
        argv = ["xl", verb, *arguments]
        process = Process(self._reactor, argv, program=self.program(), within=deadline, env=environment)
        ended = await process.ended
        if ended.late:
            message = f"xl {verb}: it did not end in {deadline:.0f} s and was killed"
            self.log.error("{message}: xl {arguments}", message=message, arguments=[verb, *arguments])
            raise BackendError(message)
        if ended.code != 0 or (verb in _QUIET and "error:" in ended.err):
            lost = _LOST.search(ended.err)
            raise (BackendLost if lost else BackendError)(reason(verb, ended.code, ended.out, ended.err))
        return ended.out

    def domains(self) -> Deferred[tuple[Domain, ...]]:
        """
        Return the domains that have a name, as they are at some time after this call.

        One xl runs at a time, however many callers there are: a call that comes while it runs waits for the next one.
        """
        asker: Deferred[tuple[Domain, ...]] = Deferred()
        self._askers.append(asker)
        if not self._listing:
            self._list()
        return asker

    def _list(self) -> None:
        askers, self._askers = self._askers, []
        self._listing = True
        listed = self._run("list", "-v").addCallback(lambda text: tuple(parse_list(text)))
        listed.addBoth(self._listed, askers)

    def _listed(self, result: Any, askers: list[Deferred[tuple[Domain, ...]]]) -> None:
        self._listing = False
        if self._askers:
            self._list()
        for asker in askers:
            if not asker.called:
                asker.callback(result)
        if not self._listing:
            enders, self._enders = self._enders, []
            for ender in enders:
                ender.callback(None)

    def listed(self) -> Deferred[None]:
        """Fire when no listing is under way."""
        ender: Deferred[None] = Deferred()
        if self._listing:
            self._enders.append(ender)
        else:
            ender.callback(None)
        return ender

    async def free(self) -> int | None:
        """Return the octets that are free for guests; see `parse_free`."""
        return parse_free(await self.run("info"))
