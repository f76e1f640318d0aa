"""The steps of a machine, where the hypervisor does otherwise than it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import succeed

from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from test.support import World, vm
from test.unit.vm.test_fleet import FleetTestCase

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.ijitsu import Start


class StepsTests(FleetTestCase):
    """`steps`."""

    def test_goes_on(self) -> None:
        """A VM that goes on running after a stop that went well is up."""
        self.world = World(vm())
        self.ask()
        self.patch(self.world.backend, "stop", lambda *_: succeed(None))
        self.world.pump(121)
        self.assertIs(State.UP, self.world.machine().state)

    def test_down_already(self) -> None:
        """A VM that went down before its start had ended has failed."""
        self.world = World(vm())
        start = self.world.backend.start

        def start_and_end(uuid: str) -> Deferred[Start]:
            started = start(uuid)
            self.world.backend.guests[uuid].power = Power.OFF
            return started

        self.patch(self.world.backend, "start", start_and_end)
        self.ask()
        self.assertIs(State.FAILED, self.world.machine().state)
