"""The table of states: each place of it, and what holds for all."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.lifecycle import (
    ACTIVATING,
    BOOTING,
    CALLING,
    RUNNING,
    STOPS,
    TRANSITIONS,
    WANTED,
    Event,
    State,
    after,
)

#: What each input but a reboot, a restart and the owner's does to each state, in the order of `Event`; a dot where it
#: does nothing. (summon, admit, started, fail, image, ready, stop, stop failed, seen off, running, paused, saved, gone,
#: and lost.)
TABLE = """
unknown        .     .        .        .     .       .        .          .  off   waiting paused saved .       .
off            queued .        .        .     .       .        .          .  .     waiting paused saved unknown unknown
queued         .      starting .        failed .       .        off        .  .     waiting .     .     unknown unknown
starting       .     .        waiting  failed .       .        cancelling .  .     .       .     .     .       .
cancelling     .     .        stopping failed .       stopping .          .  .     .       .     .     .       .
waiting        .     .        .        failed imaging up       stopping   .  failed .       paused saved unknown unknown
imaging        .     .        .        failed .       up       cancelling .  .     .       .     .     .       .
up             .     .        .        .     .       .        stopping   .  off   .       paused saved unknown .
stopping       .     .        .        failed .       .        .          up off   .       paused saved unknown .
restarting     .     .        .        failed .       .        stopping   up off   .       paused saved unknown .
owner_stopping .     .        .        .     .       .        .          .  off   .       paused saved unknown .
paused         queued .        .        .     .       .        .          .  off   waiting .      saved unknown unknown
saved          queued .        .        .     .       .        .          .  off   waiting paused .     unknown unknown
failed         queued .        .        .     .       .        .          .  .     waiting paused saved unknown unknown
"""

#: Inputs that the table leaves out, and the states that they change.
OTHERS = {
    Event.REBOOT: {State.UP: State.WAITING},
    Event.RESTART: {State.UP: State.RESTARTING, State.WAITING: State.RESTARTING},
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
        """A reboot, a restart and what the owner node does change few states, and nothing in the others."""
        for event, changes in OTHERS.items():
            for state in State:
                self.assertIs(changes.get(state, state), after(state, event), f"{state} {event}")

    def test_shown(self) -> None:
        """All ways to stop are one for the API, the metrics and the log."""
        self.assertEqual({"stopping"}, {state.shown for state in STOPS})
        self.assertEqual({state.value for state in State} - {"restarting", "stopping by its owner"},
                         {state.shown for state in State})

    def test_complete(self) -> None:
        """No state lacks an input."""
        for state in State:
            self.assertEqual(set(Event), set(TRANSITIONS[state]), state)

    def test_one_start(self) -> None:
        """Only a turn to boot makes a start call, and no summons makes a second one while one is under way."""
        entering = {
            (state, event) for state in State for event in Event
            if after(state, event) is State.STARTING and state is not State.STARTING
        }
        self.assertEqual({(State.QUEUED, Event.ADMIT)}, entering)
        for state in ACTIVATING | STOPS | {State.UP}:
            self.assertIs(state, after(state, Event.SUMMON))

    def test_calls_end_by_themselves(self) -> None:
        """While a call of ours is under way, nothing that the backend is seen to do changes the state."""
        for state in (State.STARTING, State.CANCELLING, State.IMAGING):
            for event in (Event.OFF, Event.RUNNING, Event.PAUSED, Event.SAVED, Event.GONE, Event.LOST):
                self.assertIs(state, after(state, event))

    def test_sets(self) -> None:
        """The sets of states are what their names say."""
        self.assertTrue(BOOTING < ACTIVATING)
        self.assertTrue(BOOTING < RUNNING)
        self.assertNotIn(State.QUEUED, RUNNING)
        self.assertEqual(CALLING, {State.STARTING, State.CANCELLING, State.IMAGING, State.STOPPING, State.RESTARTING})
        self.assertEqual(WANTED, ACTIVATING | {State.UP})
        down = {State.OFF, State.PAUSED, State.SAVED, State.FAILED, State.UNKNOWN}
        self.assertEqual(set(), down & (WANTED | RUNNING))
