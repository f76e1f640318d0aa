"""
What a configuration says, once it has been understood. Immutable; times are in seconds unless a name says otherwise.

`config.build` makes these from files and command lines; everybody else only reads them.
"""

from __future__ import annotations

import enum
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from jitsu_tw.dns.wire import from_text
from jitsu_tw.networks import EVERYBODY, LOOPBACK
from jitsu_tw.sockets import control_socket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jitsu_tw.dns.tsig import Key
    from jitsu_tw.networks import Address, Network
    from jitsu_tw.rules.schedule import WeeklyWindow
    from jitsu_tw.xen import XenGuest

#: Where images of ready guests are kept, if nobody says otherwise.
IMAGES: Final = Path("/var/lib/jitsu/images")

#: Statistics are committed at most this often, in seconds.
COMMIT_EVERY: Final = 5.0

#: A call to start a VM may go on at its hypervisor for so many seconds, though whoever made it is gone.
STARTS_WITHIN: Final = 60.0

#: The kind of hypervisor of VMs with `host`: that of all hosts together (`backends.hosts`).
HOSTS: Final = "hosts"

#: After how many seconds a guest that is not ready is taken for up all the same, so that its lease can end.
READY_WITHIN: Final = 60.0

#: After how many seconds a guest that was resumed or restored, and is not ready, is booted instead.
RESUMED_WITHIN: Final = 20.0


class Mode(enum.Enum):
    """How a VM is stopped (DESIGN, section 7)."""

    DESTROY = "destroy"
    SHUTDOWN = "shutdown"
    SUSPEND = "suspend"
    PAUSE = "pause"
    SAVE = "save"


class Evidence(enum.Enum):
    """What shows that a VM is in use."""

    TRAFFIC = "traffic"  # questions, and packets that its guest transmits; a VM whose packets nobody counts is kept
    QUERIES = "queries"  # questions alone


class Boot(enum.Enum):
    """What a VM that is off starts from."""

    DISK = "disk"  # as the hypervisor boots it
    SNAPSHOT = "snapshot"  # an image of the guest as it was when it was ready for the first time


class Handover(enum.Enum):
    """How packets that were held for a guest reach it (DESIGN, section 9)."""

    WIRE = "wire"  # Synjitsu sends them again
    XENSTORE = "xenstore"  # the guest's own TCP stack reads them in Xenstore


class WhenFull(enum.Enum):
    """What happens to a start when `max_running` VMs run."""

    REFUSE = "refuse"
    STOP_IDLE = "stop_idle"  # the VM that is idle the longest is stopped, if there is one that may be


class OnHostLoss(enum.Enum):
    """What becomes of the VMs of a host that cannot be reached any more."""

    WAIT = "wait"  # nobody knows whether they still run there
    RESTART = "restart"  # they are started elsewhere, once `fence` has said that the host is dead


@attrs.frozen
class Cluster:
    """
    Where several Jitsus that serve the same zones agree.

    Attributes:
        etcd: the URLs of etcd's members.
        node: the name of this one of us, unlike those of the others.
        prefix: what all keys begin with.
        ttl: after so many seconds without a word from one of us, what it had claimed is free.
        user, password: of etcd's, where it asks for them.
        ca: the certificates that etcd's must be signed by, a PEM file; None for the system's.
        cert, key: what we show to etcd, PEM files.
    """

    etcd: tuple[str, ...]
    node: str
    prefix: str = "/jitsu"
    ttl: float = 5.0
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@attrs.frozen
class Host:
    """
    One of several hypervisors.

    Attributes:
        name: what VMs and people call it.
        backend, connect: its kind and URI.
        synjitsu: where the Synjitsu of its network listens; None for none.
    """

    name: str
    backend: str
    connect: str
    synjitsu: str | None = None


@attrs.frozen
class Http:
    """
    What a ready guest answers over HTTP.

    Attributes:
        path: that is fetched.
        status: that it answers with; None for any 2xx or 3xx.
    """

    path: str
    status: int | None = None


@attrs.frozen
class Retention:
    """
    How much of the statistics' past the state keeps; without both, only the present.

    Attributes:
        number: so many commits.
        seconds: those of so many seconds.
    """

    number: int = 0
    seconds: float = 0.0

    def kept(self, times: Sequence[float], now: float) -> int:
        """Return how many of the last of the commits that were made at these *times* are kept."""
        recent = sum(when > now - self.seconds for when in times) if self.seconds else 0
        return max(recent, min(self.number, len(times)))


class Fault(enum.Enum):
    """What a VM of the memory backend can be told to do wrong."""

    START = "start"
    STOP = "stop"
    VANISH = "vanish"
    NEVER_READY = "never_ready"
    RESUME = "resume"
    HANG = "hang"


@attrs.frozen
class Rule:
    """
    Some that may have our zones.

    Attributes:
        network: where they are; None for anywhere.
        key: the name, in lower case, of the TSIG key they sign with; None if they need none.
    """

    network: Network | None
    key: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """
        Return the rule that *text* says: ``192.0.2.0/24``, ``key NAME``, or both, where both must hold.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        place, key = split_key(text)
        try:
            return cls(ip_network(place) if place else None, key)
        except ValueError as error:
            example = "192.0.2.0/24, or key NAME, or 192.0.2.0/24 key NAME"
            raise ValueError(f"{place!r} is no network ({error}); write one like {example}") from None


def split_key(text: str) -> tuple[str, bytes | None]:
    """
    Return what stands before ``key NAME`` in *text*, and that name in octets and lower case; None if there is none.

    Raises:
        ValueError: what is wrong with it, and what would be right.
    """
    words = text.split()
    if len(words) >= 2 and words[-2] == "key":
        return " ".join(words[:-2]), from_text(words[-1]).lower()
    if not words or "key" in words:
        raise ValueError(f"{text!r} lacks something; write ADDRESS, or key NAME, or ADDRESS key NAME")
    return " ".join(words), None


@attrs.frozen
class Secondary:
    """
    Somebody who has our zones, too.

    Attributes:
        host: its address.
        port: its UDP port.
        key: the name of the TSIG key to sign with; None for no signature.
    """

    host: str
    port: int = 53
    key: bytes | None = None

    def __str__(self) -> str:
        return self.host if self.port == 53 else f"{self.host} port {self.port}"


@attrs.frozen
class VM:
    """
    A machine that Jitsu may start.

    Attributes:
        name: the backend's name for it, unique in a configuration.
        dns: the names that summon it, as names (octets), in lower case, sorted.
        ip: its addresses, one or both families.
        uuid: the backend's uuid; wins over the name.
        own_dns, own_ip: the names and networks that the VM's own branch may take more names and addresses from.
        response_delay: seconds after the start call, or after the key of `wait_for_key`, until it is taken for ready;
            None where something better tells.
        wait_for_port: the TCP port that a ready guest answers on.
        wait_for_http: what it answers there over HTTP; None where an open port is enough.
        wait_for_key: the key in Xenstore, below the VM's own path, that a ready guest writes.
        ttl: of its addresses, in seconds.
        mode: how it is stopped.
        backend, connect: the hypervisor's kind and URI.
        idle: the seconds that it is kept after its last use.
        idle_packets: how many packets in a minute it may transmit and still be idle.
        evidence: what shows that it is in use.
        save_fallback: how it is stopped if its mode is to save it and that cannot be; None: not at all.
        min_up: the seconds that it is kept after its start.
        max_up: after how many seconds it is stopped, used or not; 0 for never.
        keep_up: the times of the week in which it is up, used or not.
        needs: the names of the VMs that it needs; they are started before it and kept while it is up.
        boot_from: what it starts from when it is off.
        check_every: when it is up and asked for, its `wait_for_port` is tried, but not more often than this, in
            seconds; 0 for never.
        use_synjitsu: Synjitsu stands in for its addresses while it boots.
        wake_by_packet: and while it is down; a packet for it starts it.
        mac: its guest's, besides those that the backend knows.
        ports: the TCP ports that are worth a start; without any, all.
        wake_udp: the UDP ports that are worth a start.
        handover: how it gets what was held for it.
        stop_timeout: the seconds that a shutdown may take before it becomes destroy.
        images: the directory for images of ready guests.
        hosts: the names of the hosts that it may run on, if its backend is `HOSTS`.
        prefer: the names of hosts that it goes to first, in this order.
        avoid: the names of hosts that it goes to last.
        define: an XML file, for a VM that libvirt does not know yet; of libxl's, a whole configuration of xl's.
        xen: of libxl: what it is made of, unless `define` says it all.
        boot_time: of the memory backend: the seconds that its start call takes.
        faults: of the memory backend: what goes wrong.
        removed: the configuration has it no more; it was started by an earlier process, and is to be stopped when idle.
        place: the file and line where it stands, for messages.
        dns_place: the same, of its names.
        said: what the configuration said, key by key, for the state (DESIGN, section 10).
    """

    name: str
    dns: tuple[bytes, ...]
    ip: tuple[Address, ...]
    ttl: int
    mode: Mode
    backend: str
    connect: str
    idle: float
    response_delay: float | None = None
    wait_for_port: int | None = None
    wait_for_http: Http | None = None
    wait_for_key: str | None = None
    uuid: str | None = None
    own_dns: tuple[bytes, ...] = ()
    own_ip: tuple[Network, ...] = ()
    idle_packets: float = 30.0
    evidence: Evidence = Evidence.TRAFFIC
    save_fallback: Mode | None = None
    min_up: float = 0.0
    max_up: float = 0.0
    keep_up: tuple[WeeklyWindow, ...] = ()
    needs: tuple[str, ...] = ()
    boot_from: Boot = Boot.DISK
    check_every: float = 10.0
    use_synjitsu: bool = False
    wake_by_packet: bool = True
    mac: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    wake_udp: tuple[int, ...] = ()
    handover: Handover = Handover.WIRE
    stop_timeout: float = 30.0
    images: Path = IMAGES
    hosts: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    define: Path | None = None
    xen: XenGuest | None = None
    boot_time: float = 0.0
    faults: frozenset[Fault] = frozenset()
    removed: bool = False
    place: tuple[str | None, int | None] = (None, None)
    dns_place: tuple[str | None, int | None] = (None, None)
    said: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen
class Settings:
    """
    A whole configuration.

    Attributes:
        zones: RFC 1035 master files; without any, zones are made up from the VMs' names.
        bind: addresses to serve on.
        listen: port, UDP and TCP.
        control: where jitsuctl and browsers connect: ``host:port``, ``unix:PATH``, or an endpoint of Twisted's that
            begins with ``ssl:``; empty ones are none.
        control_token: what they have to show there; None for nothing.
        persistdb: the state's git repository; None for memory.
        synjitsu: where Synjitsu listens: ``unix:PATH``, ``host:port`` or a description of a client endpoint.
        synjitsu_secret: what Synjitsu wants to be shown; None for nothing.
        commit_every: statistics are committed at most once in so many seconds.
        keep_history: how much of their past is kept.
        forwarder: the server (host, port) asked for names that are not ours; None for nobody.
        forward_for: the clients for whom it is asked.
        ttl: of made-up zones, in seconds.
        answer_by: seconds from a query to its answer, ready or not.
        max_booting: how many VMs boot at once; more wait their turn.
        max_running: how many VMs run at once; 0 for no limit.
        when_full: what happens to a start when so many run.
        summon_from: the networks whose clients may start VMs.
        starts_per_minute: how many VMs a client network, a /24 or /56, may start in a minute; 0 for no limit.
        verify_source: only clients that have proven their address, by TCP or a DNS cookie, may start VMs.
        rate_limit: how many like responses a client network gets in a second by UDP (NSD's rrl-ratelimit); 0 for any
            number.
        rate_slip: every how many-th response over that goes out truncated.
        rate_exempt: networks that the rate limit does not hold for; those of loopback are always among them.
        nsid: what we say to a question for our identity (RFC 5001); None for nothing.
        tsig_keys: those that clients and we may sign with (`dns.tsig.Key`).
        allow_transfer: who may transfer zones (`dns.transfer.Rule`).
        notify: who is told of new serials (`dns.notify.Secondary`).
        log_json: write the log as one JSON object a line.
        dry_run: start nothing; count what would have been started, and answer as if it were up.
        cluster: where those who serve the same zones agree; None if nobody else does.
        remote: the git repository that their configurations are shared by; any URL that git takes.
        hosts: the hypervisors that VMs with `host` may run on.
        on_host_loss: what becomes of the VMs of one that cannot be reached any more.
        fence: a command that makes sure that such a host, its last argument, is dead; it ends with 0 if it is.
        defaults: what holds for a VM that does not say otherwise, for VMs that come later (`config.build.vm_from`).
    """

    vms: tuple[VM, ...] = ()
    zones: tuple[Path, ...] = ()
    bind: tuple[str, ...] = ("127.0.0.1",)
    listen: int = 53
    control: tuple[str, ...] = attrs.field(factory=lambda: (f"unix:{control_socket()}",))
    control_token: str | None = attrs.field(default=None, repr=False)
    persistdb: Path | None = None
    synjitsu: str | None = None
    synjitsu_secret: str | None = attrs.field(default=None, repr=False)
    commit_every: float = COMMIT_EVERY
    keep_history: Retention = Retention()
    forwarder: tuple[str, int] | None = None
    forward_for: tuple[Network, ...] = LOOPBACK
    ttl: int = 60
    answer_by: float = 1.2
    max_booting: int = 8
    max_running: int = 0
    when_full: WhenFull = WhenFull.REFUSE
    summon_from: tuple[Network, ...] = EVERYBODY
    starts_per_minute: int = 30
    verify_source: bool = False
    rate_limit: int = 200
    rate_slip: int = 2
    rate_exempt: tuple[Network, ...] = ()
    nsid: bytes | None = None
    tsig_keys: tuple[Key, ...] = ()
    allow_transfer: tuple[Rule, ...] = ()
    notify: tuple[Secondary, ...] = ()
    log_json: bool = False
    dry_run: bool = False
    cluster: Cluster | None = None
    remote: str | None = None
    hosts: tuple[Host, ...] = ()
    on_host_loss: OnHostLoss = OnHostLoss.WAIT
    fence: str | None = None
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
