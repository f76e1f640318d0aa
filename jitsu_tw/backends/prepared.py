"""
The mark of a prepared domain: what it was made of, and what its guest had done when it was paused.

Every function blocks. The mark is in the domain's live metadata, which libvirt keeps for as long as the domain's
process lives, through restarts of libvirt and of Jitsu, and forgets with it. So it cannot disagree with the hypervisor.
"""

from __future__ import annotations

import contextlib
from typing import Final
from xml.etree import ElementTree

import attrs
import libvirt

from jitsu_tw.backends import domain_xml, image
from jitsu_tw.errors import BackendError

#: The namespace of the mark, and its prefix.
NAMESPACE: Final = f"{domain_xml.NAMESPACE}/prepared"
PREFIX: Final = "prepared"

#: Seconds of CPU time that a paused guest may seem to use: libvirt counts in ticks.
CPU_TICKS: Final = 0.05

_KIND: Final = libvirt.VIR_DOMAIN_METADATA_ELEMENT
_LIVE: Final = libvirt.VIR_DOMAIN_AFFECT_LIVE


@attrs.frozen
class Mark:
    """
    What is known of a prepared domain.

    Attributes:
        files: the sum of what it was made of, with all disks (`image.made_of`), when its guest was paused.
        cpu: seconds that its virtual CPUs had run then.
        packets: how many it had transmitted then.
    """

    files: str
    cpu: float
    packets: int


def boot_of(domain: libvirt.virDomain) -> str:
    """Return a sum over what *domain* is about to boot from; empty if a file of it cannot be looked at from here."""
    try:
        return image.made_of(domain, writable=False)
    except OSError:
        return ""


def begin(domain: libvirt.virDomain, boot: str) -> None:
    """Note that *domain* has booted from what has the sum *boot*, unless that is empty."""
    if boot:
        with contextlib.suppress(libvirt.libvirtError):  # then it cannot be kept
            domain.setMetadata(_KIND, f"<booted boot='{boot}'/>", PREFIX, NAMESPACE, _LIVE)


def keep(domain: libvirt.virDomain) -> None:
    """
    Pause *domain*, which has booted since `begin`, and mark it as prepared.

    Raises:
        BackendError: what it was booted from has changed since, or is not known; it runs on.
    """
    element = _element(domain)
    boot = "" if element is None else element.get("boot", "")
    if boot != image.made_of(domain, writable=False):
        raise BackendError("its definition, its kernel or a disk has changed since it booted")
    domain.suspend()
    cpu, packets = _done(domain)
    files = image.made_of(domain, writable=True)
    mark = f"<prepared files='{files}' cpu='{cpu}' packets='{packets}'/>"
    domain.setMetadata(_KIND, mark, PREFIX, NAMESPACE, _LIVE)


def add_unfinished(root: ElementTree.Element) -> None:
    """Add the mark of a prepared domain to the domain *root*, such that it is out of date from the beginning."""
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ElementTree.SubElement(root, "metadata")
    ElementTree.SubElement(metadata, f"{{{NAMESPACE}}}prepared", files="", cpu="0", packets="0")


def mark(domain: libvirt.virDomain) -> Mark | None:
    """Return the mark of *domain*, which is paused; None if it was not prepared."""
    element = _element(domain)
    if element is None or not element.tag.endswith("prepared"):
        return None
    try:
        cpu, packets = float(element.get("cpu", "")), int(element.get("packets", ""))
    except ValueError:
        return None
    return Mark(element.get("files", ""), cpu, packets)


def remove(domain: libvirt.virDomain) -> None:
    """Remove the mark of *domain*, whose guest runs, if it has one."""
    if mark(domain) is not None:
        with contextlib.suppress(libvirt.libvirtError):  # it may have ended meanwhile
            domain.setMetadata(_KIND, None, PREFIX, NAMESPACE, _LIVE)


def why_stale(domain: libvirt.virDomain, mark: Mark, *, paused_since: bool = False) -> str:
    """
    Return why *domain*, which has that mark, is no use any more; empty if it is as good as new.

    That its guest has not run need not be looked at if it is known to be *paused_since* it was marked.
    """
    try:
        if mark.files != image.made_of(domain, writable=True):
            return "its definition, its kernel or a disk has changed"
    except OSError as error:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if paused_since:
        return ""
    cpu, packets = _done(domain)
    if cpu > mark.cpu + CPU_TICKS or packets != mark.packets:
        return "another program has let its guest run"
    return ""


def _element(domain: libvirt.virDomain) -> ElementTree.Element | None:
    try:
        return domain_xml.parse(domain.metadata(_KIND, NAMESPACE, _LIVE))
    except libvirt.libvirtError:
        return None


def _done(domain: libvirt.virDomain) -> tuple[float, int]:
    """Return how many seconds the virtual CPUs of *domain* have run, and how many packets it has transmitted."""
    kinds = libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_INTERFACE
    try:
        found = domain.connect().domainListGetStats([domain], kinds)[0][1]
    except libvirt.libvirtError:
        return 0.0, 0  # this hypervisor counts neither
    cpu = sum(found.get(f"vcpu.{number}.time", 0) for number in range(found.get("vcpu.maximum", 0)))
    return cpu / 1e9, sum(found.get(f"net.{number}.tx.pkts", 0) for number in range(found.get("net.count", 0)))
