"""Who calls whom at run time, as `journeys` traces it."""

from __future__ import annotations

from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from test.structure.journeys import circles, journeys, scenarios

#: The most files of the product that a journey enters, and the most calls from one file to another.
MOST: Final = {
    "static name": (8, 16),
    "cold query": (49, 205),
    "warm query": (3, 1),
    "idle stop, 130 s": (33, 320),
}


class JourneysTests(SynchronousTestCase):
    """Traces a server with one VM of the memory backend, and the tests of many VMs."""

    def test_journeys(self) -> None:
        """From octets to an answer, and to a stop, few files are entered, and few calls cross from one to another."""
        found = {journey.name: (len(journey.trace.files()), journey.trace.crossing()) for journey in journeys()}
        self.assertEqual(MOST.keys(), found.keys())
        for name, figures in found.items():
            for figure, most in zip(figures, MOST[name], strict=True):
                self.assertLessEqual(figure, most, f"{name}: {figures}")

    def test_circles(self) -> None:
        """Calls go down, or up through an interface: files do not call each other in circles."""
        self.assertEqual([], circles(scenarios().known))
