"""
Keep the repository small: put objects in use into one pack, and remove the others.

git does the work in processes of its own, at the lowest priority, by plumbing commands that take no decision: its own
``gc`` may remove an object that is written again at that moment. Here a pack is removed only if no process has touched
it since the new one was begun: libgit2 and git touch a pack, or a loose object, instead of writing an object that is in
it already.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import StoreError
from jitsu_tw.store.bulk import environment

if TYPE_CHECKING:
    from pathlib import Path

    from jitsu_tw.store.history import History

#: The repository is tidied from this many loose objects on, or octets in them.
MOST_LOOSE: Final = 5000
MOST_OCTETS: Final = 64 << 20

#: It is also tidied when a random one of the 256 folders of loose objects has this many objects, or octets: objects of
#: refused pushes are not counted otherwise.
MOST_IN_FOLDER: Final = 80
MOST_OCTETS_IN_FOLDER: Final = 1 << 20

#: Seconds for which an unreferenced object is kept: a reference may be about to be written.
GRACE: Final = 120

#: Seconds of tolerance: libgit2 does not touch a pack again that it has just touched (its FRESHEN_FREQUENCY is 2 s).
SLACK: Final = 10.0


class Tidy:
    """Tidies one repository. `pack`, `drop` and `prune` are to be called in this order, each in any thread."""

    def __init__(self, history: History) -> None:
        """Tidy the repository of *history*."""
        self._history = history
        self._began = 0.0
        self._new = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    @property
    def is_due(self) -> bool:
        """Whether the repository should be tidied now."""
        history = self._history
        return history.loose >= MOST_LOOSE or history.octets >= MOST_OCTETS or self._is_littered()

    def _is_littered(self) -> bool:
        """Return whether pushes have left many uncounted objects, judging by a random folder that no sender knows."""
        if abs(time.time() - self._began) < 2 * GRACE:
            return False  # objects younger than `GRACE` would not be removed
        sizes: list[int] = []
        folder = self._history.path / "objects" / f"{secrets.randbelow(256):02x}"
        with contextlib.suppress(OSError), os.scandir(folder) as found:
            sizes = [file.stat().st_size for file in found]
        return len(sizes) >= MOST_IN_FOLDER or sum(sizes) >= MOST_OCTETS_IN_FOLDER

    def pack(self) -> None:
        """
        Write a pack of all objects in use. Other threads and processes may write meanwhile.

        Raises:
            StoreError: git is not installed, or failed.
        """
        history = self._history
        self._began = time.time()
        history.loose = history.octets = 0
        recent = "".join(f"{commit}\n" for _, commit in history.recent)
        self._new = self._git("pack-objects", "--all", "--revs", "-q", "objects/pack/pack", text=recent).strip()

    def drop(self) -> None:
        """Remove the packs that the new one replaces. No thread of this process may write meanwhile."""
        folder = self._history.path / "objects" / "pack"
        for file in folder.glob("tmp_*"):
            self._remove_if_old(file)
        for index in folder.glob("pack-*.idx"):
            pack, keep = index.with_suffix(".pack"), index.with_suffix(".keep")
            if keep.exists():
                self._remove_if_old(keep)
            elif self._new and self._new not in index.name and pack.stat().st_mtime < self._began - SLACK:
                for file in (index, pack, index.with_suffix(".rev")):
                    file.unlink(missing_ok=True)

    def prune(self) -> None:
        """
        Remove loose objects that are in the pack, or unreferenced for `GRACE` seconds. Others may write meanwhile.

        Raises:
            StoreError: git failed.
        """
        self._git("prune-packed", "-q")
        self._git("prune", f"--expire={GRACE}.seconds.ago", *(commit for _, commit in self._history.recent))

    def stop(self) -> None:
        """Stop git, and do no more; the repository is consistent at any moment."""
        self._ended = True
        if self._child is not None:
            self._child.kill()

    def _remove_if_old(self, file: Path) -> None:
        if file.stat().st_mtime < self._began - GRACE:
            file.unlink(missing_ok=True)

    def _git(self, *arguments: str, text: str = "") -> str:
        """Return the output of git with the input *text*; "" when tidying was stopped."""
        program = shutil.which("git")
        if program is None:
            raise StoreError("git is not installed, so the state is not packed, and grows")
        if self._ended:
            return ""
        path = self._history.repository.path
        command = ["nice", "-n", "19", program, *arguments]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(  # noqa: S603
            command, cwd=path, env=environment(path), stdin=pipe, stdout=pipe, stderr=pipe
        )
        out, err = self._child.communicate(text.encode())
        if self._child.returncode and not self._ended:
            raise StoreError(f"{path}: git {arguments[0]}: {err.decode(errors='replace').strip()}")
        return out.decode()
