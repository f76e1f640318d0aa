"""jitsuctl, run as a user runs it, against a Jitsu that runs; and the control endpoint with TLS and a token."""

from __future__ import annotations

import datetime as dt
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import time
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from demo.lab import free_port
from jitsu_tw import ctl
from jitsu_tw.control.web import UNPROVEN
from jitsu_tw.ctl import show
from test.programs.test_tap import BIN, HOST, PATIENCE, TOKEN, VMS, ProcessTestCase


class ControlTestCase(ProcessTestCase):
    """Has a Jitsu that runs, and runs jitsuctl in this process, which is quick."""

    def run_ctl(self, *arguments: str, **more: Any) -> Result:
        """Run jitsuctl to its end."""
        return CliRunner().invoke(ctl.main, ["--control", self.place, *arguments], **more)

    def follow(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a jitsuctl that does not end by itself; end it later."""
        # Who runs the tests in the background may have us ignore SIGINT.
        command = ["env", "--default-signal=INT", str(BIN / "jitsuctl"), f"--control={self.place}", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"})  # fmt: skip
        self.addCleanup(self._end_follow, process)
        return process

    def _end_follow(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    def interrupt(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Press Ctrl-C; return the exit status and the output."""
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=PATIENCE)
        return process.returncode, out, error


#: Two hosts, and one name server.
HOSTS = """
hosts:
  - {name: left, backend: memory}
  - {name: right, backend: memory}
vms:
  - {name: www, host: any, prefer: left, dns: www.jitsu.test, ip: 10.0.0.1}
"""


class HostsTests(ControlTestCase):
    """Commands to a Jitsu with several hosts."""

    def setUp(self) -> None:
        """Serve."""
        super().setUp()
        self.server = self.serve("--zone", "jitsu.zone", configuration=HOSTS)

    def hosts(self) -> dict[str, list[str]]:
        """Return what is shown of the hosts: the number of VMs, and the state."""
        rows = [line.split(maxsplit=2) for line in self.run_ctl("hosts").output.splitlines()[1:]]
        return {name: [number, state.strip()] for name, number, state in rows}

    def test_move_and_drain(self) -> None:
        """A VM moves to the named host; a drained host has none, and is shown as drained until that is undone."""
        self.run_ctl("start", "www")
        self.assertEqual({"left": ["1", "well"], "right": ["0", "well"]}, self.hosts())
        self.assertEqual("www: up\n", self.run_ctl("move", "www", "right").output)
        self.assertEqual("right", json.loads(self.run_ctl("status", "--json").output)[0]["host"])
        nowhere = self.run_ctl("move", "www", "middle")
        self.assertEqual((1, "jitsuctl: www may run on left, right, not on middle\n"),
                         (nowhere.exit_code, nowhere.stderr))
        self.assertIn("drained", self.run_ctl("drain", "right").output)
        end = time.monotonic() + PATIENCE
        while self.hosts() != {"left": ["1", "well"], "right": ["0", "drained"]}:
            self.assertLess(time.monotonic(), end, self.hosts())
            time.sleep(0.05)
        self.assertEqual(0, self.run_ctl("drain", "right", "--undo").exit_code)
        self.assertEqual("well", self.hosts()["right"][1])
        wrong = self.run_ctl("drain", "middle")
        self.assertEqual(1, wrong.exit_code)
        self.assertIn("middle is no host and no node; the hosts: left, right; the nodes: ", wrong.stderr)

    def test_nodes(self) -> None:
        """One Jitsu alone is one node, with all that is up."""
        self.run_ctl("start", "www")
        (node,) = json.loads(self.run_ctl("nodes", "--json").output)
        self.assertEqual((True, None, False, 1), (node["here"], node["problem"], node["drained"], node["vms"]))
        self.assertRegex(self.run_ctl("nodes").output, r"\(here\) +1 +well")


class CommandsTests(ControlTestCase):
    """Commands to a running Jitsu."""

    def setUp(self) -> None:
        """Serve."""
        super().setUp()
        self.server = self.serve("--zone", "jitsu.zone", configuration=VMS)

    def test_hold_and_release(self) -> None:
        """A VM is held and released; both print its new state."""
        self.assertEqual("www: up, held\n", self.run_ctl("hold", "www").output)
        self.assertRegex(self.run_ctl("status").output, r"www +up +held +1 +0 +never")
        self.assertTrue(json.loads(self.run_ctl("status", "--json").output)[0]["held"])
        self.assertEqual("www: up\n", self.run_ctl("release", "www").output)
        self.assertFalse(json.loads(self.run_ctl("release", "www", "--json").output)["held"])

    def test_why(self) -> None:
        """The reason why a VM is up is printed with the last decisions; or as JSON."""
        self.assertEqual(0, self.run_ctl("start", "www").exit_code)
        lines = self.run_ctl("why", "www").output.splitlines()
        self.assertRegex(lines[0], r"It has been up for \d")
        self.assertRegex(lines[1], r"Started for a person, [\d.]+ s ago\.")
        self.assertRegex(lines[3], r"  \d\d:\d\d:\d\d\.\d{3}  www: off -> queued, for a person")
        self.assertRegex(lines[-1], "www: waiting -> up$")
        self.assertEqual("up", json.loads(self.run_ctl("why", "www", "--json").output)["state"])
        self.assertEqual(1, self.run_ctl("why", "nobody").exit_code)

    def test_start_with_steps(self) -> None:
        """A start prints each step, in milliseconds, then the outcome; only that is on standard output as JSON."""
        run = self.run_ctl("start", "www", "--wait")
        lines = run.output.splitlines()
        told = [line.split("ms  ")[1] for line in lines[:-1]]
        self.assertEqual(["its turn to boot has come", "the hypervisor is called", "the guest runs",
                          "the guest is ready", "who waited is answered"], told)
        self.assertEqual(("www: up", 0), (lines[-1], run.exit_code))
        self.assertEqual("www: up\n", self.run_ctl("start", "www", "--wait").output, "it is up already")
        self.run_ctl("stop", "www")
        again = self.run_ctl("start", "www", "--wait", "--json")
        self.assertIn("the guest runs", again.stderr)
        self.assertEqual("up", json.loads(again.stdout)["state"])
        failed = self.run_ctl("start", "bad", "--wait")
        self.assertEqual(1, failed.exit_code)
        self.assertIn("the hypervisor is called", failed.stdout)
        self.assertEqual("jitsuctl: bad: the start fails, as it was told to\n", failed.stderr)

    def test_events(self) -> None:
        """Past events are printed as lines or as JSON, one object a line, as many as wanted."""
        self.ask("www.jitsu.test")
        self.ask("bad.jitsu.test")
        lines = self.run_ctl("events").output.splitlines()
        self.assertRegex(lines[0], "-: memory can be asked$")
        self.assertRegex(lines[1], r"^\d\d:\d\d:\d\d\.\d{3}  www: off -> queued, for 127\.0\.0\.1, A www\.jitsu\.test$")
        self.assertRegex(lines[-1], r"bad: failed \(the start fails, as it was told to\) after \d+ ms \(query 0, ")
        kinds = [json.loads(line)["kind"] for line in self.run_ctl("events", "-n", "2", "--json").output.splitlines()]
        self.assertEqual(["state", "activation"], kinds)
        self.assertEqual(2, self.run_ctl("events", "-n", "1001").exit_code)

    def test_follow(self) -> None:
        """Events are printed as they happen, until Ctrl-C, which is no error, or until Jitsu ends, which is printed."""
        process = self.follow("events", "-n", "0", "-f", "--json")
        ending = self.follow("events", "-n", "0", "-f")
        assert process.stdout is not None
        assert ending.stdout is not None
        end = time.monotonic() + PATIENCE
        while self.run_ctl("events", "-n", "1").output and time.monotonic() < end:
            self.run_ctl("hold", "www")
            self.run_ctl("release", "www")
            if self._has_said(process) and self._has_said(ending):
                break
        self.assertIn(json.loads(process.stdout.readline())["kind"], {"state", "hold", "release", "activation"})
        status, _, error = self.interrupt(process)
        self.assertEqual((130, ""), (status, error))
        self.server.kill()
        self.server.wait()
        _, error = ending.communicate(timeout=PATIENCE)
        self.assertEqual(3, ending.returncode)
        self.assertIn("jitsuctl: ", error)
        self.assertNotIn("Traceback", error)

    @staticmethod
    def _has_said(process: subprocess.Popen[str]) -> bool:
        assert process.stdout is not None
        return bool(select.select([process.stdout], [], [], 0.2)[0])

    def test_watch(self) -> None:
        """A watched status is printed again and again, with the changes."""
        process = self.follow("status", "--watch", "--json")
        assert process.stdout is not None
        self.assertEqual("off", json.loads(process.stdout.readline())[0]["state"])
        self.run_ctl("start", "www")
        end = time.monotonic() + PATIENCE
        while json.loads(process.stdout.readline())[0]["state"] != "up":
            self.assertLess(time.monotonic(), end)
        self.assertEqual((130, ""), self.interrupt(process)[::2])
        process = self.follow("status", "--watch")
        assert process.stdout is not None
        self.assertIn("lease left", process.stdout.readline())
        self.assertEqual((130, ""), self.interrupt(process)[::2])

    def test_reload(self) -> None:
        """The outcome of a reload is printed as JSON, too."""
        self.assertEqual({"reloaded": True, "changes": []}, json.loads(self.run_ctl("reload", "--json").output))

    def test_completion(self) -> None:
        """Shells complete the names of the VMs; without a Jitsu there are none, soon and silently."""
        for shell in ("bash", "zsh", "fish"):
            self.assertIn("_JITSUCTL_COMPLETE", self.run_ctl("completion", shell).output)
        for port, expected in ((self.control, "plain,www"), (free_port(), "")):
            environment = {"_JITSUCTL_COMPLETE": "bash_complete", "COMP_CWORD": "4",
                           "COMP_WORDS": f"jitsuctl --control {HOST}:{port} start w"}
            run = self.run_to_end(BIN / "jitsuctl", env={**os.environ, **environment})
            self.assertEqual((expected, ""), (run.stdout.strip(), run.stderr))


class CheckTests(ControlTestCase):
    """Whether Jitsu could start is found out without starting it."""

    def check(self, configuration: str, *arguments: str) -> Result:
        """Check a configuration in the folder."""
        (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\nbackend: memory\n{configuration}")
        before = Path.cwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)
        return self.run_ctl("check", *arguments)

    def test_good(self) -> None:
        """What could start is summed up; nothing is made, and nothing listens."""
        run = self.check(f"persistdb: state.git\n{VMS}", "--zone", "jitsu.zone")
        self.assertEqual((0, "OK: 3 VMs, 3 names, zones jitsu.test\n"), (run.exit_code, run.output))
        self.assertFalse((self.folder / "state.git").exists())
        said = json.loads(self.check(VMS, "--json").output)
        self.assertEqual(
            {"ok": True, "vms": 3, "templates": 0, "names": 3, "zones": ["jitsu.test"], "warnings": []}, said
        )
        template = '  - {name: site, dns: "*.sites.jitsu.test", pool: 10.1.0.0/24, exists: "*"}\n'
        run = self.check(f"persistdb: state.git\n{VMS}templates:\n{template}", "--zone", "jitsu.zone")
        self.assertEqual((0, "OK: 3 VMs, 3 names, 1 template, zones jitsu.test\n"), (run.exit_code, run.output))

    def test_template(self) -> None:
        """What the backend has to say of the VMs of a template is told once, with the name of the template."""
        xml = "<domain type='kvm'><name>${name}</name><os><type>hvm</type><kernel>/k</kernel></os></domain>"
        (self.folder / "site.xml").write_text(xml)
        run = self.check(
            'persistdb: state.git\ntemplates:\n  - {name: site, dns: "*.sites.jitsu.test", pool: 10.1.0.0/24, '
            'exists: "*", backend: libvirt, connect: "qemu:///system", define: site.xml}\n'
        )
        self.assertEqual(0, run.exit_code, run.output)
        warnings = [line for line in run.output.splitlines() if line.startswith("warning: ")]
        self.assertIn("warning: site: nothing ends QEMU when its guest exits", run.output)
        self.assertTrue(all(line.startswith("warning: site: ") for line in warnings), run.output)

    def test_list_missing(self) -> None:
        """A list of names that is not there is a warning: nobody could tell which names exist."""
        template = '  - {name: site, dns: "*.sites.jitsu.test", pool: 10.1.0.0/24, exists: ./sites}\n'
        run = self.check(f"persistdb: state.git\ntemplates:\n{template}", "--zone", "jitsu.zone")
        self.assertEqual(0, run.exit_code, run.output)
        self.assertIn("warning: site: nobody knows which names exist: ", run.output)
        self.assertIn("sites cannot be read: No such file or directory; correct exists, or the file", run.output)

    def test_bad(self) -> None:
        """A mistake is the line that Jitsu would end with, and exit status 1; as JSON too."""
        line = "jitsu.yaml:3: tll: no such key; did you mean ttl?"
        run = self.check("tll: 5\n")
        self.assertEqual((1, f"jitsuctl: {line}\n"), (run.exit_code, run.stderr))
        run = self.check("tll: 5\n", "--json")
        self.assertEqual((1, {"ok": False, "error": line}), (run.exit_code, json.loads(run.output)))
        (self.folder / "bad.zone").write_text("nonsense")
        self.assertIn("bad.zone:1:", self.check(VMS, "-z", "bad.zone").stderr)
        self.assertIn("jitsu.yaml: cannot be read", self.check(VMS, "--config", "no/jitsu.yaml").stderr)

    def test_advice(self) -> None:
        """What a definition lacks is a warning that names the VM; no hypervisor is asked, not even one that hangs."""
        xml = "<domain type='kvm'><name>x</name><os><type>hvm</type><kernel>/k</kernel></os></domain>"
        (self.folder / "x.xml").write_text(xml)
        where = "backend: libvirt, connect: 'qemu+tcp://192.0.2.1/system', define: x.xml"
        run = self.check(f"vms:\n  - {{name: x, dns: x.jitsu.test, ip: 10.0.0.1, {where}}}\n")
        self.assertIn("warning: x: nothing ends QEMU when its guest exits", run.output)
        self.assertEqual(0, run.exit_code)

    def test_usage(self) -> None:
        """Options that Jitsu does not have are wrong usage."""
        self.assertEqual(2, self.check(VMS, "--explode").exit_code)
        self.assertEqual(1, self.check(VMS, "dns=x,ip=y").exit_code)


class PlacesTests(ControlTestCase):
    """Where the endpoint may be, and what it takes to get there."""

    def certificate(self) -> None:
        """Write a key and a certificate for this host, and a token."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jitsu.test")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        (self.folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / "key.pem").write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        self.write_token()

    def endpoint(self) -> str:
        """Return the endpoint of the tests, with TLS."""
        return f"ssl:{self.control}:interface={HOST}:privateKey=key.pem:certKey=cert.pem"

    def test_tls(self) -> None:
        """With TLS and a token, a client with both is let in, and no other; the log has no traceback for those."""
        self.certificate()
        self.serve("--zone", "jitsu.zone", "--control", self.endpoint(), "--control-token", "token", configuration=VMS)
        place, token = f"https://{HOST}:{self.control}", str(self.folder / "token")
        authorities = str(self.folder / "cert.pem")

        def run(*arguments: str) -> Result:
            return CliRunner().invoke(ctl.main, ["--control", place, *arguments, "status", "--json"])

        good = run("--token-file", token, "--ca", authorities)
        self.assertEqual(["www", "bad", "slow"], [vm["name"] for vm in json.loads(good.output)])
        refused = run("--ca", authorities)
        self.assertEqual((1, f"jitsuctl: {UNPROVEN}\n"), (refused.exit_code, refused.stderr))
        unknown = run("--token-file", token)
        self.assertEqual(3, unknown.exit_code)
        self.assertIn("certificate verify failed", unknown.stderr)
        self.assertIn("; see --ca", unknown.stderr)
        plain = CliRunner().invoke(ctl.main, ["--control", f"{HOST}:{self.control}", "status"])
        self.assertEqual(3, plain.exit_code)
        self.assertEqual(2, run("--token-file", "/nowhere").exit_code)
        self.assertNotIn("Traceback", self.log())
        self.assertNotIn(TOKEN, self.log())

    def test_old_tls(self) -> None:
        """TLS 1.1 and older are not spoken."""
        self.certificate()
        self.serve("--zone", "jitsu.zone", "--control", self.endpoint(), "--control-token", "token", configuration=VMS)
        context = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        for most, spoken in ((ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_1, False)):
            context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, most
            context.set_ciphers("ALL:@SECLEVEL=0")
            with socket.create_connection((HOST, self.control)) as one:
                try:
                    context.wrap_socket(one, server_hostname=HOST).close()
                    told = True
                except OSError:
                    told = False
            self.assertEqual(spoken, told, most)

    def test_unix(self) -> None:
        """Connect to a UNIX socket, as other users cannot; `test_tap` has whose it is."""
        self.serve("--zone", "jitsu.zone", "--control", "unix:control.sock", configuration=VMS)
        path = self.folder / "control.sock"
        self.assertEqual(0, path.stat().st_mode & 0o007)
        run = CliRunner().invoke(ctl.main, ["--control", f"unix:{path}", "start", "www", "--wait"])
        self.assertEqual("www: up", run.output.splitlines()[-1])
        self.assertIn("connected", CliRunner().invoke(
            ctl.main, ["--control", f"unix:{path}", "events", "--json"]).output)

    def test_refusals(self) -> None:
        """An endpoint for other machines without TLS or without a token, or a bad token, ends Jitsu with one line."""
        self.certificate()
        self.write_token("short")
        for arguments, words in (
            (("--control", "192.0.2.1:8053"), "192.0.2.1; write ssl:PORT:interface=192.0.2.1:"),
            (("--control", "0.0.0.0:8053"), "control: other machines can connect to 0.0.0.0"),
            (("--control", self.endpoint()), "control: clients that connect there can start and stop VMs; name a file"),
            (("--control-token", "token"), "control_token: token should have 16 characters or more"),
            (("--control-token", "nowhere"), "control_token: nowhere cannot be read"),
            (("--control", "ssl:x:y=z", "--control-token", "good"), "ssl:x:y=z is no endpoint that can be had"),
            (("--control", "ssl:1:privateKey=no.pem", "--control-token", "good"), "is no endpoint that can be had"),
            (("--control-token", "open"), "control_token: everybody may read open; chmod o-r it"),
        ):
            for name, mode in (("good", 0o600), ("open", 0o644)):
                (self.folder / name).write_text(TOKEN)
                (self.folder / name).chmod(mode)
            vm = "dns=www.example.org,ip=10.0.0.1,name=www"
            run = self.twistd("-x", "memory", "-l", str(self.port), *arguments, vm)
            (line,) = [line for line in run.stderr.splitlines() if line.startswith("jitsu: ")]
            self.assertIn(words, line)
            self.assertNotIn("Traceback", run.stdout + run.stderr)


class ShowTests(SynchronousTestCase):
    """The texts of the output."""

    def test_names(self) -> None:
        """A VM's name is shown as it is, whatever is in it."""
        one = {"name": "[red]x[/]", "state": "up", "lease_left": None, "held": False, "total_starts": 0,
               "total_requests": 0, "last_request_ts": None, "needed": False, "origin": None,
               "template": None}
        console = Console(file=StringIO(), width=100)
        console.print(show.vms([one]))
        assert isinstance(console.file, StringIO)
        self.assertIn("[red]x[/]", console.file.getvalue())

    def test_problems(self) -> None:
        """Why VMs have failed, and their problems, are lines below the table; without any, there are none."""
        listed = [{"name": "www", "state": "failed", "reason": "no memory", "problems": ["a", "b"]},
                  {"name": "db", "state": "off", "reason": "idle", "problems": []}]  # fmt: skip
        self.assertEqual(["", "www: no memory", "www: a", "www: b"], show.problems(listed))
        self.assertEqual([], show.problems(listed[1:]))

    def test_origins(self) -> None:
        """VMs that requests have changed are marked."""
        one = {"name": "www", "state": "up", "lease_left": None, "held": False, "total_starts": 0,
               "total_requests": 0, "last_request_ts": None, "needed": True, "origin": None,
               "template": None}
        for width, who in ((100, "request/a of Ann <ann@example.org>"), (70, "request/a")):
            console = Console(file=StringIO(), width=width)
            console.print(show.vms([one, {**one, "name": "new", "origin": "request/a of Ann <ann@example.org>"}]))
            assert isinstance(console.file, StringIO)
            _, www, new = console.file.getvalue().splitlines()
            self.assertRegex(www, r"^www +up +needed .*the")
            self.assertRegex(new, rf"^new +up .*{who}")

    def test_events(self) -> None:
        """Every kind of event is a line."""
        base = {"id": 1, "at": 1700000000.25, "vm": "www"}
        for more, words in (
            ({"kind": "state", "old": "up", "state": "stopping", "reason": "idle for 5 s"},
             "www: up -> stopping: idle for 5 s"),
            ({"kind": "refused", "asker": "192.0.2.1, A x", "reason": "no", "times": 3},
             "www: not started for 192.0.2.1, A x: no (3 times)"),
            ({"kind": "hold"}, "www: held by hand"), ({"kind": "release"}, "www: released"),
            ({"kind": "lost", "vm": "", "backend": "libvirt x", "reason": "cut"}, "-: libvirt x is lost: cut"),
            ({"kind": "connected", "vm": "", "backend": "libvirt x"}, "-: libvirt x can be asked"),
        ):
            line = show.event({**base, **more})
            self.assertRegex(line, r"^\d\d:\d\d:20\.250  ")
            self.assertTrue(line.endswith(words), line)
        self.assertIn("7 events were left out", show.event({"kind": "missed", "events": 7}))
