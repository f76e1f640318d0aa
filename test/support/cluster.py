"""
A laboratory for a cluster: three Jitsus, three etcds, two hosts with a libvirtd each, and a client.

Each host and each Jitsu has a network namespace of its own, plugged into the bridge of `demo.lab.Network`; the Jitsus
reach the etcds by a cable of their own, which can be cut.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo import lab
from demo import unikernel as guest
from demo.server import Jitsu
from test.support import asking
from test.support.etcds import Etcds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

HOSTS: Final = ("left", "right")
NODES: Final = ("ns1", "ns2", "ns3")
VMS: Final = ("www", "db")

#: Where they are: the name servers, the etcds and the VMs.
SERVERS: Final = tuple(f"10.99.0.1{number}" for number, _ in enumerate(NODES, 1))
ETCDS: Final = tuple(f"10.98.0.{number}" for number, _ in enumerate(NODES, 1))
IPS: Final = {name: f"10.99.0.2{number}" for number, name in enumerate(VMS, 1)}

#: Where the hosts are: each is called by its address, which others find it by when a VM goes on there.
MACHINES: Final = {name: f"10.99.0.3{number}" for number, name in enumerate(HOSTS, 1)}
NAMES: Final = {name: f"{name}.jitsu.test" for name in VMS}

#: The names of the VMs of the template `site`, if there is one, are below this one.
SITES: Final = "sites.jitsu.test"

#: Seconds that a claim lives without its owner.
TTL: Final = 2.0

#: Seconds from a question to its answer at the latest, as the name servers are told.
ANSWER_BY: Final = 1.2

#: Seconds that a VM is kept after its last use.
IDLE: Final = 4.0

#: Seconds that anything may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 60.0

#: Seconds between two looks at what runs, and between two questions for a name to a server.
LOOK_EVERY: Final = 0.1
ASK_EVERY: Final = 0.4

CONFIGURATION: Final = """\
bind: {server}
persistdb: state.git
ttl: 1
idle: {idle}
answer_by: {answer_by}
starts_per_minute: 0
{top}
cluster:
  etcd: [{etcds}]
  node: {node}
  ttl: {ttl}
hosts:
  - {{name: left, connect: "{connect[left]}"}}
  - {{name: right, connect: "{connect[right]}"}}
vms:
"""

VM: Final = """\
  - name: {name}
    host: any
    dns: {dns}
    ip: {ip}
    define: {name}.xml
    wait_for_port: 80
"""

#: Makes sure that a host is dead: kills its QEMUs and its libvirtd, by their ids, and sees them gone.
FENCE: Final = """\
#!/bin/sh
echo "$1" >>{directory}/fenced
case $1 in
    left) run=/proc/{left}/root/run ;;
    right) run=/proc/{right}/root/run ;;
    *) exit 1 ;;
esac
for file in $run/libvirtd.pid $run/libvirt/qemu/*.pid; do
    pid=$(cat $file) && grep -aqE 'libvirtd|qemu-system' /proc/$pid/cmdline || continue
    kill -9 $pid || exit
    while grep -aq . /proc/$pid/cmdline; do sleep 0.05; done
done 2>/dev/null
"""


class ClusterNetwork(lab.Network):
    """The network, with a namespace for each host and for each Jitsu."""

    def _make(self) -> None:
        super()._make()
        self._bridge("host", "etcd0", ETCDS[0])
        for ip in ETCDS:
            self._ip("host", f"address add {ip}/24 dev etcd0")
        for name in (*HOSTS, *NODES):
            self._hold(name, self._prefix("host"))
            self._plug(name, lab.BRIDGE, name, "eth0")
        for name in HOSTS:
            self._bridge(name, lab.BRIDGE, MACHINES[name])
            self._ip(name, f"link set eth0 master {lab.BRIDGE}")
            self._ip(name, f"address add {MACHINES[name]}/24 dev {lab.BRIDGE}")
        for number, (name, server) in enumerate(zip(NODES, SERVERS, strict=True), 1):
            self._ip(name, f"address add {server}/24 dev eth0")
            self._plug(name, "etcd0", f"etcd-{name}", "eth1")
            self._ip(name, f"address add 10.98.0.1{number}/24 dev eth1")

    def _plug(self, where: str, bridge: str, end: str, device: str) -> None:
        """Connect *device* of a namespace to a bridge of the host's, where its cable's end is called *end*."""
        self._ip("host", f"link add {end} type veth peer name {device} netns {self.holder(where)}")
        self._ip("host", f"link set {end} master {bridge} up")
        self._ip(where, f"link set {device} up")

    def holder(self, where: str) -> int:
        """Return the process that a namespace lives with."""
        return self._holders[where].pid

    def cut(self, node: str) -> None:
        """Cut a Jitsu off from the etcds."""
        self._ip("host", f"link set etcd-{node} down")

    def heal(self, node: str) -> None:
        """Connect it again."""
        self._ip("host", f"link set etcd-{node} up")


class Host:
    """A machine with a libvirtd, whose files are its own; only the directory of the sockets is seen by others."""

    def __init__(self, name: str, directory: Path, network: ClusterNetwork) -> None:
        """Make its files."""
        self.name, self._network, self._directory = name, network, directory / name
        self.connect = f"qemu+unix:///system?socket={self._directory}/libvirt-sock"
        lab.embed_root(self._directory)  # for its settings of QEMU
        for place in ("/run", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/etc/libvirt"):
            network.run(name, ["sh", "-c", f"mkdir -p {place} && mount -t tmpfs tmpfs {place}"])
        said = {"unix_sock_dir": self._directory, "auth_unix_rw": "none", "host_uuid": uuid.uuid4()}
        (self._directory / "libvirtd.conf").write_text("".join(f'{key} = "{value}"\n' for key, value in said.items()))
        for file in ("libvirtd.conf", "etc/qemu.conf"):
            network.run(name, ["cp", self._directory / file, "/etc/libvirt"])
        network.run(name, ["cp", "-rP", self._directory / "cache" / "qemu", "/var/cache/libvirt"])
        self._daemon: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        """Start its libvirtd."""
        with (self._directory / "libvirtd.log").open("ab") as log:
            self._daemon = self._network.popen(
                self.name, ["unshare", "--uts", "sh", "-c", f"hostname {MACHINES[self.name]} && exec libvirtd"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )

    def wait(self) -> None:
        """Wait until it listens."""
        Cluster.until((self._directory / "libvirt-sock").exists)

    def kill(self) -> None:
        """End its libvirtd as a crash does."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()


class Node(Jitsu):
    """One of the Jitsus."""

    def __init__(
        self, name: str, server: str, directory: Path, network: ClusterNetwork, linux: Collection[str]
    ) -> None:
        """Make a directory with the definitions of the VMs; those in *linux* boot the Linux guest."""
        self.name, self.where = name, name
        directory.mkdir()
        super().__init__(directory, "", server, network)
        for vm, ip in IPS.items():
            mac = f"52:54:00:99:00:{ip.rpartition('.')[2]}"
            xml = (
                lab.domain_xml(vm, ip, mac, lab.guest(), bridge=lab.BRIDGE)
                if vm in linux
                else guest.domain_xml(vm, ip, mac, bridge=lab.BRIDGE)
            )
            (directory / f"{vm}.xml").write_text(xml)
        ip, mac = "10.99.0.254", "52:54:00:99:00:fe"
        site = guest.domain_xml("${name}", ip, mac, uuid="${uuid}", bridge=lab.BRIDGE)
        (directory / "site.xml").write_text(site.replace(ip, "${ip}").replace(mac, "${mac}"))

    def configure(self, **said: Any) -> None:
        """Write its configuration."""
        text = CONFIGURATION.format(node=self.name, idle=IDLE, answer_by=ANSWER_BY, ttl=TTL, **said)
        vms = "".join(VM.format(name=vm, dns=NAMES[vm], ip=IPS[vm]) for vm in VMS)
        (self.directory / "jitsu.yaml").write_text(f"control: unix:{self.socket}\n{text}{vms}")

    def start(self) -> None:
        """Start it and wait until it serves, whether or not it has all hosts."""
        self._launch("jitsu", f"--zone={self.directory / 'jitsu.zone'}")
        self._until(lambda: self.socket.is_socket() and self._answers())

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def signal(self, what: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(what)

    def problems(self) -> list[str]:
        """Return the problems in its health."""
        health: dict[str, list[str]] = self.control.ask("GET", "/healthz")
        return health["problems"]

    def hosts(self) -> list[dict[str, Any]]:
        """Return the hosts, as it sees them."""
        hosts: list[dict[str, Any]] = self.control.ask("GET", "/v1/hosts")
        return hosts


@dataclass(frozen=True)
class Answer:
    """
    What became of a question.

    Attributes:
        asked: when it was asked, on the monotonic clock.
        took: seconds until there was an answer.
        server: which of the Jitsus was asked.
        name: the name asked for.
        rcode: the answer's, in words; "none" if there was no answer.
        ips: the addresses in it.
        edes: the Extended DNS Errors in it, each a code and words.
    """

    asked: float
    took: float
    server: int
    name: str
    rcode: str
    ips: list[str]
    edes: list[list[Any]]

    @property
    def is_good(self) -> bool:
        """Whether it has the VM's address; one that came too late for a client is none (`asking.LOST_AFTER`)."""
        vm = self.name.partition(".")[0]
        return self.rcode == "NOERROR" and self.ips == [IPS[vm]]


class Watch(threading.Thread):
    """Looks all the time at which QEMUs run for a VM, and remembers each, and whether there were two at once."""

    def __init__(self, network: lab.Network) -> None:
        super().__init__(daemon=True)
        self._network, self._over = network, threading.Event()
        self.seen: defaultdict[str, set[int]] = defaultdict(set)
        self.twice: list[tuple[str, list[int]]] = []

    def run(self) -> None:
        """Look."""
        while not self._over.wait(LOOK_EVERY):
            for vm, pids in qemus(self._network).items():
                self.seen[vm].update(pids)
                if len(pids) > 1:
                    self.twice.append((vm, pids))

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


def qemus(network: lab.Network) -> dict[str, list[int]]:
    """Return the QEMUs that run, by their VM; those by which libvirt learns what QEMU can do are none."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for pid in network.processes("qemu-system"):
        with contextlib.suppress(OSError):
            named = re.search(rb"\0guest=([\w.]+)", Path(f"/proc/{pid}/cmdline").read_bytes())
            if named is not None:
                found[named[1].decode()].append(pid)
    return found


class Cluster:
    """All of it, from `start` to `close`."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._ends = contextlib.ExitStack()

    def start(self, top: str = "", linux: Collection[str] = ()) -> None:
        """
        Start all, and wait until everybody is well. *top* goes into the configuration of the Jitsus.

        The VMs boot the guest without a kernel, but those that *linux* names boot the demo's Linux guest.

        Raises:
            NetworkUnavailableError: the machine does not let us make network namespaces.
        """
        with contextlib.ExitStack() as ends:
            self.network = ends.enter_context(ClusterNetwork())
            self.directory = Path(ends.enter_context(lab.directory()))
            run = partial(self.network.command, "host")
            self.etcds = Etcds(ETCDS, (2379, 2380), [run] * len(ETCDS))
            ends.callback(self.etcds.close)
            self.hosts = {name: Host(name, self.directory, self.network) for name in HOSTS}
            self.nodes = [
                Node(name, server, self.directory / name, self.network, linux)
                for name, server in zip(NODES, SERVERS, strict=True)
            ]
            fence = self.directory / "fence"
            fence.write_text(
                FENCE.format(directory=self.directory, **{name: self.network.holder(name) for name in HOSTS})
            )
            fence.chmod(0o755)
            connect = {name: host.connect for name, host in self.hosts.items()}
            for node, server in zip(self.nodes, SERVERS, strict=True):
                ends.callback(node.stop, signal.SIGKILL)
                node.configure(
                    server=server, top=top.format(fence=fence), etcds=", ".join(self.etcds.urls), connect=connect
                )
            for host in self.hosts.values():
                ends.callback(host.kill)
                host.start()
            self.etcds.start_all()
            for host in self.hosts.values():
                host.wait()
            self.start_nodes()
            self._ends = ends.pop_all()

    def close(self) -> None:
        """End all."""
        self._ends.close()

    def start_nodes(self) -> None:
        """Start the Jitsus that do not run, and wait until all of them are well."""
        with ThreadPoolExecutor(len(NODES)) as pool:
            for started in [pool.submit(node.start) for node in self.nodes if not node.is_up]:
                started.result()
        self.until(lambda: not any(node.problems() for node in self.nodes))

    def fact(self, key: str) -> dict[str, Any]:
        """Return what the Jitsus agree on; nothing if it is not there."""
        living = next(number for number, member in enumerate(self.etcds.members) if member.process is not None)
        said = self.etcds.ask(living, "kv/range", key=base64.b64encode(f"/jitsu/{key}".encode()).decode())
        found: dict[str, Any] = json.loads(base64.b64decode(said["kvs"][0]["value"])) if said.get("kvs") else {}
        return found

    @staticmethod
    def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """
        Wait until *condition* holds.

        Raises:
            TimeoutError: it does not, *patience* seconds later.
        """
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {patience:g} s")
            time.sleep(0.05)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch the QEMUs meanwhile."""
        watch = Watch(self.network)
        watch.start()
        try:
            yield watch
        finally:
            watch.end()

    @contextlib.contextmanager
    def asking(self, *vms: str, servers: Sequence[int] = (0, 1, 2), every: float = ASK_EVERY) -> Iterator[list[Answer]]:
        """Ask Jitsus for VMs, or for labels of the template, meanwhile; the answers come into the list."""
        answers: list[Answer] = []
        places = ",".join(SERVERS[server] for server in servers)
        names = ",".join(NAMES.get(vm, f"{vm}.{SITES}") for vm in vms)
        program = [sys.executable, asking.__file__, str(every), places, names]
        asker = self.network.popen("client", program, stdout=subprocess.PIPE, text=True)
        reader = threading.Thread(target=self._read, args=(asker.stdout, answers, servers), daemon=True)
        reader.start()
        try:
            yield answers
        finally:
            asker.kill()
            asker.wait()
            reader.join()

    @staticmethod
    def _read(lines: Any, answers: list[Answer], servers: Sequence[int]) -> None:
        for line in lines:
            said = json.loads(line)
            answers.append(Answer(**said | {"server": servers[said["server"]]}))

    def keep_logs(self, place: Path) -> None:
        """Copy what all of them have logged."""
        shutil.copytree(self.directory, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*sock*", "*.git"))
