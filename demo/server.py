"""A Jitsu in the laboratory: its files, its process, its control endpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.ctl import Control

if TYPE_CHECKING:
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


class JitsuEndedError(Exception):
    """Jitsu ended by itself; the argument is what it said."""


class Jitsu:
    """
    A process that serves the zone jitsu.test from a directory.

    Attributes:
        directory: where its configuration, its zone, its state, its log and its control socket are.
        process: None before `start`.
    """

    def __init__(self, directory: Path, configuration: str, server: str, network: Network | None = None) -> None:
        """Write the files; *configuration* is YAML without the control endpoint. Runs in *network*'s host, or here."""
        self.directory, self._network = directory, network
        self.socket = directory / "control.sock"
        self.control = Control(f"unix:{self.socket}")
        self.process: subprocess.Popen[Any] | None = None
        (directory / "jitsu.zone").write_text(ZONE.format(server=server))
        (directory / "jitsu.yaml").write_text(f"control: unix:{self.socket}\n{configuration}")

    def start(self) -> None:
        """
        Start it and wait until it serves.

        Raises:
            JitsuEndedError: it did not.
        """
        twistd = Path(sys.executable).with_name("twistd")
        command = [str(twistd), "-n", "--pidfile=", f"--rundir={self.directory}"]
        command += ["jitsu", f"--zone={self.directory / 'jitsu.zone'}"]
        if self._network is not None:
            command = self._network.command("host", command)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + PATIENCE
        while not self.socket.is_socket() or not self._answers():
            said = self.log()
            if self.process.poll() is not None or "cannot be reached yet" in said or time.monotonic() > end:
                self.stop(signal.SIGKILL)
                raise JitsuEndedError(said[-2000:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return all(vm["uuid"] for vm in self.vms())
        except ConnectionError:
            return False

    def log(self) -> str:
        """Return what it has logged so far."""
        return (self.directory / "log").read_text(errors="replace")

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

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, by *how*, and see it gone. Its VMs go on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
