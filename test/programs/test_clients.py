"""
Jitsu among programs that others wrote: resolvers in front of it, and clients that ask it themselves.

Each test has a Jitsu of its own, and the resolver tests a resolver: all processes on ports of loopback, run by the
user of the tests. Programs that are not installed are unpacked from Debian (`bench.debian`).
"""

from __future__ import annotations

import getpass
import json
import re
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.resolver
from twisted.trial.unittest import SkipTest

from bench.debian import UnavailableError, environment, unpacked
from demo.lab import free_port
from test.programs.test_tap import HOST, PATIENCE, ZONE, ProcessTestCase

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds that clients wait for an answer; nobody asks twice.
SOON: Final = 10

#: Too long for 512 octets, short enough for 1232.
LONG: Final = "".join(f'long 60 TXT "{number:060}"\n' for number in range(10))

VMS: Final = """
delay: 0
vms:
  - {name: one, dns: one.jitsu.test, ip: 10.0.0.1, boot_time: 1}
  - {name: three, dns: three.jitsu.test, ip: 10.0.0.3, boot_time: 3}
  - {name: deep, dns: deep.down.under.jitsu.test, ip: 10.0.0.4, boot_time: 1}
  - {name: fast, dns: fast.jitsu.test, ip: 10.0.0.5}
"""


class ClientTestCase(ProcessTestCase):
    """Has a Jitsu, and runs clients that come from Debian."""

    def setUp(self) -> None:
        """Make the zone."""
        super().setUp()
        (self.folder / "jitsu.zone").write_text(ZONE + LONG)

    def begin(self, configuration: str = VMS) -> None:
        """Start a Jitsu."""
        self.serve("--zone", "jitsu.zone", configuration=configuration)

    def root_of(self, package: str) -> Path:
        """Return where a Debian package is, or skip the test."""
        try:
            return unpacked(package)
        except UnavailableError as error:
            message = f"{package}: {error}"
            raise SkipTest(message) from error

    def dig(self, *arguments: str, port: int | None = None) -> str:
        """Run dig, once; return its output."""
        options = [f"@{HOST}", "-p", str(port or self.port), "+tries=1", f"+timeout={SOON}"]
        run = self.run_to_end("dig", *options, *arguments, env=environment(self.root_of("bind9-dnsutils")))
        return run.stdout

    def starts(self) -> dict[str, int]:
        """Return how often each VM was started, without those that never were."""
        vms = json.loads(self.jitsuctl("status", "--json").stdout)
        return {vm["name"]: vm["total_starts"] for vm in vms if vm["total_starts"]}

    def check_answer(self, said: str, address: str) -> None:
        """Check that dig got an answer: this address."""
        self.assertEqual(("NOERROR", [address]), (status(said), addresses(said)), f"{said}\n{self.log()}")


def status(said: str) -> str:
    """Return the response code in the output of dig or kdig; empty if there was no reply."""
    found = re.search(r"status: (\w+)", said)
    return found[1] if found else ""


def addresses(said: str) -> list[str]:
    """Return the addresses in the output of dig or kdig."""
    return re.findall(r"^\S+\s+\d+\s+IN\s+A\s+(\S+)$", said, re.MULTILINE)


class BehindTestCase(ClientTestCase):
    """Has a resolver in front of Jitsu."""

    package: str

    def configure(self) -> list[str]:
        """Write the resolver's files; return its command."""
        raise NotImplementedError

    def setUp(self) -> None:
        """Start both."""
        super().setUp()
        root = self.root_of(self.package)
        self.begin()
        self.front = free_port()
        with (self.folder / "resolver.log").open("wb") as log:
            process = subprocess.Popen(
                self.configure(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment(root),
            )
        self.addCleanup(self.end, process)
        end = time.monotonic() + PATIENCE
        while not self.serves():
            said = (self.folder / "resolver.log").read_text()
            self.assertIsNone(process.poll(), said)
            self.assertLess(time.monotonic(), end, said)
            time.sleep(0.02)

    def serves(self) -> bool:
        """Return whether the resolver answers a question that it does not forward."""
        query = dns.message.make_query("version.bind", "TXT", "CH")
        try:
            dns.query.udp(query, HOST, timeout=1, port=self.front)
        except (OSError, dns.exception.Timeout):
            return False
        return True


class ResolverTests:
    """
    A client behind a resolver: what holds for all of them.

    The resolver is asked once. That is more than clients need: a stub asks again after 5 s (resolv.conf(5)), when even
    a VM of three seconds is up.
    """

    def test_one_second(self: Any) -> None:
        """The first question that a resolver ever asks Jitsu is for a VM that takes a second."""
        self.check_answer(self.dig("one.jitsu.test", port=self.front), "10.0.0.1")
        self.assertEqual({"one": 1}, self.starts())

    def test_three_seconds(self: Any) -> None:
        """The first question that a resolver ever asks Jitsu is for a VM that takes longer than `answer_by`."""
        self.check_answer(self.dig("three.jitsu.test", port=self.front), "10.0.0.3")
        self.assertEqual({"three": 1}, self.starts())

    def test_known_to_be_quick(self: Any) -> None:
        """A resolver that has had quick answers, and so expects another, waits for cold VMs all the same."""
        self.assertEqual("fast: up\n", self.jitsuctl("start", "fast").stdout)
        self.check_answer(self.dig("fast.jitsu.test", port=self.front), "10.0.0.5")
        for number in range(10):
            self.assertEqual("NXDOMAIN", status(self.dig(f"nobody{number}.jitsu.test", port=self.front)))
        self.check_answer(self.dig("three.jitsu.test", port=self.front), "10.0.0.3")
        self.check_answer(self.dig("one.jitsu.test", port=self.front), "10.0.0.1")
        self.assertEqual({"fast": 1, "one": 1, "three": 1}, self.starts())

    def test_browser(self: Any) -> None:
        """A, AAAA and HTTPS at once, of a name below empty ones: all are answered, and the VM is started once."""
        queries = [dns.message.make_query("deep.down.under.jitsu.test", type_) for type_ in ("AAAA", "HTTPS", "A")]
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(SOON)
            client.connect((HOST, self.front))
            for query in queries:
                client.send(query.to_wire())
            replies = [dns.message.from_wire(client.recv(4096)) for _ in queries]
        self.assertEqual({query.id for query in queries}, {reply.id for reply in replies})
        self.assertEqual([dns.rcode.NOERROR] * 3, [reply.rcode() for reply in replies])
        found = [(rrset.name.to_text(), rrset[0].to_text()) for reply in replies for rrset in reply.answer]
        self.assertEqual([("deep.down.under.jitsu.test.", "10.0.0.4")], found)
        self.assertEqual({"deep": 1}, self.starts())


class BindTests(ResolverTests, BehindTestCase):
    """
    BIND, which finds Jitsu by a delegation, and minimises names.

    It asks again after 0.8 s; the answer to its second question goes to the client, as soon as the VM is up or at
    `answer_by`.
    """

    package = "bind9"

    def zone(self) -> str:
        """Return the zone's part of named.conf: named is the root, too, so that it never asks the Internet's."""
        (self.folder / "root.zone").write_text(
            "$TTL 60\n@ SOA . . 1 60 60 60 60\n  NS ns.root.\nns.root. A 127.0.0.1\n"
            f"jitsu.test. NS ns.jitsu.test.\nns.jitsu.test. A {HOST}\n"
        )
        return 'zone "." { type primary; file "root.zone"; };'

    def configure(self) -> list[str]:
        """Write named.conf; `port` is that of all servers which it asks."""
        (self.folder / "named.conf").write_text(f"""
            options {{
                directory "{self.folder}"; pid-file none; session-keyfile none; port {self.port};
                listen-on port {self.front} {{ {HOST}; }}; listen-on-v6 {{ none; }}; query-source address {HOST};
                dnssec-validation no; notify no; recursion yes;
            }};
            controls {{ }};
            {self.zone()}
        """)
        return ["named", "-g", "-c", "named.conf", "-n", "1"]


class BindForwardTests(BindTests):
    """BIND, which forwards to Jitsu: one question is enough for a VM of a second."""

    def zone(self) -> str:
        """Return the zone's part of named.conf."""
        return f'zone "jitsu.test" {{ type forward; forward only; forwarders {{ {HOST} port {self.port}; }}; }};'


class UnboundTests(ResolverTests, BehindTestCase):
    """
    Unbound, which has Jitsu as a stub zone's server and asks step by step.

    It closes a question's port and asks anew after 0.4 s, or after 0.05 s where answers have been quick, then after
    twice as long each time. What it knows 1.9 s after its client's question, it keeps to itself (`discard-timeout`): so
    the last of its questions must be answered by the first one's `answer_by`.
    """

    package = "unbound"
    kind = "stub"

    def configure(self) -> list[str]:
        """Write unbound.conf."""
        (self.folder / "unbound.conf").write_text(f"""
server:
  directory: "{self.folder}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  interface: {HOST}
  port: {self.front}
  outgoing-interface: {HOST}
  do-not-query-localhost: no
  module-config: "iterator"
  local-zone: "test." nodefault
remote-control:
  control-enable: no
{self.kind}-zone:
  name: "jitsu.test"
  {self.kind}-addr: {HOST}@{self.port}
""")
        return ["unbound", "-d", "-c", "unbound.conf"]


class UnboundForwardTests(UnboundTests):
    """Unbound, which forwards to Jitsu, with the same patience."""

    kind = "forward"


class DnsmasqTests(ResolverTests, BehindTestCase):
    """dnsmasq, which hands questions on, once, and waits."""

    package = "dnsmasq-base"

    def configure(self) -> list[str]:
        """All of it is options."""
        return [
            "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file=",
            f"--user={getpass.getuser()}", "--no-resolv", "--no-hosts", "--bind-interfaces",
            f"--listen-address={HOST}", f"--port={self.front}", f"--server=/jitsu.test/{HOST}#{self.port}",
        ]


class RecursorTests(ResolverTests, BehindTestCase):
    """PowerDNS Recursor, which asks once, and answers SERVFAIL after 1.5 s without an answer."""

    package = "pdns-recursor"

    def configure(self) -> list[str]:
        """All of it is options."""
        return [
            "pdns_recursor", f"--config-dir={self.folder}", f"--socket-dir={self.folder}", "--daemon=no",
            "--disable-syslog", "--security-poll-suffix=", "--dnssec=off", "--dont-query=", "--hint-file=no",
            f"--local-address={HOST}", f"--local-port={self.front}", f"--query-local-address={HOST}", "--threads=1",
            f"--forward-zones=jitsu.test={HOST}:{self.port}",
        ]


class DigTests(ClientTestCase):
    """dig, straight at Jitsu."""

    def setUp(self) -> None:
        """Serve."""
        super().setUp()
        self.begin(f"nsid: jitsu-1\n{VMS}")

    def test_plain(self) -> None:
        """A cold VM's address over UDP, a warm one's over TCP: AA is there, RA is not, and the TTL is the VM's."""
        for more in ("+notcp", "+tcp"):
            said = self.dig(more, "one.jitsu.test")
            self.check_answer(said, "10.0.0.1")
            self.assertIn(";; flags: qr aa rd; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1\n", said)
            self.assertIn("WARNING: recursion requested but not available", said)
            self.assertRegex(said, r"one\.jitsu\.test\.\s+60\s+IN")
        self.check_answer(self.dig("+tcp", "three.jitsu.test"), "10.0.0.3")
        self.assertEqual({"one": 1, "three": 1}, self.starts())

    def test_not_ready(self) -> None:
        """An answer that is sent before the VM is up has an EDE with this reason."""
        said = self.dig("three.jitsu.test")
        self.check_answer(said, "10.0.0.3")
        self.assertIn("EDE: 14 (Not Ready): (three is still starting)", said)

    def test_negative(self) -> None:
        """NXDOMAIN and NODATA have the SOA, and names in none of the zones are refused."""
        for arguments, code in ((["nobody.jitsu.test"], "NXDOMAIN"), (["one.jitsu.test", "AAAA"], "NOERROR"),
                                (["down.under.jitsu.test"], "NOERROR"), (["one.jitsu.test", "HTTPS"], "NOERROR")):
            said = self.dig(*arguments)
            self.assertEqual(code, status(said), said)
            self.assertRegex(said, r"flags: qr aa rd; QUERY: 1, ANSWER: 0, AUTHORITY: 1")
            self.assertRegex(said, r"(?m)^jitsu\.test\.\s+5\s+IN\s+SOA\s")
        self.assertEqual("REFUSED", status(self.dig("www.example.org")))
        self.assertEqual({}, self.starts())

    def test_cookie(self) -> None:
        """Dig finds its cookie, and a server's, in each reply, warm ones too; without one it gets none."""
        for _ in range(3):
            said = self.dig("fast.jitsu.test")
            self.check_answer(said, "10.0.0.5")
            self.assertRegex(said, r"; COOKIE: [0-9a-f]{48} \(good\)")
        self.assertNotIn("COOKIE", self.dig("+nocookie", "fast.jitsu.test"))
        self.assertNotIn("OPT PSEUDOSECTION", self.dig("+noedns", "fast.jitsu.test"))

    def test_options(self) -> None:
        """NSID is in the answer if asked for; a client subnet makes no difference; other options are ignored."""
        self.assertIn('("jitsu-1")', self.dig("+nsid", "fast.jitsu.test"))
        self.assertNotIn("NSID", self.dig("fast.jitsu.test"))
        said = self.dig("+subnet=192.0.2.0/24", "fast.jitsu.test")
        self.check_answer(said, "10.0.0.5")
        self.assertIn("; CLIENT-SUBNET: 192.0.2.0/24/0\n", said)
        said = self.dig("+subnet=0", "+keepalive", "+expire", "+padding=128", "+ednsopt=65001:cafe", "fast.jitsu.test")
        self.check_answer(said, "10.0.0.5")
        said = self.dig("+dnssec", "fast.jitsu.test")
        self.check_answer(said, "10.0.0.5")
        self.assertIn("; EDNS: version: 0, flags: do; udp: 1232\n", said)
        self.assertNotIn("RRSIG", said)
        self.assertIn("; EDNS: version: 0, flags:; udp: 1232\n", self.dig("+ednsflags=0x7fff", "fast.jitsu.test"))

    def test_versions(self) -> None:
        """EDNS versions above 0 get BADVERS; dig asks again with version 0 and gets its answer."""
        said = self.dig("+edns=1", "+noednsnegotiation", "one.jitsu.test")
        self.assertEqual("BADVERS", status(said), said)
        self.assertIn("; EDNS: version: 0, flags:; udp: 1232\n", said)
        self.assertEqual({}, self.starts())
        self.check_answer(self.dig("+edns=1", "one.jitsu.test"), "10.0.0.1")

    def test_sizes(self) -> None:
        """What is too long for the client is cut, and dig gets it over TCP."""
        for more in (["+bufsize=512"], ["+noedns"], ["+bufsize=0"]):
            self.check_answer(self.dig(*more, "fast.jitsu.test"), "10.0.0.5")
            said = self.dig(*more, "long.jitsu.test", "TXT")
            self.assertIn(";; Truncated, retrying in TCP mode.\n", said)
            self.assertIn("ANSWER: 10,", said)
            said = self.dig(*more, "+ignore", "long.jitsu.test", "TXT")
            self.assertIn("flags: qr aa tc rd;", said)
            self.assertLessEqual(int(re.findall(r"MSG SIZE  rcvd: (\d+)", said)[0]), 512)
        said = self.dig("long.jitsu.test", "TXT")
        self.assertNotIn("Truncated", said)
        self.assertIn("ANSWER: 10,", said)

    def test_case(self) -> None:
        """The answer has the letters of the question, cold and warm."""
        for name in ("oNe.JiTsU.TeSt", "OnE.jItSu.tEsT", "one.jitsu.test"):
            said = self.dig(name)
            self.check_answer(said, "10.0.0.1")
            self.assertEqual(2, len(re.findall(rf"(?m)^;?{re.escape(name)}\.\s", said)), said)
        self.assertEqual({"one": 1}, self.starts())

    def test_junk(self) -> None:
        """ANY, other opcodes, other classes and odd flags are answered and start nothing, but a Z flag is no junk."""
        for arguments, code in (
            (["one.jitsu.test", "ANY"], "NOERROR"), (["+notcp", "one.jitsu.test", "ANY"], "NOERROR"),
            (["+opcode=notify", "one.jitsu.test"], "NOTIMP"), (["+opcode=status", "one.jitsu.test"], "NOTIMP"),
            (["+opcode=15", "one.jitsu.test"], "NOTIMP"), (["-c", "CH", "one.jitsu.test"], "REFUSED"),
            (["+header-only", "+nocookie"], "FORMERR"), (["+header-only"], "NOERROR"),
        ):
            said = self.dig(*arguments)
            self.assertEqual(code, status(said), said)
            self.assertEqual("ANY" in arguments, "HINFO" in said, said)
        self.assertEqual({}, self.starts())
        self.check_answer(self.dig("+zflag", "+cdflag", "+adflag", "+norecurse", "one.jitsu.test"), "10.0.0.1")


class ProofTests(ClientTestCase):
    """Clients that must prove their address before they start a VM."""

    def setUp(self) -> None:
        """Serve."""
        super().setUp()
        self.begin(f"verify_source: true\n{VMS}")

    def test_cookie(self) -> None:
        """Dig, after BADCOOKIE, asks again with a good cookie."""
        said = self.dig("+nobadcookie", "one.jitsu.test")
        self.assertEqual("BADCOOKIE", status(said), said)
        self.assertEqual({}, self.starts())
        said = self.dig("one.jitsu.test")
        self.assertIn(";; BADCOOKIE, retrying", said)
        self.check_answer(said, "10.0.0.1")
        self.assertRegex(said, r"; COOKIE: [0-9a-f]{48} \(good\)")
        self.assertEqual({"one": 1}, self.starts())

    def test_no_cookie(self) -> None:
        """Dig without a cookie is sent to TCP, and gets there."""
        said = self.dig("+nocookie", "+ignore", "one.jitsu.test")
        self.assertRegex(said, r"flags: qr( aa)? tc rd; QUERY: 1, ANSWER: 0")
        self.assertEqual({}, self.starts())
        said = self.dig("+nocookie", "one.jitsu.test")
        self.assertIn(";; Truncated, retrying in TCP mode.", said)
        self.check_answer(said, "10.0.0.1")
        self.assertEqual({"one": 1}, self.starts())

    def test_warm(self) -> None:
        """All clients get the address of a VM that is up."""
        self.assertEqual("fast: up\n", self.jitsuctl("start", "fast").stdout)
        self.check_answer(self.dig("+nocookie", "+ignore", "fast.jitsu.test"), "10.0.0.5")


class OtherClientsTests(ClientTestCase):
    """kdig, host, delv, dnspython and what a program writes by hand, straight at Jitsu."""

    def setUp(self) -> None:
        """Serve."""
        super().setUp()
        self.begin()

    def other(self, package: str, *command: str) -> str:
        """Run a program from Debian to its end; return its output."""
        run = self.run_to_end(*command, env=environment(self.root_of(package)))
        self.assertEqual(0, run.returncode, f"{run.stdout}{run.stderr}")
        return run.stdout

    def kdig(self, *arguments: str) -> str:
        """Ask with kdig."""
        return self.other("knot-dnsutils", "kdig", f"@{HOST}", "-p", str(self.port), f"+timeout={SOON}", "+retry=0",
                          *arguments)

    def test_kdig(self) -> None:
        """UDP and TCP, with a cookie, with a padded and a plain question."""
        for more in (["+notcp"], ["+tcp"], ["+cookie"], ["+edns", "+padding=128"], ["+noedns"], ["+dnssec"]):
            said = self.kdig(*more, "one.jitsu.test")
            self.check_answer(said, "10.0.0.1")
            self.assertNotIn("WARNING", said)
        self.assertEqual({"one": 1}, self.starts())

    def test_kdig_keeps_the_connection(self) -> None:
        """Several questions in one connection, warm, cold and wrong ones."""
        names = ["fast", "one", "nobody", "three", "fast"]
        said = self.kdig("+tcp", "+keepopen", *(f"{name}.jitsu.test" for name in names))
        self.assertEqual(["NOERROR", "NOERROR", "NXDOMAIN", "NOERROR", "NOERROR"], re.findall(r"status: (\w+)", said))
        self.assertEqual(["10.0.0.5", "10.0.0.1", "10.0.0.3", "10.0.0.5"], addresses(said))

    def test_kdig_any(self) -> None:
        """ANY over UDP is one small record (RFC 8482), and starts nothing."""
        said = self.kdig("+notcp", "one.jitsu.test", "ANY")
        self.assertEqual(("NOERROR", 1), (status(said), said.count('HINFO\t"RFC8482"')), said)
        self.assertEqual({}, self.starts())

    def test_host(self) -> None:
        """Host asks for A, AAAA and MX."""
        said = self.other("bind9-host", "host", "-p", str(self.port), "-W", str(SOON), "one.jitsu.test", HOST)
        self.assertEqual("one.jitsu.test has address 10.0.0.1", said.splitlines()[-1])
        self.assertEqual({"one": 1}, self.starts())

    def test_delv(self) -> None:
        """Delv, which speaks as a validating resolver does."""
        said = self.other("bind9-dnsutils", "delv", f"@{HOST}", "-p", str(self.port), "-i", "one.jitsu.test")
        self.assertRegex(said, r"(?m)^one\.jitsu\.test\.\s+60\s+IN\s+A\s+10\.0\.0\.1$")
        self.assertEqual({"one": 1}, self.starts())

    def test_dnspython(self) -> None:
        """The stub resolver of dnspython: an address, a name that does not exist, a name without an address."""
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port, resolver.lifetime = [HOST], self.port, SOON
        for tcp in (False, True):
            answer = resolver.resolve("one.jitsu.test", "A", tcp=tcp, search=False)
            self.assertEqual(["10.0.0.1"], [record.to_text() for record in answer])
            self.assertRaises(dns.resolver.NXDOMAIN, resolver.resolve, "nobody.jitsu.test", "A", tcp=tcp, search=False)
            self.assertRaises(dns.resolver.NoAnswer, resolver.resolve, "one.jitsu.test", "AAAA", tcp=tcp, search=False)
        self.assertEqual({"one": 1}, self.starts())

    def test_pipelined(self) -> None:
        """Of many questions in one segment, those that can be are answered first; the held one is not lost."""
        names = ["three", *(["fast", "nobody"] * 20)]
        queries = [dns.message.make_query(f"{name}.jitsu.test", "A", id=number) for number, name in enumerate(names)]
        with socket.create_connection((HOST, self.port), timeout=SOON) as connection:
            connection.sendall(b"".join(struct.pack("!H", len(wire)) + wire for wire in (q.to_wire() for q in queries)))
            replies = [dns.query.receive_tcp(connection, time.time() + SOON)[0] for _ in queries]
        self.assertEqual(set(range(len(names))), {reply.id for reply in replies})
        self.assertEqual(0, replies[-1].id)
        self.assertEqual("10.0.0.3", replies[-1].answer[0][0].to_text())
