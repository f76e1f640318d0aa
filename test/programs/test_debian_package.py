"""The Debian package: built by ``packaging/deb`` for this release of Debian, and used in a fresh root of it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo.lab import free_port
from jitsu_tw import __version__

ROOT: Final = Path(__file__).parents[2]

#: Seconds for one command, and for the server to answer. Nothing is measured here.
PATIENCE: Final = 600.0

ENVIRONMENT: Final = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")

VM: Final = "\nbackend: memory\nvms: [{name: www, dns: www.vm.example.org, ip: 192.0.2.80}]\n"


class DebianPackageTests(SynchronousTestCase):
    """Has the package and a root that is kept in memory."""

    def setUp(self) -> None:
        """Build the package, and begin the root, which apt fills from the mirrors of this machine."""
        if os.geteuid() != 0:
            raise SkipTest("only root can have another root")
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        build = subprocess.run([ROOT / "packaging/deb", self.folder], capture_output=True, text=True, check=False,
                               env={**os.environ, "SPHINX_PYTHON": sys.executable})  # fmt: skip
        self.assertEqual(0, build.returncode, build.stderr)
        self.package = Path(build.stdout.strip())
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        command = [str(ROOT / ".ci/release"), "--fresh", suite, "sh", "-c", "echo; echo ready; exec cat"]
        self.root = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(self.root.communicate)
        assert self.root.stdout is not None
        while (line := self.root.stdout.readline()) != b"ready\n":
            self.assertNotEqual(b"", line, "there is no root")
        self.within("apt-get", "update", "-qq")

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs *words* in the root."""
        enter = ["nsenter", f"--target={self.root.pid}", "--mount", "--root", "--wd", "env", "-i", *ENVIRONMENT]
        return [*enter, *words]

    def within(self, *words: str, status: int = 0) -> str:
        """Run a command in the root; return its output."""
        run = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(status, run.returncode, run.stdout + run.stderr)
        return run.stdout + run.stderr

    def there(self, path: str) -> bool:
        """Return whether there is a file in the root."""
        return subprocess.run(self.command("test", "-e", path), check=False).returncode == 0

    def copy(self, source: Path, target: str) -> None:
        """Copy a file into the root."""
        with source.open("rb") as octets:
            subprocess.run(self.command("cp", "/dev/stdin", target), stdin=octets, check=True)

    def install(self, package: Path) -> None:
        """Install a package and what it depends on; changed configuration is kept."""
        self.copy(package, "/jitsu.deb")
        self.within("apt-get", "install", "-qq", "--yes", "--no-install-recommends",
                    "-o", "Dpkg::Options::=--force-confold", "/jitsu.deb")  # fmt: skip

    def higher(self) -> Path:
        """Return a package of version 9 with other configuration files."""
        tree = self.folder / "tree"
        subprocess.run(["dpkg-deb", "--raw-extract", self.package, tree], check=True)
        control = tree / "DEBIAN/control"
        control.write_text(re.sub("(?m)^Version: .*$", "Version: 9", control.read_text()))
        for name in ("jitsu.yaml", "jitsu.zone"):
            with (tree / "etc/jitsu" / name).open("a") as file:
                file.write("; version 9\n" if name.endswith("zone") else "# version 9\n")
        package = self.folder / "higher.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--build", tree, package], stdout=subprocess.DEVNULL, check=True)
        return package

    def serve(self, port: int) -> None:
        """Run Jitsu as its unit does, by the same user, until it has answered and `jitsuctl` was used."""
        unit = self.within("cat", "/usr/lib/systemd/system/jitsu.service")
        found = dict(re.findall(r"(?m)^(User|ExecStart|WorkingDirectory|AmbientCapabilities)=(.*)$", unit))
        capabilities = ",".join(f"+{one[4:].lower()}" for one in found["AmbientCapabilities"].split())
        user = found["User"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs",
                  f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}",
                  f"--bounding-set=-all,{capabilities}"]  # fmt: skip
        log = self.folder / "log"
        environment = ("env", f"--chdir={found['WorkingDirectory']}", "RUNTIME_DIRECTORY=/run/jitsu")
        with log.open("wb") as out:
            command = self.command(*environment, *become, *found["ExecStart"].split())
            server = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            end = time.monotonic() + PATIENCE
            while "serving 1 name " not in log.read_text():
                self.assertIsNone(server.poll(), log.read_text())
                self.assertLess(time.monotonic(), end, log.read_text())
                time.sleep(0.05)
            dig = ["dig", "+short", "@127.0.0.1", "-p", str(port), "www.vm.example.org"]
            self.assertEqual("192.0.2.80\n", subprocess.run(dig, capture_output=True, text=True, check=True).stdout)
            self.assertIn("www", self.within("setpriv", "--reuid=ann", "--init-groups", "jitsuctl", "status"))
            self.within("setpriv", "--reuid=nobody", "--clear-groups", "jitsuctl", "status", status=3)
        finally:
            server.terminate()
            server.wait(PATIENCE)
        self.assertNotIn("Traceback", log.read_text())

    def test_life(self) -> None:
        """It is installed, serves, is upgraded, removed and purged; the files of the operator stay."""
        self.install(self.package)
        for name in ("jitsu", "synjitsu", "jitsuctl"):
            self.assertIn(__version__, self.within(name, "--version"))
        self.assertEqual("", self.within("dpkg", "--verify", "jitsu"))
        self.within("getent", "group", "libvirt")  # jitsu.service does not start without it
        for unit in ("jitsu.service", "synjitsu.service", "jitsu.socket"):
            self.assertEqual("disabled\n", self.within("systemctl", "--root=/", "is-enabled", unit, status=1))
            self.assertEqual("", self.within("systemd-analyze", "verify", "--man=no", unit))
        for page in ("man8/jitsu.8", "man8/synjitsu.8", "man1/jitsuctl.1"):
            self.assertTrue(self.there(f"/usr/share/man/{page}.gz"), page)
        for path in ("bash-completion/completions/jitsuctl", "zsh/vendor-completions/_jitsuctl"):
            self.assertIn("jitsuctl", self.within("cat", f"/usr/share/{path}"))
        self.assertIn("zones vm.example.org", self.within("jitsuctl", "check", "--config", "/etc/jitsu/jitsu.yaml"))

        port = free_port()
        changed = self.within("cat", "/etc/jitsu/jitsu.yaml") + f"listen: {port}{VM}"
        (self.folder / "changed").write_text(changed)
        self.copy(self.folder / "changed", "/etc/jitsu/jitsu.yaml")
        self.within("useradd", "--groups=jitsu", "--no-create-home", "ann")
        self.serve(port)

        self.within("mkdir", "-p", "/run/systemd/system")  # a systemd that does not do what it is asked
        self.install(self.higher())
        self.assertEqual(changed, self.within("cat", "/etc/jitsu/jitsu.yaml"))
        self.assertIn("; version 9\n", self.within("cat", "/etc/jitsu/jitsu.zone"))
        self.serve(port)

        self.within("dpkg", "--remove", "jitsu")
        self.assertFalse(self.there("/usr/lib/jitsu"))
        self.assertEqual(changed, self.within("cat", "/etc/jitsu/jitsu.yaml"))
        self.assertTrue(self.there("/var/lib/jitsu/state.git/HEAD"))
        self.within("mkdir", "/var/lib/jitsu/images", "/var/log/jitsu")
        self.within("touch", "/var/lib/jitsu/images/www.image")
        self.within("dpkg", "--purge", "jitsu")
        for path in ("/etc/jitsu", "/etc/default/synjitsu", "/var/lib/jitsu/state.git", "/var/log/jitsu"):
            self.assertFalse(self.there(path), path)
        self.assertTrue(self.there("/var/lib/jitsu/images/www.image"))
