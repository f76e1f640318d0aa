"""
Which address of a pool a new VM of a template gets. Pure.

The address depends on the VM's name: a VM that was forgotten and is made again is likely to have the same address, and
two nodes that make two VMs at the same moment seldom choose the same address.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from jitsu_tw.networks import Address, AddressRange

#: How many addresses are looked at for one that is free: all of a pool of IPv4, but for the largest.
MOST_LOOKS: Final = 1 << 20


def choose(pool: Sequence[AddressRange], name: str, taken: Container[Address]) -> tuple[Address, ...] | None:
    """
    Return, for the VM *name*, an address that is not *taken* of each family that *pool* has.

    None if a family has no address left. The cost grows with the taken addresses in a row, not with the pool.
    """
    found = []
    for version in sorted({one.first.version for one in pool}):
        free = (address for address in _from(pool, version, name) if address not in taken)
        address = next(free, None)
        if address is None:
            return None
        found.append(address)
    return tuple(found)


def _from(pool: Sequence[AddressRange], version: int, name: str) -> Iterator[Address]:
    """Yield the addresses of one family, beginning with the one that *name* leads to; the first follows the last."""
    ranges = [one for one in pool if one.first.version == version]
    sizes = [len(one) for one in ranges]
    whole = sum(sizes)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()) % whole
    for step in range(min(whole, MOST_LOOKS)):
        at = (start + step) % whole
        for one, size in zip(ranges, sizes, strict=True):
            if at < size:
                yield one[at]
                break
            at -= size


def size(pool: Sequence[AddressRange]) -> int:
    """Return how many VMs *pool* has addresses for: as many as its smallest family has addresses."""
    sizes: dict[int, int] = {}
    for one in pool:
        sizes[one.first.version] = sizes.get(one.first.version, 0) + len(one)
    return min(sizes.values())
