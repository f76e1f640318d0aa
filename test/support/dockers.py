"""A Docker in the laboratory, beside podman: a server of its own, whose containers are on the laboratory's bridge."""

from __future__ import annotations

import functools
import subprocess
import tarfile
import tempfile
import time
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.lab import BRIDGE, CACHE, HOST_IP
from test.support.podmans import BUSYBOX, HTTPD

if TYPE_CHECKING:
    from demo.lab import Network

#: Debian's packages; they are unpacked only, as an installed Docker runs at once, and changes the firewall.
PACKAGES: Final = ("docker.io", "containerd", "runc")

#: The server leaves the network alone, but for the containers' ports in the bridge.
OPTIONS: Final = ("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--bridge=none", "--userland-proxy=false",
                  "--storage-driver=vfs")  # fmt: skip

#: Seconds that the server may take to begin, or to end.
PATIENCE: Final = 60.0


@functools.cache
def places() -> str:
    """Return the folders of Docker's programs, as of PATH, which are downloaded first if they are not in the cache."""
    made = CACHE / "docker"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            unpacked = Path(folder) / "unpacked"
            download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
            if subprocess.run(download, cwd=folder, check=False).returncode:  # the lists of packages may be old
                subprocess.run(["apt-get", "-qq", "update"], check=True)
                subprocess.run(download, cwd=folder, check=True)
            for package in Path(folder).glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, unpacked], check=True)
            if not made.exists():
                unpacked.rename(made)
    return f"{made}/usr/sbin:{made}/usr/bin"


class Docker:
    """
    A Docker in the laboratory's host.

    Attributes:
        socket: of its server.
        environment: the variables that lead its client to the server.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        """Start the server, which keeps all in *folder*, and make the image; the control groups are mounted."""
        self._network = network
        self.socket = folder / "docker.sock"
        self.environment = {"PATH": f"{places()}:/usr/bin:/bin", "DOCKER_HOST": f"unix://{self.socket}"}
        folder.mkdir()
        server = ["dockerd", f"--host=unix://{self.socket}", f"--data-root={folder / 'root'}",
                  f"--exec-root={folder / 'run'}", f"--pidfile={folder / 'pid'}", *OPTIONS]  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                network.command("host", self._program(*server)), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._prepare(folder)
        except BaseException:
            self.close()
            raise

    def _prepare(self, folder: Path) -> None:
        """Wait until the server serves; make the network and the image."""
        end = time.monotonic() + PATIENCE
        while not self.run("network", "ls", "--quiet", check=False):
            if time.monotonic() > end or self._server.poll() is not None:
                raise AssertionError((folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        lan = ip_interface(f"{HOST_IP}/24")
        self.run("network", "create", "--driver=bridge", f"--subnet={lan.network}", f"--gateway={lan.ip}",
                 f"--opt=com.docker.network.bridge.name={BRIDGE}", "lab")  # fmt: skip
        image = folder / "guest.tar"
        with tarfile.open(image, "w") as tar:
            tar.add(BUSYBOX, "busybox")
        self.run("import", image, "guest")

    def _program(self, *words: str | Path) -> list[str | Path]:
        return ["env", *(f"{name}={value}" for name, value in self.environment.items()), *words]

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Run Docker's client to its end; return its output without the line end."""
        return self._network.run("host", self._program("docker", *words), check=check).stdout.strip()

    def create(self, name: str, ip: str, mac: str, *program: str) -> None:
        """Make a container that serves nothing to see, or runs another program, and does not run yet."""
        self.run("create", "--name", name, "--network", "lab", "--ip", ip, "--mac-address", mac, "guest",
                 *(program or HTTPD))  # fmt: skip

    def clear(self) -> None:
        """Remove all containers."""
        for name in self.run("ps", "--all", "--quiet").split():
            self.run("rm", "--force", name)

    def close(self) -> None:
        """Remove all containers, and end the server."""
        if self._server.poll() is None:
            self._server.terminate()
            self._server.wait(PATIENCE)
