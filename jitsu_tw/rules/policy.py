"""
Which clients may start VMs, and how many. Pure: the time is an argument, in seconds of one clock that never goes back.

Only a start is decided here: a VM that is up, or on its way up, is refused to no client. So a decision is about a VM
that is down, once, and the clients that join its activation cost nothing.

A network's budget is a bucket that holds `Policy.starts_per_minute` starts and is refilled evenly within a minute. In
any t seconds a network starts at most ``starts_per_minute * (1 + t / 60)`` VMs. Only what is admitted is spent, and
remembered: to be refused costs neither budget nor memory.

What forged UDP gives, where `verify_source` is off: a part of each limit. A client that has not proven its address, by
TCP or a DNS cookie, starts VMs only while its network has spent less than half of its budget, and while fewer than
three quarters of `max_running` run. After that it is asked for proof (`Verdict.UNPROVEN`), which an honest client gives
within a few round trips and a forger of addresses cannot give. So a forger starts VMs, but keeps no honest client from
starting others. With `verify_source` a forger starts nothing.

What many addresses of its own give an attacker: each further /24 or /56 has a budget of its own, as an honest one has;
what they can do together is limited by `max_running` and `max_booting`, not here. What they do not give: more memory
than `MOST_NETWORKS` buckets take (about 10 MB), a slower decision, or a loss for anybody else: a bucket that is dropped
is as good as full, so its network can only gain. To gain from that, an attacker must have had more than `MOST_NETWORKS`
starts in other networks within the minute.
"""

from __future__ import annotations

import enum
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.networks import Networks, network
from jitsu_tw.rules.buckets import MOST_NETWORKS, Buckets

if TYPE_CHECKING:
    from jitsu_tw.dns.wire import Source
    from jitsu_tw.networks import Network

#: The parts of a network's budget, and of `max_running`, that clients may use up without proof of their addresses; both
#: are rounded down, so that the rest is never nothing.
_UNPROVEN_STARTS: Final = Fraction(1, 2)
_UNPROVEN_RUNNING: Final = Fraction(3, 4)


class Verdict(enum.Enum):
    """Whether a VM may be started for a client; the value says why not, in words for the client (RFC 8914, 2)."""

    ADMITTED = "admitted"
    OUTSIDE = "this network may not start virtual machines"
    UNPROVEN = "a start needs proof of the address: TCP or a DNS cookie"
    FULL = "as many virtual machines run as may"
    OVER_BUDGET = "this network has used up its starts for now"


@attrs.define(eq=False)
class Policy:
    """
    The limits, and what each network has spent.

    Attributes:
        summon_from: the networks that may start VMs at all.
        starts_per_minute: how many VMs a network may start in a minute; 0 for no limit.
        verify_source: the client's address must be proven.
        max_running: how many VMs may run at once; 0 for no limit.
        makes_room: where as many run, an idle VM is stopped for one more, so that a start is not refused.
        most_networks: how many networks' budgets are remembered.
    """

    summon_from: tuple[Network, ...]
    starts_per_minute: int
    verify_source: bool
    max_running: int
    makes_room: bool = False
    most_networks: int = MOST_NETWORKS
    _inside: Networks = attrs.field(init=False)
    _budgets: Buckets = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make of the networks what can be asked quickly; all buckets are full."""
        self._inside = Networks(self.summon_from)
        self._budgets = Buckets(self.starts_per_minute, self.most_networks)

    def is_inside(self, address: bytes) -> bool:
        """Return whether a client at *address* may start VMs at all, and so keep them."""
        return address in self._inside

    def admit(self, source: Source, now: float, running: int, *, free: bool = False) -> Verdict:
        """
        Return whether *source* may start one more VM; if so, the start is spent.

        The first reason of `Verdict` that holds is given, budgets last: a client that is refused for another reason
        spends nothing. A client that could not start the VM with proof either is not asked for proof.

        Args:
            source: the client.
            now: the time, in seconds.
            running: how many VMs run, or are about to.
            free: nothing will be started this time, so nothing is spent.

        Returns:
            `Verdict.ADMITTED`, or why not.
        """
        if source.address not in self._inside:
            return Verdict.OUTSIDE
        if self.verify_source and not source.proven:
            return Verdict.UNPROVEN
        if 0 < self.max_running <= running and not self.makes_room:
            return Verdict.FULL
        if free:
            return Verdict.ADMITTED
        if self.max_running > 0 and not source.proven and running >= int(self.max_running * _UNPROVEN_RUNNING):
            return Verdict.UNPROVEN
        if self.starts_per_minute:
            most = self.starts_per_minute if source.proven else int(self.starts_per_minute * _UNPROVEN_STARTS)
            return self._spend(network(source.address), now, most)
        return Verdict.ADMITTED

    def _spend(self, whose: bytes, now: float, most: int) -> Verdict:
        """Take one start from the bucket of *whose* network, of which at most *most* starts may then be spent."""
        if not self._budgets.has(whose, now):
            return Verdict.OVER_BUDGET
        if not self._budgets.has(whose, now, most):
            return Verdict.UNPROVEN
        self._budgets.spend(whose, now)
        return Verdict.ADMITTED
