"""
What a configuration says, once it has been parsed. Immutable; times are in seconds unless a name says otherwise.

`config.build` makes these from files and command lines; everything else only reads them. A field made by
`keys.setting` is the declaration of a key: `Settings` has those of the top, `VM` those of a VM, `Inherited` those of
both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping  # noqa: TC003 -- attrs reads the annotations of fields that are redefined
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import NOTHING

from jitsu_tw import parsers
from jitsu_tw.dns import tsig
from jitsu_tw.dns.wire import from_text
from jitsu_tw.keys import DAY, Limits, setting
from jitsu_tw.networks import EVERYBODY, LOOPBACK
from jitsu_tw.rules.schedule import WeeklyWindow
from jitsu_tw.sockets import control_socket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.networks import Address, Network

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
class Retention:
    """
    How much of the statistics' past the state keeps; without both, only the present.

    Attributes:
        number: so many commits.
        seconds: those of so many seconds.
    """

    number: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Retention:
        """
        Return what *text* says: ``30d``, ``12h``, ``5m``, or a number of commits.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        units = {"d": 86400, "h": 3600, "m": 60}
        number, unit = text[:-1], units.get(text[-1:], 0)
        if unit and parsers.is_number(number):
            return cls(seconds=float(number) * unit)
        if not parsers.is_number(text):
            raise ValueError(f"{text!r} is no time and no number of commits; write one like 30d, 12h or 100")
        return cls(int(text))

    def kept(self, times: Sequence[float], now: float) -> int:
        """Return how many of the last of the commits that were made at these *times* are kept."""
        recent = sum(when > now - self.seconds for when in times) if self.seconds else 0
        return max(recent, min(self.number, len(times)))


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
    Another name server that has our zones.

    Attributes:
        host: its address.
        port: its UDP port.
        key: the name of the TSIG key to sign with; None for no signature.
    """

    host: str
    port: int = 53
    key: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Secondary:
        """
        Return what *text* says: ``ADDRESS[:PORT]``, or that and ``key NAME``.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        place, key = split_key(text)
        return cls(*parsers.host_port(place, 53), key)

    def __str__(self) -> str:
        return self.host if self.port == 53 else f"{self.host} port {self.port}"


@attrs.frozen
class Cluster:
    """Where several Jitsus that serve the same zones agree: the group `cluster` of a configuration."""

    etcd: tuple[str, ...] = setting(NOTHING, parsers.etcd_url, "the URLs of etcd's members", many=True)
    node: str = setting(NOTHING, parsers.name, "the name of this node, unlike those of the others")
    prefix: str = setting("/jitsu", parsers.etcd_prefix, "what all keys of etcd begin with")
    ttl: float = setting(
        5.0, parsers.number("number of seconds", 2, 600), "seconds after which what a silent node had claimed is free"
    )
    user: str | None = setting(None, parsers.text, "etcd's name of the user, where it asks for one")
    password: str | None = setting(None, parsers.text, "a file with that user's password", path=True, secret=True)
    ca: Path | None = setting(
        None, parsers.text, "the authorities of etcd's certificates, a PEM file", path=True, shown="the system's"
    )
    cert: Path | None = setting(None, parsers.text, "the certificate that Jitsu shows to etcd, a PEM file", path=True)
    key: Path | None = setting(None, parsers.text, "the key of that certificate, a PEM file", path=True)


@attrs.frozen(kw_only=True)
class Host:
    """One of several hypervisors: an item of the list `hosts` of a configuration."""

    name: str = setting(NOTHING, parsers.name, "what VMs and people call it")
    backend: str = setting("libvirt", parsers.text, "the kind of hypervisor")
    connect: str = setting(NOTHING, parsers.text, "the URI of the hypervisor")
    synjitsu: str | None = setting(None, parsers.endpoint, "where the Synjitsu of its network listens")


@attrs.frozen(kw_only=True)
class Inherited:
    """What holds for each VM that does not say otherwise, as the top of a configuration says it."""

    backend: str = setting("libvirt", parsers.text, "the kind of hypervisor", option="x")
    connect: str | None = setting(None, parsers.text, "the URI of the hypervisor", option="c", shown="qemu:///system")
    mode: Mode = setting(
        Mode.DESTROY, parsers.one_of(Mode), "how VMs are stopped: destroy, shutdown, suspend, pause, save", option="m"
    )
    ttl: int = setting(60, parsers.ttl, "the TTL of the VMs' addresses, in seconds", option="t", own=Limits(1, DAY))
    idle: float | None = setting(
        None, parsers.seconds, "seconds that a VM is kept after its last use", own=Limits(1, DAY), shown="2 x ttl"
    )
    idle_packets: float = setting(
        30.0, parsers.number("number of packets in a minute"), "packets in a minute of an idle guest", own=Limits()
    )
    evidence: Evidence = setting(
        Evidence.TRAFFIC, parsers.one_of(Evidence), "what shows that a VM is in use", own=Limits()
    )
    save_fallback: Mode | None = setting(
        None, parsers.one_of(Mode, (Mode.DESTROY, Mode.SHUTDOWN, Mode.PAUSE)),
        "how a VM is stopped that should be saved and cannot be; None: not at all",
    )
    min_up: float = setting(0.0, parsers.seconds, "seconds that a VM is kept after its start")
    max_up: float = setting(
        0.0, parsers.seconds, "seconds after its start when a VM is stopped, used or not; 0 for never"
    )
    check_every: float = setting(
        10.0, parsers.seconds, "seconds, at least, between two tries of the port of a VM that is asked for; 0 for none"
    )
    stop_timeout: float = setting(30.0, parsers.seconds, "seconds that a shutdown may take before it becomes destroy")
    images: Path = setting(
        Path("/var/lib/jitsu/images"), parsers.text, "the directory for images of ready guests", path=True
    )
    use_synjitsu: bool = setting(default=False, parse=parsers.switch, doc="Synjitsu stands in for a VM while it boots")
    wake_by_packet: bool = setting(
        default=True, parse=parsers.switch, doc="and while it is down: a packet for it starts it"
    )
    handover: Handover = setting(
        Handover.WIRE, parsers.one_of(Handover), "how a guest gets the packets that were held for it"
    )


@attrs.frozen(kw_only=True)
class VM(Inherited):
    """
    A machine that Jitsu may start.

    Attributes:
        readiness: the values of the keys that tell when a guest is ready (`jitsu_tw.readiness`), by key.
        backend_settings: what its backend alone has to know of it, of the class that the backend declares; or None.
        hosts: the names of the hosts that it may run on, if its backend is `HOSTS`.
        removed: the configuration has it no more; it was started by an earlier process, and is to be stopped when idle.
        place: the file and line where it stands, for messages.
        dns_place: the same, of its names.
        raw: the raw values of the configuration, by key, for the state (DESIGN, section 10).
    """

    name: str = setting(NOTHING, parsers.vm_name, "the hypervisor's name for it, unique in a configuration")
    dns: tuple[bytes, ...] = setting(
        NOTHING, parsers.dns_name, "the names that summon it, in lower case, sorted", many=True, own=Limits(number=16)
    )
    ip: tuple[Address, ...] = setting(
        NOTHING, parsers.guest_address, "its addresses, one or both families", many=True, own=Limits(number=8)
    )
    connect: str
    idle: float
    uuid: str | None = setting(None, parsers.uuid, "the hypervisor's uuid; wins over the name")
    own_dns: tuple[bytes, ...] = setting(
        (), parsers.dns_name, "names that the VM's own branch may take besides its own", many=True
    )
    own_ip: tuple[Network, ...] = setting(
        (), parsers.network, "networks that the VM's own branch may take addresses from", many=True
    )
    keep_up: tuple[WeeklyWindow, ...] = setting(
        (), WeeklyWindow.parse, "the times of the week in which it is up, used or not", many=True
    )
    needs: tuple[str, ...] = setting(
        (), parsers.vm_name, "the VMs that it needs; they start before it and are kept while it is up", many=True
    )
    boot_from: Boot = setting(Boot.DISK, parsers.one_of(Boot), "what it starts from when it is off")
    mac: tuple[str, ...] = setting((), parsers.mac, "its guest's MACs besides those that the backend knows", many=True)
    ports: tuple[int, ...] = setting(
        (), parsers.port, "the TCP ports that are worth a start", many=True, own=Limits(number=64), shown="all"
    )
    wake_udp: tuple[int, ...] = setting((), parsers.port, "the UDP ports that are worth a start", many=True)
    host: tuple[str, ...] = setting((), parsers.name, "the hosts that it may run on, or any", many=True)
    prefer: tuple[str, ...] = setting((), parsers.name, "the hosts that it goes to first, in this order", many=True)
    avoid: tuple[str, ...] = setting((), parsers.name, "the hosts that it goes to last", many=True)
    define: Path | None = setting(
        None, parsers.text, "a file that defines it: libvirt's XML, or a whole configuration of xl's", path=True
    )
    readiness: Mapping[str, Any] = attrs.field(factory=dict)
    backend_settings: Any = None
    hosts: tuple[str, ...] = ()
    removed: bool = False
    place: tuple[str | None, int | None] = (None, None)
    dns_place: tuple[str | None, int | None] = (None, None)
    raw: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    def value(self, key: str) -> Any:
        """Return the value of a key, wherever it is declared; None for one of readiness that is not set."""
        return getattr(self, key) if hasattr(self, key) else self.readiness.get(key)


@attrs.frozen(kw_only=True)
class Settings(Inherited):
    """
    A whole configuration.

    Attributes:
        cluster: where those who serve the same zones agree; None if nobody else does.
        hosts: the hypervisors that VMs with `host` may run on.
    """

    vms: tuple[VM, ...] = ()
    cluster: Cluster | None = None
    hosts: tuple[Host, ...] = ()
    zones: tuple[Path, ...] = setting(
        (), parsers.text, "RFC 1035 master files", many=True, path=True, shown="made up"
    )
    bind: tuple[str, ...] = setting(
        ("127.0.0.1",), parsers.bind, "the address to serve DNS on", many=True, option="b"
    )
    listen: int = setting(53, parsers.port, "the port to serve DNS on", option="l")
    delay: float = setting(
        0.1, parsers.seconds, "seconds from a VM's start to the answer, where nothing tells when it is ready",
        option="d",
    )
    forwarder: tuple[str, int] | None = setting(
        None, parsers.forwarder, "the server to ask for names outside of the zones", option="f"
    )
    port: int | None = setting(None, parsers.port, "the port of that server", option="p", shown="53")
    synjitsu: str | None = setting(None, parsers.endpoint, "where Synjitsu listens", option="")
    persistdb: Path | None = setting(
        None, parsers.text, "where the state is kept, a bare git repository", path=True, option="", shown="in memory"
    )
    control: tuple[str, ...] = setting(
        attrs.Factory(lambda: (f"unix:{control_socket()}",)), parsers.control,
        "where jitsuctl connects: unix:PATH, host:port, ssl:..., or off", many=True, option="", shown="a UNIX socket",
    )
    control_token: str | None = setting(
        None, parsers.text, "a file with what jitsuctl has to show there", path=True, secret=True, option="",
        shown="nothing",
    )
    synjitsu_secret: str | None = setting(
        None, parsers.text, "a file with what Synjitsu wants to be shown", path=True, secret=True
    )
    commit_every: float = setting(COMMIT_EVERY, parsers.seconds, "seconds, at least, between two commits of statistics")
    keep_history: Retention = setting(
        Retention(), Retention.parse, "how much of their past the state keeps", shown="the present only"
    )
    forward_for: tuple[Network, ...] = setting(
        LOOPBACK, parsers.network, "the clients whose questions may be forwarded", many=True, shown="loopback"
    )
    answer_by: float = setting(1.2, parsers.seconds, "seconds from a query to its answer, ready or not")
    max_booting: int = setting(8, parsers.whole(1, 100_000, "number of VMs"), "how many VMs boot at once")
    max_running: int = setting(
        0, parsers.whole(0, 1_000_000, "number of VMs"), "how many VMs run at once; 0 for any number"
    )
    when_full: WhenFull = setting(
        WhenFull.REFUSE, parsers.one_of(WhenFull), "what happens to a start when so many VMs run"
    )
    summon_from: tuple[Network, ...] = setting(
        EVERYBODY, parsers.network, "the networks whose clients may start VMs", many=True, shown="everybody"
    )
    starts_per_minute: int = setting(
        30, parsers.whole(0, 1_000_000, "number of starts"),
        "how many VMs a client network, a /24 or /56, may start in a minute; 0 for any number",
    )
    verify_source: bool = setting(
        default=False, parse=parsers.switch,
        doc="only clients that have proven their address, by TCP or a DNS cookie, may start VMs",
    )
    rate_limit: int = setting(
        200, parsers.whole(0, 1_000_000, "number of responses in a second"),
        "how many like responses a client network gets in a second by UDP (NSD's rrl-ratelimit); 0 for any number",
    )
    rate_slip: int = setting(
        2, parsers.whole(0, 100, "number of responses"),
        "of the responses over that limit, one in this many goes out truncated; 0 for none",
    )
    rate_exempt: tuple[Network, ...] = setting(
        (), parsers.network, "networks without that limit; those of loopback are always among them", many=True
    )
    nsid: bytes | None = setting(
        None, parsers.octets, "what is answered to clients that ask for this server's identity (RFC 5001)"
    )
    tsig_keys: tuple[tsig.Key, ...] = setting(
        (), tsig.Key.parse, "the keys that clients and Jitsu may sign with", many=True
    )
    allow_transfer: tuple[Rule, ...] = setting((), Rule.parse, "who may transfer zones", many=True, shown="nobody")
    notify: tuple[Secondary, ...] = setting(
        (), Secondary.parse, "the secondaries that are told of new serials", many=True, shown="nobody"
    )
    log_json: bool = setting(
        default=False, parse=parsers.switch, doc="write the log as one JSON object a line", option=""
    )
    dry_run: bool = setting(
        default=False, parse=parsers.switch, option="",
        doc="start nothing; count what would have been started, and answer as if it were up",
    )
    remote: str | None = setting(
        None, parsers.remote, "the git repository that several Jitsus share their configuration by"
    )
    on_host_loss: OnHostLoss = setting(
        OnHostLoss.WAIT, parsers.one_of(OnHostLoss), "what becomes of the VMs of a host that is lost"
    )
    fence: str | None = setting(
        None, parsers.text, "a command that makes sure that a host, its last argument, is dead; it ends with 0 if it is"
    )
