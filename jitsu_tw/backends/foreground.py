"""
Programs in the foreground that Jitsu keeps: one is a machine, which runs as long as its program does.

They outlive Jitsu, as virtual machines do. A later Jitsu knows them by the variable `MARK` of their environment, which
has the uuid; no file can be out of date. Each leads a group of its own, which is ended with it. They write to where
Jitsu's own standard output and standard error go.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import ENDED, Power
from jitsu_tw.processes import detached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.python.failure import Failure

    from jitsu_tw.backends.programs import Programs

#: The variable of its environment that a program is known by.
MARK: Final = "JITSU_VM"

#: Seconds for which the programs that were found are not looked for again.
FOUND_FOR: Final = 1.0

#: States of a process in proc(5): stopped, and ended.
_STOPPED: Final = frozenset("Tt")
_ENDED: Final = frozenset("ZXx")


def found() -> dict[str, int]:
    """
    Return the programs that run: their process ids, by uuid.

    Only leaders of sessions are looked at; of several with one uuid, the oldest has begun the others.
    """
    leaders = [(_began(pid), uuid, pid) for pid in _processes() if (uuid := _mark(pid))]
    return {uuid: pid for _, uuid, pid in sorted(leaders, reverse=True)}


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _mark(pid: int) -> str:
    """Return the uuid of the machine that a process is; empty if it is none, or one that `_is_own` does not trust."""
    try:
        if os.getsid(pid) != pid or not _is_own(pid):
            return ""
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return next((one.partition("=")[2] for one in variables if one.startswith(f"{MARK}=")), "")


def _is_own(pid: int) -> bool:
    """
    Return whether this user has begun a process, outside of containers.

    Root can read the environment of all users' processes, and these write there what they like. The real user counts: a
    set-user-ID program (credentials(7)) has the environment that its caller gave it.
    """
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    user = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
    is_here = Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    return int(user) == os.getuid() and is_here


def _stat(pid: int) -> list[str]:
    """Return the fields of a process in proc(5), from its state on; an ended one's if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", *["0"] * 19]


def _state(pid: int) -> str:
    """Return the state of a process, a letter of proc(5)."""
    return _stat(pid)[0]


def _began(pid: int) -> int:
    """Return when a process began, in ticks since the host's start (field 22)."""
    return int(_stat(pid)[19])


class _Reaped(ProcessProtocol):
    """A program that this process has begun: Twisted reaps it; its end is told by its descriptor."""

    log = Logger()

    def __init__(self, name: str) -> None:
        """Take the program's name, for the log."""
        self._name = name

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        """Log an end that is none in order."""
        if status := getattr(reason.value, "exitCode", None):
            self.log.warn("{name} ended with status {status}", name=self._name, status=status)


@implementer(IReadDescriptor)
@attrs.define(eq=False)
class _Kept:
    """
    A program that runs: the descriptor of its process, which can be read when that has ended.

    Attributes:
        pid: of the leader of its group.
        handle: the descriptor.
        over: is called when it has ended.
    """

    pid: int
    handle: int
    over: Callable[[], None]

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.handle

    def doRead(self) -> None:  # noqa: N802
        """Handle its end."""
        self.over()

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        """Do nothing: nothing is connected."""

    def logPrefix(self) -> str:  # noqa: N802
        """Return the name for Twisted's log."""
        return "exec"


class Foreground:
    """The programs of a backend that are kept."""

    def __init__(self, programs: Programs, changed: Callable[[str, str], None], reactor: Any) -> None:
        """
        Begin with none.

        Args:
            programs: know the environment.
            changed: is called with a uuid and a reason when a program has ended.
            reactor: begins and observes them.
        """
        self._programs, self._changed, self._reactor = programs, changed, reactor
        self._kept: dict[str, _Kept] = {}
        self._found: Mapping[str, int] = {}
        self._found_until = 0.0

    def find(self, uuid: str) -> None:
        """Find the program of a machine that an earlier Jitsu has begun, if it runs."""
        if uuid in self._kept:
            return
        now = self._reactor.seconds()
        if now >= self._found_until:
            self._found, self._found_until = found(), now + FOUND_FOR
        if uuid in self._found:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(self._found[uuid])
                # From here on the number cannot mean another process.
                if _mark(self._found[uuid]) == uuid:
                    self._keep(uuid, self._found[uuid], handle)
                else:
                    os.close(handle)

    def _keep(self, uuid: str, pid: int, handle: int) -> None:
        """Observe a process."""
        kept = self._kept[uuid] = _Kept(pid, handle, lambda: self._over(uuid))
        self._reactor.addReader(kept)

    def power(self, uuid: str) -> Power:
        """Return whether the program runs, is stopped by a signal (paused), or has ended."""
        kept = self._kept.get(uuid)
        state = "Z" if kept is None else _state(kept.pid)
        return Power.OFF if state in _ENDED else Power.PAUSED if state in _STOPPED else Power.RUNNING

    def start(self, uuid: str, name: str, argv: Sequence[str]) -> None:
        """
        Begin the program of the VM *name*.

        Raises:
            BackendError: there is no such program, or it cannot be begun now.
        """
        if uuid in self._kept:
            self._over(uuid)
        program = self._programs.resolve(argv[0])
        environment = {**self._programs.environment, MARK: uuid}
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
            try:
                words = detached([program, *argv[1:]])
                process = self._reactor.spawnProcess(
                    _Reaped(name), words[0], words, env=environment, childFDs={0: nothing, 1: 1, 2: 2}
                )
            finally:
                os.close(nothing)
        except OSError as error:
            raise BackendError(f"{argv[0]} cannot be run: {error.strerror}") from error
        self._keep(uuid, process.pid, os.pidfd_open(process.pid))

    def begins(self, uuid: str) -> bool:
        """Return whether the program, which has been begun, does not lead its group yet."""
        kept = self._kept.get(uuid)
        with contextlib.suppress(ProcessLookupError):
            return kept is not None and _state(kept.pid) not in _ENDED and os.getsid(kept.pid) != kept.pid
        return False

    def signal(self, uuid: str, number: int) -> None:
        """Send a signal to all processes of the program's group; one that has ended is no error."""
        kept = self._kept.get(uuid)
        if kept is None:
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(kept.pid, number)
            except ProcessLookupError:  # it does not lead its group yet, or has ended
                signal.pidfd_send_signal(kept.handle, number)

    def _over(self, uuid: str) -> None:
        """Handle the end of a program: the rest of its group is killed."""
        self.signal(uuid, signal.SIGKILL)
        self._forget(uuid)
        self._changed(uuid, ENDED)

    def _forget(self, uuid: str) -> None:
        kept = self._kept.pop(uuid)
        self._reactor.removeReader(kept)
        os.close(kept.handle)

    def close(self) -> None:
        """Observe the programs no longer; they go on."""
        for uuid in tuple(self._kept):
            self._forget(uuid)
