"""
Times of the week in which a VM stays up (`keep_up`). Pure: the time is an argument, in seconds since 1970.

They are local times, as the process's time zone has them: 08:00 is 08:00 in summer and in winter.
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_SPAN: Final = re.compile(r"(?:([a-z]{3}(?:[-,][a-z]{3})*) +)?(\d\d):(\d\d)-(\d\d):(\d\d)")


@attrs.frozen
class WeeklyWindow:
    """
    A time of day on some days of the week.

    Attributes:
        days: on which it begins, 0 for Monday.
        begin: its first minute.
        end: the minute after its last. One that is not later than `begin` is the next day's.
    """

    days: frozenset[int]
    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> WeeklyWindow:
        """
        Read ``mon-fri 08:00-18:00``, ``sat,sun 22:00-02:00`` or, for every day, ``08:00-18:00``; 24:00 is midnight.

        Raises:
            ValueError: the text is nothing like it.
        """
        match = _SPAN.fullmatch(" ".join(text.lower().split()))
        try:
            days, *numbers = match.groups() if match else ("",)
            begin, end = (_time(*numbers[place : place + 2]) for place in (0, 2))
            return cls(frozenset(_days(days or "mon-sun")), begin, end)
        except (ValueError, TypeError):
            message = f"{text!r} is no time of the week; write one like 'mon-fri 08:00-18:00' or '08:00-18:00'"
            raise ValueError(message) from None


def _time(hour: str, minute: str) -> time:
    return time() if (hour, minute) == ("24", "00") else time(int(hour), int(minute))


def _days(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        yield from (day % 7 for day in range(begin, end + 1 if end >= begin else end + 8))


def kept_until(spans: Sequence[WeeklyWindow], wall: float) -> float | None:
    """Return when the time ends in which *wall* lies, however many spans it is made of; None if it lies in none."""
    end = None
    for begins, ends in _around(spans, wall):
        if begins <= (wall if end is None else end) < ends:
            end = ends
    return end


def next_begin(spans: Sequence[WeeklyWindow], wall: float) -> float | None:
    """Return when the first span after *wall* begins; None without spans."""
    return next((begins for begins, _ in _around(spans, wall) if begins > wall), None)


def _around(spans: Sequence[WeeklyWindow], wall: float) -> Iterator[tuple[float, float]]:
    """Yield when each span begins and ends, from the day before *wall* to the same day of the next week, in order."""
    today = datetime.fromtimestamp(wall).astimezone().date()
    days = [today + timedelta(days=number) for number in range(-1, 9)]
    found = []
    for span in spans:
        for day in days:
            if day.weekday() in span.days:
                last = day + timedelta(days=span.end <= span.begin)
                begins, ends = datetime.combine(day, span.begin), datetime.combine(last, span.end)
                found.append((begins.timestamp(), ends.timestamp()))
    yield from sorted(found)
