"""What an operator should know of the VMs besides their states: sentences, by VM and by kind."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from twisted.logger import Logger


class Problem(enum.Enum):
    """The kinds of problems that a VM can have."""

    ADDRESS = "address"  # its guest uses an address other than its `ip`
    DEFINITION = "definition"  # what its hypervisor advises (`IBackend.advice`)
    EVIDENCE = "evidence"  # whether it is in use cannot be seen
    PORT = "port"  # its port does not answer, but its guest is alive
    STOP = "stop"  # it cannot be stopped
    PREPARE = "prepare"  # it cannot be prepared for later starts
    FALLBACK = "fallback"  # it cannot be saved, and is stopped in another way
    REMOVED = "removed"  # it runs, started by Jitsu, and the configuration has no such VM any more
    CONFLICT = "conflict"  # the other nodes know its address to be another VM's


#: Of these, `healthz` tells: something that was to happen does not.
DEGRADING: Final = frozenset({Problem.STOP})


class Problems:
    """
    The problems of all VMs.

    A kind has any number of sentences at a time. A sentence is logged when it is new.
    """

    def __init__(self, log: Logger) -> None:
        """Begin with none; *log* gets each sentence that is new."""
        self._log = log
        self._problems: dict[str, dict[Problem, tuple[str, ...]]] = {}

    def note(self, name: str, kind: Problem, sentences: Sequence[str]) -> None:
        """Note that these are the problems of that *kind* of the VM *name*; none if there are no *sentences*."""
        known = self._problems.get(name, {})
        for sentence in sentences:
            if sentence not in known.get(kind, ()):
                log = self._log.error if kind in DEGRADING else self._log.warn
                log("{name}: {sentence}", name=name, sentence=sentence)
        if sentences:
            self._problems.setdefault(name, {})[kind] = tuple(sentences)
        elif known.pop(kind, None) is not None and not known:
            del self._problems[name]

    def forget(self, name: str) -> None:
        """Forget the problems of the VM *name*."""
        self._problems.pop(name, None)

    def of(self, name: str) -> list[str]:
        """Return the sentences on the VM *name*."""
        known = self._problems.get(name)
        if known is None:
            return []
        return [sentence for kind in Problem for sentence in known.get(kind, ())]

    def degrading(self) -> Iterator[str]:
        """Yield the sentences that `healthz` tells, each with its VM's name."""
        for name, known in self._problems.items():
            for kind in DEGRADING & known.keys():
                yield from (f"{name}: {sentence}" for sentence in known[kind])

    @property
    def counts(self) -> Counter[Problem]:
        """How many VMs have a problem, by kind."""
        return Counter(kind for known in self._problems.values() for kind in known)
