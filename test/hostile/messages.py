"""
AMP boxes between Jitsu and Synjitsu.

`Row.input` is the box of one question without ``_ask``, as keys and values; or the octets on the connection.
`Row.expected` is a regular expression for the error that comes back; empty where the connection ends, or nothing comes.
"""

from __future__ import annotations

from typing import Final

import attrs

from jitsu_tw.messages import VERSION
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
    b"runs": b"False", b"handover": b"wire", b"wake_udp": b"",
}  # fmt: skip

ROWS: Final = (
    Row("before Hello", ANNOUNCE, "Hello must come first", met=False),
    Row("a Hello with another secret", {b"_command": b"Hello", b"version": b"%d" % VERSION, b"secret": b"guess"},
        "not the same secret", met=False),
    Row("a Hello of another version", {b"_command": b"Hello", b"version": b"9", b"secret": b""}, "version 9"),
    Row("a command that there is not", {b"_command": b"Exec"}, "UNHANDLED"),
    Row("an address that is none", ANNOUNCE | {b"ip": b"10.0.0.300"}, "no IP address"),
    Row("an address outside the networks", ANNOUNCE | {b"ip": b"192.0.2.1"}, "in no network"),
    Row("the host's own address", ANNOUNCE | {b"ip": b"10.0.0.1"}, "an address of this host"),
    Row("a MAC that is none", ANNOUNCE | {b"macs": b"\0\x02xx"}, "no MAC address"),
    Row("a handover that there is not", ANNOUNCE | {b"handover": b"magic"}, "no kind of handover"),
    Row("an address of six octets", ANNOUNCE | {b"ip": b"10.0.0.10.1.1"}, "no IP address"),
    Row("a port that there is not", ANNOUNCE | {b"ports": b"\0\x0565536"}, "no number from 1 to 65535"),
    Row("a port below zero", ANNOUNCE | {b"wake_udp": b"\0\2-1"}, "no number from 1 to 65535"),
    Row("a port of 5000 digits", ANNOUNCE | {b"knock": b"9" * 5000}, "no number from 1 to 65535"),
    Row("a port in another script", ANNOUNCE | {b"knock": "²".encode()}, "no number from 1 to 65535"),
    Row("a guest that Xen cannot have", ANNOUNCE | {b"domid": b"32752"}, "no number from 0 to 32751"),
    Row("more ports than may be", ANNOUNCE | {b"ports": b"\0\0011" * 1025}, "1025 entries are more than 1024"),
    Row("a switch that is neither on nor off", ANNOUNCE | {b"asleep": b"maybe"}, "Bad boolean"),
    Row("text that is no UTF-8", ANNOUNCE | {b"handover": b"\xff"}, "REFUSED Announce"),
    Row("a value that is missing", {b"_command": b"Withdraw", b"ip": b"10.0.0.10"}, "is missing"),
    Row("a page after what is no address", {b"_command": b"Status", b"after": b"x"}, "no IP address"),
    Row("an answer to no question", b"\0\7_answer\0\0019\0\0", ""),
    Row("an empty message", b"\0\0", ""),
    Row("a message of more keys than may be", b"".join(b"\0\2%02d\0\1x" % key for key in range(30)) + b"\0\0", ""),
    Row("a summons for what is no address", {b"_command": b"Summon", b"ip": b"10.0.0.10", b"source": b"x\x1b"},
        "REFUSED|UNKNOWN", to="jitsu"),
    Row("a guest elsewhere that is nowhere", {b"_command": b"Elsewhere", b"ip": b"10.0.0.10", b"found": b"x\n"},
        "no IP address", to="jitsu"),
    Row("a command of the other side", ANNOUNCE, "UNHANDLED", to="jitsu"),
    Row("an error to no question", b"\0\6_error\0\0019\0\0", "", to="jitsu"),
    Row("a key in the place of an answer, longer than may be", b"\0\6_error\0\0011\1\0" + b"a" * 300, "", to="jitsu"),
    Row("a length that AMP does not have", b"\xff\xff" + b"a" * 300, ""),
)
