"""AMP between Jitsu and Synjitsu, both ways: malformed messages are refused, and no internal error is logged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import atheris
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.python.failure import Failure

from jitsu_tw import messages
from jitsu_tw.synjitsu_client import SynjitsuClient, _Conversation
from synjitsu_tw.conversation import Conversation
from synjitsu_tw.service import Synjitsu
from test.fuzz import faults
from test.hostile.messages import ANNOUNCE, ROWS
from test.programs.test_tap import SECRET
from test.support.fakepcap import FakePcap
from test.unit.synjitsu.test_conversation import FakeKernel

_COMMANDS: Final = (
    messages.Hello, messages.Announce, messages.AnnouncedAll, messages.Ready, messages.Withdraw, messages.Summon,
    messages.Seen, messages.Listens, messages.Elsewhere, messages.Counters, messages.Status,
)  # fmt: skip

_VALUES: Final = (
    b"", b"0", b"-1", b"80", b"65536", b"99999999999999999999", b"nan", b"True", b"False", b"wire", b"xenstore",
    b"10.0.0.10", b"10.0.0.1", b"fd00::1", b"fe80::1%x", b"\xff", b"\x1b[31m", b"\0\x1152:54:00:00:00:10", b"\0\2xx",
    b"\0\00280", b"\xff\xff", b"\0\3999\0\01265536",
)  # fmt: skip

#: The first octet says who reads; the second, whether the rest is the octets on the wire or is to be made into boxes.
SEEDS: Final = [
    b"\1\0\0\4_ask\0\0011\0\xf1_command\0\6Summ" + b"\xff" * 20,  # a key longer than AMP has them, in an answer's place
    *(bytes([number, *range(100)]) for number in range(8)),
    *(bytes([row.to != "synjitsu", 0]) + amp.Box({**row.input, b"_ask": b"1"}).serialize()
      for row in ROWS if isinstance(row.input, dict)),
]  # fmt: skip

WORDS: Final = [
    b"_ask", b"_answer", b"_error", b"_command", *_VALUES[1:], *ANNOUNCE,
    *(command.commandName for command in _COMMANDS), *(name for command in _COMMANDS for name, _ in command.arguments),
]  # fmt: skip

def _synjitsu(clock: Clock) -> Synjitsu:
    kernel: Any = FakeKernel()
    kernel.own = ("10.0.0.1/24", "fd00::1/64")
    synjitsu = Synjitsu(["br0"], clock, kernel=kernel, opens=FakePcap, secret=SECRET)
    synjitsu._read_addresses()
    return synjitsu


def _hear(*_: object) -> None:
    """Take the messages that Jitsu gets."""


def _box(data: Any) -> bytes:
    """Return a box that is almost valid."""
    command = data.PickValueInList(list(_COMMANDS))
    box = {b"_command": command.commandName, b"_ask": b"1"}
    for name, _ in command.arguments:
        good = ANNOUNCE.get(name)
        if good is None or data.ConsumeIntInRange(0, 3) == 0:
            good = data.PickValueInList(list(_VALUES)) if data.ConsumeBool() else data.ConsumeBytes(12)
        if data.ConsumeIntInRange(0, 15):
            box[name] = good
    return bytes(amp.Box(box).serialize())


def one(octets: bytes) -> None:
    """Send something to one of them; then the next connection works as well as any."""
    if len(octets) < 2:
        return
    clock = Clock()
    to_jitsu, made, rest = octets[0] & 1, octets[1] & 1, octets[2:]
    factory: Any
    if to_jitsu:
        factory = SimpleNamespace(standin=SynjitsuClient("unix:/nonexistent", _hear, _hear, clock, _hear, _hear))
    else:
        factory = _synjitsu(clock).factory
    side: Any = _Conversation() if to_jitsu else Conversation()
    side.factory = factory
    transport = StringTransport()
    side.makeConnection(transport)
    if not to_jitsu and octets[0] & 2:
        hello = {b"_command": b"Hello", b"version": str(messages.VERSION).encode(), b"secret": SECRET.encode()}
        side.dataReceived(amp.Box(hello | {b"_ask": b"1"}).serialize())
    transport.clear()
    if made:
        data = atheris.FuzzedDataProvider(rest)
        while data.remaining_bytes() and not transport.disconnecting:
            side.dataReceived(_box(data))
    else:
        side.dataReceived(rest)
    clock.pump([0.5] * 3)
    said = transport.value()
    side.connectionLost(Failure(ConnectionDone()))
    assert b"UNKNOWN" not in said, said
    faults.check()
