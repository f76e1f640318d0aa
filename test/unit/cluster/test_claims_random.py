"""
Three nodes and two hosts, with everything going wrong that can, on a clock.

Clients ask; nodes are killed, end, are cut off and drained; hosts are lost, guests crash, the operator stops and moves
VMs. No VM may run on two hosts, or be stopped while it is used; in the end no fact of a VM may be left.
`bench.simulation.cluster` does the same with real processes and a real etcd.
"""

from __future__ import annotations

from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.ijitsu import Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import HOSTS, STARTS_WITHIN, Mode
from test.support import question, vm
from test.unit.cluster.test_claims import HostsCluster, Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.backends.memory import MemoryGuest

#: How often, of a thousand times, what happens; else a client asks.
CHANCES = {"kill": 15, "end": 5, "cut": 15, "drain": 5, "lose": 7, "crash": 8, "stop": 10, "move": 5, "ask_all": 20}

#: An answer that a node gave at most this many seconds before it was killed or cut off may be unknown to the others.
UNTOLD = 1.3

#: Seconds after the operator's stop or move in which it may take effect.
BY_HAND = 6.0

NAMES = [f"vm{number}" for number in range(6)]


class Chaos:
    """The cluster, what happens in it, and what was used when."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        choose = self.random.choice
        self.cluster = HostsCluster(*(
            vm(name, backend=HOSTS, hosts=("left", "right"), boot_time=choose((0.0, 0.3, 1.0, 4.0)),
               idle=choose((4.0, 8.0, 15.0)), mode=choose((Mode.DESTROY, Mode.DESTROY, Mode.PAUSE, Mode.SAVE)),
               response_delay=choose((None, 0.5)))
            for name in NAMES
        ))  # fmt: skip
        self.wrong: list[str] = []
        self.uses: list[tuple[float, str, str]] = []
        self.by_hand: dict[str, float] = {}
        self.cut_off: set[str] = set()
        self.lost: set[str] = set()
        for name, host in self.cluster.hosts.items():
            self._listen(name, host)

    @property
    def now(self) -> float:
        """The clock's time."""
        return self.cluster.clock.seconds()

    def _listen(self, name: str, host: Any) -> None:
        """Check each start and stop call."""
        start, stop = host.start, host._stop

        def starts(uuid: str) -> Any:
            one = host.guests[uuid].vm.name
            others = [other for other, guest in self.guests(one) if other != name and guest.power is Power.RUNNING]
            if others:
                self.wrong.append(f"{self.now}: {one} is started on {name}, and runs on {others}")
            return start(uuid)

        def stops(uuid: str, mode: Mode) -> Any:
            guest = host.guests[uuid]
            one, since = guest.vm.name, self.now - self.used(guest.vm.name)
            is_asked = self.by_hand.get(one, -inf) > self.now - BY_HAND
            if guest.power is Power.RUNNING and since < guest.vm.idle - 0.2 and not is_asked:
                self.wrong.append(f"{self.now}: {one} is stopped {since:.2f} s after its last use")
            return stop(uuid, mode)

        host.start, host._stop = starts, stops

    def guests(self, name: str) -> list[tuple[str, MemoryGuest]]:
        """Return a VM as each host has it."""
        return [(on, guest) for on, host in self.cluster.hosts.items()
                for guest in host.guests.values() if guest.vm.name == name]

    def used(self, name: str) -> float:
        """Return when a VM was last used."""
        return max((when for when, _, one in self.uses if one == name), default=-inf)

    def living(self) -> Node | None:
        """Return a random node if it lives and is connected; else None."""
        node = self.random.choice(self.cluster.nodes)
        return node if node.reactor.alive and node.name not in self.cut_off else None

    def forget_untold(self, node: Node) -> None:
        """Forget the uses that the node may not have reported."""
        self.uses = [use for use in self.uses if use[1] != node.name or use[0] < self.now - UNTOLD]

    def later(self, call: Callable[[], object], *delays: float) -> None:
        """Call something after one of those delays, or after any up to 15 s."""
        self.cluster.clock.callLater(self.random.choice((*delays, self.random.uniform(0, 15))), call)

    # What happens.

    def ask(self, node: Node | None = None, name: str = "") -> None:
        """Ask a node for a VM; an answer is a use."""
        node, name = node or self.random.choice(self.cluster.nodes), name or self.random.choice(NAMES)
        if node.reactor.alive:
            host = f"192.0.{self.random.randrange(256)}.{self.random.randrange(256)}"
            node.fleet.summons.summon(name, question(name, host)).addBoth(self._answered, node, name)

    def _answered(self, result: Any, node: Node, name: str) -> None:
        is_up = result is True and node.state(name) is State.UP
        # A node that is not connected yet answers like one that is cut off: it cannot tell the owner in time.
        can_tell = node.fleet.cluster.ownership.connected and node.name not in self.cut_off
        if is_up and node.reactor.alive and can_tell:
            self.uses.append((self.now, node.name, name))

    def ask_all(self) -> None:
        """Ask all nodes at once."""
        name = self.random.choice(NAMES)
        for node in self.cluster.nodes:
            self.ask(node, name)

    def kill(self) -> None:
        """Kill a node."""
        node = self.random.choice(self.cluster.nodes)
        if node.reactor.alive:
            self.forget_untold(node)
            node.kill()
            self.later(lambda: self._again(node), 0.0, 1.0)

    def end(self) -> None:
        """End a node in order."""
        node = self.living()
        if node is not None:
            self.forget_untold(node)
            self.cluster.forget(node)
            node.fleet.cluster.stop()
            self.cluster.run(0.2, 0.02)
            node.reactor.alive = False
            self.later(lambda: self._again(node), 0.0, 1.0)

    def _again(self, node: Node) -> None:
        self.cut_off.discard(node.name)
        new = Node(node.name, self.cluster)
        self.cluster.nodes[self.cluster.nodes.index(node)] = new
        for name in self.lost:
            new.pool.lost(self.cluster.hosts[name], "the cable is out")

    def cut(self) -> None:
        """Cut a node off, for a while."""
        node = self.living()
        if node is not None:
            self.forget_untold(node)
            node.coordinator.cut()
            self.cut_off.add(node.name)
            self.later(lambda: self._heal(node), 1.0, 4.0)

    def _heal(self, node: Node) -> None:
        if node.reactor.alive and node.name in self.cut_off:
            node.coordinator.heal()
            self.later(lambda: self.cut_off.discard(node.name), 0.1, 0.1, 0.1)

    def drain(self) -> None:
        """Drain a node, for a while."""
        node = self.living()
        if node is not None:
            node.fleet.cluster.drain("nodes", node.name).addErrback(lambda _: None)
            self.later(lambda: self._undrain(node.name))

    def _undrain(self, name: str) -> None:
        node = self.living()
        if node is None:
            self.later(lambda: self._undrain(name), 1.0)
        else:
            node.fleet.cluster.drain("nodes", name, undo=True).addErrback(lambda _: self._undrain(name))

    def lose(self) -> None:
        """Lose a host, for a while."""
        name = self.random.choice(list(self.cluster.hosts))
        if name not in self.lost:
            self.lost.add(name)
            for node in self.cluster.nodes:
                if node.reactor.alive:
                    node.pool.lost(self.cluster.hosts[name], "the cable is out")
            self.later(lambda: self._find(name), 0.5, 3.0)

    def _find(self, name: str) -> None:
        self.lost.discard(name)
        for node in self.cluster.nodes:
            if node.reactor.alive:
                node.pool.connected(self.cluster.hosts[name])

    def crash(self) -> None:
        """Make a guest crash."""
        for host in self.cluster.hosts.values():
            for uuid, guest in host.guests.items():
                if guest.power is Power.RUNNING and not guest.busy and self.random.random() < 0.2:
                    host.happen(uuid, Power.OFF, "the guest crashed")
                    return

    def stop(self) -> None:
        """Stop a VM, as the operator does."""
        node, name = self.random.choice(self.cluster.nodes), self.random.choice(NAMES)
        if node.reactor.alive:
            self.by_hand[name] = self.now
            node.fleet.operator.stop(name).addErrback(lambda _: None)

    def move(self) -> None:
        """Move a VM, as the operator does."""
        node, name = self.random.choice(self.cluster.nodes), self.random.choice(NAMES)
        if node.reactor.alive:
            self.by_hand[name] = self.now + BY_HAND
            move = node.fleet.cluster.move(node.fleet.machines[name], self.random.choice(("left", "right")))
            move.addErrback(lambda _: None)

    def shake(self, seconds: float) -> None:
        """Make everything happen for some seconds."""
        end = self.now + seconds
        while self.now < end and not self.wrong:
            happens = self.random.choices([*CHANCES, "ask"], [*CHANCES.values(), 1000 - sum(CHANCES.values())])[0]
            getattr(self, happens)()
            self.cluster.run(self.random.choice((0.02, 0.1, 0.5, 1.0)), 0.02)
            for name in NAMES:
                running = [on for on, guest in self.guests(name) if guest.power is Power.RUNNING]
                if len(running) > 1:
                    self.wrong.append(f"{self.now}: {name} runs on {running}")

    def audit(self) -> None:
        """Make nothing happen for a while, and check what is left."""
        for node in self.cluster.nodes:
            self._heal(node)
        self.cluster.run(STARTS_WITHIN + 50.0, 0.05)
        left = [name for name in NAMES for _, guest in self.guests(name) if guest.power is Power.RUNNING]
        facts = [key for key in self.cluster.facts() if key.startswith(("claims", "runs", "asks"))]
        states = {node.state(name) for node in self.cluster.nodes for name in NAMES}
        busy = states - {State.OFF, State.PAUSED, State.SAVED, State.FAILED}
        if left or facts or busy:
            self.wrong.append(f"in the end {left} run, {facts} are agreed on, and some are {busy}")


class RandomTests(SynchronousTestCase):
    """What holds, whatever happens."""

    def test_at_random(self) -> None:
        """No VM runs twice, none is stopped in use, and none is lost."""
        for seed in range(8):
            chaos = Chaos(seed)
            chaos.shake(300.0)
            if not chaos.wrong:
                chaos.audit()
            self.assertEqual([], chaos.wrong, f"seed {seed}")
        self.flushLoggedErrors()
