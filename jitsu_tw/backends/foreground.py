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
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.logger import Logger

from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import ENDED, Power
from jitsu_tw.processes import Descriptor, begin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from subprocess import Popen

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


@attrs.define(eq=False)
class _Kept:
    """
    A program that runs.

    Attributes:
        pid: of the leader of its group.
        handle: tells its end.
    """

    pid: int
    handle: Descriptor


class Foreground:
    """The programs of a backend that are kept."""

    log = Logger()

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
                self._keep(uuid, self._found[uuid])
                # From here on the number cannot mean another process.
                if _mark(self._found[uuid]) != uuid:
                    self._forget(uuid)

    def _keep(self, uuid: str, pid: int, over: Callable[[], None] = lambda: None) -> None:
        """Observe a process; *over* is called when it has ended."""

        def ended() -> None:
            if _state(pid) in _ENDED:  # when the reactor ends, it tells each reader that its connection is lost
                self._over(uuid)
                over()

        self._kept[uuid] = _Kept(pid, Descriptor(self._reactor, FileIO(os.pidfd_open(pid)), ended))

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
            words = [program, *argv[1:]]
            process = begin(words, env=environment, cwd="/", start_new_session=True)
            try:
                self._keep(uuid, process.pid, partial(self._reap, name, process))
            except OSError:
                process.kill()
                raise
        except OSError as error:
            raise BackendError(f"{argv[0]} cannot be run: {error.strerror}") from error

    def _reap(self, name: str, process: Popen[bytes]) -> None:
        if (status := process.wait()) > 0:
            self.log.warn("{name} ended with status {status}", name=name, status=status)

    def signal(self, uuid: str, number: int) -> None:
        """Send a signal to all processes of the program's group; one that has ended is no error."""
        if uuid in self._kept:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._kept[uuid].pid, number)

    def _over(self, uuid: str) -> None:
        """Handle the end of a program: the rest of its group is killed."""
        self.signal(uuid, signal.SIGKILL)
        self._forget(uuid)
        self._changed(uuid, ENDED)

    def _forget(self, uuid: str) -> None:
        self._kept.pop(uuid).handle.close()

    def close(self) -> None:
        """Observe the programs no longer; they go on."""
        for uuid in tuple(self._kept):
            self._forget(uuid)
