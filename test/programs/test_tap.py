"""``twistd jitsu``, ``twistd synjitsu`` and ``jitsuctl`` as processes: how they begin, refuse and end."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.xfr
import dns.zone
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo.lab import free_port
from jitsu_tw import __version__, sockets
from jitsu_tw.ctl.client import UnixConnection
from jitsu_tw.twistd import open_files

if TYPE_CHECKING:
    from http.client import HTTPConnection

BIN: Final = Path(sys.executable).parent
ROOT: Final = Path(__file__).parents[2]
HOST: Final = "127.0.0.1"

#: Seconds that a process may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 60.0

ZONE: Final = "$ORIGIN jitsu.test.\n@ 60 SOA ns h 1 2 3 4 5\n@ 60 NS ns\nns 60 A 127.0.0.1\n"


TOKEN: Final = "0123456789abcdef-of-the-tests"  # noqa: S105


class ProcessTestCase(SynchronousTestCase):
    """Has a folder with a zone and runs programs in it."""

    def setUp(self) -> None:
        """Make the folder."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "jitsu.zone").write_text(ZONE)
        self.port, self.control = free_port(), free_port()
        self.place = f"unix:{self.folder}/control.sock"

    def write_token(self, text: str = TOKEN, mode: int = 0o600) -> Path:
        """Write a file with a token."""
        path = self.folder / "token"
        path.write_text(f"{text}\n")
        path.chmod(mode)
        return path

    def run_to_end(self, *command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; return its output."""
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE, check=False, **more
        )

    def twistd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``twistd -n jitsu`` to its end, which must come by itself."""
        return self.run_to_end(BIN / "twistd", "-n", "--pidfile=", "jitsu", *arguments)

    def serve(
        self, *arguments: str, configuration: str = "", twistd: tuple[str, ...] = (), host: str = HOST
    ) -> subprocess.Popen[bytes]:
        """Start ``twistd -n jitsu``, *twistd* being options of twistd's, and wait until it answers; end it later."""
        (self.folder / "jitsu.yaml").write_text(
            f"listen: {self.port}\ncontrol: [{self.place}, '{HOST}:{self.control}']\nbackend: memory\n{configuration}"
        )
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "twistd", "-n", "--pidfile=", *twistd, "jitsu", *arguments],
                cwd=self.folder, stdout=log, stderr=log,
            )
        self.addCleanup(self.end, process)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask("nobody.test", "SOA", timeout=1, host=host)
            except OSError:
                self.assertIsNone(process.poll(), self.log())
                self.assertLess(time.monotonic(), end)
            except dns.exception.Timeout:
                pass
            else:
                return process
            time.sleep(0.02)

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        """End a process, if it has not ended."""
        if process.poll() is None:
            process.kill()
        process.wait()

    def log(self) -> str:
        """Return what the server has logged."""
        return (self.folder / "log").read_text()

    def until_logged(self, words: str) -> None:
        """Wait until the log contains *words*."""
        end = time.monotonic() + PATIENCE
        while words not in self.log():
            self.assertLess(time.monotonic(), end, self.log())
            time.sleep(0.02)

    def ask(self, name: str, type_: str = "A", timeout: float = PATIENCE, host: str = HOST) -> dns.message.Message:
        """Ask over TCP, which fails at once where no server listens."""
        query = dns.message.make_query(name, type_, use_edns=0)
        return dns.query.tcp(query, host, timeout=timeout, port=self.port)

    def jitsuctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run jitsuctl to its end."""
        return self.run_to_end(BIN / "jitsuctl", "--control", self.place, *arguments)


SECRET: Final = "c2VjcmV0IG9mIHRoZSB0ZXN0cw=="  # noqa: S105
TRANSFER: Final = f"tsig_keys: ['hmac-sha256:mine:{SECRET}']\n"

VMS: Final = """
vms:
  - {name: www, dns: www.jitsu.test, ip: 10.0.0.1, ttl: 30}
  - {name: bad, dns: bad.jitsu.test, ip: 10.0.0.2, faults: [start, stop]}
  - {name: slow, dns: slow.jitsu.test, ip: 10.0.0.3, boot_time: 30}
"""


class ServeTests(ProcessTestCase):
    """A server that runs."""

    def test_zone_and_file(self) -> None:
        """With a zone, the jitsu.yaml beside it is read; queries are answered over UDP and TCP."""
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
        query = dns.message.make_query("WWW.jitsu.test", "A")
        reply = dns.query.udp(query, HOST, timeout=PATIENCE, port=self.port)
        self.assertEqual("10.0.0.1", reply.answer[0][0].to_text())

    def test_config(self) -> None:
        """A file that is named is read, and its zones with it."""
        self.serve("--config", "jitsu.yaml", configuration=f"zones: jitsu.zone\n{VMS}")
        self.assertEqual("127.0.0.1", self.ask("ns.jitsu.test").answer[0][0].to_text())

    def test_positional(self) -> None:
        """The original's way: options, VMs, no file; a zone is made up, and logged."""
        self.serve(*f"-b {HOST} -l {self.port} -t 7 -m shutdown -d 0 -x memory --control off".split(),
                   "dns=www.example.org,ip=10.0.0.9,name=www")
        reply = self.ask("www.example.org")
        self.assertEqual(("10.0.0.9", 7), (reply.answer[0][0].to_text(), reply.answer[0].ttl))
        self.assertEqual(dns.rcode.NXDOMAIN, self.ask("nobody.example.org").rcode())
        self.assertIn("no zone file was given; made up from the VMs' names: example.org", self.log())

    def test_end(self) -> None:
        """SIGTERM ends it cleanly: what is remembered is written, and there is no traceback."""
        process = self.serve("--zone", "jitsu.zone", "--persistdb", "state.git", configuration=VMS)
        self.ask("www.jitsu.test")
        process.send_signal(signal.SIGTERM)
        # twistd ends by the signal that ended it, after everything has been stopped in order.
        self.assertEqual(-signal.SIGTERM, process.wait(PATIENCE))
        self.assertNotIn("Traceback", self.log())
        tree = self.run_to_end("git", "-C", "state.git", "ls-tree", "-r", "--name-only", "main").stdout
        self.assertIn("/dns/www.jitsu.test/total_requests", tree)

    def test_end_while_clients_wait(self) -> None:
        """
        At SIGTERM clients that wait for a VM get an EDE that the server is being stopped, by UDP and by TCP.

        A client that reads none of its answers delays the end by two seconds, not by more.
        """
        more = "  - {name: slower, dns: slower.jitsu.test, ip: 10.0.0.4, boot_time: 30}\n"
        text = " ".join(["x" * 250] * 200)
        (self.folder / "jitsu.zone").write_text(f"{ZONE}big 60 TXT {text}\n")
        process = self.serve("--zone", "jitsu.zone", configuration=f"answer_by: 60\n{VMS}{more}")
        command = ["dig", f"@{HOST}", "-p", str(self.port), "+tries=1", f"+time={PATIENCE:.0f}"]
        asked = [subprocess.Popen([*command, *words.split()], stdout=subprocess.PIPE)
                 for words in ("+notcp slow.jitsu.test", "+tcp slower.jitsu.test")]
        for one in asked:
            self.addCleanup(self.end, one)
        end = time.monotonic() + PATIENCE
        while sum(vm["total_starts"] for vm in json.loads(self.jitsuctl("status", "--json").stdout)) < len(asked):
            self.assertLess(time.monotonic(), end)
        with socket.create_connection((HOST, self.port), PATIENCE) as deaf:
            octets = dns.message.make_query("big.jitsu.test", "TXT").to_wire()
            deaf.settimeout(1)
            with contextlib.suppress(TimeoutError):  # until the server reads no more
                while True:
                    deaf.sendall((len(octets).to_bytes(2) + octets) * 100)
            process.send_signal(signal.SIGTERM)
            for one in asked:
                said, _ = one.communicate(timeout=PATIENCE)
                self.assertIn(b"status: SERVFAIL", said)
                self.assertIn(b"this server is being stopped", said)
            self.assertEqual(-signal.SIGTERM, process.wait(PATIENCE))
        self.assertNotIn("Traceback", self.log())

    def test_ends_once(self) -> None:
        """A second SIGTERM, or Ctrl-C, while it ends changes nothing, and is no traceback."""
        process = self.serve("--zone", "jitsu.zone", "--persistdb", "state.git", configuration=VMS)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            time.sleep(0.01)
        self.assertEqual(-signal.SIGTERM, process.wait(PATIENCE))
        self.assertNotIn("Traceback", self.log())

    def test_state_comes_first(self) -> None:
        """When it logs that it serves, the state has the VMs and can be cloned."""
        self.serve("--zone", "jitsu.zone", "--persistdb", "state.git", configuration=VMS)
        self.until_logged("serving 3 names of 3 VMs")
        tree = self.run_to_end("git", "-C", "state.git", "ls-tree", "-r", "--name-only", "main").stdout
        self.assertEqual(3, tree.count("/config/name/0"))

    def test_stalled(self) -> None:
        """A process that stood still for longer than `idle` reads what waits in its sockets before it stops a VM."""
        process = self.serve("--zone", "jitsu.zone", configuration=VMS.replace("ttl: 30", "ttl: 30, idle: 3"))
        self.ask("www.jitsu.test")
        process.send_signal(signal.SIGSTOP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            for name in ["ns.jitsu.test"] * 200 + ["www.jitsu.test"]:  # more than are read in one turn
                client.sendto(dns.message.make_query(name, "A").to_wire(), (HOST, self.port))
            time.sleep(5)
            process.send_signal(signal.SIGCONT)
            while not any("www" in rrset.to_text() for rrset in dns.message.from_wire(client.recv(4096)).answer):
                pass
        self.assertNotIn("idle for 3 s", self.log())

    def test_reload_of_many(self) -> None:
        """While a long zone is read again, the old one is served."""
        (self.folder / "jitsu.zone").write_text(f"{ZONE}old 60 A 192.0.2.9\n")
        process = self.serve("--zone", "jitsu.zone", configuration=VMS)
        (self.folder / "jitsu.zone").write_text(f"{ZONE}$GENERATE 1-20000 h$ 60 TXT text\n")
        process.send_signal(signal.SIGHUP)
        answers = 0
        while self.ask("old.jitsu.test").answer:
            answers += 1
        self.assertGreater(answers, 20)
        self.until_logged("reloaded: nothing has changed")

    def test_reload(self) -> None:
        """By SIGHUP or jitsuctl the zones are read again, for all names, warm ones too; a bad one changes nothing."""
        process = self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.ask("www.jitsu.test")
        (self.folder / "jitsu.zone").write_text(f"{ZONE}new 60 A 192.0.2.9\n")
        self.assertEqual("reloaded\n", self.jitsuctl("reload").stdout)
        self.assertEqual("192.0.2.9", self.ask("new.jitsu.test").answer[0][0].to_text())
        (self.folder / "jitsu.zone").write_text("nonsense")
        run = self.jitsuctl("reload")
        self.assertEqual(1, run.returncode)
        self.assertIn("jitsu.zone:1:", run.stderr)
        self.assertEqual("192.0.2.9", self.ask("new.jitsu.test").answer[0][0].to_text())
        (self.folder / "jitsu.zone").write_text(f"{ZONE}newer 60 A 192.0.2.10\n")
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + PATIENCE
        while not self.ask("newer.jitsu.test").answer:
            self.assertLess(time.monotonic(), end)
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())

    def test_reload_zone(self) -> None:
        """Of several zones, the one that is named is read alone; secondaries are notified of it alone."""
        other = self.folder / "other.zone"
        other.write_text(ZONE.replace("jitsu.test", "other.test"))
        with socket.socket(type=socket.SOCK_DGRAM) as secondary:
            secondary.bind((HOST, 0))
            secondary.settimeout(PATIENCE)
            place = f"{HOST}:{secondary.getsockname()[1]}"
            self.serve("--zone", "jitsu.zone", "--zone", "other.zone", configuration=f"notify: ['{place}']\n{VMS}")
            for _ in range(2):
                octets, address = secondary.recvfrom(4096)
                secondary.sendto(dns.message.make_response(dns.message.from_wire(octets)).to_wire(), address)
            self.ask("www.jitsu.test")
            other.write_text("nonsense")
            (self.folder / "jitsu.zone").write_text(f"{ZONE.replace('h 1', 'h 2')}new 60 A 192.0.2.9\n")
            self.assertEqual("reloaded\n", self.jitsuctl("reload", "Jitsu.test.").stdout)
            self.assertEqual("192.0.2.9", self.ask("new.jitsu.test").answer[0][0].to_text())
            self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
            notified = dns.message.from_wire(secondary.recv(4096))
            self.assertEqual("jitsu.test.", notified.question[0].name.to_text())
            for name, words in (("other.test", "other.zone:1:"), ("nobody.test", "nobody.test is not served")):
                run = self.jitsuctl("reload", name)
                self.assertEqual((1, True), (run.returncode, words in run.stderr), run.stderr)
            self.assertEqual(1, len(self.ask("other.test", "SOA").answer))

    def test_transfer(self) -> None:
        """A permitted client gets the whole zone, by address or by key, others nothing; no VM is started."""
        self.serve("--zone", "jitsu.zone", configuration=f"allow_transfer: [127.0.0.1, key mine]\n{TRANSFER}{VMS}")
        for host, key, permitted in ((HOST, None, True), ("127.0.0.2", None, False), ("127.0.0.2", "mine", True),
                                     ("127.0.0.2", "yours", False)):
            ring = dns.tsigkeyring.from_text({key: SECRET}) if key else None
            query, found = dns.message.make_query("jitsu.test", "AXFR"), dns.zone.Zone("jitsu.test.")
            if ring is not None:
                query.use_tsig(ring)
            with contextlib.ExitStack() as stack:
                if not permitted:
                    stack.enter_context(self.assertRaises((dns.xfr.TransferError, dns.tsig.PeerBadKey)))
                dns.query.inbound_xfr(HOST, found, query, port=self.port, timeout=PATIENCE, source=host)
            self.assertEqual(permitted, "www" in found, (host, key))
            if permitted:
                self.assertEqual("10.0.0.1", found.find_rdataset("www", "A")[0].to_text())
        self.assertEqual({0}, {vm["total_starts"] for vm in json.loads(self.jitsuctl("status", "--json").stdout)})

    def test_notify(self) -> None:
        """Secondaries are notified of a zone at the start and when its serial changes, signed if they have a key."""
        ring = dns.tsigkeyring.from_text({"mine": SECRET})
        with socket.socket(type=socket.SOCK_DGRAM) as secondary:
            secondary.bind((HOST, 0))
            secondary.settimeout(PATIENCE)
            place = f"{HOST}:{secondary.getsockname()[1]}"
            self.serve("--zone", "jitsu.zone", configuration=f"notify: ['{place} key mine']\n{TRANSFER}{VMS}")
            for serial in (1, 9):
                octets, address = secondary.recvfrom(4096)
                told = dns.message.from_wire(octets, keyring=ring)
                self.assertTrue(told.had_tsig)
                self.assertEqual((dns.opcode.NOTIFY, serial), (told.opcode(), told.answer[0][0].serial))
                reply = dns.message.make_response(told)
                secondary.sendto(reply.to_wire(), address)
                (self.folder / "jitsu.zone").write_text(ZONE.replace("SOA ns h 1", "SOA ns h 9"))
                self.assertEqual("reloaded\n", self.jitsuctl("reload").stdout)

    def test_dry_run(self) -> None:
        """A dry run answers as if all were up, starts nothing, and lists what it would have started."""
        self.serve("--zone", "jitsu.zone", "--dry-run", configuration=VMS)
        for name in ("www", "bad", "slow"):
            self.assertEqual(1, len(self.ask(f"{name}.jitsu.test").answer))
        would = json.loads(self.jitsuctl("dry-run", "--json").stdout)
        self.assertEqual({("www", "127.0.0.0/24", "A", 1), ("bad", "127.0.0.0/24", "A", 1),
                          ("slow", "127.0.0.0/24", "A", 1)}, {tuple(one.values()) for one in would})
        self.assertIn("127.0.0.0/24", self.jitsuctl("dry-run").stdout)
        self.assertEqual({0}, {vm["total_starts"] for vm in json.loads(self.jitsuctl("status", "--json").stdout)})

    def test_one_line_tells_an_activation(self) -> None:
        """An activation is one line of the log, with its steps in milliseconds."""
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.ask("www.jitsu.test")
        (line,) = [line for line in self.log().splitlines() if "www: up after" in line]
        for step in ("query 0", "admitted", "start", "started", "ready", "answered", "1 answered"):
            self.assertIn(step, line)


class SocketsTests(ProcessTestCase):
    """Several addresses, other people's sockets, and privileges."""

    def test_addresses(self) -> None:
        """It serves on all the configured addresses, of both families, and on no others."""
        self.serve("--zone", "jitsu.zone", configuration=f"bind: [127.0.0.1, 127.0.0.2, '::1']\n{VMS}")
        query = dns.message.make_query("ns.jitsu.test", "A")
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            for ask in (dns.query.udp, dns.query.tcp):
                reply: Any = ask(query, host, timeout=PATIENCE, port=self.port)
                self.assertEqual("127.0.0.1", reply.answer[0][0].to_text())
        self.assertRaises(OSError, dns.query.tcp, query, "127.0.0.3", timeout=PATIENCE, port=self.port)

    def test_systemd(self) -> None:
        """
        With sockets from systemd it binds none itself: a UNIX one is for control, the others are for DNS.

        They outlive it, as they are: clients that connect when it has ended wait for the next one.
        """
        (self.folder / "jitsu.yaml").write_text(f"listen: 1\nbackend: memory\n{VMS}")
        place = self.folder / "control.sock"
        with (
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            socket.socket() as tcp,
            socket.socket(socket.AF_UNIX) as control,
        ):
            udp.bind((HOST, self.port))
            tcp.bind((HOST, self.port))
            control.bind(str(place))
            place.chmod(0o640)
            tcp.listen()
            control.listen()
            program = (
                "import os, sys; fds = list(map(int, sys.argv[1].split(',')));"
                "fds = [os.dup2(os.dup(fd), 40 + n) for n, fd in enumerate(fds)];"
                "[os.dup2(fd, 3 + n, inheritable=True) for n, fd in enumerate(fds)];"
                "os.environ.update(LISTEN_FDS='3', LISTEN_FDNAMES='j:j:j', LISTEN_PID=str(os.getpid()));"
                "os.execv(sys.argv[2], sys.argv[2:])"
            )
            numbers = [one.fileno() for one in (udp, tcp, control)]
            command = [sys.executable, "-c", program, ",".join(map(str, numbers)), str(BIN / "twistd"), "-n",
                       "--pidfile=", "jitsu", "--zone", "jitsu.zone"]  # fmt: skip
            for _ in range(2):
                with (self.folder / "log").open("wb") as log:
                    process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, pass_fds=numbers)
                self.addCleanup(self.end, process)
                self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
                query = dns.message.make_query("www.jitsu.test", "A")
                self.assertEqual(1, len(dns.query.udp(query, HOST, timeout=PATIENCE, port=self.port).answer))
                run = self.run_to_end(BIN / "jitsuctl", "--control", f"unix:{place}", "status", "--json")
                self.assertEqual("up", json.loads(run.stdout)[0]["state"])
                self.assertEqual(0o640, stat.S_IMODE(place.stat().st_mode))
                process.terminate()
                self.assertEqual(-signal.SIGTERM, process.wait(PATIENCE), self.log())
                self.assertNotIn("Traceback", self.log())

    def test_privileges(self) -> None:
        """A port under 1024 is taken before twistd gives up root; the state is written by the user that is left."""
        if os.geteuid() != 0:
            raise SkipTest("only root can take such a port and give root up")
        self.port = 953
        self.folder.chmod(0o1777)
        nobody = pwd.getpwnam("nobody")
        process = self.serve(
            "--zone", "jitsu.zone", twistd=("--uid", str(nobody.pw_uid), "--gid", str(nobody.pw_gid)),
            configuration=f"bind: 127.9.5.3\npersistdb: state.git\n{VMS}", host="127.9.5.3",
        )
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test", host="127.9.5.3").answer[0][0].to_text())
        status = Path(f"/proc/{process.pid}/status").read_text()
        self.assertIn(f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}", status)
        self.assertEqual(nobody.pw_uid, (self.folder / "state.git" / "HEAD").stat().st_uid)


class HypervisorTests(ProcessTestCase):
    """What is wrong at a hypervisor keeps nothing else from being served."""

    def serves(self, connect: str) -> None:
        """Check that a VM of *connect* is SERVFAIL, and that another one is served."""
        self.serve("--zone", "jitsu.zone", configuration=(
            f"vms:\n  - {{name: nobody, dns: nobody.jitsu.test, ip: 10.0.0.9, backend: libvirt, connect: {connect}}}\n"
            "  - {name: www, dns: www.jitsu.test, ip: 10.0.0.1}\n"
        ))  # fmt: skip
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
        self.assertEqual(dns.rcode.SERVFAIL, self.ask("nobody.jitsu.test").rcode())

    def test_unknown_name(self) -> None:
        """A VM that libvirt does not know is an error in the log, with the remedy."""
        self.serves("test:///default")
        self.assertIn("nobody: Domain not found; define it there", self.log())

    def test_silent(self) -> None:
        """A hypervisor that accepts the connection and does not answer delays nothing else."""
        with socket.socket() as silent:
            silent.bind((HOST, 0))
            silent.listen()
            self.serves(f"qemu+tcp://{HOST}:{silent.getsockname()[1]}/system")


class RefusalTests(ProcessTestCase):
    """Mistakes are one clear line and an exit status; nothing is started."""

    def refused(self, words: str, *arguments: str, configuration: str = VMS) -> None:
        """Check that it ends with one line that contains *words*."""
        (self.folder / "jitsu.yaml").write_text(
            f"listen: {self.port}\ncontrol: [{self.place}, '{HOST}:{self.control}']\n{configuration}"
        )
        run = self.twistd(*(arguments or ("--zone", "jitsu.zone")))
        self.assertEqual(1, run.returncode, run.stderr)
        (line,) = [line for line in run.stderr.splitlines() if line.startswith("jitsu: ")]
        self.assertIn(words, line)
        self.assertNotIn("Traceback", run.stdout + run.stderr)

    def test_configuration(self) -> None:
        """A mistake in the file names the file, the line, the key and the remedy."""
        self.refused("jitsu.yaml:3: tll: no such key; did you mean ttl?", configuration="tll: 5\n")
        self.refused("jitsu.yaml:3: tll: no such key", "--dry-run", configuration="tll: 5\n")  # here, with no zone

    def test_missing_files(self) -> None:
        """A file that is not there is named."""
        self.refused("nowhere.zone", "--zone", "nowhere.zone")
        self.refused("nowhere.yaml: cannot be read", "--config", "nowhere.yaml")

    def test_files_of_twistd(self) -> None:
        """A pid file, or a log, that twistd cannot write is named with the remedy."""
        if os.geteuid() != 0:
            raise SkipTest("only root can give up privileges")
        (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\ncontrol: off\nbackend: memory\n{VMS}")
        nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
        for program, last in (("jitsu", ("--config", f"{self.folder}/jitsu.yaml")), ("synjitsu", ("-i", "lo"))):
            for options, words in (
                (("-n",), "cannot write the pid file /twistd.pid; choose another with twistd --pidfile=PATH, or none"),
                (("--pidfile=",), "cannot write the log /twistd.log; choose another with twistd --logfile=PATH"),
                (("--pidfile=/nowhere/pid",), "cannot write the pid file /nowhere/pid; "),
            ):
                run = subprocess.run([*nobody, BIN / "twistd", *options, program, *last], cwd="/", capture_output=True,
                                     text=True, timeout=PATIENCE, check=False)
                self.assertEqual(1, run.returncode)
                self.assertIn(f"{program}: {words}", run.stderr)
                self.assertNotIn("Traceback", run.stdout + run.stderr)

    def test_port_in_use(self) -> None:
        """A port that another process uses is named, for DNS and for control."""
        with socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind((HOST, self.port))
            self.refused(f"bind: cannot listen on {HOST} port {self.port}: Address already in use",
                         configuration=f"backend: memory\n{VMS}")
        with socket.socket() as tcp:
            tcp.bind((HOST, self.control))
            tcp.listen()
            self.refused(f"control: cannot listen on {HOST}:{self.control}: Address already in use",
                         configuration=f"backend: memory\n{VMS}")

    def test_damaged_state(self) -> None:
        """A state that cannot be read stops the start, with the remedy; it is not touched."""
        (self.folder / "state.git").mkdir()
        (self.folder / "state.git" / "letter").touch()
        self.refused("state.git is not a state that can be read",
                     configuration=f"persistdb: state.git\nbackend: memory\n{VMS}")

    def test_nothing_to_serve(self) -> None:
        """Without zones and VMs, it prints what it needs."""
        self.refused("there is nothing to serve", "-l", "5300", configuration="")


class ControlTests(ProcessTestCase):
    """jitsuctl and what it talks to."""

    def setUp(self) -> None:
        """Serve."""
        super().setUp()
        self.serve("--zone", "jitsu.zone", configuration=VMS)

    def test_status(self) -> None:
        """Status is a table, or a list of objects with the fields that programs rely on."""
        self.ask("www.jitsu.test")
        table = self.jitsuctl("status").stdout
        for word in ("www", "up", "off", "lease left", "never"):
            self.assertIn(word, table)
        vms = json.loads(self.jitsuctl("status", "--json").stdout)
        self.assertEqual(["www", "bad", "slow"], [vm["name"] for vm in vms])
        www = vms[0]
        self.assertEqual(("up", 1, 1), (www["state"], www["total_starts"], www["total_requests"]))
        self.assertTrue(0 < time.time() - www["last_request_ts"] < PATIENCE)
        self.assertTrue(0 < www["lease_left"] <= 60)
        self.assertEqual(36, len(www["uuid"]))
        self.assertEqual((None, None), (vms[1]["lease_left"], vms[1]["last_request_ts"]))

    def test_stand_ins(self) -> None:
        """Without Synjitsu, there are no stand-ins, and status does not mention them; there is no metric either."""
        said = json.loads(self.jitsuctl("standins", "--json").stdout)
        self.assertEqual((False, []), (said["configured"], said["standins"]))
        self.assertNotIn("stood in for", self.jitsuctl("status").stdout)

    def test_start_and_stop(self) -> None:
        """A VM is started and stopped by hand; a start gives it a lease."""
        self.assertEqual("www: up\n", self.jitsuctl("start", "www").stdout)
        www = json.loads(self.jitsuctl("start", "www", "--json").stdout)
        self.assertEqual((1, 0), (www["total_starts"], www["total_requests"]))
        self.assertTrue(0 < www["lease_left"] <= 60)
        self.assertEqual("www: off\n", self.jitsuctl("stop", "www").stdout)
        self.assertEqual("off", json.loads(self.jitsuctl("status", "--json").stdout)[0]["state"])

    def test_refusals(self) -> None:
        """What cannot be done is exit status 1 with the reason; no server is 3; wrong usage is 2."""
        for arguments, status, words in ((("start", "bad"), 1, "the start fails, as it was told to"),
                                         (("start", "nobody"), 1, "no VM of that name"),
                                         (("stop",), 2, "Missing argument")):
            run = self.jitsuctl(*arguments)
            self.assertEqual(status, run.returncode)
            self.assertIn(words, run.stderr)
        places = (f"{HOST}:{free_port()}", "see --control"), ("unix:nowhere", "is it running? see --control")
        for place, words in places:
            run = self.run_to_end(BIN / "jitsuctl", "--control", place, "status")
            self.assertEqual(3, run.returncode)
            self.assertIn(f"jitsuctl: no Jitsu answers at {place} (", run.stderr)
            self.assertIn(f"; {words}\n", run.stderr)

    def test_stop_during_a_start(self) -> None:
        """A stop during a start call waits for its end; clients that wait for the VM get an answer."""
        command = [str(BIN / "jitsuctl"), "--control", self.place, "start", "slow"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
            end = time.monotonic() + PATIENCE
            while json.loads(self.jitsuctl("status", "--json").stdout)[2]["state"] == "off":
                self.assertLess(time.monotonic(), end)
            self.addCleanup(self.request("POST", "/v1/vms/slow/stop").close)
            _, words = starting.communicate(timeout=PATIENCE)
        self.assertEqual("jitsuctl: slow: stopped while it was starting: stopped by hand\n", words)
        self.assertEqual("cancelling", json.loads(self.jitsuctl("status", "--json").stdout)[2]["state"])

    def request(self, method: str, path: str, **headers: str) -> HTTPConnection:
        """Send a request to the UNIX socket, as if to the other endpoint."""
        connection = UnixConnection(self.place.removeprefix("unix:"), PATIENCE)
        connection.request(method, path, headers={"Host": f"{HOST}:{self.control}", **headers})
        return connection

    def status(self, method: str, path: str, **headers: str) -> int:
        """Return the status of a request."""
        with contextlib.closing(self.request(method, path, **headers)) as connection:
            return connection.getresponse().status

    def test_strange_pages(self) -> None:
        """A page of another site cannot make a browser start or see a VM, by its own name or one of Jitsu's names."""
        here = f"{HOST}:{self.control}"
        cases: tuple[tuple[dict[str, str], int], ...] = (
            ({}, 200),
            ({"Origin": f"http://{here}"}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": f"evil.example:{self.control}"}, 403),
            ({"Host": f"localhost:{self.control}"}, 200),
        )
        for headers, status in cases:
            self.assertEqual(status, self.status("POST", "/v1/vms/www/start", **headers), headers)
            self.assertEqual(status, self.status("GET", "/v1/vms", **headers), headers)

    def test_strange_requests(self) -> None:
        """What the endpoint does not have is 404 or 405."""
        for method, path, status in (("GET", "/", 200), ("GET", "/v1/vms/nobody", 404), ("GET", "/v1/vms/www", 200),
                                     ("GET", "/v1/vms/www/start", 405), ("POST", "/v1/vms", 405),
                                     ("POST", "/v1/vms/www/explode", 404), ("GET", "/v1/vms/%ff", 404)):
            self.assertEqual(status, self.status(method, path), (method, path))


class SocketTests(ProcessTestCase):
    """The control endpoint on a UNIX socket."""

    def test_socket(self) -> None:
        """It is for its owner only, unless there is a group for it, and jitsuctl finds it."""
        place = f"unix:{self.folder}/control.sock"
        self.serve("--zone", "jitsu.zone", "--control", place, configuration=VMS)
        self.assertEqual(0o660 if self.group() else 0o600, (self.folder / "control.sock").stat().st_mode & 0o777)
        run = self.run_to_end(BIN / "jitsuctl", "--control", place, "start", "www")
        self.assertEqual("www: up\n", run.stdout)

    @staticmethod
    def group() -> bool:
        """Return whether this machine has the group."""
        return any(one.gr_name == sockets.GROUP for one in grp.getgrall())

    def test_default(self) -> None:
        """By default, both sides use the socket of the service, or of the user; no TCP port is open."""
        (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\nbackend: memory\n{VMS}")
        environment = {**os.environ, "RUNTIME_DIRECTORY": f"{self.folder}/run"}
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "twistd", "-n", "--pidfile=", "jitsu", "--config", "jitsu.yaml"], cwd=self.folder, stdout=log,
                stderr=log, env=environment,
            )
        self.addCleanup(self.end, process)
        self.until_logged("serving 3 names")
        run = self.run_to_end(BIN / "jitsuctl", "stop", "www", env=environment)
        self.assertEqual(("www: off\n", ""), (run.stdout, run.stderr))
        inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if ":0000 0A" in line}
        held = {str(one.readlink()) for one in Path(f"/proc/{process.pid}/fd").iterdir()}
        self.assertEqual(1, sum(f"socket:[{inode}]" in held for inode in inodes), "DNS, and nothing else")

    def test_stale(self) -> None:
        """A socket on which no process listens is replaced; that of a Jitsu that runs is not, nor is a file."""
        process = self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.end(process)
        self.assertTrue((self.folder / "control.sock").is_socket())
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        run = self.twistd("-x", "memory", "-l", str(free_port()), "--control", self.place,
                          "dns=www.example.org,ip=10.0.0.1,name=www")
        self.assertEqual(1, run.returncode)
        self.assertIn(f"jitsu: control: cannot listen on {self.place}: another process listens there; end it, or "
                      "choose another path\n", run.stderr)
        self.assertEqual(0, self.jitsuctl("status").returncode)

    def test_gone(self) -> None:
        """The socket is gone when Jitsu has ended; that it was gone before is no traceback."""
        for there in (True, False):
            process = self.serve("--zone", "jitsu.zone", configuration=VMS)
            if not there:
                (self.folder / "control.sock").unlink()
            process.terminate()
            process.wait(PATIENCE)
            self.assertFalse((self.folder / "control.sock").exists())
            self.assertIn("Server Shut Down.", self.log())
            self.assertNotIn("Traceback", self.log())


class DefaultTests(SynchronousTestCase):
    """Where the control socket is by default, and how one is made."""

    def test_control_socket(self) -> None:
        """It is systemd's folder for the service, root's, that of the session, or the home."""
        for user, environment, expected in (
            (0, {}, "/run/jitsu/control.sock"), (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/jitsu/control.sock"),
            (9, {"RUNTIME_DIRECTORY": "/run/jitsu2:/run/x"}, "/run/jitsu2/control.sock"),
            (9, {"XDG_RUNTIME_DIR": "/run/user/9"}, "/run/user/9/jitsu/control.sock"),
            (9, {"HOME": "/home/ann"}, "/home/ann/.jitsu/control.sock"),
        ):  # fmt: skip
            self.patch(os, "geteuid", lambda user=user: user)
            self.patch(os, "environ", environment)
            self.assertEqual(expected, sockets.control_socket())

    def test_find(self) -> None:
        """A user's own Jitsu goes before that of the machine, which is asked if there is a folder of it."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        own, system = folder / "own/jitsu/control.sock", folder / "system/control.sock"
        self.patch(os, "geteuid", lambda: 9)
        self.patch(os, "environ", {"XDG_RUNTIME_DIR": str(folder / "own")})
        self.patch(sockets, "SYSTEM", str(system))
        self.assertEqual(f"unix:{own}", sockets.find_control())
        system.parent.mkdir()
        self.assertEqual(f"unix:{system}", sockets.find_control())
        own.parent.mkdir(parents=True)
        own.touch()
        self.assertEqual(f"unix:{own}", sockets.find_control())

    def test_group(self) -> None:
        """The group may connect, if there is one and the socket can be given to it; nobody else may at any moment."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)

        def refuse(*_: object) -> None:
            raise PermissionError

        modes: list[int] = []

        def listen(path: str, _: object, mode: int) -> None:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path)
            modes.append(Path(path).stat().st_mode & 0o777)
            self.assertEqual(0o600, mode)

        for number, (group, chown, mode) in enumerate(
            ((os.getegid(), refuse, 0o660), (os.getegid() + 1, refuse, 0o600), (None, refuse, 0o600),
             (os.getegid() + 1, lambda *_: None, 0o660))
        ):
            path = folder / str(number)
            groups = {} if group is None else {"jitsu": SimpleNamespace(gr_gid=group)}
            self.patch(grp, "getgrnam", groups.__getitem__)
            self.patch(os, "chown", chown)
            sockets.listen(path, None, SimpleNamespace(listenUNIX=listen))
            self.assertEqual((mode, 0o600), (path.stat().st_mode & 0o777, modes[-1]))

    def test_folder(self) -> None:
        """Only its owner writes to the folder, and the group gets through it, whatever the umask is."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        for mask in (0o000, 0o077):
            path = folder / str(mask) / "deep/socket"
            with sockets.umask(mask):
                sockets.make_way(path)
            self.assertEqual([0o755] * 2, [one.stat().st_mode & 0o777 for one in (path.parent, path.parent.parent)])
        for mode, refused in ((0o777, True), (0o1777, False), (0o775, False)):
            path.parent.chmod(mode)
            if refused:
                self.assertRaisesRegex(OSError, "any user may replace .* chmod o-w", sockets.make_way, path)
            else:
                sockets.make_way(path)

    def test_hung(self) -> None:
        """A process that listens and does not take connections any more is there all the same."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        path = str(folder / "socket")
        with contextlib.ExitStack() as stack:
            hung = stack.enter_context(socket.socket(socket.AF_UNIX))
            hung.bind(path)
            hung.listen(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client = stack.enter_context(socket.socket(socket.AF_UNIX))
                    client.setblocking(False)  # noqa: FBT003
                    client.connect(path)
            with self.assertRaisesRegex(OSError, "another process listens there"):
                sockets.make_way(Path(path))
            self.assertTrue(Path(path).exists())


class FilesTests(ProcessTestCase):
    """File descriptors, of which each kind of client has its part."""

    def test_control_takes_all(self) -> None:
        """However many clients connect to the control endpoint, DNS over TCP is answered, and so is the operator."""
        command = ("prlimit", "--nofile=900:900", "--", BIN / "twistd")
        (self.folder / "jitsu.yaml").write_text(
            f"listen: {self.port}\ncontrol: [{self.place}, '{HOST}:{self.control}']\nbackend: memory\n{VMS}"
        )
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-n", "--pidfile=", "jitsu", "--config", "jitsu.yaml"], cwd=self.folder, stdout=log,
                stderr=log,
            )
        self.addCleanup(self.end, process)
        self.until_logged("serving 3 names")
        self.until_logged("this process may open 900 files, fewer than the 1400 that")
        with contextlib.ExitStack() as stack:
            for number in range(1000):
                client = stack.enter_context(socket.socket())
                client.bind((f"127.0.{number % 9}.1", 0))
                client.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionError):
                    client.connect((HOST, self.control))
            self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
            self.assertEqual("www: off\n", self.jitsuctl("stop", "www").stdout)
            self.assertLess(len(list(Path(f"/proc/{process.pid}/fd").iterdir())), 300)

    def test_raised(self) -> None:
        """The soft limit is raised as far as the hard one allows; where that is enough, nothing is logged."""
        limits: list[Any] = []
        self.patch(resource, "setrlimit", lambda _, to: limits.append(to))
        for limit, expected, words in (
            ((1024, 4096), (1400, 4096), ""), ((1024, resource.RLIM_INFINITY), (1400, resource.RLIM_INFINITY), ""),
            ((256, 512), (512, 512), "may open 512 files"), ((2000, 2000), None, ""),
            ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, ""),
        ):  # fmt: skip
            self.patch(resource, "getrlimit", lambda _, limit=limit: limit)
            limits.clear()
            said = open_files(1400)
            self.assertEqual(([] if expected is None else [expected], bool(words)), (limits, bool(said)))
            self.assertIn(words, said)


class SynjitsuTests(ProcessTestCase):
    """``twistd synjitsu``."""

    def test_refuses(self) -> None:
        """It ends with one line where it cannot work, or shall not."""
        for name, text, mode in (("short", "12345", 0o600), ("open", "x" * 20, 0o644), ("file", "x" * 20, 0o600)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(mode)
        (self.folder / "folder").mkdir()
        (self.folder / "link").symlink_to("nowhere")
        is_in_the_way = "that is no socket; remove it, or choose another path"
        others = "other hosts can connect there and take over any address of the bridge"
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(self.folder / "taken"))
            taken.listen()
            for arguments, words in (
                ((), "name the bridge to stand in on, with -i; here are: lo"),
                (("-i", "nowhere0"), "there is no interface 'nowhere0'; here are: lo"),
                (("-i", "lo", "--listen", "unix:taken"), "cannot listen on unix:taken: another process listens there"),
                (("-i", "lo", "--listen", "unix:file"), f"cannot listen on unix:file: there is a file {is_in_the_way}"),
                (("-i", "lo", "--listen", "unix:folder"), f"there is a directory {is_in_the_way}"),
                (("-i", "lo", "--listen", "unix:link"), f"there is a symbolic link {is_in_the_way}"),
                (("-i", "lo", "--listen", "unix:file/socket"), "cannot listen on unix:file/socket: "),
                (("-i", "lo", "--listen", "tcp:0"), others),
                (("-i", "lo", "--listen", "tcp6:0:interface=\\:\\:", "--secret", "file"), others),
                (("-i", "lo", "--secret", "short"), "--secret short: write 16 characters or more"),
                (("-i", "lo", "--secret", "open"), "--secret open: everybody may read it"),
                (("-i", "lo", "--secret", "missing"), "--secret missing: No such file or directory"),
                (("-i", "lo", "--listen", "nonsense"), "--listen nonsense: "),
                (("-i", "lo", "--standin", "10.0.0.1"), "--standin 10.0.0.1: write it like 10.0.0.1=52:54"),
                (("-i", "lo", "--refuse", "loudly"), "--refuse loudly: write one of silence, rst, unreachable"),
            ):
                run = self.run_to_end(BIN / "twistd", "-n", "--pidfile=", "synjitsu", *arguments)
                self.assertEqual(1, run.returncode, arguments)
                self.assertIn(words, run.stdout + run.stderr)
                self.assertNotIn("Traceback", run.stdout + run.stderr)

    def test_version(self) -> None:
        """Both print their own version, not Twisted's."""
        for name in ("Jitsu", "Synjitsu"):
            run = self.run_to_end(BIN / "twistd", name.lower(), "--version")
            self.assertEqual((0, f"{name} {__version__}\n"), (run.returncode, run.stdout))

    def test_unprivileged(self) -> None:
        """Without CAP_NET_RAW the error names it."""
        if os.geteuid() != 0:
            raise SkipTest("only root can give up privileges")
        self.folder.chmod(0o777)
        nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
        run = self.run_to_end(*nobody, BIN / "twistd", "-n", "--pidfile=", "synjitsu", "-i", "lo", "--listen",
                              "unix:socket")
        self.assertEqual(1, run.returncode)
        self.assertRegex(run.stderr, r"synjitsu: cannot capture from lo: .*CAP_NET_RAW.*\n")

    def test_starts(self) -> None:
        """
        It logs what it will do, and replaces a socket on which no process listens any more.

        After it was stopped for a while, its timers do not count that time.
        """
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.folder / "socket"))
        with (self.folder / "log").open("wb") as log:
            command = [str(BIN / "twistd"), "-n", "--pidfile=", "synjitsu", "-i", "lo", "--listen", "unix:socket"]
            process = subprocess.Popen(command, cwd=self.folder, stdout=log)
        self.addCleanup(self.end, process)
        self.until_logged("standing in on lo")
        end = time.monotonic() + PATIENCE
        while "this process did not run" not in self.log():  # what comes before the reactor turns is no stall
            self.assertLess(time.monotonic(), end, self.log())
            process.send_signal(signal.SIGSTOP)
            time.sleep(3)
            process.send_signal(signal.SIGCONT)
            time.sleep(1)


class InstalledTests(ProcessTestCase):
    """The package."""

    def lists(self, environment: dict[str, str]) -> None:
        """Check that twistd, run elsewhere, lists both plugins."""
        run = self.run_to_end(BIN / "twistd", "--help", env={**os.environ, **environment})
        self.assertIn("\n    jitsu ", run.stdout)
        self.assertIn("\n    synjitsu ", run.stdout)

    def test_editable(self) -> None:
        """As it was set up for development, from any directory."""
        self.lists({})

    def test_regular(self) -> None:
        """As ``pip install .`` installs it: with nothing of the source tree in sight."""
        target = self.folder / "installed"
        copy = self.folder / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
        run = self.run_to_end(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, copy)
        self.assertEqual(0, run.returncode, run.stderr)
        program = (
            "import sys; sys.meta_path = [one for one in sys.meta_path if 'editable' not in repr(one)]; "
            f"sys.path = [{str(target)!r}] + [one for one in sys.path if one != {str(ROOT)!r}]; "
            "import jitsu_tw, synjitsu_tw.tap, twisted.plugin, twisted.application.service as service; "
            f"assert jitsu_tw.__file__.startswith({str(target)!r}); "
            "print(sorted(p.tapname for p in twisted.plugin.getPlugins(service.IServiceMaker) if 'jitsu' in p.tapname))"
        )
        listed = self.run_to_end(sys.executable, "-I", "-c", program)
        self.assertEqual("['jitsu', 'synjitsu']\n", listed.stdout, listed.stderr)
