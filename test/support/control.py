"""What tests of the control endpoint need: requests as octets, to an endpoint without a network, on a clock."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from jitsu_tw.control.api import Endpoint
from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.wire import from_text
from jitsu_tw.guests import GuestSite
from jitsu_tw.ijitsu import ITemplateControl, TemplateCounts
from jitsu_tw.networks import AddressRange
from jitsu_tw.settings import VM, Existence, Template
from jitsu_tw.sync.signed_zones import SignedZones
from test.support import EPOCH, World, question, vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitsu_tw.control.web import Guarded
    from jitsu_tw.errors import JitsuError
    from jitsu_tw.idnssec import IDnssec


@attrs.frozen
class Answer:
    """
    What came back.

    Attributes:
        status: of HTTP; 0 if nothing came.
        headers: by name, in lower case.
        body: octets, without their framing if they came in chunks.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """What the JSON says."""
        return json.loads(self.body)


class Wire(StringTransport):
    """A connection that is cut when it is aborted."""

    producer: Any
    aborted = False

    def abortConnection(self) -> None:  # noqa: N802
        """Cut it."""
        self.aborted = True


class Talk:
    """One connection to an endpoint."""

    def __init__(self, endpoint: Guarded, host: str = "") -> None:
        """Connect from *host*, or by a UNIX socket."""
        self.protocol = endpoint.buildProtocol(None)
        self.wire = Wire(peerAddress=IPv4Address("TCP", host, 4711) if host else UNIXAddress(None))
        self.protocol.makeConnection(self.wire)

    def say(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        """Send a request."""
        lines = {"Host": "127.0.0.1:8053", **({"Content-Length": str(len(body))} if body else {}), **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
        self.protocol.dataReceived(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + body)

    def heard(self) -> Answer:
        """Return what has come since the last time."""
        octets = self.wire.value().removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wire.clear()
        head, _, body = octets.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            return Answer(0, {}, _unchunked(octets))
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(first.split()[1]), headers, _unchunked(body) if "transfer-encoding" in headers else body)

    def hang_up(self) -> None:
        """Close the connection, as a client does."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


def _unchunked(octets: bytes) -> bytes:
    """Return what chunks hold, as far as they have come (RFC 9112, 7.1)."""
    whole = b""
    while octets:
        size, _, octets = octets.partition(b"\r\n")
        length = int(size, 16)
        whole, octets = whole + octets[:length], octets[length + 2 :]
    return whole


def site(name: str = "site", pool: str = "10.1.0.0/24", **changes: Any) -> Template:
    """Return a template of the memory backend for ``*.NAME.test``, where each name exists."""
    values = {
        "uuid": f"uuid-of-{name}", "dns": (b"\1*" + from_text(f"{name}.test"),), "pool": (AddressRange.parse(pool),),
        "exists": (Existence.parse("*"),), "raw": {"pool": (pool,)},
    }  # fmt: skip
    fields = {field.name: getattr(vm(), field.name) for field in attrs.fields(VM)}
    return Template(**{**fields, "ip": (), "name": name, **values, **changes})


def member(label: str, template: str = "site", number: int = 1, **changes: Any) -> VM:
    """Return the VM that *template* has made for *label*, with the address *number* of its pool."""
    dns, ip = (from_text(f"{label}.{template}.test"),), (ip_address("10.1.0.0") + number,)
    return vm(f"{label}.{template}", template=template, dns=dns, ip=ip, **changes)


@implementer(ITemplateControl)
class TemplateControl:
    """
    What an operator can do with templates, without any of it.

    Attributes:
        done: what each template has done, by its name.
        wrong: what is wrong with templates, by their names.
        forgotten: the VMs that were to be forgotten.
        refusal: why none can be.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.done: dict[str, TemplateCounts] = {}
        self.wrong: dict[str, list[str]] = {}
        self.forgotten: list[str] = []
        self.refusal: JitsuError | None = None

    def counts(self, template: str) -> TemplateCounts:
        """Return what *template* has done."""
        return self.done.get(template, TemplateCounts())

    def problems(self) -> dict[str, list[str]]:
        """Return what is wrong."""
        return self.wrong

    def forget(self, name: str) -> Deferred[None]:
        """Note that the VM *name* is to be forgotten."""
        self.forgotten.append(name)
        return succeed(None) if self.refusal is None else fail(self.refusal)


class Desk(World):
    """
    A world with a control endpoint.

    Attributes:
        endpoint: of its fleet.
        problems: what is wrong that the fleet does not know of.
        control: of the templates.
    """

    def __init__(
        self,
        *vms: Any,
        reload: Callable[..., Any] = lambda _=None: None,
        token: str | None = None,
        dnssec: IDnssec | None = None,
        **settings: Any,
    ) -> None:
        """Begin with *vms* and what else *settings* say; without *dnssec*, no zone is signed."""
        super().__init__(*vms, **settings)
        self.problems: list[str] = []
        self.control = TemplateControl()
        wall = lambda: EPOCH + self.clock.seconds()  # noqa: E731
        self.endpoint = Endpoint(
            self.fleet, reload, token, self.clock, wall, problems=lambda: list(self.problems),
            served=lambda: {"zones": ["example.org."]}, counters=self.warm.counters, reload_zone=reload,
            templates=self.control, dnssec=dnssec or SignedZones(Zones(())),
        )  # fmt: skip

    def talk(self, host: str = "") -> Talk:
        """Return a new connection from *host*, or by a UNIX socket."""
        return Talk(self.endpoint, host)

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        """Return what is answered at once to one request."""
        talk = self.talk()
        talk.say(method, path, body, **headers)
        return talk.heard()

    def post(self, path: str) -> Answer:
        """Return what is answered at once to one POST."""
        return self.ask(path, "POST")


class GuestDesk(World):
    """
    A world with an endpoint for guests, all of which are up.

    Attributes:
        macs: the MACs of the neighbours by their addresses, as the kernel has them.
        site: the endpoint.
    """

    def __init__(self, macs: dict[str, str], /, changes: Any = None, **guests: tuple[str, str]) -> None:
        """Begin with *guests* by their VM's name, each with its address and MAC; *changes* are of all VMs."""
        changes = {"idle": 60.0, **(changes or {})}
        super().__init__(
            *(vm(name, ip=(ip_address(ip),), mac=(mac,), **changes) for name, (ip, mac) in guests.items())
        )
        self.macs = macs
        self.site = GuestSite(self.fleet, self.clock, lambda host: macs.get(host) or None)
        for name in guests:
            self.fleet.summons.summon(name, question(name))
        self.pump(1)

    def talk(self, host: str) -> Talk:
        """Return a new connection from *host*."""
        return Talk(self.site, host)

    def ask(self, path: str, host: str = "10.0.0.1", method: str = "GET") -> Answer:
        """Return what is answered at once to one request of the guest at *host*."""
        talk = self.talk(host)
        talk.say(method, path)
        return talk.heard()

    def statuses(self, host: str, octets: bytes) -> list[str]:
        """Return the statuses of all answers to *octets* from *host*."""
        talk = self.talk(host)
        talk.protocol.dataReceived(octets)
        self.clock.pump([0.0] * 2000)
        return re.findall(r"HTTP/1\.1 (\d+) ", talk.wire.value().decode())
