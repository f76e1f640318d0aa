"""
A tree of delegations, in a namespace: Knot has the root and ``test.``, Jitsu the zone below, and resolvers find it.

They begin at the root, know its key alone, and minimise names (RFC 9156), as resolvers do everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SkipTest

from test.programs.test_dnssec_validators import PROGRAMS
from test.programs.test_tap import BIN, PATIENCE, ProcessTestCase
from test.support.netns_lab import NetnsLab
from test.support.signed_zones import APEX, TEXT, run, sign

if TYPE_CHECKING:
    from collections.abc import Callable

#: Addresses of the namespace, all with port 53; Knot Resolver believes no delegation to loopback.
KNOT: Final = "10.9.0.1"
JITSU: Final = "10.9.0.2"
UNBOUND: Final = "10.9.0.3"
KRESD: Final = "10.9.0.4"

ROOT: Final = f"$ORIGIN .\n$TTL 300\n@ SOA ns.root. h.root. 1 3600 600 86400 60\n@ NS ns.root.\nns.root. A {KNOT}\n"
PARENT: Final = f"""\
$ORIGIN test.
$TTL 300
@        SOA ns h 1 3600 600 86400 60
@        NS ns
ns       A {KNOT}
jitsu    NS ns.jitsu
ns.jitsu A {JITSU}
"""

CONFIGURATION: Final = f"""\
zones: [signed.zone]
bind: {JITSU}
listen: 53
control: off
backend: memory
persistdb: state.git
dnssec: {{keys: keys}}
vms:
  - {{name: www, dns: www.{APEX}, ip: 10.0.0.1, ttl: 300}}
  - {{name: cold, dns: cold.{APEX}, ip: 10.0.0.2, ttl: 300, boot_time: 0.3}}
  - {{name: any, dns: "*.vms.{APEX}", ip: 10.0.0.3, ttl: 300}}
"""

KNOT_CONFIGURATION: Final = """\
server:
  rundir: "{folder}"
  listen: "{address}@53"
database:
  storage: "{folder}"
zone:
  - domain: .
    file: "{root}"
  - domain: test.
    file: "{parent}"
"""

UNBOUND_CONFIGURATION: Final = """\
server:
  interface: {address}
  access-control: 10.9.0.0/24 allow
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  do-ip6: no
  local-zone: "test." nodefault
  qname-minimisation: yes
  qname-minimisation-strict: yes
  aggressive-nsec: yes
  harden-below-nxdomain: yes
  root-hints: "{hints}"
  trust-anchor-file: "{anchor}"
remote-control:
  control-enable: no
"""

KRESD_CONFIGURATION: Final = """\
net.listen('{address}', 53, {{ kind = 'dns' }})
net.ipv6 = false
log_target('stderr')
modules.unload('ta_update')
modules.unload('ta_signal_query')
modules.unload('detect_time_skew')
modules.load('hints')
hints.root({{ ['ns.root.'] = '{knot}' }})
trust_anchors.remove('.')
trust_anchors.add([[{anchor}]])
policy.add(policy.suffix(policy.PASS, {{todname('test.')}}))
cache.size = 10 * MB
"""


class TreeTests(ProcessTestCase):
    """Resolvers that begin at the root."""

    def setUp(self) -> None:
        """Make the namespace."""
        super().setUp()
        missing = [program for program in (*PROGRAMS, "unshare", "nsenter") if not shutil.which(program)]
        if os.geteuid() != 0 or missing:
            raise SkipTest(f"only root can make namespaces; not installed: {', '.join(missing) or 'nothing'}")
        self.lab = NetnsLab(self.addCleanup)
        self.lab.batch("host", *(f"address add {address}/24 dev br0" for address in (JITSU, UNBOUND, KRESD)))

    def start(self, *command: str) -> None:
        """Start a program in the namespace."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(self.lab.command("host", *command), cwd=self.folder, stdout=log, stderr=log)
        self.addCleanup(self.end, process)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.1)

    def dig(self, server: str, name: str, type_: str = "A", *options: str) -> str:
        """Return what dig prints of a question with DO."""
        command = ["dig", f"@{server}", "+dnssec", "+tries=1", "+time=10", *options, name, type_]
        done = subprocess.run(self.lab.command("host", *command), capture_output=True, text=True, check=False,
                              timeout=PATIENCE)  # fmt: skip
        return done.stdout

    def test_from_the_root(self) -> None:
        """All answers are secure by the root's key, through the DS record that the parent takes from the key file."""
        (self.folder / "signed.zone").write_text(TEXT)
        (self.folder / "jitsu.yaml").write_text(CONFIGURATION)
        self.start(str(BIN / "twistd"), "-n", "--pidfile=", "jitsu", "--config", "jitsu.yaml")
        self.until(lambda: "NOERROR" in self.dig(JITSU, APEX, "SOA", "+tcp"))
        (key,) = (self.folder / "keys").glob("K*.key")
        ds = run(self.folder, "dnssec-dsfromkey", "-2", str(key))
        parent = sign(self.folder, "optout", text=PARENT + ds, apex="test.")
        root = sign(self.folder, "nsec", apex=".", text=f"{ROOT}test. NS ns.test.\nns.test. A {KNOT}\n"
                    + parent.anchor.read_text())  # fmt: skip
        (self.folder / "hints").write_text(f". 300 NS ns.root.\nns.root. 300 A {KNOT}\n")
        for name, text, values in (
            ("knot", KNOT_CONFIGURATION, {"address": KNOT, "root": root.path, "parent": parent.path}),
            ("unbound", UNBOUND_CONFIGURATION,
             {"address": UNBOUND, "hints": self.folder / "hints", "anchor": root.anchor}),
            ("kresd", KRESD_CONFIGURATION, {"address": KRESD, "knot": KNOT, "anchor": root.anchor.read_text().strip()}),
        ):
            (self.folder / name).mkdir()
            (self.folder / f"{name}.conf").write_text(text.format(folder=self.folder / name, **values))
        self.start("knotd", "-c", f"{self.folder}/knot.conf")
        self.until(lambda: "NOERROR" in self.dig(KNOT, "test.", "SOA"))
        self.start("unbound", "-d", "-c", f"{self.folder}/unbound.conf")
        self.start("kresd", "-n", "-c", f"{self.folder}/kresd.conf", f"{self.folder}/kresd")
        for server in (UNBOUND, KRESD):
            self.until(lambda server=server: "NOERROR" in self.dig(server, "test.", "SOA"))  # type: ignore[misc]
            for name, type_, rcode in (
                ("cold", "A", "NOERROR"), ("www", "A", "NOERROR"), ("one.vms", "A", "NOERROR"),
                ("x.y.vms", "A", "NOERROR"),
                ("a.b.c.d.ent", "TXT", "NOERROR"), ("c.d.ent", "A", "NOERROR"), ("nope.nope.nope", "A", "NXDOMAIN"),
                ("www", "TXT", "NOERROR"), ("a.dname", "A", "NOERROR"), ("b.c.dname", "TXT", "NOERROR"),
                ("secure", "DS", "NOERROR"), ("insecure", "DS", "NOERROR"), ("cnone", "A", "NXDOMAIN"),
                ("big", "TXT", "NOERROR"),
            ):  # fmt: skip
                answer = self.dig(server, f"{name}.{APEX}", type_)
                self.assertIn(f"status: {rcode}", answer, (server, name, type_, answer))
                self.assertRegex(answer, "flags: [a-z ]* ad[; ]", (server, name, type_, answer))
