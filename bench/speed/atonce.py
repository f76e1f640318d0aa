"""
Starts at once: 1 to 32 VMs through Jitsu's backend for libvirt, against as many threads that call ``create()``.

All VMs are those of `demo.unikernel`, in a libvirtd of its own (`bench.speed.create`). In turn, a number of them is
started in three ways: by a backend that has just connected, so that its threads open their connections meanwhile
(``new``); by the same backend ``again``; and by threads with connections of their own, without Jitsu (``bare``).
Run it as::

    python -m bench.speed.atonce [--rounds 5] [--most 32] [--json FILE]

It needs what the end-to-end tests need. Figures are milliseconds from the first call on: the median VM's, and the last
one's; of these the medians of the rounds.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import libvirt
from rich.console import Console
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from bench.figures import json_option, table, write
from bench.speed.create import libvirtd
from demo import lab
from demo import unikernel as guest
from jitsu_tw.backends.libvirt import LibvirtBackend
from test.contract.backends import Watcher
from test.support import vm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jitsu_tw.settings import VM

#: The ways to start VMs.
WAYS: Final = ("new", "again", "bare")

#: When each VM was started, in milliseconds after the first call.
Starts = list[float]


def define(directory: Path, count: int) -> list[VM]:
    """Return *count* VMs with their definitions in *directory*."""
    found = []
    for number in range(10, 10 + count):
        file = directory / f"vm{number}.xml"
        mac = f"52:54:00:99:00:{number:02x}"
        file.write_text(guest.domain_xml(file.stem, f"10.99.0.{number}", mac, bridge=lab.BRIDGE))
        found.append(vm(file.stem, backend="libvirt", define=file))
    return found


async def by_backend(backend: LibvirtBackend, uuids: Sequence[str]) -> Starts:
    """Start VMs by *backend*, as `jitsu_tw.vm.steps` does."""
    begin, starts = time.monotonic(), Starts()

    async def one(uuid: str) -> None:
        await backend.memory(uuid)
        await backend.start(uuid)
        starts.append((time.monotonic() - begin) * 1000)

    await gatherResults([Deferred.fromCoroutine(one(uuid)) for uuid in uuids])
    return starts


def in_threads(uri: str, uuids: Sequence[str], call: Callable[[libvirt.virDomain], object]) -> Starts:
    """Make a *call* for each domain, in a thread and on a connection of its own."""
    connections = [libvirt.open(uri) for _ in uuids]
    domains = [one.lookupByUUIDString(uuid) for one, uuid in zip(connections, uuids, strict=True)]
    begin, ended = time.monotonic(), Starts()

    def work(domain: libvirt.virDomain) -> None:
        call(domain)
        ended.append((time.monotonic() - begin) * 1000)

    threads = [threading.Thread(target=work, args=(domain,)) for domain in domains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


async def measure(uri: str, vms: Sequence[VM]) -> dict[str, Starts]:
    """Start *vms* once in each way, and destroy them each time."""
    backend, watcher = LibvirtBackend(uri), Watcher()
    backend.connect(watcher)
    await watcher.until(lambda: watcher.connections)
    uuids = [await backend.look_up(one) for one in vms]
    found: dict[str, Starts] = {}
    for way in WAYS:
        if way == "bare":
            found[way] = await deferToThread(in_threads, uri, uuids, libvirt.virDomain.create)
        else:
            found[way] = await by_backend(backend, uuids)
        await deferToThread(in_threads, uri, uuids, libvirt.virDomain.destroy)
    await backend.close()
    return found


async def run(rounds: int, most: int, path: Path | None) -> None:
    """Measure, write the figures to *path*, and print them."""
    rows = table(["at once"], [f"{way} {which}" for way in WAYS for which in ("median", "last")])
    figures = []
    with lab.directory() as name, lab.Network() as network, libvirtd(network, Path(name)):
        uri, vms = f"qemu+unix:///system?socket={name}/libvirt-sock", define(Path(name), most)
        for count in (1 << power for power in range(most.bit_length())):
            found = [await measure(uri, vms[:count]) for _ in range(rounds)]
            figures.append({"at once": count, "rounds": found})
            parts: tuple[Callable[[Starts], float], ...] = (statistics.median, max)
            cells = [statistics.median(part(one[way]) for one in found) for way in WAYS for part in parts]
            rows.add_row(str(count), *(f"{cell:.0f}" for cell in cells))
    write(path, figures)
    Console(highlight=False).print(rows)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of each number of VMs.")
@click.option("--most", default=32, show_default=True, help="VMs at once; all powers of two up to it are measured.")
@json_option
def main(rounds: int, most: int, path: Path | None) -> None:
    """Measure starts at once."""

    def begin(_: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(run(rounds, most, path))

    react(begin)


if __name__ == "__main__":
    main()
