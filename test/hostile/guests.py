"""
HTTP to the guests' endpoint.

`Row.input` is the address that a client has, the MAC that the kernel has for it (empty for none), and all that the
client sends; `Row.expected` is as in `test.hostile.control`. The VM `www` has the address `IP` and the MAC `MAC`; `db`
has `OTHER_IP` and `OTHER_MAC`.
"""

from __future__ import annotations

from typing import Final

from test.hostile import Row

IP: Final = "10.0.0.1"
MAC: Final = "52:54:00:00:00:01"
OTHER_IP: Final = "10.0.0.2"
OTHER_MAC: Final = "52:54:00:00:00:02"

_HOST: Final = b" HTTP/1.1\r\nHost: 10.0.0.254\r\n"
_SELF: Final = b"GET /self" + _HOST + b"\r\n"
_HOLD: Final = b"POST /self/hold?seconds="


def _row(name: str, octets: bytes, expected: str, host: str = IP, mac: str = MAC) -> Row:
    return Row(name, (host, mac, octets), expected)


ROWS: Final = (
    _row("an address that no VM has", _SELF, "403", host="10.0.0.9"),
    _row("an address of IPv6 that no VM has", _SELF, "403", host="fe80::1%eth0"),
    _row("the address of another guest", _SELF, "403", mac=OTHER_MAC),
    _row("the address of a guest behind a router", _SELF, "403", mac=""),
    _row("another VM by its name", b"GET /self/db" + _HOST + b"\r\n", "404"),
    _row("a page of the control endpoint", b"GET /v1/vms" + _HOST + b"\r\n", "404"),
    _row("a page from elsewhere", b"POST /self/sleep" + _HOST + b"Origin: http://evil.example\r\n\r\n", "403"),
    _row("a name for this host", b"POST /self/sleep HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
    _row("an action by GET", b"GET /self/sleep" + _HOST + b"\r\n", "405"),
    _row("a hold without an end", b"POST /self/hold" + _HOST + b"\r\n", "400"),
    _row("a hold of no time", _HOLD + b"0" + _HOST + b"\r\n", "400"),
    _row("a hold of less than no time", _HOLD + b"-5" + _HOST + b"\r\n", "400"),
    _row("a hold of more than a day", _HOLD + b"86401" + _HOST + b"\r\n", "400"),
    _row("a hold of 5000 digits", _HOLD + b"9" * 5000 + _HOST + b"\r\n", "400"),
    _row("a hold of a number that is not ASCII", _HOLD + b"%c2%b2" + _HOST + b"\r\n", "400"),
    _row("a hold of infinity", _HOLD + b"inf" + _HOST + b"\r\n", "400"),
    _row("a body of a gigabyte", b"POST /self/sleep" + _HOST + b"Content-Length: 1000000000\r\n\r\n", "413"),
    _row("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\r\n\r\n", "400"),
    _row("a thousand requests at once", _SELF * 1000, "200( 200)*( 429)+"),
)
