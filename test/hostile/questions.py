"""
Octets that are no questions, as a datagram and as a message by TCP.

`Row.input` is the message; `Row.expected` is the code of the reply (RFC 1035, 4.1.1), empty where there must be none.
`test.support.packets` has what puts messages together. No row may start a VM.
"""

from __future__ import annotations

from struct import pack
from typing import Final

from jitsu_tw.dns.wire import ROOT, from_text
from test.hostile import Row
from test.support.packets import COOKIE, TOO_LONG, opt, option, packet, record

_NOBODY: Final = from_text("nobody.jitsu.test")
_A: Final = pack("!HH", 1, 1)
_BEHIND: Final = 0xC000 | 12 + len(_NOBODY) + len(_A)  # a pointer to behind the question
_RING: Final = [record(pack("!H", _BEHIND + 16 * ((number + 1) % 64))) for number in range(64)]
_TSIG: Final = from_text("hmac-sha256") + bytes(6) + pack("!HH", 300, 32) + bytes(32 + 6)

ROWS: Final = (
    Row("one octet", b"\0", ""),
    Row("eleven octets", bytes(11), ""),
    Row("a reply", packet(flags=0x8180), ""),
    Row("no question", packet(b"", qd=0), "FORMERR"),
    Row("two questions", packet(_NOBODY + _A, _NOBODY + _A, qd=2), "FORMERR"),
    Row("65535 questions", packet(_NOBODY + _A, qd=65535), "FORMERR"),
    Row("a name that points to itself", packet(b"\xc0\x0c" + _A), "FORMERR"),
    Row("a name of 256 octets", packet(TOO_LONG + _A), "FORMERR"),
    Row("a label type that there is not", packet(b"\x41a\0" + _A), "FORMERR"),
    Row("octets behind the end", packet(_NOBODY + _A, b"junk"), "FORMERR"),
    Row("two OPT records", packet(_NOBODY + _A, opt(), opt(), ar=2), "FORMERR"),
    Row("an option that is longer than its record", packet(_NOBODY + _A, record(ROOT, 41, b"\0\x0a\0\xff"), ar=1),
        "FORMERR"),
    Row("a cookie of 9 octets", packet(_NOBODY + _A, opt(option(10, COOKIE + b"9")), ar=1), "FORMERR"),
    Row("the class CHAOS", packet(_NOBODY + pack("!HH", 16, 3)), "REFUSED"),
    Row("an update", packet(flags=0x2800), "NOTIMP"),
    Row("a message of 60000 octets", packet(_NOBODY + _A, opt(option(12, bytes(59_900))), ar=1), "FORMERR"),
    Row("an update of 60000 octets", packet(_NOBODY + _A, bytes(59_900), flags=0x2800), "NOTIMP"),
    Row("an owner that points to itself", packet(_NOBODY + _A, record(pack("!H", _BEHIND)), ar=1), "FORMERR"),
    Row("owners that point to each other, 64 of them", packet(_NOBODY + _A, *_RING, ar=64), "FORMERR"),
    Row("a NOTIFY by a stranger", packet(_NOBODY + _A, flags=0x2000), "NOTIMP"),
    Row("a signature with a key that there is not",
        packet(_NOBODY + _A, record(from_text("nokey"), 250, _TSIG, 255), ar=1), "NOTAUTH"),
    Row("an IXFR whose SOA points to itself",
        packet(from_text("jitsu.test") + pack("!HH", 251, 1), record(b"\xc0\x1c", 6, bytes(22)), ns=1),
        "REFUSED|FORMERR"),
    Row("a transfer by a stranger", packet(from_text("jitsu.test") + pack("!HH", 252, 1)), "REFUSED|NOTIMP|FORMERR"),
)
