"""
What Jitsu and Synjitsu say to each other: AMP commands, over a UNIX socket or TLS.

The conversation, begun by Jitsu::

    Jitsu                                    Synjitsu
    Hello(version, secret)           ->      WrongVersion or Refused ends it
    Announce | Ready, for each VM    ->      all that Jitsu has announced before: either side may have started anew
    AnnouncedAll                     ->      what Jitsu announced before and has not now is forgotten
    Announce, Ready, Withdraw        ->      as VMs come and go
                                     <-      Summon, Seen, Listens, Elsewhere
    Status, Counters                 ->

Every command may be sent again without harm. Addresses and MACs are text, as people write them.

Neither side trusts the other. What a message may say is declared here, for both: a value out of range is refused in one
line, before any of it is used, and a `Peer` that goes on like that is cut off.
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
VERSION: Final = 2

#: How many stand-ins one answer to `Status` tells of: a value in AMP has at most 65,535 octets.
PAGE: Final = 250

#: Keys in one message, with AMP's own; with 65,535 octets in a value, this bounds a message's size.
MOST_KEYS: Final = 20

#: How many messages of one connection may make no sense until it is cut off.
MOST_STRANGE: Final = 8

#: How many lines about peers that make no sense are logged in a minute.
MOST_LINES: Final = 10

#: Entries of a list, and characters of a text, of a message.
MOST_ENTRIES: Final = 1024
LONGEST: Final = 1024

_MAC: Final = re.compile("[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


class WrongVersion(Exception):  # noqa: N818
    """The two are of different versions; the message names both."""


class Refused(Exception):  # noqa: N818
    """What was asked for cannot be done; the message says why."""


_ERRORS: Final = {WrongVersion: b"WRONG_VERSION", Refused: b"REFUSED"}


class Address(amp.Unicode):
    """An IP address, or, if *none* is a choice, nothing."""

    def __init__(self, *, none: bool = False) -> None:
        """Declare one."""
        super().__init__()
        self._none = none

    def fromString(self, inString: bytes) -> str:  # noqa: N802, N803 -- AMP's
        """Return it as it was written."""
        text: str = super().fromString(inString)
        if text or not self._none:
            try:
                ip_address(text)
            except ValueError:
                raise ValueError(f"{text[:50]!r} is no IP address") from None
        return text


class Mac(amp.Unicode):
    """A MAC, or, if *none* is a choice, nothing."""

    def __init__(self, *, none: bool = False) -> None:
        """Declare one."""
        super().__init__()
        self._none = none

    def fromString(self, inString: bytes) -> str:  # noqa: N802, N803 -- AMP's
        """Return it as it was written."""
        text: str = super().fromString(inString)
        if _MAC.fullmatch(text) is None and (text or not self._none):
            raise ValueError(f"{text[:50]!r} is no MAC address")
        return text


class Word(amp.Unicode):
    """Text that is not long."""

    def fromString(self, inString: bytes) -> str:  # noqa: N802, N803 -- AMP's
        """Return it."""
        text: str = super().fromString(inString)
        if len(text) > LONGEST:
            raise ValueError(f"a text has {LONGEST} characters at most")
        return text


class Number(amp.Integer):
    """A whole number from *least* to *most*."""

    def __init__(self, least: int, most: int, *, optional: bool = False) -> None:
        """Declare one."""
        super().__init__(optional=optional)
        self._least, self._most = least, most

    def fromString(self, inString: bytes) -> int:  # type: ignore[override] # noqa: N802, N803 -- AMP's
        """Return it."""
        if not (inString.isdigit() and len(inString) < 20 and self._least <= int(inString) <= self._most):
            raise ValueError(f"{inString[:50]!r} is no number from {self._least} to {self._most}")
        return int(inString)


class Many(amp.ListOf):
    """A list that is not long."""

    def fromString(self, inString: bytes) -> list[Any]:  # noqa: N802, N803 -- AMP's
        """Return it."""
        values: list[Any] = super().fromString(inString)
        if len(values) > MOST_ENTRIES:
            raise ValueError(f"{len(values)} entries are more than {MOST_ENTRIES}")
        return values


#: Ports, and Xen's numbers of guests (xen/include/public/xen.h, DOMID_FIRST_RESERVED).
PORT: Final = Number(1, 65535)
LAST_DOMID: Final = 0x7FEF

#: What is counted.
LAST_COUNT: Final = 2**63


class Complaints:
    """Logs what peers do wrong, but not more than `MOST_LINES` in a minute: they may go on for ever."""

    def __init__(self, log: Logger, seconds: Callable[[], float] = time.monotonic) -> None:
        """Log by *log*; *seconds* tells the time."""
        self._log, self._seconds = log, seconds
        self._since, self._lines = seconds(), 0

    def tell(self, words: str, **values: Any) -> None:
        """Log a line, unless there were enough."""
        now = self._seconds()
        if now >= self._since + 60:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines <= MOST_LINES:
            self._log.warn(words, **values)
        elif self._lines == MOST_LINES + 1:
            self._log.warn("more like that is not logged for a minute")


class Peer(amp.AMP):
    """
    One end of a conversation, which does not trust the other.

    Attributes:
        complaints: where it is told what is wrong with others.
    """

    complaints: ClassVar[Complaints]
    transport: Any
    _strange = _keys = 0
    _is_cut = False

    def strange(self, reason: str) -> None:
        """Take note of a message that makes no sense; cut the connection off if there are many of them."""
        self._strange += 1
        if self._strange == 1:
            self.complaints.tell("{peer} is not understood: {reason}", peer=self._peer(), reason=reason)
        elif self._strange >= MOST_STRANGE:
            self.cut(reason)

    def cut(self, reason: str = "") -> None:
        """Cut the connection off, for a *reason* that is logged."""
        if not self._is_cut:
            self._is_cut = True
            if reason:
                self.complaints.tell("{peer} is cut off: {reason}", peer=self._peer(), reason=reason)
            self.transport.abortConnection()

    def _peer(self) -> str:
        peer = self.transport.getPeer()
        return getattr(peer, "host", "") or "the peer on the UNIX socket"

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        """Take a key or a value, unless the connection is cut off."""
        if not self._is_cut:
            super().stringReceived(string)

    def proto_init(self, string: bytes) -> str:
        """Take the first key of a message."""
        self._keys = 0
        return str(super().proto_init(string))

    def proto_key(self, string: bytes) -> str:
        """Take a key, or the end of a message."""
        self._keys += 1
        if self._keys > MOST_KEYS:
            self.cut(f"a message has {MOST_KEYS} keys at most")
            return "key"
        return str(super().proto_key(string))

    def ampBoxReceived(self, box: Any) -> None:  # noqa: N802
        """Take a message; one that is neither a question nor an answer to one of ours ends the conversation."""
        try:
            if amp.COMMAND in box and amp.ASK not in box:
                raise amp.NoEmptyBoxes  # noqa: TRY301 -- it is as useless: all our questions want an answer
            super().ampBoxReceived(box)
        except (LookupError, amp.NoEmptyBoxes):
            self.cut("an answer to no question, or none of AMP's messages")

    def dispatchCommand(self, box: Any) -> Deferred[Any]:  # noqa: N802
        """Carry a command out, if there is one of that name."""
        name: bytes = box[amp.COMMAND]
        if not name.isascii() or self.locateResponder(name) is None:
            reason = f"{name[:50]!r} is no command"
            self.strange(reason)
            return fail(amp.RemoteAmpError(amp.UNHANDLED_ERROR_CODE, reason))
        answer: Deferred[Any] = super().dispatchCommand(box)
        return answer


def refusal(reason: str) -> amp.RemoteAmpError:
    """Return what is raised, while a message is read, for the other side to get `Refused` with *reason*."""
    return amp.RemoteAmpError(_ERRORS[Refused], reason)


class Command(amp.Command):
    """A command whose values are looked at before it is carried out."""

    @classmethod
    def parseArguments(cls, box: Any, protocol: Any) -> dict[str, Any]:  # noqa: N802
        """Return the values; refuse those that are not as declared."""
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
            reason = f"the answer makes no sense: {cls._why(error)}"
            protocol.strange(reason)
            raise Refused(reason) from error
        return values

    @classmethod
    def _why(cls, error: Exception) -> str:
        return f"{cls.__name__}: {f'{error} is missing' if isinstance(error, LookupError) else error}"[:200]


class Hello(Command):
    """
    The first message; nothing else is understood before. *secret* is empty where Synjitsu has none.

    What came after version 1 is optional, so that an older side is told that it is, and not of an error.
    """

    arguments = [(b"version", Number(0, 1000)), (b"secret", Word(optional=True))]  # noqa: RUF012
    errors = _ERRORS


class Announce(Command):
    """
    Stand in for an address.

    Attributes of the message: *macs* are the guest's, none while they are not known; *asleep* says that a SYN
    summons the VM (else it boots already); *runs*, that its guest may run, and read what is broadcast; *handover*
    is ``wire`` or ``xenstore``; *ports*, the TCP ports that are worth a start (all, if absent); *wake_udp*, the UDP
    ports whose first datagrams are held; *domid*, Xen's number of the guest; *knock*, a TCP port that tells when it
    is ready: while it boots, Synjitsu sends SYNs of its host's own to it, and hands over as soon as one is
    answered; with *keeps* it only tells, and keeps what it holds until `Ready`.
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
        (b"keeps", amp.Boolean()),
    ]
    errors = _ERRORS


class AnnouncedAll(Command):
    """That was everything that Jitsu has to announce at its beginning."""

    errors = _ERRORS


class Ready(Command):
    """The VM, whose MACs these are (none: those announced), takes its packets now. The held ones are handed over."""

    arguments = [(b"ip", Address()), (b"macs", Many(Mac()))]  # noqa: RUF012
    errors = _ERRORS


class Withdraw(Command):
    """Stand in for an address no longer; what is held is dropped. *failed*: because the VM's start failed."""

    arguments = [(b"ip", Address()), (b"failed", amp.Boolean())]  # noqa: RUF012
    errors = _ERRORS


class Summon(Command):
    """To Jitsu: *source* sends to a VM that is asleep."""

    arguments = [(b"ip", Address()), (b"source", Address())]  # noqa: RUF012


class Seen(Command):
    """To Jitsu: the guest itself has announced its address. It is no sign that it is ready."""

    arguments = [(b"ip", Address())]  # noqa: RUF012


class Listens(Command):
    """To Jitsu: the guest has answered at the port that is knocked at. What was held has been handed over, or kept."""

    arguments = [(b"ip", Address())]  # noqa: RUF012


class Elsewhere(Command):
    """To Jitsu: the guest uses the address *found* in place of *ip*; where *found* is empty, it uses *ip* by now."""

    arguments = [(b"ip", Address()), (b"found", Address(none=True))]  # noqa: RUF012


class Counters(Command):
    """How many packets there have been of each kind, since Synjitsu began; and how many are held now."""

    response = [(b"counters", amp.AmpList([(b"name", Word()), (b"count", Number(0, LAST_COUNT))]))]  # noqa: RUF012
    errors = _ERRORS


class Status(Command):
    """Who is stood in for, at most `PAGE` of them; *after* is the last of the page before, or empty."""

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
