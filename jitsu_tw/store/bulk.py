"""
Write many changes at once: git's own importer writes them as one pack, in its own process, twenty times as fast.

The importer (git 2.39) looks at all entries of a folder for each path in it: for a folder of 100,000 VMs that takes
minutes. So each part, a VM's folder, is imported into one of `SHARDS` folders, and the caller makes the large folder of
the parts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pygit2

from jitsu_tw.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    #: A folder as it is, and its new values by the paths below it, None for one that is removed; or no folder, and the
    #: value of a file with an empty path.
    Part = tuple[pygit2.Oid | None, Iterable[tuple[str, str | None]]]

#: A temporary branch for the import.
_BRANCH: Final = "refs/jitsu/import"

#: How many folders the parts are in: about the square root of the largest number of parts.
SHARDS: Final = 512


def possible() -> bool:
    """Return whether git is installed."""
    return shutil.which("git") is not None


def environment(repository: str) -> dict[str, str]:
    """Return the environment for a git that works on *repository* and ignores the settings of users and the system."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_DIR": repository,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "LC_ALL": "C",
    }


def write(repository: pygit2.Repository, parts: Iterable[Part]) -> list[tuple[int, tuple[pygit2.Oid, int]]]:
    """
    Write *parts*; None removes a path and all below it.

    Returns:
        the number, the object and the mode of each part that is not empty. No commit refers to them.

    Raises:
        StoreError: git failed; with git's message.
    """
    if _BRANCH in repository.references:
        repository.references.delete(_BRANCH)
    with subprocess.Popen(
        ["git", "-c", "pack.compression=1", "fast-import", "--quiet", "--done", "--depth=0"],  # noqa: S607
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(repository.path),
    ) as run:  # fmt: skip
        assert run.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its standard error has the reason
            run.stdin.writelines(_commands(parts))
        _, errors = run.communicate()
    if run.returncode:
        raise StoreError(f"{repository.path}: git fast-import: {errors.decode(errors='replace').strip()}")
    commit = repository.references[_BRANCH].peel(pygit2.Commit)
    repository.references.delete(_BRANCH)
    return [
        (int(entry.name or ""), (entry.id, entry.filemode))
        for shard in commit.tree
        for entry in repository[shard.id].peel(pygit2.Tree)
    ]


def _commands(parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield the input of git-fast-import(1)."""
    yield f"commit {_BRANCH}\ncommitter Jitsu <jitsu@localhost> 0 +0000\ndata 0\n".encode()
    for number, (tree, values) in enumerate(parts):
        part = b"%d/%d" % (number % SHARDS, number)
        if tree is not None:
            yield b'M 040000 %b "%b"\n' % (str(tree).encode(), part)
        for path, value in values:
            quoted = part + (f"/{path}".replace("\\", "\\\\").replace('"', '\\"').encode() if path else b"")
            if value is None:
                yield b'D "%b"\n' % quoted
            else:
                data = f"{value}\n".encode()
                yield b'M 100644 inline "%b"\ndata %d\n%b\n' % (quoted, len(data), data)
    yield b"done\n"
