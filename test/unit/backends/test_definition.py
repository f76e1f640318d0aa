"""Files of templates: what stands in them instead of what each VM has of its own."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import definition, domain, domain_xml, xen
from jitsu_tw.errors import BackendError
from jitsu_tw.settings import Layer
from test.support import vm

if TYPE_CHECKING:
    from jitsu_tw.settings import VM

UUID: Final = "0b5f2a52-6d4f-5ab8-8f6e-4f1a2b3c4d5e"


def made(**changes: object) -> VM:
    """Return a VM of a template."""
    return attrs.evolve(vm("alice.site", uuid=UUID), template="site", **changes)  # type: ignore[arg-type]


class FillTests(SynchronousTestCase):
    """What placeholders stand for, and what is no placeholder."""

    def test_values(self) -> None:
        """Each has the VM's own value; a disk and an IPv6 address are there if the VM has them."""
        text = "${name} ${label} ${dns} ${uuid} ${ip} ${mac}"
        plain = made()
        self.assertEqual(
            f"alice.site alice alice.site.jitsu.test {UUID} {plain.ip[0]} 52:0b:5f:2a:52:6d",
            definition.filled(text, plain),
        )
        both = made(ip=(ip_address("192.0.2.1"), ip_address("2001:db8::1")), layer=Layer(Path("/l/x"), Path("/b")))
        self.assertEqual("192.0.2.1 2001:db8::1 /l/x", definition.filled("${ip} ${ip6} ${disk}", both))
        self.assertEqual("2001:db8::1", definition.filled("${ip}", made(ip=both.ip[1:])))

    def test_mac(self) -> None:
        """A MAC made of a uuid is locally administered, and for one machine."""
        for number in range(256):
            first = int(definition.mac_of(f"{number:02x}{UUID[2:]}")[:2], 16)
            self.assertEqual(2, first & 3)

    def test_mistakes(self) -> None:
        """What stands for nothing is an error that says what does; $$ is the sign itself."""
        for text, words in (
            ("${nmae}", "has ${nmae}, which"), ("$HOME", "has ${HOME}, which"),
            ("${disk}", "has ${disk}, the path of its own disk, if the template has a disk, which"),
            ("a\n5 $ b", "line 2"), ("${", "write $$"), ("${a b}", "write $$"), ("${name", "write $$"),
        ):  # fmt: skip
            error = self.assertRaises(ValueError, definition.filled, text, made())
            self.assertIn(words, str(error))
        self.assertEqual("$5 ${name} $alice", definition.filled("$$5 $${name} $$${label}", made()))

    def test_no_template(self) -> None:
        """In the file of a VM that no template has made, nothing is a placeholder."""
        self.assertEqual("${name} $ $$", definition.filled("${name} $ $$", vm()))

    def test_values_are_not_filled(self) -> None:
        """What a value has in it is text, whatever it looks like."""
        self.assertEqual("$[name]", definition.fill("${disk}", {"disk": "$[name]"}))
        self.assertEqual("${name}", definition.fill("${disk}", {"disk": "${name}", "name": "x"}))

    def test_escapes(self) -> None:
        """Values are written as XML and as xl have them, and cannot end the text that they stand in."""
        self.assertEqual("&lt;&amp;&gt;&apos;&quot;", domain_xml.escaped("<&>'\""))
        self.assertEqual(r"\\\"", xen.escaped('\\"'))
        file = Path(self.mktemp())
        file.write_text("<domain><source file='${disk}'/></domain>")
        odd = made(define=file, layer=Layer(Path("/l/a'/><b x='&"), Path("/b")))
        root = domain_xml.parse(domain.text(odd))
        self.assertEqual(["/l/a'/><b x='&"], [one.get("file") for one in root])


    def test_comments(self) -> None:
        """A label with two hyphens, which no comment of XML may have, is filled in everywhere else."""
        file = Path(self.mktemp())
        file.write_text(
            "<domain><!-- ${label}\nis $$5 --><a b='${label}'>${label}<!----></a>"
            "<c><![CDATA[<!-- ${label} -->]]></c></domain>"
        )
        root = domain_xml.parse(domain.text(attrs.evolve(made(define=file), name="xn--caf-dma.site")))
        self.assertEqual(["xn--caf-dma", "<!-- xn--caf-dma -->"], [one.text for one in root])
        self.assertEqual("xn--caf-dma", root[0].get("b"))
        file.write_text("<domain><!-- open <a/></domain>")
        self.assertIn("is not XML", str(self.assertRaises(BackendError, domain.text, made(define=file))))


class FileTests(SynchronousTestCase):
    """What can be wrong with a file."""

    def setUp(self) -> None:
        """Name a file."""
        self.file = Path(self.mktemp())

    def test_bad(self) -> None:
        """A file that is no text, no XML, or has one uuid for all is an error that names it."""
        machine = made(define=self.file)
        for octets, words in (
            (b"\xff\xfe<\0", "is not text"), (b"<domain", "is not XML"), (b"", "is not XML"), (b"\0", "is not XML"),
            (b"<domain>${nmae}</domain>", "${nmae}"), (b"<domain>\n$ </domain>", "line 2"),
            (b"<domain><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid></domain>", "gives all its VMs the uuid 6695"),
            (b"<domain><name>web</name></domain>", "gives all its VMs the name web; write ${name}"),
        ):  # fmt: skip
            self.file.write_bytes(octets)
            error = self.assertRaises(BackendError, domain.text, machine)
            self.assertIn(str(self.file), str(error))
            self.assertIn(words, str(error))
        for uuid in ("", "<uuid>${uuid}</uuid>", f"<uuid> {UUID.upper()}\n</uuid>"):
            self.file.write_text(f"<domain>{uuid}</domain>")
            domain.text(machine)

    def test_too_large(self) -> None:
        """A file that is larger than any definition is refused before it is read whole."""
        self.file.touch()
        os.truncate(self.file, 1 << 40)
        self.assertIn("larger than 4 MiB", str(self.assertRaises(BackendError, domain.text, made(define=self.file))))

    def test_ends_of_lines(self) -> None:
        """Lines end by a newline, however the file has them: xl takes no others."""
        self.file.write_bytes(b"a\r\nb\n")
        self.assertEqual("a\nb\n", definition.unfilled(self.file))

    def test_alike(self) -> None:
        """What a template gives all its VMs alike, and each needs of its own, is told."""
        xml = (
            "<domain><devices><interface><mac address='52:54:00:00:00:01'/></interface><interface/>"
            "<interface><mac address='${mac}'/></interface><disk type='file'><source file='/srv/a.img'/></disk>"
            "<disk type='block'><source dev='/dev/vg/b'/></disk><disk><source file='/srv/c.img'/><readonly/></disk>"
            "<disk><source file='/srv/d.img'/><shareable/></disk><disk device='cdrom'><source file='/srv/e'/></disk>"
            "<disk><source file='${disk}'/></disk><disk><source file='/srv/${name}.img'/></disk><disk/></devices>"
            "</domain>"
        )
        found = list(domain_xml.shared_by_all(xml))
        self.assertEqual(3, len(found), found)
        for sentence, words in zip(found, ("MAC 52:54:00:00:00:01", "/srv/a.img", "/dev/vg/b"), strict=True):
            self.assertIn(words, sentence)
        self.assertEqual([], list(domain_xml.shared_by_all("<${name}/>")))

    def test_odd_amounts(self) -> None:
        """An amount of memory that is none is a difference, and nothing worse."""
        wanted = "<domain><memory unit='KiB'>{}</memory></domain>"
        for amount in ("²", "9" * 5000, "-1", ""):
            where = domain_xml.difference(
                domain_xml.parse(wanted.format(amount)), domain_xml.parse(wanted.format(8))
            )  # fmt: skip
            self.assertEqual("memory", where)
