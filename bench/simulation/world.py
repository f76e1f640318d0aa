"""Everything around Jitsu in a soak, on one clock: VMs, clients, people, faults, and what ends Jitsu."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from bench.simulation.connection import HANGS
from bench.simulation.hypervisor import Hypervisor
from bench.simulation.ledger import Ledger
from bench.simulation.life import AAAA, HTTPS, OUTSIDE, TXT, A, FileStore, Jitsu
from jitsu_tw.backends.memory import Fault, MemorySettings
from jitsu_tw.dns.wire import from_text
from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.readiness import port_of
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.rules.schedule import WeeklyWindow
from jitsu_tw.settings import VM, Boot, Evidence, Mode, Settings, WhenFull
from jitsu_tw.store.history import MAIN
from jitsu_tw.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from twisted.internet.interfaces import IDelayedCall

    from bench.simulation.ledger import Facts

#: What the clock's zero is, in seconds since 1970.
EPOCH: Final = 1_700_000_000.0

#: Seconds of a round in which things happen, and in which nothing does: more than the longest lease and rest together.
BUSY: Final = 900.0
QUIET: Final = 900.0

#: Every how many seconds something happens, on the mean.
QUERY: Final = 0.2
BURST: Final = 30.0
BY_HAND: Final = 3.0
UNDEFINE: Final = 45.0
CONTROL: Final = 6.0
FAULT: Final = 3.0
LOST: Final = 120.0
KILL: Final = 60.0
TRAFFIC: Final = 4.0
DEAF: Final = 30.0

#: Every how many-th round keeps the state in a repository.
GIT_EVERY: Final = 4

URIS: Final = ("one", "two")


def vms(number: int, random: Random) -> tuple[VM, ...]:
    """Return so many VMs, no two of a kind."""
    made: list[VM] = []
    for one in range(number):
        name = f"vm{one:03}"
        # Every second ten are a group: three need the first, one needs one of these, one needs two.
        mode = random.choice(list(Mode))
        needs = {1: (0,), 2: (0,), 3: (0,), 4: (1,), 5: (0, 6)}.get(one % 10, ()) if one % 20 < 10 else ()
        group = one - one % 10
        kept = one % 25 == 7
        uri = URIS[one // 10 % 2]
        made.append(VM(
            name=name,
            dns=(from_text(f"{name}.soak.test"),),
            ip=tuple(ip_address(text) for text in (f"10.0.{one // 250}.{one % 250 + 1}", f"2001:db8::{one + 1:x}")
                     [: 1 + (one % 3 == 0)]),
            ttl=60,
            mode=mode,
            backend="memory",
            connect=uri,
            idle=random.choice((3.0, 5.0, 10.0, 20.0, 45.0, 90.0)),
            readiness=_readiness(random.choice((None, None, 0.2, 1.5)), 80 if one % 20 == 8 else None),
            min_up=random.choice((0.0, 0.0, 0.0, 15.0, 60.0)),
            max_up=0.0 if kept else random.choice((0.0, 0.0, 0.0, 90.0, 300.0)),
            keep_up=tuple(_spans(one)) if kept else (),
            needs=tuple(f"vm{group + other:03}" for other in needs if group + other < number),
            boot_from=random.choice((Boot.DISK, Boot.DISK, Boot.SNAPSHOT)),
            prepare=mode in {Mode.DESTROY, Mode.SHUTDOWN} and not needs and random.random() < 0.4,
            check_every=5.0,
            evidence=Evidence.QUERIES if one % 3 == 1 else Evidence.TRAFFIC,
            stop_timeout=random.choice((3.0, 10.0)),
            backend_settings=MemorySettings(boot_time=random.choice((0.0, 0.1, 0.5, 2.0, 6.0))),
        ))
    return tuple(made)


def _readiness(delay: float | None, port: int | None) -> dict[str, Any]:
    """Return what tells that a guest is ready."""
    keys = {"response_delay": delay, "wait_for_port": port}
    return {key: value for key, value in keys.items() if value is not None}


def _spans(number: int) -> Iterator[WeeklyWindow]:
    """Yield times of day: 20 to 40 minutes of every second hour."""
    for hour in range(number % 2, 24, 2):
        yield WeeklyWindow.parse(f"{hour:02}:{number % 30:02}-{hour:02}:{number % 20 + 35:02}")


def random_weight(random: Random) -> float:
    """Return how much a VM is asked for: a few are all the time, many hardly ever."""
    return random.paretovariate(1.2)


class World:
    """Everything around Jitsu, on one clock."""

    def __init__(self, number: int, seed: int, folder: Path) -> None:
        """Begin with so many VMs, all off, and a Jitsu; the seed decides what happens."""
        self.random, self.folder = Random(seed), folder  # noqa: S311
        self.clock = Clock()
        self.vms = vms(number, self.random)
        self.ledger = Ledger(self.vms, self.now, self.wall)
        self.hypervisors = {uri: Hypervisor(uri, self.clock, self.ledger, self.random) for uri in URIS}
        for vm in self.vms:
            self.hypervisors[vm.connect].define(vm, anew=False)
        self.store: MemoryStore | FileStore = MemoryStore(lasting=True)
        self.jitsu: Jitsu | None = None
        self.busy = False
        self._coming: dict[Callable[[], None], IDelayedCall] = {}
        self._weights = [random_weight(self.random) for _ in self.vms]
        self._sources = [f"10.{net}.{net % 7}.{host}" for net in range(24) for host in (1, 2, 3)]
        self._sources += [f"2001:db8:{net:x}:{net:x}::{host}" for net in range(8) for host in (1, 2)]
        self._sources += [f"{OUTSIDE}{host}" for host in (1, 2)]

    def now(self) -> float:
        """Return the clock's time."""
        return self.clock.seconds()

    def wall(self) -> float:
        """Return the seconds since 1970."""
        return EPOCH + self.clock.seconds()

    def listens(self, host: str) -> bool | None:
        """Say whether a guest's port is open; None if nobody is there."""
        found = [hypervisor.listens(host) for hypervisor in self.hypervisors.values()]
        return next((one for one in found if one is not None), None)

    def exception(self) -> None:
        """Hear of an exception that nobody caught; it is being handled."""
        self.ledger.against("exception", None, Failure().getTraceback())

    # Jitsu's lives.

    def begin(self) -> None:
        """Start a Jitsu, with other limits than the last."""
        choose = self.random.choice
        settings = Settings(
            vms=self.vms,
            listen=0,
            answer_by=choose((0.5, 1.2)),
            max_booting=choose((2, 8, 20)),
            max_running=choose((0, 0, 60, 100)),
            max_prepared=choose((0, 3, 16)),
            when_full=choose(list(WhenFull)),
            starts_per_minute=choose((0, 30, 60)),
            summon_from=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
        )
        self.ledger.counts["Jitsus"] += 1
        self.jitsu = Jitsu(self, settings)

    def kill(self) -> None:
        """End Jitsu as `kill -9` does, and start another soon."""
        if self.jitsu is None:
            return
        self.ledger.counts["kills"] += 1
        jitsu, self.jitsu = self.jitsu, None
        self._end(jitsu)
        self.ledger.killed()
        if isinstance(self.store, FileStore):
            if self.random.random() < 0.3:
                lock = self.folder / f"{self.ledger.counts['repositories']}.git" / f"{MAIN}.lock"
                lock.touch()
                os.utime(lock, (0, 0))  # what the world takes for hours is seconds here
            self.reopen()
        self.clock.callLater(self.random.choice((0.0, 0.5, self.random.uniform(0, 20))), self.begin)

    def _end(self, jitsu: Jitsu) -> None:
        jitsu.end()
        for asked in jitsu.waiting:
            self.ledger.unanswered(self.ledger.facts[asked.name], asked.at)

    def end(self) -> None:
        """End Jitsu as its service does; nothing may be left of it but what was under way."""
        jitsu, self.jitsu = self.jitsu, None
        if jitsu is not None:
            stopped: list[Any] = []
            jitsu.fleet.stop().addBoth(stopped.append)
            limit = self.now() + 10
            while not stopped and self.clock.calls and (when := self.clock.calls[0].getTime()) < limit:
                self.clock.advance(max(0.0, when - self.now()))
            if stopped != [None]:
                self.ledger.against("end", None, f"the service ends with {stopped}")
            if not self.busy and (calls := jitsu.process.getDelayedCalls()):
                self.ledger.against("leak", None, f"calls are left: {calls}")
            self._end(jitsu)
            self.ledger.ended()

    def reopen(self) -> None:
        """Let the next Jitsu read the repository anew."""
        if isinstance(self.store, FileStore):
            self.store.release()
        self.store = FileStore(self.folder / f"{self.ledger.counts['repositories']}.git")

    # What happens.

    def every(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something every so many seconds, on the mean, while the world is busy."""
        def again() -> None:
            if self.busy:
                act()
                self._coming[act] = self.clock.callLater(self.random.expovariate(1 / seconds), again)

        self._coming[act] = self.clock.callLater(self.random.expovariate(1 / seconds), again)

    def shake(self) -> None:
        """Begin with everything that happens."""
        self.busy = True
        if self.jitsu is None:
            self.begin()
        for seconds, act in (
            (QUERY, self._query), (BURST, self._burst), (BY_HAND, self._by_hand), (UNDEFINE, self._undefine),
            (CONTROL, self._control), (FAULT, self._fault), (LOST, self._lose), (KILL, self._kill),
            (TRAFFIC, self._traffic), (DEAF, self._fall_silent),
        ):
            self.every(seconds, act)

    def _query(self) -> None:
        self._ask(self.random.choices(self.vms, self._weights)[0].name, self.random.choice(self._sources))

    def _burst(self) -> None:
        """Ask for many at once, from one network or from many."""
        number = self.random.randint(5, 60)
        sources = self._sources if self.random.random() < 0.5 else [self.random.choice(self._sources)]
        for vm in self.random.choices(self.vms, k=number):
            self._ask(vm.name, self.random.choice(sources))

    def _ask(self, name: str, host: str) -> None:
        if self.jitsu is None:
            return
        kind = self.random.choices((A, AAAA, TXT, HTTPS), (85, 8, 3, 4))[0]
        question = name, host, self.random.randrange(1024, 65536), self.random.getrandbits(16), kind
        self.jitsu.ask(*question)
        if self.random.random() < 0.15:
            self.clock.callLater(self.random.choice((0.4, 0.8, 1.5)), self._ask_again, question)

    def _ask_again(self, question: tuple[str, str, int, int, int]) -> None:
        if self.jitsu is not None:
            self.jitsu.ask(*question, again=True)

    def _defined(self) -> tuple[Hypervisor, str, str]:
        """Return a VM that is defined: where, its name and its uuid."""
        while True:
            vm = self.random.choice(self.vms)
            hypervisor = self.hypervisors[vm.connect]
            if vm.name in hypervisor.uuids:
                return hypervisor, vm.name, hypervisor.uuids[vm.name]

    def _by_hand(self) -> None:
        """Change a VM without Jitsu; those that others have started are stopped by them sooner or later."""
        hypervisor, name, uuid = self._defined()
        others = [facts for facts in self.ledger.facts.values() if facts.power is Power.RUNNING and not facts.by_us]
        powers = [Power.OFF, Power.OFF, Power.PAUSED, Power.SAVED, Power.RUNNING, Power.RUNNING, Power.RUNNING]
        power = self.random.choice(powers)
        if len(others) > 15:
            name, power = self.random.choice(others).vm.name, Power.OFF
            hypervisor = self.hypervisors[self.ledger.facts[name].vm.connect]
            uuid = hypervisor.uuids[name]
        guest = hypervisor.guests[uuid]
        ends = guest.power is Power.PREPARED and power is Power.OFF
        if guest.busy or guest.power is power or not (ends or Power.RUNNING in {guest.power, power}):
            return
        self.ledger.counts["by hand"] += 1
        if power is Power.RUNNING:
            guest.starts += 1
            guest.sent = guest.sent if guest.power is Power.PAUSED or guest.sent is None else 0
        hypervisor.happen(uuid, power, "by hand")

    def _undefine(self) -> None:
        """Undefine a VM that is off, and define it again a while later."""
        hypervisor, name, uuid = self._defined()
        guest = hypervisor.guests[uuid]
        if guest.power is Power.RUNNING and not guest.busy:
            hypervisor.happen(uuid, Power.OFF, "by hand")
        if not guest.busy:
            self.ledger.counts["undefined"] += 1
            hypervisor.undefine(name)
            anew, vm = self.random.random() < 0.5, self.ledger.facts[name].vm
            self.clock.callLater(self.random.uniform(0.1, 40), lambda: hypervisor.define(vm, anew=anew))

    def _control(self) -> None:
        """Start or stop a VM through Jitsu, as a person does."""
        jitsu = self.jitsu
        if jitsu is None:
            return
        facts = self.ledger.facts[self.random.choice(self.vms).name]
        name, up = facts.vm.name, jitsu.fleet.machines[facts.vm.name].state is State.UP
        if self.random.random() < 0.5:
            self.ledger.counts["control: start"] += 1
            self.ledger.wants(facts)
            self.ledger.waits(facts, 1)
            self.ledger.note(facts, "control: start")
            started = jitsu.fleet.operator.start(name)
            if jitsu.process.alive:
                self.ledger.uses(facts, up=up, person=True)
            started.addBoth(self._controlled, jitsu, lambda: self.ledger.waits(facts, -1))
        else:
            self.ledger.counts["control: stop"] += 1
            self.ledger.note(facts, "control: stop")
            facts.by_hand, facts.rested = facts.by_hand + 1, self.now()
            stopped = jitsu.fleet.operator.stop(name)
            stopped.addBoth(self._controlled, jitsu, lambda: setattr(facts, "by_hand", facts.by_hand - 1))

    @staticmethod
    def _controlled(_result: Any, jitsu: Jitsu, then: Callable[[], None]) -> None:
        if jitsu.process.alive:
            then()

    def _fault(self) -> None:
        """Order a fault for a while, or let a host have no memory."""
        hypervisor, name, uuid = self._defined()
        fault = self.random.choice([*Fault, None])
        if fault is None:
            guest = hypervisor.guests[uuid]
            guest.memory = None if guest.memory is not None else Memory(1 << 30, self.random.choice((0, 1 << 31)))
            return
        self.ledger.counts[f"fault: {fault.value}"] += 1
        self._order(name, fault)
        self.clock.callLater(self.random.uniform(1, 60), self._order, name, fault)

    def _order(self, name: str, fault: Fault) -> None:
        hypervisor, facts = self.hypervisors[self.ledger.facts[name].vm.connect], self.ledger.facts[name]
        if name in hypervisor.uuids:
            self.ledger.note(facts, f"fault {fault.value} {'on' if hypervisor.order(name, fault) else 'off'}")

    def _lose(self) -> None:
        """Break a connection, for a while."""
        hypervisor = self.random.choice(list(self.hypervisors.values()))
        if hypervisor.up:
            self.ledger.counts["lost"] += 1
            hypervisor.up = False
            if hypervisor.told is not None:
                hypervisor.told.broken()
            self.clock.callLater(self.random.choice((0.05, 2.0, self.random.uniform(0, 40))), self._find, hypervisor)

    def _find(self, hypervisor: Hypervisor) -> None:
        hypervisor.up = True
        if hypervisor.told is not None:
            hypervisor.told.found()

    def _kill(self) -> None:
        """End Jitsu: in order, between two things that it does, or within the next few."""
        how = self.random.random()
        if self.jitsu is None:
            return
        if how < 0.2:
            self.end()
            if self.jitsu is None:
                self.begin()
        elif how < 0.5:
            self.kill()
        else:
            self.jitsu.killed_in = self.random.randint(1, 30)

    def _traffic(self) -> None:
        """Let a guest send, for a while: a trickle, or as much as one in use does."""
        hypervisor, name, _ = self._defined()
        rate = self.random.choice((0.0, 0.25, 5.0, 50.0, 2000.0))
        hypervisor.send(name, rate)
        self.ledger.note(self.ledger.facts[name], f"sends {rate:g}/s")
        self.clock.callLater(self.random.uniform(1, 200), self._calm, hypervisor, name)

    def _calm(self, hypervisor: Hypervisor, name: str) -> None:
        if name in hypervisor.uuids:
            hypervisor.send(name, 0.0)

    def _fall_silent(self) -> None:
        """Let a guest that has a port close it, until its next start."""
        found = [facts for facts in self.ledger.facts.values() if port_of(facts.vm)]
        facts = self.random.choice(found)
        if facts.power is Power.RUNNING and facts.deaf == inf:
            self.ledger.counts["deaf"] += 1
            self.ledger.note(facts, "falls silent")
            facts.deaf = self.now()
            self.clock.callLater(self.random.uniform(1, 40), self._speak_again, facts)

    def _speak_again(self, facts: Facts) -> None:
        if facts.deaf < inf:
            facts.deaf, facts.opened = inf, self.now()

    # Rounds.

    def pass_time(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        end = self.now() + seconds
        while self.clock.calls and (when := self.clock.calls[0].getTime()) <= end and not self.ledger.wrong:
            self.clock.advance(max(0.0, when - self.now()))
        if not self.ledger.wrong:
            self.clock.advance(max(0.0, end - self.now()))

    def round(self, number: int) -> None:
        """Let everything happen for a while, then nothing, and look whether all is as it should be."""
        in_files = number % GIT_EVERY == GIT_EVERY - 1
        if in_files:
            self.end()
            tree = self.store.open()
            self.ledger.counts["repositories"] += 1
            self.reopen()
            self.store.open()
            if tree:
                self.store.write(tree, "From the round before")
        self.shake()
        self.pass_time(BUSY)
        self.busy = False
        self._calm_down()
        self.pass_time(QUIET)
        if not self.ledger.wrong:
            self._audit()
        if isinstance(self.store, FileStore) and not self.ledger.wrong:
            self.end()
            tree = self.store.open()
            self.store.release()
            self.store = MemoryStore(lasting=True)
            self.store.write(tree, "From the repository")

    def _calm_down(self) -> None:
        """End all faults; what others did ends by itself within a minute."""
        def calm() -> None:
            for hypervisor in self.hypervisors.values():
                for name, uuid in hypervisor.uuids.items():
                    guest = hypervisor.guests[uuid]
                    guest.memory = None
                    for fault in guest.settings.faults:
                        self._order(name, fault)
                    hypervisor.send(name, 0.0)
            for facts in self.ledger.facts.values():
                facts.deaf = inf

        self.clock.callLater(61, calm)

    def _audit(self) -> None:
        jitsu, ledger = self.jitsu, self.ledger
        assert jitsu is not None
        ledger.audit({name: machine.state.value for name, machine in jitsu.fleet.machines.items()})
        for asked in jitsu.waiting:
            ledger.against("answer_by", ledger.facts[asked.name], f"{asked.host} waits since {asked.at:.3f}")
        kept = sum(bool(vm.keep_up) for vm in self.vms)
        calls = jitsu.process.getDelayedCalls()
        # The record's, the log's, the sweep's, two for what is prepared; and what starts VMs at their times.
        if len(calls) > 5 + 2 * kept:
            ledger.against("leak", None, f"{len(calls)} calls are due")
        self.end()
        self.pass_time(2 * HANGS)
        for call in self._coming.values():
            if call.active():
                call.cancel()
        self._coming.clear()
        if self.clock.calls:
            ledger.against("leak", None, f"nobody lives, and these are due: {self.clock.calls}")
