"""Configurations: what they say, and how they are refused: one line that names file, line, key and remedy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs
import yaml
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import BACKENDS
from jitsu_tw.backends.memory import Fault, MemorySettings
from jitsu_tw.backends.preset import PRESETS, Meaning, commands_of
from jitsu_tw.config import source
from jitsu_tw.config.build import load
from jitsu_tw.dns.wire import from_text
from jitsu_tw.errors import ConfigError, ConfigErrors, Mistakes
from jitsu_tw.readiness.http import Http
from jitsu_tw.settings import HOSTS, Boot, Evidence, Handover, Mode, Retention, WhenFull

ZONE = """$ORIGIN example.org.
$TTL 1h
@ SOA ns hostmaster 1 3600 600 86400 60
  NS ns
ns A 192.0.2.53
old CNAME ns
"""

VM = "vms:\n  - name: www\n    dns: www.example.org\n    ip: 10.0.0.1\n"
COMMAND = f"{VM}    backend: command\n"


class ConfigTestCase(SynchronousTestCase):
    """Has a folder with a zone file and a word for loading what is in it."""

    def setUp(self) -> None:
        """Make the folder."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.zone = self.write("example.zone", ZONE)

    def write(self, name: str, text: str) -> Path:
        """Write a file and return its path."""
        path = self.folder / name
        path.write_text(text)
        return path

    def load(self, text: str | None = None, pairs: tuple[str, ...] = (), **options: Any) -> Any:
        """Load *text* as jitsu.yaml beside the zone, with options and pairs; return settings and zones."""
        if text is not None:
            self.write("jitsu.yaml", text)
        options.setdefault("zones", [str(self.zone)])
        return load(options, pairs)

    def vm_of(self, zones: Any, name: str) -> str:
        """Return the VM that a name summons."""
        vm: str = zones.lookup(from_text(name), 1).vm
        return vm


class MeaningTests(ConfigTestCase):
    """What is understood."""

    def test_defaults(self) -> None:
        """A VM of three lines has the design's defaults."""
        settings, zones = self.load(VM)
        (vm,) = settings.vms
        self.assertEqual(("www", (from_text("www.example.org"),), (ip_address("10.0.0.1"),)), (vm.name, vm.dns, vm.ip))
        self.assertEqual((60, 120.0, Mode.DESTROY, {"response_delay": 0.1}, None),
                         (vm.ttl, vm.idle, vm.mode, vm.readiness, vm.uuid))
        self.assertEqual(("libvirt", "qemu:///system"), (vm.backend, vm.connect))
        self.assertEqual((("127.0.0.1",), 53, 1.2, 8), (settings.bind, settings.listen, settings.answer_by,
                                                       settings.max_booting))
        self.assertEqual("www", self.vm_of(zones, "www.example.org"))

    def test_inherited(self) -> None:
        """What the file says for all holds for each VM that does not say otherwise."""
        both = "  - {name: b, dns: b.example.org, ip: 10.0.0.2, ttl: 5, mode: save, connect: 'test:///default'}\n"
        settings, _ = self.load(f"ttl: 30\nmode: shutdown\nconnect: xen:///\ndelay: 0.5\nmin_up: 7\n{VM}{both}")
        www, b = settings.vms
        self.assertEqual((30, Mode.SHUTDOWN, "xen:///", {"response_delay": 0.5}, 60.0),
                         (www.ttl, www.mode, www.connect, www.readiness, www.idle))
        self.assertEqual((5, Mode.SAVE, "test:///default", 10.0, 7.0), (b.ttl, b.mode, b.connect, b.idle, b.min_up))

    def test_other_backend(self) -> None:
        """A VM of another backend does not inherit the URI of the first."""
        settings, _ = self.load(
            f"connect: xen:///\n{VM}    backend: memory\n    boot_time: 2\n    faults: [stop, start]\n"
        )
        self.assertEqual("", settings.vms[0].connect)
        expected = MemorySettings(boot_time=2.0, faults=frozenset({Fault.STOP, Fault.START}))
        self.assertEqual(expected, settings.vms[0].backend_settings)

    def test_no_library(self) -> None:
        """A configuration is read without the library of any backend."""
        program = "import sys; sys.modules.update(dict.fromkeys(('libvirt', 'XenAPI'))); import jitsu_tw.config.build"
        subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True)

    def test_tried_before(self) -> None:
        """The keys of the memory backend may stay where another one is used then, and have no meaning."""
        settings, _ = self.load(f"{VM}    boot_time: 2\n")
        self.assertIsNone(settings.vms[0].backend_settings)

    def test_commands(self) -> None:
        """Commands are a mapping in the file, and a list in the state; either means the same."""
        lines = "    commands:\n      start: podman start '${name}'\n      state: x=y -f \"{{.State}}\"\n"
        settings, _ = self.load(f"persistdb: s.git\n{COMMAND}{lines}    words: {{a=b: running, exit 3: off}}\n")
        vm = settings.vms[0]
        commands = commands_of(vm, PRESETS["command"])
        self.assertEqual({"start": ("podman", "start", "www"), "state": ("x=y", "-f", "{{.State}}")}, commands.argv)
        self.assertEqual((Meaning.RUNNING, Meaning.OFF), (commands.words["a=b"], commands.words["exit 3"]))
        self.assertEqual(("start=podman start '${name}'", 'state=x=y -f "{{.State}}"'), vm.raw["commands"])
        listed = "    commands: ['start=podman start ${name}', 'state=x=y -f \"{{.State}}\"']\n"
        again, _ = self.load(f"{COMMAND}{listed}    words: [a=b=running, exit 3=off]\n")
        self.assertEqual(vm.backend_settings, again.vms[0].backend_settings)

    def test_presets(self) -> None:
        """A preset is a backend's name like others, which needs no more than its variables."""
        for backend, variables, state in (
            ("podman", "", ("podman", "inspect", "--type", "container", "-f", "{{.State.Status}}", "www")),
            ("systemd", "unit: a b.service", ("a b.service",)),
            ("proxmox", "kind: pct, vmid: 7", ("pct", "status", "7")),
            ("incus", "", ("^www$",)),
        ):
            more = f"    variables: {{{variables}}}\n" if variables else ""
            settings, _ = self.load(f"{VM}    backend: {backend}\n{more}")
            argv = commands_of(settings.vms[0], PRESETS[backend]).argv["state"]
            self.assertEqual(state, argv[-len(state):])
        settings, _ = self.load(f"{VM}    backend: wol\n    mac: 52:54:00:00:00:01\n")
        self.assertEqual({"start", "state"}, set(commands_of(settings.vms[0], PRESETS["wol"]).argv))

    def test_kept_for_the_state(self) -> None:
        """What was said of a VM is kept for the state, files by their whole paths, those of libxl, too."""
        settings, _ = self.load(f"persistdb: s.git\n{VM}    backend: libxl\n    kernel: k\n    memory: 64MiB\n")
        raw = settings.vms[0].raw
        self.assertTrue(Path(raw["kernel"][0]).is_absolute())
        self.assertEqual(("64MiB",), raw["memory"])

    def test_durations(self) -> None:
        """A duration is a number of seconds, or has the units of zone files, wherever it stands."""
        for text, seconds in (
            ("60", 60.0), ("0.5", 0.5), ("90s", 90.0), ("0.25s", 0.25), ("5m", 300.0), ("1h30m", 5400.0),
            ("2d", 172800.0), ("1W2D3H4M5S", 788645.0), ("0", 0.0), ("0s", 0.0),
        ):  # fmt: skip
            settings, _ = self.load(f"min_up: {text}\n{VM}")
            self.assertEqual(seconds, settings.min_up, text)
        settings, _ = self.load(f"ttl: 1h\nkeep_history: 90s\n{VM}")
        self.assertEqual((3600, Retention(seconds=90.0)), (settings.vms[0].ttl, settings.keep_history))
        settings, _ = load({"delay": "2m"}, ["dns=a.example.org,ip=10.0.0.1,name=a,ttl=5m,idle=1h"])
        (vm,) = settings.vms
        self.assertEqual((120.0, 300, 3600.0), (settings.delay, vm.ttl, vm.idle))

    def test_durations_in_the_state(self) -> None:
        """The state has seconds, so that other programs and nodes need not know the units."""
        settings, _ = self.load(f"persistdb: s.git\n{VM}    idle: 1h\n    response_delay: 0.5\n")
        raw = settings.vms[0].raw
        self.assertEqual((("3600",), ("0.5",)), (raw["idle"], raw["response_delay"]))

    def test_macs(self) -> None:
        """A VM's MACs are one or a list, in any case; those of a libxl VM are its interfaces' as well."""
        for words, backend, macs in (
            ("", "memory", ()), ("52:54:00:00:00:0A", "libvirt", ("52:54:00:00:00:0a",)),
            ("[52:54:00:00:00:01, 52:54:00:00:00:02]", "libxl", ("52:54:00:00:00:01", "52:54:00:00:00:02")),
        ):
            more = f"    mac: {words}\n" if words else ""
            kernel = "    kernel: k\n" if backend == "libxl" else ""
            (vm,) = self.load(f"{VM}    backend: {backend}\n{kernel}{more}")[0].vms
            self.assertEqual(macs, vm.mac)
            self.assertEqual(macs if backend == "libxl" else None, vm.backend_settings and vm.backend_settings.mac)

    def test_secret(self) -> None:
        """What Synjitsu wants to be shown is read from a file, and is in no error or log."""
        secret = self.folder / "secret"
        secret.write_text("0123456789abcdef\n")
        secret.chmod(0o600)
        settings, _ = self.load(f"synjitsu: unix:/s\nsynjitsu_secret: {secret}\n{VM}")
        self.assertEqual("0123456789abcdef", settings.synjitsu_secret)
        self.assertNotIn("0123456789", repr(settings))
        secret.write_text("short")
        with self.assertRaisesRegex(ConfigError, "synjitsu_secret: .*secret should have 16 characters or more"):
            self.load(f"synjitsu_secret: {secret}\n{VM}")

    def test_port_instead_of_delay(self) -> None:
        """With a port to wait for, no delay is waited for unless it is given."""
        settings, _ = self.load(f"{VM}    wait_for_port: 80\n")
        self.assertEqual({"wait_for_port": 80}, settings.vms[0].readiness)
        settings, _ = self.load(f"{VM}    wait_for_port: 80\n    response_delay: 1\n")
        self.assertEqual({"wait_for_port": 80, "response_delay": 1.0}, settings.vms[0].readiness)

    def test_life(self) -> None:
        """What a VM's life can be told: times of the week, limits, groups, where it starts from."""
        settings, _ = self.load(
            "max_up: 3600\nimages: kept\nwhen_full: stop_idle\nsave_fallback: pause\n"
            f"{VM}    keep_up: [mon-fri 08:00-18:00, 'sat 10:00-12:00']\n    boot_from: snapshot\n"
            "    needs: [db, mail]\n"
            "    idle_packets: 0\n    check_every: 3\n    wait_for_http: /health 204\n    evidence: queries\n"
            "  - {name: db, dns: db.example.org, ip: 10.0.0.2, needs: mail}\n"
            "  - {name: mail, dns: mail.example.org, ip: 10.0.0.3, wait_for_port: 25, max_up: 60}\n"
        )
        www, db, mail = settings.vms
        self.assertIs(WhenFull.STOP_IDLE, settings.when_full)
        self.assertEqual((3600.0, 60.0), (www.max_up, mail.max_up))
        self.assertEqual(self.folder / "kept", www.images)
        self.assertEqual((2, Boot.SNAPSHOT, ("db", "mail"), ("mail",)), (len(www.keep_up), www.boot_from, www.needs,
                                                                         db.needs))
        self.assertEqual((Evidence.QUERIES, Evidence.TRAFFIC), (www.evidence, db.evidence))
        self.assertEqual([Mode.PAUSE] * 3, [one.save_fallback for one in settings.vms])
        self.assertEqual((0.0, 3.0, {"wait_for_http": Http("/health", 204), "wait_for_port": 80}),
                         (www.idle_packets, www.check_every, www.readiness))

    def test_key_instead_of_delay(self) -> None:
        """With a key to wait for, no delay is waited for unless it is given."""
        settings, _ = self.load(f"{VM}    wait_for_key: data/ready\n")
        self.assertEqual({"wait_for_key": "data/ready"}, settings.vms[0].readiness)

    def test_synjitsu(self) -> None:
        """Who is stood in for, and how."""
        settings, _ = self.load(
            f"synjitsu: unix:/run/jitsu/synjitsu.sock\nuse_synjitsu: true\n{VM}    wake_udp: [443, 5060]\n"
            "    ports: 80\n    wake_by_packet: false\n    handover: xenstore\n"
            "  - {name: b, dns: b.example.org, ip: 10.0.0.2, use_synjitsu: false}\n"
        )
        www, b = settings.vms
        self.assertEqual("unix:/run/jitsu/synjitsu.sock", settings.synjitsu)
        self.assertEqual((True, False, (80,), (443, 5060), Handover.XENSTORE),
                         (www.use_synjitsu, www.wake_by_packet, www.ports, www.wake_udp, www.handover))
        self.assertEqual((False, True, ()), (b.use_synjitsu, b.wake_by_packet, b.ports))

    def test_options_beat_the_file(self) -> None:
        """What the command line says counts, whatever the file says."""
        settings, _ = self.load(f"ttl: 30\nlisten: 5300\nbind: [127.0.0.2, '::1']\n{VM}", ttl="7", bind="127.0.0.3")
        self.assertEqual((7, 5300, ("127.0.0.3",)), (settings.vms[0].ttl, settings.listen, settings.bind))

    def test_pairs(self) -> None:
        """The original's positional VMs are VMs; keys repeat; without a zone file zones are made up."""
        settings, zones = load(
            {"backend": "memory"}, ["dns=www.example.org,ip=10.0.0.1,name=www,dns=w.example.org,response_delay=0.7"]
        )
        (vm,) = settings.vms
        self.assertEqual((from_text("w.example.org"), from_text("www.example.org")), vm.dns)
        self.assertEqual({"response_delay": 0.7}, vm.readiness)
        self.assertEqual([from_text("example.org")], [zone.key for zone in zones])
        self.assertEqual("www", self.vm_of(zones, "w.example.org"))

    def test_paths(self) -> None:
        """Paths in a file are relative to the file; those on the command line to where one is."""
        settings, _ = self.load(f"persistdb: state.git\n{VM}")
        self.assertEqual(self.folder / "state.git", settings.persistdb)
        settings, _ = self.load(VM, persistdb="state.git")
        self.assertEqual(Path("state.git"), settings.persistdb)

    def test_config_option(self) -> None:
        """A file that is named is read, and its zones with it."""
        path = self.write("other.yaml", f"zones: [example.zone]\n{VM}")
        settings, _ = load({}, (), path)
        self.assertEqual((self.folder / "example.zone",), settings.zones)

    def test_forwarder(self) -> None:
        """A forwarder is an address, with a port or not; the original's 0.0.0.0 means none."""
        for text, more, expected in (("192.0.2.1", {}, ("192.0.2.1", 53)), ("192.0.2.1:54", {}, ("192.0.2.1", 54)),
                                     ("192.0.2.1", {"port": "55"}, ("192.0.2.1", 55)), ("0.0.0.0", {}, None),  # noqa: S104
                                     ("2001:db8::1", {}, ("2001:db8::1", 53))):
            self.assertEqual(expected, self.load(VM, (), forwarder=text, **more)[0].forwarder)

    def test_control(self) -> None:
        """The control endpoint is an address and a port, a socket, or off."""
        for text, expected in (("127.0.0.1:9000", "127.0.0.1:9000"), ("localhost", "127.0.0.1:8053"), ("off", ""),
                               ("unix:/run/jitsu.sock", "unix:/run/jitsu.sock"), ("[::1]:1", "[::1]:1")):
            self.assertEqual((expected,), self.load(VM, control=text)[0].control)
        several = self.load(f"control: [unix:/run/jitsu.sock, localhost]\n{VM}")[0].control
        self.assertEqual(("unix:/run/jitsu.sock", "127.0.0.1:8053"), several)

    def test_both_families(self) -> None:
        """A VM may have IPv4 and IPv6 addresses."""
        settings, zones = self.load(VM.replace("10.0.0.1", "[10.0.0.1, '2001:db8::1']"))
        self.assertEqual((ip_address("10.0.0.1"), ip_address("2001:db8::1")), settings.vms[0].ip)
        self.assertEqual(1, len(zones.lookup(from_text("www.example.org"), 28).answer))

    def test_said(self) -> None:
        """What was written is kept as it was written, for the state."""
        settings, _ = self.load(f"persistdb: state.git\n{VM}    ttl: 5\n")
        self.assertEqual({"name": ("www",), "dns": ("www.example.org",), "ip": ("10.0.0.1",), "ttl": ("5",)},
                         settings.vms[0].raw)

    def test_off_means_off(self) -> None:
        """The original's switch may be off."""
        self.load(f"{VM}    use_synjitsu: 0\n")

    def test_cluster(self) -> None:
        """A cluster has etcd's URLs and a name for this node; a password is in a file."""
        self.write("password", "secret\n")
        settings, _ = self.load(
            f"cluster:\n  etcd: [http://127.0.0.1:2379/, 'https://[::1]:2379']\n  node: ns1\n  ttl: 3\n"
            f"  user: jitsu\n  password: password\n{VM}"
        )
        assert settings.cluster is not None
        self.assertEqual(("http://127.0.0.1:2379", "https://[::1]:2379"), settings.cluster.etcd)
        self.assertEqual(("ns1", "/jitsu", 3.0, "secret"), (settings.cluster.node, settings.cluster.prefix,
                                                            settings.cluster.ttl, settings.cluster.password))
        self.assertNotIn("secret", repr(settings))

    def test_dnssec(self) -> None:
        """Zones are signed by keys in a directory; the other values have defaults."""
        settings, _ = self.load(f"persistdb: state.git\ndnssec: {{keys: keys}}\n{VM}")
        assert settings.dnssec is not None
        self.assertEqual((13, (), 14 * 86400.0), attrs.astuple(settings.dnssec)[1:])
        self.assertTrue(settings.dnssec.keys.is_absolute() or settings.dnssec.keys.parent != Path())
        text = "dnssec: {keys: keys, algorithm: 15, zones: [Example.org], validity: 30d}"
        settings, _ = self.load(f"persistdb: state.git\n{text}\n{VM}")
        assert settings.dnssec is not None
        self.assertEqual((15, (from_text("Example.org"),), 30 * 86400.0), attrs.astuple(settings.dnssec)[1:])
        self.assertIsNone(self.load(VM)[0].dnssec)

    def test_comes_signed(self) -> None:
        """A zone that comes signed is left alone, and an error where it is named."""
        head = "persistdb: state.git\ndnssec: {keys: keys"
        for command in (("dnssec-keygen", "-q", "-a", "13", "-f", "KSK", "example.org"),
                        ("dnssec-signzone", "-Sz", "-o", "example.org", "-f", "example.zone", "example.zone")):
            subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        (zone,) = self.load(f"{head}}}\n{VM}")[1]
        self.assertTrue(zone.presigned)
        with self.assertRaisesRegex(ConfigError, "dnssec.zones: example.org comes signed, in .*; leave it out"):
            self.load(f"{head}, zones: example.org}}\n{VM}")

    def test_hosts(self) -> None:
        """A VM may run on any host, on one, or on some; the others are where they always were."""
        head = "hosts:\n  - {name: left, backend: memory}\n"
        head += f"  - {{name: right, backend: memory, synjitsu: '[::1]:8055'}}\n{VM}"
        for host, hosts in (("any", ("left", "right")), ("right", ("right",)), ("[right, left]", ("right", "left"))):
            settings, _ = self.load(f"{head}    host: {host}\n    prefer: right\n")
            (www,) = settings.vms
            self.assertEqual((HOSTS, "", hosts, ("right",)), (www.backend, www.connect, www.hosts, www.prefer))
        settings, _ = self.load(f"{head}    backend: memory\n")
        self.assertEqual(("memory", ()), (settings.vms[0].backend, settings.vms[0].hosts))
        settings, _ = self.load(f"{head}    host: any\n    use_synjitsu: true\n    wait_for_port: 80\n")
        self.assertTrue(settings.vms[0].use_synjitsu)


#: A jitsu.yaml (VM stands for the VM above, which begins in the line of its "vms:"), the line, and words of the error.
WRONG = (
    ("ttl: [\n", 2, "is not YAML"),
    ("TTL: 5\n" + VM, 1, "TTL: no such key; did you mean ttl?"),
    ("vms:\n  - dns: *.example.org\n", 2, 'quote what begins with *, as "*.example.org"'),
    ("vms:\n  - name: www\n\tdns: a.example.org\n", 3, "indent with blanks, not with tabs"),
    (VM + "    cmdline: a: b\n", 5, "quote a value that has a colon and a blank in it"),
    (VM + "    <<: a\n", 5, "what holds for all VMs stands at the top of the file"),
    (VM + "    listen: 53\n", 5, "vms[0].listen: no such key here; it stands at the top of the file"),
    ("ip: 10.0.0.1\n" + VM, 1, "ip: no such key here; it is a VM's, and stands in the list vms"),
    ("connect: qemu:/system\n" + VM, 1, "'qemu:/system' is no URI of libvirt's; write one like qemu:///system"),
    (VM + "    connect: qemu:/system\n", 5, "vms: www: connect: 'qemu:/system' is no URI of libvirt's"),
    ("hosts:\n  - {name: a, connect: 'qemu:/system'}\n" + VM, 2, "hosts[0].connect: 'qemu:/system' is no URI"),
    ("persistdb: /etc/passwd\n" + VM, 1, "/etc/passwd is a file; name a folder, which Jitsu makes"),
    ("- a\n", 1, "key: value"),
    ("tll: 5\n" + VM, 1, "tll: no such key; did you mean ttl?"),
    ("vm: []\n", 1, "did you mean vms?"),
    (VM + "    tttl: 5\n", 5, "vms[0].tttl: no such key; did you mean ttl?"),
    ("ttl: 5\nttl: 6\n" + VM, 2, "ttl: is there twice"),
    ("ttl: soon\n" + VM, 1, "ttl: 'soon' is no TTL"),
    ("ttl:\n" + VM, 1, "ttl: has no value"),
    ("ttl: -1\n" + VM, 1, "ttl: '-1' is no TTL (RFC 2181, section 8); write whole seconds"),
    ("listen: 70000\n" + VM, 1, "listen: '70000' is no port"),
    ("delay: nan\n" + VM, 1, "delay: 'nan' is no duration"),
    ("bind: here\n" + VM, 1, "bind: 'here' is no IP address"),
    ("mode: kill\n" + VM, 1, "mode: 'kill' is not one of destroy, pause, save, shutdown, suspend"),
    (VM + "    boot_from: tape\n", 5, "boot_from: 'tape' is not one of disk, snapshot"),
    (VM + "    boot_from: snapshot\n    mode: save\n", 5, "with mode save, a VM starts from what it was"),
    (VM + "    boot_from: snapshot\n    backend: xapi\n", 5, "xapi keeps no images; leave it out"),
    (VM + "    keep_up: office hours\n", 5, "keep_up: 'office hours' is no time of the week; write one like"),
    (VM + "    wait_for_http: health\n", 5, "wait_for_http: 'health' is no path; write one like /healthz"),
    (VM + "    wait_for_http: /health 20\n", 5, "is no path"),
    (VM + "    wait_for_key: /data/ready\n", 5, "wait_for_key: '/data/ready' is no key in Xenstore"),
    (VM + "    needs: db\n", 5, "needs: there is no VM 'db'"),
    (VM + "    needs: [www]\n", 5, "needs: goes round in a circle: www needs www"),
    (VM + "    needs: b\n  - {name: b, dns: b.example.org, ip: 10.0.0.2, needs: [www]}\n", 5,
     "goes round in a circle: www needs b needs www"),
    (VM + "    evidence: packets\n", 5, "'packets' is not one of queries, traffic"),
    (VM + "    save_fallback: save\n", 5, "'save' is not one of destroy, pause, shutdown"),
    (VM + "    idle_packets: few\n", 5, "idle_packets: 'few' is no number of packets in a minute"),
    (VM + "    idle_cpu: much\n", 5, "idle_cpu: 'much'"),
    (VM + "    notify: soon\n", 5, "notify: 'soon'"),
    ("guests: virbr0\n" + VM, 1, "guests: 'virbr0' is no IP address"),
    ("guests: 224.0.0.1:8054\n" + VM, 1, "guests: '224.0.0.1' is no address of one machine"),
    ("guests: 10.0.0.254:x\n" + VM, 1, "guests: 'x'"),
    ("when_full: wait\n" + VM, 1, "when_full: 'wait' is not one of refuse, stop_idle"),
    (VM + "    kernel: vmlinuz\n", 5, "kernel: is for the backend libxl only"),
    (VM + "    backend: libxl\n    memory: 12 apples\n", 6, "memory: "),
    (VM + "    commands: {start: x}\n", 5, "commands: is for the backend command or docker or docker-api or exec"),
    (COMMAND + "    commands: {start: x, strat: y}\n", 6, "'strat' is not one of events, kill, packets, pause, "),
    (COMMAND + "    commands: {start: x}\n", 6, "commands: state is missing; give this command"),
    (COMMAND + "    commands:\n      state: x\n      start: 'x \"y'\n", 8, "quote as in a shell"),
    (COMMAND + "    commands: {state: x, start: 'x $y-z $'}\n", 6, "begins no ${variable}; write $$"),
    (COMMAND + "    commands: {state: x, start: 'x ${y}'}\n", 6,
     "start has ${y}, which is unknown; known are ${ip}, ${mac}, ${name}, ${stop_timeout}, ${uuid}"),
    (COMMAND + "    commands: {state: x, start: 'x ${mac}'}\n", 2, "mac is needed, the first of its `mac`"),
    (COMMAND + "    commands: {state: x, start: x}\n    variables: {unit: y}\n", 7, "unit is no variable of its"),
    (COMMAND + "    commands: {state: x, start: 'x ${y}'}\n    variables: {y: -rf}\n", 7, "begins with a dash"),
    (COMMAND + "    commands: {state: x, start: x}\n    words: {up: standing}\n", 7, "'standing' is not one of "),
    (COMMAND + "    commands: {state: x, start: x}\n    mode: pause\n", 7, "mode: it has no commands pause and resume"),
    (COMMAND + "    commands: {state: x, start: x}\n    mode: save\n", 7, "mode: it has no command save"),
    (COMMAND + "    commands: {run: x, start: x}\n", 6, "Jitsu itself keeps what run starts; leave start out"),
    (COMMAND + "    commands: {start: {a: b}}\n", 6, "commands.start: takes one value"),
    (COMMAND + "    commands: {}\n", 6, "commands: is empty"),
    (COMMAND + "    commands: [start=x, start=y, state=x]\n", 6, "start is there twice; keep one"),
    (COMMAND + "    commands: {state: x, start: x}\n    deadlines: {start: soon}\n", 7, "'soon' is no duration"),
    (VM.replace("www", "-rf", 1) + "    backend: podman\n", 2, "name: begins with a dash"),
    (VM + "    backend: podman\n    prepare: true\n", 6, "podman cannot prepare VMs"),
    (VM + "    backend: podman\n    mode: save\n", 6, "mode: it has no command save"),
    (VM + "    backend: systemd\n", 2, "variables: unit is needed, its unit, like web.service, for the command start"),
    (VM + "    backend: proxmox\n    variables: {vmid: 100, kind: rm}\n", 6, "kind should be one of qm, pct"),
    (VM + "    backend: proxmox\n    variables: {vmid: 1OO}\n", 6, "vmid should be its number, of the form [0-9]{1,9}"),
    (VM + "    backend: wol\n    variables: {brodcast: 10.0.0.255}\n    mac: 52:54:00:00:00:01\n", 6,
     "did you mean broadcast?"),
    (VM + "    backend: wol\n", 2, "mac is needed"),
    (VM + "    backend: exec\n", 2, "run is missing"),
    ("backend: libvrt\n" + VM, 1, f"'libvrt' is not one of {', '.join(sorted(BACKENDS))}; did you mean libvirt?"),
    ("ttl: [1, 2]\n" + VM, 1, "ttl: takes one value, not a list"),
    ("ttl: {a: 1}\n" + VM, 1, "ttl: takes one value, not a group of keys"),
    ("vms: www\n", 1, "vms: is a list"),
    ("vms:\n  - www\n", 2, "vms[0]: should be lines"),
    ("vms:\n  - dns: www.example.org\n    ip: 10.0.0.1\n", 2, "name: is missing"),
    ("vms:\n  - name: www\n    ip: 10.0.0.1\n", 2, "vms: www: dns: is missing"),
    ("vms:\n  - name: www\n    dns: www.example.org\n", 2, "vms: www: ip: is missing"),
    (VM.replace("10.0.0.1", "10.0.0.256"), 4, "vms: www: ip: '10.0.0.256' is no IP address"),
    (VM.replace("www.example.org", "www..example.org"), 3, "vms: www: dns: 'www..example.org' is not a domain name"),
    (VM + "    uuid: 12\n", 5, "uuid: '12' is no uuid"),
    (VM + "    faults: [sleep]\n", 5, "'sleep' is not one of hang, never_ready, resume, start, stop, vanish"),
    (VM + "    use_synjitsu: true\n", 5, "vms: www: use_synjitsu: there is none; say where it listens, with synjitsu"),
    ("use_synjitsu: true\n" + VM, 1, "vms: www: use_synjitsu: there is none"),
    ("synjitsu: 'a\\'\n" + VM, 1, "is no place to connect to"),
    ("synjitsu: '1=:'\n" + VM, 1, "is no place to connect to"),
    ("synjitsu: there\n" + VM, 1, "'there' is no place to connect to; write one like unix:/run/jitsu/synjitsu.sock"),
    ("synjitsu: unix:s\n" + VM + "    use_synjitsu: 1\n    wait_for_http: /\n", 7, "wait_for_http: no HTTP gets"),
    (VM + "    ports: [80]\n", 5, "ports: only Synjitsu looks at ports"),
    (VM + "    handover: fax\n", 5, "handover: 'fax' is not one of wire, xenstore"),
    (VM + "    define: nowhere.xml\n", 5, "nowhere.xml cannot be read: No such file"),
    (VM + VM.removeprefix("vms:\n"), 5, "vms: www: name: www is that of another VM already"),
    (VM + "  - {name: b, dns: WWW.example.org, ip: 10.0.0.2}\n", 5, "vms: b: dns: www.example.org is that of VM www"),
    (VM + "  - {name: b, dns: b.example.org, ip: 10.0.0.1}\n", 5, "vms: b: ip: 10.0.0.1 is that of VM www"),
    (VM.replace("10.0.0.1", "fd00::1") + "  - {name: b, dns: b.example.org, ip: 'FD00:0::0:1'}\n", 5,
     "fd00::1 is that of VM www"),
    (VM.replace("www.example.org", "www.example.com"), 3, "www.example.com is in none of the zones"),
    (VM.replace("www.example.org", "old.example.org"), 3, "CNAME"),
    (f"persistdb: state.git\ndnssec:\n  zones: example.org\n{VM}", 3, "dnssec.keys: is missing; name a directory"),
    (f"dnssec:\n  keys: keys\n{VM}", 2, "dnssec: the names of the keys are in the state, so that none is lost"),
    (f"persistdb: state.git\ndnssec: {{keys: keys, algorithm: 8}}\n{VM}", 2, "'8' is not one of 13, 15"),
    (f"persistdb: state.git\ndnssec: {{keys: keys, validity: 1h}}\n{VM}", 2, "from 86400 to 7776000 seconds"),
    (f"persistdb: state.git\ndnssec: {{keys: keys, validity: 91d}}\n{VM}", 2, "from 86400 to 7776000 seconds"),
    (f"persistdb: state.git\ndnssec:\n  keys: keys\n  zones:\n    - example.net\n{VM}", 5,
     "dnssec.zones: example.net is none of the zones: example.org"),
    (f"persistdb: state.git\ndnssec: {{key: keys}}\n{VM}", 2, "dnssec.key: no such key; did you mean keys?"),
    (f"cluster:\n  node: ns1\n{VM}", 2, "cluster.etcd: is missing"),
    (f"cluster:\n  etcd: http://127.0.0.1:2379\n{VM}", 2, "cluster.node: is missing"),
    (f"cluster:\n  etcd: 127.0.0.1:2379\n  node: ns1\n{VM}", 2, "write one like http://127.0.0.1:2379"),
    (f"cluster:\n  etcd: http://127.0.0.1:2379\n  node: ns1\n  nod: x\n{VM}", 4, "did you mean node?"),
    (f"cluster:\n  etcd: http://127.0.0.1:2379\n  node: ns1\n  ttl: 1\n{VM}", 4, "from 2 to 600"),
    (f"cluster:\n  etcd: http://127.0.0.1:2379\n  node: ns1\n  user: x\n{VM}", 2, "user and password go together"),
    (f"cluster: etcd\n{VM}", 1, 'lines of the form "key: value"'),
    (f"hosts: left\n{VM}", 1, "is a list"),
    (f"hosts:\n  - {{connect: 'test:///default'}}\n{VM}", 2, "hosts[0].name: is missing"),
    (f"hosts:\n  - name: left\n{VM}", 2, "hosts[0].connect: is missing"),
    (f"hosts:\n  - {{name: a, backend: memory}}\n  - {{name: a, backend: memory}}\n{VM}", 3, "a is taken already"),
    (f"hosts:\n  - {{name: left, backend: memory}}\n{VM}    host: lift\n", 7, "did you mean left?"),
    (f"hosts:\n  - {{name: left, backend: memory}}\n{VM}    host: any\n    connect: x\n", 8, "is the host's"),
    (f"hosts:\n  - {{name: left, backend: memory}}\n{VM}    prefer: left\n", 7, "is for VMs with host"),
    (f"{VM}    host: any\n", 5, "there are no hosts"),
    (f"hosts:\n  - {{name: left, backend: memory}}\n{VM}    host: [any, left]\n", 7, "any is all hosts"),
    (f"hosts: [{{name: a, backend: memory}}, {{name: b, backend: memory}}]\n{VM}    host: a\n    prefer: b\n", 7,
     "prefer: b is none of its hosts"),
    (f"hosts: [{{name: a, backend: memory}}]\n{VM}    host: any\n    prefer: a\n    avoid: a\n", 8, "in prefer, too"),
    (f"on_host_loss: restart\n{VM}", 1, "might run on two hosts"),
    *((VM.replace("10.0.0.1", f"'{ip}'"), 4, words) for ip, words in (
        ("127.0.0.1", "ip: 127.0.0.1 is a loopback address"), ("224.0.0.1", "multicast"),
        ("::ffff:10.0.0.1", "write 10.0.0.1"), ("0.0.0.0", "no machine"),  # noqa: S104
        ("240.0.0.1", "class E"), ("fe80::1%br0", "without %br0"),
    )),
    ("bind: 10.0.0.1\n" + VM, 5, "ip: 10.0.0.1 is what Jitsu serves at (bind)"),
    ("bind: 'fd00::1'\n" + VM.replace("10.0.0.1", "[10.0.0.1, 'fd00:0::1']"), 5, "fd00::1 is what Jitsu serves at"),
    ("bind: 224.0.0.1\n" + VM, 1, "is no address of one machine"),
    ("bind: '::ffff:10.0.0.9'\n" + VM, 1, "write 10.0.0.9"),
    *((VM.replace("www.example.org", dns), 3, words) for dns, words in (
        ("http://www.example.org/", "is a URL; write the name in it alone"), ("www example.org", "has a blank"),
        ("' www.example.org'", "has a blank"), ('"www.example.org\\n"', "has a blank"), ("'*'", "is no name"),
        ("www.*.example.org", "has a *"), ("w*.example.org", "has a *"), ("'*w.example.org'", "has a *"),
        ("a..example.org", "empty"),
        (".example.org", "empty"), ("www.example.org:80", "has a port"), ("www.example.org/x", "has a path"),
        ("me@example.org", "has an @"), ("'a.example.org,b.example.org'", "write several names as a list"),
        ("10.0.0.1", "ends in a number"), ("10.0.0.300", "ends in a number"), ("'fd00::1'", "is an address"),
        (".", "the root of all names"), ('"a\\0.example.org"', "has a blank"), ("a(b.example.org", "is no name"),
    )),
    (VM.replace("name: www", "name: 'www '"), 2, "is no name of a VM"),
    (VM.replace("name: www", 'name: "w\\e[2J"'), 2, "characters that cannot be seen"),
    (VM + "    min_up: 60\n    max_up: 30\n", 6, "max_up: max_up (30 s) is below min_up (60 s)"),
    ("min_up: 60\n" + VM + "    max_up: 30\n", 6, "is below min_up"),
    ("min_up: 60\nmax_up: 30\n" + VM, 2, "is below min_up"),
    ("forwarder: 127.0.0.1\n" + VM, 1, "is this server itself"),
    ("bind: '0.0.0.0'\nforwarder: 127.0.0.1\n" + VM, 2, "is this server itself"),
    ("control: 127.0.0.1:8053\nlisten: 8053\n" + VM, 2, "DNS and control cannot both be at 127.0.0.1 port 8053"),
    ("summon_from: []\n" + VM, 1, "summon_from: is an empty list"),
    ("fence: ''\n" + VM, 1, "fence: is empty"),
    (f"listen: {'9' * 5000}\n" + VM, 1, "9 … 9"),
    (f"keep_history: {'9' * 5000}d\n" + VM, 1, "is no duration and no number of commits"),
    ("delay: inf\n" + VM, 1, "is no duration"),
    ("delay: 1_0\n" + VM, 1, "is no duration"),
    ("delay: 1e9\n" + VM, 1, "is no duration"),
    ("delay: 1.5h\n" + VM, 1, "is no duration; write seconds, like 60 or 0.5, or units, like 90s, 5m, 1h30m or 2d"),
    ("delay: 1m1h\n" + VM, 1, "is no duration"),
    ("delay: 1h30\n" + VM, 1, "is no duration"),
    ("delay: 9999999999w\n" + VM, 1, "is no duration"),
    ("delay: ''\n" + VM, 1, "is no duration"),
    ("ttl: 0.5s\n" + VM, 1, "is no TTL"),
    ("ttl: 2147483648\n" + VM, 1, "is no TTL"),
    (f"cluster:\n  etcd: http://127.0.0.1\n  node: ns1\n  ttl: 1h\n{VM}", 4,
     "'1h' is too short or too long; write a duration from 2 to 600 seconds"),
    ("keep_history: 1.5d\n" + VM, 1, "is no duration and no number of commits"),
    (f"nsid: {'x' * 256}\n" + VM, 1, "is longer than 255 octets"),
    (f"nsid: {'x' * 65537}\n" + VM, 1, "is longer than 65536 characters"),
    (VM + '    wait_for_http: "/a\\r\\nX:y"\n', 5, "is no path"),
    ("? [a, b]\n: 1\n" + VM, 1, "a key should be one word"),
    ('"a\\e[2J": 1\n' + VM, 1, r"a\x1b[2J: no such key"),
    ("a: \0\n", 1, "the character #x0000 cannot be in it"),
    ("a: 1\nb: \x07\n", 2, "the character #x0007 cannot be in it"),
    (f"a: {'[' * 100_000}\n", 1, "is not YAML: exceeded maximum nesting depth"),
    (f"cluster:\n  etcd: 'http://['\n  node: ns1\n{VM}", 2, "is no member of etcd"),
    (f"cluster:\n  etcd: 'http://127.0.0.1:99999'\n  node: ns1\n{VM}", 2, "is no member of etcd"),
)


class ErrorTests(ConfigTestCase):
    """What is refused."""

    def test_wrong(self) -> None:
        """Each mistake is one line: the file, the line, the key, what is wrong and what would be right."""
        for text, line, words in WRONG:
            error = self.assertRaises(ConfigError, self.load, text)
            message = str(error)
            self.assertTrue(message.startswith(f"{self.folder}/jitsu.yaml:{line}: "), f"{text!r}: {message}")
            self.assertIn(words, message)
            self.assertNotIn("\n", message)

    def test_passwords(self) -> None:
        """A URL with a password is refused, and the password not repeated; one with a user alone is taken."""
        for text in (
            "connect: qemu+ssh://root:hunter2@a.test/system\n{}", "connect: 'esx://:hunter2@a.test'\n{}",
            "hosts: [{{name: a, connect: 'qemu+ssh://root:hunter2@a.test/system'}}]\n{}",
            "{}    connect: qemu+tcp://root:hunter2@a.test/system\n", "webhooks: 'https://u:hunter2@a.test/x'\n{}",
            "otlp: 'http://u:hunter2@a.test/x'\n{}", "remote: 'https://u:hunter2@a.test/x.git'\npersistdb: s.git\n{}",
            "cluster: {{node: a, etcd: ['http://127.0.0.1:2379', 'http://u:hunter2@127.0.0.1:2380']}}\n{}",
        ):  # fmt: skip
            message = str(self.assertRaises(ConfigError, self.load, text.format(VM)))
            self.assertIn("has a password in it, which others would see; ", message)
            self.assertNotIn("hunter2", message)
        for text in (
            "connect: qemu+ssh://jitsu@a.test/system\n", "remote: ssh://git@a.test/x.git\npersistdb: s.git\n",
            "remote: git@a.test:x.git\npersistdb: s.git\n", "webhooks: 'http://a.test/x?a=b:c@d'\n",
        ):  # fmt: skip
            self.load(text + VM)

    def test_all(self) -> None:
        """All mistakes of a file are told in one run, a line for each, in the order of the file."""
        error = self.assertRaises(ConfigErrors, self.load, "tll: 5\nmode: kill\nhosts:\n  - {name: a}\n" + VM + (
            "    tttl: 5\n"
            "  - {name: b, dns: [b..org, 'b c'], ip: 10.0.0.300, idle: x}\n"
            "  - {dns: c.example.org}\n"
        ))  # fmt: skip
        places = [line.removeprefix(f"{self.folder}/jitsu.yaml:").partition(": ") for line in str(error).splitlines()]
        self.assertEqual(["1", "2", "4", "9", *["10"] * 4, "11", "11"], [one[0] for one in places])
        self.assertEqual(len(places), len(error.errors))

    def test_order(self) -> None:
        """Mistakes are told in the order of the lines; those of a zone with those of the top, and after them."""
        self.write("bad.zone", "$ORIGIN a.test.\n@ SOA ns h 1 2 3 4 x\n")
        path = self.write("bad.yaml", f"zones: [bad.zone]\nmode: kill\n{VM}    ttl: x\ntll: 5\n")
        error = self.assertRaises(ConfigErrors, load, {}, (), path)
        places = [f"{Path(str(one.path)).name}:{one.line}" for one in error.errors]
        self.assertEqual(["bad.yaml:2", "bad.yaml:7", "bad.yaml:8", "bad.zone:2"], places)

    def test_all_that_can_be(self) -> None:
        """Mistakes in the zones' names and between values are told with the others, but none that follow from them."""
        text = "min_up: 5\nforwarder: 127.0.0.1\n" + VM + "    max_up: 3\n    needs: [nobody]\n"
        self.assertEqual(["2"], self.lines(text))
        text = text.replace("forwarder: 127.0.0.1", "ttl: 5")
        more = (("b", "b.example.com", "10.0.0.2"), ("c", "old.example.org", "10.0.0.3"))
        text += "".join(f"  - {{name: {name}, dns: {dns}, ip: {ip}, needs: [www]}}\n" for name, dns, ip in more)
        self.assertEqual(["7", "9", "10"], self.lines(text))

    def lines(self, text: str) -> list[str]:
        """Return the lines of the file that are wrong."""
        errors = str(self.assertRaises(ConfigError, self.load, text)).splitlines()
        return sorted((one.removeprefix(f"{self.folder}/jitsu.yaml:").partition(":")[0] for one in errors), key=int)

    def test_too_many(self) -> None:
        """Of a file that is wrong in each line, the first mistakes are told."""
        text = "".join(f"key{number}: 1\n" for number in range(1000))
        self.assertEqual(list(map(str, range(1, Mistakes.MOST + 1))), self.lines(text + VM))
        vms = "".join(f"  - {{name: v{number}, dns: a b, ip: 10.0.0.1}}\n" for number in range(1000))
        self.assertEqual(Mistakes.MOST, len(self.lines("vms:\n" + vms)))

    def test_mistakes(self) -> None:
        """With the last mistake that is told the work ends."""
        mistakes = Mistakes()

        def one() -> None:
            with mistakes:
                raise ConfigError("no")

        for _ in range(Mistakes.MOST - 1):
            one()
        self.assertRaises(ConfigErrors, one)

    def test_huge(self) -> None:
        """A file that is larger than any configuration is not read to its end, whatever it is."""
        path = self.write("huge.yaml", "")
        with path.open("r+b") as file:
            file.truncate(1 << 40)
        for huge in (path, Path("/dev/zero")):
            self.assertIn("is larger than 64 MiB", str(self.assertRaises(ConfigError, load, {}, (), huge)))
        secret = self.write("secret", "")
        with secret.open("r+b") as file:
            file.truncate(1 << 40)
        secret.chmod(0o600)
        error = self.assertRaises(ConfigError, self.load, f"synjitsu: unix:/s\nsynjitsu_secret: {secret}\n{VM}")
        self.assertIn("is larger than 64 MiB", str(error))

    def test_nested(self) -> None:
        """Where PyYAML was built without libyaml, lists in lists are refused as well."""
        self.patch(source, "_Loader", yaml.SafeLoader)
        self.assertIn("is not YAML", str(self.assertRaises(ConfigError, self.load, "a: " + "[" * 10_000)))

    def test_aliases(self) -> None:
        """Aliases are as good as what they stand for, up to a number of values."""
        settings, _ = self.load(f"summon_from: &lan [10.0.0.0/8]\nrate_exempt: *lan\n{VM}")
        self.assertEqual(settings.summon_from, settings.rate_exempt)
        self.patch(source, "MOST_VALUES", 1000)
        bomb = "".join(f"  - {{name: v{number}, dns: v.example.org, ip: 10.0.0.2, needs: *a}}\n" for number in range(9))
        error = self.assertRaises(ConfigError, self.load, f"notify: &a [{'10.0.0.1, ' * 100}]\n{VM}{bomb}")
        self.assertIn("the file says more than 1000 values", str(error))

    def test_long_needs(self) -> None:
        """VMs may need each other in a long row."""
        vms = "".join(f"  - {{name: v{number}, dns: v{number}.example.org, ip: 10.{number // 250}.0.{number % 250}, "
                      f"needs: [v{number + 1}]}}\n" for number in range(1500))  # fmt: skip
        last = "  - {name: v1500, dns: v1500.example.org, ip: 10.9.9.9}\n"
        self.assertEqual(1501, len(self.load(f"backend: memory\nvms:\n{vms}{last}")[0].vms))
        text = f"backend: memory\nvms:\n{vms}{last.replace('}', ', needs: [v0]}')}"
        self.assertIn("goes round in a circle", str(self.assertRaises(ConfigError, self.load, text)))

    def test_made_up(self) -> None:
        """A made-up zone is neither the root nor a top-level domain; of a name right below one, it is the name's."""
        for names, apexes in (
            (["www.example.org"], ["example.org"]), (["example.org", "www.example.org"], ["example.org"]),
            (["example.org"], ["example.org"]), (["*.example.org"], ["example.org"]), (["a.b.c.org"], ["b.c.org"]),
        ):  # fmt: skip
            pair = ",".join(["name=www", "ip=10.0.0.1", *(f"dns={name}" for name in names)])
            _, zones = load({"backend": "memory"}, [pair])
            self.assertEqual(list(map(from_text, apexes)), [zone.key for zone in zones])
            self.assertEqual(["www"] * len(names), [self.vm_of(zones, name) for name in names])
        for name, above in (("www", "."), ("*.org", "org"), ("com.", ".")):
            error = self.assertRaises(ConfigError, load, {"backend": "memory"}, [f"name=www,ip=10.0.0.1,dns={name}"])
            words = f"command line: vms: www: dns: {name.strip('.')}: Jitsu would answer for all of '{above}'"
            self.assertIn(words, str(error))
        self.write("root.zone", "$ORIGIN .\n@ 60 SOA ns h 7 2 3 4 5\n@ 60 NS ns\nns 60 A 192.0.2.1\n")
        _, zones = self.load(VM.replace("www.example.org", "www"), zones=[str(self.folder / "root.zone")])
        self.assertEqual("www", self.vm_of(zones, "www"))

    def test_missing_file(self) -> None:
        """A file that is named must be there; one that is only looked for need not."""
        error = self.assertRaises(ConfigError, load, {}, (), self.folder / "nowhere.yaml")
        self.assertIn("nowhere.yaml: cannot be read: No such file", str(error))
        self.load(None, ("name=w,dns=w.example.org,ip=10.0.0.1",))

    def test_not_text(self) -> None:
        """A file that is not text says so."""
        (self.folder / "jitsu.yaml").write_bytes(b"\xff\xfe")
        self.assertIn("is not text in UTF-8", str(self.assertRaises(ConfigError, self.load)))

    def test_zones(self) -> None:
        """A zone file that is missing, broken or without SOA is named, with the line where there is one."""
        for text, words in ((None, "No such file"), ("$ORIGIN example.org.\n@ 60 NS ns\n", "no SOA"),
                            ("$ORIGIN example.org.\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nx A 1.2.3\n", "bad.zone:4:")):
            if text is not None:
                self.write("bad.zone", text)
            error = self.assertRaises(ConfigError, self.load, VM, zones=[str(self.folder / "bad.zone")])
            self.assertIn("bad.zone", str(error))
            self.assertIn(words, str(error))

    def test_pairs(self) -> None:
        """Mistakes on the command line say so."""
        for pair, words in (("x.yaml", "'x.yaml' is not of the form key=value; a file is named by --config"),
                            ("name=a,b", "'b' is not of the form key=value"), ("nam=www", "did you mean name?"),
                            ("name=a,name=b", "name: is there twice"), ("name=a,dns=a.b", "ip: is missing"),
                            ("name=a,dns=a.b,ip=x", "'x' is no IP address")):
            message = str(self.assertRaises(ConfigError, load, {}, [pair]))
            self.assertTrue(message.startswith("command line:"), message)
            self.assertIn(words, message)

    def test_nothing(self) -> None:
        """With nothing to serve, it says what is wanted."""
        self.assertIn("--zone", str(self.assertRaises(ConfigError, load, {})))

    def test_definition(self) -> None:
        """A definition must be of a domain of that name."""
        for xml, words in (("<domain", "is not XML"), ("<domain><name>x</name></domain>", "the name 'www', not 'x'"),
                           ("<network><name>www</name></network>", "should define a domain")):
            self.write("vm.xml", xml)
            self.assertIn(words, str(self.assertRaises(ConfigError, self.load, f"{VM}    define: vm.xml\n")))
