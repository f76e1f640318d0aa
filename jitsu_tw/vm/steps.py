"""
What a machine does when it enters a state: start, wait, prepare for a later start, stop.

Each step is a coroutine whose result is the machine's next input; an exception is a failure of the step. While one is
under way, the machine makes no other call to the backend.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredList, FirstError, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger

from jitsu_tw.errors import BackendError, BackendLost, ClusterUnavailable, NoCapacity, NoSuchVM
from jitsu_tw.ijitsu import Guest, Power
from jitsu_tw.ijitsu import Start as How
from jitsu_tw.readiness import has_port
from jitsu_tw.rules.life import RESUMED
from jitsu_tw.rules.lifecycle import Event, State
from jitsu_tw.rules.vitals import Counts, Sign, Window, sign_of_life
from jitsu_tw.settings import READY_WITHIN, RESUMED_WITHIN, Boot, Mode
from jitsu_tw.vm.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.rules.lifecycle import Stop
    from jitsu_tw.settings import VM
    from jitsu_tw.vm.interfaces import IMachineContext, IRunning

#: The next input of a machine, and its reason.
Outcome = tuple[Event, str]

SEEN: Final = {
    Power.OFF: Event.OFF,
    Power.RUNNING: Event.RUNNING,
    Power.PAUSED: Event.PAUSED,
    Power.SAVED: Event.SAVED,
    Power.PREPARED: Event.PREPARED,
}

#: For the last of the seconds in which a guest is to be ready, it is observed.
OBSERVED: Final = 10.0

#: Seconds that a start waits for the state to be written; a commit takes some milliseconds.
WRITTEN_WITHIN: Final = 0.1

#: The guest goes on from when it was ready; only what it must show anew is waited for.
WAS_READY: Final = frozenset({How.RESTORED, How.PREPARED})

#: The outcome of a wait for a guest that nobody can tell to be ready: it is taken for up, so that it has a lease.
NOT_KNOWN: Final = (Event.READY, "not known to be ready")

log: Final = Logger()


# Starting.


async def start(machine: IRunning, context: IMachineContext) -> Outcome:
    """
    Start the VM, for a client or to prepare it; where its host has not the memory, prepared VMs are given up.

    Raises:
        NoCapacity: its host has not the memory for it.
        ClusterUnavailable: another node may start it.
        BackendError: in the backend's words.
    """
    prepares = machine.state is State.PREPARING
    if not await _is_claimed(machine, context):
        return Event.OFF, "another node may start it"
    # That Jitsu starts it must be known after a crash from here on; but a slow disk delays no start for long.
    remembered = Deferred.fromCoroutine(context.remembered())
    if not remembered.called:
        remembered.addTimeout(WRITTEN_WITHIN, context.reactor)
        remembered.addErrback(lambda failure: failure.trap(DeferredTimeout))
    cold, memory = machine.next.cold, None
    with contextlib.suppress(BackendError):
        memory = await machine.backend.memory(machine.uuid)
    await remembered
    while memory is not None and memory.shortage:
        if prepares or not await context.give_up_prepared(machine):
            raise NoCapacity(memory.shortage)
        memory = await machine.backend.memory(machine.uuid)
    if prepares and machine.state is State.CANCELLING:
        return Event.OFF, machine.reason
    if cold:
        await machine.backend.drop_image(machine.uuid)
    context.ownership.prove(machine)
    how = await machine.backend.start(machine.uuid)
    assert machine.activation is not None
    machine.activation.how = how
    machine.mark("started")
    return Event.STARTED, how.value


async def _is_claimed(machine: IRunning, context: IMachineContext) -> bool:
    """Return whether this node may start the VM; one that it is to prepare, it must claim first."""
    with contextlib.suppress(ClusterUnavailable):
        return machine.state is not State.PREPARING or await context.ownership.claim(machine)
    return False


# Waiting.


async def wait(machine: IRunning, context: IMachineContext) -> Outcome:
    """Wait until all strategies tell that the guest is ready, or until its time is over and it has been judged."""
    limit = RESUMED_WITHIN if machine.how in RESUMED else READY_WITHIN
    ready = Deferred.fromCoroutine(_ready(machine, context))
    if ready.called:
        return await ready
    late: Deferred[Any] = deferLater(context.reactor, limit - OBSERVED)
    judged = late.addCallback(lambda _: Deferred.fromCoroutine(_judge(machine, context, limit)))
    both: list[Deferred[Any]] = [ready, judged]
    try:
        outcome, _ = await DeferredList(both, fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True)
    except Exception as error:  # also when the wait is cancelled
        _drop(both)
        if isinstance(error, FirstError):
            error.subFailure.raiseException()
        raise
    _drop(both)
    found: Outcome = outcome
    return found


def _drop(waits: Sequence[Deferred[Any]]) -> None:
    """End *waits*, whose results are not wanted any more."""
    for one in waits:
        one.addErrback(lambda _: None)
        one.cancel()


async def _ready(machine: IRunning, context: IMachineContext) -> Outcome:
    """Wait until all strategies tell that the guest is ready."""
    backend, vm, how = machine.backend, machine.vm, machine.how
    signs: list[Deferred[None]] = []
    assert machine.activation is not None
    try:
        if not await _owner_tells(machine, context):
            signs.append(backend.ready(machine.uuid))
            strategies = context.readiness(machine)
            guest = await backend.guest(machine.uuid) if strategies else Guest()
            signs += [one.wait(vm, guest) for one in strategies if one.anew or how not in WAS_READY]
        # It may have gone down before: an event that came during the start call was not believed.
        if await backend.state(machine.uuid) is Power.OFF:
            signs.insert(0, fail(BackendError("it went down while it was starting")))
        for sign in signs:
            await sign
    except BackendError as error:
        _drop(signs)
        if isinstance(error, BackendLost) or await backend.state(machine.uuid) is not Power.RUNNING:
            raise
        log.error("{name}: nobody can tell when it is ready: {error}", name=vm.name, error=str(error))
        return NOT_KNOWN
    except Exception:  # also when the wait is cancelled: one strategy is enough to end the wait for all
        _drop(signs)
        raise
    machine.activation.ready = True
    machine.mark("ready")
    return Event.READY, "" if how is How.BOOTED else how.value


async def _owner_tells(machine: IRunning, context: IMachineContext) -> bool:
    """Wait until the owner node tells that the VM is ready; return False where this node is to find out itself."""
    while (told := context.ownership.owner_ready(machine)) is not None:
        if await told:
            return True
    return False


async def _judge(machine: IRunning, context: IMachineContext, limit: float) -> Outcome:
    """
    Observe a guest for the rest of its time, and take it for up if it gives a sign of life.

    If it gives none, one that was resumed is booted; one that Jitsu has started, and that has a port and has never
    sent a packet, has failed.

    Args:
        machine: has not been ready so far.
        context: waits.
        limit: seconds that the guest has.
    """
    before = await counts(machine)
    await deferLater(context.reactor, OBSERVED)
    after = await counts(machine)
    # How often Synjitsu has tried the port meanwhile is not known: any packet is a sign of life.
    name, how, sign = machine.vm.name, machine.how, sign_of_life([Window(before, after)])
    if sign is Sign.NONE and how in RESUMED:
        log.error("{name}: {how}, but not ready after {limit} s, so it is booted: {sign}", name=name, how=how.value,
                  limit=limit, sign=sign.value)  # fmt: skip
        return machine.order_restart(context.now()), f"not ready after it was {how.value}"
    if sign is Sign.NONE and not after.packets and how is How.BOOTED and has_port(machine.vm, machine.backend):
        why = f"its guest did not listen within {limit:g} s, has sent no packet, and does nothing any more"
        return machine.order_end(), why
    log.warn("{name}: not ready after {limit} s; taken for up", name=name, limit=limit)
    return NOT_KNOWN


async def counts(machine: IRunning) -> Counts:
    """Return what the hypervisor has counted of the guest, as far as that can be read."""
    try:
        packets = await machine.backend.traffic(machine.uuid)
        return Counts(packets, await machine.backend.cpu_time(machine.uuid))
    except BackendError:
        return Counts(None, None)


# Preparing.


async def keep(machine: IRunning) -> Outcome:
    """
    Keep the guest, which is ready and which nobody has used, for later starts: its image, itself, or both.

    Raises:
        BackendError: it can be neither, and goes on running.
    """
    vm, why = machine.vm, "" if machine.ready else "its guest is not known to be ready"
    try:
        if not why and vm.boot_from is Boot.SNAPSHOT and machine.how is How.BOOTED:
            await machine.backend.keep_image(machine.uuid)
        if not why and vm.prepare:
            await machine.backend.prepare(machine.uuid)
            return Event.PREPARED, "no client has used it"
    except (BackendLost, NoSuchVM):
        raise
    except BackendError as error:
        why = str(error)
    await machine.backend.stop(machine.uuid, Mode.DESTROY)
    power = await machine.backend.state(machine.uuid)
    if power is not Power.OFF:
        raise BackendError("it cannot be stopped after its preparation")
    return (Event.FAIL, why) if why else (Event.OFF, "its image is kept")


# Stopping.


async def stop(machine: IRunning, context: IMachineContext, order: Stop) -> Outcome:
    """
    Stop the VM; a shutdown that is not followed in time becomes destroy.

    Raises:
        BackendError: it goes on running, or in the backend's words.
    """
    mode = await _stop_by(machine, order.mode)
    if mode is Mode.SHUTDOWN and not await _goes_down(machine, context):
        name, limit = machine.vm.name, machine.vm.stop_timeout
        log.warn("{name}: has not shut down in {limit} s; destroyed", name=name, limit=limit)
        await machine.backend.stop(machine.uuid, Mode.DESTROY)
    power = await machine.backend.state(machine.uuid)
    if power is Power.RUNNING:
        raise BackendError("it goes on running")
    return Event.FAIL if order.fails else SEEN[power], machine.reason


async def obstacle(machine: IRunning) -> str | None:
    """Return what is known against stopping the VM by its mode; None if nothing is."""
    if machine.vm.mode in {Mode.DESTROY, Mode.SHUTDOWN}:
        return None
    with contextlib.suppress(BackendError):  # then the stop itself tells
        return await machine.backend.obstacle(machine.uuid, machine.vm.mode)
    return None


def fallback(vm: VM) -> Mode | None:
    """Return the mode by which the VM is stopped if it cannot be saved; None if there is none."""
    return vm.save_fallback if vm.mode is Mode.SAVE else None


async def _stop_by(machine: IRunning, mode: Mode) -> Mode:
    """Ask the backend to stop the VM by *mode*, or by `save_fallback` if it cannot be saved; return by which."""
    instead = fallback(machine.vm) if mode is Mode.SAVE else None
    if instead is None:
        await machine.backend.stop(machine.uuid, mode)
        return mode
    why = await obstacle(machine)
    if why is None:
        try:
            await machine.backend.stop(machine.uuid, mode)
        except (BackendLost, NoSuchVM):
            raise
        except BackendError as error:
            why = str(error)
        else:
            machine.problem(Problem.FALLBACK)
            return mode
    machine.problem(Problem.FALLBACK, f"it cannot be saved, so it is stopped by {instead.value}: {why}")
    await machine.backend.stop(machine.uuid, instead)
    return instead


async def _goes_down(machine: IRunning, context: IMachineContext) -> bool:
    """Wait for the guest to shut down; return whether it did so within `stop_timeout`."""
    late = context.reactor.callLater(machine.vm.stop_timeout, machine.look, "its time to shut down is over")
    try:
        while True:
            hinted = machine.hinted()
            if await machine.backend.state(machine.uuid) is Power.OFF:
                return True
            if not late.active():
                return False
            await hinted
    finally:
        if late.active():
            late.cancel()
