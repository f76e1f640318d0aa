"""
The doors of the house: what a hypervisor, a sign of readiness, a place for the state and an agreement must offer.

A newcomer writes one class that has a door's shape and one row in that room's table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping  # noqa: TC003 -- zope.interface wants it at run time
from typing import TYPE_CHECKING, Final

import attrs
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jitsu_tw.settings import VM, Mode


class Power(enum.Enum):
    """What a backend says of a VM."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"


#: The reasons that `IWatcher.changed` is given when a guest has ended in order, as far as the hypervisor can tell.
SHUTS_DOWN: Final = "the guest shuts down"
SHUT_DOWN: Final = "the guest shut down"
ENDED: Final = "the guest ended by itself"


class Start(enum.Enum):
    """What a backend's start call did."""

    BOOTED = "booted"
    RESTORED = "restored"  # from a saved image, or from the image of the ready guest
    RESUMED = "resumed"  # it was paused
    RAN = "ran already"


@attrs.frozen
class Guest:
    """
    What a backend knows of a VM.

    Attributes:
        macs: the MAC addresses of its interfaces, ``aa:bb:cc:dd:ee:ff``, in their order.
        domid: Xen's number for it; None where the hypervisor is none of Xen's, or the VM is off.
    """

    macs: tuple[str, ...] = ()
    domid: int | None = None


@attrs.frozen
class Memory:
    """
    What a start would take, in octets.

    Attributes:
        needed: by the VM; 0 if it has it already, as a paused one does.
        free: on its host.
    """

    needed: int
    free: int


class IWatcher(Interface):
    """Who is told what happens at a backend. Every call is made in the reactor's thread."""

    def changed(uuid: str, reason: str) -> None:
        """Something happened to a VM, in the backend's words. Ask for its state: this is a hint, not the truth."""

    def rebooted(uuid: str) -> None:
        """A guest that runs has rebooted itself: for a while it is in its firmware, and boots."""

    def lost(backend: IBackend, reason: str) -> None:
        """The connection broke; it is being tried again."""

    def connected(backend: IBackend) -> None:
        """There is a connection, for the first time or again: whatever was known may be wrong."""


class IBackend(Interface):
    """
    A hypervisor, or many behind one URI.

    A VM is named by its uuid, which `look_up` tells. Every Deferred may fail with `errors.BackendError` in the
    library's own words, with `errors.NoSuchVM`, or with `errors.BackendLost`.
    """

    reachable: bool = Attribute("Whether packets can reach its guests (those of the memory backend have no network).")
    has_uuids: bool = Attribute("Whether its VMs have uuids; if not, a name keeps the one that the state has for it.")

    def examine(vm: VM) -> tuple[str, ...]:
        """
        Return advice about *vm* that its configuration gives, and the files that it names: no hypervisor is asked.

        Raises:
            ConfigError: the VM, or the backend's URI, can never work as it is configured.
        """

    def connect(watcher: IWatcher) -> None:
        """
        Begin to connect, and to connect again whenever it must, and to tell *watcher*.

        Returns at once: no call to a hypervisor blocks the reactor, and each has a deadline, also that to connect.
        """

    def close() -> Deferred[None]:
        """End the connection. VMs go on as they are."""

    def look_up(vm: VM) -> Deferred[str]:
        """Return the uuid of *vm*, defining it first if the backend does not know it and its settings say how."""

    def state(uuid: str) -> Deferred[Power]:
        """Return what the VM is now."""

    def start(uuid: str) -> Deferred[Start]:
        """
        Boot, resume or restore the VM, as its state needs. A VM that runs already is no error.

        What cannot be resumed or restored is thrown away, logged, and booted: a damaged image is no dead name.
        """

    def stop(uuid: str, mode: Mode) -> Deferred[None]:
        """Stop the VM. With `Mode.SHUTDOWN` this only asks: the guest takes its time. Off already is no error."""

    def ready(uuid: str) -> Deferred[None]:
        """Fire when the guest is up, as far as the backend knows by itself; at once where it cannot tell."""

    def guest(uuid: str) -> Deferred[Guest]:
        """Return what is known of the VM. One that is off may be an error, where nothing is known of it then."""

    def traffic(uuid: str) -> Deferred[int | None]:
        """
        Return how many packets the guest has transmitted, on all its interfaces.

        None if one of its interfaces is counted by nobody, or none is known. The number begins again at 0 when the VM
        does.
        """

    def cpu_time(uuid: str) -> Deferred[float | None]:
        """
        Return the seconds that the guest's virtual CPUs have run since it started; None if nobody counts them.

        Where the hypervisor tells them apart, the threads of its own emulator are not in it.
        """

    def obstacle(uuid: str, mode: Mode) -> Deferred[str | None]:
        """Return why the VM cannot be stopped by *mode* as it is now; None if nothing is known against it."""

    def advice(uuid: str) -> Deferred[tuple[str, ...]]:
        """Return sentences that an operator should read about the VM as the hypervisor has it defined."""

    def memory(uuid: str) -> Deferred[Memory | None]:
        """Return what a start of the VM would take now; None where nobody can tell."""

    def migrate(uuid: str, to: IBackend) -> Deferred[None]:
        """Let a VM that runs go on on another hypervisor, which knows it too. Fails where that cannot be."""

    def keep_image(uuid: str) -> Deferred[None]:
        """
        Keep the image of the guest, which has booted and is ready: later starts restore it.

        The guest stands still meanwhile. The image is not used any more once the VM's definition, its kernel or a disk
        has changed. Only where `backends.Declaration.images` is True.
        """

    def drop_image(uuid: str) -> Deferred[None]:
        """Forget the image that `keep_image` kept, if there is one: the next start boots."""


class IReadiness(Interface):
    """A way to find out that a guest will answer its first packet."""

    tries_port: bool = Attribute("Whether it tries the port `wait_for_port`, which Synjitsu does while it stands in.")
    anew: bool = Attribute("Whether a restored guest shows it anew; if not, a restored guest is ready without it.")

    def wait(vm: VM, guest: Guest) -> Deferred[None]:
        """Fire when *guest*, which is *vm*'s, is ready. Cancelling the Deferred ends the wait and all that it does."""


class IStore(Interface):
    """The state: one tree of text (DESIGN, section 10): paths like ``jitsu/stats/<uuid>/start_ts`` and their values."""

    lasting: bool = Attribute("Whether what is written outlives the process; if not, nobody need write.")

    def open() -> Mapping[str, str]:
        """
        Open the state, making an empty one where there is none, and return it whole; this call may block.

        Raises:
            StoreError: it is damaged, foreign, or cannot be read; the message names the remedy.
        """

    def write(changes: Mapping[str, str | None], message: str) -> Deferred[None]:
        """Change the tree as one step (None removes a path and all below it), saying why. May fail: `StoreError`."""

    def close() -> Deferred[None]:
        """Finish what is being written."""


class IPeer(Interface):
    """Who is told what those who agree tell each other. Every call is made in the reactor's thread."""

    def told(key: str, value: str | None, before: str | None) -> None:
        """A fact is another now, ours or another's; None for one that is not there."""

    def joined() -> None:
        """There is agreement, for the first time or again: `ICoordinator.facts` are whole, as of now."""

    def parted(reason: str) -> None:
        """Nothing can be agreed on any more, and nothing that was ours be proven; it is being tried again."""


class ICoordinator(Interface):
    """
    What several Jitsus agree on: facts, small texts by key, which all of them see.

    Some are claims: at most one of us has a claim, and it goes when its owner does. A key is a path without a slash at
    its ends, such as ``claims/www``. Every Deferred may fail with `errors.ClusterUnavailable`.
    """

    node: str = Attribute("The name of this one of us.")
    alone: bool = Attribute("Whether there are no others, and never will be: then nobody need be told anything.")
    facts: Mapping[str, str] = Attribute("What is known now, by key.")
    trouble: str = Attribute("Why all claims are refused though there is agreement; empty if they are not.")

    def start(peer: IPeer) -> None:
        """Begin to connect, and to connect again whenever it must, and to tell *peer*."""

    def stop() -> Deferred[None]:
        """End it. What we have claimed is free at once."""

    def claim(key: str, value: str) -> Deferred[bool]:
        """Make a fact that is ours alone and goes when we do; say whether it is ours now (it may have been before)."""

    def holds(key: str) -> bool:
        """Say whether *key* is a claim of ours, and nobody else can have it at this moment. Looks at the clock."""

    def put(facts: Mapping[str, str | None], holding: str = "") -> Deferred[bool]:
        """
        Change facts as one step; None removes one. A claim of ours stays one, whatever its value; others are lasting.

        Returns:
            (through the Deferred) whether that was done: not if we do not hold the claim *holding*, when one is given.
        """
