"""
The errors of Jitsu, as one tree, divided by whose fault they are: the operator's, the client's, a backend's.

::

    JitsuError                SERVFAIL
     +- ConfigError           -          the operator's: a file, a line, a key, and the remedy
     |   +- ConfigErrors      -          several of these
     |   +- ZoneError         -          the same, of a zone file
     +- QueryError            by kind    the client's, or no fault: the answer is a response code
     |   +- Prohibited        REFUSED    18 Prohibited: this client may not start that VM
     |   +- Unproven          NOERROR    -  the same, until it proves its address: the answer is truncated
     |   +- Unanswerable      its rcode  NXDOMAIN and the like, with the records that go with it
     +- BootFailed            SERVFAIL    0 Other: the VM did not start
     +- NoCapacity            SERVFAIL    0 Other: as many VMs run as allowed
     +- BackendError          SERVFAIL    0 Other: the backend's own message
     |   +- BackendLost       SERVFAIL   14 Not Ready: no connection to the hypervisor
     |   +- NoSuchVM          SERVFAIL    0 Other: the backend knows no such VM
     +- ClusterUnavailable    SERVFAIL   23 Network Error: there is no connection to the cluster
     +- ExistenceUnknown      SERVFAIL   14 Not Ready: nobody tells whether a name of a template exists
     +- StoreError            -          the state cannot be read or written
     +- NoStandIn             -          there is no connection to Synjitsu

The numbers are Extended DNS Errors (RFC 8914, section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from twisted.names import dns, error

from jitsu_tw.text import abridged, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jitsu_tw.dns.wire import RR

EDE_OTHER: Final = 0
EDE_NOT_READY: Final = 14
EDE_PROHIBITED: Final = 18
EDE_NOT_AUTHORITATIVE: Final = 20
EDE_NETWORK_ERROR: Final = 23


class JitsuError(Exception):
    """
    The root of the tree.

    Attributes:
        rcode: the response code for a client (RFC 1035, 4.1.1), if a client gets a reply.
        ede: the Extended DNS Error that goes with it.
    """

    rcode: int = dns.ESERVER
    ede: ClassVar[int] = EDE_OTHER


class ConfigError(JitsuError):
    """A configuration that cannot be used: one line with the file, the line, the key and the remedy."""

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None, key: str = "") -> None:
        """Compose the text: ``file:line: key: message``."""
        self.path, self.line, self.key, self.message = path, line, key, message
        location = "" if path is None else f"{path}:" if line is None else f"{path}:{line}:"
        text = " ".join(part for part in (location, f"{key}:" if key else "", message) if part)
        super().__init__("\n".join(map(printable, text.split("\n"))))


class ConfigErrors(ConfigError):
    """
    Several mistakes; a line for each.

    Attributes:
        errors: one for each mistake.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        """Store *errors*; path, line and key are those of the first."""
        first = errors[0]
        super().__init__(first.message, first.path, first.line, first.key)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        """Return the lines of all errors."""
        return "\n".join(map(str, self.errors))


class Mistakes:
    """Collects the errors of blocks ``with mistakes:``, each of which ends at its first; `end` raises all of them."""

    __slots__ = ("_found",)

    #: After this many, the errors are raised at once: a file of another kind has one in each line.
    MOST: Final = 50

    def __init__(self) -> None:
        """Begin with no errors."""
        self._found: list[ConfigError] = []

    def __bool__(self) -> bool:
        """Return whether there are errors."""
        return bool(self._found)

    def __enter__(self) -> None:
        """Begin a block."""

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> bool:
        """Store the error of a block if it is a ConfigError; let others pass."""
        if not isinstance(error, ConfigError):
            return False
        self.add(error)
        return True

    def add(self, error: ConfigError) -> None:
        """Add *error*: for callers to which a block would cost too much, as for each of a file's values."""
        self._found += error.errors if isinstance(error, ConfigErrors) else [error]
        if len(self._found) >= self.MOST:
            self.end()

    def end(self) -> None:
        """
        Raise the collected errors, those of one file in the order of its lines; return if there are none.

        Raises:
            ConfigError: the error, if there is one; a ConfigErrors if there are several.
        """
        if len(self._found) > 1:
            paths = {error.path: number for number, error in reversed(list(enumerate(self._found)))}
            self._found.sort(key=lambda error: (paths[error.path], error.line or 0))
            raise ConfigErrors(self._found[: self.MOST])
        if self._found:
            raise self._found[0]


class ZoneError(ConfigError):
    """A zone that cannot be served."""


class QueryError(JitsuError, error.AuthoritativeDomainError):
    """
    A query that has no answer for this client, and that no other resolver shall answer.

    It ends a `twisted.names` resolver chain, as `error.AuthoritativeDomainError` does: after a `DomainError` the next
    resolver would be asked.
    """


class Prohibited(QueryError):
    """The client may not start this VM (`summon_from`, budgets of starts)."""

    rcode = dns.EREFUSED
    ede = EDE_PROHIBITED


class Unproven(QueryError):
    """The client may start this VM if it asks by TCP, or with a DNS cookie: so it gets TC=1 (RFC 7873, 5.2.3)."""


class Unanswerable(QueryError):
    """
    A final answer of the authority: the name does not exist, or a DNAME makes too long a name.

    Attributes:
        answer: the CNAMEs that led there (RFC 6604).
        authority: the SOA (RFC 2308).
    """

    def __init__(self, rcode: int, answer: Sequence[RR] = (), authority: Sequence[RR] = ()) -> None:
        """Store the response code and the records of the reply."""
        super().__init__(f"rcode {rcode}")
        self.rcode, self.answer, self.authority = rcode, answer, authority


class BootFailed(JitsuError):
    """A requested VM did not start; the message has the reason."""


class NoCapacity(JitsuError):
    """As many VMs run as allowed (`max_running`)."""


class BackendError(JitsuError):
    """A hypervisor refused a call; the message is its own, or the beginning and the end of it."""

    #: The most characters of a message: it stays in the VM's reason and in many events.
    LONGEST: Final = 2000

    def __init__(self, message: str = "") -> None:
        """Store *message*, abridged: other programs and guests can make it very long."""
        super().__init__(abridged(message, self.LONGEST))


class BackendLost(BackendError):
    """There is no connection to the hypervisor. Jitsu tries to connect again."""

    ede = EDE_NOT_READY


class NoSuchVM(BackendError):
    """The hypervisor knows no VM of this name or uuid."""


class ClusterUnavailable(JitsuError):
    """There is no connection to the cluster, so this node cannot know which node owns a VM."""

    ede = EDE_NETWORK_ERROR


class ExistenceUnknown(JitsuError):
    """It cannot be found out now whether a name of a template exists (`exists`)."""

    ede = EDE_NOT_READY


class StoreError(JitsuError):
    """The state cannot be read or written."""


class NoStandIn(JitsuError):
    """There is no connection to Synjitsu."""
