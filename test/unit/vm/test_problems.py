"""What an operator should know of the VMs."""

from __future__ import annotations

from twisted.logger import Logger, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.vm.problems import Problem, Problems


class ProblemsTests(SynchronousTestCase):
    """`Problems`."""

    def test_kinds(self) -> None:
        """Each kind is noted anew on its own; what is over is gone."""
        problems = Problems(Logger())
        problems.note("www", Problem.STOP, ("no disk",))
        problems.note("www", Problem.ADDRESS, ("a", "b"))
        problems.note("db", Problem.ADDRESS, ("c",))
        self.assertEqual((["a", "b", "no disk"], ["c"]), (problems.of("www"), problems.of("db")))
        self.assertEqual({Problem.STOP: 1, Problem.ADDRESS: 2}, problems.counts)
        self.assertEqual(["www: no disk"], list(problems.degrading()))
        problems.note("www", Problem.ADDRESS, ("b",))
        problems.note("www", Problem.STOP, ())
        problems.note("db", Problem.ADDRESS, ())
        self.assertEqual((["b"], [], {Problem.ADDRESS: 1}), (problems.of("www"), problems.of("db"), problems.counts))
        problems.forget("www")
        self.assertEqual([], problems.of("www"))

    def test_log(self) -> None:
        """A sentence is logged when it is new, and again when it comes back."""
        problems = Problems(Logger())
        with capturedLogs() as logs:
            for sentences in (("a",), ("a", "b"), ("b",), (), ("b",)):
                problems.note("www", Problem.ADDRESS, sentences)
        self.assertEqual(["a", "b", "b"], [event["sentence"] for event in logs])
        self.assertEqual({LogLevel.warn}, {event["log_level"] for event in logs})
