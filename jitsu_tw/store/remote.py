"""
A repository elsewhere, fetched from and pushed to by git itself: it knows everybody's ssh, and who they are.

A process of its own for each call, off the reactor's thread, with a deadline. Nobody is asked for a password.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import StoreError
from jitsu_tw.processes import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from jitsu_tw.processes import Process

#: So many seconds a call may take.
DEADLINE: Final = 30.0

#: So many seconds git has to end when it was asked to, before it is killed: it removes its locks.
GRACE: Final = 2.0

#: What git ends with when it cannot go on (git(1)); so counts what was made to end.
FATAL: Final = 128

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
        self._running: Process | None = None
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
        try:
            self._running = run(
                self._reactor, ["git", *PLAIN, *arguments], program=program, path=str(self._path),
                within=DEADLINE, grace=GRACE, env=_environment(self._path),
            )  # fmt: skip
        except OSError as error:
            message = f"git cannot be run: {error}"
            raise StoreError(message) from error
        ended = await self._running.ended
        self._running = None
        why = "" if not ended.late else "we end" if self._ended else f"no end after {DEADLINE:.0f} seconds"
        code = FATAL if ended.code is None or ended.late else ended.code
        return code, "\n".join(filter(None, (ended.said, why))) or f"git ended with {code}"


def _environment(path: Path) -> dict[str, str]:
    """Return ours, for a git that works on the repository at *path* and asks nobody."""
    kept = {"GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key in kept}
    if "GIT_SSH" not in environment:
        environment.setdefault("GIT_SSH_COMMAND", SSH)
    return environment | {"GIT_DIR": str(path.absolute()), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
