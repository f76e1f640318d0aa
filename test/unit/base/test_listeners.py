"""The sockets that systemd has opened; how they are served is in `test.programs`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import listeners
from jitsu_tw.errors import ConfigError
from jitsu_tw.settings import Settings


class InheritedTests(SynchronousTestCase):
    """Descriptors of a unit of kind .socket."""

    def test_refused(self) -> None:
        """What is no socket, or none that DNS or control can be served on, is refused in one line."""
        nothing: Any = None
        abstract, named = (socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
        abstract.bind(f"\0jitsu-test-{os.getpid()}")
        named.bind(self.mktemp())
        raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
        file = Path(self.mktemp())
        file.touch()
        opened = os.open(file, os.O_RDONLY)
        self.addCleanup(os.close, opened)
        for number in (abstract.detach(), named.detach(), raw.detach(), opened):
            self.patch(listeners, "from_systemd", lambda number=number: [number])
            ports = listeners.Listeners(Settings(), nothing, nothing, nothing, nothing)
            error = self.assertRaises(ConfigError, ports.open)
            self.assertIn(f"descriptor {number} of systemd's is no UDP or TCP socket", str(error))
