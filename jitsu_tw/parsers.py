"""From the texts of a configuration to its values. A wrong text is a ValueError with what would be right."""

from __future__ import annotations

import difflib
import re
import uuid as uuids
from collections.abc import Callable  # noqa: TC003 -- attrs reads the annotations of fields
from importlib import import_module
from ipaddress import IPv4Address, ip_address, ip_network
from socket import AF_INET, inet_pton
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

import attrs

from jitsu_tw.dns.wire import ROOT, from_text
from jitsu_tw.networks import AddressRange, why_no_guest

if TYPE_CHECKING:
    import enum
    from collections.abc import Iterable

#: The octets of an NSID; more would push answers out of a UDP message.
LONGEST_NSID: Final = 255

#: Digits of a number: no key takes one of more, and Python would refuse to read one of thousands.
MOST_DIGITS: Final = 20

#: The characters of a name.
LONGEST_NAME: Final = 255

T = TypeVar("T")


@attrs.frozen
class Parser(Generic[T]):
    """
    Makes a value of a text.

    Attributes:
        kind: what texts it takes, as documentation has it.
        example: one of these texts.
        function: returns the value of a text, or raises a ValueError that says what would be right.
        unit: of a number without one; empty if there is none.
    """

    kind: str
    example: str
    function: Callable[[str], T]
    unit: str = ""

    def __call__(self, text: str) -> T:
        """
        Return the value of *text*.

        Raises:
            ValueError: what is wrong with it, and what would be right.
        """
        return self.function(text)


def takes(kind: str, example: str) -> Callable[[Callable[[str], T]], Parser[T]]:
    """Return a decorator that makes a `Parser` of a function."""
    return lambda function: Parser(kind, example, function)


def near(key: str, known: Iterable[str]) -> str:
    """Return the nearest of *known*, whatever its case, as the end of an error message, or nothing."""
    names = {one.lower(): one for one in known}
    close = [names[one] for one in difflib.get_close_matches(key.lower(), list(names), n=1)]
    return f"; did you mean {close[0]}?" if close else ""


def require(module: str, extra: str) -> None:
    """
    Import a module whose dependencies the *extra* of setup.cfg installs.

    Raises:
        ValueError: one of them is missing; the message has the remedy.
    """
    try:
        import_module(module)
    except ImportError as error:
        message = f"needs what is not installed: pip install 'jitsu-tw[{extra}]' ({error})"
        raise ValueError(message) from error


# Numbers, switches, choices.


def number(what: str, example: str = "6") -> Parser[float]:
    """Return a parser of numbers from 0 to below 1e9."""

    def parse(text: str) -> float:
        value = _number(text)
        if value is None:
            message = f"{text!r} is no {what}; write one like 0.5 or 60"
            raise ValueError(message)
        return value

    return Parser(what, example, parse)


def _number(text: str) -> float | None:
    """Return the number from 0 to below 1e9 that *text* is; None if it is none."""
    try:
        value = float(text) if text.isascii() and "_" not in text else -1.0
    except ValueError:
        return None
    return value if 0 <= value < MOST_SECONDS else None


#: The units of a duration in seconds, those of zone files (BIND's TTLs), and the longest duration.
UNITS: Final = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
MOST_SECONDS: Final = 1e9
_DURATION: Final = re.compile(
    "".join(f"(?:([0-9]{{1,10}}){unit})?" for unit in "wdhm") + r"(?:([0-9]{1,10}(?:\.[0-9]{1,9})?)s)?", re.IGNORECASE
)


def _seconds(text: str) -> float | None:
    """Return the seconds of ``60``, ``0.5``, ``90s`` or ``1h30m``; None for another text."""
    match = _DURATION.fullmatch(text) if text else None
    if match is None:
        return _number(text)
    value = sum(float(part) * unit for part, unit in zip(match.groups(), UNITS.values(), strict=True) if part)
    return value if value < MOST_SECONDS else None


def duration(low: float = 0, high: float = MOST_SECONDS, example: str = "5m") -> Parser[float]:
    """Return a parser of durations from *low* to *high* seconds."""

    def parse(text: str) -> float:
        value = _seconds(text)
        if value is None:
            message = f"{text!r} is no duration; write seconds, like 60 or 0.5, or units, like 90s, 5m, 1h30m or 2d"
            raise ValueError(message)
        if not low <= value <= high:
            message = f"{text!r} is too short or too long; write a duration from {low:.10g} to {high:.10g} seconds"
            raise ValueError(message)
        return value

    return Parser("duration", example, parse, "seconds")


seconds: Final = duration()


def is_number(text: str) -> bool:
    """Return whether *text* is digits only, and not too many of them."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def whole(low: int, high: int, what: str) -> Parser[int]:
    """Return a parser of whole numbers from *low* to *high*."""

    def parse(text: str) -> int:
        if not (is_number(text) and low <= int(text) <= high):
            message = f"{text!r} is no {what}; write a number from {low} to {high}"
            raise ValueError(message)
        return int(text)

    return Parser(f"{what}, from {low} to {high}", str(max(low, min(high, 8))), parse)


port: Final = attrs.evolve(whole(1, 65535, "port"), example="8080")


def _ttl(text: str) -> int:
    """Return the whole seconds of a duration, as many as a TTL may have."""
    value = _seconds(text)
    if value is None and is_number(text) and int(text) < 2**31:
        return int(text)
    if value is None or value != int(value):
        message = f"{text!r} is no TTL (RFC 2181, section 8); write whole seconds, like 300, or units, like 5m or 1h"
        raise ValueError(message)
    return int(value)


ttl: Final = Parser("duration in whole seconds", "5m", _ttl, "seconds")


@takes("true or false", "true")
def switch(text: str) -> bool:
    """Return whether *text* is true, or a word like it."""
    values = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in values:
        message = f"{text!r} is neither true nor false"
        raise ValueError(message)
    return values[text.lower()]


def choice(names: Iterable[str]) -> Parser[str]:
    """Return a parser of one of *names*."""
    known = sorted(names)

    def parse(text: str) -> str:
        if text not in known:
            message = f"{text!r} is not one of {', '.join(known)}{near(text, known)}"
            raise ValueError(message)
        return text

    return Parser(f"one of {', '.join(known)}", known[0], parse)


def number_of(texts: Iterable[str]) -> Parser[int]:
    """Return a parser of one of some numbers."""
    parse = choice(texts)
    return Parser(parse.kind, parse.example, lambda text: int(parse(text)))


def one_of(kind: type[enum.Enum], among: Iterable[enum.Enum] = ()) -> Parser[Any]:
    """Return a parser of *kind*'s values: of any, or of those in *among* if it is not empty."""
    parse = choice(one.value for one in among or kind)
    return Parser(parse.kind, parse.example, lambda text: kind(parse(text)))


# Texts and names.


@takes("text", "text")
def text(raw: str) -> str:
    """Return *raw*, which must be printable and not empty."""
    if not raw or not raw.isprintable():
        message = f"{raw!r} has characters that cannot be seen" if raw else "is empty; leave the key out"
        raise ValueError(message)
    return raw


def without_password(parser: Parser[T], remedy: str) -> Parser[T]:
    """
    Return *parser* for URLs that have no password, which logs, the state and the control endpoint would show.

    Args:
        parser: of other URLs; its errors repeat them.
        remedy: what to do with the password instead.
    """

    def parse(raw: str) -> T:
        if re.match(r"[^/:]+://[^/?#@]*:[^/?#]*@", raw):
            message = f"has a password in it, which others would see; {remedy}"
            raise ValueError(message)
        return parser(raw)

    return Parser(parser.kind, parser.example, parse)


uri: Final = without_password(text, "leave it out, and use ssh keys, or the file auth.conf of libvirt's client")


def matching(kind: str, example: str, pattern: str, wrong: str, longest: int = 1_000_000) -> Parser[str]:
    """
    Return a parser of texts that match *pattern*.

    Args:
        kind: as `Parser` has it.
        example: as `Parser` has it.
        pattern: a regular expression.
        wrong: what an error says of other texts.
        longest: the most characters of a text.
    """

    def parse(raw: str) -> str:
        if re.fullmatch(pattern, raw) is None or len(raw) > longest:
            message = f"{raw!r} {wrong}; write one like {example}"
            raise ValueError(message)
        return raw

    return Parser(kind, example, parse)


#: Of a node, or a host.
name: Final = matching(
    "name", "host1", "[A-Za-z0-9_.-]+", "is no name: that has letters, digits, dots, dashes and underscores"
)

remote: Final = without_password(
    matching(
        "URL of a git repository",
        "ssh://git@host/jitsu.git",
        r"/(?s:.*)|[A-Za-z0-9][^/:]*:.+",
        "is no git repository's URL",
    ),
    "leave it out, and let a credential helper of git give it (gitcredentials(7))",
)

etcd_prefix: Final = matching("prefix", "/jitsu", "(/[A-Za-z0-9_.-]+)+", "is no prefix of etcd's keys")


@takes("text", "ns1")
def octets(raw: str) -> bytes:
    """Return the octets of an NSID, or of one string of a TXT record."""
    found = raw.encode()
    if len(found) > LONGEST_NSID:
        message = f"is longer than {LONGEST_NSID} octets"
        raise ValueError(message)
    return found


@takes("uuid", "6f1f8a9e-5f0c-4f5e-9d5b-0c8a2b0d1f11")
def uuid(raw: str) -> str:
    """Return a uuid in its usual form."""
    try:
        return str(uuids.UUID(raw))
    except ValueError:
        message = f"{raw!r} is no uuid"
        raise ValueError(message) from None


@takes("name of a VM", "www")
def vm_name(raw: str) -> str:
    """Return a hypervisor's name of a VM."""
    if raw != raw.strip() or len(text(raw)) > LONGEST_NAME:
        message = f"{raw!r} is no name of a VM; take one of {LONGEST_NAME} characters at most, with no blanks around"
        raise ValueError(message)
    return raw


#: What a name of the configuration is written with, and what one that is not may be instead.
_DNS_TEXT: Final = re.compile(r"(?:\*\.)?(?:[\w.-]++|\\[0-9]{3}|\\[^0-9])*")
_SLIPS: Final = (
    (r".*://.*", "is a URL; write the name in it alone, like www.example.org"),
    (r".*[\s\x00-\x20\x7f].*", "has a blank; write one name, or several as a list"),
    (r".+\*.*|\*[^.].*", "has a * that is not its whole first label; a wildcard is written like *.example.org"),
    (r"[0-9A-Fa-f]*:.*:[0-9A-Fa-f:.]*", "is an address; write it as ip, and here the name"),
    (r"[^:]*:[0-9]*", "has a port; leave that out: DNS answers with addresses only"),
    (r".*/.*", "has a path; write the name alone"),
    (r".*@.*", "has an @; write the whole name"),
    (r".*,.*", "has a comma; write several names as a list, like [a.example.org, b.example.org]"),
)


@takes("DNS name", "www.example.org")
def dns_name(raw: str) -> bytes:
    """Return the name that *raw* is, as a machine's may be; other characters than a host name's take an escape."""
    if _DNS_TEXT.fullmatch(raw) is None:
        slip = (words for pattern, words in _SLIPS if re.fullmatch(pattern, raw, re.DOTALL))
        message = f"{raw!r} {next(slip, 'is no name; write one of letters, digits, dashes and dots')}"
        raise ValueError(message)
    if raw.removesuffix(".").rpartition(".")[2].isdigit():
        message = f"{raw!r} ends in a number, as addresses do and names do not; write addresses as ip"
        raise ValueError(message)
    found = from_text(raw)
    if found == ROOT:
        message = f"{raw!r} is the root of all names; write one like www.example.org"
        raise ValueError(message)
    return found


# Addresses.


@takes("IP address", "192.0.2.80")
def address(raw: str) -> Any:
    """Return an IP address."""
    try:
        # inet_pton(3) takes the same forms; where there are 100,000 addresses, that is seconds
        return ip_address(raw) if ":" in raw else IPv4Address(inet_pton(AF_INET, raw))
    except (OSError, ValueError):
        message = f"{raw!r} is no IP address; write one like 10.0.0.1 or 2001:db8::1"
        raise ValueError(message) from None


@takes("IP address", "192.0.2.80")
def guest_address(raw: str) -> Any:
    """Return an address that a guest may have."""
    found = address(raw)
    if why := why_no_guest(found):
        message = why if "; write " in why else f"{why}; give the VM an address of its own"
        raise ValueError(message)
    return found


@takes("IP address", "192.0.2.53")
def bind(raw: str) -> str:
    """Return an address that this host may have."""
    found = address(raw)
    if found.is_multicast or (found.version == 4 and int(found) >> 28 == 15):
        message = f"{raw!r} is no address of one machine; write one that this host has"
        raise ValueError(message)
    if found.version == 6 and found.ipv4_mapped is not None:
        message = f"{raw!r} is an IPv4 address in IPv6's form; write {found.ipv4_mapped}"
        raise ValueError(message)
    return str(found)


@takes("MAC address", "00:16:3e:00:00:01")
def mac(raw: str) -> str:
    """Return a MAC address of one machine, in lower case."""
    found = raw.lower()
    if not re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2}){5}", found) or int(found[:2], 16) & 1:
        raise ValueError(f"{raw!r} is no MAC address of one machine; write one like 00:16:3e:00:00:01")
    return found


@takes("network", "192.0.2.0/24")
def network(raw: str) -> Any:
    """Return a network."""
    try:
        return ip_network(raw)
    except ValueError as error:
        message = f"{raw!r} is no network ({error}); write one like 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(message) from None


@takes("network, or FIRST-LAST", "10.1.0.0/16")
def address_range(raw: str) -> AddressRange:
    """Return addresses that guests may have."""
    found = AddressRange.parse(raw)
    for end in (found.first, found.last):
        if why := why_no_guest(end):
            raise ValueError(f"{why}; name addresses that guests may have")
    return found


def host_port(raw: str, default: int) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port`` or ``[v6]:port``; the host is an address."""
    host, number = raw, str(default)
    if raw.startswith("["):
        host, _, rest = raw[1:].partition("]")
        number = rest.removeprefix(":") or number
    elif raw.count(":") == 1:
        host, number = raw.split(":")
    return str(address("127.0.0.1" if host == "localhost" else host)), port(number)


@takes("IP address, with :PORT if that is not 53, or off", "9.9.9.9")
def forwarder(raw: str) -> tuple[str, int] | None:
    """Return the address and port of a server; None where there shall be none."""
    return None if raw in {"", "0.0.0.0", "off", "none"} else host_port(raw, 53)  # noqa: S104


@takes("unix:PATH, ADDRESS:PORT, ssl:..., or off", "127.0.0.1:8053")
def control(raw: str) -> str:
    """Return where the control endpoint listens; empty for nowhere."""
    if raw.lower() in {"", "off", "none", "false", "no"}:
        return ""
    if not raw.startswith(("unix:", "ssl:")):
        try:
            host, number = host_port(raw, 8053)
        except ValueError:
            message = f"{raw!r} is no place to listen; write unix:PATH, 127.0.0.1:8053, ssl:..., or off"
            raise ValueError(message) from None
        if not ip_address(host).is_loopback:
            tls = f"ssl:PORT:interface={host}:privateKey=FILE:certKey=FILE"
            message = f"other machines can connect to {host}; write {tls}"
            raise ValueError(message)
        return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
    return raw


@takes("ADDRESS:PORT", "192.0.2.1:8054")
def guests(raw: str) -> str:
    """Return the address and port at which guests may ask for themselves; the port is 8054 if there is none."""
    host, number = host_port(raw, 8054)
    bind(host)
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def description(raw: str) -> str:
    """Return *raw*, which may be ``host:port`` or ``[v6]:port``, as Twisted's description of a client endpoint."""
    host, _, number = raw.rpartition(":")
    if host and number.isdigit() and (host.startswith("[") or ":" not in host):
        return "tcp:{}:{}".format(host.strip("[]").replace(":", r"\:"), number)
    return raw


@takes("unix:PATH or ADDRESS:PORT", "unix:/run/jitsu/synjitsu.sock")
def endpoint(raw: str) -> str:
    """Return what `description` makes a client endpoint of."""
    from twisted.internet.endpoints import clientFromString  # noqa: PLC0415 -- a reactor may be installed until then

    try:
        clientFromString(None, description(raw))
    except (ValueError, TypeError, LookupError, RuntimeError, OSError):  # all of Twisted's reader
        message = f"{raw!r} is no place to connect to; write one like unix:/run/jitsu/synjitsu.sock or 10.0.0.1:8055"
        raise ValueError(message) from None
    return raw


@takes("URL", "https://hooks.example.org/jitsu")
def _web_url(raw: str) -> str:
    """Return the URL of a web server's resource, in ASCII."""
    try:
        url = urlsplit(raw)
        right = url.scheme in {"http", "https"} and url.hostname and url.username is None and url.port != 0
    except ValueError:  # a port that is none, or brackets around what is no address
        right = False
    if not right or not raw.isascii() or re.search(r"[\s\x00-\x20\x7f#]", raw):
        message = f"{raw!r} is no URL of a web server"
        raise ValueError(message)
    if url.scheme == "https":
        require("OpenSSL", "tls")
    return raw


web_url: Final = without_password(_web_url, "leave it out: a receiver knows Jitsu by the signature of webhook_secret")


@takes("URL", "http://127.0.0.1:2379")
def _etcd_url(raw: str) -> str:
    """Return the URL of a member of etcd."""
    try:
        url = urlsplit(raw)
        right = url.scheme in {"http", "https"} and url.hostname and url.path in {"", "/"} and url.port != 0
    except ValueError:  # a port that is none, or brackets around what is no address
        right = False
    if not right:
        message = f"{raw!r} is no member of etcd; write one like http://127.0.0.1:2379"
        raise ValueError(message)
    return raw.rstrip("/")


etcd_url: Final = without_password(_etcd_url, "give it by the keys user and password of cluster")
