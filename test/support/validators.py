"""
Programs by others around a Jitsu on loopback: resolvers that validate its answers, and authorities with the same zones.

Each program runs in the foreground, as the user of the tests, with all its files in a folder of the test's; no program
asks anything outside loopback. The resolvers know the key of each zone as a trust anchor, and where the zone's
server is; they are no part of a tree of delegations, so they do not minimise names.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode

from demo.lab import free_port
from test.support.signed_zones import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

HOST: Final = "127.0.0.1"

#: Seconds that a resolver may take for one answer.
ANSWER_BY: Final = 20.0


@attrs.frozen
class Served:
    """
    A zone that a server on loopback has.

    Attributes:
        apex: its name, without a final dot.
        port: of the server, UDP and TCP.
        anchor: a file with DS records of its key; None for a zone without signatures.
    """

    apex: str
    port: int
    anchor: Path | None = None


class Daemon:
    """
    A program that answers DNS queries on a port of loopback.

    Attributes:
        port: UDP and TCP.
    """

    def __init__(self, folder: Path, port: int, *command: str | Path) -> None:
        """Start *command* in *folder*, which exists."""
        self.port, self._log = port, folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __repr__(self) -> str:
        """Return its command."""
        return f"<{self._process.args!r}>"

    def log(self) -> str:
        """Return what the program has logged."""
        return self._log.read_text(errors="replace")

    def until_served(self, apex: str, *, cd: bool = False) -> None:
        """Wait until the SOA question for *apex* has an answer; with *cd*, one that may be bogus."""
        def answers() -> bool:
            try:
                return self.ask(apex, "SOA", timeout=1, cd=cd).rcode() == dns.rcode.NOERROR
            except (OSError, EOFError, dns.exception.DNSException):
                return False
        self.until(answers)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds; an AssertionError has the program's log."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{self!r}, {self._process.returncode}: {self.log()[-3000:]}")
            time.sleep(0.02)

    def ask(self, name: str, type_: str, *, tcp: bool = True, timeout: float = ANSWER_BY, payload: int = 1232,
            cd: bool = False) -> dns.message.Message:  # fmt: skip
        """Return the answer to a question with DO; over TCP, which fails at once where no program listens."""
        query = dns.message.make_query(name, type_, want_dnssec=True, payload=payload)
        query.flags |= dns.flags.AD | (dns.flags.CD if cd else 0)
        send: Any = dns.query.tcp if tcp else dns.query.udp
        answer: dns.message.Message = send(query, HOST, timeout=timeout, port=self.port)
        return answer

    def stop(self) -> None:
        """End the program."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def _folder(parent: Path, name: str) -> Path:
    folder = parent / f"{name}-{free_port()}"
    folder.mkdir()
    return folder


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Resolvers


def unbound(parent: Path, zones: Iterable[Served], *more: str) -> Daemon:
    """Start unbound, with aggressive use of denials (RFC 8198); *more* are lines of its section ``server``."""
    folder, port = _folder(parent, "unbound"), free_port()
    anchors = "".join(f'  trust-anchor-file: "{zone.anchor}"\n' for zone in zones if zone.anchor is not None)
    stubs = "".join(f'stub-zone:\n  name: "{zone.apex}"\n  stub-addr: {HOST}@{zone.port}\n' for zone in zones)
    options = "".join(f"  {line}\n" for line in more)
    path = _write(folder / "unbound.conf", f"""\
server:
  interface: {HOST}
  port: {port}
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  num-threads: 1
  do-ip6: no
  do-not-query-localhost: no
  local-zone: "test." nodefault
  qname-minimisation: no
  aggressive-nsec: yes
  module-config: "validator iterator"
  val-log-level: 2
  ede: yes
{anchors}{options}{stubs}forward-zone:
  name: "."
  forward-addr: {HOST}@1
remote-control:
  control-enable: no
""")
    return Daemon(folder, port, "/usr/sbin/unbound", "-d", "-c", path)


def kresd(parent: Path, zones: Iterable[Served]) -> Daemon:
    """Start Knot Resolver; it forwards the questions of each zone, and validates the answers."""
    folder, port = _folder(parent, "kresd"), free_port()
    anchors = "".join(f"trust_anchors.add([[{line}]])\n" for zone in zones if zone.anchor is not None
                      for line in zone.anchor.read_text().splitlines())  # fmt: skip
    forwards = "".join(
        f"policy.add(policy.suffix(policy.FORWARD({{'{HOST}@{zone.port}'}}), {{todname('{zone.apex}.')}}))\n"
        for zone in zones
    )
    path = _write(folder / "kresd.conf", f"""\
net.listen('{HOST}', {port}, {{ kind = 'dns' }})
net.ipv6 = false
log_target('stderr')
modules.unload('ta_update')
modules.unload('ta_signal_query')
modules.unload('priming')
modules.unload('detect_time_skew')
trust_anchors.remove('.')
cache.size = 10 * MB
{anchors}{forwards}policy.add(policy.all(policy.DENY))
""")
    return Daemon(folder, port, "/usr/sbin/kresd", "-n", "-c", path, folder)


def delv(zone: Served, name: str, type_: str = "A") -> str:
    """Return what BIND's ``delv`` prints: the answer with a comment whether it is validated; or why it is not."""
    assert zone.anchor is not None
    anchors = "".join(
        f'  "{owner}" static-ds {tag} {algorithm} {digest} "{"".join(data)}";\n'
        for owner, _, _, tag, algorithm, digest, *data in map(str.split, zone.anchor.read_text().splitlines())
    )
    with tempfile.NamedTemporaryFile("w", dir=zone.anchor.parent) as file:
        file.write(f"trust-anchors {{\n{anchors}}};\n")
        file.flush()
        done = subprocess.run(
            ["delv", f"@{HOST}", "-p", str(zone.port), "-a", file.name, f"+root={zone.apex}", name, type_],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    return done.stdout + done.stderr


# Authorities


def nsd(parent: Path, zones: Sequence[tuple[str, Path]], *, primary: int | None = None) -> Daemon:
    """
    Start NSD with *zones*, each an apex and a master file.

    Args:
        parent: gets the folder of its files.
        zones: what it has; the files are made by NSD where there is a primary.
        primary: the port of the server that it transfers the zones from, and accepts NOTIFY from.
    """
    folder, port = _folder(parent, "nsd"), free_port()
    fetch = f"  provide-xfr: {HOST} NOKEY\n"
    if primary is not None:
        fetch += f"  allow-notify: {HOST} NOKEY\n  request-xfr: AXFR {HOST}@{primary} NOKEY\n"
    path = _write(folder / "nsd.conf", f"""\
server:
  server-count: 1
  ip-address: {HOST}@{port}
  username: ""
  chroot: ""
  zonesdir: "{folder}"
  database: ""
  pidfile: ""
  logfile: "/dev/stderr"
  xfrdfile: "{folder}/xfrd.state"
  zonelistfile: "{folder}/zone.list"
  xfrdir: "{folder}"
  xfrd-reload-timeout: 0
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  minimal-responses: yes
  ipv4-edns-size: 1232
  verbosity: 2
remote-control:
  control-enable: no
""" + "".join(f'zone:\n  name: {apex}\n  zonefile: "{file}"\n{fetch}' for apex, file in zones))
    return Daemon(folder, port, "/usr/sbin/nsd", "-d", "-c", path)


def knot(parent: Path, zones: Sequence[tuple[str, Path]], *, primary: int | None = None) -> Daemon:
    """Start Knot with *zones*; the arguments are those of `nsd`."""
    folder, port = _folder(parent, "knot"), free_port()
    journal, load, sync = ("all", "none", 0) if primary is not None else ("none", "whole", -1)
    fetch = "" if primary is None else "    master: primary\n"
    remote = "" if primary is None else f"remote:\n  - id: primary\n    address: {HOST}@{primary}\n"
    path = _write(folder / "knot.conf", f"""\
server:
  rundir: "{folder}"
  listen: "{HOST}@{port}"
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
  udp-max-payload: 1232
database:
  storage: "{folder}"
log:
  - target: stderr
    any: info
{remote}acl:
  - id: loopback
    address: {HOST}
    action: [transfer, notify]
zone:
""" + "".join(f"""\
  - domain: {apex}
    file: "{file}"
    journal-content: {journal}
    zonefile-load: {load}
    zonefile-sync: {sync}
    semantic-checks: off
    acl: loopback
{fetch}""" for apex, file in zones))
    return Daemon(folder, port, "/usr/sbin/knotd", "-c", path)


# Programs that check a whole zone


def transferred(folder: Path, port: int, apex: str) -> Path:
    """Transfer the zone *apex* from the server at *port*; return a master file in *folder*."""
    path = folder / f"transferred-{free_port()}"
    path.write_text(_output("dig", f"@{HOST}", "-p", str(port), "+onesoa", "+nocomments", "+nocmd", "+nostats", apex,
                            "AXFR"))  # fmt: skip
    if "SOA" not in path.read_text():
        raise AssertionError(f"no transfer: {path.read_text()}")
    return path


def problems_of_zone(folder: Path, port: int, apex: str) -> str:
    """Return what BIND's and NLnet Labs' programs find wrong with the zone *apex*, transferred (`transferred`)."""
    path = str(transferred(folder, port, apex))
    return _complaint("dnssec-verify", "-q", "-z", "-o", apex, path) + _complaint("ldns-verify-zone", path)


def problems_of_answers(folder: Path, port: int, apex: str, names: Sequence[str]) -> str:
    """Return what DNSViz finds wrong with the answers for *names* in the zone *apex* from the server at *port*."""
    path = folder / f"probe-{free_port()}"
    _output("dnsviz", "probe", "-A", "-4", "-a", apex, "-x", f"{apex}+:{HOST}:{port}", "-d", "2", "-o", str(path),
            apex, *names)  # fmt: skip
    return _complaint("dnsviz", "grok", "-l", "warning", "-r", str(path))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def _complaint(*command: str) -> str:
    """Return the output of a *command* that has something to complain about; empty if it has nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if command[0] == "dnsviz":
        return done.stdout + done.stderr
    return f"{command[0]}: {done.stdout}{done.stderr}" if done.returncode else ""
