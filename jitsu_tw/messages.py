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

Every command may be sent again without harm. Addresses and MACs are text, as people write them. Nothing here does I/O.
"""

from __future__ import annotations

from typing import Final

from twisted.protocols import amp

#: Changed when an older side would misunderstand a newer one.
VERSION: Final = 2

#: How many stand-ins one answer to `Status` tells of: a value in AMP has at most 65,535 octets.
PAGE: Final = 250


class WrongVersion(Exception):  # noqa: N818
    """The two are of different versions; the message names both."""


class Refused(Exception):  # noqa: N818
    """What was asked for cannot be done; the message says why."""


_ERRORS: Final = {WrongVersion: b"WRONG_VERSION", Refused: b"REFUSED"}


class Hello(amp.Command):
    """
    The first message; nothing else is understood before. *secret* is empty where Synjitsu has none.

    What came after version 1 is optional, so that an older side is told that it is, and not of an error.
    """

    arguments = [(b"version", amp.Integer()), (b"secret", amp.Unicode(optional=True))]  # noqa: RUF012
    errors = _ERRORS


class Announce(amp.Command):
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
        (b"ip", amp.Unicode()),
        (b"macs", amp.ListOf(amp.Unicode())),
        (b"asleep", amp.Boolean()),
        (b"runs", amp.Boolean()),
        (b"handover", amp.Unicode()),
        (b"ports", amp.ListOf(amp.Integer(), optional=True)),
        (b"wake_udp", amp.ListOf(amp.Integer())),
        (b"domid", amp.Integer(optional=True)),
        (b"knock", amp.Integer(optional=True)),
        (b"keeps", amp.Boolean()),
    ]
    errors = _ERRORS


class AnnouncedAll(amp.Command):
    """That was everything that Jitsu has to announce at its beginning."""

    errors = _ERRORS


class Ready(amp.Command):
    """The VM, whose MACs these are (none: those announced), takes its packets now. The held ones are handed over."""

    arguments = [(b"ip", amp.Unicode()), (b"macs", amp.ListOf(amp.Unicode()))]  # noqa: RUF012
    errors = _ERRORS


class Withdraw(amp.Command):
    """Stand in for an address no longer; what is held is dropped. *failed*: because the VM's start failed."""

    arguments = [(b"ip", amp.Unicode()), (b"failed", amp.Boolean())]  # noqa: RUF012
    errors = _ERRORS


class Summon(amp.Command):
    """To Jitsu: *source* sends to a VM that is asleep."""

    arguments = [(b"ip", amp.Unicode()), (b"source", amp.Unicode())]  # noqa: RUF012


class Seen(amp.Command):
    """To Jitsu: the guest itself has announced its address. It is no sign that it is ready."""

    arguments = [(b"ip", amp.Unicode())]  # noqa: RUF012


class Listens(amp.Command):
    """To Jitsu: the guest has answered at the port that is knocked at. What was held has been handed over, or kept."""

    arguments = [(b"ip", amp.Unicode())]  # noqa: RUF012


class Elsewhere(amp.Command):
    """To Jitsu: the guest uses the address *found* in place of *ip*; where *found* is empty, it uses *ip* by now."""

    arguments = [(b"ip", amp.Unicode()), (b"found", amp.Unicode())]  # noqa: RUF012


class Counters(amp.Command):
    """How many packets there have been of each kind, since Synjitsu began; and how many are held now."""

    response = [(b"counters", amp.AmpList([(b"name", amp.Unicode()), (b"count", amp.Integer())]))]  # noqa: RUF012
    errors = _ERRORS


class Status(amp.Command):
    """Who is stood in for, at most `PAGE` of them; *after* is the last of the page before, or empty."""

    arguments = [(b"after", amp.Unicode())]  # noqa: RUF012
    response = [  # noqa: RUF012
        (
            b"standins",
            amp.AmpList(
                [
                    (b"ip", amp.Unicode()),
                    (b"mac", amp.Unicode()),
                    (b"state", amp.Unicode()),
                    (b"handover", amp.Unicode()),
                    (b"held", amp.Integer()),
                ]
            ),
        )
    ]
    errors = _ERRORS
