"""The extras of setup.cfg: what works without them, and the error for a missing one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

ROOT: Final = Path(__file__).parents[2]

#: Extras that belong to parts of the product, and the modules that their packages bring.
MODULES: Final = {
    "cluster": ("treq",),
    "dnssec": ("cryptography",),
    "synjitsu": ("dpkt", "pcap", "cypcap"),
    "tls": ("OpenSSL", "service_identity"),
    "xapi": ("XenAPI",),
}

#: Runs a program of Twisted's where some modules are not installed.
TWISTD: Final = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))
from twisted.scripts.twistd import run
run()
"""

VM: Final = "vms: [{name: www, dns: www.example.org, ip: 10.0.0.9%s}]"


class ExtrasTests(SynchronousTestCase):
    """Runs programs that cannot import what an extra brings."""

    def setUp(self) -> None:
        """Make a folder."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def twistd(self, extra: str, *arguments: str, configuration: str = "") -> str:
        """Return what twistd prints where *extra* is not installed; it must refuse."""
        (self.folder / "jitsu.yaml").write_text(configuration)
        command = [sys.executable, "-c", TWISTD, ",".join(MODULES[extra]), "-n", "--pidfile=", *arguments]
        run = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        self.assertEqual(1, run.returncode, run.stderr)
        return run.stderr

    def test_plain(self) -> None:
        """Without any extra, Jitsu and jitsuctl are there, and so are libvirt's VMs."""
        hidden = [module for modules in MODULES.values() for module in modules]
        program = f"import sys; sys.modules.update(dict.fromkeys({hidden})); import jitsu_tw.tap, jitsu_tw.ctl"
        subprocess.run([sys.executable, "-c", f"{program}, jitsu_tw.backends.libvirt"], check=True)

    def test_one_line(self) -> None:
        """A configuration that needs a missing extra gets one line with the command to install it."""
        www, hosts = VM % "", "hosts: [{name: a, backend: xapi, connect: 'https://a'}]\n"
        for extra, key, configuration in (
            ("xapi", "backend", f"backend: xapi\n{www}"),
            ("xapi", "vms: www: backend", VM % ", backend: xapi"),
            ("xapi", "hosts[0].backend", f"{hosts}{www}"),
            ("dnssec", "dnssec", f"persistdb: state\ndnssec: {{keys: keys}}\n{www}"),
            ("cluster", "cluster", f"cluster: {{etcd: 'http://127.0.0.1:1', node: a}}\n{www}"),
        ):
            said = self.twistd(extra, "jitsu", configuration=configuration)
            self.assertIn(f": {key}: needs what is not installed: pip install 'jitsu-tw[{extra}]' (", said)
            self.assertEqual(1, said.count("\n"), said)

    def test_synjitsu(self) -> None:
        """The same for Synjitsu."""
        said = self.twistd("synjitsu", "synjitsu", "-i", "lo")
        self.assertIn("needs what is not installed: pip install 'jitsu-tw[synjitsu]' (", said)
        self.assertEqual(1, said.count("\n"), said)

    def test_declared(self) -> None:
        """Every extra is told of here, but for the documentation's and the developers' own, which brings them all."""
        declared = ConfigParser()
        declared.read(ROOT / "setup.cfg")
        extras = dict(declared["options.extras_require"])
        self.assertIn(f"jitsu-tw[{','.join(sorted({*MODULES, 'docs'}))}]", extras.pop("dev"))
        self.assertEqual({*MODULES, "docs"}, set(extras))
        required = re.findall(r"^[a-zA-Z_-]+", declared["options"]["install_requires"], re.MULTILINE)
        self.assertEqual(set(), {"pypcap", "cypcap", "dpkt", "XenAPI", "treq", "cryptography"} & set(required))
