"""
What `jitsuctl doctor` and `jitsuctl check --connect` find of templates: files are looked at, then conclusions drawn.

What the backend finds in a template's definition and disk is among what `jitsuctl check` says (`IBackend.examine`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.ctl.diagnosis.findings import NO_NETWORK, Finding, link_of, listed, ok, problem, warning
from jitsu_tw.rules.addresses import size
from jitsu_tw.settings import Asks
from jitsu_tw.text import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from jitsu_tw.ctl.diagnosis.findings import Link
    from jitsu_tw.networks import AddressRange
    from jitsu_tw.settings import VM, Template

#: What a program for an interpreter begins with (execve(2)).
SCRIPT: Final = b"#!"


@attrs.frozen
class Files:
    """
    What was seen of the files of a template.

    Attributes:
        unusable: why names cannot be looked up, by the path of a list or a program.
        scripts: the paths of lists that look like programs.
        labels: labels in `exists` that are names of files beside the configuration, too.
        layers: the folder in which the layers' directory is, or is to be made, if this user may not write there.
    """

    unusable: Mapping[str, str] = attrs.field(factory=dict)
    scripts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    layers: str = ""


def look(template: Template) -> Files:
    """Return what there is of the files of *template*. Blocks; runs no program."""
    unusable, scripts, labels = dict[str, str](), list[str](), list[str]()
    beside = Path(template.place[0] or "").parent
    for said in template.exists:
        path = beside / said.text
        if said.kind is Asks.PATTERN and path.exists():
            labels.append(said.text)
        if said.kind is Asks.PATH:
            try:
                if _is_script(path):
                    scripts.append(said.text)
            except OSError as error:
                unusable[said.text] = f"{path} cannot be read: {error.strerror}"
    found = Files(unusable, tuple(scripts), tuple(labels))
    if template.disk is None:
        return found
    folder = template.layers
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return found if os.access(folder, os.W_OK | os.X_OK) else attrs.evolve(found, layers=str(folder))


def _is_script(path: Path) -> bool:
    """
    Return whether the file at *path*, which cannot be executed, begins as a program does.

    Raises:
        OSError: it is not there, cannot be read, or is a folder.
    """
    if path.is_file() and os.access(path, os.X_OK):
        return False
    with path.open("rb") as file:
        return file.read(len(SCRIPT)) == SCRIPT


def files(seen: Mapping[str, Files]) -> Iterator[Finding]:
    """Yield what is wrong with the files of templates, by the template's name."""
    for name, found in seen.items():
        for why in found.unusable.values():
            yield problem(f"{name}: nobody knows which names exist: {why}", "correct exists, or the file")
        for path in found.scripts:
            yield warning(f"{name}: {path} looks like a program, but is read as a list", f"chmod +x {path}")
        for label in found.labels:
            yield warning(f"{name}: {label} is read as a name that exists, and there is a file of that name, too",
                          f"write ./{label} for the file")  # fmt: skip
        if found.layers:
            yield warning(f"{name}: this user may not write disks in {found.layers}",
                          "let Jitsu's user write there, or name another directory with layers")  # fmt: skip


def pools(
    templates: Iterable[Template],
    vms: Iterable[VM],
    links: Collection[Link],
    leased: Mapping[str, Collection[AddressRange]],
) -> Iterator[Finding]:
    """
    Yield what there is in the pools of *templates* besides their VMs.

    Args:
        templates: all of them.
        vms: those of the configuration.
        links: the interfaces of this host.
        leased: the addresses that libvirt's networks give by DHCP, by the network's name.
    """
    hosts = [(one.ip, f"this host on {link.name}") for link in links for one in link.addresses]
    taken = [*hosts, *((address, f"the VM {vm.name}") for vm in vms for address in vm.ip)]
    for template in templates:
        overlapping = [
            f"{network} ({one})"
            for network, ranges in leased.items()
            for one in ranges
            if any(one.overlaps(other) for other in template.pool)
        ]
        if overlapping:
            yield warning(
                f"{template.name}: libvirt gives addresses of its pool to other VMs by DHCP: {listed(overlapping)}",
                "let the pool and the DHCP range have no address in common (pool, or virsh net-edit)",
            )
        others = [f"{address} ({owner})" for address, owner in taken if any(address in one for one in template.pool)]
        left_out = f"; left out are those of {listed(others)}" if others else ""
        yield ok(f"{template.name}: {counted(size(template.pool), 'address')} in its pool{left_out}")


def outside(templates: Iterable[Template], links: Collection[Link]) -> Iterator[Finding]:
    """Yield which *templates*, whose hypervisor is this host, have addresses in no network of it."""
    ends = [
        f"{template.name} ({one})"
        for template in templates
        for one in template.pool
        if any(link_of(address, links) is None for address in (one.first, one.last))
    ]
    if ends:
        yield warning(
            f"no interface of this host has a network with the pool of {listed(ends)}",
            f"give the VMs' bridge an address of their network, or correct pool: {NO_NETWORK}",
        )
