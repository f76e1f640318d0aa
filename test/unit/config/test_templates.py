"""Templates in a configuration: what they say, and how each mistake is refused, with its file and line."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from jitsu_tw.config.build import load
from jitsu_tw.config.vms import LONGEST_TEMPLATE, example, name_of, uuid_of
from jitsu_tw.errors import ConfigError
from jitsu_tw.settings import Asks, Template
from test.unit.config.test_config import VM, ConfigTestCase

TOP = "backend: memory\npersistdb: state\n"
SITE = {"dns": '"*.sites.example.org"', "pool": "10.1.0.0/16", "exists": "user-*"}

#: A definition that libvirt could read.
XML = """<domain type='kvm'><name>${name}</name><uuid>${uuid}</uuid><memory>65536</memory><os><type>hvm</type></os>
<devices><interface type='bridge'><source bridge='br0'/><mac address='${mac}'/></interface></devices></domain>"""


class TemplateTests(ConfigTestCase):
    """The list `templates`."""

    def text(self, changes: dict[str, str | None], top: str = TOP, more: str = "") -> str:
        """Return a file with one template, in its fourth line, changed by *changes*; None leaves a key out."""
        keys = {key: value for key, value in {"name": "site", **SITE, **changes}.items() if value is not None}
        return f"{top}templates:\n  - " + "\n    ".join(f"{key}: {value}" for key, value in keys.items()) + f"\n{more}"

    def template(self, top: str = TOP, more: str = "", **changes: str | None) -> Template:
        """Return the template of a file."""
        settings, _ = self.load(self.text(changes, top, more))
        (found,) = settings.templates
        assert isinstance(found, Template)
        return found

    def refused(self, top: str = TOP, more: str = "", **changes: str | None) -> str:
        """Return why a file is refused, without its path."""
        with self.assertRaises(ConfigError) as caught:
            self.load(self.text(changes, top, more))
        return str(caught.exception).replace(f"{self.folder}/", "")

    def test_defaults(self) -> None:
        """What a template has if its file says only what it must; it inherits from the top as a VM does."""
        site = self.template(f"{TOP}mode: pause\n")
        self.assertEqual((100, 10, 30 * 86400.0, None), (site.max, site.new_per_minute, site.forget_after, site.disk))
        self.assertEqual(("pause", (b"\1*\5sites\7example\3org\0",), ()), (site.mode.value, site.dns, site.ip))
        self.assertEqual(Asks.PATTERN, site.exists[0].kind)

    def test_values(self) -> None:
        """All that a template says: several wildcards, pools and sources, and the keys of its VMs."""
        site = self.template(
            dns='["*.a.example.org", "*.b.example.org"]', pool='[10.1.0.0/30, 10.2.0.5-10.2.0.9, "2001:db8::/64"]',
            exists='[alice, ./names, "http://127.0.0.1/${label}"]', max="7", new_per_minute="0", forget_after="2h",
            idle="33", wait_for_port="80",
        )  # fmt: skip
        self.assertEqual(["10.1.0.1-10.1.0.2", "10.2.0.5-10.2.0.9", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff"],
                         list(map(str, site.pool)))
        self.assertEqual([Asks.PATTERN, Asks.PATH, Asks.URL], [one.kind for one in site.exists])
        self.assertEqual(str(self.folder / "names"), site.exists[1].text)
        self.assertEqual((7, 0, 7200.0, 33.0), (site.max, site.new_per_minute, site.forget_after, site.idle))
        self.assertEqual(80, site.value("wait_for_port"))

    def test_example(self) -> None:
        """A VM of a template has its label in each of its names, and a uuid made of the first."""
        site = self.template(dns='["*.b.example.org", "*.a.example.org"]')
        vm = example(site)
        self.assertEqual(("example.site", "site", (ip_address("10.1.0.1"),)), (vm.name, vm.template, vm.ip))
        self.assertEqual((b"\7example\1a\7example\3org\0", b"\7example\1b\7example\3org\0"), vm.dns)
        self.assertEqual(b"\5alice\1a\0", name_of("alice", b"\1*\1a\0"))
        self.assertNotEqual(uuid_of("alice", site), uuid_of("bob", site))
        self.assertEqual("5d7fd0d5-f97a-58c8-ad0a-03d4e3a9c5d4"[14], uuid_of("alice", site)[14])

    def test_missing(self) -> None:
        """A template without what each needs is refused, with its line."""
        for key in ("name", "dns", "pool", "exists"):
            changes: dict[str, Any] = {key: None}
            why = self.refused(**changes)
            self.assertRegex(why, f"^jitsu.yaml:4: templates: (site: )?{key}: is missing; every template needs its ")

    def test_no_state(self) -> None:
        """Without a state there are no templates: the addresses of their VMs are kept there."""
        self.assertEqual(
            "jitsu.yaml:3: templates: site: the addresses of its VMs are kept in the state; say where that is, with"
            " persistdb", self.refused("backend: memory\n"),
        )  # fmt: skip

    def test_remote(self) -> None:
        """Jitsus that share a configuration, and are no cluster, cannot have templates: they would agree on nothing."""
        top = f"{TOP}remote: ssh://git@hub/jitsu.git\n"
        self.assertIn("must agree on the addresses of its VMs; make them a cluster", self.refused(top))
        cluster = "cluster: {node: a, etcd: 'http://127.0.0.1:2379'}\n"
        self.assertEqual("site", self.template(top + cluster).name)

    def test_wrong_values(self) -> None:
        """Each wrong value is refused, with its file, line and key, and what would be right."""
        names = {"name": 4, "dns": 5, "pool": 6, "exists": 7}
        table: list[tuple[str, str, str]] = [
            ("dns", "sites.example.org", "is no wildcard; write one like *.sites.example.org"),
            ("dns", '"*.*.example.org"', "*"),
            ("dns", '"' + "*." + ".".join(["x" * 60] * 3 + ["y" * 20]) + '"', "with a label of 63 characters"),
            ("pool", "10.1.0.0", "10.1.0.0"),
            ("pool", "10.1.0.9-10.1.0.1", "ends before it begins"),
            ("pool", "10.1.0.1/16", "is no range of addresses"),
            ("pool", "hello", "write one like 10.1.0.0/16 or 10.1.0.16-10.1.0.99"),
            ("exists", "User", "write one like alice or user-*"),
            ("exists", "ftp://x/", "is no URL of a web server"),
            ("name", "a.b", "has a dot"),
            ("name", "a b", "is no name"),
            ("name", "x" * (LONGEST_TEMPLATE + 1), f"has more than {LONGEST_TEMPLATE} characters"),
        ]
        for key, value, words in table:
            with self.subTest(key=key, value=value):
                if value == "10.1.0.0":
                    self.assertEqual("10.1.0.0-10.1.0.0", str(self.template(pool=value).pool[0]))
                    continue
                why = self.refused(**{key: value})
                self.assertTrue(why.startswith(f"jitsu.yaml:{names[key]}: templates: "), why)
                self.assertIn(words, why)
        for key, value in (("max", "0"), ("max", "1000001"), ("new_per_minute", "-1"), ("forget_after", "soon")):
            self.assertRegex(self.refused(**{key: value}), f"^jitsu.yaml:8: templates: site: {key}: ")

    def test_not_its_keys(self) -> None:
        """A template has no address, uuid or MAC of its own, and a VM none of a template's keys."""
        for key, value in (("ip", "10.0.0.1"), ("uuid", "6f1f8a9e-5f0c-4f5e-9d5b-0c8a2b0d1f11"), ("template", "x")):
            self.assertIn("no such key", self.refused(**{key: value}))
        why = self.refused(more=VM + "    pool: 10.3.0.0/24\n")
        self.assertIn("no such key here; it is a template's, and stands in the list templates", why)
        self.assertIn("no such key", self.refused(more=VM + "    template: site\n"))

    def test_twice(self) -> None:
        """Two templates, or a template and a VM, have no name in common, neither for people nor in DNS."""
        second = self.text({}).partition("templates:\n")[2]
        self.assertIn("site is that of another VM already", self.refused(more=second))
        second = second.replace("site\n", "b\n", 1)
        self.assertIn("*.sites.example.org is that of VM site already", self.refused(more=second))
        self.assertIn("site is that of another VM already", self.refused(more=VM.replace("www", "site", 1)))

    def test_needs(self) -> None:
        """Its VMs may need others; no VM needs a template, which is none."""
        self.assertEqual(("www",), self.template(needs="www", more=VM).needs)
        self.assertIn("there is no VM 'wwww'; did you mean www?", self.refused(needs="wwww", more=VM))
        why = self.refused(more=VM + "    needs: site\n")
        self.assertIn("site is a template, or made by one, and so not always there; list it under vms", why)

    def test_disk(self) -> None:
        """A template has a disk on each backend; its definition must use it, and it must be on this machine."""
        self.write("base.img", "x")
        self.write("site.xml", XML)
        libvirt = TOP.replace("memory", "libvirt")
        site = self.template(libvirt, define="site.xml", disk=None)
        self.assertEqual((None, self.folder / "site.xml"), (site.disk, site.define))
        why = self.refused(libvirt, define="site.xml", disk="base.img")
        self.assertIn("site.xml does not use it; write ${disk} there for the path of a VM's disk", why)
        disk = "<disk type='file'><source file='${disk}'/><target dev='vda'/></disk></devices>"
        self.write("site.xml", XML.replace("</devices>", disk))
        site = self.template(libvirt, define="site.xml", disk="base.img")
        self.assertEqual(self.folder / "base.img", site.disk)
        layer = example(site).layer
        assert layer is not None
        self.assertEqual((site.disk, site.layers), (layer.base, layer.path.parent))
        why = self.refused(define="site.xml", disk="base.img", layers='"a b"')
        self.assertIn("should have no other characters", why)
        far = f"{libvirt}connect: qemu+ssh://far/system\n"
        self.assertIn("the layers are made on this machine", self.refused(far, define="site.xml", disk="base.img"))
        self.assertIn("which the template does not give", self.refused(libvirt, define="site.xml"))

    def test_definition(self) -> None:
        """A file that defines no VM, or has placeholders that stand for nothing, is refused; so is none at all."""
        libvirt = TOP.replace("memory", "libvirt")
        self.assertIn("is missing; give a file that defines its VMs", self.refused(libvirt))
        for text, words in (
            (XML.replace("${name}", "${nom}"), "has ${nom}, which the template does not give"),
            (XML.replace("${name}", "fixed"), "example.site"),
            (XML.replace("${mac}", "$"), "has a $ that begins no placeholder"),
            (XML.replace("${mac}", "${ip6}"), "has ${ip6}, its IPv6 address, if it has one"),
            ("<domain>", "site.xml"),
        ):
            self.write("site.xml", text)
            self.assertIn(words, self.refused(libvirt, define="site.xml"))
        self.assertIn("cannot be read", self.refused(libvirt, define="nowhere.xml"))

    def test_backends(self) -> None:
        """A hypervisor on which Jitsu cannot make VMs has no templates."""
        why = self.refused(TOP.replace("memory", "xapi"), connect="https://xen")
        self.assertIn("xapi cannot make VMs, only use those that it has; take another backend", why)

    def test_nothing_else(self) -> None:
        """A file that has only templates has something to serve; a zone is made up of their names."""
        settings, zones = load({}, (), self.write("jitsu.yaml", self.text({})))
        self.assertEqual([b"\5sites\7example\3org\0"], [zone.key for zone in zones])
        self.assertEqual((), settings.vms)

    def test_in_zone(self) -> None:
        """A wildcard that no zone has is refused."""
        self.assertIn("is in none of the zones", self.refused(dns='"*.example.com"'))


