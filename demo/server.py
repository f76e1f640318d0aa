"""A Jitsu in the laboratory: its files, its process, its control endpoint; and a Synjitsu beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.lab import BRIDGE
from jitsu_tw.ctl.client import Control
from jitsu_tw.ctl.show import NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.lab import Network

#: Seconds that a start, or an end, may take on a slow machine.
PATIENCE: Final = 60.0

ZONE: Final = """\
$ORIGIN jitsu.test.
$TTL 60
@    SOA  ns hostmaster 1 3600 600 86400 5
     NS   ns
ns   A    {server}
"""


#: What a Synjitsu logs when it has begun.
_STANDS: Final = "standing in on"


class JitsuEndedError(Exception):
    """Jitsu, or Synjitsu, ended by itself; the argument is its output."""


class _Service:
    """
    A process that twistd runs.

    Attributes:
        directory: where it runs, and its log is.
        process: None before `start`.
        where: the network's namespace that it runs in.
    """

    log_name = "log"
    where = "host"
    #: The command line of twistd, or of what runs it.
    twistd: tuple[str, ...] = (str(Path(sys.executable).with_name("twistd")),)

    def __init__(self, directory: Path, network: Network | None) -> None:
        """Run in *network*, or here."""
        self.directory, self._network = directory, network
        self.process: subprocess.Popen[Any] | None = None

    def _launch(self, *words: str) -> None:
        """Start it."""
        command = [*self.twistd, "-n", "--pidfile=", f"--rundir={self.directory}", *words]
        if self._network is not None:
            command = self._network.command(self.where, command)
        with (self.directory / self.log_name).open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _until(self, serves: Callable[[], bool], *trouble: str) -> None:
        """Wait until it *serves*; raise JitsuEndedError if it ends, has logged *trouble*, or takes too long."""
        assert self.process is not None
        end = time.monotonic() + PATIENCE
        while not serves():
            said = self.log()
            if self.process.poll() is not None or any(words in said for words in trouble) or time.monotonic() > end:
                self.stop(signal.SIGKILL)
                raise JitsuEndedError(said[-2000:])
            time.sleep(0.05)

    def log(self) -> str:
        """Return what it has logged so far."""
        log = self.directory / self.log_name
        return log.read_text(errors="replace") if log.exists() else ""

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, by *how*, and see it gone. VMs go on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Synjitsu(_Service):
    """
    A process that stands in on the bridge.

    Attributes:
        place: what to tell Jitsu as `synjitsu`.
    """

    log_name = "synjitsu.log"

    def __init__(self, directory: Path, network: Network, *options: str) -> None:
        """Keep its socket in *directory*; *options* are more of its command line."""
        super().__init__(directory, network)
        self._options = options
        self.place = f"unix:{directory / 'synjitsu.sock'}"

    def start(self) -> None:
        """
        Start it and wait until it listens.

        Raises:
            JitsuEndedError: it did not.
        """
        begun = self.log().count(_STANDS)
        self._launch("synjitsu", f"--interface={BRIDGE}", f"--listen={self.place}", *self._options)
        self._until(lambda: self.log().count(_STANDS) > begun)


class Jitsu(_Service):
    """
    A process that serves the zone jitsu.test from a directory.

    Its configuration, its zone, its state, its log and its control socket are there.
    """

    def __init__(self, directory: Path, configuration: str, server: str, network: Network | None = None) -> None:
        """Write the files; *configuration* is YAML without the control endpoint. Runs in *network*'s host, or here."""
        super().__init__(directory, network)
        self.socket = directory / "control.sock"
        self.control = Control(f"unix:{self.socket}")
        (directory / "jitsu.zone").write_text(ZONE.format(server=server))
        (directory / "jitsu.yaml").write_text(f"control: unix:{self.socket}\n{configuration}")

    def start(self) -> None:
        """
        Start it and wait until it serves.

        Raises:
            JitsuEndedError: it did not.
        """
        self._launch("jitsu", f"--zone={self.directory / 'jitsu.zone'}")
        self._until(lambda: self.socket.is_socket() and self._answers(), "cannot be reached yet")

    def _answers(self) -> bool:
        try:
            return all(vm["uuid"] for vm in self.vms())
        except NoAnswerError:
            return False

    def vms(self) -> list[dict[str, Any]]:
        """Return its VMs, as the control endpoint shows them."""
        answer: list[dict[str, Any]] = self.control.ask("GET", "/v1/vms")
        return answer

    def vm(self, name: str = "www") -> dict[str, Any]:
        """Return one VM."""
        return next(vm for vm in self.vms() if vm["name"] == name)

    def wait(self, state: str, name: str = "www", patience: float = PATIENCE) -> dict[str, Any]:
        """
        Wait until a VM is in *state*, and return it.

        Raises:
            TimeoutError: it is not, *patience* seconds later.
        """
        end = time.monotonic() + patience
        while (vm := self.vm(name))["state"] != state:
            if time.monotonic() > end:
                raise TimeoutError(f"{name} is {vm['state']}, not {state}, after {patience:g} s")
            time.sleep(0.02)
        return vm
