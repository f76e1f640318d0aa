"""
The connections to etcd's members: made with our certificates, kept in mind while they last, ended together.

An Agent of twisted.web's makes its connections here; what is said over them is its own matter.
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

#: So often, a second apart, the kernel asks a silent connection's other end whether it is there.
KEEPALIVES: Final = 3

#: A certificate in a PEM file (RFC 7468).
PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


@implementer(IAgentEndpointFactory)
class Connections:
    """Makes connections, and can end them all."""

    def __init__(self, cluster: Cluster, reactor: Any, patience: float) -> None:
        """Read the certificates. Seconds of *patience* are for the making of a connection."""
        self._reactor, self.patience = reactor, patience
        self._trust = _trust(cluster.ca) if cluster.ca else platformTrust()
        self._identity = _identity(cluster.cert, cluster.key) if cluster.cert and cluster.key else None
        self.open: set[ProtocolWrapper] = set()
        self._waiting: list[Deferred[None]] = []

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        """Return what connects to *uri*."""
        endpoint: IStreamClientEndpoint = _Kept(
            HostnameEndpoint(self._reactor, uri.host, uri.port, self.patience), self
        )
        if uri.scheme != b"https":
            return endpoint
        options = optionsForClientTLS(uri.host.decode(), self._trust, self._identity)
        wrapped: IStreamClientEndpoint = wrapClientTLS(options, endpoint)
        return wrapped

    def ended(self, connection: ProtocolWrapper) -> None:
        """Hear that one has ended."""
        self.open.discard(connection)
        if not self.open:
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(None)

    def abort(self) -> Deferred[None]:
        """End them all; fire when there is none."""
        if not self.open:
            return succeed(None)
        none: Deferred[None] = Deferred()
        self._waiting.append(none)
        for connection in list(self.open):
            connection.abortConnection()
        return none


@implementer(IStreamClientEndpoint)
class _Kept:
    """An endpoint whose connections are kept in mind."""

    def __init__(self, endpoint: IStreamClientEndpoint, connections: Connections) -> None:
        self._endpoint, self._connections = endpoint, connections

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        connecting: Deferred[Any] = self._endpoint.connect(_Keeping(factory, self._connections))
        return connecting.addCallback(lambda wrapper: wrapper.wrappedProtocol)


class _Keeping(WrappingFactory):
    """Keeps a connection in mind while it lasts."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, connections: Connections) -> None:
        super().__init__(factory)
        self._connections = connections
        inner: Any = factory
        while inner is not None:  # the Agent's factory, within TLS's: it would log every connection
            inner.noisy = False
            inner = getattr(inner, "wrappedFactory", None)

    def registerProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Hear that it has begun. A watch may be silent for long: the kernel looks whether the other end is there."""
        super().registerProtocol(p)
        self._connections.open.add(p)
        handle = p.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(self._connections.patience))
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVES)

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Hear that it has ended."""
        super().unregisterProtocol(p)
        self._connections.ended(p)


def words(error: Any) -> str:
    """Return why a connection failed, for people."""
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
