"""
``jitsuctl git-shell``: what a key in ``authorized_keys`` may do by ssh: clone, fetch and push, and one repository only.

sshd runs it as the key's forced command, with what the client asked for in ``SSH_ORIGINAL_COMMAND`` (sshd(8)).
"""

from __future__ import annotations

import os
import pwd
import re
import resource
import shlex
import shutil
import signal
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pygit2

from jitsu_tw.ctl.show import FailedError
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.history import MAIN, PUSH_TAKES
from jitsu_tw.store.lock import lock_within

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The search path for git and its hooks, whatever the client or its user's profile has set.
PATH: Final = "/usr/local/bin:/usr/bin:/bin"

#: What git's clients ask a server for (git(1): upload-pack is for clone and fetch, receive-pack for push).
VERBS: Final = ("upload-pack", "receive-pack")

#: What each process of a push with a VM's key may use: octets of memory, seconds of the processor, octets of a file. A
#: delta of a few octets can stand for an object of gigabytes, which git makes in memory before any hook runs.
LIMITS: Final = ((resource.RLIMIT_DATA, 1 << 29), (resource.RLIMIT_CPU, 30), (resource.RLIMIT_FSIZE, 1 << 26))

#: One push with a VM's key runs at a time; seconds that another one waits.
PATIENCE: Final = 60.0

#: The file in the state with a record lock for each push under way, at an offset made of the VM's name.
PUSHES: Final = "jitsu.pushes"


@click.command(name="git-shell")
@click.argument("state", type=click.Path(path_type=Path))
@click.option("--vm", metavar="NAME", help="The VM that the key may steer, and no other.")
def git_shell(state: Path, vm: str | None) -> None:
    """
    Serve one client's git on STATE and nothing else: the forced command of a key in authorized_keys.

    restrict,command="/opt/jitsu/bin/jitsuctl git-shell /var/lib/jitsu/state.git --vm www" ssh-ed25519 ...
    """
    if vm == "":
        raise FailedError("--vm names no VM; leave it out of an operator's key")
    arguments = to_run(os.environ.get("SSH_ORIGINAL_COMMAND", ""), state, vm or "")
    git = shutil.which("git", path=PATH)
    if git is None:
        raise FailedError(f"there is no git in {PATH}; install it")
    if vm and "receive-pack" in arguments:
        lock_pushes(state, vm)
        _limit()
    os.execve(git, arguments, environment(os.environ, vm or ""))  # noqa: S606


def lock_pushes(state: Path, vm: str, patience: float = PATIENCE) -> None:
    """
    Lock the pushes of *vm* to *state*, within *patience* seconds, for as long as this process and what it becomes runs.

    Raises:
        FailedError: another push is under way all that time, or nothing can be written there.
    """
    try:
        file = os.open(state / PUSHES, os.O_RDWR | os.O_CREAT, 0o600)
        os.set_inheritable(file, True)  # noqa: FBT003 -- for git; to close it would end the lock (fcntl(2))
        if not lock_within(patience, file, 1, zlib.crc32(vm.encode())):
            raise FailedError(f"another push of {vm} is under way; try again when it has ended")
    except OSError as error:
        raise FailedError(f"{state / PUSHES}: {error.strerror}") from error


def _limit() -> None:
    """Limit this process and those that it starts to `LIMITS`; it ends after `PUSH_TAKES` seconds, also as git."""
    for what, most in LIMITS:
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
    signal.setitimer(signal.ITIMER_REAL, PUSH_TAKES)  # a client that is not there any more must not keep the lock


def to_run(asked: str, state: Path, vm: str = "") -> list[str]:
    """
    Return the command that serves what a client has *asked* for.

    Args:
        asked: the client's command line, as ``git-upload-pack '/var/lib/jitsu/state.git'``.
        state: the repository.
        vm: the VM that the client may steer; empty for an operator.

    Raises:
        FailedError: it is something else, or another repository.
    """
    if vm and ("/" in vm or not pygit2.reference_is_valid_name(f"{REQUEST}{vm}/x")):
        raise FailedError(f"--vm {vm!r}: no branch can be called so; rename the VM")
    try:
        words = shlex.split(asked)
    except ValueError:  # a quotation that has no end
        words = []
    if words[:1] == ["git"]:
        words = [f"git-{words[1]}", *words[2:]] if len(words) > 1 else words
    verb = words[0].removeprefix("git-") if words else ""
    if len(words) != 2 or words[0] != f"git-{verb}" or verb not in VERBS:
        raise FailedError("this key is for git only: clone, fetch, and push")
    if words[1].rstrip("/") != str(state).rstrip("/"):
        raise FailedError(f"this key is for {state} only; name it so, behind the host and a colon")
    if not state.is_dir():
        raise FailedError(f"{state} is not there; Jitsu makes it when it starts with that persistdb")
    return ["git", *_hidden(vm), verb, str(state)]


def _hidden(vm: str) -> list[str]:
    """Return the settings that hide what a VM's key need not see: requests of others, and what was rejected of them."""
    if not vm:
        return []
    shown = {"uploadpack": ("refs", f"!{MAIN}", f"!{REQUEST}{vm}", f"!{REJECTED}{vm}"),
             "receive": (REJECTED.rstrip("/"), f"!{REJECTED}{vm}")}  # fmt: skip
    return [word for key, refs in shown.items() for ref in refs for word in ("-c", f"{key}.hideRefs={ref}")]


def environment(given: Mapping[str, str], vm: str = "") -> dict[str, str]:
    """Return git's environment. Of the *given* one, which a client may have sent, only git's protocol version stays."""
    user = pwd.getpwuid(os.geteuid())
    made = {"PATH": PATH, "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "LANG": "C.UTF-8"}
    protocol = given.get("GIT_PROTOCOL", "")
    if re.fullmatch(r"version=[0-9]", protocol):
        made["GIT_PROTOCOL"] = protocol
    return made | ({"JITSU_VM": vm} if vm else {})
