"""
AMP boxes between Jitsu and Synjitsu.

`Row.input` is the box of one question without ``_ask``, as keys and values; or the octets on the connection.
`Row.expected` is a regular expression for the error that comes back; empty where the connection ends, or nothing comes.
"""

from __future__ import annotations

from typing import Final

import attrs

from test import hostile


@attrs.frozen
class Row(hostile.Row):
    """
    A message.

    Attributes:
        to: whose side reads it, ``synjitsu`` or ``jitsu``.
        met: whether `Hello` has been said before.
    """

    to: str = "synjitsu"
    met: bool = True


#: A good announcement, and what it takes to withdraw it.
ANNOUNCE: Final = {
    b"_command": b"Announce", b"ip": b"10.0.0.10", b"macs": b"\0\x1152:54:00:00:00:10", b"asleep": b"True",
    b"runs": b"False", b"handover": b"wire", b"wake_udp": b"", b"keeps": b"False",
}  # fmt: skip

ROWS: Final = (
    Row("before Hello", ANNOUNCE, "Hello must come first", met=False),
    Row("a Hello with another secret", {b"_command": b"Hello", b"version": b"2", b"secret": b"guess"},
        "not the same secret", met=False),
    Row("a Hello of another version", {b"_command": b"Hello", b"version": b"9", b"secret": b""}, "version 9",
        met=False),
    Row("a command that there is not", {b"_command": b"Exec"}, "UNHANDLED"),
    Row("an address that is none", ANNOUNCE | {b"ip": b"10.0.0.300"}, "no IP address"),
    Row("an address outside the networks", ANNOUNCE | {b"ip": b"192.0.2.1"}, "in no network"),
    Row("the host's own address", ANNOUNCE | {b"ip": b"10.0.0.1"}, "an address of this host"),
    Row("a MAC that is none", ANNOUNCE | {b"macs": b"\0\x02xx"}, "no MAC addresses"),
    Row("a handover that there is not", ANNOUNCE | {b"handover": b"magic"}, "no kind of handover"),
    Row("a length that AMP does not have", b"\xff\xff" + b"a" * 300, ""),
)
