"""
Which files the disk in an image is made of: those that the image backs on, and theirs. Every function blocks.

They are read from the headers, as QEMU does: libvirt's XML names them only while the domain runs. The format is
docs/interop/qcow2.txt in QEMU's source.
"""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING, Final

from jitsu_tw.backends.qcow2 import BASE_FORMAT, LONGEST_PATH, MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Octets that hold the header with its extensions, and the last version with a short header.
_HEADER: Final = 65536
_SHORT: Final = 2

#: The type of the header extension that names a data file.
_DATA_FILE: Final = 0x44415441

#: The most files that a disk is made of; QEMU opens all of them.
MOST: Final = 200


def chain(disk: Path, kind: str) -> Iterator[str]:
    """
    Yield the files that a disk in the file *disk* is made of: that, a data file, those that it backs on, and theirs.

    Args:
        disk: the file.
        kind: its format, as QEMU calls it; files in others than qcow2 are not looked into.

    Raises:
        OSError: one cannot be read, is damaged or no file, or there are more than `MOST`.
    """
    seen: set[Path] = set()
    while True:
        yield str(disk)
        if kind == "raw" or disk in seen:
            return
        seen.add(disk)
        if len(seen) > MOST:
            raise OSError(None, f"it backs on more than {MOST} files")
        with disk.open("rb") as file:
            header = file.read(_HEADER).ljust(_HEADER, b"\0")
            magic, version, offset, size = struct.unpack_from(">4sIQI", header)
            if magic != MAGIC:
                return
            length = struct.unpack_from(">I", header, 100)[0] if version > _SHORT else 72
            extensions = _extensions(header, length)
            if _DATA_FILE in extensions:
                yield str(_beside(disk, extensions[_DATA_FILE]))
            if not offset:
                return
            if size > LONGEST_PATH or offset + size > _HEADER:
                raise OSError(None, f"{disk} is damaged: the name of the file that it backs on is not in its header")
            name = header[offset : offset + size]
            disk, kind = _beside(disk, name), os.fsdecode(extensions.get(BASE_FORMAT, b"qcow2"))


def _extensions(header: bytes, offset: int) -> dict[int, bytes]:
    """Return the extensions of a qcow2 header that begin at *offset*, by type."""
    found = {}
    while offset + 8 <= len(header):
        kind, size = struct.unpack_from(">II", header, offset)
        if not kind:
            break
        found[kind] = header[offset + 8 : offset + 8 + size]
        offset += 8 + (size + 7) // 8 * 8
    return found


def _beside(disk: Path, name: bytes) -> Path:
    """Return the file that *disk* calls *name*, which may be relative to it."""
    text = os.fsdecode(name)
    if "\0" in text or re.match(r"[A-Za-z0-9+.-]+:", text):
        raise OSError(None, f"{disk} backs on {text!r}, which is no file")
    return disk.parent / text
