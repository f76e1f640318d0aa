"""
The operations on one of libvirt's domains. Every function here blocks, and is called in a thread of `threaded`.

A domain is looked up by its uuid each time: libvirt's objects outlive what they name.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import libvirt
from twisted.logger import Logger

from jitsu_tw.backends import clone, definition, domain_xml, image, layer, prepared
from jitsu_tw.errors import BackendError, BackendLost, NoSuchVM
from jitsu_tw.ijitsu import ENDED, Guest, Memory, Power, Start
from jitsu_tw.settings import Boot, Evidence, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from xml.etree import ElementTree

    from jitsu_tw.settings import VM

log: Final = Logger()

_POWER: Final = {
    libvirt.VIR_DOMAIN_RUNNING: Power.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: Power.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
}

#: Another operation is under way: the domain will run on, or be off, by itself.
_BUSY: Final = frozenset(
    {
        libvirt.VIR_DOMAIN_PAUSED_DUMP,
        libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
        libvirt.VIR_DOMAIN_PAUSED_SAVE,
        libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT,
        libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    }
)

#: Of these, those after which it runs on, here or elsewhere: it is not taken for paused, which would end its lease.
_GOES_ON: Final = _BUSY - {libvirt.VIR_DOMAIN_PAUSED_SAVE}

#: Errors that may be: a network that is not active is an invalid operation, a disk that is not there (yet) a system
#: error. A guest's saved memory is not thrown away for them; an image that can be made anew is.
_PERHAPS: Final = frozenset({libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_SYSTEM_ERROR})

_KIB: Final = 1024

#: To undefine a domain with what libvirt keeps of it.
_WITH_ALL: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)

#: The prefix of the classes of PCI devices that are network cards (PCI code and ID assignment, class 02h).
NETWORK_CARD: Final = "0x02"

#: Why the image of a domain cannot be kept.
FAR: Final = "the files of its host cannot be seen from here"

#: Why a domain is off whose process ended without telling libvirt a reason.
PROCESS_ENDED: Final = "its QEMU has ended by itself: it failed, or was killed"


def look_up(connection: libvirt.virConnect, vm: VM) -> str:
    """
    Return the uuid of *vm*'s domain; define it, if libvirt does not know it and there is a file.

    Raises:
        NoSuchVM: libvirt does not know it, and nothing defines it.
    """
    try:
        domain = connection.lookupByUUIDString(vm.uuid) if vm.uuid else connection.lookupByName(vm.name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        if vm.define is None or vm.removed:
            remedy = "define it there, mend the name, or give its XML file with define"
            raise NoSuchVM(f"{error}; {remedy}") from error
        domain = _define(connection, vm)
    else:
        if vm.define is not None and domain.isPersistent():
            _follow(connection, domain, vm)
    if vm.prepare and domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        prepared.remove(domain)  # another program has resumed it, perhaps, while nobody looked
    uuid: str = domain.UUIDString()
    return uuid


def _define(connection: libvirt.virConnect, vm: VM) -> libvirt.virDomain:
    """Return a new domain, as the file of *vm* defines it, with its own disk, if it has one."""
    xml = domain_xml.definition(text(vm), vm.uuid)
    made = vm.layer is not None and layer.make(vm.layer)
    try:
        return connection.defineXML(xml)
    except libvirt.libvirtError:
        if made and vm.layer is not None and alive(connection):  # else it may have been defined
            layer.remove(vm.layer)
        raise


def learn(connection: libvirt.virConnect) -> None:
    """
    Make libvirt find out what QEMU can do.

    That takes seconds, once: else when the first VM is defined (virQEMUCapsCacheLookup in libvirt's source).
    """
    connection.getDomainCapabilities()


def alive(connection: libvirt.virConnect) -> bool:
    """Return whether a connection is not broken."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _follow(connection: libvirt.virConnect, domain: libvirt.virDomain, vm: VM) -> None:
    """
    Define a domain, not a transient one, anew if it is off or prepared, and the file that defined it has changed since.

    A domain that another program has defined is left as it is; if the file defines the same, it is followed from now
    on. Where that fails, the error is logged, and libvirt's definition is used.
    """
    if vm.define is None or vm.removed:
        return
    try:
        wanted = text(vm)
        root = _defined(domain)
        same = domain_xml.is_defined_by(wanted, root)
        if same is None and domain_xml.difference(domain_xml.parse(wanted), root) is None:
            element = domain_xml.mark(wanted, root)
            kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
            domain.setMetadata(kind, element, "jitsu", domain_xml.NAMESPACE, flags)
        elif same is False and not _is_saved(domain) and (not domain.isActive() or prepared.mark(domain) is not None):
            connection.defineXML(domain_xml.definition(wanted, domain.UUIDString()))
            log.info("{name}: defined anew, because {file} has changed", name=vm.name, file=str(vm.define))
    except (OSError, BackendError, libvirt.libvirtError) as error:
        log.error("{name}: {file} is not followed: {error}", name=vm.name, file=str(vm.define), error=str(error))


def text(vm: VM) -> str:
    """
    Return the XML in the file that defines *vm*.

    Raises:
        OSError: it cannot be read.
        BackendError: it is no XML, or gives each VM of a template the same name or uuid.
    """
    assert vm.define is not None
    xml = definition.read(vm.define, vm, domain_xml.escaped, domain_xml.uncommented)
    root = domain_xml.parse_file(xml, vm.define)
    for key, own in (("name", vm.name), ("uuid", vm.uuid)) if vm.template is not None else ():
        value = (root.findtext(f"./{key}") or "").strip()
        if value not in {"", own} and value.lower() != own:
            raise BackendError(f"{vm.define} gives all its VMs the {key} {value}; write ${{{key}}}")
    return xml


def _defined(domain: libvirt.virDomain) -> ElementTree.Element:
    """Return the XML that the next boot of a domain is made of."""
    return domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


def state(connection: libvirt.virConnect, uuid: str) -> Power:
    """Return the domain's power state; a domain with a managed image is saved."""
    domain = connection.lookupByUUIDString(uuid)
    state, reason = domain.state()
    power = _POWER.get(state, Power.OFF)
    if power is Power.PAUSED and prepared.mark(domain) is not None:
        return Power.PREPARED  # a clone that is not finished, too, which libvirt takes for one that is on its way here
    if power is Power.PAUSED and reason in _GOES_ON:
        return Power.RUNNING
    return Power.SAVED if power is Power.OFF and _is_saved(domain) else power


def _is_saved(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.hasManagedSaveImage())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return False
        raise


def start(connection: libvirt.virConnect, uuid: str, vm: VM | None, *, paused_since: bool = False) -> Start:
    """
    Resume the domain, restore it from saved memory or *vm*'s image, or, where that fails, boot it.

    If a prepared domain is not known to be *paused_since* it was prepared, it is looked at whether its guest has run.
    """
    domain = connection.lookupByUUIDString(uuid)
    power, reason = domain.state()
    if power == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()
        return Start.RESUMED
    if power == libvirt.VIR_DOMAIN_PAUSED:
        mark = prepared.mark(domain)
        if reason in _BUSY and mark is None:
            domain.resume()
            return Start.RESUMED
        if why := _why_stale(connection, domain, vm, mark, paused_since=paused_since):
            log.info("{name}: what was prepared is thrown away: {why}", name=domain.name(), why=why)
        elif _attempt(domain, "resumed", domain.resume, fatal=image.HOST_ERRORS | _PERHAPS):
            return Start.RESUMED if mark is None else Start.PREPARED
        domain.destroy()
    elif power == libvirt.VIR_DOMAIN_CRASHED and domain.isActive():
        domain.destroy()
    elif _POWER.get(power) is Power.RUNNING:
        return Start.RAN
    try:
        return _from_off(connection, domain, vm)
    except libvirt.libvirtError:
        # Another program may have started it meanwhile.
        if not domain.isActive():
            raise
        return Start.RAN


def _from_off(connection: libvirt.virConnect, domain: libvirt.virDomain, vm: VM | None) -> Start:
    if vm is not None and vm.layer is not None:
        layer.check(vm.layer)
    saved = _is_saved(domain)
    if saved:
        if _attempt(domain, "restored", domain.create, fatal=image.HOST_ERRORS | _PERHAPS):
            return Start.RESTORED
        domain.managedSaveRemove()
    if vm is not None:
        _follow(connection, domain, vm)
    boot = prepared.boot_of(domain) if vm is not None and vm.prepare else ""
    kept = image.path(vm.images, domain.UUIDString()) if vm is not None and vm.boot_from is Boot.SNAPSHOT else None
    if (
        not saved
        and kept is not None
        and image.is_good(kept, domain)
        and _attempt(domain, "restored from its image", lambda: connection.restore(str(kept)), fatal=image.HOST_ERRORS)
    ):
        prepared.begin(domain, boot)
        return Start.RESTORED
    if not saved and vm is not None and kept is not None and clone.start(connection, domain, vm):
        prepared.begin(domain, boot)
        return Start.CLONED
    if kept is not None:
        image.prepare(kept, domain)
    domain.create()
    prepared.begin(domain, boot)
    return Start.BOOTED


def _attempt(domain: libvirt.virDomain, what: str, call: Callable[[], object], *, fatal: frozenset[int]) -> bool:
    """Make *call* and return whether it succeeded; raise an error that is *fatal*: the saved state may be good."""
    try:
        call()
    except libvirt.libvirtError as error:
        if error.get_error_code() in fatal:
            raise
        log.error("{name}: cannot be {what}, so it is booted: {error}", name=domain.name(), what=what, error=str(error))
        return False
    return True


def stop(connection: libvirt.virConnect, uuid: str, mode: Mode) -> None:
    """Stop the domain."""
    domain = connection.lookupByUUIDString(uuid)
    actions: dict[Mode, Callable[[], object]] = {
        Mode.DESTROY: domain.destroy,
        Mode.SHUTDOWN: domain.shutdown,
        Mode.SUSPEND: domain.suspend,
        Mode.PAUSE: domain.suspend,
        Mode.SAVE: domain.managedSave,
    }
    try:
        actions[mode]()
    except libvirt.libvirtError:
        # It may have gone down by itself meanwhile, which is what was wanted.
        if domain.isActive():
            raise


def guest(connection: libvirt.virConnect, uuid: str) -> Guest:
    """Read the MACs and bridges out of the domain's XML; the id is Xen's only where Xen is the hypervisor."""
    domain = connection.lookupByUUIDString(uuid)
    xml = domain_xml.parse(domain.XMLDesc())
    macs = tuple(mac.get("address", "").lower() for mac in xml.findall("./devices/interface/mac"))
    return Guest(macs, domain.ID() if xml.get("type") == "xen" else None, tuple(_bridges(connection, xml)))


def _bridges(connection: libvirt.virConnect, root: ElementTree.Element) -> Iterator[str]:
    """Yield the bridges that a domain's interfaces are plugged into; of a network, its own if the domain is off."""
    for source in root.findall("./devices/interface/source"):
        name = source.get("bridge")
        if name is None and "network" in source.attrib:
            with contextlib.suppress(libvirt.libvirtError):  # the network has none, or is not there
                name = connection.networkLookupByName(source.get("network")).bridgeName()
        if name:
            yield name


def traffic(connection: libvirt.virConnect, uuid: str) -> int | None:
    """Return how many packets all interfaces of the domain have transmitted; None if one is not counted."""
    domain = connection.lookupByUUIDString(uuid)
    counts = _stats(connection, domain, libvirt.VIR_DOMAIN_STATS_INTERFACE)
    number = counts.get("net.count", 0)
    known = [packets for one in range(number) if (packets := counts.get(f"net.{one}.tx.pkts")) is not None]
    root = domain_xml.parse(domain.XMLDesc())
    if len(known) < number or any(domain_xml.uncounted(root)) or any(_network_cards(connection, root)):
        return None
    return sum(known) if known else None


def cpu_time(connection: libvirt.virConnect, uuid: str) -> float | None:
    """Return the seconds that the domain's virtual CPUs have run; the whole emulator's if they are not told apart."""
    domain = connection.lookupByUUIDString(uuid)
    counts = _stats(connection, domain, libvirt.VIR_DOMAIN_STATS_VCPU)
    times = [counts.get(f"vcpu.{number}.time") for number in range(counts.get("vcpu.maximum", 0))]
    known = [time for time in times if time is not None]
    return (sum(known) if known else domain.info()[4]) / 1e9


def _stats(connection: libvirt.virConnect, domain: libvirt.virDomain, kind: int) -> dict[str, int]:
    """Return one kind of libvirt's statistics of the domain; nothing where the hypervisor has none."""
    try:
        stats = connection.domainListGetStats([domain], kind)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG}:
            return {}
        raise
    return stats[0][1] if stats else {}


def obstacle(connection: libvirt.virConnect, uuid: str, mode: Mode) -> str | None:
    """Return why the domain cannot be stopped by *mode*, as far as its XML shows."""
    domain = connection.lookupByUUIDString(uuid)
    if mode is not Mode.SAVE:
        return None
    if not domain.isPersistent():
        return "it is transient, so that libvirt keeps no saved image of it; define it (virsh define)"
    return domain_xml.unsavable(domain_xml.parse(domain.XMLDesc()))


def advice(
    connection: libvirt.virConnect, uuid: str, vm: VM | None, far: bool, slow: bool  # noqa: FBT001
) -> tuple[str, ...]:
    """Return advice about *vm*'s domain, on a host whose files are *far* or here, and whose last start was *slow*."""
    domain = connection.lookupByUUIDString(uuid)
    root = _defined(domain)
    made = vm is not None and vm.template is not None  # what its file lacks is said of the template, by `examine`
    found = [] if made else [*advice_on(vm, root, far=far)]
    if vm is not None and vm.layer is not None:
        try:
            layer.check(vm.layer)
        except BackendError as error:
            found.append(f"it cannot be started: {error}")
    if not domain.isPersistent():
        found.insert(0, "it is transient: once it is stopped, libvirt knows it no more; define it (virsh define)")
    elif vm is not None and vm.define is not None and not vm.removed:
        with contextlib.suppress(OSError, BackendError):
            found += _differs(vm, root)
    if vm is None or vm.evidence is Evidence.TRAFFIC:
        found += [domain_xml.NOT_COUNTED.format(one) for one in _network_cards(connection, root)]
    if slow and not made and (why := domain_xml.slow(root)) is not None:
        found.append(why)
    return tuple(found)


def _differs(vm: VM, root: ElementTree.Element) -> tuple[str, ...]:
    """Return how a domain differs from the file that should define it."""
    wanted, file = text(vm), vm.define
    same = domain_xml.is_defined_by(wanted, root)
    if same is False:
        return (f"{file} has changed since it was defined; that holds from its next boot on",)
    where = domain_xml.difference(domain_xml.parse(wanted), root) if same is None else None
    if where is None:
        return ()
    remedy = "mend one of the two, or undefine it (virsh undefine), so that Jitsu defines it by the file"
    return (f"it was not defined by Jitsu, and {file} says something else at {where}; {remedy}",)


def advice_on(vm: VM | None, root: ElementTree.Element, *, far: bool) -> tuple[str, ...]:
    """Return advice for the operator about *root*, which defines *vm*; no hypervisor is asked."""
    found = domain_xml.advice(root)
    if vm is None or vm.evidence is Evidence.TRAFFIC:
        found += tuple(domain_xml.NOT_COUNTED.format(one) for one in domain_xml.uncounted(root))
    if vm is not None and vm.boot_from is Boot.SNAPSHOT:
        if vm.template is not None and clone.is_wanted(root):
            with contextlib.suppress(OSError, BackendError):
                if (why := clone.obstacle(vm)) is None and not far:
                    return found
                found += (f"it is no clone (boot_from): {why or FAR}",)
        why = FAR if far else image.obstacle(root)
        if why is not None:
            found += (f"no image of it is kept, so that it boots each time (boot_from): {why}",)
    return found


def _network_cards(connection: libvirt.virConnect, root: ElementTree.Element) -> Iterator[str]:
    """Yield the PCI devices of the host that the domain has and that are network cards, or may be."""
    for name in domain_xml.pci_devices(root):
        kind = ""
        with contextlib.suppress(libvirt.libvirtError):
            found = domain_xml.parse(connection.nodeDeviceLookupByName(name).XMLDesc())
            kind = found.findtext("./capability/class") or ""
        if not kind or kind.startswith(NETWORK_CARD):
            yield f"{name} (a device of the host)"


def why_ended(connection: libvirt.virConnect, uuid: str) -> str:
    """Return why a domain is off whose process has ended without a reason."""
    root = _defined(connection.lookupByUUIDString(uuid))
    return ENDED if domain_xml.can_exit(root) else PROCESS_ENDED


def prepare(connection: libvirt.virConnect, uuid: str) -> None:
    """Pause the domain, and mark it as prepared."""
    prepared.keep(connection.lookupByUUIDString(uuid))


def stale(connection: libvirt.virConnect, uuid: str, vm: VM | None) -> str:
    """Return why the domain, which is prepared, is no use any more; empty if it is."""
    domain = connection.lookupByUUIDString(uuid)
    return _why_stale(connection, domain, vm, prepared.mark(domain))


def _why_stale(
    connection: libvirt.virConnect, domain: libvirt.virDomain, vm: VM | None, mark: prepared.Mark | None,
    *, paused_since: bool = False,
) -> str:
    """Return the same of a domain with that mark, after its file was followed."""
    if mark is None:
        return ""
    if vm is not None:
        _follow(connection, domain, vm)
    return prepared.why_stale(domain, mark, paused_since=paused_since)


def remove(connection: libvirt.virConnect, vm: VM) -> None:
    """
    Undefine the domain of *vm*, which a template has made, and remove its image and its disk; one that is paused ends.

    Raises:
        BackendError: it runs, or was not made by a template.
    """
    if vm.template is None or vm.uuid is None:
        raise BackendError(definition.NOT_MADE)
    try:
        domain = connection.lookupByUUIDString(vm.uuid)
        if state(connection, vm.uuid) is Power.RUNNING:
            raise BackendError(definition.RUNS)
        if domain.isActive():
            domain.destroy()
        _undefine(domain)
    except libvirt.libvirtError as error:  # it may be gone, by another node, at any of these calls
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
    image.drop(image.path(vm.images, vm.uuid))
    if vm.layer is not None:
        layer.remove(vm.layer)


def _undefine(domain: libvirt.virDomain) -> None:
    """Undefine a domain, with what its driver can keep of it."""
    try:
        domain.undefineFlags(_WITH_ALL)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT}:
            raise
        if _is_saved(domain):
            domain.managedSaveRemove()
        domain.undefine()


def unmark(connection: libvirt.virConnect, uuid: str) -> None:
    """Note that the domain, whose guest runs, or has run, is not prepared any more, even if it is paused again."""
    prepared.remove(connection.lookupByUUIDString(uuid))


def memory(connection: libvirt.virConnect, uuid: str) -> Memory | None:
    """Return the octets that a start of the domain takes, and those free on the host, its caches included."""
    domain = connection.lookupByUUIDString(uuid)
    state, maximum, *_ = domain.info()
    free = _free(connection)
    return None if free is None else Memory(maximum * _KIB if state == libvirt.VIR_DOMAIN_SHUTOFF else 0, free)


def _free(connection: libvirt.virConnect) -> int | None:
    """Return the octets of memory that are free on the host, its caches included; None if libvirt cannot tell."""
    try:
        stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return None
    return int(sum(stats.get(kind, 0) for kind in ("free", "buffers", "cached"))) * _KIB


def migrate(connection: libvirt.virConnect, uuid: str, connect: Callable[[], libvirt.virConnect]) -> None:
    """Move a domain that runs to the hypervisor that *connect* connects to; it stays defined where it was."""
    try:
        there = connect()
    except BackendLost as error:
        raise BackendError(f"the other hypervisor cannot be reached: {error}") from error
    try:
        connection.lookupByUUIDString(uuid).migrate3(there, {}, libvirt.VIR_MIGRATE_LIVE)
    finally:
        there.close()


def keep_image(connection: libvirt.virConnect, uuid: str, folder: Path) -> None:
    """Save the domain to a file in *folder* and restore it from there."""
    image.keep(image.path(folder, uuid), connection, connection.lookupByUUIDString(uuid))


def keep_seed(connection: libvirt.virConnect, uuid: str, vm: VM) -> None:
    """Make the image that all VMs of the template of *vm* start from, if there is to be one (`clone.make`)."""
    clone.make(connection, uuid, vm, _free(connection))
