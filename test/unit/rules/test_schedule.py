"""Times of the week."""

from __future__ import annotations

import os
import time
from datetime import datetime

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.schedule import WeeklyWindow, kept_until, next_begin


class WeekTests(SynchronousTestCase):
    """`WeeklyWindow`, `kept_until` and `next_begin`, in a time zone with a summer time."""

    def setUp(self) -> None:
        """Live in Berlin."""
        before = os.environ.get("TZ")
        os.environ["TZ"] = "Europe/Berlin"
        time.tzset()
        self.addCleanup(self.move_back, before)

    @staticmethod
    def move_back(before: str | None) -> None:
        """Live where we did."""
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()

    @staticmethod
    def at(text: str) -> float:
        """Return the seconds since 1970 of a local time."""
        return datetime.fromisoformat(text).timestamp()

    def spans(self, *texts: str) -> tuple[WeeklyWindow, ...]:
        """Read some spans."""
        return tuple(WeeklyWindow.parse(text) for text in texts)

    def test_kept(self) -> None:
        """A VM is kept to the end of the span that now lies in; spans that touch are one. 2026-11-23 is a Monday."""
        for texts, now, expected in (
            (["mon-fri 08:00-18:00"], "2026-11-23T08:00", "2026-11-23T18:00"),
            (["mon-fri 08:00-18:00"], "2026-11-23T07:59:59", None),
            (["mon-fri 08:00-18:00"], "2026-11-23T18:00", None),
            (["mon-fri 08:00-18:00"], "2026-11-22T12:00", None),
            (["Sat,Sun  10:00-12:00"], "2026-11-22T11:00", "2026-11-22T12:00"),
            (["22:00-02:00"], "2026-11-23T01:00", "2026-11-23T02:00"),
            (["sun 22:00-02:00"], "2026-11-23T01:00", "2026-11-23T02:00"),
            (["mon 22:00-02:00"], "2026-11-23T01:00", None),
            (["fri-mon 08:00-09:00"], "2026-11-23T08:30", "2026-11-23T09:00"),
            (["fri-mon 08:00-09:00"], "2026-11-25T08:30", None),
            (["08:00-12:00", "12:00-14:00", "13:00-15:00"], "2026-11-23T09:00", "2026-11-23T15:00"),
            (["mon 00:00-24:00"], "2026-11-23T23:59", "2026-11-24T00:00"),
            ([], "2026-11-23T09:00", None),
        ):
            end = kept_until(self.spans(*texts), self.at(now))
            self.assertEqual(None if expected is None else self.at(expected), end, (texts, now))

    def test_always(self) -> None:
        """Every hour of every day has no end that anybody would live to see this week."""
        end = kept_until(self.spans("00:00-24:00"), self.at("2026-11-23T09:00"))
        assert end is not None
        self.assertGreater(end, self.at("2026-11-30T09:00"))

    def test_next(self) -> None:
        """The next span begins later than now, in a week at the latest."""
        for texts, now, expected in (
            (["mon-fri 08:00-18:00"], "2026-11-23T07:00", "2026-11-23T08:00"),
            (["mon-fri 08:00-18:00"], "2026-11-23T08:00", "2026-11-24T08:00"),
            (["mon-fri 08:00-18:00"], "2026-11-27T12:00", "2026-11-30T08:00"),
            (["mon 08:00-09:00"], "2026-11-23T08:30", "2026-11-30T08:00"),
            (["wed 08:00-09:00", "tue 20:00-21:00"], "2026-11-23T08:30", "2026-11-24T20:00"),
        ):
            self.assertEqual(self.at(expected), next_begin(self.spans(*texts), self.at(now)), (texts, now))
        self.assertIsNone(next_begin((), 0.0))

    def test_summer_time(self) -> None:
        """Eight o'clock is eight o'clock, also on the days when the clocks are set (2026-03-29 and 2026-10-25)."""
        spans = self.spans("08:00-18:00")
        for day in ("2026-03-29", "2026-10-25"):
            self.assertEqual(self.at(f"{day}T08:00"), next_begin(spans, self.at(f"{day}T00:30")))
            self.assertEqual(self.at(f"{day}T18:00"), kept_until(spans, self.at(f"{day}T09:00")))

    def test_nonsense(self) -> None:
        """What is no time of the week is an error that says what would be right."""
        for text in ("", "always", "mon-fri", "8-18", "08:00-25:00", "xyz 08:00-09:00", "mon 08:60-09:00",
                     "mon- 08:00-09:00"):
            error = self.assertRaises(ValueError, WeeklyWindow.parse, text)
            self.assertIn("mon-fri 08:00-18:00", str(error))
