"""The reactor of a Jitsu in a soak: a clock until that Jitsu is no more, and guests' ports without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as NobodyThere
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.internet.task import Clock


@implementer(IReactorTime)
class Process:
    """
    The reactor of one Jitsu, until that is no more: then nothing of it happens.

    Attributes:
        alive: it is.
    """

    def __init__(self, clock: Clock, listens: Callable[[str], bool | None], failed: Callable[[], None]) -> None:
        """Turn with *clock*; ports of guests are open if *listens* says so; call *failed* in an exception."""
        self._clock, self._listens, self._failed = clock, listens, failed
        self.alive = True

    def seconds(self) -> float:
        """Return the clock's time."""
        return self._clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> IDelayedCall:  # noqa: A002, N802
        """Call later, if it lives; what one that was killed in the middle of something still asks for is forgotten."""
        return self._clock.callLater(delay if self.alive else 0.0, self._call, callable, args, kwargs)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not self.alive:
            return
        try:
            function(*arguments, **keywords)
        except Exception:  # noqa: BLE001 - as a reactor does: nothing may end it
            self._failed()

    def getDelayedCalls(self) -> list[IDelayedCall]:  # noqa: N802
        """Return what will be called."""
        calls: list[Any] = list(self._clock.getDelayedCalls())
        return [call for call in calls if getattr(call.func, "__self__", None) is self]

    def end(self) -> None:
        """Be no more."""
        self.alive = False
        for call in self.getDelayedCalls():
            call.cancel()

    def connectTCP(  # noqa: N802
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None  # noqa: ARG002, N803
    ) -> Knock:
        """Connect to a guest."""
        return Knock(self, self._listens(host), factory, timeout)


class Knock:
    """A try to connect to a guest, and the transport if there is one."""

    def __init__(self, process: Process, listens: bool | None, factory: Any, timeout: float) -> None:  # noqa: FBT001
        """Try: a port is open, or closed, or nobody is there and the try takes *timeout* seconds."""
        self._factory, self._listens, self._protocol = factory, listens, None
        factory.doStart()
        factory.startedConnecting(self)
        self._end = process.callLater(timeout if listens is None else 0.001, self._ends)

    def _ends(self) -> None:
        if self._listens:
            protocol = self._protocol = self._factory.buildProtocol(None)
            assert protocol is not None
            protocol.makeConnection(self)
        else:
            why = NobodyThere() if self._listens is None else Refused()
            self._factory.clientConnectionFailed(self, Failure(why))

    def stopConnecting(self) -> None:  # noqa: N802
        """Give up."""
        if self._end.active():
            self._end.cancel()

    def getDestination(self) -> None:  # noqa: N802
        """Return where it would lead to, for messages."""

    def loseConnection(self) -> None:  # noqa: N802
        """Close it."""
        self._protocol, protocol = None, self._protocol
        if protocol is not None:
            protocol.connectionLost(Failure(ConnectionDone()))

    abortConnection = loseConnection  # noqa: N815
