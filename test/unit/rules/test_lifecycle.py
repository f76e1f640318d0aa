"""The table of states: each place of it, and what holds for all."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.lifecycle import (
    ACTIVATING,
    BOOTING,
    CALLING,
    RUNNING,
    TRANSITIONS,
    WANTED,
    Event,
    State,
    after,
    is_tried_again,
)

#: What each input but a reboot does to each state, in the order of `Event`; a dot where it does nothing.
#: (summon, admit, started, fail, image, ready, stop, stop failed, seen off, running, paused, saved, gone, and lost.)
TABLE = """
unknown    .      .        .        .      .       .        .          .  off    waiting paused saved .       .
off        queued .        .        .      .       .        .          .  .      waiting paused saved unknown unknown
queued     .      starting .        failed .       .        off        .  .      waiting .      .     unknown unknown
starting   .      .        waiting  failed .       .        cancelling .  .      .       .      .     .       .
cancelling .      .        stopping failed .       stopping .          .  .      .       .      .     .       .
waiting    .      .        .        failed imaging up       stopping   .  failed .       paused saved unknown unknown
imaging    .      .        .        failed .       up       cancelling .  .      .       .      .     .       .
up         .      .        .        .      .       .        stopping   .  off    .       paused saved unknown .
stopping   .      .        .        failed .       .        .          up off    .       paused saved unknown .
paused     queued .        .        .      .       .        .          .  off    waiting .      saved unknown unknown
saved      queued .        .        .      .       .        .          .  off    waiting paused .     unknown unknown
failed     queued .        .        .      .       .        .          .  .      waiting paused saved unknown unknown
"""


class TableTests(SynchronousTestCase):
    """`TRANSITIONS`."""

    def test_table(self) -> None:
        """Every state takes every input as the table above says."""
        rows = [line.split() for line in TABLE.strip().splitlines()]
        self.assertEqual([state.value for state in State], [row[0] for row in rows])
        for name, *places in rows:
            state = State(name)
            expected = [state if place == "." else State(place) for place in places]
            self.assertEqual(expected, [after(state, event) for event in Event if event is not Event.REBOOT], name)

    def test_reboot(self) -> None:
        """A guest that reboots itself is waited for if it was up; in any other state nothing changes."""
        for state in State:
            self.assertIs(State.WAITING if state is State.UP else state, after(state, Event.REBOOT))

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
        for state in ACTIVATING | {State.UP, State.STOPPING}:
            self.assertIs(state, after(state, Event.SUMMON))

    def test_tried_again(self) -> None:
        """A failed start is tried once more if a client has the address, unless it was such a start itself."""
        expected = {(False, False): False, (False, True): False, (True, False): True, (True, True): False}
        found = {(promised, second): is_tried_again(promised=promised, is_second=second)
                 for promised, second in expected}  # fmt: skip
        self.assertEqual(expected, found)

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
        self.assertEqual(CALLING, {State.STARTING, State.CANCELLING, State.IMAGING, State.STOPPING})
        self.assertEqual(WANTED, ACTIVATING | {State.UP})
        down = {State.OFF, State.PAUSED, State.SAVED, State.FAILED, State.UNKNOWN}
        self.assertEqual(set(), down & (WANTED | RUNNING))
