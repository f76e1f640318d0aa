"""
The laboratory: a guest, a network and a hypervisor's directory, made for one run and removed after it.

Used by ``make demo``, by the end-to-end tests and by ``bench/speed/cold.py``. Nothing here knows Jitsu; nothing here
needs a daemon, and nothing is left on the machine but the guest in the cache.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType, TracebackType

HERE: Final = Path(__file__).resolve().parent

#: Where the guest is kept, and what else is the same in every run.
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "jitsu"

#: The network's addresses. The host is where Jitsu, QEMU and the bridge are.
HOST_IP: Final = "10.99.0.1"
CLIENT_IP: Final = "10.99.0.2"
HOST_IP6: Final = "fd99::1"
CLIENT_IP6: Final = "fd99::2"
BRIDGE: Final = "br0"
LOOPBACK: Final = "127.0.0.1"

#: The ports for servers of tests: below those that Linux gives to clients (ip_local_port_range), which may take one
#: between the look for a free port and the start of its server.
PORTS: Final = range(20000, 32768)

#: Loads a PVH kernel about 0.15 s sooner than SeaBIOS does under emulation. In Debian's qemu-system-data.
QBOOT: Final = Path("/usr/share/qemu/qboot.rom")

#: Leaves out what a kernel that is emulated pays for and a demo does not need: no self-tests of ciphers, no patching
#: against speculation, no security modules, no second pass over its page tables.
KERNEL_OPTIONS: Final = "quiet panic=-1 mitigations=off cryptomgr.notests rodata=off init_on_alloc=0 lsm="

#: What the process that a namespace lives with runs. Run by root, libvirt's QEMU driver does not start on a machine
#: without a user and a group `libvirt-qemu`, even if its settings name others, and Debian's package of the driver makes
#: none: where they are missing, the namespace's /etc/passwd and /etc/group have them; the machine's stay as they are.
HOLD: Final = """
mount -t sysfs sysfs /sys
for file in passwd group; do
    grep -q ^libvirt-qemu: /etc/$file && continue
    copy=$(mktemp) && cat /etc/$file >$copy && chmod 644 $copy || exit
    case $file in
        passwd) echo libvirt-qemu:x:0:0::/nonexistent:/usr/sbin/nologin ;;
        group) echo libvirt-qemu:x:0: ;;
    esac >>$copy
    mount --bind $copy /etc/$file
    rm $copy
done
ip link set lo up && echo ready && exec cat
"""

#: Asks the driver of libvirt that its argument names for what its QEMU can do.
LEARNS: Final = """
import sys, libvirt
libvirt.virEventRegisterDefaultImpl()
libvirt.open(sys.argv[1]).getDomainCapabilities()
"""

#: A namespace: "host" or "client".
Where = str


# The guest


@dataclass(frozen=True)
class Guest:
    """
    What a VM of the laboratory boots.

    Attributes:
        kernel: an ELF file with a PVH entry.
        initrd: an initial file system, if the kernel has one.
        options: the words that its command line begins with.
        prefix: what the keys `ip`, `ip6` and `gw` on its command line begin with.
        memory_mib: the memory that it needs, in MiB.
    """

    kernel: Path
    initrd: Path | None = None
    options: str = ""
    prefix: str = ""
    memory_mib: int = 16


@functools.cache
def guest() -> Guest:
    """
    Return the demo guest, building it first if it is not in the cache (needs the network then, so not in a
    namespace without one).

    Raises:
        subprocess.CalledProcessError: it could not be built; ``guest.sh`` has said why on standard error.
    """
    built = subprocess.run([HERE / "guest.sh", CACHE / "guest"], check=True, stdout=subprocess.PIPE, text=True)
    directory = Path(built.stdout.splitlines()[-1])
    return Guest(
        directory / "vmlinux",
        directory / "initramfs",
        KERNEL_OPTIONS,
        "jitsu.",
        memory_mib=96,  # 80 is the least that the kernel boots with
    )


@functools.cache
def kvm_works() -> bool:
    """
    Return whether KVM can boot the guest, by booting it.

    A ``/dev/kvm`` that exists, and even one that makes a VM and runs a few instructions, proves nothing: in some
    virtual machines a kernel hangs or QEMU aborts all the same. Takes a second where KVM works, and up to five where
    the guest hangs.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    files = guest()
    command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "96", "-nodefaults"]
    command += ["-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-kernel", str(files.kernel), "-initrd", str(files.initrd)]
    command += ["-append", f"{files.options} console=ttyS0 jitsu.exit"]
    try:
        tried = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0 and b"jitsu: guest is up" in tried.stdout


# The hypervisor


def directory() -> tempfile.TemporaryDirectory[str]:
    """Return a new directory, removed on leaving its context; short, as paths of UNIX sockets must be."""
    return tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True)


def embed_root(directory: Path) -> str:
    """
    Make ``directory`` the root of a libvirt QEMU driver of its own, and return the URI that opens it.

    One process at a time may have it open. QEMUs outlive that process; `stop_qemus` ends them. What libvirt learns
    about QEMU, which takes it three seconds, is kept in the cache for all roots.
    """
    settings = {
        "stdio_handler": '"file"',  # no virtlogd
        "security_driver": '"none"',
        "namespaces": "[]",
        "cgroup_controllers": "[]",
        "dynamic_ownership": "0",
        "remember_owner": "0",  # by trusted attributes of files, which root in a container may not set
    }
    if os.geteuid() == 0:
        settings |= {"user": '"root"', "group": '"root"'}
    (directory / "etc").mkdir(parents=True, exist_ok=True)
    (directory / "etc" / "qemu.conf").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
    learned = CACHE / "capabilities"
    learned.mkdir(parents=True, exist_ok=True)
    (directory / "cache" / "qemu").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (directory / "cache" / "qemu" / "capabilities").symlink_to(learned)
    return f"qemu:///embed?root={directory.resolve()}"


def learn(directory: Path, network: Network | None) -> None:
    """Make libvirt, with its root at ``directory``, learn about QEMU, which it else does for its first domain."""
    program = [sys.executable, "-c", LEARNS, embed_root(directory)]
    command = network.command("host", program) if network is not None else program
    subprocess.run(command, check=True, capture_output=True)


def stop_qemus(directory: Path) -> None:
    """Kill the QEMUs that a process with the embedded driver in ``directory`` has left behind."""
    root = os.fsencode(directory.resolve()) + b"/"

    def is_ours(pid: int) -> bool:
        command = _read(f"/proc/{pid}/cmdline").split(b"\0")
        return b"qemu-system" in command[0] and any(root in argument for argument in command)

    _kill(is_ours)


def memory(directory: Path) -> dict[str, float]:
    """
    Return the memory of each QEMU of the embedded driver in ``directory``, in MiB, by its VM's name.

    What several processes share is divided among them (``Pss`` in proc(5)).
    """
    root = os.fsencode(directory.resolve()) + b"/"
    found = {}
    for pid in _pids():
        command = _read(f"/proc/{pid}/cmdline")
        if root in command and (name := re.search(rb"\0guest=([^,\0]+)", command)):
            shares = re.findall(rb"^Pss: +(\d+) kB", _read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
            found[os.fsdecode(name[1])] = sum(map(int, shares)) / 1024
    return found


def domain_xml(
    name: str,
    ip: str,
    mac: str,
    files: Guest,
    *,
    uuid: str | None = None,
    bridge: str | None = None,
    tap: str | None = None,
    forward: tuple[int, int] | None = None,
    via: str = LOOPBACK,
    ip6: str | None = None,
    memory_mib: int | None = None,
    kvm: bool | None = None,
    console: Path | None = None,
    options: str = "",
    arguments: Sequence[str] = (),
) -> str:
    """
    Return libvirt's XML for a VM that boots ``files`` and serves HTTP on port 80 of ``ip``.

    The machine has what the guest uses and nothing else: each device costs it time to find. libvirt does not ask for
    the features of its CPU (``jitsu_tw.backends.domain_xml``).

    Args:
        name: the domain's name; here and below, a template's definition has placeholders.
        ip: its IPv4 address, in the laboratory's /24.
        mac: its MAC address.
        files: what to boot.
        uuid: the domain's UUID; libvirt makes one if not given.
        bridge: plug it into this bridge. Exactly one of bridge, tap and forward must be given.
        tap: plug it into this tap device, which exists.
        forward: no privileges: QEMU's own network, where (port here, port there) lets *via* reach the guest.
        via: the address here for that port, one of loopback's.
        ip6: an IPv6 address besides, in fd99::/64.
        memory_mib: its memory in MiB; what ``files`` need if not given.
        kvm: whether to use KVM; None finds out.
        console: write what the kernel says to this file (which makes it boot later).
        options: more words for the kernel's command line; ``demo/init`` names those that the demo guest knows.
        arguments: more words for QEMU's command line.

    Raises:
        ValueError: not exactly one kind of network was asked for.
    """
    if [bridge, tap, forward].count(None) != 2:
        msg = "give exactly one of bridge, tap and forward"
        raise ValueError(msg)
    if kvm is None:
        kvm = kvm_works()
    host = HOST_IP
    options = f"{files.options} {options} {files.prefix}ip={ip}/24 {files.prefix}gw={host}"
    if ip6 is not None:
        options += f" {files.prefix}ip6={ip6}/64"
    serial = ""
    if console is not None:
        options = options.replace("quiet ", "") + " console=ttyS0"
        serial = f"<serial type='file'><source path={quoteattr(str(console))}/></serial>"
    cpu = "<cpu mode='host-passthrough'/>" if kvm else "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
    loader = f"<loader type='rom'>{QBOOT}</loader>" if QBOOT.exists() else ""
    initrd = f"<initrd>{escape(str(files.initrd))}</initrd>" if files.initrd is not None else ""
    interface = ""
    if forward is not None:
        here, there = forward
        network = ipaddress.ip_interface(f"{host}/24").network
        arguments = [
            "-netdev",
            f"user,id=lab,net={network},host={host},hostfwd=tcp:{via}:{here}-{ip}:{there}",
            "-device",
            f"virtio-net-pci,netdev=lab,mac={mac},bus=pcie.0,addr=3,romfile=,disable-legacy=on",
            *arguments,
        ]
    else:
        kind = "bridge" if bridge is not None else "ethernet"
        plug = f"<source bridge={quoteattr(bridge)}/>" if bridge is not None else ""
        plug += f"<target dev={quoteattr(tap)} managed='no'/>" if tap is not None else ""
        interface = f"""
    <interface type='{kind}'>
      {plug}
      <mac address='{mac}'/>
      <model type='virtio-non-transitional'/>
      <rom enabled='no'/>
      <address type='pci' bus='0' slot='3'/>
    </interface>"""
    return f"""\
<domain type='{"kvm" if kvm else "qemu"}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(name)}</name>
  {f"<uuid>{uuid}</uuid>" if uuid else ""}
  <memory unit='MiB'>{memory_mib or files.memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    {loader}
    <kernel>{escape(str(files.kernel))}</kernel>
    {initrd}
    <cmdline>{escape(options)}</cmdline>
  </os>
  <features><acpi/><vmport state='off'/></features>
  {cpu}
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>{interface}
    {serial}
  </devices>
  <qemu:commandline>{"".join(f"<qemu:arg value={quoteattr(word)}/>" for word in arguments)}</qemu:commandline>
  <qemu:capabilities><qemu:del capability='cpu-unavailable-features'/></qemu:capabilities>
</domain>
"""


# The network


def free_port() -> int:
    """Return a port of loopback that is free for UDP and TCP, and that the kernel gives to no client meanwhile."""
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            for one in (tcp, udp):
                one.bind((LOOPBACK, port))
            return port


class NetworkUnavailableError(Exception):
    """The machine does not allow network namespaces; the argument has the reason."""


class Network:
    """
    Two network namespaces with a cable between them, for as long as the context lasts.

    ``host`` has the bridge ``br0`` (10.99.0.1/24, fd99::1/64), into which VMs and the cable to ``client``
    (10.99.0.2/24, fd99::2/64) are plugged. Each has ``/sys`` and ``lo`` of its own. They have no names, so that any
    number of runs goes on at once. A process waits in each for the end of its standard input, which comes when we end,
    however we end; then the kernel removes both, unless something else still runs there, as after a SIGKILL.

    Only root can have one: in a user namespace libvirt does not start QEMU (it may not set supplementary groups).

    On leaving, also by an exception, SIGINT or SIGTERM, every process in the namespaces is killed: whatever is there
    we started, or it was started by what we started.
    """

    def __init__(self) -> None:
        """Make nothing yet; the context does."""
        self._holders: dict[Where, subprocess.Popen[bytes]] = {}
        self._spaces: set[str] = set()
        self._old_sigterm: Any = None

    def __enter__(self) -> Self:
        """
        Make the namespaces.

        Raises:
            NetworkUnavailableError: the machine does not let us.
        """
        if threading.current_thread() is threading.main_thread():
            self._old_sigterm = signal.signal(signal.SIGTERM, _exit)
        try:
            self._make()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | subprocess.CalledProcessError):
                said = getattr(error, "stderr", None) or str(error)
                raise NetworkUnavailableError(said.strip()) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None,
    ) -> None:
        """Remove the namespaces and what runs in them."""
        self.close()

    def _make(self) -> None:
        if os.geteuid() != 0:
            raise PermissionError("only root may make network namespaces with bridges and start QEMU in them")
        self._hold("host", [])
        self._hold("client", self._prefix("host"))
        client = self._holders["client"].pid
        self._bridge("host", BRIDGE, HOST_IP)
        self._ip("host", f"link add cable type veth peer name eth0 netns {client}")
        self._ip("host", f"link set cable master {BRIDGE} up")
        self._ip("client", "link set eth0 up")
        addresses: tuple[tuple[Where, str, str, str], ...] = (
            ("host", BRIDGE, HOST_IP, HOST_IP6),
            ("client", "eth0", CLIENT_IP, CLIENT_IP6),
        )
        for where, device, ip, ip6 in addresses:
            self._ip(where, f"address add {ip}/24 dev {device}")
            self._ip(where, f"address add {ip6}/64 dev {device} nodad")

    def _bridge(self, where: Where, name: str, ip: str) -> None:
        """Make a bridge with a MAC made of *ip*: else it is the lowest of its ports', and changes when guests come."""
        mac = ipaddress.IPv4Address(ip).packed.hex(":")
        self._ip(where, f"link add {name} address 02:42:{mac} type bridge stp_state 0 forward_delay 0")
        self._ip(where, f"link set {name} up")

    def _hold(self, where: Where, prefix: list[str]) -> None:
        """Start the process that a namespace lives with."""
        holder = subprocess.Popen(
            [*prefix, "unshare", "--net", "--mount", "sh", "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is for us, not for it
        )
        self._holders[where] = holder
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"ready\n":
            raise OSError(holder.stderr.read().decode() or "unshare does not work here")
        self._spaces.add(_net_namespace(holder.pid))
        assert _net_namespace(os.getpid()) not in self._spaces  # close() kills all that is in them

    def _ip(self, where: Where, arguments: str) -> None:
        self.run(where, ["ip", *arguments.split()])

    def _prefix(self, where: Where) -> list[str]:
        return ["nsenter", f"--target={self._holders[where].pid}", "--net", "--mount", f"--wd={Path.cwd()}"]

    def command(self, where: Where, argv: Sequence[str | Path]) -> list[str]:
        """Return the command line that runs ``argv`` there, in the process that is started and in no child of it."""
        return [*self._prefix(where), *map(str, argv)]

    def popen(self, where: Where, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start ``argv`` there; the options are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(where, argv), **options)

    def run(self, where: Where, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """
        Run ``argv`` there to its end, and return what it printed, as text.

        Raises:
            subprocess.CalledProcessError: its exit status was not 0 (``check=False`` turns that off).
        """
        options = {"check": True, "capture_output": True, "text": True} | options
        return subprocess.run(self.command(where, argv), **options)  # noqa: PLW1510 -- it is in the options

    def processes(self, program: str) -> list[int]:
        """Return the processes in both namespaces whose program's path contains *program*."""
        return [
            pid
            for pid in _pids()
            if _net_namespace(pid) in self._spaces and program.encode() in _read(f"/proc/{pid}/cmdline").split(b"\0")[0]
        ]

    def pin(self, where: Where, ip: str, mac: str) -> None:
        """
        Tell ``where`` the MAC of ``ip`` beforehand.

        Linux asks for an address that does not answer once a second only, and sends no SYN meanwhile: who polls for a
        booting guest without this may meet it up to a second late.
        """
        device = BRIDGE if where == "host" else "eth0"
        self._ip(where, f"neighbour replace {ip} lladdr {mac} dev {device} nud permanent")

    def close(self) -> None:
        """Kill every process in the namespaces, which removes them. Safe to call twice."""
        with undisturbed():
            _kill(lambda pid: _net_namespace(pid) in self._spaces)
            for holder in self._holders.values():
                holder.kill()
                holder.communicate()
            self._holders.clear()
            self._spaces.clear()
            if self._old_sigterm is not None:
                signal.signal(signal.SIGTERM, self._old_sigterm)
                self._old_sigterm = None


def _exit(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- a signal handler's signature
    sys.exit(128 + number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the body has run."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 -- names, not paths


def _read(path: str) -> bytes:
    """Return what is in a file of /proc, or nothing if the process has gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _net_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:  # gone, or not ours to look at
        return ""


def _kill(condition: Callable[[int], bool]) -> None:
    """Kill every process whose PID meets the condition, and see it gone (for two seconds at most)."""
    while True:
        killed = []
        for pid in _pids():
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)  # from here on the number cannot mean another process
                if condition(pid):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.append(handle)
                else:
                    os.close(handle)
        limit = time.monotonic() + 2
        gone = 0
        for handle in killed:
            gone += bool(select.select([handle], [], [], max(0.0, limit - time.monotonic()))[0])
            os.close(handle)
        if gone < len(killed) or not killed:  # what does not die now never will; else look for what it had started
            return


def missing_commands() -> list[str]:
    """Return which of the commands that the laboratory runs are not installed."""
    needed = ("qemu-system-x86_64", "ip", "unshare", "nsenter", "curl", "dig", "apt-get", "cpio", "xz")
    return [command for command in needed if shutil.which(command) is None]
