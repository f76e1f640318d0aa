"""
The lock that only one Jitsu can have on a state: a record lock (fcntl(2)), which ends with its process.

A process that only reads the state, or pushes to it, needs no lock.
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

#: Seconds to wait for the lock: a Jitsu that stops writes the state before it ends.
PATIENCE: Final = 5.0

#: Seconds between two attempts.
_PAUSE: Final = 0.05

#: `struct flock` of Linux on 64 bits: type, whence, start, length, pid.
_FLOCK: Final = struct.Struct("hhqqi4x")

#: Errors of a repository that cannot be written to: it needs no lock.
_NO_LOCK: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC})


class Lock:
    """The lock of the state at *path*."""

    def __init__(self, path: Path) -> None:
        """Lock nothing yet."""
        self._path = path
        self._file = -1

    def take(self) -> None:
        """
        Take the lock; wait up to `PATIENCE` seconds while another process has it.

        Raises:
            StoreError: another Jitsu runs with this state.
        """
        try:
            self._file = os.open(self._path / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno in _NO_LOCK:
                return  # the first write fails with the reason
            raise
        if not lock_within(PATIENCE, self._file):
            from jitsu_tw.errors import StoreError  # noqa: PLC0415 -- the hooks load this module, and not that

            pid = holder(self._path) or "unknown"
            message = f"{self._path} is in use by the Jitsu of process {pid}: end that, or use another persistdb"
            raise StoreError(message)

    def release(self) -> None:
        """Release the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def lock_within(patience: float, file: int, *region: int) -> bool:
    """
    Lock *file*, or its *region* (length and start, in octets), within *patience* seconds.

    Returns:
        whether it is locked.

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
    Return the process id of the Jitsu that runs with the state at *path*.

    A process that has the lock must not call this: it would lose the lock by closing the file (fcntl(2)).

    Returns:
        the process id; 0 if it is in another namespace; None if no Jitsu runs.
    """
    try:
        file = os.open(path / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, query))
    finally:
        os.close(file)
    return pid if kind != fcntl.F_UNLCK else None
