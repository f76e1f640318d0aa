"""Containers of podman in the laboratory: on its bridge, with storage, network and events of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import time
from io import BytesIO
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.lab import BRIDGE, HOST_IP

if TYPE_CHECKING:
    from demo.lab import Network

#: What the containers are made of, as Debian's busybox-static has it.
BUSYBOX: Final = Path("/bin/busybox")

#: The page that they serve, and what serves it.
PAGE: Final = "up for a while\n"
HTTPD: Final = ("/busybox", "httpd", "-f", "-p", "80", "-h", "/")

#: The network of the laboratory's bridge, of the plugins of CNI.
NETWORK: Final = {
    "cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "bridge", "bridge": BRIDGE, "ipam": {
        "type": "host-local", "ranges": [[{"subnet": str(ip_interface(f"{HOST_IP}/24").network)}]],
    }}],
}  # fmt: skip

#: The laboratory has a /sys of its own, without the kernel's control groups: those of version 2, or each of version 1.
#: The plugins of CNI keep their results in one place.
MOUNTS: Final = """\
mkdir -p /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
grep -q :devices: /proc/self/cgroup || exec mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
for group in $(sed -n 's/^[1-9][0-9]*:\\([^:]*\\):.*/\\1/p' /proc/self/cgroup); do
    mkdir "/sys/fs/cgroup/${group#name=}"
    case $group in name=*) group=none,$group ;; esac
    mount -t cgroup -o "$group" cgroup "/sys/fs/cgroup/${group#*name=}"
done
"""


def missing() -> list[str]:
    """Return which of the programs that containers need are not installed."""
    return [one for one in ("podman", "crun", "conmon", str(BUSYBOX)) if shutil.which(one) is None]


class Podman:
    """
    A podman in the laboratory's host.

    Attributes:
        environment: the variables that lead podman to its configuration.
        socket: of its server, if it serves.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        """Keep all there is of it in *folder*, and make the image."""
        self._network, self._folder = network, folder
        self._server: subprocess.Popen[bytes] | None = None
        self.socket = folder / "docker.sock"
        network.run("host", ["sh", "-ec", MOUNTS])
        (folder / "net").mkdir(parents=True)
        (folder / "net" / "lab.conflist").write_text(json.dumps(NETWORK).replace(
            '"type": "host-local"', f'"type": "host-local", "dataDir": "{folder / "addresses"}"'))  # fmt: skip
        self.environment = {
            "CONTAINERS_CONF": self._write("containers.conf", f"""\
[network]
network_backend = "cni"
network_config_dir = "{folder / 'net'}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{folder / 'tmp'}"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""),
            "CONTAINERS_STORAGE_CONF": self._write("storage.conf", f"""\
[storage]
driver = "overlay"
runroot = "{folder / 'run'}"
graphroot = "{folder / 'root'}"
"""),
        }  # fmt: skip
        self.run("import", self._image(), "guest")

    def _write(self, name: str, text: str) -> str:
        (self._folder / name).write_text(text)
        return str(self._folder / name)

    def _image(self) -> Path:
        """Return the image: one program and one page."""
        path = self._folder / "guest.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(BUSYBOX, "busybox")
            page = tarfile.TarInfo("index.html")
            page.size = len(PAGE)
            tar.addfile(page, BytesIO(PAGE.encode()))
        return path

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Run podman to its end; return its output without the line end."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        program = ["env", *variables, "podman", *words]
        return self._network.run("host", program, check=check).stdout.strip()

    def create(self, name: str, ip: str, mac: str, *program: str) -> None:
        """Make a container that serves the page, or runs another program, and does not run yet."""
        self.run("create", "--name", name, "--network", "lab", "--ip", ip, "--mac-address", mac, "guest",
                 *(program or HTTPD))  # fmt: skip

    def state(self, name: str) -> str:
        """Return what podman says of a container; empty if there is none."""
        return self.run("inspect", "-f", "{{.State.Status}}", name, check=False)

    def serve(self) -> None:
        """Serve Docker's HTTP interface at its socket, if that is not served yet."""
        if self._server is None:
            variables = [f"{name}={value}" for name, value in self.environment.items()]
            program = ["env", *variables, "podman", "system", "service", "--time=0", f"unix://{self.socket}"]
            self._server = subprocess.Popen(self._network.command("host", program), stdin=subprocess.DEVNULL)
            while not self.socket.exists():
                time.sleep(0.01)

    def clear(self) -> None:
        """Remove all containers."""
        self.run("rm", "--force", "--all", "--time", "0", check=False)

    def close(self) -> None:
        """Remove all containers; serve nothing."""
        self.clear()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self.socket.unlink(missing_ok=True)
            self._server = None
