"""What `twistd synjitsu` runs: the command line and all wiring."""

from __future__ import annotations

import socket
import sys
from typing import NoReturn

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python import usage


class Options(usage.Options):
    """Synjitsu's options."""

    synopsis = "-i INTERFACE [-i INTERFACE]..."
    longdesc = "Stands in for virtual machines that are booting, and keeps their first packets."

    def __init__(self) -> None:
        """Begin with no interface."""
        super().__init__()
        self.interfaces: list[str] = []

    def opt_interface(self, name: str) -> None:
        """A bridge to stand in on; may be given several times."""
        self.interfaces.append(name)

    opt_i = opt_interface


class SynjitsuService(Service):
    """Stands in on some bridges."""

    log = Logger()

    def __init__(self, interfaces: list[str]) -> None:
        """Take the names of *interfaces* that exist."""
        self._interfaces = interfaces

    def startService(self) -> None:  # noqa: N802
        """Say what is going to be done."""
        super().startService()
        self.log.info(
            "will stand in on {interfaces} for the VMs that Jitsu announces",
            interfaces=", ".join(self._interfaces),
        )


def give_up(message: str) -> NoReturn:
    """End with one line, wherever twistd has put its log."""
    print(f"synjitsu: {message}", file=sys.__stderr__)
    raise SystemExit(1)


def makeService(options: Options) -> SynjitsuService:  # noqa: N802
    """Return the service that twistd runs; end with one line where an interface does not exist."""
    known = [name for _, name in socket.if_nameindex()]
    if not options.interfaces:
        give_up(f"name the bridge to stand in on, with -i; here are: {', '.join(known)}")
    for name in options.interfaces:
        if name not in known:
            give_up(f"there is no interface {name!r}; here are: {', '.join(known)}")
    return SynjitsuService(options.interfaces)
