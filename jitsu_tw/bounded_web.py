"""An HTTP client of which a server can take no more than a bounded number of octets, and a bounded time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
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


@implementer(IAgentEndpointFactory)
class BoundedEndpoints:
    """What an Agent connects by, to have bounded connections."""

    def __init__(self, reactor: Any) -> None:
        """Connect by *reactor*."""
        self._reactor = reactor

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        """Return what connects to *uri*; by TLS, with the certificates that the system trusts."""
        endpoint = BoundedEndpoint(HostnameEndpoint(self._reactor, uri.host, uri.port, ANSWERS_WITHIN))
        if uri.scheme != b"https":
            return endpoint
        from twisted.internet.ssl import optionsForClientTLS  # noqa: PLC0415 -- needs the extra "tls"

        wrapped: IStreamClientEndpoint = wrapClientTLS(optionsForClientTLS(uri.host.decode()), endpoint)
        return wrapped
