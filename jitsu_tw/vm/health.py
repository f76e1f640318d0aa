"""Whether guests are alive (`check_every`): one whose port is silent, and that gives no sign of life, is restarted."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger

from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import BackendError
from jitsu_tw.readiness import has_port, port_of
from jitsu_tw.rules.vitals import Sign, Window, sign_of_life
from jitsu_tw.vm.problems import Problem
from jitsu_tw.vm.steps import counts

if TYPE_CHECKING:
    from jitsu_tw.clocks import Clocks
    from jitsu_tw.ijitsu import IOwnership
    from jitsu_tw.readiness import Strategies
    from jitsu_tw.rules.lease import Lease, Leases
    from jitsu_tw.vm.machine import Machine

#: A guest's port is tried this often for so long, in seconds; if it is silent, the guest is observed without being
#: disturbed; then its port is tried again. An idle Linux guest uses a tick of CPU within that.
CHECK_RETRY: Final = 0.5
CHECK_PATIENCE: Final = 5.0
CHECK_QUIET: Final = 20.0


class HealthChecks:
    """
    Checks guests that are in use.

    It owns, and nobody else writes: `Lease.check_at`, and the checks under way.
    """

    log = Logger()

    def __init__(self, leases: Leases, clocks: Clocks, port: Strategies, ownership: IOwnership) -> None:
        """
        Check nothing yet.

        Args:
            leases: those of the VMs that are up; a check ends with the lease with which it began.
            clocks: tell the time.
            port: tries ports.
            ownership: knows which node owns a VM; those of other nodes are not checked.
        """
        self._leases, self._port, self._ownership = leases, port, ownership
        self._reactor, self._now = clocks.reactor, clocks.now
        self._checks: dict[str, Deferred[Any]] = {}

    def stop(self) -> None:
        """Check nothing any more."""
        for check in list(self._checks.values()):
            check.cancel()

    def watch(self, machine: Machine, lease: Lease) -> None:
        """Make the uses of *machine*, which has `check_every` and *lease*, a reason to check it, if it has a port."""
        is_checked = has_port(machine.vm, machine.backend) and self._ownership.is_own(machine)
        lease.check_at = self._now() + machine.vm.check_every if is_checked else inf

    def check(self, machine: Machine) -> None:
        """Check whether the guest of *machine* is alive, and restart it if not; its answers go on meanwhile."""
        lease, name = self._leases.get(machine.vm.name), machine.vm.name
        if lease is None or not machine.ready or name in self._checks or not self._ownership.is_own(machine):
            return
        lease.check_at = self._now() + machine.vm.check_every
        check = spawn(self.log, self._check(machine, lease), name, ignore=(BackendError, CancelledError))
        self._checks[name] = check
        check.addCallback(lambda _: self._checks.pop(name))

    async def _check(self, machine: Machine, lease: Lease) -> None:
        """Restart *machine* if its port is silent, twice, and its guest has given no sign of life all the time."""
        vm, windows, before = machine.vm, list[Window](), await counts(machine)
        for tries in (True, False, True):
            if tries and await self._answers(machine):
                machine.problem(Problem.PORT)
                return
            if not tries:
                await deferLater(self._reactor, CHECK_QUIET)
            after = await counts(machine)
            if self._leases.get(vm.name) is not lease:
                return
            number = (int(CHECK_PATIENCE / CHECK_RETRY) + 1) * len(vm.ip) if tries else 0
            windows.append(Window(before, after, number))
            before, sign = after, sign_of_life(windows)
            if sign is not Sign.NONE:
                silent = f"its port {port_of(vm)} does not answer Jitsu's host"
                machine.problem(Problem.PORT, f"{silent}, but it is left alone: {sign.value}")
                return
        machine.problem(Problem.PORT)
        reason = f"dead: its port {port_of(vm)} is silent, and {sign.value}"
        self.log.error("{name}: {reason}; restarted", name=vm.name, reason=reason)
        machine.restart(reason)

    async def _answers(self, machine: Machine) -> bool:
        """Return whether the guest's port answers within `CHECK_PATIENCE` seconds."""
        answers = self._port.wait(machine.vm, await machine.backend.guest(machine.uuid), CHECK_RETRY)
        try:
            await answers.addTimeout(CHECK_PATIENCE, self._reactor)
        except DeferredTimeout:
            return False
        return True
