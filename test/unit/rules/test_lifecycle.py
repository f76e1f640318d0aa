"""The table of states: each place of it, and what holds for all."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.lifecycle import (
    ACTIVATING,
    BOOTING,
    CALLING,
    DOWN,
    PREPARES,
    RUNNING,
    STOPS,
    TRANSITIONS,
    WANTED,
    Event,
    State,
    after,
)

#: What each input but those of `OTHERS` does to each state, in the order of `Event`; a dot where it does nothing.
#: (summon, fail, prepare, ready, stop, seen off, running, paused, saved, prepared, gone, and lost.)
TABLE = """
unknown        .        .      .         .       .          off    waiting paused saved prepared .       .
off            queued   .      preparing .       .          .      waiting paused saved prepared unknown unknown
queued         .        failed .         .       off        .      waiting .      .     .        unknown unknown
starting       .        failed .         .       cancelling .      .       .      .     .        .       .
cancelling     .        failed .         .       .          off    .       .      .     stopping .       .
waiting        .        failed .         up      stopping   failed .       paused saved prepared unknown unknown
up             .        .      .         .       stopping   off    .       paused saved prepared unknown .
stopping       .        failed .         .       .          off    .       paused saved prepared unknown .
restarting     .        failed .         .       stopping   off    .       paused saved prepared unknown .
owner_stopping .        .      .         .       .          off    .       paused saved prepared unknown .
paused         queued   .      .         .       .          off    waiting .      saved prepared unknown unknown
saved          queued   .      .         .       .          off    waiting paused .     prepared unknown unknown
failed         queued   .      preparing .       .          .      waiting paused saved prepared unknown unknown
preparing      starting failed .         .       cancelling off    .       .      .     .        .       .
settling       waiting  failed .         keeping stopping   failed .       paused saved prepared unknown unknown
keeping        .        failed .         .       cancelling off    .       .      .     prepared .       .
prepared       queued   .      .         .       stopping   off    waiting paused saved .        unknown unknown
"""

#: Inputs that the table leaves out, and the states that they change.
OTHERS = {
    Event.ADMIT: {State.QUEUED: State.STARTING},
    Event.STARTED: {
        State.STARTING: State.WAITING, State.CANCELLING: State.STOPPING, State.PREPARING: State.SETTLING,
    },
    Event.STOP_FAILED: {State.STOPPING: State.UP, State.RESTARTING: State.UP},
    Event.REBOOT: {State.UP: State.WAITING},
    Event.RESTART: {
        State.UP: State.RESTARTING, State.WAITING: State.RESTARTING, State.SETTLING: State.STOPPING,
    },
    Event.OWNER_STOPS: {State.UP: State.OWNER_STOPPING},
    Event.OWNER_KEEPS: {State.OWNER_STOPPING: State.UP},
}


class TableTests(SynchronousTestCase):
    """`TRANSITIONS`."""

    def test_table(self) -> None:
        """Every state takes every input as the table above says."""
        rows = [line.split() for line in TABLE.strip().splitlines()]
        self.assertEqual([state.name.lower() for state in State], [row[0] for row in rows])
        for name, *entries in rows:
            state = State[name.upper()]
            expected = [state if entry == "." else State[entry.upper()] for entry in entries]
            self.assertEqual(expected, [after(state, event) for event in Event if event not in OTHERS], name)

    def test_others(self) -> None:
        """The inputs that change few states change nothing in the others."""
        for event, changes in OTHERS.items():
            for state in State:
                self.assertIs(changes.get(state, state), after(state, event), f"{state} {event}")

    def test_shown(self) -> None:
        """All ways to stop are one for the API, the metrics and the log, and so are all to prepare."""
        self.assertEqual({"stopping"}, {state.shown for state in STOPS})
        self.assertEqual({"preparing"}, {state.shown for state in PREPARES})
        others = set(State) - STOPS - PREPARES
        self.assertEqual({state.value for state in others} | {"stopping", "preparing"},
                         {state.shown for state in State})

    def test_complete(self) -> None:
        """No state lacks an input."""
        for state in State:
            self.assertEqual(set(Event), set(TRANSITIONS[state]), state)

    def test_one_start(self) -> None:
        """Only a turn to boot makes a start call; a summons makes one its own that is under way, and no second one."""
        entering = {
            (state, event) for state in State for event in Event
            if after(state, event) is State.STARTING and state is not State.STARTING
        }
        self.assertEqual({(State.QUEUED, Event.ADMIT), (State.PREPARING, Event.SUMMON)}, entering)
        for state in ACTIVATING | STOPS | {State.UP}:
            self.assertIs(state, after(state, Event.SUMMON))

    def test_calls_end_by_themselves(self) -> None:
        """While a start call of ours is under way, nothing that the backend is seen to do changes the state."""
        for event in (Event.OFF, Event.RUNNING, Event.PAUSED, Event.SAVED, Event.PREPARED, Event.GONE, Event.LOST):
            self.assertIs(State.STARTING, after(State.STARTING, event))

    def test_sets(self) -> None:
        """The sets of states are what their names say."""
        self.assertTrue(BOOTING < ACTIVATING)
        self.assertTrue(BOOTING < RUNNING)
        self.assertNotIn(State.QUEUED, RUNNING)
        calling = PREPARES - {State.SETTLING} | {State.STARTING, State.CANCELLING, State.STOPPING, State.RESTARTING}
        self.assertEqual(CALLING, calling)
        self.assertEqual(set(), PREPARES & (DOWN | RUNNING | WANTED))
        self.assertEqual(WANTED, ACTIVATING | {State.UP})
        down = {State.OFF, State.PAUSED, State.SAVED, State.FAILED, State.UNKNOWN}
        self.assertEqual(set(), down & (WANTED | RUNNING))
