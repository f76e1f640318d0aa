"""
The interfaces between Jitsu's layers: what a hypervisor, a readiness strategy, a store and a cluster offer.

A new backend or readiness strategy is a class with such an interface, and a row in the table of its package.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping  # noqa: TC003 -- zope.interface wants it at run time
from typing import TYPE_CHECKING, Any, Final

import attrs
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from collections.abc import Awaitable, Hashable, Iterable

    from twisted.internet.defer import Deferred

    from jitsu_tw.dns.wire import Source
    from jitsu_tw.errors import JitsuError
    from jitsu_tw.ireservations import IReservations
    from jitsu_tw.rules.lifecycle import Event, State
    from jitsu_tw.settings import VM, Mode


class Power(enum.Enum):
    """What a backend says of a VM."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"
    PREPARED = "prepared"  # paused by `IBackend.prepare`, and not started since


#: The reasons that `IWatcher.changed` is given when a guest has ended in order, as far as the hypervisor can tell.
SHUTS_DOWN: Final = "the guest shuts down"
SHUT_DOWN: Final = "the guest shut down"
ENDED: Final = "the guest ended by itself"


class Start(enum.Enum):
    """What a backend's start call did."""

    BOOTED = "booted"
    RESTORED = "restored"  # from a saved image, or from the image of the ready guest
    CLONED = "cloned"  # from the image that the VMs of its template share (`IBackend.keep_image`)
    RESUMED = "resumed"  # it was paused
    PREPARED = "prepared before"  # it was paused before any client had used it
    RAN = "ran already"


@attrs.frozen
class Guest:
    """
    What a backend knows of a VM.

    Attributes:
        macs: the MAC addresses of its interfaces, ``aa:bb:cc:dd:ee:ff``, in their order.
        domid: Xen's number for it; None where the hypervisor is none of Xen's, or the VM is off.
        bridges: the bridges of its host that its interfaces are, or will be, plugged into, as far as that is known.
    """

    macs: tuple[str, ...] = ()
    domid: int | None = None
    bridges: tuple[str, ...] = ()

_MIB: Final = 1 << 20


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

    @property
    def shortage(self) -> str:
        """Why the start does not fit on the host; empty if it fits."""
        if self.needed <= self.free:
            return ""
        return f"it needs {self.needed // _MIB} MiB of memory, {self.free // _MIB} are free"


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
        """
        Return the uuid of *vm*, defining it first if the backend does not know it and its settings say how.

        A disk of its own (`VM.layer`) is made before that, if it is not there. Nothing is made of a VM that is
        `removed`: it is there, or fails by `errors.NoSuchVM`.
        """

    def state(uuid: str) -> Deferred[Power]:
        """Return what the VM is now."""

    def start(uuid: str) -> Deferred[Start]:
        """
        Boot, resume or restore the VM, as its state needs. A VM that runs already is no error.

        What cannot be resumed or restored, or was prepared and is `stale`, is thrown away, logged, and booted: a
        damaged image is no dead name.
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
        """Move a VM, which goes on running, to another hypervisor, which knows it too. Fails where that cannot be."""

    def keep_image(uuid: str, *, shared: bool = False) -> Deferred[None]:
        """
        Keep the image of the guest, which has booted and is ready: later starts restore it.

        The guest stands still meanwhile. A *shared* one is that of another guest, which is booted for it, and all VMs
        of the template that has made this one start from it; there is nothing to do where the backend or the guest
        cannot do that, or there is one. No image is used any more once the VM's definition, its kernel or a disk has
        changed. Only where `backends.Declaration.images` is True.
        """

    def drop_image(uuid: str) -> Deferred[None]:
        """Forget the image that `keep_image` kept for the VM, if there is one, because it could not go on from it."""

    def remove(vm: VM) -> Deferred[None]:
        """
        Remove *vm*, which a template has made: its definition, its memory if it is paused, its images, its own disk.

        What is not there is no error; the VM need not have been looked up. Fails if it runs, or was not made by a
        template. Only where `backends.Declaration.makes` is True.
        """

    def prepare(uuid: str) -> Deferred[None]:
        """
        Pause the guest, which is ready and which no client has used, and remember at the hypervisor that it is such.

        Its state is `Power.PREPARED` then until it runs or ends, whatever becomes of this process. Fails if it was
        made of what has changed since. Only where `backends.Declaration.prepares` is True.
        """

    def stale(uuid: str) -> Deferred[str]:
        """
        Return why the prepared VM is no use any more; empty if it is as good as new.

        Its definition, its kernel or a disk has changed, or another program has let its guest run meanwhile.
        """


class IXenBackend(IBackend):
    """A backend whose guests are domains of this host's Xen."""

    xenstore: Any = Attribute("This host's `xenstore.Xenstore`, to which they can write.")


class IReadiness(Interface):
    """A way to find out that a guest will answer its first packet."""

    tries_port: bool = Attribute("Whether it tries the port `wait_for_port`, which Synjitsu does while it stands in.")
    anew: bool = Attribute("Whether a restored guest shows it anew; if not, a restored guest is ready without it.")

    def wait(vm: VM, guest: Guest) -> Deferred[None]:
        """Fire when *guest*, which is *vm*'s, is ready. Cancelling the Deferred ends the wait and all that it does."""


class IObserver(Interface):
    """What follows the VMs."""

    follows: Collection[State] = Attribute("It is told when a VM enters one of these.")

    def moved(machine: Any, old: State) -> None:
        """Handle that *machine*, an `IMachine`, has left the state *old* for another."""


class IAnswers(Interface):
    """Answers that are kept, and given to clients without the fleet, while a VM is up."""

    def moved(machine: Any, old: State) -> None:
        """Forget the answers of *machine*, an `IMachine`: it, or a VM that it needs, is not up any more."""

    def taken() -> Iterable[tuple[str, Any, int, float]]:
        """
        Yield the uses since the last call.

        Each is the name of a VM, what counts the uses of the name that was asked for (`vm.stats.StatsStore.use_of`),
        how often that was asked for, and when last, in seconds of the fleet's clock.
        """


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
        """Change the tree as one step, with a *message* that gives the reason; None removes a path and all below it."""

    def close() -> Deferred[None]:
        """Finish what is being written."""


class IPeer(Interface):
    """The observer of a coordinator. Every call is made in the reactor's thread."""

    def told(key: str, value: str | None, before: str | None) -> None:
        """Handle a fact that has changed, whichever node changed it; None for one that is not there."""

    def connected() -> None:
        """Handle that the nodes can agree, for the first time or again: `ICoordinator.facts` are whole, as of now."""

    def lost(reason: str) -> None:
        """Handle that no claim can be made or proven any more, because of *reason*; the coordinator tries again."""


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
        """Return whether *key* is a claim of this node, which no other can have at this moment. Reads the clock."""

    def put(
        facts: Mapping[str, str | None], holding: str = "", expected: Mapping[str, str | None] | None = None
    ) -> Deferred[bool]:
        """
        Change facts as one step; None removes one. A claim of ours stays one, whatever its value; others are lasting.

        Args:
            facts: values by key; with *expected*, at most a hundred.
            holding: a claim of this node.
            expected: what facts must be at that moment, by key; None for one that must not be there.

        Returns:
            (through the Deferred) whether that was done: not if this node does not hold the claim *holding*, or a fact
            is not as *expected*. Then those of *expected* that are there are known here as they were at that moment.
        """


class IMachine(Interface):
    """A VM at run time, as the cluster sees it."""

    vm: VM = Attribute("Its settings.")
    backend: IBackend = Attribute("Its hypervisor, or the hosts that it may run on.")
    uuid: str = Attribute("The backend's uuid of it; empty until the backend was asked.")
    state: State = Attribute("Where it is in its life.")
    reason: str = Attribute("Why it entered that state.")
    managed: bool = Attribute("Whether Jitsu started it, or was asked for it, so that Jitsu may stop it.")
    is_unsure: bool = Attribute("Whether it may run although its state does not say so.")

    def summon(
        asker: Hashable, *, insist: bool = False, is_client: bool = True, promised: bool = False
    ) -> Deferred[bool]:
        """
        Start the VM if it does not run.

        Args:
            asker: who wants it.
            insist: wait however long it takes, and start it also shortly after a failure.
            is_client: the asker waits for a DNS answer.
            promised: the asker has the address already.

        Returns:
            (through the Deferred) whether the VM is ready.

        Raises:
            JitsuError: (through the Deferred) it did not start.
        """

    def stop(reason: str, *, off: bool = False) -> Deferred[State]:
        """
        Stop the VM.

        Args:
            reason: why, for the log.
            off: shut its guest down where the VM's mode would keep its memory.

        Returns:
            (through the Deferred) the state in which that ended.
        """

    def look(reason: str) -> Deferred[None]:
        """Ask the backend what the VM does, because of *reason*, and enter that state; fires when that is done."""

    def refuse(reason: str, kind: type[JitsuError]) -> None:
        """Fail those who wait for the VM, which is queued, with an error of *kind*; it is not started."""

    def feed(event: Event, reason: str) -> None:
        """Handle one input of the table of states, because of *reason*."""

    def owner_keeps() -> None:
        """Handle that the VM is not to be stopped after all, or that it has no owner any more."""


class Request(enum.Enum):
    """What a node can ask of the owner node of a VM. The values are part of what nodes tell each other."""

    STOP = "stop"
    HOLD = "hold"
    RELEASE = "release"
    MOVE = "move"


class IOwnership(IObserver):
    """
    Which node owns a VM: only its owner starts, keeps and stops it.

    Where this node is the only one (`cluster.alone`) it owns all VMs. In a cluster (`cluster.claims`) the owner has a
    claim, from the VM's start to its end. All times are seconds of the clock `Clocks.now`.
    """

    refusal: str = Attribute("Why this node starts nothing now (cut off from the others, or drained); empty if it may.")
    connected: bool = Attribute("Whether this node knows what the others know.")

    def is_own(machine: IMachine) -> bool:
        """Return whether this node owns *machine* at this moment, and no other node can."""

    def is_others(machine: IMachine) -> bool:
        """Return whether another node owns *machine*."""

    def is_known(machine: IMachine) -> bool:
        """Return whether *machine*, which runs, was started by a node of a cluster; False where there is none."""

    def owner(machine: IMachine) -> str | None:
        """Return the name of the node that owns *machine*; None if no node does, or there is no cluster."""

    def times(machine: IMachine) -> tuple[float, float]:
        """Return when *machine*, which `is_known`, was last used through any node, and when it was started."""

    def claim(machine: IMachine) -> Awaitable[bool]:
        """
        Claim *machine*, which is queued, for a start.

        Returns:
            whether this node owns it now. If not, `IClusterEvents.claim_free` is called when it may be claimed again.

        Raises:
            ClusterUnavailable: this node starts nothing now.
        """

    def prove(machine: IMachine) -> None:
        """
        Return if no other node can start *machine* at this moment.

        Raises:
            ClusterUnavailable: another node may.
        """

    def owner_ready(machine: IMachine) -> Deferred[bool] | None:
        """
        Return a Deferred that fires when the owner node of *machine* tells that it is ready.

        Its value is False if the owner will tell nothing any more: ask again. None: this node finds out by itself.
        """

    def note_use(machine: IMachine, when: float) -> None:
        """Note that *machine* was used through this node at *when*; the others are told soon."""

    def announce_stop(machine: IMachine) -> float:
        """
        Announce to the other nodes that *machine*, whose lease has ended, is to be stopped.

        Returns:
            The seconds after which to ask again: 0 if it may be stopped now, infinity if this node does not own it.
        """

    def withdraw_stop(machine: IMachine) -> None:
        """Tell the other nodes that *machine* is kept, if its stop was announced."""

    def forget(machine: IMachine) -> None:
        """Handle that *machine* is not in the configuration any more."""


@attrs.frozen
class NodeStatus:
    """
    A node that serves the zones.

    Attributes:
        name: of the node.
        here: whether it is this one.
        problem: why it starts nothing; None if it does, or is another node.
        drained: whether it is drained.
        vms: how many VMs it owns.
        since: when it connected to the others, in seconds since 1970; None if there are no others.
        version: of its Jitsu; None if there are no others.
    """

    name: str
    here: bool
    problem: str | None
    drained: bool
    vms: int
    since: float | None
    version: str | None


@attrs.frozen
class HostStatus:
    """
    A host of VMs with `host`.

    Attributes:
        name: of the host.
        problem: why nothing can be started there; None if it can.
        drained: whether it is drained.
        vms: how many VMs are up there.
    """

    name: str
    problem: str | None
    drained: bool
    vms: int


class ICluster(Interface):
    """The nodes that serve the zones together, and the hosts of their VMs; there may be one node and no host."""

    ownership: IOwnership = Attribute("Which node owns a VM.")
    reservations: IReservations = Attribute("The VMs that templates have made, at any node.")
    problem: str = Attribute("Why nothing can be started through this node now; empty if it can.")
    nodes: list[NodeStatus] = Attribute("All nodes, by name.")
    hosts: list[HostStatus] = Attribute("All hosts, in the order of the configuration.")

    def start() -> None:
        """Begin to connect to the other nodes, and connect again after each loss."""

    def stop() -> Deferred[None]:
        """Tell the others the last uses, and give up all claims: the others adopt the VMs at once."""

    def request(machine: IMachine, request: Request, argument: str = "") -> Deferred[State]:
        """
        Ask the owner node of *machine*, another one, for something.

        Returns:
            (through the Deferred) the state of the machine; after a stop, when it has stopped.
        """

    def publish(commit: str) -> None:
        """Tell the other nodes that *commit* is the configuration now."""

    def host(machine: IMachine) -> str | None:
        """Return the host that *machine* runs, is paused or has its image on; None if it is on none."""

    def synjitsu(machine: IMachine) -> str | None:
        """Return where the Synjitsu for *machine* listens: that of its host, or of the first that it may be on."""

    def drain(kind: str, name: str, *, undo: bool = False) -> Deferred[bool]:
        """
        Take a host or a node out of service, or back; *kind* is ``hosts`` or ``nodes``.

        Nothing new is started on such a host, and its VMs move to others. Such a node starts nothing, and other nodes
        adopt its VMs.
        """

    def move(machine: IMachine, host: str) -> Deferred[None]:
        """
        Move *machine*, which is up, to *host*, or to the best other one if that is empty.

        Raises:
            JitsuError: (through the Deferred) it cannot move there, or is not up.
        """


class ITemplates(Interface):
    """
    Templates, whose VMs are made when their names are first asked for.

    A template is named by its name, which is that of the VM in the zones to which its wildcards belong.
    """

    def has(template: str) -> bool:
        """Return whether there is a template of that name."""

    def serves(template: str, version: int) -> bool:
        """Return whether the VMs of *template* have addresses of the IP *version*, 4 or 6."""

    def label_of(name: bytes, template: str) -> str | None:
        """Return the label that *name*, in lower case, has in *template*; None if it can have no VM."""

    def exists(template: str, label: str, source: Source) -> Deferred[bool]:
        """
        Return whether *label* exists in *template*, for the client *source*.

        Raises:
            Prohibited: (through the Deferred) the client asks for too many.
            ExistenceUnknown: (through the Deferred) it cannot be found out now.
        """

    def make(template: str, label: str, source: Source) -> Deferred[bool]:
        """
        Make the VM of *label* in *template*, for the client *source*, and begin to start it.

        Returns:
            (through the Deferred) whether the label exists; if so, its names are in the zones now.

        Raises:
            JitsuError: (through the Deferred) it is not made, and nothing is left of it; as `exists`, or Prohibited,
                Unproven or NoCapacity for a limit, BackendError if the hypervisor refuses it.
        """


@attrs.frozen
class TemplateCounts:
    """
    What a template has done since this process began.

    Attributes:
        made: the VMs that it has made.
        failed: those that could not be made, or whose first start has failed.
        forgotten: those that are forgotten.
        refused: those that were not made because of a limit, by the limit.
        asked: the questions for names without a VM, by the answer: ``exists``, ``missing`` or ``unknown``.
    """

    made: int = 0
    failed: int = 0
    forgotten: int = 0
    refused: Mapping[str, int] = attrs.field(factory=dict)
    asked: Mapping[str, int] = attrs.field(factory=dict)


class ITemplateControl(Interface):
    """Templates, as an operator sees and steers them."""

    def counts(template: str) -> TemplateCounts:
        """Return what *template* has done."""

    def problems() -> Mapping[str, Collection[str]]:
        """Return what is wrong with templates, by the template's name, in sentences without a full stop."""

    def forget(name: str) -> Deferred[None]:
        """
        Stop the VM *name*, which a template has made, and remove all that there is of it.

        Raises:
            ConfigError: (through the Deferred) it was not made by a template, or is being forgotten already.
            BackendError: (through the Deferred) it cannot be stopped or removed now; that is tried again.
        """


class IForgets(Interface):
    """What removes VMs that templates have made, and tries again until that is done."""

    def retire(machine: Any, reason: str) -> Awaitable[bool]:
        """
        Stop *machine* and remove it from its hypervisor, then from the state.

        Returns:
            whether this node does so: not if another node of the cluster removes it.

        Raises:
            ClusterUnavailable: the nodes cannot agree.
        """


class IClusterEvents(Interface):
    """What the cluster tells and asks. VMs are told by name; one that the configuration has no more is ignored."""

    def gather() -> None:
        """Call `IOwnership.note_use` for what was used since the last call and has not been noted."""

    def was_started(name: str) -> bool:
        """Return whether this node's own state says that it had started the VM, and has not seen it down since."""

    def claim_free(name: str) -> None:
        """Claim the VM, which is queued: its claim has become free."""

    def owner_changed(name: str) -> None:
        """Handle that the VM, which is up, has another owner, or that its owner is known now."""

    def used(name: str, when: float) -> None:
        """Handle that the VM was used through another node at *when*, on the clock `Clocks.now`."""

    def requested(name: str, request: Request) -> None:
        """Do for another node what it asks of this one, which owns the VM; never `Request.MOVE`."""

    def speaker_changed(name: str) -> None:
        """Announce the VM to Synjitsu anew: its owner, or its host, may be another one."""

    def node_left() -> None:
        """Announce all VMs to Synjitsu anew: it forgets what a node has announced that is gone."""

    def configuration_published(commit: str) -> None:
        """Handle that a node has published *commit* as the configuration."""

    def made_changed(name: str) -> None:
        """Handle that something has changed about a VM of a template: `IReservations.step` tells what to do."""


class IPublications(Interface):
    """What follows the configuration that nodes publish."""

    def published(commit: str) -> None:
        """Handle that a node has published *commit* as the configuration."""


class IPlacement(Interface):
    """What several hosts, as one backend (`backends.pool`), ask and tell about where VMs are."""

    def claim_host(vm: VM, host: str) -> Awaitable[bool]:
        """
        Agree with the other nodes that *vm* is started on *host* now, and on no other.

        Returns:
            whether that is agreed; False: this node does not own the VM any more.
        """

    def seen_on(vm: VM, host: str, *, moved: bool) -> None:
        """Handle that *vm* runs on *host*; *moved*: it was on another one before."""

    def last_host(vm: VM) -> str | None:
        """Return the host that *vm* was started on; empty if it runs on none, None if that is not known."""

    def started_ago(vm: VM) -> float:
        """Return how many seconds ago the start was begun which `last_host` is of."""

    def is_drained(host: str) -> bool:
        """Return whether nothing new is to be started on *host*."""

    def take_wanted(vm: VM) -> str | None:
        """Return the host to be preferred to all others at the next start of *vm*, and prefer none after that."""

    def reach_changed(host: str) -> None:
        """Handle that *host* was lost, or is connected."""
