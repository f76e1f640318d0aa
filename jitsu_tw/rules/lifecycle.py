"""
The life of one VM, as a table. Nothing here does I/O, reads a clock or knows what a hypervisor is.

Everything that decides what an input does to a state is in `TRANSITIONS`: a row for every state, and in it an entry for
every input. What a state is to lead to is in one order, `Start` or `Stop`. `vm.machine` carries both out.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.settings import Mode


class State(enum.Enum):
    """What a VM is doing."""

    UNKNOWN = "unknown"  # the backend has not answered, or does not know the VM (any more)
    OFF = "off"
    QUEUED = "queued"  # summoned, and waiting until it may boot
    STARTING = "starting"  # the backend's start call is under way
    CANCELLING = "cancelling"  # the call under way, such as the same, ends, and then it is to be stopped
    WAITING = "waiting"  # it runs, but is not ready yet
    UP = "up"
    STOPPING = "stopping"
    RESTARTING = "restarting"  # it is destroyed, to be booted again
    OWNER_STOPPING = "stopping by its owner"  # the node of the cluster that owns it is about to stop it
    PAUSED = "paused"
    SAVED = "saved"
    FAILED = "failed"  # off, and its last start has failed
    PREPARING = "preparing"  # nobody has asked for it; the start call is under way, so that a later start is short
    SETTLING = "preparing, not ready yet"  # that call has ended
    KEEPING = "preparing, ready"  # it is ready, and is being paused, or its image is being kept
    PREPARED = "prepared"  # no client has used it; its guest is ready and paused

    def __init__(self, value: str) -> None:
        """Set how the API, the metrics and the log show the state: all ways to stop are one, and all to prepare."""
        self.shown = "stopping" if value in {"restarting", "stopping by its owner"} else value.partition(",")[0]


class Event(enum.Enum):
    """An input to the life of a VM."""

    SUMMON = "summon"  # a query or the operator wants it up
    ADMIT = "admit"  # it may boot now
    STARTED = "started"  # the start call succeeded
    FAIL = "fail"  # the start call, the boot, or the boot of a VM that it needs, has failed; it does not run
    PREPARE = "prepare"  # a later start of it is to be short
    READY = "ready"  # it will answer its first packet, or has had all the time that it is given
    STOP = "stop"  # its lease has ended, it is dead, or the operator wants it down
    STOP_FAILED = "stop failed"
    RESTART = "restart"  # its guest gives no sign of life
    OWNER_STOPS = "owner stops"  # its owner, another node, is about to stop it
    OWNER_KEEPS = "owner keeps"  # its owner does not stop it, or there is no owner any more
    OFF = "seen off"  # the backend reports it, or the stop of ours has succeeded
    RUNNING = "seen running"
    PAUSED = "seen paused"
    SAVED = "seen saved"
    PREPARED = "seen prepared"
    REBOOT = "reboot"  # its guest has rebooted itself
    GONE = "seen gone"  # the backend knows no such VM any more
    LOST = "lost"  # the backend cannot be asked


@attrs.frozen
class Start:
    """
    How a VM is started next.

    Attributes:
        cold: it boots, even if there is an image of the ready guest.
        retry: Jitsu itself starts the VM once more, because it could not go on where it was, or its start has failed
            while clients had its address.
    """

    cold: bool = False
    retry: bool = False


@attrs.frozen
class Stop:
    """
    How a VM is stopped.

    Attributes:
        mode: the way to stop it.
        fails: its boot has failed; when it is down, its state is FAILED.
        then: how it is started after that.
    """

    mode: Mode
    fails: bool = False
    then: Start = Start()


_S, _E = State, Event

#: What the backend says where nothing of ours is under way.
_SEEN: Final = {
    _E.OFF: _S.OFF,
    _E.RUNNING: _S.WAITING,
    _E.PAUSED: _S.PAUSED,
    _E.SAVED: _S.SAVED,
    _E.PREPARED: _S.PREPARED,
    _E.GONE: _S.UNKNOWN,
    _E.LOST: _S.UNKNOWN,
}

#: What the end of our own stop leads to.
_STOPPED: Final = {
    _E.FAIL: _S.FAILED,
    _E.STOP_FAILED: _S.UP,
    _E.OFF: _S.OFF,
    _E.PAUSED: _S.PAUSED,
    _E.SAVED: _S.SAVED,
    _E.PREPARED: _S.PREPARED,
    _E.GONE: _S.UNKNOWN,
}


#: What ends a boot, but that the guest is ready.
_BOOT_ENDS: Final = {**_SEEN, _E.OFF: _S.FAILED, _E.FAIL: _S.FAILED, _E.STOP: _S.STOPPING}


def _row(state: State, changes: Mapping[Event, State]) -> dict[Event, State]:
    """Return *state*'s row: it stays as it is, but for *changes*."""
    return {event: changes.get(event, state) for event in Event}


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    # Nothing may be started while nobody knows whether it runs.
    _S.UNKNOWN: _row(_S.UNKNOWN, _SEEN),
    _S.OFF: _row(_S.OFF, {**_SEEN, _E.SUMMON: _S.QUEUED, _E.PREPARE: _S.PREPARING}),
    _S.PAUSED: _row(_S.PAUSED, {**_SEEN, _E.SUMMON: _S.QUEUED}),
    _S.SAVED: _row(_S.SAVED, {**_SEEN, _E.SUMMON: _S.QUEUED}),
    _S.FAILED: _row(
        _S.FAILED, {**_SEEN, _E.SUMMON: _S.QUEUED, _E.PREPARE: _S.PREPARING, _E.OFF: _S.FAILED}
    ),
    # Another program may start it meanwhile; a report that it is down changes nothing.
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
    _S.CANCELLING: _row(
        _S.CANCELLING,
        {_E.STARTED: _S.STOPPING, _E.PREPARED: _S.STOPPING, _E.OFF: _S.OFF, _E.FAIL: _S.FAILED},
    ),
    _S.WAITING: _row(_S.WAITING, {**_BOOT_ENDS, _E.READY: _S.UP, _E.RESTART: _S.RESTARTING}),
    # A client that asks meanwhile gets what is on its way, as if it had been started for it.
    _S.PREPARING: _row(
        _S.PREPARING,
        {
            _E.SUMMON: _S.STARTING,
            _E.STARTED: _S.SETTLING,
            _E.OFF: _S.OFF,  # it is not to be started here
            _E.FAIL: _S.FAILED,
            _E.STOP: _S.CANCELLING,
        },
    ),
    _S.SETTLING: _row(
        _S.SETTLING,
        {
            **_BOOT_ENDS,
            _E.SUMMON: _S.WAITING,
            _E.READY: _S.KEEPING,
            _E.RESTART: _S.STOPPING,
            _E.RUNNING: _S.SETTLING,
        },
    ),
    # The guest may be saved and restored meanwhile, and seen so: the end of the step decides.
    _S.KEEPING: _row(
        _S.KEEPING, {_E.PREPARED: _S.PREPARED, _E.OFF: _S.OFF, _E.FAIL: _S.FAILED, _E.STOP: _S.CANCELLING}
    ),
    _S.PREPARED: _row(_S.PREPARED, {**_SEEN, _E.SUMMON: _S.QUEUED, _E.STOP: _S.STOPPING}),
    # While the backend cannot be asked, the VM is taken to be up: warm answers go on.
    _S.UP: _row(
        _S.UP,
        {
            _E.STOP: _S.STOPPING,
            _E.RESTART: _S.RESTARTING,
            _E.OWNER_STOPS: _S.OWNER_STOPPING,
            _E.OFF: _S.OFF,
            _E.PAUSED: _S.PAUSED,
            _E.SAVED: _S.SAVED,
            _E.PREPARED: _S.PREPARED,
            _E.REBOOT: _S.WAITING,
            _E.GONE: _S.UNKNOWN,
        },
    ),
    # A summons waits for the stop and then starts the VM again.
    _S.STOPPING: _row(_S.STOPPING, _STOPPED),
    _S.RESTARTING: _row(_S.RESTARTING, {**_STOPPED, _E.STOP: _S.STOPPING}),
    # The owner's call is under way, not ours: what the backend reports holds.
    _S.OWNER_STOPPING: _row(
        _S.OWNER_STOPPING,
        {
            _E.OWNER_KEEPS: _S.UP,
            _E.OFF: _S.OFF,
            _E.PAUSED: _S.PAUSED,
            _E.SAVED: _S.SAVED,
            _E.PREPARED: _S.PREPARED,
            _E.GONE: _S.UNKNOWN,
        },
    ),
}

#: A start is under way, or waits until it may begin.
ACTIVATING: Final = frozenset({_S.QUEUED, _S.STARTING, _S.CANCELLING, _S.WAITING})

#: It is on its way to be prepared; it runs, but for nobody, and gives way to a start.
PREPARES: Final = frozenset({_S.PREPARING, _S.SETTLING, _S.KEEPING})

#: A stop is under way, ours or the owner's.
STOPS: Final = frozenset({_S.STOPPING, _S.RESTARTING, _S.OWNER_STOPPING})

#: A call of ours is under way, and its end decides, not what the backend reports meanwhile.
CALLING: Final = frozenset(
    {_S.STARTING, _S.CANCELLING, _S.PREPARING, _S.KEEPING, _S.STOPPING, _S.RESTARTING}
)

#: It counts among the VMs that may boot at once.
BOOTING: Final = frozenset({_S.STARTING, _S.CANCELLING, _S.WAITING})

#: It uses the host, and was asked for: it runs, or is about to.
RUNNING: Final = BOOTING | {_S.UP} | STOPS

#: It does not run, and the backend has reported so.
DOWN: Final = frozenset({_S.OFF, _S.PAUSED, _S.SAVED, _S.FAILED, _S.PREPARED})

#: It is wanted up, and is, or is on its way.
WANTED: Final = ACTIVATING | {_S.UP}


def after(state: State, event: Event) -> State:
    """Return the state that *event* makes of *state*."""
    return TRANSITIONS[state][event]
