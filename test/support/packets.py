"""
Packets put together by hand, so that the wrong ones can be as wrong as they should; and hypothesis's, right and almost.

For the tests of `jitsu_tw.dns.message` and `jitsu_tw.dns.reply`.
"""

from __future__ import annotations

from struct import pack

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jitsu_tw.dns.wire import ROOT, from_text

WWW = from_text("www.example.org")
ZONE = from_text("example.org")
QUESTION = WWW + pack("!HH", 1, 1)
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, DNAME = 1, 2, 5, 6, 12, 15, 16, 28, 33, 39
COOKIE = bytes(range(8))
#: 255 octets, the most that a name may have.
LONGEST = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + ROOT
TOO_LONG = (b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"b" * 62 + ROOT

#: For properties: the same examples every time, and not too many.
bounded = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def packet(
    *parts: bytes, ident: int = 0x1234, flags: int = 0x0100, qd: int = 1, an: int = 0, ns: int = 0, ar: int = 0
) -> bytes:
    """Return a header with these counts and the *parts* behind it; without parts, the usual question."""
    return pack("!HHHHHH", ident, flags, qd, an, ns, ar) + (b"".join(parts) or QUESTION)


def option(code: int, data: bytes = b"") -> bytes:
    """Return an EDNS option."""
    return pack("!HH", code, len(data)) + data


def opt(*options: bytes, size: int = 1232, version: int = 0, flags: int = 0, owner: bytes = ROOT) -> bytes:
    """Return an OPT record."""
    data = b"".join(options)
    return owner + pack("!HHBBHH", 41, size, 0, version, flags, len(data)) + data


def record(owner: bytes = WWW, type: int = A, data: bytes = b"\x0a\0\0\1", cls: int = 1) -> bytes:
    """Return any other record."""
    return owner + pack("!HHIH", type, cls, 0, len(data)) + data


def subnet(family: int, prefix: int, address: bytes, scope: int = 0) -> bytes:
    """Return a client subnet option."""
    return option(8, pack("!HBB", family, prefix, scope) + address)


labels = st.binary(min_size=1, max_size=63)
names = (
    st.lists(labels | st.sampled_from([b"www", b"WWW", b"example", b"org"]), max_size=4)
    .map(lambda them: b"".join(bytes([len(one)]) + one for one in them) + ROOT)
    .filter(lambda name: len(name) <= 255)
)
known = st.sampled_from([WWW, ZONE, from_text("WWW.Example.org"), from_text("ns.example.org"), ROOT])
owners = names | known
edns_options = st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=24)), max_size=3)
packets = st.builds(
    lambda name, qtype, bits, options, extra: packet(
        name + pack("!HH", qtype, 1),
        *([] if options is None else [opt(*[option(*one) for one in options])]),
        *[record(*one) for one in extra],
        flags=bits,
        ar=(options is not None) + len(extra),
    ),
    owners,
    st.integers(0, 300),
    st.sampled_from([0, 0x100, 0x110, 0x2800, 0x20, 0x7FFF]),
    st.none() | edns_options,
    st.lists(st.tuples(owners | st.just(b"\xc0\x0c"), st.sampled_from([TXT, 41, 250, 65280])), max_size=2),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a packet that was well-formed before a few of its octets were changed, lost or added."""
    octets = bytearray(draw(packets))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(octets) - 1))
        change = draw(st.integers(0, 3))
        if change == 0:
            octets[at] = draw(st.integers(0, 255) | st.sampled_from([0x3F, 0x40, 0x80, 0xC0]))
        elif change == 1 and len(octets) > 1:
            del octets[at:]
        elif change == 2:
            octets[at:at] = draw(st.binary(max_size=6))
        else:
            octets[at:at] = octets[at : at + 12]
        if not octets:
            break
    return bytes(octets)
