"""
Namespaces around a bridge: a client, a guest that a test boots, and routers; and programs in them.

Nothing has a name on the machine: when the test ends, however it ends, the kernel removes everything.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 30.0

#: Runs in a namespace: begins to listen when standard input has a line, and prints when (CLOCK_MONOTONIC).
GUEST: Final = """
import json, socket, sys, threading, time

def serve(server):
    while True:
        one, _ = server.accept()
        threading.Thread(target=echo, args=(one,), daemon=True).start()

def echo(one):
    while octets := one.recv(65536):
        one.sendall(octets)
    one.close()

def echo_datagrams(server):
    while True:
        octets, peer = server.recvfrom(65536)
        server.sendto(octets, peer)

servers = []
for line in sys.stdin:
    ip, port, udp = json.loads(line)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((ip, port))
    if not udp:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        server.listen(64)
    at = time.monotonic()
    servers.append(server)
    threading.Thread(target=echo_datagrams if udp else serve, args=(server,), daemon=True).start()
    print(json.dumps({"at": at}), flush=True)
"""

#: Connects, sends something, and prints the outcome.
CLIENT: Final = """
import json, socket, sys, time

ip, port, words, fast, timeout = json.loads(sys.argv[1])
family = socket.AF_INET6 if ":" in ip else socket.AF_INET
result = {"begun": time.monotonic()}
one = socket.socket(family)
one.settimeout(timeout)
octets = words.encode()
print("begun", flush=True)
try:
    if fast:
        sent = one.sendto(octets, 0x20000000, (ip, port))  # MSG_FASTOPEN
        octets_left = octets[sent:]
    else:
        one.connect((ip, port))
        result["connected"] = time.monotonic()
        octets_left = octets
    one.sendall(octets_left)
    back = b""
    while len(back) < len(octets):
        back += one.recv(65536)
    result.setdefault("connected", time.monotonic())  # with Fast Open, nobody waits for that
    result["said"] = back.decode()
    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    result["lost"] = int.from_bytes(info[100:104], sys.byteorder)  # tcpi_total_retrans
    result["fast"] = bool(info[5] & 32)  # TCPI_OPT_SYN_DATA
except OSError as error:
    result["error"] = error.errno if error.errno is not None else str(error)
print(json.dumps(result), flush=True)
"""

#: Sends datagrams and waits for them to come back.
DATAGRAMS: Final = """
import json, socket, sys

ip, port, words, timeout = json.loads(sys.argv[1])
one = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(timeout)
one.connect((ip, port))
for word in words:
    one.send(word.encode())
print("begun", flush=True)
back = []
try:
    while len(back) < len(words):
        back.append(one.recv(65536).decode())
except OSError as error:
    pass
print(json.dumps({"said": back}), flush=True)
"""


@contextlib.contextmanager
def killed_late(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill *process* after `PATIENCE` seconds in this context: reading from it ends then, and the test fails."""
    late = threading.Timer(PATIENCE, process.kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


class Program:
    """A program in a namespace that prints its results in lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take the *process*."""
        self.process = process

    def line(self) -> str:
        """Return its next line; if none comes in time, kill it and return nothing."""
        assert self.process.stdout is not None
        with killed_late(self.process):
            return self.process.stdout.readline()

    def result(self) -> dict[str, Any]:
        """Wait for its end, and return the JSON of its last line."""
        result: dict[str, Any] = json.loads(self.process.communicate(timeout=PATIENCE)[0].splitlines()[-1])
        return result


class NetnsLab:
    """
    The namespaces, by name; ``host`` is there from the start, with the bridge ``br0`` (10.9.0.1/24, fd09::1/64).

    Args:
        cleanup: a test's `addCleanup`.
    """

    def __init__(self, cleanup: Callable[..., Any]) -> None:
        """Make the host and its bridge."""
        self._cleanup = cleanup
        self._spaces: dict[str, subprocess.Popen[bytes]] = {}
        self.add("host")
        self.bridge("br0", "10.9.0.1/24", "fd09::1/64")

    def add(self, name: str) -> None:
        """Make a namespace."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        self._spaces[name] = holder
        self._cleanup(self._end, holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"

    @staticmethod
    def _end(process: subprocess.Popen[Any]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def command(self, where: str, *words: str) -> list[str]:
        """Return the command line that runs *words* in the namespace."""
        return ["nsenter", f"--target={self._spaces[where].pid}", "--net", *words]

    def run(self, where: str, line: str) -> str:
        """Run a command line in the namespace, to its end, and return its output."""
        return subprocess.run(
            self.command(where, *line.split()), check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        ).stdout

    def batch(self, where: str, *lines: str) -> None:
        """Run several commands of ip(8) in the namespace, in one process."""
        words = "".join(f"{line}\n" for line in lines)
        subprocess.run(self.command(where, "ip", "-batch", "-"), check=True, input=words, text=True, timeout=PATIENCE)

    def start(self, where: str, *words: str) -> Program:
        """Start a program there."""
        process = subprocess.Popen(
            self.command(where, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._cleanup(self._end, process)
        return Program(process)

    def bridge(self, name: str, *addresses: str) -> None:
        """Make a bridge on the host."""
        self.run("host", f"ip link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
        for address in addresses:
            self.run("host", f"ip address add {address} dev {name}{' nodad' * (':' in address)}")
        self.run("host", f"ip link set {name} up")

    def plug(self, name: str, *addresses: str, bridge: str = "br0", up: bool = True, device: str = "eth0") -> None:
        """Plug a namespace, new if need be, into a bridge, with a device."""
        if name not in self._spaces:
            self.add(name)
        cable = f"{name}{device}"
        self.run("host", f"ip link add {cable} type veth peer name {device} netns {self._spaces[name].pid}")
        self.run("host", f"ip link set {cable} master {bridge} up")
        if up:
            self.run(name, f"ip link set {device} up")
        for address in addresses:
            self.address(name, address, device)

    def cable(self, one: str, two: str) -> None:
        """Connect two namespaces by a cable of their own; the ends are named after what is at the other one."""
        for name in (one, two):
            if name not in self._spaces:
                self.add(name)
        self.run(one, f"ip link add {two} type veth peer name {one} netns {self._spaces[two].pid}")
        self.run(one, f"ip link set {two} up")
        self.run(two, f"ip link set {one} up")

    def address(self, name: str, address: str, device: str = "eth0") -> None:
        """Add an address to a namespace."""
        self.run(name, f"ip address add {address} dev {device}{' nodad' * (':' in address)}")

    def sysctl(self, where: str, **values: int) -> None:
        """Set values there; two underscores stand for a dot."""
        for key, value in values.items():
            self.run(where, f"sysctl -qw {key.replace('__', '.')}={value}")

    def mac(self, name: str, device: str = "eth0") -> str:
        """Return a device's MAC."""
        links = json.loads(self.run(name, f"ip -json link show dev {device}"))
        return str(links[0]["address"])

    def neighbour(self, where: str, ip: str) -> str | None:
        """Return the MAC that a namespace believes an address to be at."""
        entries = json.loads(self.run(where, "ip -json neigh") or "[]")
        return next((entry.get("lladdr") for entry in entries if entry["dst"] == ip), None)

    def count(self, where: str, name: str) -> int:
        """Return one of the kernel's counters there (nstat(8))."""
        line = self.run(where, f"nstat -asz {name}").splitlines()[-1]
        return int(line.split()[1])

    def guest(self, where: str = "guest") -> Program:
        """Start a guest: a program in the namespace that listens when `listen` is called."""
        return self.start(where, sys.executable, "-c", GUEST)

    @staticmethod
    def listen(guest: Program, ip: str, port: int = 80, *, udp: bool = False) -> float:
        """Make a guest listen, and return the time since when it does."""
        assert guest.process.stdin is not None
        guest.process.stdin.write(json.dumps([ip, port, udp]) + "\n")
        guest.process.stdin.flush()
        return float(json.loads(guest.line())["at"])

    def connect(
        self, where: str, ip: str, port: int = 80, words: str = "hello", *, fast: bool = False,
        timeout: float = PATIENCE,
    ) -> Program:
        """Start a client there, and return when it is about to connect."""
        client = self.start(where, sys.executable, "-c", CLIENT, json.dumps([ip, port, words, fast, timeout]))
        client.line()
        return client

    def send(self, where: str, ip: str, port: int, words: list[str], timeout: float = PATIENCE) -> Program:
        """Send datagrams from there."""
        sender = self.start(where, sys.executable, "-c", DATAGRAMS, json.dumps([ip, port, words, timeout]))
        sender.line()
        return sender
