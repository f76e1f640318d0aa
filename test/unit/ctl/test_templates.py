"""What `jitsuctl doctor` finds of templates: their files, their pools, and where their VMs would be."""

from __future__ import annotations

import os
import shutil
import tempfile
from ipaddress import ip_interface
from pathlib import Path

from jitsu_tw.ctl.diagnosis import machine, templates
from jitsu_tw.ctl.diagnosis.findings import Level, Link
from jitsu_tw.ctl.diagnosis.hypervisors import hypervisors
from jitsu_tw.ctl.diagnosis.templates import Files
from jitsu_tw.networks import AddressRange
from jitsu_tw.settings import Existence, Host, Settings
from test.support import vm
from test.support.control import site
from test.unit.ctl.test_findings import FindingsTestCase

BRIDGE = Link("br0", is_bridge=True, addresses=(ip_interface("10.1.0.1/24"),))


class FilesTests(FindingsTestCase):
    """What there is of the files that a template names."""

    def setUp(self) -> None:
        """Make a folder."""
        super().setUp()
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def file(self, text: str, mode: int = 0o644) -> Existence:
        """Write a file that `exists` names."""
        path = self.folder / "names"
        path.write_text(text)
        path.chmod(mode)
        return Existence.parse(str(path))

    def test_well(self) -> None:
        """A list that can be read, and a program that can be executed, which is not run, are right."""
        for one in (self.file("alice\nbob\n"), self.file("#!/bin/sh\nrm -r .\n", 0o755), Existence.parse("a*")):
            self.assertEqual(Files(), templates.look(site(exists=(one,))))
        self.assertTrue(self.folder.exists())
        self.check(templates.files({"site": Files()}))

    def test_unusable(self) -> None:
        """A file that is not there, or a folder, is a problem."""
        for one, why in (
            (Existence.parse(f"{self.folder}/none"), "none cannot be read: No such file"),
            (Existence.parse(f"{self.folder}"), "cannot be read: Is a directory"),
        ):
            seen = templates.look(site(exists=(one,)))
            self.check(templates.files({"site": seen}), (Level.PROBLEM, "site: nobody knows which names exist: "))
            self.assertIn(why, next(iter(seen.unusable.values())))

    def test_script(self) -> None:
        """A program that cannot be executed is read as a list, which is a warning."""
        seen = templates.look(site(exists=(self.file("#!/bin/true\n"),)))
        self.check(templates.files({"site": seen}), (Level.WARNING, "looks like a program, but is read as a list"))

    def test_label(self) -> None:
        """A label that is the name of a file beside the configuration, too, is a warning."""
        self.file("")
        one = site(exists=(Existence.parse("names"), Existence.parse("a*")), place=(str(self.folder / "jitsu.yaml"), 3))
        self.check(templates.files({"site": templates.look(one)}), (Level.WARNING, "names is read as a name"))

    def test_disks(self) -> None:
        """Where there are disks, the folder of the layers can be written, or made."""
        one = site(disk=self.folder / "base.qcow2", layers=self.folder / "a" / "b")
        self.assertEqual(Files(), templates.look(one))
        self.patch(os, "access", lambda path, _: path != self.folder)  # root may write everywhere
        seen = {"site": templates.look(one)}
        self.check(templates.files(seen), (Level.WARNING, f"may not write disks in {self.folder}"))


class PoolTests(FindingsTestCase):
    """Addresses."""

    def test_left_out(self) -> None:
        """Addresses of this host and of other VMs in a pool are told; no VM gets them."""
        text = "254 addresses in its pool; left out are those of 10.1.0.1 (this host on br0), 10.1.0.9 (the VM www)"
        www = vm(ip=(ip_interface("10.1.0.9").ip, ip_interface("10.2.0.9").ip))
        self.check(templates.pools([site()], [www], [BRIDGE], {}), (Level.OK, f"site: {text}"))
        (found,) = templates.pools([site(pool="10.7.0.0/24")], [www], [BRIDGE], {})
        self.assertEqual("site: 254 addresses in its pool", found.text)

    def test_leased(self) -> None:
        """A range that a DHCP server gives others addresses of is a warning."""
        leased = {"default": [AddressRange.parse("10.1.0.200-10.1.3.4")], "other": [AddressRange.parse("10.7.0.0/24")]}
        found = list(templates.pools([site()], [], [], leased))
        self.check(found, (Level.WARNING, "by DHCP: default (10.1.0.200-10.1.3.4)"), (Level.OK, "site: 254"))
        self.assertNotIn("other (", found[0].text)

    def test_outside(self) -> None:
        """A pool that no network of this host has is a warning."""
        self.check(templates.outside([site()], [BRIDGE]))
        wide = site("wide", "10.1.0.0/16")
        self.check(templates.outside([site(), wide], [BRIDGE]), (Level.WARNING, "pool of wide (10.1.0.1-10.1.255.254)"))

    def test_dhcp(self) -> None:
        """The ranges of libvirt's networks are read; what is no range is left out."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        ranges = "<range start='192.168.122.2' end='192.168.122.254'/><range start='x'/>"
        (folder / "default.xml").write_text(f"<network><ip><dhcp>{ranges}</dhcp></ip></network>")
        self.patch(machine, "NETWORKS", folder)
        self.assertEqual({"default": [AddressRange.parse("192.168.122.2-192.168.122.254")]}, machine.leased())


class HypervisorTests(FindingsTestCase):
    """Which hypervisors are asked."""

    def test_templates(self) -> None:
        """That of a template is one, also if it has no other VM; so are the hosts of a template."""
        settings = Settings(vms=(vm(),), templates=(site(), site("other", connect="x")))
        found = [(one.name, len(one.vms), [each.name for each in one.templates]) for one in hypervisors(settings)]
        self.assertEqual([("memory", 1, ["site"]), ("memory x", 0, ["other"])], found)
        hosts = (Host(name="left", backend="memory", connect=""), Host(name="right", backend="memory", connect=""))
        settings = Settings(hosts=hosts, templates=(site(backend="hosts", hosts=("left",)),))
        found = [(one.name, len(one.vms), [each.name for each in one.templates]) for one in hypervisors(settings)]
        self.assertEqual([("left", 0, ["site"]), ("right", 0, [])], found)
