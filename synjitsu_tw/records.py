"""
A SYN as the original Synjitsu wrote it to Xenstore, for a guest whose TCP stack reads it there.

Pure: a packet comes in, paths and values come out.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synjitsu_tw.packets import Packet

#: The node above all others.
ROOT: Final = "/ip"

#: The value that a guest writes to its own node when it takes its SYNs itself.
MANAGED: Final = "managed"

#: The upper half of the guest's initial sequence number, which Synjitsu chooses; the lower half is random.
TX_ISN: Final = 0x1AFE0000

#: The window that the guest offers, in octets, and its window scale (RFC 7323, 2).
RX_WND: Final = 65535
RX_WND_SCALEOFFER: Final = 2

#: Characters that make an atom need quotes, and the escapes of some characters in quotes.
_QUOTE: Final = frozenset(b' "();\\|#')
_ESCAPES: Final = {0x22: '\\"', 0x5C: "\\\\", 0x0A: "\\n", 0x09: "\\t", 0x0D: "\\r", 0x08: "\\b"}

#: An s-expression: an atom, or a list.
Expression = str | bytes | list["Expression"]


def node(ip: bytes) -> str:
    """Return the path of an address's node."""
    return f"{ROOT}/{_dashed(ip)}"


def address(path: str) -> bytes | None:
    """Return the address at whose `node`, or below it, *path* is; None if that is no address's."""
    parts = path.removeprefix(f"{ROOT}/").split("/")
    try:
        return IPv4Address(parts[0].replace("-", ".")).packed
    except ValueError:
        return None


def connection(packet: Packet) -> str:
    """Return the path of the node of the connection which *packet* opens."""
    return f"{node(packet.dst)}/{packet.dport}/{_dashed(packet.src)}/{packet.sport}"


def record(packet: Packet, random: int) -> dict[str, str]:
    """
    Return the values that are written for a SYN, by path.

    Args:
        packet: the SYN, over IPv4.
        random: 16 bits.
    """
    base = f"{connection(packet)}/syn"
    return {
        f"{base}/tx_wnd": str(packet.window),
        f"{base}/sequence": str(_signed(packet.sequence)),
        f"{base}/options": options(packet.options),
        f"{base}/tx_isn": str(TX_ISN + random),
        f"{base}/rx_wnd": str(RX_WND),
        f"{base}/rx_wnd_scaleoffer": str(RX_WND_SCALEOFFER),
    }


def options(octets: bytes) -> str:
    """Return TCP options (RFC 9293, 3.1) as an s-expression, in OCaml's shortest form."""
    return "".join(_written(list(_options(octets))))


def _options(octets: bytes) -> Iterator[Expression]:
    """Yield each option as the original Synjitsu's TCP stack names it, up to the first truncated one."""
    while octets and octets[0]:
        if octets[0] == 1:
            yield "Noop"
            octets = octets[1:]
            continue
        if len(octets) < 2 or not 2 <= octets[1] <= len(octets):
            return
        kind, value, octets = octets[0], octets[2 : octets[1]], octets[octets[1] :]
        if kind == 2 and len(value) == 2:
            yield ["MSS", str(int.from_bytes(value))]
        elif kind == 3 and len(value) == 1:
            yield ["Window_size_shift", str(value[0])]
        elif kind == 4 and not value:
            yield "SACK_ok"
        elif kind == 5 and value and len(value) % 8 == 0:
            edges = struct.unpack(f">{len(value) // 4}i", value)
            yield ["SACK", [[str(left), str(right)] for left, right in zip(edges[::2], edges[1::2], strict=True)]]
        elif kind == 8 and len(value) == 8:
            yield ["Timestamp", *map(str, struct.unpack(">ii", value))]
        else:
            yield ["Unknown", str(kind), value]


def _written(expression: Expression, *, spaced: bool = False) -> Iterator[str]:
    """Yield the parts of an s-expression; *spaced* if a plain atom needs a space before it."""
    if isinstance(expression, list):
        yield "("
        after_plain = False
        for part in expression:
            yield from _written(part, spaced=after_plain)
            after_plain = isinstance(part, str) or (isinstance(part, bytes) and not _quoted(part))
        yield ")"
    elif isinstance(expression, bytes) and _quoted(expression):
        yield '"'
        for octet in expression:
            yield _ESCAPES.get(octet) or (chr(octet) if 0x20 <= octet < 0x7F else f"\\{octet:03d}")
        yield '"'
    else:
        yield " " * spaced
        yield expression if isinstance(expression, str) else expression.decode("ascii")


def _quoted(atom: bytes) -> bool:
    return not atom or any(octet in _QUOTE or not 0x20 <= octet < 0x7F for octet in atom)


def _signed(number: int) -> int:
    """Return an unsigned 32-bit number as OCaml prints an int32."""
    return number - 2**32 if number >= 2**31 else number


def _dashed(ip: bytes) -> str:
    return str(IPv4Address(ip)).replace(".", "-")
