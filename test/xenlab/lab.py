"""
A machine with Xen, for as long as a context lasts: QEMU emulates it, so no hardware has to be able to.

This release of Debian's Xen with a Debian dom0, whose disk is as `build.sh` made it at each start. It is plugged into
the bridge of a `demo.lab.Network`, and so are its guests: a query can come from outside, by `client`. Into dom0 go the
tree under test and the Python packages that it needs, those of this interpreter. Nothing here knows what is tested.
"""

from __future__ import annotations

import compileall
import functools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from demo.lab import BRIDGE, CACHE, Network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent

#: Dom0's address in the laboratory's network.
DOM0_IP: Final = "10.99.0.3"

#: Seconds that things may take: three times what they took on two cores without KVM.
BOOT_WITHIN: Final = 240.0
COMMAND_WITHIN: Final = 120.0

#: What is used in dom0 of setup.cfg's extras.
EXTRAS: Final = ("synjitsu", "xen")

#: Where dom0 has what came along: the tree and the packages, read-only.
TREE: Final = "/lab/host/tree"
SITE: Final = "/lab/host/site"

#: What the guest boots from, in dom0.
KERNEL: Final = "/lab/guest/vmlinuz"
RAMDISK: Final = "/lab/guest/initramfs"

#: What of the tree goes into dom0.
PARTS: Final = ("jitsu_tw", "synjitsu_tw", "test", "twisted", "demo")

#: QEMU's CPU: TCG has AMD's virtualisation, so that Xen can have PVH and HVM guests besides PV ones.
CPU: Final = "qemu64,+svm,+npt"

#: Xen's command line: no scrubbing of memory, no defence against speculation; both take emulation a long time. Dom0
#: keeps to its CPU, as PV guests do; PVH ones have the other (see `dom0-rc`).
XEN_OPTIONS: Final = (
    "console=com1 com1=115200,8n1 dom0_mem=512M,max:512M dom0_max_vcpus=1 dom0_vcpus_pin"
    " bootscrub=0 spec-ctrl=no xpti=off pv-l1tf=off"
)

_SSH: Final = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


class XenLabError(Exception):
    """The lab does not come up, or a command in it failed; the argument has the reason."""


def missing_commands() -> list[str]:
    """Return which of the commands that the lab runs are not installed."""
    needed: tuple[str, ...] = ("qemu-system-x86_64", "ip", "nsenter", "setpriv", "ssh", "ssh-keygen", "cpio", "depmod")
    needed += ("apt-get", "mkfs.ext4", "dig", "curl")
    return [command for command in needed if shutil.which(command) is None]


@functools.cache
def files() -> Path:
    """Return the directory that `build.sh` makes; needs the network if it is not in the cache."""
    built = subprocess.run([HERE / "build.sh", CACHE / "xenlab"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.splitlines()[-1])


class XenLab:
    """
    The machine, and the network that it is in.

    Attributes:
        network: its ``host`` has the bridge, its ``client`` stands for the world outside.
        console: a file with what Xen and dom0 say.
    """

    def __init__(self) -> None:
        """Make nothing yet; the context does."""
        self._ends = ExitStack()
        self.network = Network()
        self._directory = Path()
        self._qemu: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """
        Build what is not in the cache, start the machine and wait for dom0.

        Raises:
            XenLabError: it does not come up.
            demo.lab.NetworkUnavailableError: there can be no network namespaces.
        """
        built = files()
        with ExitStack() as ends:
            self._directory = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="jitsu-xen-")))
            ends.enter_context(self.network)
            self.console = self._directory / "console"
            self._start(built)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None,
    ) -> None:
        """Remove it all."""
        self.close()

    def close(self) -> None:
        """Pull the plug; the disk was never written to. Safe to call twice."""
        self._ends.close()

    def _start(self, built: Path) -> None:
        for words in ("tuntap add xen0 mode tap", f"link set xen0 master {BRIDGE}", "link set xen0 up"):
            self.network.run("host", ["ip", *words.split()])
        self._key = self._directory / "id"
        shutil.copy(built / "id", self._key)
        disk = _host_disk(self._directory, built)
        dom0 = f"{built / 'vmlinuz'} console=hvc0 mitigations=off quiet lab.host lab.ip={DOM0_IP}/24"
        command: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
        command += ["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU, "-smp", "2", "-m", "1536"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", built / "xen", "-append", XEN_OPTIONS, "-initrd", f"{dom0},{built / 'initramfs'}"]
        for number, (path, more) in enumerate([(built / "dom0.ext4", "snapshot=on"), (disk, "readonly=on")]):
            command += ["-drive", f"file={path},format=raw,if=none,id=d{number},cache=unsafe,{more}"]
            command += ["-device", f"virtio-blk-pci,drive=d{number}"]
        command += ["-netdev", "tap,id=n0,ifname=xen0,script=no,downscript=no"]
        command += ["-device", "virtio-net-pci,netdev=n0,romfile="]
        command += ["-chardev", f"file,id=c0,path={self.console}", "-serial", "chardev:c0"]
        self._qemu = self.network.popen("host", command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = time.monotonic() + BOOT_WITHIN
        while "LAB-READY" not in self.said():
            if self._qemu.poll() is not None:
                assert self._qemu.stderr is not None
                raise XenLabError(f"QEMU has ended: {self._qemu.stderr.read().decode()}\n{self.said()[-2000:]}")
            if time.monotonic() > end:
                raise XenLabError(f"dom0 is not up after {BOOT_WITHIN:.0f} s:\n{self.said()[-2000:]}")
            time.sleep(0.1)

    def said(self) -> str:
        """Return the output of Xen and dom0 on the console."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    # In dom0.

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs *argv* in dom0, by ssh."""
        return self.network.command("host", ["ssh", "-i", self._key, *_SSH, f"root@{DOM0_IP}", shlex.join(argv)])

    def run(self, argv: Sequence[str], *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """
        Run *argv* in dom0 to its end, and return what it printed, as text.

        Raises:
            XenLabError: its exit status was not 0, if *check*.
            subprocess.TimeoutExpired: it took more than `COMMAND_WITHIN`, or ``timeout`` if given.
        """
        options = {"capture_output": True, "text": True, "timeout": COMMAND_WITHIN} | options
        done = subprocess.run(self.command(argv), check=False, **options)
        if check and done.returncode:
            raise XenLabError(f"{shlex.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start *argv* in dom0; the options are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(argv), **options)

    def forward(self, path: Path, port: int) -> subprocess.Popen[Any]:
        """Forward a UNIX socket at *path* to a port on dom0's loopback, as long as the returned process runs."""
        words: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "ssh", "-i", self._key, *_SSH]
        words += ["-N", "-o", "StreamLocalBindUnlink=yes", "-L", f"{path}:127.0.0.1:{port}", f"root@{DOM0_IP}"]
        return self.network.popen("host", words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def put(self, path: str, content: str) -> None:
        """Write a file in dom0."""
        self.run(["sh", "-c", f"cat >{shlex.quote(path)}"], input=content)

    @staticmethod
    def python(*argv: str) -> list[str]:
        """Return the words that run Python in dom0 with the tree under test; *argv* is what follows ``python3``."""
        return ["env", "-C", "/lab/run", f"PYTHONPATH={SITE}:{TREE}", "python3", *argv]

    # From outside.

    def client(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run *argv* as a client, outside the machine; see `demo.lab.Network.run`."""
        return self.network.run("client", argv, **options)

    def query(self, name: str, *more: str, server: str = DOM0_IP, timeout: float = COMMAND_WITHIN) -> str:
        """Ask *server* once for *name* with dig, as a client; return its output."""
        program = ["dig", f"@{server}", "+tries=1", f"+timeout={timeout:.0f}", name, *more]
        return self.client(program, check=False).stdout

    def fetch(self, ip: str, path: str = "/", within: float = COMMAND_WITHIN) -> str:
        """Fetch a page with curl, as a client, trying until there is one; return it."""
        retry = ["--retry", "1000", "--retry-delay", "0", "--retry-all-errors", "--retry-max-time", f"{within:.0f}"]
        page = ["--connect-timeout", "1", "--max-time", "5", f"http://{ip}{path}"]
        return self.client(["curl", "--silent", "--fail", *retry, *page], timeout=within + 10).stdout


def _host_disk(directory: Path, built: Path) -> Path:
    """Make the disk with the tree under test and the packages that it needs."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    dom0s = re.search(r"^python3 (\d+\.\d+)", (built / "packages").read_text(), re.MULTILINE)
    if dom0s is None or dom0s[1] != ours:
        raise XenLabError(f"dom0 has Python {dom0s and dom0s[1]}, which cannot use the packages of this Python {ours}")
    stage = directory / "host"
    for part in PARTS:
        shutil.copytree(ROOT / part, stage / "tree" / part)  # with what is compiled already
    compileall.compile_dir(stage / "tree", quiet=2)
    for name in _needed("jitsu-tw"):
        package = distribution(name)
        for file in package.files or ():
            source, target = Path(str(package.locate_file(file))), stage / "site" / file
            if ".." not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    disk = directory / "host.ext4"
    with disk.open("wb") as file_:
        file_.truncate(400 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", stage, disk], check=True)
    shutil.rmtree(stage)
    return disk


def _needed(name: str) -> set[str]:
    """Return the names of all installed packages that *name* needs, but not itself (it is the tree)."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        try:
            requirements = distribution(waiting.pop()).requires or ()
        except PackageNotFoundError:
            continue
        for requirement in requirements:
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            extra = re.search(r"""extra == ["'](.*?)["']""", requirement)
            if match and (extra is None or extra[1] in EXTRAS) and match[0].lower() not in found:
                found.add(match[0].lower())
                waiting.append(match[0])
    return {one for one in found if _installed(one)}


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
