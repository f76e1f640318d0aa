"""
The life of a VM, all of it real: what keeps it up, what stops it, how it comes back, and what others do to it.

`test_e2e` has the ordinary way; this is the rest.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

from demo import lab
from test.e2e.test_guests import IP, NAME, PATIENCE, LabTestCase, SystemTestCase, libvirt_root

if TYPE_CHECKING:
    from pathlib import Path

#: Does something to the domain "www" of libvirtd, as an administrator would with virsh.
BY_HAND: Final = """
import sys, libvirt
connection = libvirt.open("qemu:///system")
domain = connection.lookupByName("www")
{0}
"""


class UseTests(LabTestCase):
    """Evidence: a VM in use is not stopped, an idle one is."""

    def test_download(self) -> None:
        """A download, if only of a line ten times a second, is not cut by the end of a lease; after it, the VM is."""
        jitsu = self.begin("ttl: 1\nidle: 3\nanswer_by: 60", habits="stream=50")
        self.dig()
        download = ["curl", "--silent", "--max-time", "8", f"http://{IP}/"]
        lines = self.network.run("client", download, check=False).stdout.split()
        self.assertGreaterEqual(len(lines), 50)
        self.assertEqual("up", jitsu.vm()["state"])
        jitsu.wait("off")
        self.assertIn("idle for 3 s, stopped", jitsu.log())

    def test_junk(self) -> None:
        """Questions for other things than the VM's address renew nothing: it is stopped when its lease ends."""
        jitsu = self.begin("ttl: 1\nidle: 5\nanswer_by: 60")
        self.dig()
        jitsu.wait("up")

        def is_down() -> bool:
            for more in (["AAAA"], ["TXT"], ["A", "CH"]):
                self.dig(NAME, *more)
            self.dig("nobody.jitsu.test")
            return bool(jitsu.vm()["state"] != "up")

        self.until(is_down)
        vm = jitsu.wait("off")
        self.assertGreaterEqual(vm["activation_ms"]["stop"] - vm["activation_ms"]["ready"], 5000)
        self.assertIn("idle for 5 s, stopped", jitsu.log())

    def test_halted_guest(self) -> None:
        """A guest that has halted in a VM that goes on running is noticed when it is asked for, and restarted."""
        jitsu = self.begin("check_every: 1\nanswer_by: 60", habits="halt_after=1")
        self.dig()
        (pid,) = self.qemus()
        self.curl()
        time.sleep(1)
        self.assertEqual(([pid], "up"), (self.qemus(), jitsu.vm()["state"]))
        self.assertIn(IP, self.dig())
        self.assertNotIn("restarted", jitsu.log())  # the answer has not waited for that

        def is_restarted() -> bool:
            time.sleep(1)
            self.dig()  # where the machine is busy, one check may find a tick of CPU: the next question checks again
            return "restarted" in jitsu.log()

        self.until(is_restarted, 3 * PATIENCE)
        self.assertIn("dead: its port 80 is silent, and it gives no sign of life", jitsu.log())
        jitsu.wait("up")
        self.assertRegex(self.curl(), r"^up for [0-9.]+ s")
        self.assertNotEqual([pid], self.qemus())

    def test_http(self) -> None:
        """With `wait_for_http`, a VM is ready when it answers there as it should."""
        jitsu = self.begin("answer_by: 60", ready="wait_for_http: / 200")
        self.dig()
        self.assertEqual("up", jitsu.vm()["state"])
        self.assertIn("ready", jitsu.vm()["activation_ms"])


class ModeTests(LabTestCase):
    """Stops, and what comes after them."""

    def test_pause(self) -> None:
        """With mode pause, the guest stays where it is and continues in no time."""
        jitsu = self.begin("ttl: 1\nmode: pause\nanswer_by: 60")
        self.dig()
        (pid,) = self.qemus()
        jitsu.wait("paused")
        self.assertEqual([pid], self.qemus())
        self.dig()
        self.assertIn("up for", self.curl())
        self.assertEqual([pid], self.qemus())
        self.until(lambda: "resumed" in jitsu.log())  # behind the answer

    def test_shutdown_escalates(self) -> None:
        """A guest that ignores the power button does not shut down; it is destroyed when `stop_timeout` has passed."""
        jitsu = self.begin("ttl: 1\nmode: shutdown\nstop_timeout: 2\nanswer_by: 60")
        self.dig()
        jitsu.wait("off")
        self.assertEqual([], self.qemus())
        self.assertIn("has not shut down in 2.0 s; destroyed", jitsu.log())

    def test_saved_hours(self) -> None:
        """The memory of a VM that is off counts as saved, as libvirt tells it; all that is remembered."""
        jitsu = self.begin("ttl: 1\nmode: destroy\nanswer_by: 60")
        self.until(lambda: jitsu.vm()["memory"])
        self.dig()
        jitsu.wait("off")
        before = jitsu.control.ask("GET", "/v1/about")
        self.assertGreater(before["saved"]["byte_seconds"], 0)
        jitsu.stop()
        jitsu.start()
        after = jitsu.control.ask("GET", "/v1/about")
        self.assertGreaterEqual(after["saved"]["byte_seconds"], before["saved"]["byte_seconds"] - 1)
        self.assertEqual([1], [day["starts"] for day in after["days"]])
        self.assertRegex(jitsu.vm()["day"], "1.?$")

    def test_damaged_image(self) -> None:
        """A saved image that cannot be restored means one cold boot, which is logged, and not a dead name."""
        jitsu = self.begin("ttl: 1\nmode: save\nanswer_by: 60")
        self.dig()
        jitsu.wait("saved")
        (image,) = libvirt_root().rglob("www.save")
        self.damage(image)
        self.assertIn(IP, self.dig())
        self.assertLess(float(self.curl().split()[2]), 20)
        self.assertEqual(1, jitsu.log().count("cannot be restored, so it is booted"))
        self.assertFalse(image.exists())

    def test_saved_when_dead(self) -> None:
        """A guest that is restored, and then silent, is booted, also for the clients that wait already."""
        jitsu = self.begin("ttl: 1\nmode: save\nanswer_by: 60", habits="halt_after=1")
        self.dig()
        self.curl()
        jitsu.wait("saved")
        self.assertIn(IP, self.dig())
        self.assertLess(float(self.curl().split()[2]), 20)
        self.assertIn("restored, but not ready after 20.0 s, so it is booted", jitsu.log())

    def test_snapshot(self) -> None:
        """
        With `boot_from: snapshot`, later starts restore the guest as it was when it was ready, from a boot for nobody.

        If the kernel has changed, or the image is damaged, it is booted, and a new image is kept.
        """
        initramfs = self.directory / "initramfs"
        initrd = lab.guest().initrd
        assert initrd is not None
        shutil.copy(initrd, initramfs)
        jitsu = self.begin(
            "ttl: 1\nimages: images\nanswer_by: 60",
            "wait_for_port: 80\n    boot_from: snapshot",
            None,
            change=lambda xml: xml.replace(str(initrd), str(initramfs)),
        )
        images = self.directory / "images"
        self.dig()
        booted = float(self.curl().split()[2])
        self.until(lambda: list(images.glob("*.image")))
        (image,) = images.glob("*.image")
        for number in range(2):
            jitsu.wait("off")
            self.dig()
            self.until(lambda: jitsu.log().count("up (restored)") == number + 1)  # noqa: B023 -- behind the answer
            self.assertLess(float(self.curl().split()[2]), booted + 10)
        jitsu.wait("off")
        initramfs.touch()
        before = image.stat().st_ino
        self.dig()
        self.assertEqual(2, jitsu.log().count("up (restored)"))
        self.until(lambda: image.exists() and image.stat().st_ino != before)
        jitsu.wait("off")
        self.damage(image)
        self.dig()
        self.assertIn("cannot be restored from its image, so it is booted", jitsu.log())
        self.assertIn("up for", self.curl())

    @staticmethod
    def damage(image: Path) -> None:
        """Overwrite the guest's memory in a saved image, and leave what libvirt keeps at its beginning."""
        with image.open("r+b") as file:
            file.seek(image.stat().st_size // 3)
            file.write(bytes(200_000))
            file.truncate()

    def test_killed_while_stopping(self) -> None:
        """Killed in the middle of a save, Jitsu finds the VM again, in whatever state, and gives it back."""
        jitsu = self.begin("ttl: 1\nmode: save\nanswer_by: 60", habits=None)  # its memory takes a while to save
        self.dig()
        jitsu.wait("stopping")
        time.sleep(0.3)
        jitsu.stop(signal.SIGKILL)
        jitsu.start()
        self.assertIn(IP, self.dig())
        self.assertIn("up for", self.curl())
        self.assertEqual(1, len(self.qemus()))
        jitsu.wait("saved")
        self.assertEqual([], self.qemus())


class OthersTests(SystemTestCase):
    """What others do to a VM of libvirtd."""

    def by_hand(self, action: str) -> None:
        """Do something to the VM with libvirt, past Jitsu."""
        self.network.run("host", [sys.executable, "-c", BY_HAND.format(action)])

    def test_started_by_hand(self) -> None:
        """A VM that was started by hand, and never asked for, is left alone."""
        jitsu = self.begin("ttl: 1")
        self.by_hand("domain.create()")
        jitsu.wait("up")
        time.sleep(4)
        self.assertEqual(("up", None, 1), (jitsu.vm()["state"], jitsu.vm()["lease_left"], len(self.qemus())))
        self.assertIn("nobody asked for it; left alone", jitsu.log())

    def test_paused_by_hand(self) -> None:
        """A VM that another program pauses is known to be paused; a query resumes it."""
        jitsu = self.begin("answer_by: 60")
        self.dig()
        self.by_hand("domain.suspend()")
        jitsu.wait("paused", patience=5)
        self.dig()
        self.assertIn("up for", self.curl())

    def test_undefined_by_hand(self) -> None:
        """A VM that was undefined cannot be started, with the reason; defined again with another uuid, it can."""
        jitsu = self.begin("answer_by: 60")
        first = jitsu.vm()["uuid"]
        xml = self.directory / "www.xml"
        (self.directory / "jitsu.yaml").write_text(
            (self.directory / "jitsu.yaml").read_text().replace("    define: www.xml\n", "")
        )
        jitsu.stop()
        jitsu.start()
        self.by_hand("domain.undefine()")
        self.until(lambda: jitsu.vm()["state"] == "unknown")
        said = self.dig()
        self.assertIn("status: SERVFAIL", said)
        self.assertIn("no domain with matching", said)
        self.network.run(
            "host", [sys.executable, "-c", f"import libvirt; libvirt.open('qemu:///system').defineXML({xml.read_text()!r})"]
        )
        self.until(lambda: jitsu.vm()["state"] == "off")
        self.assertNotEqual(first, jitsu.vm()["uuid"])
        self.assertIn(IP, self.dig())

    def test_daemon_stopped(self) -> None:
        """While libvirtd stands still, warm answers go on; a cold VM waits no longer than `answer_by`."""
        jitsu = self.begin()
        jitsu.wait("off")
        self.daemon.send_signal(signal.SIGSTOP)
        self.addCleanup(self.daemon.send_signal, signal.SIGCONT)
        said = self.dig()  # libvirtd stands still until after the answer
        self.assertIn("status: NOERROR", said)
        self.assertIn("still starting", said)
        self.daemon.send_signal(signal.SIGCONT)
        jitsu.wait("up")
        self.assertIn("up for", self.curl())
        self.assertEqual(1, len(self.qemus()))

    def test_jitsu_killed_while_stopping(self) -> None:
        """Killed while libvirtd saves a VM, Jitsu finds it saved, or running and stops it again."""
        jitsu = self.begin("ttl: 1\nmode: save\nanswer_by: 60", habits=None)  # its memory takes a while to save
        self.dig()
        jitsu.wait("stopping")
        jitsu.stop(signal.SIGKILL)
        jitsu.start()
        jitsu.wait("saved")
        self.dig()
        self.assertIn("up for", self.curl())
