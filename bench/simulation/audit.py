"""
The account of what several Jitsus do with VMs, and the rules that it is audited by.

Every start, stop, question and fault is entered as it happens, on one clock, and a rule that is broken is told at once,
with the last that happened to that VM. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from math import inf
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Messages may be under way for so many seconds, on a busy machine.
UNDER_WAY: Final = 0.1

#: What a node that dies has answered in its last seconds, it may not have told: it tells once a second, and has to be
#: asked for it before a stop.
UNTOLD: Final = 3.0

#: Seconds after an answer is due until it is missed.
LATE: Final = 0.5

#: Seconds for which a guest may send, beyond its `idle`, until a stop is one in use.
UNCOUNTED: Final = 3.0

#: What is different in each of the reasons of one kind.
PLACES: Final = re.compile(r"http://\S+ |in \d+ s|HostnameAddress.*")

#: Events that are kept of each VM, and answers.
STORY: Final = 60
ANSWERS: Final = 200


@attrs.frozen
class Kind:
    """
    One of the VMs.

    Attributes:
        name: its.
        address: its.
        idle: as in its configuration.
        boot_time: seconds that its start takes.
        delay: seconds from then on until it is ready.
        lives_on: its start goes on when the node that has called for it dies.
    """

    name: str
    address: str
    idle: float
    boot_time: float = 0.0
    delay: float = 0.0
    lives_on: bool = True


@attrs.define
class Account:
    """
    What is known of one VM.

    Attributes:
        kind: which.
        at: the hosts that it runs on, or is about to.
        answers: when questions were sent, when answered with its address, and by which node.
        sends: since when its guest sends; None if it does not.
        down: when it went down.
        story: the last that happened.
    """

    kind: Kind
    at: set[str] = attrs.field(factory=set)
    answers: deque[tuple[float, float, str]] = attrs.field(factory=lambda: deque(maxlen=ANSWERS))
    sends: float | None = None
    down: float = -inf
    story: deque[str] = attrs.field(factory=lambda: deque(maxlen=STORY))


class Audit:
    """
    The accounts.

    Attributes:
        accounts: by the VM's name.
        wrong: the rules that were broken, each with what led there.
        counts: how often what happened.
    """

    def __init__(self, kinds: Mapping[str, Kind], now: Callable[[], float], heals: float) -> None:
        """Begin at *now*; after a fault, all is as it should be within *heals* seconds."""
        self.accounts = {name: Account(kind) for name, kind in kinds.items()}
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self._now, self._heals, self._begin = now, heals, now()
        self._troubles: dict[str, list[tuple[float, float]]] = {}
        self._disturbed = now()
        self._lasting = 0
        self._faults: deque[str] = deque(maxlen=12)

    def note(self, account: Account, words: str) -> None:
        """Enter something into a VM's story."""
        account.story.append(f"{self._now() - self._begin:9.3f} {words}")

    def against(self, rule: str, account: Account | None, words: str) -> None:
        """Enter that a rule was broken."""
        self.counts[f"BROKEN: {rule}"] += 1
        whose = f"{account.kind.name}: " if account else ""
        lines = [f"{rule}: {whose}{words} ({self._now() - self._begin:.3f} s after the beginning)"]
        if account is not None:
            lines += [repr(account.kind), *account.story]
        self.wrong.append("\n    ".join([*lines, "faults:", *self._faults]))
        self.tell(self.wrong[-1])

    def tell(self, words: str) -> None:
        """Print what is wrong, at once."""
        print(words, flush=True)

    # Faults.

    def fault(self, words: str, *nodes: str, lasting: bool = False) -> Callable[[], None]:
        """
        Hear that a fault begins, which troubles *nodes*; return what is to be called when it has ended.

        Args:
            words: that say what it is.
            nodes: whose answers do not count.
            lasting: names need not be answered until it has ended.
        """
        self.counts[f"fault: {words.partition(':')[0]}"] += 1
        begin, self._disturbed = self._now(), self._now()
        self._lasting += lasting
        self._faults.append(f"{begin - self._begin:9.3f} {words}")
        troubles = [self._troubles.setdefault(node, []) for node in nodes]
        for trouble in troubles:
            trouble.append((begin, inf))

        def ended() -> None:
            self._disturbed = self._now()
            self._lasting -= lasting
            self._faults.append(f"{self._disturbed - self._begin:9.3f} ended: {words}")
            for trouble in troubles:
                trouble[trouble.index((begin, inf))] = begin, self._now()

        return ended

    def was_fit(self, node: str, begin: float, end: float) -> bool:
        """Say whether a node was in no trouble from *begin* to *end*, nor just before."""
        return not any(
            begin < until + self._heals and since < end for since, until in self._troubles.get(node, ())
        )

    @property
    def is_calm(self) -> bool:
        """Whether the last fault is so long ago that every name must be answered."""
        return not self._lasting and self._now() > self._disturbed + self._heals

    # What the nodes do.

    def starts(self, name: str, host: str, node: str) -> None:
        """Hear that *node* has a VM started on *host*, where it does not run."""
        account = self.accounts[name]
        self.counts["starts"] += 1
        self.note(account, f"{node} starts it on {host}")
        if account.at:
            self.against("twice", account, f"{node} starts it on {host}, and it is on {', '.join(account.at)}")
        account.at.add(host)

    def runs(self, name: str, host: str) -> None:
        """Hear that a start is done."""
        self.note(self.accounts[name], f"runs on {host}")

    def in_vain(self, name: str, host: str) -> None:
        """Hear that a start has ended with the node that called for it."""
        account = self.accounts[name]
        self.counts["starts that ended with their node"] += 1
        self.note(account, f"does not start on {host}: its node is gone")
        account.at.discard(host)
        account.down = self._now()

    def stops(self, name: str, host: str, node: str) -> None:
        """Hear that *node* stops a VM that runs on *host*; "" for somebody else."""
        account, now = self.accounts[name], self._now()
        self.note(account, f"{node or 'somebody'} stops it on {host}")
        account.at.discard(host)
        account.down, sends, account.sends = now, account.sends, None
        if not node:
            return
        self.counts["stops"] += 1
        idle = account.kind.idle
        for asked, answered, by in account.answers:
            in_use = asked + idle > now + UNDER_WAY and answered < now - UNDER_WAY
            if in_use and self.was_fit(by, asked, min(answered + UNTOLD, now)):
                self.against("in use", account, f"{node} stops it {now - asked:.3f} s after {by} was asked for it")
                break
        if sends is not None and now > sends + idle + UNCOUNTED:
            self.against("in use", account, f"{node} stops it while it sends, for {now - sends:.3f} s")

    # What clients do.

    def answered(self, name: str, node: str, asked: float, why: str) -> None:
        """Hear that *node* has answered what was *asked* then with the VM's address; *why*: that it is not ready."""
        account, now = self.accounts[name], self._now()
        self.counts["answers"] += 1
        self.note(account, f"{node} answers after {(now - asked) * 1000:.0f} ms{f' ({why})' if why else ''}")
        account.answers.append((asked, now, node))
        if why:
            self.counts["answers before it is ready"] += 1
        elif not account.at and account.down < asked - LATE:
            fit = self.was_fit(node, asked - self._heals, now)
            self.counts[f"answers for what is off, by a node that is {'fit' if fit else 'not fit'}"] += 1
            if fit:
                self.against("answered for what is off", account, f"by {node}, {now - account.down:.3f} s after")

    def refused(self, name: str, node: str, asked: float, why: str) -> None:
        """Hear that *node* does not answer with the VM's address, and why; *why* is empty if it says nothing."""
        account, now = self.accounts[name], self._now()
        kind = PLACES.sub("", " ".join(why.partition(": ")[2].split()[:8])) if why else "no answer"
        self.counts[f"refused: {kind}"] += 1
        self.note(account, f"{node} refuses after {(now - asked) * 1000:.0f} ms: {why or 'no answer'}")

    def unanswered(self, name: str, asked: float, nodes: list[str]) -> None:
        """Hear that nobody has answered a question for a VM."""
        self.counts["questions that nobody answered"] += 1
        account = self.accounts[name]
        self.note(account, f"nobody has answered what was asked {self._now() - asked:.3f} s ago")
        if not self._lasting and asked > self._disturbed + self._heals:
            self.against("unanswered", account, f"asked {', '.join(nodes)}, {asked - self._disturbed:.1f} s after the "
                                                "last fault")

    # When all is quiet.

    def end(self, facts: Mapping[str, str]) -> None:
        """Look at what is left when nobody has asked for anything for long."""
        for account in self.accounts.values():
            if account.at:
                self.against("lost", account, f"it runs on {', '.join(account.at)}, and nobody uses it")
        left = sorted(key for key in facts if key.startswith(("claims/", "runs/", "used/", "asks/")))
        for key in left:
            room, _, name = key.partition("/")
            self.against("left over", self.accounts.get(name), f"{key}: {facts[key]}")
            self.counts[f"left in etcd: {room}"] += 1
