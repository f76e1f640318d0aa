"""
What guests of Xen ask for themselves, by Xenstore: the keys ``data/jitsu/hold`` and ``data/jitsu/stop``.

A guest writes to ``data/jitsu/hold``, below its own path, for how many seconds it is not to be stopped for being idle;
0 ends that. Jitsu removes the key when it has read it, so that each write is a request of its own. If the VM has
`notify`, Jitsu writes to ``data/jitsu/stop`` in how many seconds it stops the guest, and removes that if it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.coroutines import spawn
from jitsu_tw.errors import BackendError, JitsuError
from jitsu_tw.ijitsu import IObserver, IXenBackend
from jitsu_tw.rules.lifecycle import DOWN, STOPS, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

    from jitsu_tw.vm.guests import GuestWord
    from jitsu_tw.vm.machine import Machine
    from jitsu_tw.xenstore import Transaction, Watch, Xenstore

#: Seconds, at least, between two looks at one guest's key: a guest may write as often as it likes.
LOOK_EVERY: Final = 1.0

#: The most digits that a number of seconds has.
DIGITS: Final = 6


@attrs.define(eq=False)
class _Guest:
    """
    A guest that runs.

    Attributes:
        machine: its VM.
        xenstore: has its keys.
        path: where they are.
        watch: calls when the guest has written.
        unlisten: ends that it is told of stops.
        is_asked: its key is to be looked at.
        busy: that is being done, or was less than `LOOK_EVERY` ago.
        ended: it does not run any more.
    """

    machine: Machine
    xenstore: Xenstore
    path: str
    watch: Watch | None = None
    unlisten: Callable[[], None] | None = None
    is_asked: bool = False
    busy: bool = False
    ended: bool = False

    def end(self) -> None:
        """Look at its keys no more."""
        self.ended = True
        if self.watch is not None:
            self.watch.stop()
        if self.unlisten is not None:
            self.unlisten()


@implementer(IObserver)
class XenGuests:
    """
    The guests of Xen that run.

    It owns, and nobody else writes: which guests are watched.
    """

    follows: Final = DOWN | STOPS | {State.UP, State.WAITING, State.UNKNOWN}

    log = Logger()

    def __init__(self, guests: GuestWord, reactor: IReactorTime) -> None:
        """Pass on to *guests* what they ask for."""
        self._word, self._reactor = guests, reactor
        self._guests: dict[str, _Guest] = {}

    def stop(self) -> None:
        """Look at no guest's keys any more."""
        for name in list(self._guests):
            self._end(name)

    def moved(self, machine: Machine, old: State) -> None:  # noqa: ARG002
        """Begin to look at the keys of *machine*'s guest if it is up; end that if it is not."""
        self._end(machine.vm.name)
        if machine.state is State.UP and IXenBackend.providedBy(machine.backend):
            self._spawn(self._begin(machine), machine)

    def _end(self, name: str) -> None:
        guest = self._guests.pop(name, None)
        if guest is not None:
            guest.end()

    def _spawn(self, work: Any, machine: Machine) -> None:
        # A Xenstore that is away is told of by its client; the watch calls again when it is back.
        spawn(self.log, work, machine.vm.name, ignore=(BackendError,))

    async def _begin(self, machine: Machine) -> None:
        number = (await machine.backend.guest(machine.uuid)).domid
        if number is None or machine.state is not State.UP or machine.vm.name in self._guests:
            return
        xenstore = IXenBackend(machine.backend).xenstore
        guest = _Guest(machine, xenstore, f"/local/domain/{number}/data/jitsu")
        self._guests[machine.vm.name] = guest
        guest.watch = guest.xenstore.watch(f"{guest.path}/hold", lambda _: self._asked(guest))
        if machine.vm.notify:
            guest.unlisten = self._word.listen(machine, lambda event: self._spawn(self._tell(guest, event), machine))

    # What the guest asks for.

    def _asked(self, guest: _Guest) -> None:
        """Look at the key of *guest*, now or when the last look is long enough ago."""
        guest.is_asked = True
        if not guest.busy:
            guest.busy = True
            self._spawn(self._look(guest), guest.machine)

    async def _look(self, guest: _Guest) -> None:
        try:
            while guest.is_asked and not guest.ended:
                guest.is_asked = False
                value = await guest.xenstore.transaction(lambda tree: _take(tree, f"{guest.path}/hold"))
                if value is not None and not guest.ended:
                    self._hold(guest.machine, value)
                await deferLater(self._reactor, LOOK_EVERY)
        finally:
            guest.busy = False

    def _hold(self, machine: Machine, value: str) -> None:
        """Hold *machine* for as many seconds as *value* says."""
        name, words = machine.vm.name, value[: DIGITS + 1]
        if not (words.isascii() and words.isdigit() and len(words) <= DIGITS):
            self.log.warn("{name}: its guest wrote {value!r} to data/jitsu/hold; write a number of seconds", name=name,
                          value=words)  # fmt: skip
            return
        try:
            self._word.hold(machine, int(words))
        except JitsuError as error:
            self.log.info("{name}: its guest cannot hold it: {error}", name=name, error=str(error))

    # What the guest is told.

    async def _tell(self, guest: _Guest, event: dict[str, Any]) -> None:
        path = f"{guest.path}/stop"
        if event["kind"] == "stop":
            await guest.xenstore.write(path, f"{event['seconds']:g}")
        else:
            await guest.xenstore.remove(path)


async def _take(tree: Transaction, path: str) -> str | None:
    """Return the value of a node, and remove it; None if there is none."""
    value = await tree.read(path)
    if value is not None:
        await tree.remove(path)
    return value
