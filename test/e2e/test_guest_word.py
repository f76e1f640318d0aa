"""Guests that ask for themselves: a Jitsu, a bridge, two guests in namespaces, and the kernel's neighbour table."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from test.programs.test_tap import BIN
from test.support.netns_lab import PATIENCE, NetnsLab

CONFIGURATION: Final = """\
bind: 10.9.0.1
control: off
backend: memory
evidence: queries
guests: ["10.9.0.1", "[fd09::1]:8054"]
vms:
  - {{name: www, dns: www.jitsu.test, ip: [10.9.0.20, "fd09::20"], mac: "{mac}", idle: 600}}
"""


class GuestWordTests(SynchronousTestCase):
    """The guests' endpoint of a Jitsu that runs."""

    def setUp(self) -> None:
        """Start Jitsu and two guests; the VM is up."""
        try:
            with lab.Network():
                pass
        except lab.NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        self.lab = NetnsLab(self.addCleanup)
        self.lab.plug("guest", "10.9.0.20/24", "fd09::20/64")
        self.lab.plug("other", "10.9.0.30/24", "fd09::30/64")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "jitsu.yaml"
        path.write_text(CONFIGURATION.format(mac=self.lab.mac("guest")))
        self.lab.start("host", str(BIN / "twistd"), "-n", "--pidfile=", "jitsu", f"--config={path}")
        question = "dig +short +time=1 +tries=1 @10.9.0.1 www.jitsu.test"
        self.until(lambda: self.lab.run("host", question) == "10.9.0.20\n")

    def until(self, condition: Any) -> None:
        """Wait for *condition*, which may fail at first."""
        late = time.monotonic() + PATIENCE
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            except Exception as error:
                if time.monotonic() > late:
                    raise AssertionError(str(error)) from error
            self.assertLess(time.monotonic(), late)
            time.sleep(0.1)

    def ask(self, where: str, path: str, *options: str, host: str = "10.9.0.1") -> tuple[int, Any]:
        """Return the status and the JSON of what a guest gets."""
        url = f"http://{host}:8054/self{path}"
        line = ["curl", "-s", "-m", "20", "-w", "\n%{http_code}", *options, url]
        answer = self.lab.start(where, *line).process.communicate(timeout=PATIENCE)[0]
        body, _, status = answer.rpartition("\n")
        return int(status), json.loads(body) if body else None

    def test_guest(self) -> None:
        """A guest sees its VM, holds it, and puts it to sleep, by IPv4 and IPv6."""
        for host in ("10.9.0.1", "[fd09::1]"):
            status, shown = self.ask("guest", "", host=host)
            self.assertEqual((200, "www", "up"), (status, shown["name"], shown["state"]))
        shown = self.ask("guest", "/hold?seconds=3000", "-X", "POST", host="[fd09::1]")[1]
        self.assertTrue(2900 < shown["held_by_guest"] <= 3000 and shown["lease_left"] > 2900, shown)
        self.assertEqual(0, self.ask("guest", "/release", "-X", "POST")[1]["held_by_guest"])
        self.ask("guest", "/sleep", "-X", "POST")
        self.until(lambda: self.ask("guest", "")[1]["state"] == "off")

    def test_other(self) -> None:
        """A neighbour is refused by its own address, and by that of the guest, whose MAC it does not have."""
        for host in ("10.9.0.1", "[fd09::1]"):
            self.assertEqual(403, self.ask("other", "", host=host)[0])
        self.lab.run("guest", "ip link set eth0 down")
        self.lab.run("other", "ip address flush dev eth0")
        self.lab.address("other", "10.9.0.20/24")
        self.lab.address("other", "fd09::20/64")
        self.lab.run("host", "ip neigh flush dev br0")
        for host in ("10.9.0.1", "[fd09::1]"):
            for path, options in (("", ()), ("/sleep", ("-X", "POST"))):
                status, shown = self.ask("other", path, *options, host=host)
                self.assertEqual(403, status)
                self.assertIn("another MAC", shown["error"])
