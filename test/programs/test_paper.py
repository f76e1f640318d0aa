"""The report of `bench.speed.paper`: its table, and its plot."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bench.speed import paper


def start(octet: float | None, again: int = 0) -> dict[str, Any]:
    """Return a start whose first octet came after *octet* milliseconds; one that failed for None."""
    return {"octet": octet, "again": again, "error": "ETIMEDOUT" if octet is None else None}


class ReportTests(SynchronousTestCase):
    """Figures that are known."""

    def test_row(self) -> None:
        """A start that failed counts as failed, and not as a time."""
        found = [start(float(number)) for number in range(11, 0, -1)]
        self.assertEqual(["11", "0", "0", "6", "10", "11"], paper.row(found))
        self.assertEqual(["13", "1", "3", "6", "11", "1000"], paper.row([*found, start(1000, 1), start(None, 2)]))
        self.assertEqual(["1", "1", "2", "-", "-", "-"], paper.row([start(None, 2)]))

    def test_plot(self) -> None:
        """A panel is drawn for each guest, also if all starts of a kind have failed."""
        kinds = {"warm": [start(5.0), start(6.0)], "nothing": [start(300.0), start(None)], "dropped": [start(None)] * 2}
        picture = Path(tempfile.mkdtemp()) / "figure.png"
        self.addCleanup(picture.parent.rmdir)
        self.addCleanup(picture.unlink, missing_ok=True)
        widths = []
        for guests in (["own"], ["own", "linux"]):
            paper.plot({"guests": dict.fromkeys(guests, kinds)}, picture)
            octets = picture.read_bytes()
            self.assertEqual(b"\x89PNG", octets[:4])
            widths.append(int.from_bytes(octets[16:20]))
        self.assertGreater(widths[1], 1.5 * widths[0])
