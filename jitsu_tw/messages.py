"""
The AMP commands between Jitsu and Synjitsu, over a UNIX socket or TLS.

The conversation, begun by Jitsu::

    Jitsu                                    Synjitsu
    Hello(version, secret)           ->      WrongVersion or Refused ends it
    Announce | Ready, for each VM    ->      on each connection: either side may have been restarted
    AnnouncedAll                     ->      forgets addresses of earlier connections that were not announced again
    Announce, Ready, Withdraw        ->      as VMs come and go
                                     <-      Summon, Seen, Listens, Elsewhere, Flows
    Packets, Status, Counters        ->

Every command may be sent again without harm. Addresses and MACs are text, as people write them.

Neither side trusts the other. The values that a message may have are declared here, for both sides: a value out of
range is refused with one log line, before any value is used, and a `Peer` that keeps sending such messages is cut off.
"""

from __future__ import annotations

import re
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.defer import fail
from twisted.protocols import amp

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.logger import Logger

#: Changed when an older side would misunderstand a newer one.
VERSION: Final = 4

#: How many stand-ins one answer to `Status` has: a value in AMP has at most 65,535 octets.
PAGE: Final = 250

#: The most keys of one message, with AMP's own; with 65,535 octets in a value, this bounds a message's size.
MOST_KEYS: Final = 20

#: How many malformed messages one connection may send until it is cut off.
MOST_MALFORMED: Final = 8

#: How many lines about peers with malformed messages are logged in a minute.
MOST_LINES: Final = 10

#: Seconds for which one connection is read in one iteration of the reactor: a peer that sends very much delays itself.
SLICE: Final = 0.002

#: The most entries of a list, and characters of a text, in a message.
MOST_ENTRIES: Final = 1024
LONGEST: Final = 1024

_MAC: Final = re.compile("[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


class WrongVersion(Exception):  # noqa: N818
    """Jitsu and Synjitsu have different versions; the message names both."""


class Refused(Exception):  # noqa: N818
    """A command cannot be carried out; the message has the reason."""


#: The exceptions from a command that the other side refuses, or answers in a malformed way.
NO_ANSWER: Final = (amp.AmpError, Refused, WrongVersion)

_ERRORS: Final = {WrongVersion: b"WRONG_VERSION", Refused: b"REFUSED"}


class Address(amp.Unicode):
    """An IP address."""

    def __init__(self, *, none: bool = False) -> None:
        """Declare an address; with *none*, it may be empty."""
        super().__init__()
        self._none = none

    def fromString(self, inString: bytes) -> str:  # noqa: N802, N803 -- AMP's
        """Return the text. Raises ValueError if it is malformed."""
        text: str = super().fromString(inString)
        if text or not self._none:
            try:
                ip_address(text)
            except ValueError:
                raise ValueError(f"{text[:50]!r} is no IP address") from None
        return text


class Mac(amp.Unicode):
    """A MAC."""

    def __init__(self, *, none: bool = False) -> None:
        """Declare a MAC; with *none*, it may be empty."""
        super().__init__()
        self._none = none

    def fromString(self, inString: bytes) -> str:  # noqa: N802, N803 -- AMP's
        """Return the text. Raises ValueError if it is malformed."""
        text: str = super().fromString(inString)
        if _MAC.fullmatch(text) is None and (text or not self._none):
            raise ValueError(f"{text[:50]!r} is no MAC address")
        return text


class Word(amp.Unicode):
    """A text of `LONGEST` characters at most."""

    def fromString(self, inString: bytes) -> str:  # noqa: N802, N803 -- AMP's
        """Return the text. Raises ValueError if it is too long."""
        text: str = super().fromString(inString)
        if len(text) > LONGEST:
            raise ValueError(f"a text has {LONGEST} characters at most")
        return text


class Number(amp.Integer):
    """A whole number from *least* to *most*."""

    def __init__(self, least: int, most: int, *, optional: bool = False) -> None:
        """Declare a number."""
        super().__init__(optional=optional)
        self._least, self._most = least, most

    def fromString(self, inString: bytes) -> int:  # type: ignore[override] # noqa: N802, N803 -- AMP's
        """Return the number. Raises ValueError if it is none, or out of range."""
        if not (inString.isdigit() and len(inString) < 20 and self._least <= int(inString) <= self._most):
            raise ValueError(f"{inString[:50]!r} is no number from {self._least} to {self._most}")
        return int(inString)


class Many(amp.ListOf):
    """A list of `MOST_ENTRIES` entries at most."""

    def fromString(self, inString: bytes) -> list[Any]:  # noqa: N802, N803 -- AMP's
        """Return the list. Raises ValueError if it is too long, or an entry is malformed."""
        values: list[Any] = super().fromString(inString)
        if len(values) > MOST_ENTRIES:
            raise ValueError(f"{len(values)} entries are more than {MOST_ENTRIES}")
        return values


#: Ports, and Xen's numbers of guests (xen/include/public/xen.h, DOMID_FIRST_RESERVED).
PORT: Final = Number(1, 65535)
LAST_DOMID: Final = 0x7FEF

#: The greatest value of a counter.
LAST_COUNT: Final = 2**63


class Complaints:
    """Logs mistakes of peers, at most `MOST_LINES` lines in a minute: a peer may make mistakes for ever."""

    def __init__(self, log: Logger, seconds: Callable[[], float] = time.monotonic) -> None:
        """Log with *log*; *seconds* returns the time."""
        self._log, self._seconds = log, seconds
        self._since, self._lines = seconds(), 0

    def warn(self, words: str, **values: Any) -> None:
        """Log a warning, unless there were `MOST_LINES` in this minute."""
        now = self._seconds()
        if now >= self._since + 60:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines <= MOST_LINES:
            self._log.warn(words, **values)
        elif self._lines == MOST_LINES + 1:
            self._log.warn("further such lines are not logged for a minute")


class Peer(amp.AMP):
    """
    One end of a connection, which does not trust the other.

    Attributes:
        complaints: logs the other end's mistakes.
    """

    complaints: ClassVar[Complaints]
    transport: Any
    paused: bool
    _malformed = _keys = 0
    _is_cut = False
    _until = 0.0

    @property
    def reactor(self) -> Any:
        """Return the reactor."""
        raise NotImplementedError

    def callLater(self, *what: Any) -> Any:  # noqa: N802 -- TimeoutMixin's
        """Schedule a call on the reactor."""
        return self.reactor.callLater(*what)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Handle octets, for `SLICE` seconds in this iteration of the reactor."""
        self._until = self.reactor.seconds() + SLICE
        super().dataReceived(data)

    def _go_on(self) -> None:
        if self.transport is not None:  # else the connection is lost
            self.resumeProducing()

    def strange(self, reason: str) -> None:
        """Count a malformed message; log the first one, and cut the connection off after `MOST_MALFORMED`."""
        self._malformed += 1
        if self._malformed == 1:
            self.complaints.warn("{peer} sent a malformed message: {reason}", peer=self._peer(), reason=reason)
        elif self._malformed >= MOST_MALFORMED:
            self.cut(reason)

    def cut(self, reason: str = "") -> None:
        """Abort the connection; log the *reason*, if there is one."""
        if not self._is_cut:
            self._is_cut = True
            if reason:
                self.complaints.warn("{peer} is cut off: {reason}", peer=self._peer(), reason=reason)
            self.transport.abortConnection()

    def _peer(self) -> str:
        peer = self.transport.getPeer()
        return getattr(peer, "host", "") or "the peer on the UNIX socket"

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Handle a key or a value; pause when the time of this iteration of the reactor is used up."""
        if not self._is_cut:
            super().stringReceived(string)
            if self.reactor.seconds() >= self._until and not self.paused:
                self.pauseProducing()
                self.callLater(0, self._go_on)

    def lengthLimitExceeded(self, length: int) -> None:  # noqa: N802
        """Refuse a key or a value that is too long."""
        self.cut(f"a key of {length} octets")

    def proto_init(self, string: bytes) -> str:
        """Handle the first key of a message."""
        self._keys = 0
        return str(super().proto_init(string))

    def proto_key(self, string: bytes) -> str:
        """Handle a key, or the end of a message."""
        self._keys += 1
        if self._keys > MOST_KEYS:
            self.cut(f"a message has {MOST_KEYS} keys at most")
            return "key"
        return str(super().proto_key(string))

    def ampBoxReceived(self, box: Any) -> None:  # noqa: N802
        """Handle a message; cut the connection off if it is neither a command nor an answer to one."""
        try:
            if amp.COMMAND in box and amp.ASK not in box:
                raise amp.NoEmptyBoxes  # noqa: TRY301 -- as useless as an empty one: all commands want an answer
            super().ampBoxReceived(box)
        except (LookupError, amp.NoEmptyBoxes):
            self.cut("a message that is neither a command of AMP nor an answer to one")

    def dispatchCommand(self, box: Any) -> Deferred[Any]:  # noqa: N802
        """Carry out a command; refuse one with an unknown name."""
        name: bytes = box[amp.COMMAND]
        if not name.isascii() or self.locateResponder(name) is None:
            reason = f"{name[:50]!r} is no command"
            self.strange(reason)
            return fail(amp.RemoteAmpError(amp.UNHANDLED_ERROR_CODE, reason))
        answer: Deferred[Any] = super().dispatchCommand(box)
        return answer


def refusal(reason: str) -> amp.RemoteAmpError:
    """Return the error to raise while a message is parsed, for which the other side gets `Refused` with *reason*."""
    return amp.RemoteAmpError(_ERRORS[Refused], reason)


class Command(amp.Command):
    """A command whose values are checked before it is carried out."""

    @classmethod
    def parseArguments(cls, box: Any, protocol: Any) -> dict[str, Any]:  # noqa: N802
        """
        Return the values of a command.

        Raises:
            RemoteAmpError: they are not as declared; the other side gets `Refused`.
        """
        try:
            values: dict[str, Any] = super().parseArguments(box, protocol)
        except (LookupError, TypeError, ValueError) as error:
            reason = cls._why(error)
            protocol.strange(reason)
            raise refusal(reason) from error
        return values

    @classmethod
    def parseResponse(cls, box: Any, protocol: Any) -> dict[str, Any]:  # noqa: N802
        """
        Return the values of an answer.

        Raises:
            Refused: they are not as declared.
        """
        try:
            values: dict[str, Any] = super().parseResponse(box, protocol)
        except (LookupError, TypeError, ValueError) as error:
            reason = f"the answer is malformed: {cls._why(error)}"
            protocol.strange(reason)
            raise Refused(reason) from error
        return values

    @classmethod
    def _why(cls, error: Exception) -> str:
        return f"{cls.__name__}: {f'{error} is missing' if isinstance(error, LookupError) else error}"[:200]


class Hello(Command):
    """
    The first message; before it, no other is accepted. *secret* is empty where Synjitsu has none.

    Values that version 1 did not have are optional, so that an older side gets `WrongVersion`, and no other error.
    """

    arguments = [(b"version", Number(0, 1000)), (b"secret", Word(optional=True))]  # noqa: RUF012
    errors = _ERRORS


class Announce(Command):
    """
    Stand in for an address.

    The values: *macs* are the guest's, empty while they are not known; *asleep*: a SYN summons the VM (else it boots
    already); *runs*: its guest may run, and read broadcasts; *handover*: ``wire`` or ``xenstore``; *ports*: the TCP
    ports whose SYNs start the VM (all, if absent); *wake_udp*: the UDP ports whose first datagrams are held and start
    the VM; *domid*: Xen's number of the guest; *knock*: a TCP port to probe: Synjitsu sends SYNs of its host to it, and
    hands over as soon as one is answered, but if *asleep*, it only sends `Listens`: the guest boots for nobody;
    *memory*: the memory of the guest, which does not run, is kept (paused or saved, or about to be), so that its
    connections go on; false: it is gone; absent: neither is known.
    """

    arguments = [  # noqa: RUF012
        (b"ip", Address()),
        (b"macs", Many(Mac())),
        (b"asleep", amp.Boolean()),
        (b"runs", amp.Boolean()),
        (b"handover", Word()),
        (b"ports", Many(PORT, optional=True)),
        (b"wake_udp", Many(PORT)),
        (b"domid", Number(0, LAST_DOMID, optional=True)),
        (b"knock", Number(1, 65535, optional=True)),
        (b"memory", amp.Boolean(optional=True)),
    ]
    errors = _ERRORS


class AnnouncedAll(Command):
    """Jitsu has announced all its addresses on this connection."""

    errors = _ERRORS


class Ready(Command):
    """Hand over an address to its guest, with the held packets. *macs* are the guest's; empty: those announced."""

    arguments = [(b"ip", Address()), (b"macs", Many(Mac()))]  # noqa: RUF012
    errors = _ERRORS


class Withdraw(Command):
    """Stop standing in for an address, and drop the held packets. *failed*: because the VM's start failed."""

    arguments = [(b"ip", Address()), (b"failed", amp.Boolean())]  # noqa: RUF012
    errors = _ERRORS


class Summon(Command):
    """
    To Jitsu: *source* has sent a SYN or a datagram to a VM that is asleep, or data of an open connection (*flow*).

    The handshake of a connection has proven its client's address.
    """

    arguments = [(b"ip", Address()), (b"source", Address()), (b"flow", amp.Boolean(optional=True))]  # noqa: RUF012


class Seen(Command):
    """To Jitsu: the guest itself has announced its address. It may not be ready yet."""

    arguments = [(b"ip", Address())]  # noqa: RUF012


class Listens(Command):
    """To Jitsu: the guest has answered a probe. Unless it boots for nobody, its packets have been handed over."""

    arguments = [(b"ip", Address())]  # noqa: RUF012


class Elsewhere(Command):
    """To Jitsu: the guest uses the address *found* instead of *ip*; if *found* is empty, it uses *ip* now."""

    arguments = [(b"ip", Address()), (b"found", Address(none=True))]  # noqa: RUF012


class Flows(Command):
    """
    To Jitsu: *open* TCP connections of the VM are open; the latest sign of life of any was *silent* seconds ago.

    It is sent when that changes, at most once a second for one address, and after an `Announce` or `Ready` on a new
    connection, before that is answered. Before the first one, no connection is open.
    """

    arguments = [(b"ip", Address()), (b"open", Number(0, LAST_COUNT)), (b"silent", Number(0, LAST_COUNT))]  # noqa: RUF012
    errors = _ERRORS


class Packets(Command):
    """Return how many packets of conversations the guest at *ip* has exchanged; a count may begin again at 0."""

    arguments = [(b"ip", Address())]  # noqa: RUF012
    response = [(b"count", Number(0, LAST_COUNT))]  # noqa: RUF012
    errors = _ERRORS


class Counters(Command):
    """Return how many packets of each kind there have been since Synjitsu's start, and how many are held now."""

    response = [(b"counters", amp.AmpList([(b"name", Word()), (b"count", Number(0, LAST_COUNT))]))]  # noqa: RUF012
    errors = _ERRORS


class Status(Command):
    """Return the stand-ins, at most `PAGE` of them; *after* is the last address of the page before, or empty."""

    arguments = [(b"after", Address(none=True))]  # noqa: RUF012
    response = [  # noqa: RUF012
        (
            b"standins",
            amp.AmpList(
                [
                    (b"ip", Address()),
                    (b"mac", Mac(none=True)),
                    (b"state", Word()),
                    (b"handover", Word()),
                    (b"held", Number(0, LAST_COUNT)),
                ]
            ),
        )
    ]
    errors = _ERRORS
