"""
The connections to etcd's members: made with this node's certificates, registered while they last, ended together.

An Agent of twisted.web's makes its connections here, and alone reads and writes them.
"""

from __future__ import annotations

import math
import re
import socket
from typing import TYPE_CHECKING, Any, Final

from OpenSSL.crypto import Error as CryptoError
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from jitsu_tw.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IProtocol, IProtocolFactory
    from twisted.web.client import URI

    from jitsu_tw.settings import Cluster

#: How many probes of the kernel's, a second apart, the other end of a silent connection may leave unanswered.
KEEPALIVES: Final = 3

#: A certificate in a PEM file (RFC 7468).
PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


@implementer(IAgentEndpointFactory)
class Connections:
    """Makes connections, and can end them all."""

    def __init__(self, cluster: Cluster, reactor: Any, patience: float) -> None:
        """
        Read the certificates.

        Args:
            cluster: the settings that name the certificates.
            reactor: connects.
            patience: seconds that a connection may take to be made.

        Raises:
            ConfigError: a certificate or a key cannot be read.
        """
        self._reactor, self.patience = reactor, patience
        self._trust = _trust(cluster.ca) if cluster.ca else platformTrust()
        self._identity = _identity(cluster.cert, cluster.key) if cluster.cert and cluster.key else None
        self.open: set[ProtocolWrapper] = set()
        self._waiting: list[Deferred[None]] = []

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        """Return what connects to *uri*."""
        endpoint: IStreamClientEndpoint = _Registering(
            HostnameEndpoint(self._reactor, uri.host, uri.port, self.patience), self
        )
        if uri.scheme != b"https":
            return endpoint
        options = optionsForClientTLS(uri.host.decode(), self._trust, self._identity)
        wrapped: IStreamClientEndpoint = wrapClientTLS(options, endpoint)
        return wrapped

    def ended(self, connection: ProtocolWrapper) -> None:
        """Remove *connection*, which has ended."""
        self.open.discard(connection)
        if not self.open:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)

    def abort(self) -> Deferred[None]:
        """End all connections; fire when there is none."""
        if not self.open:
            return succeed(None)
        none: Deferred[None] = Deferred()
        self._waiting.append(none)
        for connection in list(self.open):
            connection.abortConnection()
        return none


@implementer(IStreamClientEndpoint)
class _Registering:
    """An endpoint whose connections are registered in `Connections`."""

    def __init__(self, endpoint: IStreamClientEndpoint, connections: Connections) -> None:
        self._endpoint, self._connections = endpoint, connections

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        connecting: Deferred[Any] = self._endpoint.connect(_Factory(factory, self._connections))
        return connecting.addCallback(lambda wrapper: wrapper.wrappedProtocol)


class _Factory(WrappingFactory):
    """Registers a connection while it lasts."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, connections: Connections) -> None:
        super().__init__(factory)
        self._connections = connections
        inner: Any = factory
        while inner is not None:  # the Agent's factory, within TLS's: it would log every connection
            inner.noisy = False
            inner = getattr(inner, "wrappedFactory", None)

    def registerProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Register *p*. A watch may be silent for long: the kernel probes whether the other end is there."""
        super().registerProtocol(p)
        self._connections.open.add(p)
        handle = p.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(self._connections.patience))
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVES)

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Remove *p*, which has ended."""
        super().unregisterProtocol(p)
        self._connections.ended(p)


def words(error: Any) -> str:
    """Return why a connection failed, for the log."""
    if isinstance(error, Failure):
        error = error.value
    if isinstance(error, CancelledError):
        return "given up, as others had no answer"
    reasons = getattr(error, "reasons", None)
    if reasons:
        return words(reasons[0])
    return str(error) or type(error).__name__ if error is not None else "the answer has ended"


def _trust(path: Path) -> Any:
    try:
        found = [Certificate.loadPEM(pem) for pem in PEM.findall(path.read_bytes())]
    except (OSError, CryptoError) as error:
        raise ConfigError(f"no certificates can be read there: {words(error)}", path) from error
    if not found:
        raise ConfigError("no certificates are there, in PEM", path)
    return trustRootFromCertificates(found)


def _identity(certificate: Path, key: Path) -> PrivateCertificate:
    try:
        both = certificate.read_bytes() + b"\n" + key.read_bytes()
        loaded: PrivateCertificate = PrivateCertificate.loadPEM(both)
    except (OSError, CryptoError) as error:
        message = f"no certificate and key can be read there and in {key}: {words(error)}"
        raise ConfigError(message, certificate) from error
    return loaded
