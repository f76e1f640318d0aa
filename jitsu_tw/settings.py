"""
What a configuration says, once it has been understood. Immutable; times are in seconds unless a name says otherwise.

`config` makes these from files and command lines; everybody else only reads them.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jitsu_tw.dns.notify import Secondary
    from jitsu_tw.dns.transfer import Rule
    from jitsu_tw.dns.tsig import Key

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

EVERYBODY: Final[tuple[Network, ...]] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
LOOPBACK: Final[tuple[Network, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

#: After how many seconds a guest that is not ready is taken for up all the same, so that its lease can end.
READY_WITHIN: Final = 60.0


class Mode(enum.Enum):
    """How a VM is stopped (DESIGN, section 7)."""

    DESTROY = "destroy"
    SHUTDOWN = "shutdown"
    SUSPEND = "suspend"
    PAUSE = "pause"
    SAVE = "save"


class Fault(enum.Enum):
    """What a VM of the memory backend can be told to do wrong."""

    START = "start"
    STOP = "stop"
    VANISH = "vanish"
    NEVER_READY = "never_ready"


@attrs.frozen
class VM:
    """
    A machine that Jitsu may start.

    Attributes:
        name: the backend's name for it, unique in a configuration.
        dns: the names that summon it, as names (octets), in lower case.
        ip: its addresses, one or both families.
        uuid: the backend's uuid; wins over the name.
        response_delay: seconds after the start call until it is taken for ready; None where `wait_for_port` tells.
        wait_for_port: the TCP port that a ready guest answers on.
        ttl: of its addresses, in seconds.
        mode: how it is stopped.
        backend, connect: the hypervisor's kind and URI.
        idle: the seconds that it is kept after its last use.
        min_up: the seconds that it is kept after its start.
        stop_timeout: the seconds that a shutdown may take before it becomes destroy.
        define: an XML file, for a VM that libvirt does not know yet.
        boot_time: of the memory backend: the seconds that its start call takes.
        faults: of the memory backend: what goes wrong.
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
    uuid: str | None = None
    min_up: float = 0.0
    stop_timeout: float = 30.0
    define: Path | None = None
    boot_time: float = 0.0
    faults: frozenset[Fault] = frozenset()
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
        control: where jitsuctl and browsers connect: ``host:port`` or ``unix:PATH``; None for nowhere.
        persistdb: the state's git repository; None for memory.
        forwarder: the server (host, port) asked for names that are not ours; None for nobody.
        forward_for: the clients for whom it is asked.
        ttl: of made-up zones, in seconds.
        answer_by: seconds from a query to its answer, ready or not.
        max_booting: how many VMs boot at once; more wait their turn.
        max_running: how many VMs run at once; 0 for no limit.
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
        dry_run: start nothing; count what would have been started, and answer as if it were up.
    """

    vms: tuple[VM, ...] = ()
    zones: tuple[Path, ...] = ()
    bind: tuple[str, ...] = ("127.0.0.1",)
    listen: int = 53
    control: str | None = "127.0.0.1:8053"
    persistdb: Path | None = None
    forwarder: tuple[str, int] | None = None
    forward_for: tuple[Network, ...] = LOOPBACK
    ttl: int = 60
    answer_by: float = 1.2
    max_booting: int = 8
    max_running: int = 0
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
    dry_run: bool = False
