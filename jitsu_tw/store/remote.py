"""
A repository elsewhere, fetched from and pushed to by git itself: it knows everybody's ssh, and who they are.

A process of its own for each call, off the reactor's thread, with a deadline. Nobody is asked for a password.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

from jitsu_tw.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from twisted.python.failure import Failure

#: So many seconds a call may take.
DEADLINE: Final = 30.0

#: So many seconds git has to end when it was asked to, before it is killed: it removes its locks.
GRACE: Final = 2.0

#: So many seconds after its end, what it said is read no more.
LAST_WORDS: Final = 0.5

#: Never ask anybody; a host that does not answer is given up before git is.
SSH: Final = "ssh -o BatchMode=yes -o ConnectTimeout=10"

#: Neither hooks of ours nor housekeeping (`tidy` does that).
PLAIN: Final = ("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "maintenance.auto=false")

#: What git says of a branch that somebody else has moved meanwhile, or is moving (git's transport.c, builtin/
#: receive-pack.c, refs.c): then it is fetched, and tried again.
OVERTAKEN: Final = ("[rejected]", "cannot lock ref", "failed to update ref", "incorrect old value",
                    "reference already exists")

REMEDY: Final = "it should be a bare repository (git init --bare) that we may write to, and no Jitsu's state"


class Remote:
    """The repository at *url*, and the one at *path*, which is ours."""

    def __init__(self, url: str, path: Path, reactor: Any) -> None:
        """Nothing is done yet."""
        self.url, self._path, self._reactor = url, path, reactor
        self._running: _Git | None = None
        self._ended = False

    async def fetch(self, theirs: str, ours: str) -> bool:
        """
        Let our branch *ours* be what *theirs* is; say whether there is such a one.

        Raises:
            StoreError: git's own words, and the remedy.
        """
        code, said = await self._git("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--", self.url,
                                     f"+{theirs}:{ours}")  # fmt: skip
        if code and f"couldn't find remote ref {theirs}" in said:
            return False
        if code:
            raise self._trouble(said)
        return True

    async def push(self, branches: Mapping[str, str]) -> bool:
        """
        Let branches of theirs be what ours are; say whether all are. None of theirs is lost: each only goes forward.

        Raises:
            StoreError: git's own words, and the remedy.
        """
        code, said = await self._git("push", "-q", "--porcelain", "--no-verify", "--", self.url,
                                     *(f"{ours}:{theirs}" for ours, theirs in branches.items()))  # fmt: skip
        if code == 0:
            return True
        refusals = [line for line in said.splitlines() if line.startswith("!")]
        if refusals and all(any(words in line for words in OVERTAKEN) for line in refusals):
            return False
        raise self._trouble(said)

    def stop(self) -> None:
        """End what is under way, and begin no more."""
        self._ended = True
        if self._running is not None:
            self._running.end()

    def _trouble(self, said: str) -> StoreError:
        words = "; ".join(line.strip() for line in said.splitlines() if line.strip())
        return StoreError(f"{self.url}: {words}: {REMEDY}")

    async def _git(self, *arguments: str) -> tuple[int, str]:
        """Return how git ended, and all that it said."""
        program = shutil.which("git")
        if program is None:
            message = "git is not installed, so nothing is shared"
            raise StoreError(message)
        if self._ended:
            message = "we end"
            raise StoreError(message)
        git = _Git(self._reactor)
        try:
            self._reactor.spawnProcess(git, program, ["git", *PLAIN, *arguments], env=_environment(self._path),
                                       path=str(self._path))  # fmt: skip
        except OSError as error:
            message = f"git cannot be run: {error}"
            raise StoreError(message) from error
        self._running = git
        try:
            return await git.ended
        finally:
            self._running = None


def _environment(path: Path) -> dict[str, str]:
    """Return ours, for a git that works on the repository at *path* and asks nobody."""
    kept = {"GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key in kept}
    if "GIT_SSH" not in environment:
        environment.setdefault("GIT_SSH_COMMAND", SSH)
    return environment | {"GIT_DIR": str(path.absolute()), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


class _Git(ProcessProtocol):
    """
    One git, until it ends or its time is up.

    What it has begun, an ssh that others share perhaps, may outlive it and keep its pipes: nobody waits for these.
    """

    transport: Any

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._said: list[bytes] = []
        self._late = ""
        self._code = 128
        self._timer: Any = None
        self.ended: Deferred[tuple[int, str]] = Deferred()

    def connectionMade(self) -> None:  # noqa: N802
        self.transport.closeStdin()
        self._timer = self._reactor.callLater(DEADLINE, self.end, f"no end after {DEADLINE:.0f} seconds")

    def outReceived(self, data: bytes) -> None:  # noqa: N802
        self._said.append(data)

    def errReceived(self, data: bytes) -> None:  # noqa: N802
        self._said.append(data)

    def end(self, reason: str = "we end") -> None:
        """Ask git to end; a while later, make it."""
        self._late = reason
        if self._timer.active():
            self._timer.cancel()
        self._signal("TERM")
        self._timer = self._reactor.callLater(GRACE, self._signal, "KILL")

    def _signal(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def processExited(self, reason: Failure) -> None:  # noqa: N802
        code: Any = getattr(reason.value, "exitCode", None)
        self._code = 128 if code is None or self._late else code
        if self._timer.active():
            self._timer.cancel()
        self._timer = self._reactor.callLater(LAST_WORDS, self.transport.loseConnection)

    def processEnded(self, _: Failure) -> None:  # noqa: N802
        if self._timer.active():
            self._timer.cancel()
        said = b"".join(self._said).decode(errors="replace")
        words = "\n".join(filter(None, (said, self._late))) or f"git ended with {self._code}"
        self.ended.callback((self._code, words))
