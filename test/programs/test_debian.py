"""Programs from Debian (`bench.debian`): what is unpacked of them, and what is used where it is installed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from bench import debian

#: What installed packages have, and what the others would bring.
FILES: Final = {"browser": "usr/lib/browser/run", "browser-common": "usr/lib/browser/data", "libc": "usr/lib/libc.so"}


class UnpackedTests(SynchronousTestCase):
    """With an apt that knows the program `browser`, which looks for its data beside itself."""

    def setUp(self) -> None:
        """Begin with an empty cache."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.patch(debian, "CACHE", Path(folder.name))
        self.patch(debian, "_run", self.run_command)
        self.installed: set[str] = set()

    def run_command(self, *words: str, folder: str = "") -> str:
        """Do what apt-get and dpkg would."""
        if "--simulate" in words:
            named = [word for word in words if word in FILES]
            again = named if "--reinstall" in words else []
            needed = {*named, "browser-common", "libc"}
            return "".join(f"Inst {one} (1)\n" for one in needed if one in again or one not in self.installed)
        if "download" in words:
            for name in words[words.index("download") + 1:]:
                Path(folder, f"{name}_1.deb").touch()
        elif words[:2] == ("dpkg", "-x"):
            file = Path(words[3], FILES[Path(words[2]).name.removesuffix("_1.deb")])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return ""

    def unpacked(self) -> set[str]:
        """Return which packages' files there are in the root that the program gets."""
        root = debian.unpacked.__wrapped__("browser", "browser-common")
        return {name for name, file in FILES.items() if (root / file).exists()}

    def test_whole(self) -> None:
        """What the program needs beside itself is there, whatever else is installed; what it links to is not twice."""
        for installed, there in (((), set(FILES)), (("libc",), {"browser", "browser-common"}),
                                 (("libc", "browser-common"), {"browser", "browser-common"}),
                                 (("libc", "browser"), {"browser", "browser-common"})):
            self.installed = set(installed)
            self.assertEqual(there, self.unpacked(), installed)

    def test_installed(self) -> None:
        """A program that is installed is used where it is, with the loader's own libraries."""
        self.installed = set(FILES)
        root = debian.unpacked.__wrapped__("browser", "browser-common")
        self.assertEqual(Path("/"), root)
        with mock.patch.dict(os.environ, {"PATH": "/bin"}, clear=True):
            self.assertEqual({"PATH": "/usr/sbin:/usr/bin:/bin:/usr/sbin"}, debian.environment(root))
