"""Copy-on-write layers: what QEMU makes of them, how they are made and checked, and that no failure leaves anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest.mock import Mock

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import layer, qcow2
from jitsu_tw.errors import BackendError
from jitsu_tw.settings import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

#: Runs in a mount namespace of its own: makes a layer on a small file system, and prints the error and what is left.
ON_A_SMALL_DISK: Final = """
import subprocess, sys
from pathlib import Path
from jitsu_tw.backends import layer
from jitsu_tw.errors import BackendError
from jitsu_tw.settings import Layer
folder, base, options = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
try:
    layer.make(Layer(Path(folder, "x.qcow2"), Path(base)))
except BackendError as error:
    print(error)
print(list(Path(folder).iterdir()))
"""


class LayerTestCase(SynchronousTestCase):
    """Has a raw base, and a layer that is not made yet."""

    def setUp(self) -> None:
        """Write the base: 1 MiB of sevens."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.base = self.folder / "base.img"
        self.base.write_bytes(b"\7" * (1 << 20))
        self.layer = Layer(self.folder / "layers" / "one.qcow2", self.base)

    def left(self) -> list[str]:
        """Return the names of all files in the layers' directory."""
        return sorted(path.name for path in self.layer.path.parent.glob("*"))

    def refused(self, *words: str, call: Callable[[Layer], object] = layer.make, of: Layer | None = None) -> None:
        """Check that *call* fails, and that its error has these *words*."""
        error = self.assertRaises(BackendError, call, of or self.layer)
        for word in words:
            self.assertIn(word, str(error))


class QemuReadsTests(LayerTestCase):
    """QEMU takes a layer for an image of its own."""

    def qemu(self, path: Path, *commands: str) -> None:
        """Carry out *commands* of qemu-io's on the image *path*; check that each is carried out."""
        asked = [{"execute": "qmp_capabilities"}] + [
            {"execute": "human-monitor-command", "arguments": {"command-line": f'qemu-io disk "{command}"'}}
            for command in commands
        ]
        said = subprocess.run(
            ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio",
             "-blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={path}"],
            input="".join(map(json.dumps, [*asked, {"execute": "quit"}])), capture_output=True, text=True, check=True,
            timeout=60,
        )  # fmt: skip
        done = re.findall(r"^(?:read|wrote) (\d+)/\1 bytes", said.stdout, re.MULTILINE)
        self.assertEqual(len(commands), len(done), said)
        self.assertNotIn("failed", said.stdout)

    def test_raw_and_qcow2(self) -> None:
        """It reads the base, and writes to the layer alone; a layer can be the base of another one."""
        before = self.base.read_bytes()
        layer.make(self.layer)
        self.qemu(self.layer.path, "read -P 7 0 1M", "write -P 9 64k 64k")
        upper = Layer(self.folder / "layers" / "two.qcow2", self.layer.path)
        layer.make(upper)
        self.qemu(upper.path, "read -P 7 0 64k", "read -P 9 64k 64k", "write -P 1 1020k 4k", "read -P 1 1020k 4k")
        self.qemu(self.layer.path, "read -P 9 64k 64k", "read -P 7 128k 896k")
        self.assertEqual(before, self.base.read_bytes())

    def test_large_and_odd(self) -> None:
        """A disk may be large, so that its tables are, and need be no whole number of sectors."""
        for size in (5 << 40, (1 << 20) - 100):
            os.truncate(self.base, size)
            layer.make(self.layer)
            last = (size & ~0xFFFF) - 65536
            self.qemu(self.layer.path, f"write -P 3 {last} 4k", f"read -P 3 {last} 4k", "read -P 7 0 4k")
            layer.remove(self.layer)


class MakingTests(LayerTestCase):
    """How layers are made and removed."""

    def test_made_once(self) -> None:
        """A layer that is there is never written to again; removed twice, nothing is left."""
        self.assertTrue(layer.make(self.layer))
        self.layer.path.write_text("a guest's data")
        self.assertFalse(layer.make(self.layer))
        self.assertEqual("a guest's data", self.layer.path.read_text())
        for _ in range(2):
            layer.remove(self.layer)
            self.assertEqual([], self.left())

    def test_modes(self) -> None:
        """Whatever the mask is, QEMU's user reaches a layer by its path; nobody else reads it, or lists their names."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        layer.make(self.layer)
        self.assertEqual(0o711, self.layer.path.parent.stat().st_mode & 0o777)
        self.assertEqual(0o600, self.layer.path.stat().st_mode & 0o777)

    def test_many_at_once(self) -> None:
        """Of several that make one layer at once, one makes it."""
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: layer.make(self.layer), range(8)))
        self.assertEqual(1, sum(made))
        self.assertEqual(["one.base", "one.qcow2"], self.left())

    def test_another_was_faster(self) -> None:
        """A layer that another process has made meanwhile, whose guest may run, stays as it is."""
        link = os.link

        def late(new: Path, path: Path) -> None:
            path.write_text("a guest's data")
            link(new, path)

        self.patch(os, "link", late)
        self.assertFalse(layer.make(self.layer))
        self.assertEqual("a guest's data", self.layer.path.read_text())
        self.assertEqual(["one.base", "one.qcow2"], self.left())

    def test_cannot_be_linked(self) -> None:
        """Where a file system refuses the last step, nothing is left."""
        self.patch(os, "link", Mock(side_effect=PermissionError(1, "Operation not permitted")))
        self.refused("Operation not permitted")
        self.assertEqual([], self.left())

    def test_killed_in_the_middle(self) -> None:
        """What a maker that was killed has left goes when the layer is made next, or removed; a living one's stays."""
        self.layer.path.parent.mkdir()
        old, young, other = (self.layer.path.parent / f".{name}" for name in
                             ("one.qcow2.old", "one.qcow2.young", "two.qcow2.old"))
        for path in (old, young, other):
            path.touch()
        for path in (old, other):
            os.utime(path, (0, 0))
        layer.make(self.layer)
        self.assertEqual([False, True, True], [path.exists() for path in (old, young, other)])
        layer.remove(self.layer)
        self.assertEqual([False, True], [path.exists() for path in (young, other)])

    def test_base_is_no_image(self) -> None:
        """A base that is missing, empty, damaged, too large or too long to name is refused, and nothing is left."""
        head = qcow2.MAGIC + b"\0\0\0\3"
        far, long = (head + struct.pack(">QIIQ", *numbers, 16, 1 << 20) for numbers in ((1 << 60, 9), (104, 1 << 31)))
        for content, words in ((None, "No such file"), (b"", "it is empty"), (head, "damaged"), (far, "damaged"),
                               (long, "damaged"), (head + bytes(16) + b"\x7f" + bytes(7), "too large"),
                               (qcow2.MAGIC + b"\0\0\0\1" + bytes(64), "convert it: qemu-img")):
            if content is None:
                self.base.unlink()
            else:
                self.base.write_bytes(content)
            for call in (layer.make, layer.check_base):
                self.refused(str(self.base), words, call=call)
            self.assertFalse(self.layer.path.parent.exists())
        self.base.unlink()
        os.mkfifo(self.base)
        for base in (self.base, self.folder, Path("/dev/zero")):
            for call in (layer.make, layer.check_base):
                self.refused(str(base), "no file and no block device", call=call, of=Layer(self.layer.path, base))
        deep = self.folder.joinpath(*["d" * 200] * 5)
        deep.mkdir(parents=True)
        (deep / "base.img").write_bytes(bytes(512))
        self.refused("more than 1023 octets", of=Layer(self.layer.path, deep / "base.img"))

    def test_base_is_hidden(self) -> None:
        """The error of a base that Jitsu may not read says who must be able to."""
        self.patch(Path, "open", Mock(side_effect=PermissionError(13, "Permission denied", str(self.base))))
        self.refused(f"{self.base}: Permission denied; Jitsu and QEMU must be able to read it")

    def test_directory_is_none(self) -> None:
        """Where no directory can be made, or a file is in its place, the error names it."""
        self.refused("/proc/nowhere", of=Layer(Path("/proc/nowhere/one.qcow2"), self.base))
        self.refused(str(self.base), of=Layer(self.base / "one.qcow2", self.base))

    def test_disk_is_full_or_readonly(self) -> None:
        """On a file system that is full, or read-only, nothing is left of a layer, and the error says why."""
        place = self.folder / "small"
        place.mkdir()
        for options, why in (("size=4k", "No space left on device"), ("ro", "Read-only file system")):
            run = subprocess.run(
                ["unshare", "--map-root-user", "--mount",
                 sys.executable, "-c", ON_A_SMALL_DISK, place, self.base, options],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            error, left = run.stdout.splitlines()
            self.assertIn(f"the disk {place}/x.qcow2 cannot be made", error)
            self.assertIn(why, error)
            self.assertEqual("[]", left)

    def test_cannot_be_removed(self) -> None:
        """A layer that cannot be removed is an error that names it."""
        self.layer.path.mkdir(parents=True)
        self.refused(str(self.layer.path), "cannot be removed", call=layer.remove)


class CheckTests(LayerTestCase):
    """A layer is of no use once its base is another one."""

    def setUp(self) -> None:
        """Make the layer."""
        super().setUp()
        layer.make(self.layer)
        layer.check(self.layer)

    def test_base_has_changed(self) -> None:
        """A base that was written to, replaced or taken away is an error that names it and the remedy."""
        now = self.base.stat()
        new = self.folder / "new.img"
        new.write_bytes(b"\6" * (1 << 20))
        os.utime(new, ns=(0, now.st_mtime_ns + 1))
        for change, words in ((lambda: os.truncate(self.base, 1 << 19), "has changed since"),
                              (lambda: new.replace(self.base), "has changed since"),
                              (self.base.unlink, "No such file")):
            change()
            self.refused(str(self.base), words, "jitsuctl forget", call=layer.check)
        self.base.write_bytes(b"\7" * (1 << 20))
        os.utime(self.base, ns=(0, now.st_mtime_ns))
        layer.check(self.layer)

    def test_other_owner(self) -> None:
        """Another owner or mode, as libvirt gives it, is no change."""
        self.base.chmod(0o640)
        layer.check(self.layer)

    def test_file_below_base_has_changed(self) -> None:
        """A file that the base backs on is part of it, however it is called."""
        deepest = self.folder / os.fsdecode(b"a \xff\xc2\x85 $%,'\".img")
        deepest.write_bytes(bytes(1 << 20))
        middle, upper = (Layer(self.folder / f"{name}.qcow2", below)
                         for name, below in (("m", deepest), ("u", self.folder / "m.qcow2")))
        layer.make(middle)
        layer.make(upper)
        layer.check(upper)
        for path in (middle.path, deepest):
            now = path.stat().st_mtime_ns
            path.touch()
            self.refused(str(path), "has changed since", call=layer.check, of=upper)
            os.utime(path, ns=(0, now))
        layer.check(upper)
        deepest.unlink()
        self.refused(str(deepest), "(No such file or directory)", call=layer.check, of=upper)
        self.refused(str(deepest), "No such file", of=Layer(self.folder / "v.qcow2", upper.path))

    def test_template_has_another_base(self) -> None:
        """A template that has another base now makes new layers of that; old ones stay on theirs."""
        other = self.folder / "base-2.img"
        other.write_bytes(bytes(512))
        layer.check(Layer(self.layer.path, other))
        self.base.touch()
        self.refused(str(self.base), call=layer.check, of=Layer(self.layer.path, other))

    def test_layer_is_gone(self) -> None:
        """A layer that was made, and is not there any more, is missed: a guest must not begin anew by accident."""
        self.layer.path.unlink()
        self.refused(str(self.layer.path), "is not there", call=layer.check)

    def test_note(self) -> None:
        """A layer without a note, which the operator has put there, is taken as it is; a bad note is an error."""
        note = self.layer.path.with_suffix(".base")
        for octets in (b"", b"\xff", b"1 2 /a\0b\n", note.read_bytes().rstrip()):
            note.write_bytes(octets)
            self.refused(str(note), "is damaged", "jitsuctl forget", call=layer.check)
        note.unlink()
        note.mkdir()
        self.refused(str(note), "Is a directory", call=layer.check)
        note.rmdir()
        self.base.touch()
        layer.check(self.layer)
