"""What every store must do. A store's tests inherit it; import this module, not the class, or it would run too."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from jitsu_tw.ijitsu import IStore


class StoreContract(TestCase):
    """The tests; a subclass says how to make a store, and how to open it again."""

    store: Any

    def again(self) -> Any:
        """Return a store with what the first one has written, as a new process would have it."""
        raise NotImplementedError

    def test_interface(self) -> None:
        """It implements `IStore`."""
        self.assertTrue(verifyObject(IStore, self.store))

    async def test_empty(self) -> None:
        """A new store is empty."""
        self.assertEqual({}, self.again().open())

    async def test_write(self) -> None:
        """What was written is there afterwards, also one's own text in it, and what was not changed stays."""
        await self.store.write({"jitsu/vm/1/ip": "10.0.0.1", "jitsu/vm/2/ip": 'x = ä\n"y"'}, "one")
        await self.store.write({"jitsu/vm/1/ip": "10.0.0.2", "jitsu/stats/1/start_ts": "5"}, "two")
        self.assertEqual(
            {"jitsu/vm/1/ip": "10.0.0.2", "jitsu/vm/2/ip": 'x = ä\n"y"', "jitsu/stats/1/start_ts": "5"},
            self.again().open(),
        )

    async def test_remove(self) -> None:
        """A path that is removed is gone with all below it; what is not there is no error."""
        await self.store.write({"a/b/c": "1", "a/b/d": "2", "a/bc": "3"}, "one")
        await self.store.write({"a/b": None, "nothing/here": None}, "two")
        self.assertEqual({"a/bc": "3"}, self.again().open())

    async def test_close(self) -> None:
        """Closing waits for what is being written."""
        for number in range(5):
            self.store.write({"n": str(number)}, "count")
        await self.store.close()
        self.assertEqual({"n": "4"}, self.again().open())
