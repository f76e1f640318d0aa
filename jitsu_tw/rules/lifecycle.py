"""
The life of one VM, as a table. Nothing here does I/O, reads a clock or knows what a hypervisor is.

Everything that decides what an input does to a state is in `TRANSITIONS`: it has a row for every state and in it a
place for every input. `machine` carries the steps out, and asks the table first.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(enum.Enum):
    """Where a VM is in its life."""

    UNKNOWN = "unknown"  # the backend has not said, or does not know it (any more)
    OFF = "off"
    QUEUED = "queued"  # asked for, waiting for its turn to boot
    STARTING = "starting"  # the backend's start call is under way
    CANCELLING = "cancelling"  # the same, or its image is being kept, and it is to be stopped when the call has ended
    WAITING = "waiting"  # it runs, but is not ready yet
    IMAGING = "imaging"  # it is ready, and stands still while its image is kept for later starts
    UP = "up"
    STOPPING = "stopping"
    PAUSED = "paused"
    SAVED = "saved"
    FAILED = "failed"  # off, and the last try to start it went wrong


class Event(enum.Enum):
    """What can happen to a VM."""

    SUMMON = "summon"  # a query, or a person, wants it up
    ADMIT = "admit"  # its turn to boot has come
    STARTED = "started"  # the start call ended well
    FAIL = "fail"  # the start call, or the boot, or that of a VM which it needs, ended badly; it does not run
    IMAGE = "image"  # it will answer its first packet, and an image of it as it is now is wanted
    READY = "ready"  # it will answer its first packet, or has had all the time that we give it
    STOP = "stop"  # its lease ended, or it is dead, or a person wants it down
    STOP_FAILED = "stop failed"
    OFF = "seen off"  # the backend says so, or our own stop is done
    RUNNING = "seen running"
    PAUSED = "seen paused"
    SAVED = "seen saved"
    REBOOT = "reboot"  # its guest has rebooted itself
    GONE = "seen gone"  # the backend knows no such VM any more
    LOST = "lost"  # nobody can say what it is doing


_S, _E = State, Event

#: What the backend says where nothing of ours is under way.
_SEEN: Final = {
    _E.OFF: _S.OFF,
    _E.RUNNING: _S.WAITING,
    _E.PAUSED: _S.PAUSED,
    _E.SAVED: _S.SAVED,
    _E.GONE: _S.UNKNOWN,
    _E.LOST: _S.UNKNOWN,
}


def _row(state: State, changes: Mapping[Event, State]) -> dict[Event, State]:
    """Return *state*'s row: it stays as it is, but for *changes*."""
    return {event: changes.get(event, state) for event in Event}


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    # Nothing may be started while nobody knows whether it runs.
    _S.UNKNOWN: _row(_S.UNKNOWN, _SEEN),
    _S.OFF: _row(_S.OFF, {**_SEEN, _E.SUMMON: _S.QUEUED}),
    _S.PAUSED: _row(_S.PAUSED, {**_SEEN, _E.SUMMON: _S.QUEUED}),
    _S.SAVED: _row(_S.SAVED, {**_SEEN, _E.SUMMON: _S.QUEUED}),
    _S.FAILED: _row(_S.FAILED, {**_SEEN, _E.SUMMON: _S.QUEUED, _E.OFF: _S.FAILED}),
    # Somebody else may start it meanwhile; being seen down is what it waits to change.
    _S.QUEUED: _row(
        _S.QUEUED,
        {
            _E.ADMIT: _S.STARTING,
            _E.FAIL: _S.FAILED,
            _E.STOP: _S.OFF,
            _E.RUNNING: _S.WAITING,
            _E.GONE: _S.UNKNOWN,
            _E.LOST: _S.UNKNOWN,
        },
    ),
    # The start call's own end decides; what the backend says meanwhile may be older than the call.
    _S.STARTING: _row(_S.STARTING, {_E.STARTED: _S.WAITING, _E.FAIL: _S.FAILED, _E.STOP: _S.CANCELLING}),
    _S.CANCELLING: _row(_S.CANCELLING, {_E.STARTED: _S.STOPPING, _E.READY: _S.STOPPING, _E.FAIL: _S.FAILED}),
    _S.WAITING: _row(
        _S.WAITING,
        {
            _E.IMAGE: _S.IMAGING,
            _E.READY: _S.UP,
            _E.FAIL: _S.FAILED,
            _E.STOP: _S.STOPPING,
            _E.OFF: _S.FAILED,
            _E.PAUSED: _S.PAUSED,
            _E.SAVED: _S.SAVED,
            _E.GONE: _S.UNKNOWN,
            _E.LOST: _S.UNKNOWN,
        },
    ),
    # The guest is saved and restored meanwhile, and seen so.
    _S.IMAGING: _row(_S.IMAGING, {_E.READY: _S.UP, _E.FAIL: _S.FAILED, _E.STOP: _S.CANCELLING}),
    # While nobody can say, it is taken to be where it was: warm answers go on.
    _S.UP: _row(
        _S.UP,
        {
            _E.STOP: _S.STOPPING,
            _E.OFF: _S.OFF,
            _E.PAUSED: _S.PAUSED,
            _E.SAVED: _S.SAVED,
            _E.REBOOT: _S.WAITING,
            _E.GONE: _S.UNKNOWN,
        },
    ),
    # A summons waits for the stop and then starts the VM again.
    _S.STOPPING: _row(
        _S.STOPPING,
        {
            _E.FAIL: _S.FAILED,
            _E.STOP_FAILED: _S.UP,
            _E.OFF: _S.OFF,
            _E.PAUSED: _S.PAUSED,
            _E.SAVED: _S.SAVED,
            _E.GONE: _S.UNKNOWN,
        },
    ),
}

#: A start is under way, or waits its turn.
ACTIVATING: Final = frozenset({_S.QUEUED, _S.STARTING, _S.CANCELLING, _S.WAITING, _S.IMAGING})

#: A call of ours is under way, and its end decides, not what the backend is seen to do meanwhile.
CALLING: Final = frozenset({_S.STARTING, _S.CANCELLING, _S.IMAGING, _S.STOPPING})

#: It takes a place among those that may boot at once.
BOOTING: Final = frozenset({_S.STARTING, _S.CANCELLING, _S.WAITING, _S.IMAGING})

#: It uses the host: it runs, or is about to.
RUNNING: Final = frozenset({_S.STARTING, _S.CANCELLING, _S.WAITING, _S.IMAGING, _S.UP, _S.STOPPING})

#: Nothing of it runs, and somebody has seen so.
DOWN: Final = frozenset({_S.OFF, _S.PAUSED, _S.SAVED, _S.FAILED})

#: Somebody wants it up, and it is, or is on its way.
WANTED: Final = ACTIVATING | {_S.UP}


def is_tried_again(*, promised: bool, is_second: bool) -> bool:
    """
    Return whether a VM whose start has just failed is started once more by itself.

    Args:
        promised: a client has the address already, or its packet is held. It does not ask again.
        is_second: that start was such a one itself.
    """
    return promised and not is_second


def after(state: State, event: Event) -> State:
    """Return the state that *event* makes of *state*."""
    return TRANSITIONS[state][event]
