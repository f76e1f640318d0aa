"""
The VMs of a XAPI pool: which one a VM of the configuration is, its devices and memory, and what events tell of it.

The functions with a `Login` block, and are called in threads; events are read without asking the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.backends.xapi_session import XapiError
from jitsu_tw.errors import BackendError, NoSuchVM
from jitsu_tw.ijitsu import Guest, Memory, Power

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.backends.xapi_session import Login
    from jitsu_tw.settings import VM

#: XAPI's power states (class VM, vm_power_state).
POWER: Final = {
    "Halted": Power.OFF,
    "Running": Power.RUNNING,
    "Paused": Power.PAUSED,
    "Suspended": Power.SAVED,
}


def of(kind: str, events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the *events* of the class *kind*, which the stream writes in small letters."""
    return [event for event in events if event["class"] == kind]


class Seen:
    """The VMs as events have told them: for each ref its uuid, power state and domain."""

    def __init__(self) -> None:
        """Begin without VMs."""
        self._vms: dict[str, tuple[str, str, str]] = {}

    def take(self, events: Iterable[dict[str, Any]], *, whole: bool) -> list[tuple[str, str]]:
        """
        Return the uuids of VMs that were started, stopped and so on, with reasons; other fields change often.

        Args:
            events: of the VM class.
            whole: whether they name all VMs that there are.
        """
        changes = []
        before, now = self._vms, {} if whole else dict(self._vms)
        for event in events:
            if event["operation"] == "del":
                now.pop(event["ref"], None)
            elif "snapshot" in event:
                vm = event["snapshot"]
                now[event["ref"]] = vm["uuid"], vm["power_state"], vm["domid"]
        for ref, (uuid, power, domid) in now.items():
            _, old_power, old_domid = before.get(ref, ("", "", ""))
            if (power, domid) != (old_power, old_domid):
                was = f", was {old_power}" if old_power else ""
                changes.append((uuid, f"{power}{was}" if power != old_power else f"{power} in a new domain, {domid}"))
        changes.extend((uuid, "the VM was removed") for ref, (uuid, _, _) in before.items() if ref not in now)
        self._vms = now
        return changes


def find(login: Login, vm: VM) -> str:
    """
    Return the uuid of the pool's VM that *vm* is. Templates and snapshots have name labels too, and are none.

    Raises:
        NoSuchVM: there is none.
        BackendError: several have its name label.
    """
    if vm.uuid:
        try:
            refs = [login.call("VM.get_by_uuid", vm.uuid.lower())]
        except XapiError as refused:
            if refused.code != "UUID_INVALID":
                raise
            raise NoSuchVM(str(refused)) from refused
    else:
        refs = login.call("VM.get_by_name_label", vm.name)
    records = [login.call("VM.get_record", ref) for ref in refs]
    found = [record["uuid"] for record in records if not (record["is_a_template"] or record["is_control_domain"])]
    if not found:
        kinds = "a template, a snapshot or a control domain" if records else "nothing"
        message = f"{kinds} has the {f'uuid {vm.uuid}' if vm.uuid else f'name label {vm.name!r}'}; make"
        message += " such a VM there, or mend the name or uuid"
        raise NoSuchVM(message)
    if len(found) > 1:
        message = f"{len(found)} VMs have the name label {vm.name!r}; say with uuid which: {', '.join(sorted(found))}"
        raise BackendError(message)
    return str(found[0])


def guest(login: Login, ref: str) -> Guest:
    """Return the VM's MAC addresses, in the order of its devices, and its domain."""
    record = login.call("VM.get_record", ref)
    vifs = [login.call("VIF.get_record", vif) for vif in record["VIFs"]]
    vifs.sort(key=lambda vif: int(vif["device"]))
    domid = int(record["domid"])
    return Guest(tuple(vif["MAC"].lower() for vif in vifs), domid if domid >= 0 else None)


def memory(login: Login, ref: str) -> Memory:
    """
    Return the octets that a start of the VM takes, and those free on the host that has the most.

    If XAPI names no host that can run the VM, all hosts count: XAPI leaves out those with too little memory.
    """
    record = login.call("VM.get_record", ref)
    has_it = POWER[record["power_state"]] in {Power.RUNNING, Power.PAUSED}
    needed = 0 if has_it else int(record["memory_static_max"]) + int(record["memory_overhead"])
    free = 0
    for host in login.call("VM.get_possible_hosts", ref) or login.call("host.get_all"):
        try:
            free = max(free, int(login.call("host.compute_free_memory", host)))
        except XapiError:
            # A host that is down has no memory.
            continue
    return Memory(needed, free)
