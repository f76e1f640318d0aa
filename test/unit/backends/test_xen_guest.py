"""What a configuration says of a Xen guest, and what xl is told of it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import parsers
from jitsu_tw.backends import xen
from jitsu_tw.backends.xl import Domain, parse_free, parse_list, reason
from jitsu_tw.keys import keys_of

UUID: Final = "5e0bb3bc-6a4a-4d56-8f5b-3a7b1b6a9999"

#: Of a real host.
LISTED: Final = f"""\
Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label
Domain-0                                     0   512     1     r-----      56.0 00000000-0000-0000-0000-000000000000        -                -
running                                      1   128     1     -b----       0.0 {UUID}        -                -
paused                                       2   128     1     --p---       0.0 {UUID}        -                -
off                                          3   128     0     --ps--      12.4 {UUID}        0                -
crashed                                      4   128     1     ---sc-      12.4 {UUID}        3                -
saving                                       5   128     1     --pss-       0.3 {UUID}        2                -
a name with 1 2 3 ------ 0.0 {UUID} - in it     6   128     1     ------       0.3 {UUID}        -                -
dying                                        7     0     0     ---s-d       0.3 {UUID}        0                -
(null)                                       8   128     1     --p---       6.0 {UUID}        -                -
"""  # noqa: E501


class ParseTests(SynchronousTestCase):
    """Values from text."""

    def refused(self, parse: Any, *texts: str) -> None:
        """See to it that each of *texts* is an error that repeats it and says what would be right."""
        for text in texts:
            error = self.assertRaises(ValueError, parse, text)
            self.assertIn(repr(text), str(error))
            self.assertIn("; ", str(error))

    def test_memory(self) -> None:
        """A number is KiB, as in the original; units are binary."""
        for text, kib in (("65536", 65536), ("64MiB", 65536), ("64 mib", 65536), ("1GiB", 2**20), ("8KiB", 8)):
            self.assertEqual(kib, xen.parse_memory(text), text)
        self.refused(xen.parse_memory, "", "0", "64M", "-1", "1.5GiB", "much", "٣", "0GiB")

    def test_disk(self) -> None:
        """A disk is a path and a device; the last @ parts them, so that any path will do."""
        self.assertEqual(xen.Disk("/dev/vg0/www", "xvda"), xen.parse_disk("/dev/vg0/www@xvda"))
        self.assertEqual(xen.Disk("/srv/a@b, c=d.img", "xvdb1"), xen.parse_disk("/srv/a@b, c=d.img@xvdb1"))
        self.refused(xen.parse_disk, "/dev/vg0/www", "www.img@xvda", "/a@xvda,access=r", "/a@", "@xvda")
        self.assertRaises(ValueError, xen.parse_disk, "/a\n@xvda")

    def test_names(self) -> None:
        """Bridges, scripts and MACs are words that cannot be taken for more of xl's syntax."""
        self.assertEqual("xenbr0.5", xen.parse_nic("xenbr0.5"))
        self.refused(xen.parse_nic, "", "a,b", "a b", "x" * 16, "a'b", "br\n0")
        self.assertEqual("/etc/xen/scripts/vif-bridge", xen.parse_script("/etc/xen/scripts/vif-bridge"))
        self.refused(xen.parse_script, "", "a,ip=1", "a b", 'a"')
        self.assertEqual("00:16:3e:aa:bb:cc", parsers.mac("00:16:3E:AA:BB:CC"))
        self.refused(parsers.mac, "", "01:00:5e:00:00:01", "00:16:3e:aa:bb", "00-16-3e-aa-bb-cc", "ff" * 6)

    def test_type_and_vcpus(self) -> None:
        """A type is one of three; a number of processors is one."""
        self.assertIs(xen.Type.PVH, xen.parse_type("PVH"))
        self.refused(xen.parse_type, "", "qemu")
        vcpus = keys_of(xen.XenGuest)["vcpus"].parse
        self.assertEqual(4, vcpus("4"))
        self.refused(vcpus, "0", "513", "two", "²")

    def test_cmdline(self) -> None:
        """A command line is whatever can be printed."""
        self.assertEqual("a=\"b c\" 'd' \\", xen.parse_cmdline("a=\"b c\" 'd' \\"))
        self.assertRaises(ValueError, xen.parse_cmdline, 'a"\nkernel="/etc/shadow')

    def test_name(self) -> None:
        """What xl would take for something else is no name."""
        xen.check_name("www-1.example")
        for name in ("", "12", "Domain-0", "a/b", " www", "a\tb", "x" * 81):
            self.assertRaises(ValueError, xen.check_name, name)


class RumprunTests(SynchronousTestCase):
    """Configurations of rumprun."""

    def test_good(self) -> None:
        """JSON passes, with the commas and the repeated keys that rumprun's own tool writes."""
        for text in (
            "{}",
            '{"cmdline": "www -p 80"}',
            '{, \n\t"net" : {, \n\t\t"if": "xenif0", \n\t}, \n\t"net": {}, "cmdline": "a, ,b,}", \n}, \n',
            '{"rc": [,{"bin": "www", "args": ["\\",}",, "b"]},]}',
        ):
            xen.check_rumprun(text)

    def test_bad(self) -> None:
        """What is no JSON, no table, or too much for Xenstore is refused with the reason."""
        for text, why in (
            ("", "is no JSON"),
            ("{", "is no JSON"),
            ('{"a" "b"}', "is no JSON"),
            ('{"a": , "b"}', "is no JSON"),
            ("[]", "begins with {"),
            ('{"a": "%s"}' % ("x" * 4000), "octets"),
        ):
            self.assertIn(why, str(self.assertRaises(ValueError, xen.check_rumprun, text)), text[:20])


class ConfigurationTests(SynchronousTestCase):
    """What xl reads."""

    def test_all(self) -> None:
        """Every key is there; the script is used in turn; MACs that are not given are made."""
        guest = xen.XenGuest(
            kernel=Path("/srv/www"), memory=65537, cmdline='a="b"', nic=("br0", "br1", "br2"), script=("one", "two"),
            disk=(xen.Disk("/srv/a,b.img", "xvda"),), type=xen.Type.PVH, ramdisk=Path("/srv/initrd"), vcpus=2,
            mac=("00:16:3e:00:00:01",),
        )  # fmt: skip
        _, second, third = xen.macs(guest, UUID)
        expected = f"""\
type = "pvh"
kernel = "/srv/www"
ramdisk = "/srv/initrd"
cmdline = "a=\\"b\\""
memory = 65
vcpus = 2
vif = [ "mac=00:16:3e:00:00:01,bridge=br0,script=one", "mac={second},bridge=br1,script=two", \
"mac={third},bridge=br2,script=one" ]
disk = [ "vdev=xvda,access=rw,format=raw,target=/srv/a,b.img" ]
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
name = "www"
uuid = "{UUID}"
"""
        self.assertEqual(expected, xen.configuration("www", UUID, guest))

    def test_least(self) -> None:
        """What is not said is left to xl."""
        text = xen.configuration("www", UUID, xen.XenGuest(Path("/k")))
        self.assertEqual(
            {"type", "kernel", "memory", "vcpus", "on_poweroff", "on_reboot", "on_crash", "name", "uuid"},
            {line.split(" = ")[0] for line in text.splitlines()},
        )

    def test_macs(self) -> None:
        """Made MACs are Xen's, differ from guest to guest and nic to nic, and never change."""
        two = xen.XenGuest(nic=("a", "b"))
        found = xen.macs(two, UUID)
        self.assertEqual(found, xen.macs(two, UUID))
        self.assertEqual(4, len({*found, *xen.macs(two, UUID.replace("5", "6"))}))
        for mac in found:
            self.assertEqual(mac, parsers.mac(mac))
            self.assertTrue(mac.startswith("00:16:3e:"))

    @given(st.text())
    def test_quoting(self, text: str) -> None:
        """No text ends its string: xl's rules are Python's, for what gets through; the rest is refused."""
        try:
            made = xen.quoted(text)
        except ValueError:
            self.assertFalse(text.isprintable())
            return
        self.assertEqual(text, ast.literal_eval(made))
        self.assertEqual(1, len(f"key = {made}".splitlines()))

    def test_needs(self) -> None:
        """A guest needs more than its memory; one with page tables of its own more still."""
        self.assertEqual(131072 + 1024, xen.XenGuest().needs)
        self.assertEqual(131072 + 1024 + 4 * (256 + 256), xen.XenGuest(type=xen.Type.PVH).needs)


class XlTests(SynchronousTestCase):
    """What xl says."""

    def test_list(self) -> None:
        """Domains without a name, and dom0, are none of ours; one that is being saved is not down."""
        expected = [
            Domain("running", 1, UUID),
            Domain("paused", 2, UUID, paused=True),
            Domain("off", 3, UUID, down=True, reason=0),
            Domain("crashed", 4, UUID, down=True, reason=3),
            Domain("saving", 5, UUID),
            Domain(f"a name with 1 2 3 ------ 0.0 {UUID} - in it", 6, UUID),
            Domain("dying", 7, UUID, down=True, reason=0),
        ]
        self.assertEqual(expected, list(parse_list(LISTED)))

    def test_words(self) -> None:
        """A domain says why it is down, in words."""
        self.assertEqual(
            ["it runs", "paused", "the guest shut down", "the guest crashed"],
            [str(domain) for domain in list(parse_list(LISTED))[:4]],
        )

    def test_free(self) -> None:
        """What Xen has is known only if dom0 may not be asked for more."""
        info = "free_memory            : 750\nxen_commandline        : placeholder %s\n"
        self.assertEqual(750 * 2**20, parse_free(info % "dom0_mem=512M,max:512M"))
        self.assertIsNone(parse_free(info % "bootscrub=0"))
        self.assertIsNone(parse_free(""))

    def test_errors(self) -> None:
        """The cause comes first in what libxl says, and is told without its source's lines."""
        said = (
            "Parsing config from x\nxc: info: Saving\n"
            'libxl: error: libxl_domain.c:81:libxl__domain_rename: Domain 2:Domain with name "g1" already exists.\n'
            "libxl: error: libxl_create.c:1296:initiate_domain_create: Domain 2:cannot make domain: -6\n"
            "libxl: error: libxl_domain.c:1064:domain_destroy_cb: Domain 2:Destruction of domain failed\n"
        )
        expected = 'xl create: Domain 2:Domain with name "g1" already exists.; Domain 2:cannot make domain: -6'
        self.assertEqual(expected, reason("create", 3, "", said))
        self.assertEqual("xl save: no", reason("save", 1, "\nno\n", ""))
        self.assertEqual("xl save: it ended with code 7 and no message", reason("save", 7, "", ""))
