"""What a claim, and the state of its VM, lead to: each rule of `rules.claims` as a table."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules import claims
from jitsu_tw.rules.claims import Action, Owner, Phase, View
from jitsu_tw.rules.lifecycle import DOWN, State

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY, THIS, OTHER = Owner


def a_view(state: State, owner: Owner = NOBODY, phase: Phase | None = None, **changes: Any) -> View:
    """Return what a node that is connected knows of a VM; this node holds the claim where it is the owner."""
    values = {"connected": True, "refuses": False, "unsure": False, "holds": owner is THIS, "started": False,
              "known": owner is not NOBODY, **changes}  # fmt: skip
    return View(state=state, owner=owner, phase=phase, **values)


def all_views() -> Iterator[View]:
    """Yield everything that a node can know of a VM."""
    flags = ("connected", "refuses", "unsure", "holds", "started", "known")
    for state, owner, phase in product(State, Owner, (None, *Phase)):
        for values in product((False, True), repeat=len(flags)):
            yield View(state=state, owner=owner, phase=phase, **dict(zip(flags, values, strict=True)))


class SettleTests(SynchronousTestCase):
    """A VM that runs has an owner; one that does not run has none."""

    def test_table(self) -> None:
        """Each case leads to one action, or to none."""
        cases = {
            a_view(State.OFF, THIS): Action.RELEASE,
            a_view(State.FAILED, THIS, Phase.STARTING): Action.RELEASE,
            a_view(State.PAUSED, started=True): Action.TIDY,
            a_view(State.OFF): None,
            a_view(State.OFF, OTHER, started=True): None,
            a_view(State.FAILED, THIS, unsure=True): None,
            a_view(State.FAILED, started=True, unsure=True): None,
            a_view(State.UP, known=True): Action.ADOPT,
            a_view(State.UP): None,
            a_view(State.UP, THIS): None,
            a_view(State.UP, OTHER, Phase.UP): None,
            a_view(State.UP, OTHER, Phase.ENDING): Action.OWNER_STOPS,
            a_view(State.UP, THIS, Phase.ENDING): None,
            a_view(State.WAITING, known=True): None,
            a_view(State.STOPPING, OTHER, Phase.ENDING): None,
        }
        self.assertEqual(cases, {view: claims.settle(view) for view in cases})

    def test_never(self) -> None:
        """Whatever is known: nothing is released that may run, and nothing adopted that has an owner."""
        for view in all_views():
            action = claims.settle(view)
            if not view.connected:
                self.assertIsNone(action, view)
            if action is Action.RELEASE:
                self.assertTrue(view.holds and view.state in DOWN and not view.unsure, view)
            if action is Action.ADOPT:
                self.assertTrue(view.owner is NOBODY and view.known and view.state is State.UP, view)


class EnteredTests(SynchronousTestCase):
    """What a node tells when a VM has entered a state."""

    def test_table(self) -> None:
        """Only the owner tells anything; all settle the VM in the end."""
        cases = {
            a_view(State.OFF, THIS): [Action.FORGET],
            a_view(State.UP, THIS): [Action.TELL_UP],
            a_view(State.UP, THIS, refuses=True): [Action.TELL_UP, Action.RELEASE_ALL],
            a_view(State.UP, OTHER, refuses=True): [],
            a_view(State.STOPPING, THIS): [Action.TELL_ENDING],
            a_view(State.RESTARTING, THIS): [Action.TELL_ENDING],
            a_view(State.STOPPING, OTHER): [],
            a_view(State.OWNER_STOPPING, OTHER, Phase.ENDING): [],
            a_view(State.WAITING, THIS): [],
            a_view(State.UNKNOWN, THIS): [],
        }
        self.assertEqual({view: [*actions, Action.SETTLE] for view, actions in cases.items()},
                         {view: list(claims.entered(view)) for view in cases})


class ClaimChangedTests(SynchronousTestCase):
    """What a node does when the claim of a VM has changed."""

    def check(self, view: View, *actions: Action) -> None:
        """Check what *view* leads to."""
        self.assertEqual([*actions], list(claims.claim_changed(view)), view)

    def test_released(self) -> None:
        """A VM without an owner is claimed if it is wanted, and settled if not; nobody waits for the owner any more."""
        for state in State:
            then = Action.CLAIM if state is State.QUEUED else Action.SETTLE
            self.check(a_view(state), Action.OWNER_SILENT, Action.OWNER_KEEPS, then)

    def test_told(self) -> None:
        """What another node tells of a VM that it owns."""
        changed = Action.CHANGE_OWNER
        for state in State:
            self.check(a_view(state, OTHER, Phase.STARTING), changed)
            self.check(a_view(state, OTHER), changed)
            self.check(a_view(state, OTHER, Phase.UP), Action.OWNER_READY, Action.OWNER_KEEPS, changed)
            self.check(a_view(state, OTHER, Phase.ENDING), Action.OWNER_STOPS, Action.REPORT_USE, changed)
            failed = (Action.OWNER_FAILED, changed) if state is State.QUEUED else (changed,)
            self.check(a_view(state, OTHER, Phase.FAILED), *failed)

    def test_nothing(self) -> None:
        """A node's own claim, and those of which it may not know all, lead to nothing."""
        for view in all_views():
            if view.owner is THIS or not view.connected:
                self.check(view)


class ConnectionTests(SynchronousTestCase):
    """What a node does about a VM when it is connected to the others, and when it loses them."""

    def test_connected(self) -> None:
        """The leases of VMs that are up follow their owners, who tell of them again; one that is queued is claimed."""
        cases = {
            a_view(State.UP, THIS, Phase.STARTING): [Action.CHANGE_OWNER, Action.TELL_UP],
            a_view(State.UP, THIS, Phase.ENDING): [Action.CHANGE_OWNER, Action.TELL_UP],
            a_view(State.UP, THIS, Phase.UP): [Action.CHANGE_OWNER],
            a_view(State.UP, OTHER, Phase.STARTING): [Action.CHANGE_OWNER],
            a_view(State.UP): [Action.CHANGE_OWNER],
            a_view(State.QUEUED, OTHER): [Action.CLAIM],
            a_view(State.OFF, THIS): [],
            a_view(State.STOPPING, OTHER, Phase.ENDING): [],
        }
        self.assertEqual({view: [*actions, Action.SETTLE] for view, actions in cases.items()},
                         {view: list(claims.connected(view)) for view in cases})

    def test_lost(self) -> None:
        """Nobody waits for another node; a VM that is queued is not started; one that is up stays up."""
        cases = {State.QUEUED: [Action.REFUSE], State.UP: [Action.CHANGE_OWNER]}
        for state in State:
            expected = [Action.OWNER_SILENT, *cases.get(state, []), Action.OWNER_KEEPS] if state not in DOWN else []
            self.assertEqual(expected, list(claims.lost(state)), state)
