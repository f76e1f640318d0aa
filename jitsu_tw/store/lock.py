"""
The lock of the one Jitsu that runs with a state: a record lock (fcntl(2)), which ends with the process that has it.

Whoever only reads the state, or pushes to it, needs no lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

#: The file, in the repository.
FILE: Final = "jitsu.running"

#: In seconds: a Jitsu that was told to end writes the state down before it does.
PATIENCE: Final = 5.0

#: In seconds, between two tries.
_PAUSE: Final = 0.05

#: `struct flock` of Linux on 64 bits: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")

#: Where nothing can be written, there is nothing to lock.
_NO_LOCK: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC})


class Lock:
    """The lock of the state at *path*."""

    def __init__(self, path: Path) -> None:
        """Nothing is locked yet."""
        self._path = path
        self._file = -1

    def take(self) -> None:
        """
        Take the lock, within `PATIENCE` if another process has it.

        Raises:
            StoreError: another Jitsu runs with this state.
        """
        try:
            self._file = os.open(self._path / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno in _NO_LOCK:
                return  # the first write says what is wrong
            raise
        if not lock_within(PATIENCE, self._file):
            from jitsu_tw.errors import StoreError  # noqa: PLC0415 -- the hooks load this module, and not that

            pid = holder(self._path) or "unknown"
            message = f"{self._path} is in use by the Jitsu of process {pid}: end that, or use another persistdb"
            raise StoreError(message)

    def release(self) -> None:
        """Let another process have it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def lock_within(patience: float, file: int, *region: int) -> bool:
    """
    Return whether *file*, or its *region* (length and start, in octets), could be locked within *patience* seconds.

    Raises:
        OSError: it cannot be locked at all.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *region)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
        else:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)


def holder(path: Path) -> int | None:
    """
    Return the process id of the Jitsu that runs with the state at *path*; None if none does, 0 if it is not to be seen.

    A process that has the lock must not ask: it would lose the lock by closing the file (fcntl(2)).
    """
    try:
        file = os.open(path / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
    finally:
        os.close(file)
    return pid if kind != fcntl.F_UNLCK else None
