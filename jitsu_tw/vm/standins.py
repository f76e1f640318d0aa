"""
Announces the states of VMs to Synjitsu, and handles what Synjitsu sees of them.

While a VM boots, Synjitsu stands in for its addresses and holds its packets; also while it is down, if packets are to
wake it. Then the DNS answer need not wait for the boot: the client's first packet waits. Synjitsu finds out whether the
guest listens, because packets of this host for the address would reach the stand-in, too.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.errors import BackendError
from jitsu_tw.ijitsu import Guest, IObserver, IReadiness
from jitsu_tw.readiness import has_port, port_of
from jitsu_tw.rules.flows import together
from jitsu_tw.rules.lifecycle import ACTIVATING, State, Stop
from jitsu_tw.settings import KEEPS_MEMORY, Handover
from jitsu_tw.synjitsu_client import SynjitsuClient
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall

    from jitsu_tw.networks import Address
    from jitsu_tw.readiness import Strategies
    from jitsu_tw.rules.flows import Flows
    from jitsu_tw.settings import VM
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.vm.observers import IStandInObserver

#: Seconds for which packets for a VM whose start has failed are refused, before they can wake it again.
REFUSES_FOR: Final = 10.0

#: The guest may begin to listen: one that is restored does so before the call that starts it has ended.
BOOTS: Final = frozenset({State.STARTING, State.WAITING})

#: States of one boot: the addresses at which the guest was found listening stay known.
RUNS: Final = BOOTS | {State.SETTLING, State.UP}

#: Seconds for which packets for the other addresses of a guest that listens at one are held, while it does not listen
#: there: duplicate address detection takes IPv6 two (RFC 4862, 5.4.2: a delay of up to one, and one to wait).
LATE_BY: Final = 5.0

#: States without a Xen domain: the number of the one before may be another guest's now.
NUMBERLESS: Final = {State.OFF, State.SAVED, State.FAILED}


@implementer(IObserver)
class StandIns:
    """
    What the fleet asks of Synjitsu; in this class, for a configuration without Synjitsu, nothing stands in.

    Attributes:
        clients: the connections to Synjitsu, by endpoint.
    """

    follows: Collection[State] = frozenset()

    clients: Mapping[str, SynjitsuClient] = MappingProxyType({})

    def start(self) -> None:
        """Connect to each Synjitsu."""

    def stop(self) -> Deferred[None]:
        """Disconnect from each Synjitsu."""
        return succeed(None)

    def heard(self) -> Deferred[None]:
        """Return a Deferred that fires when each Synjitsu has carried out all that it was told."""
        return succeed(None)

    def signs(self, vm: VM, signs: tuple[IReadiness, ...]) -> tuple[IReadiness, ...]:  # noqa: ARG002
        """Return the *signs* of readiness of *vm*, where Synjitsu probes the port in place of this host."""
        return signs

    def holds(self, machine: Machine) -> bool:  # noqa: ARG002
        """Return whether packets for *machine*, which boots or is about to, are held: then its answer need not wait."""
        return False

    def refusals(self, machine: Machine) -> list[str]:  # noqa: ARG002
        """Return why Synjitsu does not stand in for *machine*, a sentence for each address that it refuses."""
        return []

    def flows(self, machine: Machine) -> Flows | None:  # noqa: ARG002
        """Return the open TCP connections of *machine*; None if no Synjitsu watches it."""
        return None

    async def packets(self, machine: Machine) -> int | None:  # noqa: ARG002
        """Return how many packets of conversations the guest has exchanged; None: nobody can count them."""
        return None

    def enlist(self, machine: Machine) -> None:
        """Add *machine*, or its new settings; it is announced when it is found."""

    def forget(self, machine: Machine) -> None:
        """Withdraw *machine*, and remove it or its old settings."""

    async def learn(self, machine: Machine) -> None:
        """Ask the hypervisor for the MACs and the number of *machine*, which has been found, is being made or runs."""

    def changed(self, machine: Machine) -> None:
        """Handle a hypervisor's event for *machine*."""

    def moved(self, machine: Machine, old: State) -> None:
        """Announce, hand over or withdraw *machine*, which has left the state *old*."""

    def owner_changed(self, machine: Machine) -> None:
        """Announce *machine* anew if this node owns it: its owner, or its host, may have changed."""

    def reannounce(self) -> None:
        """Announce all VMs of this node anew: Synjitsu soon drops what a node that is gone had announced."""


@implementer(IReadiness)
class StandInControl(StandIns):
    """
    The VMs with `use_synjitsu`, announced to the Synjitsu of their host.

    It owns, and nobody else writes: which client each VM is announced by, what the hypervisors say of their guests, and
    the addresses at which they were found listening.
    """

    follows = frozenset(State)

    log = Logger()
    anew = tries_port = True

    def __init__(
        self,
        endpoints: Iterable[str],
        machines: Mapping[str, Machine],
        reactor: Any,
        port: Strategies,
        observer: IStandInObserver,
        secret: str = "",
        make: Callable[..., SynjitsuClient] = SynjitsuClient,
    ) -> None:
        """
        Announce nothing yet.

        Args:
            endpoints: where each Synjitsu listens: one, or those of several hosts.
            machines: by the VM's name; those with `use_synjitsu` are announced.
            reactor: connects and waits.
            port: finds out whether a guest listens while Synjitsu is not connected.
            observer: knows the owners, and is told of packets and problems.
            secret: shown to Synjitsu; empty for none.
            make: makes the connection to Synjitsu.
        """
        self._machines, self._reactor, self._port, self._observer = machines, reactor, port, observer
        told = self._wanted, self._seen, reactor, self._listens, self._elsewhere, secret, self._turn
        self.clients = {endpoint: make(endpoint, *told) for endpoint in endpoints}
        self._at: dict[str, SynjitsuClient] = {}
        self._by_ip: dict[str, str] = {}
        self._guests: dict[str, Guest] = {}
        self._waits: dict[str, Deferred[None]] = {}
        self._turned: set[str] = set()
        self._heard: dict[str, set[str]] = {}
        self._late: dict[str, IDelayedCall] = {}

    def start(self) -> None:
        """Connect to each Synjitsu."""
        for standin in self.clients.values():
            standin.start()

    def stop(self) -> Deferred[None]:
        """Disconnect from each Synjitsu."""
        stopped = DeferredList([standin.stop() for standin in self.clients.values()])
        return stopped.addCallback(lambda _: None)

    def heard(self) -> Deferred[None]:
        """Return a Deferred that fires when each Synjitsu has carried out all that it was told."""
        heard = DeferredList([standin.heard() for standin in self.clients.values()], consumeErrors=True)
        return heard.addCallback(lambda _: None)

    def signs(self, vm: VM, signs: tuple[IReadiness, ...]) -> tuple[IReadiness, ...]:
        """Return the *signs* of readiness of *vm*, where Synjitsu probes the port in place of this host."""
        return tuple(self if sign.tries_port else sign for sign in signs) if vm.use_synjitsu else signs

    def _standin(self, machine: Machine) -> SynjitsuClient | None:
        """Return the Synjitsu of the host that *machine* is, was or will be on."""
        return self.clients.get(self._observer.synjitsu_of(machine) or "") if machine.vm.use_synjitsu else None

    def _is_there(self, machine: Machine) -> bool:
        """Return whether a Synjitsu stands in for *machine*, at one of its addresses at least."""
        standin = self._standin(machine)
        return standin is not None and standin.connected and not standin.refused.keys() >= set(map(str, machine.vm.ip))

    def holds(self, machine: Machine) -> bool:
        """Return whether packets for *machine*, which boots or is about to, are held: then its answer need not wait."""
        vm, state = machine.vm, machine.state
        held = state in ACTIVATING or (state is not State.UNKNOWN and vm.wake_by_packet)
        return held and self._is_there(machine)

    def refusals(self, machine: Machine) -> list[str]:
        """Return why Synjitsu does not stand in for *machine*, a sentence for each address that it refuses."""
        standin = self._standin(machine)
        if standin is None:
            return []
        addresses = [ip for ip in map(str, machine.vm.ip) if ip in standin.refused]
        return [f"Synjitsu does not stand in for {ip}: {standin.refused[ip]}" for ip in addresses]

    def flows(self, machine: Machine) -> Flows | None:
        """Return the open TCP connections of *machine*, at all its addresses; None if no Synjitsu watches it."""
        standin = self._at.get(machine.vm.name)
        if standin is None:
            return None
        found = [one for ip in machine.vm.ip if (one := standin.flows(str(ip))) is not None]
        return together(found) if found else None

    async def packets(self, machine: Machine) -> int | None:
        """Return how many packets of conversations the guest has exchanged; None if its Synjitsu cannot count them."""
        standin = self._at.get(machine.vm.name)
        return None if standin is None else await standin.packets(str(machine.vm.ip[0]))

    # What the VMs do.

    def enlist(self, machine: Machine) -> None:
        """Add *machine*, or its new settings; it is announced when it is found."""
        if machine.vm.use_synjitsu:
            self._by_ip |= dict.fromkeys(map(str, machine.vm.ip), machine.vm.name)

    def forget(self, machine: Machine) -> None:
        """Withdraw *machine*, and remove it or its old settings."""
        vm = machine.vm
        if vm.use_synjitsu:
            self._withdraw(machine)
            for ip in self._addresses(machine):
                del self._by_ip[str(ip)]
            for of in (self._guests, self._heard):
                of.pop(vm.name, None)
            if vm.name in self._late:
                self._late.pop(vm.name).cancel()

    async def learn(self, machine: Machine) -> None:
        """Ask the hypervisor for the MACs and the number of *machine*, which has been found, is being made or runs."""
        if machine.vm.use_synjitsu:
            try:
                self._guests[machine.vm.name] = await machine.backend.guest(machine.uuid)
            except BackendError as error:
                self.log.error("{name}: its MAC is not known: {error}", name=machine.vm.name, error=str(error))
            self._tell(machine)

    def changed(self, machine: Machine) -> None:
        """Learn the number of a domain as soon as it is being made: its guest may look for its SYNs when it runs."""
        if machine.state is State.STARTING and machine.vm.handover is Handover.XENSTORE:
            Deferred.fromCoroutine(self.learn(machine))

    def moved(self, machine: Machine, old: State) -> None:
        """Announce, hand over or withdraw *machine*, which has left the state *old*."""
        if machine.boots_again:
            return  # its packets are held on, and are announced for that boot
        if old is State.UP and machine.state is State.WAITING:
            self._heard.pop(machine.vm.name, None)  # its guest has rebooted itself
        known = self._guests.get(machine.vm.name)
        if known is not None and machine.state in NUMBERLESS:
            self._guests[machine.vm.name] = attrs.evolve(known, domid=None)
        self._tell(machine, reported=old is not State.QUEUED)
        # With a port, the guest's MACs are known when its readiness is waited for (`wait`).
        if machine.state is State.WAITING and not has_port(machine.vm, machine.backend):
            Deferred.fromCoroutine(self.learn(machine))

    def _tell(self, machine: Machine, *, reported: bool = True) -> None:
        """
        Announce, hand over or withdraw *machine*, as its state demands.

        Unless the backend has *reported* the state, a VM that is off may be asleep: its start was given up.
        """
        vm, state, standin = machine.vm, machine.state, self._standin(machine)
        if vm.name in self._late:
            self._late.pop(vm.name).cancel()
        before = self._at.get(vm.name)
        if before is not None and before is not standin:
            self._withdraw(machine)
        if standin is None:
            return
        if self._observer.is_others(machine):
            self._stop_announcing(machine)
            return
        self._at[vm.name] = standin
        if state not in RUNS:
            self._heard.pop(vm.name, None)
            self._observer.problem(machine, Problem.ADDRESS, ())
        if state is State.UP:
            self._hand_over(machine)
        elif state in ACTIVATING:
            self._announce(machine, self._silent(machine), asleep=False)
        elif state is State.FAILED:
            self._withdraw(machine, failed=True)
            self._reactor.callLater(REFUSES_FOR, self._refused_enough, machine)
        elif state is not State.UNKNOWN and vm.wake_by_packet:
            memory = _keeps_memory(machine) if reported else None
            self._announce(machine, self._addresses(machine), asleep=True, memory=memory)
        else:
            self._withdraw(machine)

    def owner_changed(self, machine: Machine) -> None:
        """Announce *machine* anew if this node owns it: its owner, or its host, may have changed."""
        if machine.uuid:
            self._tell(machine)

    def reannounce(self) -> None:
        """Announce all VMs of this node anew: Synjitsu soon drops what a node that is gone had announced."""
        for machine in self._machines.values():
            self._stop_announcing(machine)
            self.owner_changed(machine)

    def _stop_announcing(self, machine: Machine) -> None:
        """Leave the announcements of *machine* to another node, as they are."""
        standin = self._at.pop(machine.vm.name, None)
        if standin is not None:
            for ip in self._addresses(machine):
                standin.stop_announcing(str(ip))

    def _refused_enough(self, machine: Machine) -> None:
        standin = self._standin(machine)
        if standin is None or self._observer.is_others(machine):
            return
        if machine.state is State.FAILED and machine.vm.wake_by_packet:
            self._at[machine.vm.name] = standin
            self._announce(machine, self._addresses(machine), asleep=True)

    def _macs(self, vm: VM) -> tuple[str, ...]:
        """Return the MACs of the guest: those of the configuration, and then those that the hypervisor knows."""
        return tuple(dict.fromkeys((*vm.mac, *self._guests.get(vm.name, Guest()).macs)))

    def _addresses(self, machine: Machine) -> list[Address]:
        """Return the addresses of *machine* but for those that another VM has now: it may still be stopping."""
        return [ip for ip in machine.vm.ip if self._by_ip.get(str(ip)) == machine.vm.name]

    def _silent(self, machine: Machine) -> list[Address]:
        """Return the addresses at which the guest has not been found listening yet."""
        heard = self._heard.get(machine.vm.name, ())
        return [ip for ip in self._addresses(machine) if str(ip) not in heard]

    def _hand_over(self, machine: Machine) -> None:
        """Hand over the addresses of a guest that is up; those at which it does not listen yet, a little later."""
        vm = machine.vm
        heard = self._heard.get(vm.name, set()) if self._at[vm.name].connected else set()
        addresses = self._addresses(machine)
        late = [ip for ip in addresses if heard and str(ip) not in heard]
        for ip in addresses:
            if ip not in late:
                self._at[vm.name].ready(str(ip), self._macs(vm))
        if late:
            self._announce(machine, late, asleep=False)
            self._late[vm.name] = self._reactor.callLater(LATE_BY, self._late_enough, machine)

    def _late_enough(self, machine: Machine) -> None:
        del self._late[machine.vm.name]
        self._heard[machine.vm.name].update(map(str, machine.vm.ip))
        self._hand_over(machine)

    def _announce(
        self, machine: Machine, ips: Iterable[Address], *, asleep: bool, memory: bool | None = None
    ) -> None:
        vm, state = machine.vm, machine.state
        knocks = state in RUNS
        for ip in ips:
            self._at[vm.name].announce(
                str(ip),
                self._macs(vm),
                asleep=asleep,
                runs=state in RUNS,
                ports=vm.ports or None,
                wake_udp=vm.wake_udp,
                handover=vm.handover.value,
                domid=self._guests.get(vm.name, Guest()).domid,
                knock=port_of(vm) if knocks and has_port(vm, machine.backend) else None,
                memory=memory,
            )

    def _withdraw(self, machine: Machine, *, failed: bool = False) -> None:
        standin = self._at.pop(machine.vm.name, None)
        if standin is not None:
            for ip in self._addresses(machine):
                standin.withdraw(str(ip), failed=failed)

    # What Synjitsu sees.

    def _wanted(self, ip: str, source: str, flow: bool = False) -> None:  # noqa: FBT001, FBT002
        """Wake the VM with the address *ip*: *source* sends to it, on a connection that is open if *flow* is true."""
        machine = self._machine_at(ip)
        if machine is not None:
            self._observer.wake(machine, source, proven=flow)

    def _seen(self, ip: str) -> None:
        """Look at a VM whose guest has announced itself: it may have been started by hand."""
        machine = self._machine_at(ip)
        if machine is not None and machine.state not in ACTIVATING:
            machine.look("its guest has announced itself")

    def _listens(self, ip: str) -> None:
        machine = self._machine_at(ip)
        if machine is None or machine.state not in RUNS:
            return
        self._heard.setdefault(machine.vm.name, set()).add(ip)
        waiting = self._waits.pop(machine.vm.name, None)
        if waiting is not None:
            waiting.callback(None)

    def _elsewhere(self, ip: str, found: str) -> None:
        machine = self._machine_at(ip)
        if machine is not None and machine.state in RUNS:
            sentence = f"its guest uses {found}, and not {ip}: correct the address in the guest, or the VM's ip"
            self._observer.problem(machine, Problem.ADDRESS, (sentence,) if found else ())

    def _machine_at(self, ip: str) -> Machine | None:
        return self._machines.get(self._by_ip.get(ip, ""))

    # Readiness (`ijitsu.IReadiness`).

    def wait(self, vm: VM, guest: Guest) -> Deferred[None]:
        """Fire when Synjitsu has found the guest listening; while it is not connected, this host tries the port."""
        self._guests[vm.name] = guest
        self._tell(self._machines[vm.name])
        return Deferred.fromCoroutine(self._wait(vm, guest))

    async def _wait(self, vm: VM, guest: Guest) -> None:
        name, machine = vm.name, self._machines[vm.name]
        while not self._heard.get(name):
            is_there = self._is_there(machine)
            self._waits[name] = waiting = Deferred[None]() if is_there else self._port.wait(vm, guest)
            try:
                await waiting
            except CancelledError:
                if name not in self._turned:
                    raise
            else:
                return
            finally:
                self._turned.discard(name)
                self._waits.pop(name, None)

    def _turn(self, standin: SynjitsuClient) -> None:
        """Wait for guests in another way: Synjitsu was connected or lost, or refuses other addresses."""
        for name, waiting in list(self._waits.items()):
            if self._standin(self._machines[name]) is standin:
                self._turned.add(name)
                waiting.cancel()


def _keeps_memory(machine: Machine) -> bool | None:
    """
    Return whether the memory of *machine*, which does not run or is being stopped, is kept; None if that is not known.

    A guest that shuts down may still end its connections in order. After a failed start, an image may be there still.
    """
    if machine.state in {State.PAUSED, State.SAVED}:
        return True
    if machine.state is State.STOPPING and isinstance(machine.order, Stop) and machine.order.mode in KEEPS_MEMORY:
        return True
    return False if machine.state in {State.OFF, State.PREPARED} else None
