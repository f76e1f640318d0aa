"""
What the keys of a configuration take: text in, values out; wrong text is a ValueError that says what would be right.

`KEYS` are Jitsu's own, `VM_KEYS` those of a VM. A new key is a row here and a field in `settings`.
"""

from __future__ import annotations

import difflib
import re
import uuid
from importlib import import_module
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString

from jitsu_tw import xen
from jitsu_tw.backends import BACKENDS, EXTRAS
from jitsu_tw.dns import tsig
from jitsu_tw.dns.notify import Secondary
from jitsu_tw.dns.transfer import Rule, split_key
from jitsu_tw.dns.wire import from_text
from jitsu_tw.settings import Boot, Evidence, Fault, Handover, Http, Mode, OnHostLoss, Past, WhenFull
from jitsu_tw.standin import description
from jitsu_tw.vm.week import Span

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterable, Mapping

#: The octets that a path below a domain's own may have (xenstore.txt: XENSTORE_REL_PATH_MAX).
LONGEST_KEY: Final = 2048


def near(key: str, known: Iterable[str]) -> str:
    """Return the nearest of *known* as the end of an error message, or nothing."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _number(what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e9:
            message = f"{text!r} is no {what}; write one like 0.5 or 60"
            raise ValueError(message)
        return value

    return parse


_seconds: Final = _number("number of seconds")


def _whole(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
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
        return ip_address(text)
    except ValueError:
        message = f"{text!r} is no IP address; write one like 10.0.0.1 or 2001:db8::1"
        raise ValueError(message) from None


def _network(text: str) -> Any:
    try:
        return ip_network(text)
    except ValueError as error:
        message = f"{text!r} is no network ({error}); write one like 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(message) from None


def _octets(text: str) -> bytes:
    return text.encode()


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        message = f"{text!r} is no uuid"
        raise ValueError(message) from None


def _control(text: str) -> str | None:
    if text.lower() in {"", "off", "none", "false", "no"}:
        return None
    if not text.startswith(("unix:", "ssl:")):
        host, port = _host_port(text, 8053)
        if not ip_address(host).is_loopback:
            message = f"others get to {host}, too; write ssl:PORT:interface={host}:privateKey=FILE:certKey=FILE"
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
    if not path.startswith("/") or not path.isascii() or (status and not (status.isdigit() and len(status) == 3)):
        message = f"{text!r} is no path; write one like /healthz or, with the status to wait for, '/healthz 204'"
        raise ValueError(message)
    return Http(path, int(status) if status else None)


def _xenstore_key(text: str) -> str:
    if re.fullmatch("[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*", text) is None or len(text) > LONGEST_KEY:
        message = f"{text!r} is no key in Xenstore below the VM's own; write one like data/ready"
        raise ValueError(message)
    require("jitsu_tw.xenstore", "xen")
    return text


def _place(text: str) -> str:
    try:
        clientFromString(reactor, description(text))
    except (ValueError, TypeError, KeyError):
        message = f"{text!r} is no place to connect to; write one like unix:/run/jitsu/synjitsu.sock or 10.0.0.1:8055"
        raise ValueError(message) from None
    return text


def _remote(text: str) -> str:
    if not (text.startswith("/") or re.fullmatch(r"[A-Za-z0-9][^/:]*:.+", text)):
        message = f"{text!r} is no git repository's URL; write one like ssh://git@host/jitsu.git or /srv/jitsu.git"
        raise ValueError(message)
    return text


def _past(text: str) -> Past:
    units = {"d": 86400, "h": 3600, "m": 60}
    number, unit = text[:-1], units.get(text[-1:], 0)
    if unit and number.isascii() and number.isdigit():
        return Past(seconds=float(number) * unit)
    if not (text.isascii() and text.isdigit()):
        message = f"{text!r} is no time and no number of commits; write one like 30d, 12h or 100"
        raise ValueError(message)
    return Past(int(text))


def _url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.path not in {"", "/"}:
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
class Key:
    """
    What a key takes.

    Attributes:
        parse: makes a value of text.
        many: it may repeat, or be a list.
        path: it names a file, relative to the file that says so.
    """

    parse: Callable[[str], Any]
    many: bool = False
    path: bool = False


SHARED: Final = {
    "backend": Key(_backend(BACKENDS)),
    "connect": Key(str),
    "mode": Key(_of(Mode)),
    "ttl": Key(_ttl),
    "idle": Key(_seconds),
    "idle_packets": Key(_number("number of packets in a minute")),
    "evidence": Key(_of(Evidence)),
    "save_fallback": Key(_of(Mode, (Mode.DESTROY, Mode.SHUTDOWN, Mode.PAUSE))),
    "min_up": Key(_seconds),
    "max_up": Key(_seconds),
    "check_every": Key(_seconds),
    "stop_timeout": Key(_seconds),
    "images": Key(str, path=True),
    "use_synjitsu": Key(_switch),
    "wake_by_packet": Key(_switch),
    "handover": Key(_of(Handover)),
}

KEYS: Final[Mapping[str, Key]] = {
    **SHARED,
    "zones": Key(str, many=True, path=True),
    "bind": Key(lambda text: str(_address(text)), many=True),
    "listen": Key(_port),
    "control": Key(_control),
    "control_token": Key(str, path=True),
    "persistdb": Key(str, path=True),
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
    "synjitsu_secret": Key(str, path=True),
    "on_host_loss": Key(_of(OnHostLoss)),
    "fence": Key(str),
}

#: What `cluster` says (`settings.Cluster`).
CLUSTER_KEYS: Final[Mapping[str, Key]] = {
    "etcd": Key(_url, many=True),
    "node": Key(_name),
    "prefix": Key(_prefix),
    "ttl": Key(_ttl_of_claims),
    "user": Key(str),
    "password": Key(str, path=True),
    "ca": Key(str, path=True),
    "cert": Key(str, path=True),
    "key": Key(str, path=True),
}

#: What each of the `hosts` says (`settings.Host`).
HOST_KEYS: Final[Mapping[str, Key]] = {
    "name": Key(_name),
    "backend": Key(_backend(set(BACKENDS) - {"libxl"})),
    "connect": Key(str),
    "synjitsu": Key(_place),
}

#: What a VM of libxl's is made of (`xen.XenGuest`).
XEN_KEYS: Final[Mapping[str, Key]] = {
    "kernel": Key(str, path=True),
    "memory": Key(xen.parse_memory),
    "cmdline": Key(xen.parse_cmdline),
    "nic": Key(xen.parse_nic, many=True),
    "script": Key(xen.parse_script, many=True),
    "disk": Key(xen.parse_disk, many=True),
    "rumprun_config": Key(str, path=True),
    "type": Key(xen.parse_type),
    "ramdisk": Key(str, path=True),
    "vcpus": Key(xen.parse_vcpus),
    "mac": Key(xen.parse_mac, many=True),
}

VM_KEYS: Final[Mapping[str, Key]] = {
    **SHARED,
    **XEN_KEYS,
    "name": Key(str),
    "dns": Key(from_text, many=True),
    "ip": Key(_address, many=True),
    "uuid": Key(_uuid),
    "response_delay": Key(_seconds),
    "wait_for_port": Key(_port),
    "define": Key(str, path=True),
    "boot_time": Key(_seconds),
    "faults": Key(_of(Fault), many=True),
    "wait_for_http": Key(_http),
    "keep_up": Key(Span.parse, many=True),
    "needs": Key(str, many=True),
    "boot_from": Key(_of(Boot)),
    "ports": Key(_port, many=True),
    "wake_udp": Key(_port, many=True),
    "wait_for_key": Key(_xenstore_key),
    "host": Key(_name, many=True),
    "prefer": Key(_name, many=True),
    "avoid": Key(_name, many=True),
}
