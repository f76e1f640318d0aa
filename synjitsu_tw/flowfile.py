"""
The file that keeps the flows while Synjitsu is restarted, even by ``kill -9``.

It has one record of fixed length for each slot of `Flows`, so that its size is bounded, and each change is one small
write to the kernel's cache, in place, at most once a second; what a killed process has not written yet is lost. A
record has a checksum: one that was not written whole, or by something else, is ignored. The file is not forced to a
disk, and not read after a reboot of the host: only guests that are saved have their connections then, and most clients
have given theirs up. Jitsu could keep the flows in place of a file; but it may be restarted together with Synjitsu, and
does not know the neighbours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger

from synjitsu_tw.flows import ALIVE, TAGS, Limits, Stage, TcpFlow
from synjitsu_tw.table import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Version of IP, stage, opened by the VM, sides that have sent FIN, the VM's address, the far end's, ports, last sign
#: of life, beginning of the stage, the neighbour's MAC, length of the VLAN tags, these, interface; then the checksum.
_RECORD: Final = struct.Struct(f">4B16s16sHHdd6sB{TAGS}s15s")
_CHECKSUM: Final = struct.Struct(">I")

#: Octets of a record with its checksum.
SIZE: Final = _RECORD.size + _CHECKSUM.size

#: The first record: the format, and the boot of the host (random(4)).
_FORMAT: Final = b"Synjitsu's flows, 1\n"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

#: Stages of flows that are saved.
SAVED: Final = ALIVE | {Stage.LOST}


def pack(flow: TcpFlow, elapsed: float = 0.0) -> bytes:
    """Return the record of a flow; *elapsed* is the clock of the file minus that of the flow, in seconds."""
    peer = flow.peer
    record = _RECORD.pack(
        4 if len(flow.ip) == 4 else 6,
        flow.stage.value,
        flow.by_vm,
        flow.finished,
        flow.ip,
        flow.remote,
        flow.port,
        flow.remote_port,
        flow.at + elapsed,
        flow.since + elapsed,
        peer.mac,
        len(peer.tags),
        peer.tags,
        peer.port.encode(),
    )
    return record + _CHECKSUM.pack(zlib.crc32(record))


def unpack(octets: bytes, slot: int, now: float, elapsed: float = 0.0) -> TcpFlow | None:
    """Return the flow of the record in *slot*; None if the record is malformed, or has a time after *now*."""
    record, checksum = octets[: _RECORD.size], octets[_RECORD.size :]
    if len(octets) != SIZE or _CHECKSUM.unpack(checksum)[0] != zlib.crc32(record):
        return None
    version, stage, by_vm, finished, ip, remote, port, remote_port, at, since, mac, tagged, tags, interface = (
        _RECORD.unpack(record)
    )
    length = {4: 4, 6: 16}.get(version)
    at, since = at - elapsed, since - elapsed
    if stage not in {one.value for one in SAVED} or length is None or not at <= since <= now + 1:
        return None
    peer = Peer(interface.rstrip(b"\0").decode("ascii", "replace"), tags[:tagged], mac)
    ends = ip[:length], remote[:length], remote_port, port
    return TcpFlow(*ends, peer, bool(by_vm), Stage(stage), at, since, finished & 3, slot=slot)


class FlowFile:
    """
    Reads and writes the file.

    Args:
        path: its name; empty for no file.
        seconds: returns the time of the flows.
    """

    log = Logger()

    def __init__(self, path: str, seconds: Callable[[], float]) -> None:
        """Store the arguments; `read` opens the file."""
        self._path, self._seconds = path, seconds
        self._file = -1
        self._fails = False

    def read(self, slots: int = Limits().total) -> list[TcpFlow]:
        """Open the file, for this process alone, and return the flows in it; what is wrong with it is logged."""
        if not self._path:
            return []
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            octets = os.read(self._file, SIZE * (slots + 1))
        except OSError as error:
            self.close()
            used = error.errno == errno.EWOULDBLOCK
            reason = "another Synjitsu uses the file" if used else error.strerror
            self.log.warn(
                "{path}: {reason}: open connections will not be known after a restart", path=self._path, reason=reason
            )
            return []
        first = self._first()
        if octets[:SIZE] != first:
            if octets and not octets.startswith(_FORMAT):
                self.log.warn("{path} is no file of Synjitsu's flows: it is written anew", path=self._path)
            octets = b""
            self._write(-1, first, anew=True)
        return self._flows(octets[SIZE:])

    def _flows(self, octets: bytes) -> list[TcpFlow]:
        """Return the flows of records, and log how many of these are malformed."""
        now, elapsed, free = self._seconds(), self._elapsed(), bytes(SIZE)
        records = [octets[start : start + SIZE] for start in range(0, len(octets), SIZE)]
        found = [unpack(one, slot, now, elapsed) for slot, one in enumerate(records) if one != free]
        flows = [one for one in found if one is not None]
        if len(flows) < len(found):
            words = "{path}: {count} connections are not known any more, as their records are damaged"
            self.log.warn(words, path=self._path, count=len(found) - len(flows))
        if flows:
            self.log.info("{count} open connections are known from before", count=len(flows))
        return flows

    @staticmethod
    def _first() -> bytes:
        """Return the first record, which is another after each boot of the host."""
        boot = _BOOT.read_bytes().strip() if _BOOT.exists() else b""
        return (_FORMAT + boot).ljust(SIZE, b"\n")[:SIZE]

    def _elapsed(self) -> float:
        """Return the clock of the host minus that of the flows: that of a process may begin anew, or stand still."""
        return time.monotonic() - self._seconds()

    def write(self, unsaved: Mapping[int, TcpFlow | None]) -> None:
        """Write what has changed: the flow of each slot, or that it is free."""
        if self._file >= 0:
            elapsed = self._elapsed()
            for slot, flow in unsaved.items():
                self._write(slot, bytes(SIZE) if flow is None else pack(flow, elapsed))

    def _write(self, slot: int, octets: bytes, *, anew: bool = False) -> None:
        try:
            if anew:
                os.ftruncate(self._file, 0)
            os.pwrite(self._file, octets, SIZE * (slot + 1))
        except OSError as error:
            if not self._fails:
                self._fails = True
                words = "{path}: {reason}: some open connections will not be known after a restart"
                self.log.warn(words, path=self._path, reason=error.strerror)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
