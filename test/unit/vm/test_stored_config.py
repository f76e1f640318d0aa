"""The configuration as the state has it: what an update writes, in steps, and what others change meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.clocks import Clocks
from jitsu_tw.cluster.alone import Alone
from jitsu_tw.settings import COMMIT_EVERY
from jitsu_tw.slices import SLICE
from jitsu_tw.store.layout import MOST_NAMED, in_folder, origin_path, vm_files
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.vm import persistence
from jitsu_tw.vm.fleet import NoAnswers
from jitsu_tw.vm.journal import Journal
from jitsu_tw.vm.persistence import StatsStore
from jitsu_tw.vm.stats import Statistics
from jitsu_tw.vm.stored_config import Names, StoredConfig, Update
from jitsu_tw.vm.uptime import Uptime
from test.support import EPOCH, BoundedClock, vm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jitsu_tw.settings import VM


def machine(number: int, **settings: Any) -> Any:
    """Return a machine that was found."""
    said = {"name": (f"vm{number}",), "ttl": ("60",)}
    one = vm(name=f"vm{number}", raw=said, **settings)
    return SimpleNamespace(uuid=f"u{number}", vm=one)


def pairs(*machines: Any) -> list[tuple[str, VM]]:
    """Return the uuid and the settings of each of *machines*."""
    return [(machine.uuid, machine.vm) for machine in machines]


def folder(number: int, **changed: str) -> dict[str, str]:
    """Return what the state has of a VM."""
    return in_folder(f"u{number}", {**vm_files(machine(number).vm), **changed})


class StoredConfigTestCase(SynchronousTestCase):
    """Has the configuration of the state."""

    def setUp(self) -> None:
        """Begin with nothing."""
        self.config = StoredConfig()

    def made(self, *machines: Any) -> Update:
        """Return the update that writes *machines*."""
        updates: list[Update] = []
        for _ in self.config.update(pairs(*machines), updates.append):
            pass
        return updates[0]

    def written(self, update: Update) -> None:
        """Note that *update* was committed."""
        for _ in self.config.updated(update):
            pass


class UpdateTests(StoredConfigTestCase):
    """What an update writes."""

    def test_difference(self) -> None:
        """What is new is added, what differs is changed, what is too much is removed, and what is alike is left."""
        tree = {**folder(1), **folder(2, stop_mode="save", **{"config/old/0": "x"}), **folder(9)}
        self.config.start(tree, {"vm1", "vm2", "vm3"})
        update = self.made(machine(1), machine(2), machine(3))
        here = {"jitsu/vm/u2/stop_mode": folder(2)["jitsu/vm/u2/stop_mode"], "jitsu/vm/u2/config/old/0": None}
        self.assertEqual({**here, **folder(3)}, update.changes)
        self.assertEqual({"u1", "u2", "u3"}, update.found)
        self.assertIn("added: vm3\nchanged: vm2\n", update.message)

    def test_once(self) -> None:
        """What was written is not written again, nor removed, and its name and address are no other VM's any more."""
        self.config.start({**folder(1), **folder(2)}, {"vm1"})
        self.assertEqual("u1", self.config.uuid_of(machine(1).vm, ()))
        self.written(self.made(machine(1)))
        self.assertIsNone(self.config.uuid_of(machine(1).vm, ()))
        self.assertTrue(self.config.has_some)
        self.assertEqual((frozenset(), {}), (self.made(machine(1)).found, self.made(machine(1)).changes))
        self.config.merged({"jitsu/vm/u1/ip": "10.0.0.77"})
        self.written(self.made(machine(2)))
        self.assertFalse(self.config.has_some)

    def test_old_name(self) -> None:
        """A VM that a request has renamed is not found by the old name once it is written."""
        self.config.start(folder(1), {"vm1"})
        self.config.merged({"jitsu/vm/u1/config/name/0": "new"})
        self.written(self.made(machine(1)))
        self.assertIsNone(self.config.uuid_of(machine(1).vm, ()))

    def test_overruled(self) -> None:
        """What the file overrules is no request's any more."""
        origins = {origin_path("u1"): "request/a of b", origin_path("u2"): "request/c of d"}
        self.config.start({**folder(1), **folder(2), **origins}, {"vm1"})
        update = self.made(machine(1), machine(2))
        self.assertEqual({origin_path("u1"): None}, update.changes)
        self.assertEqual(("vm1",), update.overruled)
        self.written(update)
        self.assertEqual([None, "request/c of d"], [self.config.origin(machine(one).uuid) for one in (1, 2)])

    def test_not_found_or_removed(self) -> None:
        """A VM that was not found, or that the file has no more, is not written."""
        lost, removed = machine(1), machine(2, removed=True)
        lost.uuid = ""
        self.assertEqual({}, self.made(lost, removed).changes)

    def test_many_names(self) -> None:
        """The message names the first of very many VMs in their order, and how many there are."""
        message = self.made(*(machine(number) for number in range(1000, 1500))).message
        names = ", ".join(f"vm{number}" for number in range(1000, 1000 + MOST_NAMED))
        self.assertIn(f"added: {names} and {500 - MOST_NAMED} more\n", message)
        many = Names()
        for number in range(5000):
            many.add(str(number))
        self.assertLessEqual(len(many.first), 10 * MOST_NAMED)

    def test_forgotten(self) -> None:
        """What is neither kept nor from a request is forgotten; its origin, too."""
        over = {origin_path("u3"): "request/a of b, over the file", origin_path("u2"): "request/c of d"}
        self.config.start({**folder(1), **folder(2), **folder(3), **over}, ())
        changes, message = self.config.forget_others({"u1"})
        self.assertEqual({"jitsu/vm/u3": None, origin_path("u3"): None}, changes)
        self.assertIn("removed: vm3\n", message)
        self.assertEqual(({}, True), (self.config.forget_others({"u1"})[0], self.config.has_some))


class MeanwhileTests(StoredConfigTestCase):
    """What others change while an update is made."""

    def test_request(self) -> None:
        """A VM that a request changes after it was looked at is left to the next update; the others are not."""
        self.config.start(folder(1, **{"stop_mode": "save", "config/old/0": "x"}), {"vm1", "vm2"})
        updates: list[Update] = []
        steps = self.config.update(pairs(machine(1), machine(2)), updates.append)
        next(steps)
        self.config.merged({"jitsu/vm/u1/stop_mode": "suspend", "jitsu/vm/u1/config/old/0": None})
        for _ in steps:
            pass
        self.assertEqual((folder(2), {"u2"}), (updates[0].changes, updates[0].found))
        self.written(updates[0])
        mode = folder(1)["jitsu/vm/u1/stop_mode"]
        self.assertEqual({"jitsu/vm/u1/stop_mode": mode}, self.made(machine(1), machine(2)).changes)

    def test_before(self) -> None:
        """A VM that a request changes before it is looked at is compared with what the request has made of it."""
        updates: list[Update] = []
        steps = self.config.update(pairs(machine(1), machine(2)), updates.append)
        next(steps)
        self.config.merged({**folder(2)})
        for _ in steps:
            pass
        self.assertEqual((folder(1), {"u1", "u2"}), (updates[0].changes, updates[0].found))

    def test_given_up(self) -> None:
        """An update that is given up is told of nothing any more."""
        steps = self.config.update(pairs(machine(1)), self.fail)
        next(steps)
        steps.close()  # type: ignore[attr-defined]
        self.assertEqual([], self.config._drafts)


class SlicesTests(SynchronousTestCase):
    """The reactor reads its sockets while the configuration of many VMs is compared, noted and freed."""

    def test_slices(self) -> None:
        """Each iteration of the reactor looks at as many VMs as there is time for."""
        clock, store = BoundedClock(), MemoryStore(lasting=True)
        clocks = Clocks(clock, clock.seconds, lambda: EPOCH + clock.seconds())
        looked: list[float] = []

        class Slow(SimpleNamespace):
            @property
            def uuid(self) -> str:
                looked.append(clock.seconds())
                clock.rightNow += SLICE / 2
                return f"u{self.vm.name}"

        machines: dict[str, Any] = {f"vm{number}": Slow(vm=machine(number).vm) for number in range(10)}
        stats = Statistics({}, clocks, NoAnswers(), Journal(clocks, lambda: None), Alone())
        record = StatsStore(store, machines, {}, clocks, COMMIT_EVERY, stats, Uptime(machines, clocks))

        def slowly(steps: Iterable[None]) -> Iterator[None]:
            for _ in steps:
                clock.rightNow += SLICE / 2
                yield

        updated, emptied = record.config.updated, persistence._emptied
        self.patch(record.config, "updated", lambda update: slowly(updated(update)))
        self.patch(persistence, "_emptied", lambda changes: slowly(emptied(changes)))
        planned: list[int] = []
        later = clock.callLater

        def call_later(*args: Any, **kw: Any) -> Any:
            planned.append(len(looked))
            return later(*args, **kw)

        self.patch(clock, "callLater", call_later)
        done = Deferred.fromCoroutine(record.save_configuration())
        clock.advance(0.0)
        self.successResultOf(done)
        self.assertEqual([2, 4, 6, 8, 10], planned[:5])
        self.assertEqual(5 + 5 + len(store.tree) // 2, len(planned))
        self.assertEqual(10, len({path.split("/")[2] for path in store.tree}))
