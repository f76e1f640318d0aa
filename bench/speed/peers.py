"""
The name servers that Jitsu is measured against, and Jitsu: each on a port of loopback, all with the same names.

Each has one core, one process (or thread) that answers, no rate limit, and gives the shortest answers that it can; all
else is as it is by itself. A newcomer is one function and one row in `PEERS`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver

from bench.debian import environment, unpacked
from bench.speed.server import HOST, Commands, Place, Server
from demo.lab import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ZONE: Final = "bench.test"
TTL: Final = 60

#: The programs of this environment.
BIN: Final = Path(sys.executable).parent

HEAD: Final = f"""\
$ORIGIN {ZONE}.
$TTL {TTL}
@    SOA  ns hostmaster 1 3600 600 86400 5
     NS   ns
ns   A    {HOST}
"""


def names(number: int) -> dict[str, str]:
    """Return so many names with an address each."""
    first = int(IPv4Address("10.0.0.0"))
    return {f"vm{one:06}.{ZONE}": str(IPv4Address(first + one)) for one in range(1, number + 1)}


# Each writes its files and returns its commands, the one that serves last.


def _zone(place: Place) -> Path:
    """Write all names as a zone; return its path."""
    records = (f"{name}. A {address}\n" for name, address in place.hosts.items())
    return place.write("zone", HEAD + "".join(records))


def nsd(place: Place) -> Commands:
    """NSD: one server process, RRL off."""
    path = place.write("nsd.conf", f"""\
server:
  server-count: 1
  ip-address: {HOST}@{place.port}
  username: ""
  chroot: ""
  zonesdir: "{place.folder}"
  database: ""
  pidfile: ""
  xfrdfile: "{place.folder}/xfrd.state"
  zonelistfile: "{place.folder}/zone.list"
  xfrdir: "{place.folder}"
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  minimal-responses: yes
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: "{_zone(place)}"
""")
    return [["nsd", "-d", "-c", str(path)]]


def knot(place: Place) -> Commands:
    """Knot: one UDP worker; without mod-rrl, no RRL."""
    path = place.write("knot.conf", f"""\
server:
  rundir: "{place.folder}"
  listen: "{HOST}@{place.port}"
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "{place.folder}"
log:
  - target: stderr
    any: warning
zone:
  - domain: {ZONE}
    file: "{_zone(place)}"
    journal-content: none
    zonefile-load: whole
""")
    return [["knotd", "-c", str(path)]]


def pdns_bind(place: Place) -> Commands:
    """PowerDNS with the bind backend and the caches that it has by itself."""
    place.write("named.conf", f'zone "{ZONE}" {{ type master; file "{_zone(place)}"; }};\n')
    return [_pdns(place, "launch=bind", f"bind-config={place.folder}/named.conf")]


def pdns_remote(place: Place) -> Commands:
    """PowerDNS, no caches, asking a Twisted program on a UNIX socket: Jitsu, if it were built so."""
    path = place.write("hosts.json", json.dumps(dict(place.hosts)))
    path_socket = place.folder / "remote.sock"
    caches = ("cache-ttl", "query-cache-ttl", "negquery-cache-ttl", "zone-cache-refresh-interval")
    off = [f"{cache}=0" for cache in caches]
    return [
        [sys.executable, "-m", "bench.speed.peers", str(path), str(path_socket)],
        _pdns(place, "launch=remote", f"remote-connection-string=unix:path={path_socket},timeout=60000", *off),
    ]


def _pdns(place: Place, *lines: str) -> list[str]:
    modules = [f"module-dir={path}" for path in place.root.glob("usr/lib/*/pdns")]
    place.write("pdns.conf", "\n".join([*lines, *modules, f"""\
local-address={HOST}
local-port={place.port}
socket-dir={place.folder}
daemon=no
guardian=no
receiver-threads=1
distributor-threads=1
security-poll-suffix=
disable-syslog=yes
loglevel=3
"""]))
    return ["pdns_server", f"--config-dir={place.folder}"]


class Remote(LineOnlyReceiver):
    """PowerDNS's remote protocol: a line of JSON asks, a line of JSON answers."""

    delimiter = b"\n"

    def __init__(self, records: Mapping[str, list[dict[str, Any]]]) -> None:
        """Answer with the records of each name."""
        self._records = records

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        """Answer one question."""
        asked = json.loads(line)
        result: Any = asked["method"] == "initialize"
        if asked["method"] == "lookup":
            kind, name = asked["parameters"]["qtype"], asked["parameters"]["qname"].rstrip(".").lower()
            result = [one for one in self._records.get(name, ()) if kind in {"ANY", one["qtype"]}] or False
        self.sendLine(json.dumps({"result": result}).encode())


@click.command()
@click.argument("hosts", type=click.Path(path_type=Path))
@click.argument("path")
def answer_remote(hosts: Path, path: str) -> None:
    """Answer PowerDNS on a UNIX socket."""
    soa = f"ns.{ZONE} hostmaster.{ZONE} 1 3600 600 86400 5"
    records = {ZONE: [_record(ZONE, "SOA", soa), _record(ZONE, "NS", f"ns.{ZONE}")]}
    for name, address in json.loads(hosts.read_text()).items():
        records[name] = [_record(name, "A", address)]
    loop: Any = reactor
    loop.listenUNIX(path, Factory.forProtocol(lambda: Remote(records)))
    loop.run()


def _record(name: str, kind: str, content: str) -> dict[str, Any]:
    return {"qtype": kind, "qname": name, "content": content, "ttl": TTL}


def twisted_names(place: Place) -> Commands:
    """twisted.names: ``twistd dns`` with a FileAuthority, whose zone is a Python program."""
    times = "serial=1, refresh=3600, retry=600, expire=86400, minimum=5"
    records = [f"SOA({ZONE!r}, mname='ns.{ZONE}', rname='hostmaster.{ZONE}', {times}, ttl={TTL})"]
    records += [f"NS({ZONE!r}, 'ns.{ZONE}', ttl={TTL})"]
    records += [f"A({name!r}, {address!r}, ttl={TTL})" for name, address in place.hosts.items()]
    path = place.write("zone.py", f"zone = [{', '.join(records)}]\n")
    return [[*_twistd(place), "dns", f"--port={place.port}", f"--interface={HOST}", f"--pyzone={path}"]]


def jitsu(place: Place) -> Commands:
    """Jitsu: every name a VM of the memory backend; all else as it is by itself, the state in a repository."""
    return serve_jitsu(place, persist=True)


def serve_jitsu(place: Place, *, persist: bool, turns: Path | None = None, more: str = "") -> Commands:
    """
    Return the command of a Jitsu whose VMs boot at once and stay up.

    Args:
        place: what it is made from.
        persist: keep the state in a repository.
        turns: where a report on the reactor's turns is written in the end (`bench.speed.turns`); None: nowhere.
        more: lines of the configuration.
    """
    place.write("jitsu.zone", HEAD)
    vms = (f"  - name: {name.partition('.')[0]}\n    dns: {name}\n    ip: {address}\n"
           for name, address in place.hosts.items())
    state = "persistdb: state.git\n" if persist else ""
    path = place.write("jitsu.yaml", f"""\
zones: [jitsu.zone]
bind: {HOST}
listen: {place.port}
control: off
backend: memory
{state}delay: 0
idle: 86400
starts_per_minute: 1000000
{more}vms:
{"".join(vms)}""")
    program = [] if turns is None else [sys.executable, "-m", "bench.speed.turns", str(turns)]
    return [[*_twistd(place, program), "jitsu", f"--config={path}"]]


def _twistd(place: Place, program: list[str] | None = None) -> list[str]:
    return [*(program or [str(BIN / "twistd")]), "-n", "--pidfile=", f"--rundir={place.folder}"]


@attrs.frozen
class Peer:
    """
    One kind of server.

    Attributes:
        title: for people; its version is added.
        make: writes its files and returns its commands.
        version: the command that prints its version.
        packages: of Debian, where its program is.
    """

    title: str
    make: Callable[[Place], Commands]
    version: tuple[str, ...]
    packages: tuple[str, ...] = ()


PDNS_VERSION: Final = ("pdns_server", "--version")

PEERS: Final = {
    "nsd": Peer("NSD", nsd, ("nsd", "-v"), ("nsd",)),
    "knot": Peer("Knot", knot, ("knotd", "-V"), ("knot",)),
    "pdns": Peer("PowerDNS, bind", pdns_bind, PDNS_VERSION, ("pdns-server", "pdns-backend-bind")),
    "remote": Peer("PowerDNS, remote", pdns_remote, PDNS_VERSION, ("pdns-server", "pdns-backend-remote")),
    "twisted": Peer("twisted.names", twisted_names, (str(BIN / "twistd"), "--version")),
    "jitsu": Peer("Jitsu", jitsu, (str(BIN / "twistd"), "jitsu", "--version")),
}


def start(peer: Peer, folder: Path, hosts: Mapping[str, str]) -> Server:
    """
    Start a server of a kind with its files in *folder*, which is made.

    Raises:
        UnavailableError: its program cannot be had.
    """
    root = unpacked(*peer.packages)
    folder.mkdir()
    place = Place(folder, free_port(), hosts, root)
    return Server(peer.make(place), environment(root), place)


def version(peer: Peer) -> str:
    """Return the number that a server's program calls its version."""
    root = unpacked(*peer.packages)
    run = subprocess.run(peer.version, capture_output=True, text=True, check=False, env=environment(root))
    found = re.search(r"\d+(\.\d+)+", run.stdout + run.stderr)
    return found[0] if found else ""


if __name__ == "__main__":
    answer_remote()
