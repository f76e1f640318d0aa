"""
Fetch from and push to a remote repository by git itself, which has the operator's ssh settings and credentials.

Each call is a process of its own with a deadline, and does not block the reactor. git never prompts for a password.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import StoreError
from jitsu_tw.processes import Process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

#: The most seconds of one call.
DEADLINE: Final = 30.0

#: Seconds from SIGTERM to SIGKILL: git removes its locks in them.
GRACE: Final = 2.0

#: git's exit status for fatal errors (git(1)); also used for a call that was stopped.
FATAL: Final = 128

#: ssh without prompts; it gives up an unresponsive host before `DEADLINE`.
SSH: Final = "ssh -o BatchMode=yes -o ConnectTimeout=10"

#: git without this repository's hooks and without housekeeping (`tidy` does that).
PLAIN: Final = ("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "maintenance.auto=false")

#: git's messages for a branch that another node has moved meanwhile, or is moving (git's transport.c, builtin/
#: receive-pack.c, refs.c): then the caller fetches it, and tries again.
OVERTAKEN: Final = ("[rejected]", "cannot lock ref", "failed to update ref", "incorrect old value",
                    "reference already exists")

REMEDY: Final = "it should be a bare repository (git init --bare) that Jitsu may write to, and no Jitsu's state"


class Remote:
    """The remote repository at *url*, for the local one at *path*."""

    def __init__(self, url: str, path: Path, reactor: Any) -> None:
        """Store the arguments; nothing is run yet."""
        self.url, self._path, self._reactor = url, path, reactor
        self._running: Process | None = None
        self._ended = False

    async def fetch(self, theirs: str, ours: str) -> bool:
        """
        Fetch the remote branch *theirs* as the local one *ours*.

        Returns:
            whether there is such a remote branch.

        Raises:
            StoreError: git failed; with git's message, and the remedy.
        """
        code, output = await self._git("fetch", "-q", "--no-tags", "--no-write-fetch-head", "--", self.url,
                                       f"+{theirs}:{ours}")  # fmt: skip
        if code and f"couldn't find remote ref {theirs}" in output:
            return False
        if code:
            raise self._error(output)
        return True

    async def push(self, branches: Mapping[str, str]) -> bool:
        """
        Push *branches*, the remote ones by the local ones. The remote ones only advance: no commit of theirs is lost.

        Returns:
            whether all were pushed; False if another node has moved one of them.

        Raises:
            StoreError: git failed; with git's message, and the remedy.
        """
        code, output = await self._git("push", "-q", "--porcelain", "--no-verify", "--", self.url,
                                       *(f"{ours}:{theirs}" for ours, theirs in branches.items()))  # fmt: skip
        if code == 0:
            return True
        refusals = [line for line in output.splitlines() if line.startswith("!")]
        if refusals and all(any(words in line for words in OVERTAKEN) for line in refusals):
            return False
        raise self._error(output)

    def stop(self) -> None:
        """Stop the present call, and refuse further ones."""
        self._ended = True
        if self._running is not None:
            self._running.end()

    def _error(self, output: str) -> StoreError:
        reason = "; ".join(line.strip() for line in output.splitlines() if line.strip())
        return StoreError(f"{self.url}: {reason}: {REMEDY}")

    async def _git(self, *arguments: str) -> tuple[int, str]:
        """Return git's exit status and all its output."""
        program = shutil.which("git")
        if program is None:
            raise StoreError("git is not installed, so nothing is shared")
        if self._ended:
            raise StoreError("Jitsu ends")
        try:
            self._running = Process(
                self._reactor, ["git", *PLAIN, *arguments], program=program, path=str(self._path),
                within=DEADLINE, grace=GRACE, env=_environment(self._path),
            )  # fmt: skip
        except OSError as error:
            raise StoreError(f"git cannot be run: {error}") from error
        ended = await self._running.ended
        self._running = None
        why = "" if not ended.late else "Jitsu ends" if self._ended else f"no end after {DEADLINE:.0f} seconds"
        code = FATAL if ended.code is None or ended.late else ended.code
        return code, "\n".join(filter(None, (ended.said, why))) or f"git ended with {code}"


def _environment(path: Path) -> dict[str, str]:
    """Return this process's environment, changed for a git that works on the repository at *path* without prompts."""
    kept = {"GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key in kept}
    if "GIT_SSH" not in environment:
        environment.setdefault("GIT_SSH_COMMAND", SSH)
    return environment | {"GIT_DIR": str(path.absolute()), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
