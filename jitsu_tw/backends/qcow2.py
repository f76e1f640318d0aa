"""
Disk images of QEMU's own format, as far as Jitsu writes and reads them (docs/interop/qcow2.txt in QEMU's source).

Everything here is pure: octets in, octets out.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What an image in this format begins with; another one is raw.
MAGIC: Final = b"QFI\xfb"

#: Octets of a header that tell the size of the disk.
SIZED: Final = 32

#: The size of a cluster in octets, as a power of two, and what it is: both are qemu-img's defaults.
_CLUSTER_BITS: Final = 16
CLUSTER: Final = 1 << _CLUSTER_BITS

#: Octets of a disk that an entry of the first table of clusters stands for, and what an entry of any table takes.
_PER_ENTRY: Final = CLUSTER * CLUSTER // 8
_ENTRY: Final = 8

#: QEMU opens no first table with more octets (QCOW_MAX_L1_SIZE in block/qcow2.h): a disk of 2 PiB.
_LONGEST_TABLE: Final = 32 << 20

#: The longest path of a base, in octets, and the type of the header extension that names its format.
LONGEST_PATH: Final = 1023
BASE_FORMAT: Final = 0xE2792ACA

#: The versions that QEMU reads, and, of layers, the version, its header, and the width of reference counts (16 bits,
#: as a power of two).
_VERSIONS: Final = (2, 3)
_VERSION: Final = 3
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_COUNT_ORDER: Final = 4
_SECTOR: Final = 512


def disk_size(header: bytes) -> int | None:
    """
    Return the octets of the disk that is in an image with that *header* of `SIZED` octets; None if the image is raw.

    Raises:
        ValueError: the header is too short, or of another version.
    """
    if not header.startswith(MAGIC):
        return None
    if len(header) < SIZED:
        raise ValueError("it is damaged: its header is too short")
    version, size = struct.unpack_from(">4xI16xQ", header)
    if version not in _VERSIONS:
        raise ValueError(f"it is of version {version} of its format; convert it: qemu-img convert -O qcow2")
    return int(size)


def layer(base: bytes, base_format: bytes, size: int) -> tuple[int, Mapping[int, bytes]]:
    """
    Return what makes an empty copy-on-write layer: the length of its file, and what is in that, by offsets.

    What is not given is zero. The layer has a header, a table and a block of reference counts, and a first table of
    clusters without entries, so that all is read from its base.

    Args:
        base: the path of its base.
        base_format: the format of that: ``raw`` or ``qcow2``.
        size: of the disk, in octets.

    Raises:
        ValueError: there can be no such layer.
    """
    if not size:
        raise ValueError("it is empty")
    if len(base) > LONGEST_PATH:
        raise ValueError(f"its path has more than {LONGEST_PATH} octets")
    entries = -(-size // _PER_ENTRY)
    if entries * _ENTRY > _LONGEST_TABLE:
        raise ValueError(f"a disk of {size} octets is too large")
    table_clusters = -(-entries * _ENTRY // CLUSTER)
    counts, block, table = CLUSTER, 2 * CLUSTER, 3 * CLUSTER
    clusters = 3 + table_clusters
    extension = struct.pack(">II", BASE_FORMAT, len(base_format)) + base_format.ljust(8, b"\0") + bytes(8)
    header = _HEADER.pack(
        MAGIC, _VERSION, _HEADER.size + len(extension), len(base), _CLUSTER_BITS, -(-size // _SECTOR) * _SECTOR,
        0, entries, table, counts, 1, 0, 0, 0, 0, 0, _COUNT_ORDER, _HEADER.size,
    )  # fmt: skip
    return clusters * CLUSTER, {
        0: header + extension + base,
        counts: struct.pack(">Q", block),
        block: struct.pack(">H", 1) * clusters,
    }
