"""
What the keys of a configuration take: text in, values out; wrong text is a ValueError that says what would be right.

`KEYS` are Jitsu's own, `VM_KEYS` those of a VM. A new key is a row here and a field in `settings`. A VM's own branch
may say it only if the row has `own`.
"""

from __future__ import annotations

import difflib
import re
import uuid
from importlib import import_module
from ipaddress import IPv4Address, ip_address, ip_network
from math import inf
from socket import AF_INET, inet_pton
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString

from jitsu_tw import xen
from jitsu_tw.backends import BACKENDS, EXTRAS
from jitsu_tw.dns import tsig
from jitsu_tw.dns.wire import ROOT, from_text
from jitsu_tw.networks import why_no_guest
from jitsu_tw.rules.schedule import WeeklyWindow
from jitsu_tw.settings import (
    READY_WITHIN,
    Boot,
    Evidence,
    Fault,
    Handover,
    Http,
    Mode,
    OnHostLoss,
    Retention,
    Rule,
    Secondary,
    WhenFull,
    split_key,
)
from jitsu_tw.synjitsu_client import description

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterable, Mapping

#: The octets that a path below a domain's own may have (xenstore.txt: XENSTORE_REL_PATH_MAX).
LONGEST_KEY: Final = 2048

#: The octets of an NSID; more would push answers out of a UDP message.
LONGEST_NSID: Final = 255

#: Digits of a number: no key takes one of more, and Python would refuse to read one of thousands.
MOST_DIGITS: Final = 20

#: The characters of a name, and of a path of HTTP.
LONGEST_NAME: Final = 255
LONGEST_PATH: Final = 1024


def near(key: str, known: Iterable[str]) -> str:
    """Return the nearest of *known* as the end of an error message, or nothing."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _number(what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else -1.0
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e9:
            message = f"{text!r} is no {what}; write one like 0.5 or 60"
            raise ValueError(message)
        return value

    return parse


_seconds: Final = _number("number of seconds")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def _whole(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (_is_number(text) and low <= int(text) <= high):
            message = f"{text!r} is no {what}; write a number from {low} to {high}"
            raise ValueError(message)
        return int(text)

    return parse


def _switch(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in values:
        message = f"{text!r} is neither true nor false"
        raise ValueError(message)
    return values[text.lower()]


def _choice(names: Iterable[str]) -> Callable[[str], str]:
    known = sorted(names)

    def parse(text: str) -> str:
        if text not in known:
            message = f"{text!r} is not one of {', '.join(known)}{near(text, known)}"
            raise ValueError(message)
        return text

    return parse


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


def _backend(names: Iterable[str]) -> Callable[[str], str]:
    choose = _choice(names)

    def parse(text: str) -> str:
        kind = choose(text)
        if kind in EXTRAS:
            require(BACKENDS[kind].partition(":")[0], EXTRAS[kind])
        return kind

    return parse


def _address(text: str) -> Any:
    try:
        # inet_pton(3) takes the same forms; where there are 100,000 addresses, that is seconds
        return ip_address(text) if ":" in text else IPv4Address(inet_pton(AF_INET, text))
    except (OSError, ValueError):
        message = f"{text!r} is no IP address; write one like 10.0.0.1 or 2001:db8::1"
        raise ValueError(message) from None


def _guest_address(text: str) -> Any:
    address = _address(text)
    if why := why_no_guest(address):
        message = why if "; write " in why else f"{why}; give the VM an address of its own"
        raise ValueError(message)
    return address


def _bind(text: str) -> str:
    address = _address(text)
    if address.is_multicast or (address.version == 4 and int(address) >> 28 == 15):
        message = f"{text!r} is no address of one machine; write one that this host has"
        raise ValueError(message)
    if address.version == 6 and address.ipv4_mapped is not None:
        message = f"{text!r} is an IPv4 address in IPv6's form; write {address.ipv4_mapped}"
        raise ValueError(message)
    return str(address)


def _text(text: str) -> str:
    if not text or not text.isprintable():
        message = f"{text!r} has characters that cannot be seen" if text else "is empty; leave the key out"
        raise ValueError(message)
    return text


def _vm_name(text: str) -> str:
    if text != text.strip() or len(_text(text)) > LONGEST_NAME:
        message = f"{text!r} is no name of a VM; take one of {LONGEST_NAME} characters at most, with no blanks around"
        raise ValueError(message)
    return text


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


def _dns_name(text: str) -> bytes:
    """Return the name that *text* is, as a machine's may be; other characters than a host name's take an escape."""
    if _DNS_TEXT.fullmatch(text) is None:
        slip = (words for pattern, words in _SLIPS if re.fullmatch(pattern, text, re.DOTALL))
        message = f"{text!r} {next(slip, 'is no name; write one of letters, digits, dashes and dots')}"
        raise ValueError(message)
    if text.removesuffix(".").rpartition(".")[2].isdigit():
        message = f"{text!r} ends in a number, as addresses do and names do not; write addresses as ip"
        raise ValueError(message)
    name = from_text(text)
    if name == ROOT:
        message = f"{text!r} is the root of all names; write one like www.example.org"
        raise ValueError(message)
    return name


def _network(text: str) -> Any:
    try:
        return ip_network(text)
    except ValueError as error:
        message = f"{text!r} is no network ({error}); write one like 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(message) from None


def _octets(text: str) -> bytes:
    octets = text.encode()
    if len(octets) > LONGEST_NSID:
        message = f"is longer than {LONGEST_NSID} octets"
        raise ValueError(message)
    return octets


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        message = f"{text!r} is no uuid"
        raise ValueError(message) from None


def _control(text: str) -> str:
    if text.lower() in {"", "off", "none", "false", "no"}:
        return ""
    if not text.startswith(("unix:", "ssl:")):
        try:
            host, port = _host_port(text, 8053)
        except ValueError:
            message = f"{text!r} is no place to listen; write unix:PATH, 127.0.0.1:8053, ssl:..., or off"
            raise ValueError(message) from None
        if not ip_address(host).is_loopback:
            tls = f"ssl:PORT:interface={host}:privateKey=FILE:certKey=FILE"
            message = f"other machines can connect to {host}; write {tls}"
            raise ValueError(message)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return text


def _host_port(text: str, default: int) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port`` or ``[v6]:port``; the host is an address."""
    host, port = text, str(default)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, port = text.split(":")
    return str(_address("127.0.0.1" if host == "localhost" else host)), _port(port)


def _forwarder(text: str) -> tuple[str, int] | None:
    return None if text in {"", "0.0.0.0", "off", "none"} else _host_port(text, 53)  # noqa: S104


def _secondary(text: str) -> Secondary:
    place, key = split_key(text)
    host, port = _host_port(place, 53)
    return Secondary(host, port, key)


def _of(kind: type[enum.Enum], among: Iterable[enum.Enum] = ()) -> Callable[[str], Any]:
    """Return what reads one of *kind*'s values: any, or, if it is not empty, one of those *among* which it must be."""
    parse = _choice(one.value for one in among or kind)
    return lambda text: kind(parse(text))


def _http(text: str) -> Http:
    path, _, status = text.partition(" ")
    if not re.fullmatch(f"/[!-~]{{0,{LONGEST_PATH - 1}}}", path) or not re.fullmatch("([1-5][0-9]{2})?", status):
        message = f"{text!r} is no path; write one like /healthz or, with the status to wait for, '/healthz 204'"
        raise ValueError(message)
    return Http(path, int(status) if status else None)


def _xenstore_key(text: str) -> str:
    if re.fullmatch("[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*", text) is None or len(text) > LONGEST_KEY:
        message = f"{text!r} is no key in Xenstore below the VM's own; write one like data/ready"
        raise ValueError(message)
    return text


def _place(text: str) -> str:
    try:
        clientFromString(reactor, description(text))
    except (ValueError, TypeError, LookupError, RuntimeError, OSError):  # all of Twisted's reader
        message = f"{text!r} is no place to connect to; write one like unix:/run/jitsu/synjitsu.sock or 10.0.0.1:8055"
        raise ValueError(message) from None
    return text


def _remote(text: str) -> str:
    if not (text.startswith("/") or re.fullmatch(r"[A-Za-z0-9][^/:]*:.+", text)):
        message = f"{text!r} is no git repository's URL; write one like ssh://git@host/jitsu.git or /srv/jitsu.git"
        raise ValueError(message)
    return text


def _past(text: str) -> Retention:
    units = {"d": 86400, "h": 3600, "m": 60}
    number, unit = text[:-1], units.get(text[-1:], 0)
    if unit and _is_number(number):
        return Retention(seconds=float(number) * unit)
    if not _is_number(text):
        message = f"{text!r} is no time and no number of commits; write one like 30d, 12h or 100"
        raise ValueError(message)
    return Retention(int(text))


def _url(text: str) -> str:
    try:
        url = urlsplit(text)
        right = url.scheme in {"http", "https"} and url.hostname and url.path in {"", "/"} and url.port != 0
    except ValueError:  # a port that is none, or brackets around what is no address
        right = False
    if not right:
        message = f"{text!r} is no member of etcd; write one like http://127.0.0.1:2379"
        raise ValueError(message)
    return text.rstrip("/")


def _name(text: str) -> str:
    if re.fullmatch("[A-Za-z0-9_.-]+", text) is None:
        message = f"{text!r} is no name; write one of letters, digits, dots, dashes and underscores"
        raise ValueError(message)
    return text


def _prefix(text: str) -> str:
    if re.fullmatch("(/[A-Za-z0-9_.-]+)+", text) is None:
        message = f"{text!r} is no prefix of etcd's keys; write one like /jitsu"
        raise ValueError(message)
    return text


def _ttl_of_claims(text: str) -> float:
    value = _seconds(text)
    if not 2 <= value <= 600:
        message = f"{text!r} is too short or too long; write a number of seconds from 2 to 600"
        raise ValueError(message)
    return value


_port: Final = _whole(1, 65535, "port")
_ttl: Final = _whole(0, 2**31 - 1, "TTL in seconds (RFC 2181, section 8)")


@attrs.frozen
class Limits:
    """
    What a VM's own branch may say of a key.

    Attributes:
        least, most: of a number.
        number: of the values of a list.
    """

    least: float = -inf
    most: float = inf
    number: int = 1


#: In seconds: the longest that an address may be kept in caches by a VM's own branch, and a VM after its last use.
DAY: Final = 86400


@attrs.frozen
class Key:
    """
    What a key takes.

    Attributes:
        parse: makes a value of text.
        many: it may repeat, or be a list.
        path: it names a file, relative to the file that says so.
        own: a VM's own branch may say it, within these limits (`permissions`); None: it may not.
    """

    parse: Callable[[str], Any]
    many: bool = False
    path: bool = False
    own: Limits | None = None


SHARED: Final = {
    "backend": Key(_backend(BACKENDS)),
    "connect": Key(_text),
    "mode": Key(_of(Mode)),
    "ttl": Key(_ttl, own=Limits(1, DAY)),
    "idle": Key(_seconds, own=Limits(1, DAY)),
    "idle_packets": Key(_number("number of packets in a minute"), own=Limits()),
    "evidence": Key(_of(Evidence), own=Limits()),
    "save_fallback": Key(_of(Mode, (Mode.DESTROY, Mode.SHUTDOWN, Mode.PAUSE))),
    "min_up": Key(_seconds),
    "max_up": Key(_seconds),
    "check_every": Key(_seconds),
    "stop_timeout": Key(_seconds),
    "images": Key(_text, path=True),
    "use_synjitsu": Key(_switch),
    "wake_by_packet": Key(_switch),
    "handover": Key(_of(Handover)),
}

KEYS: Final[Mapping[str, Key]] = {
    **SHARED,
    "zones": Key(_text, many=True, path=True),
    "bind": Key(_bind, many=True),
    "listen": Key(_port),
    "control": Key(_control, many=True),
    "control_token": Key(_text, path=True),
    "persistdb": Key(_text, path=True),
    "remote": Key(_remote),
    "commit_every": Key(_seconds),
    "keep_history": Key(_past),
    "forwarder": Key(_forwarder),
    "port": Key(_port),
    "forward_for": Key(_network, many=True),
    "delay": Key(_seconds),
    "answer_by": Key(_seconds),
    "max_booting": Key(_whole(1, 100_000, "number of VMs")),
    "max_running": Key(_whole(0, 1_000_000, "number of VMs")),
    "when_full": Key(_of(WhenFull)),
    "summon_from": Key(_network, many=True),
    "starts_per_minute": Key(_whole(0, 1_000_000, "number of starts")),
    "verify_source": Key(_switch),
    "rate_limit": Key(_whole(0, 1_000_000, "number of responses in a second")),
    "rate_slip": Key(_whole(0, 100, "number of responses")),
    "rate_exempt": Key(_network, many=True),
    "nsid": Key(_octets),
    "tsig_keys": Key(tsig.Key.parse, many=True),
    "allow_transfer": Key(Rule.parse, many=True),
    "notify": Key(_secondary, many=True),
    "log_json": Key(_switch),
    "dry_run": Key(_switch),
    "synjitsu": Key(_place),
    "synjitsu_secret": Key(_text, path=True),
    "on_host_loss": Key(_of(OnHostLoss)),
    "fence": Key(_text),
}

#: What `cluster` says (`settings.Cluster`).
CLUSTER_KEYS: Final[Mapping[str, Key]] = {
    "etcd": Key(_url, many=True),
    "node": Key(_name),
    "prefix": Key(_prefix),
    "ttl": Key(_ttl_of_claims),
    "user": Key(_text),
    "password": Key(_text, path=True),
    "ca": Key(_text, path=True),
    "cert": Key(_text, path=True),
    "key": Key(_text, path=True),
}

#: What each of the `hosts` says (`settings.Host`).
HOST_KEYS: Final[Mapping[str, Key]] = {
    "name": Key(_name),
    "backend": Key(_backend(set(BACKENDS) - {"libxl"})),
    "connect": Key(_text),
    "synjitsu": Key(_place),
}

#: What a VM of libxl's is made of (`xen.XenGuest`).
XEN_KEYS: Final[Mapping[str, Key]] = {
    "kernel": Key(_text, path=True),
    "memory": Key(xen.parse_memory),
    "cmdline": Key(xen.parse_cmdline),
    "nic": Key(xen.parse_nic, many=True),
    "script": Key(xen.parse_script, many=True),
    "disk": Key(xen.parse_disk, many=True),
    "rumprun_config": Key(_text, path=True),
    "type": Key(xen.parse_type),
    "ramdisk": Key(_text, path=True),
    "vcpus": Key(xen.parse_vcpus),
    "mac": Key(xen.parse_mac, many=True),
}

VM_KEYS: Final[Mapping[str, Key]] = {
    **SHARED,
    **XEN_KEYS,
    "name": Key(_vm_name),
    "dns": Key(_dns_name, many=True, own=Limits(number=16)),
    "ip": Key(_guest_address, many=True, own=Limits(number=8)),
    "own_dns": Key(_dns_name, many=True),
    "own_ip": Key(_network, many=True),
    "uuid": Key(_uuid),
    "response_delay": Key(_seconds, own=Limits(0, READY_WITHIN)),
    "wait_for_port": Key(_port, own=Limits()),
    "define": Key(_text, path=True),
    "boot_time": Key(_seconds),
    "faults": Key(_of(Fault), many=True),
    "wait_for_http": Key(_http, own=Limits()),
    "keep_up": Key(WeeklyWindow.parse, many=True),
    "needs": Key(_vm_name, many=True),
    "boot_from": Key(_of(Boot)),
    "ports": Key(_port, many=True, own=Limits(number=64)),
    "wake_udp": Key(_port, many=True),
    "wait_for_key": Key(_xenstore_key, own=Limits()),
    "host": Key(_name, many=True),
    "prefer": Key(_name, many=True),
    "avoid": Key(_name, many=True),
}
