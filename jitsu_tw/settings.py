"""
The values of a configuration. Immutable; times are in seconds unless a name says otherwise.

`config.build` makes these from files and command lines; everything else only reads them. A field made by
`keys.setting` is the declaration of a key: `Settings` has those of the top, `VM` those of a VM, `Inherited` those of
both.
"""

from __future__ import annotations

import enum
import re
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
from jitsu_tw.networks import EVERYBODY, LOOPBACK, AddressRange
from jitsu_tw.rules.schedule import WeeklyWindow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.networks import Address, Network

#: Statistics are committed at most this often, in seconds.
COMMIT_EVERY: Final = 5.0

#: Seconds for which a call to start a VM may go on at its hypervisor though the process that made it is gone.
STARTS_WITHIN: Final = 60.0

#: The kind of hypervisor of VMs with `host`: that of all hosts together (`backends.hosts`).
HOSTS: Final = "hosts"

#: After how many seconds a guest that is not ready is taken for up all the same, so that its lease can end.
READY_WITHIN: Final = 60.0

#: After how many seconds a guest that was resumed or restored, and is not ready, is booted instead.
RESUMED_WITHIN: Final = 20.0

#: For how long an open connection may be silent, in seconds (RFC 5382, REQ-5).
IDLE_CONNECTION: Final = 7440.0

#: The control endpoint if the configuration names none: a UNIX socket whose path depends on who runs Jitsu
#: (`sockets.control_socket`).
DEFAULT_CONTROL: Final = "unix:"


class Mode(enum.Enum):
    """How a VM is stopped (DESIGN, section 7)."""

    DESTROY = "destroy"
    SHUTDOWN = "shutdown"
    SUSPEND = "suspend"
    PAUSE = "pause"
    SAVE = "save"


#: Modes that keep the guest's memory, and so its connections.
KEEPS_MEMORY: Final = frozenset({Mode.PAUSE, Mode.SUSPEND, Mode.SAVE})


class Evidence(enum.Enum):
    """What shows that a VM is in use."""

    TRAFFIC = "traffic"  # also packets that its guest transmits, and connections; one whose packets nobody counts stays
    QUERIES = "queries"  # none of its network but questions


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

    WAIT = "wait"  # it is not known whether they still run there
    RESTART = "restart"  # they are started elsewhere, once `fence` has ended well


class WebhookEvent(enum.Enum):
    """What webhooks are told."""

    STARTED = "started"  # a VM that a client or the operator has asked for is up
    FAILED = "failed"  # its start has failed
    STOPPED = "stopped"  # it was up, and is off, paused or saved
    REFUSED = "refused"  # it was not started for a client
    HOLD = "hold"  # the operator holds it
    RELEASE = "release"  # and does not any more
    MADE = "made"  # a template has made it
    FORGOTTEN = "forgotten"  # it is no more, with its disk and its address
    LOST = "lost"  # a hypervisor cannot be asked
    CONNECTED = "connected"  # it can be


@attrs.frozen
class Retention:
    """
    How much of the statistics' past the state keeps; without both, only the present.

    Attributes:
        number: the latest commits.
        seconds: the age of the oldest commit.
    """

    number: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Retention:
        """
        Return the retention of a duration with units, ``30d`` or ``12h``, or of a number of commits.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        if parsers.is_number(text):
            return cls(int(text))
        try:
            if text[-1:].isalpha():
                return cls(seconds=parsers.seconds(text))
        except ValueError:
            pass
        raise ValueError(f"{text!r} is no duration and no number of commits; write one like 30d, 12h or 100")

    def kept(self, times: Sequence[float], now: float) -> int:
        """Return how many of the last of the commits that were made at these *times* are kept."""
        recent = sum(when > now - self.seconds for when in times) if self.seconds else 0
        return max(recent, min(self.number, len(times)))


@attrs.frozen
class Rule:
    """
    Name servers that may transfer the zones.

    Attributes:
        network: their addresses; None for any.
        key: the name, in lower case, of the TSIG key that they sign with; None if they need none.
    """

    network: Network | None
    key: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """
        Return the rule of ``192.0.2.0/24``, ``key NAME``, or both, where both must hold.

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
    Another name server of the zones.

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
        Return the secondary of ``ADDRESS[:PORT]``, or of that and ``key NAME``.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        place, key = split_key(text)
        return cls(*parsers.host_port(place, 53), key)

    def __str__(self) -> str:
        return self.host if self.port == 53 else f"{self.host} port {self.port}"


class Asks(enum.Enum):
    """How it is found out whether a name of a template exists."""

    PATTERN = "pattern"  # the label matches
    PATH = "path"  # a program is asked if the file can be executed, else it is a list
    URL = "URL"


@attrs.frozen
class Existence:
    """
    What says whether a name of a template exists.

    Attributes:
        kind: how.
        text: the pattern, the path or the URL.
    """

    kind: Asks
    text: str

    @classmethod
    def parse(cls, text: str) -> Existence:
        """
        Return what ``alice``, ``user-*``, ``/usr/local/bin/site-exists`` or ``http://…`` is.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        if "://" in text:
            return cls(Asks.URL, parsers.web_url(text))
        if "/" in text:
            return cls(Asks.PATH, parsers.text(text))
        if not re.fullmatch(r"[a-z0-9*?\[\]!-]+", text):
            message = (
                f"{text!r} is no label and no pattern of labels; write one like alice or user-*, names in other scripts"
                " as xn--…, a file or a program with its path, like ./names, or a URL"
            )
            raise ValueError(message)
        return cls(Asks.PATTERN, text)


@attrs.frozen
class Cluster:
    """Where several Jitsus that serve the same zones agree: the group `cluster` of a configuration."""

    etcd: tuple[str, ...] = setting(NOTHING, "the URLs of etcd's members", parsers.etcd_url, many=True)
    node: str = setting(NOTHING, "the name of this node, unlike those of the others", parsers.name)
    prefix: str = setting("/jitsu", "what all keys of etcd begin with", parsers.etcd_prefix)
    ttl: float = setting(
        5.0, "how long a node may be silent until what it had claimed is free", parsers.duration(2, 600, "10s")
    )
    user: str | None = setting(None, "etcd's name of the user, where it asks for one", parsers.text, example="jitsu")
    password: str | None = setting(
        None,
        "a file with the password of etcd's user",
        parsers.text,
        example="/etc/jitsu/etcd.password",
        path=True,
        secret=True,
    )
    ca: Path | None = setting(
        None,
        "the authorities of etcd's certificates, a PEM file",
        parsers.text,
        example="/etc/jitsu/ca.pem",
        path=True,
        shown="the system's",
    )
    cert: Path | None = setting(
        None,
        "the certificate that Jitsu shows to etcd, a PEM file",
        parsers.text,
        example="/etc/jitsu/node.pem",
        path=True,
    )
    key: Path | None = setting(
        None,
        "the key of the certificate that Jitsu shows to etcd, a PEM file",
        parsers.text,
        example="/etc/jitsu/node.key",
        path=True,
    )


@attrs.frozen
class Dnssec:
    """How Jitsu signs zones: the group `dnssec` of a configuration."""

    keys: Path = setting(
        NOTHING, "the directory of the zones' keys", parsers.text, example="/var/lib/jitsu/keys", path=True
    )
    algorithm: int = setting(
        13, "the algorithm of new keys: 13 (ECDSA P-256) or 15 (Ed25519)", parsers.number_of(("13", "15"))
    )
    zones: tuple[bytes, ...] = setting(
        (), "the zones that Jitsu signs", parsers.dns_name, example="example.org",
        shown="all that do not come signed",
    )
    validity: float = setting(
        14.0 * DAY, "for how long a signature is valid", parsers.duration(DAY, 90 * DAY, "30d"), shown="14d"
    )


@attrs.frozen(kw_only=True)
class Host:
    """One of several hypervisors: an item of the list `hosts` of a configuration."""

    name: str = setting(NOTHING, "what VMs and people call it", parsers.name)
    backend: str = setting("libvirt", "the kind of hypervisor", parsers.text, example="libvirt")
    connect: str = setting(NOTHING, "the URI of the hypervisor", parsers.uri, example="qemu+ssh://jitsu@host1/system")
    synjitsu: str | None = setting(None, "where the Synjitsu of its network listens", parsers.endpoint)


@attrs.frozen(kw_only=True)
class Inherited:
    """The keys of the top of a configuration whose values hold for each VM that does not have them itself."""

    backend: str = setting("libvirt", "the kind of hypervisor", parsers.text, example="libvirt", option="x")
    connect: str | None = setting(None, "the URI of the hypervisor", parsers.uri, option="c", shown="qemu:///system",
        example="qemu:///system",
    )
    mode: Mode = setting(Mode.DESTROY, "how VMs are stopped: destroy, shutdown, suspend, pause, save", option="m")
    ttl: int = setting(60, "the TTL of the VMs' addresses", parsers.ttl, option="t", own=Limits(1, DAY))
    idle: float | None = setting(
        None, "how long a VM is kept after its last use", parsers.seconds, own=Limits(1, DAY), shown="2 x ttl"
    )
    idle_packets: float = setting(
        6.0, "packets in a minute of an idle guest", parsers.number("number of packets in a minute", "6"), own=Limits()
    )
    idle_cpu: float = setting(
        0.0, "the CPU time in a minute of an idle guest, beyond which it is used; 0: it is not counted",
        parsers.seconds, example="2s", own=Limits(),
    )
    idle_connection: float = setting(
        IDLE_CONNECTION,
        "how long an open connection, which Synjitsu sees, keeps a VM whose memory a stop frees; 0: it does not",
        parsers.seconds, example="1h", own=Limits(0, DAY),
    )
    evidence: Evidence = setting(Evidence.TRAFFIC, "what shows that a VM is in use", own=Limits())
    save_fallback: Mode | None = setting(
        None, "how a VM is stopped that should be saved and cannot be; None: not at all",
        parsers.one_of(Mode, (Mode.DESTROY, Mode.SHUTDOWN, Mode.PAUSE)),
    )
    min_up: float = setting(0.0, "how long a VM is kept after its start", parsers.seconds, example="1m")
    max_up: float = setting(
        0.0, "how long after its start a VM is stopped, used or not; 0 for never", parsers.seconds, example="8h"
    )
    check_every: float = setting(
        10.0,
        "the time, at least, between two tries of the port of a VM that is asked for; 0 for none",
        parsers.seconds,
        example="30s",
    )
    stop_timeout: float = setting(
        30.0, "how long a shutdown may take before it becomes destroy", parsers.seconds, example="1m"
    )
    images: Path = setting(
        Path("/var/lib/jitsu/images"),
        "the directory for images of ready guests",
        parsers.text,
        example="/srv/jitsu/images",
        path=True,
    )
    use_synjitsu: bool = setting(default=False, doc="Synjitsu stands in for a VM while it is down or boots")
    wake_by_packet: bool = setting(
        default=True, doc="a packet for a VM that is down starts it, where Synjitsu stands in for it"
    )
    handover: Handover = setting(Handover.WIRE, "how a guest gets the packets that were held for it")


@attrs.frozen
class Layer:
    """
    A disk of a VM's own, which has what differs from an image that many VMs share: a copy-on-write layer (qcow2).

    Attributes:
        path: of the layer.
        base: the image below it, which nobody may change.
    """

    path: Path
    base: Path


@attrs.frozen(kw_only=True)
class VM(Inherited):
    """
    A machine that Jitsu may start.

    Attributes:
        readiness: the values of the keys that tell when a guest is ready (`jitsu_tw.readiness`), by key.
        backend_settings: what its backend alone has to know of it, of the class that the backend declares; or None.
        template: the name of the template that it was made by; None if it stands in the configuration itself.
        layer: its own disk, if it was made by a template with a `disk`.
        hosts: the names of the hosts that it may run on, if its backend is `HOSTS`.
        removed: the configuration has it no more; it was started by an earlier process, and is to be stopped when idle.
        place: the file and line where it stands, for messages.
        dns_place: the same, of its names.
        raw: the raw values of the configuration, by key, for the state (DESIGN, section 10).
    """

    name: str = setting(NOTHING, "the hypervisor's name for it, unique in a configuration", parsers.vm_name)
    dns: tuple[bytes, ...] = setting(
        NOTHING, "the names that summon it, in lower case, sorted", parsers.dns_name, many=True, own=Limits(number=16)
    )
    ip: tuple[Address, ...] = setting(
        NOTHING, "its addresses, one or both families", parsers.guest_address, many=True, own=Limits(number=8)
    )
    connect: str
    idle: float
    uuid: str | None = setting(None, "the hypervisor's uuid; wins over the name", parsers.uuid)
    own_dns: tuple[bytes, ...] = setting(
        (), "names that the VM's own branch may take besides its own", parsers.dns_name
    )
    own_ip: tuple[Network, ...] = setting(
        (), "networks that the VM's own branch may take addresses from", parsers.network
    )
    keep_up: tuple[WeeklyWindow, ...] = setting(
        (), "the times of the week in which it is up, used or not",
        parsers.Parser("times of the week", "mon-fri 08:00-18:00", WeeklyWindow.parse),
    )
    notify: float = setting(
        0.0,
        "how long before it is stopped for being idle its guest is told, if that listens",
        parsers.seconds,
        example="5s",
    )
    needs: tuple[str, ...] = setting(
        (), "the VMs that it needs; they start before it and are kept while it is up", parsers.vm_name
    )
    boot_from: Boot = setting(Boot.DISK, "what it starts from when it is off")
    prepare: bool = setting(default=False, doc="its guest is made ready before the next client, and waits, paused")
    mac: tuple[str, ...] = setting((), "its guest's MACs besides those that the backend knows", parsers.mac)
    ports: tuple[int, ...] = setting(
        (), "the TCP ports that are worth a start", parsers.port, own=Limits(number=64), shown="all"
    )
    wake_udp: tuple[int, ...] = setting((), "the UDP ports that are worth a start", parsers.port)
    host: tuple[str, ...] = setting((), "the hosts that it may run on, or any", parsers.name)
    prefer: tuple[str, ...] = setting((), "the hosts that it goes to first, in this order", parsers.name)
    avoid: tuple[str, ...] = setting((), "the hosts that it goes to last", parsers.name)
    define: Path | None = setting(
        None,
        "a file that defines it: libvirt's XML, or a whole configuration of xl's",
        parsers.text,
        example="www.xml",
        path=True,
    )
    template: str | None = None
    readiness: Mapping[str, Any] = attrs.field(factory=dict)
    backend_settings: Any = None
    layer: Layer | None = None
    hosts: tuple[str, ...] = ()
    removed: bool = False
    place: tuple[str | None, int | None] = attrs.field(default=(None, None), eq=False)
    dns_place: tuple[str | None, int | None] = attrs.field(default=(None, None), eq=False)
    raw: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    def value(self, key: str) -> Any:
        """Return the value of a key, wherever it is declared; None for one of readiness that is not set."""
        return getattr(self, key) if hasattr(self, key) else self.readiness.get(key)


@attrs.frozen(kw_only=True)
class Template(VM):
    """
    VMs that are made when their names are first asked for: an item of the list `templates` of a configuration.

    It has the keys of its VMs, which inherit them. Its names are wildcards; its uuid is made of its name.
    """

    ip: tuple[Address, ...] = ()
    mac: tuple[str, ...] = ()
    pool: tuple[AddressRange, ...] = setting(
        NOTHING, "the addresses of its VMs: networks, or the first and the last address", parsers.address_range,
        many=True,
    )
    exists: tuple[Existence, ...] = setting(
        NOTHING,
        "which of its names exist: labels and patterns like user-*, a file that lists them, or a program or URL that is"
        " asked for each",
        parsers.Parser("label, pattern, path or URL", "/usr/local/bin/site-exists", Existence.parse), many=True,
    )
    max: int = setting(100, "how many VMs it has at most", parsers.whole(1, 1_000_000, "number of VMs"))
    new_per_minute: int = setting(
        10, "how many new VMs a client network, a /24 or /56, gets in a minute; 0 for any number",
        parsers.whole(0, 1_000_000, "number of VMs"),
    )
    forget_after: float = setting(
        30 * DAY, "how long after its last use a VM is forgotten, with its disk and its address; 0 for never",
        parsers.duration(high=1e9, example="30d"), shown="30d",
    )
    disk: Path | None = setting(
        None, "an image of which each VM has a copy-on-write layer of its own", parsers.text, example="base.qcow2",
        path=True,
    )
    layers: Path = setting(
        Path("/var/lib/jitsu/layers"), "the directory for these layers", parsers.text, example="/srv/jitsu/layers",
        path=True,
    )


@attrs.frozen(kw_only=True)
class Settings(Inherited):
    """
    A whole configuration.

    Attributes:
        templates: of VMs that are made on demand.
        cluster: where those who serve the same zones agree; None for this node alone.
        dnssec: how zones are signed; None: none is.
        hosts: the hypervisors that VMs with `host` may run on.
    """

    vms: tuple[VM, ...] = ()
    templates: tuple[Template, ...] = ()
    cluster: Cluster | None = None
    dnssec: Dnssec | None = None
    hosts: tuple[Host, ...] = ()
    zones: tuple[Path, ...] = setting(
        (), "RFC 1035 master files", parsers.text, example="example.org.zone", path=True, shown="made up", live=True
    )
    bind: tuple[str, ...] = setting(("127.0.0.1",), "the address to serve DNS on", parsers.bind, option="b")
    listen: int = setting(53, "the port to serve DNS on", parsers.port, option="l")
    delay: float = setting(
        0.1,
        "the time from a VM's start to the answer, where nothing tells when it is ready",
        parsers.seconds,
        example="0.5",
        option="d",
    )
    forwarder: tuple[str, int] | None = setting(
        None, "the server to ask for names outside of the zones", parsers.forwarder, option="f"
    )
    port: int | None = setting(None, "the port of the `forwarder`", parsers.port, option="p", shown="53")
    synjitsu: str | None = setting(None, "where Synjitsu listens", parsers.endpoint, option="")
    persistdb: Path | None = setting(
        None,
        "where the state is kept, a bare git repository",
        parsers.text,
        example="/var/lib/jitsu/state.git",
        path=True,
        option="",
        shown="in memory",
    )
    control: tuple[str, ...] = setting(
        (DEFAULT_CONTROL,),
        "where jitsuctl connects: unix:PATH, host:port, ssl:..., or off", parsers.control, many=True, option="",
        shown="a UNIX socket",
    )
    guests: tuple[str, ...] = setting(
        (), "where guests, and nobody else, ask for themselves: ADDRESS:PORT", parsers.guests, many=True,
        shown="nowhere",
    )
    control_token: str | None = setting(
        None,
        "a file with the secret that jitsuctl has to show to Jitsu",
        parsers.text,
        example="/etc/jitsu/token",
        path=True,
        secret=True,
        option="",
        shown="nothing", live=True
    )
    synjitsu_secret: str | None = setting(
        None,
        "a file with the secret that Synjitsu wants to be shown",
        parsers.text,
        example="/etc/jitsu/synjitsu.secret",
        path=True,
        secret=True,
    )
    commit_every: float = setting(
        COMMIT_EVERY, "the time, at least, between two commits of statistics", parsers.seconds, example="10s"
    )
    keep_history: Retention = setting(
        Retention(), "how much of their past the state keeps",
        parsers.Parser("duration with a unit, or number of commits", "30d", Retention.parse),
        shown="the present only"
    )
    forward_for: tuple[Network, ...] = setting(
        LOOPBACK, "the clients whose questions may be forwarded", parsers.network, many=True, shown="loopback"
    )
    answer_by: float = setting(
        1.2, "the time from a query to its answer, ready or not", parsers.seconds, example="1.5", live=True
    )
    max_booting: int = setting(8, "how many VMs boot at once", parsers.whole(1, 100_000, "number of VMs"), live=True)
    max_prepared: int = setting(
        16,
        "how many VMs are prepared at once, those that were used last",
        parsers.whole(0, 100_000, "number of VMs"),
        live=True,
    )
    max_running: int = setting(
        0, "how many VMs run at once; 0 for any number", parsers.whole(0, 1_000_000, "number of VMs"), live=True
    )
    when_full: WhenFull = setting(WhenFull.REFUSE, "what happens to a start when `max_running` VMs run", live=True)
    summon_from: tuple[Network, ...] = setting(
        EVERYBODY, "the networks whose clients may start VMs", parsers.network, many=True, shown="everybody", live=True
    )
    starts_per_minute: int = setting(
        30, "how many VMs a client network, a /24 or /56, may start in a minute; 0 for any number",
        parsers.whole(0, 1_000_000, "number of starts"), live=True
    )
    verify_source: bool = setting(
        default=False,
        doc="only clients that have proven their address, by TCP or a DNS cookie, may start VMs",
        live=True,
    )
    rate_limit: int = setting(
        200, "how many like responses a client network gets in a second by UDP (NSD's rrl-ratelimit); 0 for any number",
        parsers.whole(0, 1_000_000, "number of responses in a second"), live=True
    )
    rate_slip: int = setting(
        2, "of the responses over `rate_limit`, one in this many goes out truncated; 0 for none",
        parsers.whole(0, 100, "number of responses"), live=True
    )
    rate_exempt: tuple[Network, ...] = setting(
        (), "networks without `rate_limit`; those of loopback are always among them", parsers.network, live=True
    )
    nsid: bytes | None = setting(
        None, "what is answered to clients that ask for this server's identity (RFC 5001)", parsers.octets
    )
    version: bytes | None = setting(
        None, "what is answered to version.bind and version.server (CH TXT), which are refused otherwise",
        parsers.octets,
    )
    identity: bytes | None = setting(
        None, "what is answered to id.server and hostname.bind (CH TXT, RFC 4892), which are refused otherwise",
        parsers.octets,
    )
    tsig_keys: tuple[tsig.Key, ...] = setting(
        (),
        "the keys that clients and Jitsu may sign with",
        parsers.Parser("[ALGORITHM:]NAME:SECRET", "transfer.example.org:MTIzNDU2Nzg5MDEyMzQ1Ng==", tsig.Key.parse),
        live=True,
    )
    allow_transfer: tuple[Rule, ...] = setting(
        (), "who may transfer zones",
        parsers.Parser("NETWORK, key NAME, or NETWORK key NAME", "192.0.2.0/24 key transfer.example.org", Rule.parse),
        shown="nobody", live=True
    )
    notify: tuple[Secondary, ...] = setting(
        (), "the secondaries that are told of new serials",
        parsers.Parser("ADDRESS[:PORT], or that and key NAME", "192.0.2.54 key transfer.example.org", Secondary.parse),
        shown="nobody", live=True
    )
    query_log: Path | None = setting(
        None, "the file for a line on each query; - for standard output", parsers.text, path=True, shown="nowhere"
    )
    query_log_sample: int = setting(
        1, "of the queries, one in this many is in the query log", parsers.whole(1, 1_000_000, "number of queries")
    )
    webhooks: tuple[str, ...] = setting(
        (), "the URLs that events are posted to as JSON", parsers.web_url, many=True, shown="nowhere"
    )
    webhook_events: tuple[WebhookEvent, ...] = setting(
        (WebhookEvent.STARTED, WebhookEvent.FAILED, WebhookEvent.STOPPED, WebhookEvent.LOST, WebhookEvent.CONNECTED),
        f"the events for them: {', '.join(one.value for one in WebhookEvent)}", parsers.one_of(WebhookEvent),
        shown="started, failed, stopped, lost, connected",
    )
    webhook_secret: str | None = setting(
        None, "a file with the secret that they are signed with, by HMAC", parsers.text, path=True, secret=True
    )
    otlp: str | None = setting(
        None, "the URL of a collector of OpenTelemetry for a trace of each start, such as http://127.0.0.1:4318/v1/traces",
        parsers.web_url, shown="nowhere",
    )
    log_json: bool = setting(default=False, doc="write the log as one JSON object a line", option="")
    dry_run: bool = setting(
        default=False, doc="start nothing; count what would have been started, and answer as if it were up", option=""
    )
    remote: str | None = setting(
        None, "the git repository that several Jitsus share their configuration by", parsers.remote
    )
    on_host_loss: OnHostLoss = setting(OnHostLoss.WAIT, "what becomes of the VMs of a host that is lost")
    fence: str | None = setting(
        None,
        "a command that makes sure that a host, its last argument, is dead; it ends with 0 if it is",
        parsers.text,
        example="/usr/local/sbin/fence-host",
    )
