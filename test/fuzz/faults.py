"""Internal errors that are logged while an input is handled."""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import LogLevel, globalLogPublisher

_faults: Final[list[str]] = []


def _observe(event: Any) -> None:
    if event.get("log_level", LogLevel.info) >= LogLevel.critical or "log_failure" in event:
        _faults.append(f"{event.get('log_format')}: {event.get('log_failure')}")


globalLogPublisher.addObserver(_observe)  # type: ignore[arg-type]


def check() -> None:
    """Fail if there was one since the last time."""
    faults, _faults[:] = list(_faults), []
    assert not faults, "\n".join(faults)
