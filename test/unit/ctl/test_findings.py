"""What `jitsuctl doctor` concludes from observations."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.ctl.diagnosis import findings
from jitsu_tw.ctl.diagnosis.findings import Answer, Delegation, Held, Level, Link, Seen
from jitsu_tw.settings import Mode
from test.support import vm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitsu_tw.ctl.diagnosis.findings import Finding

BRIDGE = Link("br0", is_bridge=True, addresses=(ip_interface("10.0.3.1/24"), ip_interface("fd09::1/64")))
WWW = vm()  # at 10.0.3.104
DNSMASQ = ("/usr/sbin/dnsmasq", "--conf-file=/var/lib/libvirt/dnsmasq/default.conf")
JITSU = ("/opt/jitsu/bin/python3", "/opt/jitsu/bin/twistd", "-n", "jitsu", "--config", "jitsu.yaml")


class FindingsTestCase(SynchronousTestCase):
    """Looks at levels and sentences."""

    def check(self, found: Iterable[Finding], *expected: tuple[Level, str]) -> None:
        """Check the levels of findings, and parts of their sentences; what is not ok has a remedy."""
        found = list(found)
        self.assertEqual([level for level, _ in expected], [one.level for one in found], found)
        for one, (level, part) in zip(found, expected, strict=True):
            self.assertIn(part, one.text)
            self.assertEqual(level is not Level.OK, bool(one.remedy), one)


class BridgeTests(FindingsTestCase):
    """Bridges, and the addresses of guests."""

    def bridge(self, link: Link | None, **changes: Any) -> Iterable[Finding]:
        """Return what is found of the bridge br0, which is *link*, with one VM."""
        return findings.bridges({"br0": [vm(**changes)]}, [] if link is None else [link])

    def test_well(self) -> None:
        """A bridge that is up and has no STP is well; without carrier too, if no VM sleeps behind Synjitsu."""
        self.check(self.bridge(BRIDGE), (Level.OK, "br0 is up"))
        self.check(self.bridge(Link("br0", is_bridge=True, carrier=False)), (Level.OK, "without carrier"))

    def test_no_carrier(self) -> None:
        """Without carrier, no packet of this host reaches Synjitsu; a VM that no packet wakes does not mind."""
        self.check(self.bridge(BRIDGE, use_synjitsu=True), (Level.OK, "br0 is up"))
        link = Link("br0", is_bridge=True, carrier=False)
        self.check(self.bridge(link, use_synjitsu=True), (Level.WARNING, "has no carrier"))
        self.check(self.bridge(link, use_synjitsu=True, wake_by_packet=False), (Level.OK, "without carrier"))

    def test_stp(self) -> None:
        """With STP, a port is silent for twice the forward delay."""
        link = Link("br0", is_bridge=True, stp=True, forward_delay=2.0)
        self.check(self.bridge(link), (Level.WARNING, "silent for its first 4 s"))

    def test_changing_mac(self) -> None:
        """A bridge whose MAC is one of its ports' may change it; the remedy is to keep that MAC."""
        (found, _) = self.bridge(Link("br0", is_bridge=True, changing_mac="02:00:00:00:00:01"))
        self.check([found], (Level.WARNING, "takes the lowest MAC of its ports"))
        self.assertEqual("ip link set br0 address 02:00:00:00:00:01", found.remedy)

    def test_not_there(self) -> None:
        """A bridge that is not there, is down, or is none, is a problem."""
        self.check(self.bridge(None), (Level.PROBLEM, "there is no bridge br0, which www"))
        self.check(self.bridge(Link("br0", is_bridge=True, up=False)), (Level.PROBLEM, "br0 is down"))
        self.check(self.bridge(Link("br0")), (Level.PROBLEM, "br0, which www should be plugged into, is no bridge"))

    def test_guests(self) -> None:
        """An address in a network of this host is right, its own address a problem, any other a warning."""
        own = vm("own", ip=(ip_address("10.0.3.1"),))
        far = vm("far", ip=(ip_address("192.0.2.1"), ip_address("fd09::2")))
        self.check(
            findings.guests([WWW, own, far], [BRIDGE]),
            (Level.PROBLEM, "own (10.0.3.1): this is the host's own address, on br0"),
            (Level.OK, "2 addresses of VMs in networks of br0"),
            (Level.WARNING, "the address of far (192.0.2.1)"),
        )

    def test_many(self) -> None:
        """Of many VMs, a sentence names some and counts the others."""
        many = [vm(f"vm{number}", ip=(ip_address("192.0.2.1"),)) for number in range(20_000)]
        (found,) = findings.guests(many, [BRIDGE])
        self.assertIn("and 19995 more", found.text)
        self.assertLess(len(found.text), 300)

    def test_alike(self) -> None:
        """What is wrong with many VMs alike is one finding, wherever it comes from."""
        many = [vm(f"vm{number}", ip=(ip_address("10.0.3.1"),)) for number in range(20_000)]
        other = Link("br1", is_bridge=True, addresses=(ip_interface("10.1.0.1/24"),))
        for seen in (Seen("no domain"), Seen(advice=("it has no end; mend it",), macs=("52:54:00:00:00:01",))):
            found = list(findings.hypervisor("qemu", "", {one.name: seen for one in many}, many, network=True))
            self.assertIn("vm0, vm1, vm2, vm3, vm4 and 19995 more", found[0].text)
            self.assertLessEqual(len(found), 2)
        self.assertEqual(1, len(list(findings.misplaced([(one, ["br1"]) for one in many], [BRIDGE, other]))))
        self.assertEqual(1, len(list(findings.guests(many, [BRIDGE]))))

    def test_smallest_network(self) -> None:
        """Of several networks, the smallest that has an address is its own."""
        outer = Link("eth0", addresses=(ip_interface("10.0.0.1/8"),))
        for links in ([outer, BRIDGE], [BRIDGE, outer]):
            self.assertEqual(BRIDGE, findings.link_of(ip_address("10.0.3.104"), links))
        self.assertIsNone(findings.link_of(ip_address("fd0a::1"), [outer, BRIDGE]))

    def test_misplaced(self) -> None:
        """An address in another network than that of the VM's bridge is a problem; one of a family it has not, none."""
        other = Link("br1", is_bridge=True, addresses=(ip_interface("10.1.0.1/24"), ip_interface("fe80::1/64")))
        links = [BRIDGE, other]
        self.check(findings.misplaced([(WWW, ["br0"])], links))
        self.check(findings.misplaced([(WWW, ["br1"])], links),
                   (Level.PROBLEM, "www (10.0.3.104): not in the networks of its bridge (10.1.0.0/24)"))
        self.check(findings.misplaced([(WWW, ["br2"])], links))

    def test_nat(self) -> None:
        """A network behind NAT is a warning if VMs are in it."""
        self.check(findings.nat({"virbr0": "default"}, {"virbr0": [WWW]}),
                   (Level.WARNING, "libvirt's network default (virbr0) is behind NAT"))
        self.check(findings.nat({"virbr0": "default"}, {"br0": [WWW]}))


class PortTests(FindingsTestCase):
    """The port of DNS."""

    def test_free(self) -> None:
        """A port that no process has is free, and one that another address has."""
        self.check(findings.ports(["10.0.3.1"], 53, []), (Level.OK, "10.0.3.1 port 53 is free"))
        held = [Held("udp", "10.0.3.2", 53, 7, DNSMASQ), Held("udp", "::", 53, 7, DNSMASQ)]
        self.check(findings.ports(["10.0.3.1"], 53, held), (Level.OK, "is free"))

    def test_own(self) -> None:
        """A port that Jitsu has is well, however it was begun."""
        process: tuple[str, ...]
        for process in (JITSU, ("/opt/jitsu/bin/python", "/opt/jitsu/bin/jitsu", "--config=x"), ("jitsu",)):
            held = [Held("udp", "10.0.3.1", 53, 7, process), Held("tcp", "10.0.3.1", 53, 7, process)]
            self.check(findings.ports(["10.0.3.1"], 53, held), (Level.OK, "Jitsu listens there (process 7)"))
        for process in (("python", "twistd", "synjitsu"), ("less", "/var/log/jitsu"), ("python", "x.py", "jitsu"), ()):
            self.assertFalse(findings.is_jitsu(process), process)

    def test_taken(self) -> None:
        """Another process is named, once; the remedy for libvirt's dnsmasq and systemd-resolved is their own."""
        held = [Held(protocol, "10.0.3.1", 53, 812, DNSMASQ) for protocol in ("udp", "tcp")]
        found = list(findings.ports(["10.0.3.1"], 53, held))
        self.check(found, (Level.PROBLEM, "is taken by dnsmasq (process 812) of a libvirt network"))
        self.assertIn("virsh net-edit", found[0].remedy)
        resolved = [Held("udp", "127.0.0.53", 53, 5, ("/lib/systemd/systemd-resolved",))]
        (found_it,) = findings.ports(["0.0.0.0"], 53, resolved)  # noqa: S104
        self.assertIn("127.0.0.53", found_it.remedy)
        self.check(findings.ports(["10.0.3.1"], 53, [Held("udp", "0.0.0.0", 53, 9, ("python3", "/a/dns.py"))]),  # noqa: S104
                   (Level.PROBLEM, "by dns.py (process 9)"))

    def test_systemd(self) -> None:
        """What systemd has opened for a socket unit is not taken."""
        held = [Held("udp", "10.0.3.1", 53, 1, ("/sbin/init",))]
        self.check(findings.ports(["10.0.3.1"], 53, held), (Level.OK, "systemd, for a socket unit, listens there"))

    def test_access(self) -> None:
        """The control socket of the machine's Jitsu is for the group jitsu; a socket of another group is not."""
        path = "/run/jitsu/control.sock"
        self.check([findings.access(path, "jitsu", shared=True)], (Level.OK, "the group jitsu may use"))
        for group, shared in (("root", True), ("jitsu", False)):
            self.check([findings.access(path, group, shared=shared)], (Level.WARNING, "only root and Jitsu's user"))

    def test_not_seen(self) -> None:
        """A process that this user may not see is no problem for certain: it may be Jitsu."""
        self.check(findings.ports(["10.0.3.1"], 53, [Held("udp", "10.0.3.1", 53)]), (Level.WARNING, "may not see"))

    def test_missing(self) -> None:
        """An address that this host does not have is a problem."""
        self.check(findings.missing(["10.0.3.1", "192.0.2.53"], {"10.0.3.1"}),
                   (Level.PROBLEM, "192.0.2.53 is no address of this host"))


class NameTests(FindingsTestCase):
    """Resolvers, and the parents of zones."""

    def resolver(self, answer: Answer, forward_to: str = "10.0.3.1 port 53") -> Finding:
        """Return what is found of the resolver that gives *answer*."""
        return findings.resolver("vm.test", "ns.vm.test", ["192.168.1.1"], answer, forward_to)

    def test_asks(self) -> None:
        """A resolver whose answer has the zone's own SOA record asks Jitsu."""
        self.check([self.resolver(Answer("", "NXDOMAIN", "vm.test", "ns.vm.test", 1))], (Level.OK, "asks Jitsu"))

    def test_does_not_ask(self) -> None:
        """With any other answer it does not; the remedy says how to forward, with the port if that is not 53."""
        for answer in (Answer("", "NXDOMAIN", "test", "a.test"), Answer("", "NXDOMAIN", "vm.test", "a.test"),
                       Answer("", "NOERROR"), Answer("192.168.1.1 does not answer within 2 s")):
            found = self.resolver(answer)
            self.check([found], (Level.WARNING, "(192.168.1.1) does not ask Jitsu for vm.test"))
            self.assertIn("server=/vm.test/10.0.3.1; ", found.remedy)
        found = self.resolver(Answer("", "SERVFAIL"), "10.0.3.1 port 5353")
        for words in ("server=/vm.test/10.0.3.1#5353", "stub-addr: 10.0.3.1@5353", "dig @10.0.3.1 -p 5353"):
            self.assertIn(words, found.remedy)

    def test_serves(self) -> None:
        """Jitsu serves a zone if it answers with its SOA record."""
        self.check([findings.service("vm.test", "10.0.3.1", Answer("", "NXDOMAIN", "vm.test", "ns.vm.test", 7))],
                   (Level.OK, "serial 7"))
        self.check([findings.service("vm.test", "10.0.3.1", Answer("", "REFUSED"))],
                   (Level.PROBLEM, "does not answer for vm.test: REFUSED, without an SOA record"))

    def test_delegation(self) -> None:
        """Names and addresses of the delegation are to be those of the zone, as far as the zone has them."""
        own = {"ns.vm.test": ["192.0.2.53"], "ns.other": []}
        right = Delegation("", ("ns.other", "ns.vm.test"), {"ns.vm.test": ("192.0.2.53",), "ns.other": ("192.0.2.1",)})
        self.check([findings.delegation("vm.test", own, right)], (Level.OK, "is delegated to ns.other, ns.vm.test"))
        wrong = Delegation("", ("ns.vm.test", "ns.other"), {"ns.vm.test": ("192.0.2.54",)})
        self.check([findings.delegation("vm.test", own, wrong)], (Level.WARNING, "ns.vm.test is 192.0.2.54"))
        self.check([findings.delegation("vm.test", own, Delegation("", ("ns.old",)))],
                   (Level.WARNING, "is delegated to ns.old, but its own NS records name ns.vm.test, ns.other"))

    def test_no_delegation(self) -> None:
        """A zone that is not delegated, or whose parent cannot be asked, is no fault: resolvers may forward it."""
        self.check([findings.delegation("vm.test", {}, Delegation())], (Level.OK, "is not delegated"))
        lost = Delegation("no server answers")
        self.check([findings.delegation("vm.home.arpa", {}, lost)], (Level.OK, "a zone of this network alone"))
        self.check([findings.delegation("vm.test", {}, Delegation("no answer"))], (Level.OK, "was not looked at"))


class HypervisorTests(FindingsTestCase):
    """What hypervisors say."""

    def found(self, error: str = "", **seen: Seen) -> Iterable[Finding]:
        """Return what is found of a hypervisor with the VM www, and db, which a file defines."""
        vms = [WWW, vm("db", define="db.xml")]
        return findings.hypervisor("qemu", error, seen, vms, network=True)

    def test_well(self) -> None:
        """A hypervisor that knows its VMs is well; it need not know one that a file defines."""
        known = Seen(macs=("52:54:00:00:00:01",))
        self.check(self.found(www=known, db=known), (Level.OK, "qemu can be asked, and knows 2 of 2 VMs"))
        self.check(self.found(www=known, db=Seen("no domain")), (Level.OK, "knows 1 of 2 VMs"))

    def test_unknown(self) -> None:
        """A VM that it does not know, and nothing defines, is a problem."""
        self.check(self.found(www=Seen("no domain 'www'"), db=Seen(macs=None)),
                   (Level.PROBLEM, "qemu cannot show www: no domain 'www'"), (Level.OK, "1 of 2"))

    def test_lost(self) -> None:
        """A hypervisor that cannot be asked is a problem, and one that is too slow a warning about the VMs."""
        self.check(self.found("Permission denied"), (Level.PROBLEM, "qemu cannot be asked: Permission denied"))
        self.check(self.found(www=Seen("late", is_lost=True)),
                   (Level.WARNING, "too slow to tell anything of www, db"))

    def test_remedies(self) -> None:
        """What helps depends on the error."""
        errors = {"Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory": "install",
                  "Failed to connect socket to '/run/libvirt/libvirt-sock': Permission denied": "the group libvirt",
                  "authentication unavailable: no polkit agent": "the group libvirt",
                  "no answer within 5 s": "hangs", "Connection refused": "read its log"}  # fmt: skip
        for error, words in errors.items():
            (found,) = self.found(error)
            self.assertIn(words, found.remedy)

    def test_advice(self) -> None:
        """Its advice and what stands against the VM's mode are warnings, with the remedy as such."""
        seen = Seen(advice=("nothing ends QEMU; give it isa-debug-exit",), macs=(), obstacle="it has a device")
        found = list(self.found(www=seen, db=Seen()))
        self.check(found, (Level.WARNING, "no network interface"), (Level.WARNING, "by mode destroy: it has a device"),
                   (Level.WARNING, "www: nothing ends QEMU"), (Level.OK, "2 of 2"))  # fmt: skip
        self.assertEqual("give it isa-debug-exit", found[2].remedy)

    def test_no_network(self) -> None:
        """A VM whose MAC is configured, or of a backend without a network, needs no interface."""
        seen = {"www": Seen(macs=())}
        self.check(findings.hypervisor("qemu", "", seen, [vm(mac=("52:54:00:00:00:01",))], network=True),
                   (Level.OK, "1 of 1"))
        self.check(findings.hypervisor("memory", "", seen, [WWW], network=False), (Level.OK, "1 of 1"))

    def test_kvm(self) -> None:
        """Without KVM guests are emulated; the permission for it matters where this user runs QEMU."""
        for cpu, words in ((True, "modprobe"), (False, "VT-x")):
            found = findings.kvm(present=False, usable=False, cpu=cpu, session=False)
            self.check([found], (Level.WARNING, "emulated"))
            self.assertIn(words, found.remedy)
        self.check([findings.kvm(present=True, usable=True, cpu=False, session=False)], (Level.WARNING, "emulated"))
        self.check([findings.kvm(present=True, usable=False, cpu=True, session=True)], (Level.WARNING, "may not use"))
        self.check([findings.kvm(present=True, usable=False, cpu=True, session=False)], (Level.OK, "KVM"))


class MachineTests(FindingsTestCase):
    """The rest of this machine."""

    def test_clock(self) -> None:
        """A clock that nothing synchronises, or that was set back since the state was written, is a warning."""
        self.check(findings.clock(synchronised=True, ahead=-5.0), (Level.OK, "synchronised"))
        self.check(findings.clock(synchronised=False, ahead=None), (Level.WARNING, "not synchronised"))
        self.check(findings.clock(synchronised=True, ahead=3600.0), (Level.WARNING, "3600 s in the future"),
                   (Level.OK, "synchronised"))  # fmt: skip

    def test_disk(self) -> None:
        """A disk is a problem when it is almost full, and a warning shortly before."""
        gib = 1024**3
        self.check([findings.disk("/var", 50 * gib, 100 * gib)], (Level.OK, "51200 MiB"))
        self.check([findings.disk("/var", gib, 100 * gib)], (Level.WARNING, "1024 MiB"))
        self.check([findings.disk("/var", 1000, gib)], (Level.PROBLEM, "0 MiB"))

    def test_open_files(self) -> None:
        """Fewer open files than Jitsu may need are a warning."""
        self.check([findings.open_files(1024, 5000)], (Level.WARNING, "1024"))
        self.check([findings.open_files(5000, 5000)], (Level.OK, "5000"))

    def test_state(self) -> None:
        """A state that another process uses is a warning, unless that is the Jitsu that answers."""
        self.check([findings.state("/s", None, answers=False)], (Level.OK, "not in use"))
        self.check([findings.state("/s", 7, answers=True)], (Level.OK, "by Jitsu (process 7)"))
        self.check([findings.state("/s", 7, answers=False)], (Level.WARNING, "in use by process 7"))
        self.check([findings.state("/s", 0, answers=False)], (Level.WARNING, "of another namespace"))

    def test_mode(self) -> None:
        """A VM's obstacle names the mode by the word of the configuration."""
        seen = {"www": Seen(obstacle="it shares memory", macs=("52:54:00:00:00:01",))}
        self.check(findings.hypervisor("qemu", "", seen, [vm(mode=Mode.SAVE)], network=True),
                   (Level.WARNING, "by mode save"), (Level.OK, "1 of 1"))  # fmt: skip
