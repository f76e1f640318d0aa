"""An HTTP client of which a server can take no more than a bounded number of octets, and a bounded time."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from twisted.internet._resolver import GAIResolver  # what the reactor has, too; it has no public name
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorPluggableNameResolver, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.threadpool import ThreadPool
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IProtocol, IProtocolFactory
    from twisted.web.client import URI

#: Seconds that a server has to answer.
ANSWERS_WITHIN: Final = 10.0

#: The most octets that are read of an answer, TLS included: the Agent keeps all headers, of any number.
LONGEST_ANSWER: Final = 1 << 16

#: The most names of servers that are looked up at once.
MOST_LOOKUPS: Final = 8


class Unread(Protocol):
    """Closes the connection of an answer whose body is not read."""

    def connectionMade(self) -> None:  # noqa: N802
        """Close it."""
        if self.transport is not None:
            self.transport.loseConnection()


class Bounded(ProtocolWrapper):
    """A connection that is closed when more is received than `LONGEST_ANSWER`."""

    _received = 0

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Take what is received, within the bound."""
        self._received += len(data)
        if self._received > LONGEST_ANSWER:
            self.abortConnection()
        else:
            super().dataReceived(data)


class BoundedFactory(WrappingFactory):
    """Makes bounded connections, and logs none of them."""

    protocol = Bounded
    noisy = False

    def __init__(self, factory: IProtocolFactory) -> None:
        """Bound the connections of *factory*."""
        super().__init__(factory)
        inner: Any = factory
        while inner is not None:  # the Agent's factory, within TLS's
            inner.noisy = False
            inner = getattr(inner, "wrappedFactory", None)


@implementer(IStreamClientEndpoint)
class BoundedEndpoint:
    """An endpoint whose connections are bounded."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect by *endpoint*."""
        self._endpoint = endpoint

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        connecting: Deferred[Any] = self._endpoint.connect(BoundedFactory(factory))
        return connecting.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IReactorPluggableNameResolver)
class OwnLookups:
    """
    A reactor that looks up names in threads of its own.

    A name server that does not answer blocks a thread for half a minute, and the reactor's own threads write the state.
    """

    def __init__(self, reactor: Any) -> None:
        """Do all else by *reactor*."""
        self._reactor = reactor

    @cached_property
    def nameResolver(self) -> GAIResolver:  # noqa: N802
        """What looks up names."""
        threads = ThreadPool(0, MOST_LOOKUPS, "lookups")
        threads.start()
        self._reactor.addSystemEventTrigger("during", "shutdown", threads.stop)
        return GAIResolver(self._reactor, lambda: threads)

    def __getattr__(self, name: str) -> Any:
        """Return what the reactor has."""
        return getattr(self._reactor, name)


@implementer(IAgentEndpointFactory)
class BoundedEndpoints:
    """What an Agent connects by, to have bounded connections."""

    def __init__(self, reactor: Any) -> None:
        """Connect by *reactor*."""
        self._reactor = OwnLookups(reactor)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        """Return what connects to *uri*; by TLS, with the certificates that the system trusts."""
        endpoint = BoundedEndpoint(HostnameEndpoint(self._reactor, uri.host, uri.port, ANSWERS_WITHIN))
        if uri.scheme != b"https":
            return endpoint
        from twisted.internet.ssl import optionsForClientTLS  # noqa: PLC0415 -- needs the extra "tls"

        wrapped: IStreamClientEndpoint = wrapClientTLS(optionsForClientTLS(uri.host.decode()), endpoint)
        return wrapped
