"""Tests of the bridge between coroutines and Deferreds."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.coroutines import deferred, report, spawn

LOG = Logger()


class Adder:
    """Something with a coroutine method."""

    @deferred
    async def add(self, first: int, *, second: Deferred[int]) -> int:
        """Return the sum of two numbers, of which the second comes later."""
        return first + await second


class DeferredTests(SynchronousTestCase):
    """A method that returns a Deferred, written as a coroutine function."""

    def test_result(self) -> None:
        """The method begins when it is called, and its Deferred fires with what it returns."""
        second: Deferred[int] = Deferred()
        total = Adder().add(1, second=second)
        self.assertNoResult(total)
        second.callback(2)
        self.assertEqual(3, self.successResultOf(total))

    def test_failure(self) -> None:
        """The Deferred fails with the exception that the coroutine ends with."""
        self.failureResultOf(Adder().add(1, second=fail(KeyError())), KeyError)

    def test_cancel(self) -> None:
        """To cancel the Deferred cancels what the coroutine awaits."""
        cancelled: list[object] = []
        total = Adder().add(1, second=Deferred(cancelled.append))
        total.cancel()
        self.assertEqual(1, len(cancelled))
        self.failureResultOf(total)

    def test_name(self) -> None:
        """The method keeps its name and its docstring."""
        self.assertEqual("add", Adder.add.__name__)
        self.assertIn("sum", Adder.add.__doc__ or "")


class SpawnTests(SynchronousTestCase):
    """Work that goes on by itself."""

    async def _work(self, error: Exception | None = None) -> int:
        if error is not None:
            raise error
        return 1

    def _logged(self, error: Exception, *, name: object = None, ignore: tuple[type[Exception], ...] = ()) -> list[str]:
        with capturedLogs() as events:
            self.assertIsNone(self.successResultOf(spawn(LOG, self._work(error), name, ignore=ignore)))
        self.flushLoggedErrors(type(error))
        return [formatEvent(event) for event in events]

    def test_result(self) -> None:
        """What the work returns is what the Deferred fires with; the work may have begun before."""
        self.assertEqual(1, self.successResultOf(spawn(LOG, self._work())))
        self.assertEqual(1, self.successResultOf(spawn(LOG, Deferred.fromCoroutine(self._work()))))

    def test_fault(self) -> None:
        """An exception is logged, with what the work is about."""
        self.assertEqual(["unexpected, please report"], self._logged(KeyError()))
        self.assertEqual(["www: unexpected, please report"], self._logged(KeyError(), name="www"))

    def test_ignored(self) -> None:
        """An exception that is no fault is not logged; others are."""
        self.assertEqual([], self._logged(KeyError(), ignore=(LookupError,)))
        self.assertEqual(1, len(self._logged(ValueError(), ignore=(LookupError,))))

    def test_handled(self) -> None:
        """The exception that is being handled is logged with its traceback."""
        with capturedLogs() as events:
            try:
                int("no")
            except ValueError:
                report(LOG, "www")
        self.assertEqual([ValueError], [event["log_failure"].type for event in events])
        self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
