"""Signs of life, ends, and stops that fail, all of it real: what Jitsu does to a guest that it cannot hear."""

from __future__ import annotations

import signal
import time

from jitsu_tw.ijitsu import ENDED, SHUT_DOWN
from jitsu_tw.vm.health import CHECK_PATIENCE, CHECK_QUIET
from test.e2e.test_guests import IP, LabTestCase

#: Seconds in which a dead guest is found to be so, and then some.
LONG_DEAD = 2 * CHECK_PATIENCE + CHECK_QUIET + 10


class SilentTests(LabTestCase):
    """Guests that Jitsu's host does not hear."""

    def test_unheard(self) -> None:
        """A guest that serves its clients, and is silent for Jitsu's host as behind a firewall, is left alone."""
        jitsu = self.begin("check_every: 1\nidle: 300\nanswer_by: 60")
        self.dig()
        before, pids = self.curl(), self.qemus()
        self.network.run("host", ["ip", "route", "add", "blackhole", f"{IP}/32"])
        end = time.monotonic() + LONG_DEAD
        while time.monotonic() < end:
            self.assertIn(IP, self.dig())
            time.sleep(1)
        self.assertGreater(float(self.curl().split()[2]), float(before.split()[2]) + LONG_DEAD)
        self.assertEqual((pids, "up"), (self.qemus(), jitsu.vm()["state"]))
        self.assertIn("left alone: its guest", " ".join(jitsu.vm()["problems"]))


class EndTests(LabTestCase):
    """Guests that end by themselves, and take QEMU with them."""

    def test_done(self) -> None:
        """A guest that exits after its work has not failed: the next question starts it, as often as it is asked."""
        jitsu = self.begin("answer_by: 60", habits="exit_after=1")
        for number in (1, 2, 3):
            self.assertIn(IP, self.dig())
            self.curl()
            vm = jitsu.wait("off")
            self.assertIn(vm["reason"], {ENDED, SHUT_DOWN})  # to newer QEMUs an exit by isa-debug-exit is a shutdown
            self.assertEqual(number, vm["total_starts"])

    def test_crash(self) -> None:
        """A guest that exits before it listens has failed, which is seen at once; it rests before it is tried again."""
        jitsu = self.begin("answer_by: 60", habits="exit=3")
        for _ in range(3):
            self.assertIn("SERVFAIL", self.dig())
        self.assertNotIn("did not listen within", jitsu.log())  # what is found out when all its time is over
        self.assertEqual("failed", jitsu.vm()["state"])
        self.assertIn("tried again in", self.dig())
        self.assertEqual([], self.qemus())


class UnsavableTests(LabTestCase):
    """A VM whose memory cannot be saved."""

    def test_stays_up(self) -> None:
        """It stays up, clients get its address, and Jitsu reports why."""
        jitsu = self.begin("ttl: 1\nmode: save\nanswer_by: 60", change=self.change)
        self.dig()
        (pid,) = self.qemus()
        self.until(lambda: jitsu.vm()["problems"])
        self.assertIn("cannot be stopped (save), so it stays up", jitsu.vm()["problems"][0])
        self.assertEqual(("up", [pid]), (jitsu.vm()["state"], self.qemus()))
        self.assertNotIn(", stopped (save)", jitsu.log())

    def test_fallback(self) -> None:
        """With `save_fallback` it is stopped in that way."""
        jitsu = self.begin("ttl: 1\nmode: save\nsave_fallback: destroy\nanswer_by: 60", change=self.change)
        self.dig()
        vm = jitsu.wait("off")
        self.assertIn("so it is stopped by destroy", vm["problems"][0])

    @staticmethod
    def change(xml: str) -> str:
        """Return the definition of a VM that shares memory, which libvirt refuses to save."""
        share = "<shmem name='jitsu-test'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"
        return xml.replace("</devices>", f"{share}</devices>")


class RemovedTests(LabTestCase):
    """A VM that is taken out of the configuration while Jitsu is off."""

    def test_taken_out(self) -> None:
        """It is found at its hypervisor, which no other VM is at, shown, and stopped when it is idle."""
        jitsu = self.begin("ttl: 1\nanswer_by: 60", "wait_for_port: 80\n    idle: 5")
        self.dig()
        self.assertEqual(1, len(self.qemus()))
        jitsu.stop(signal.SIGKILL)
        yaml = self.directory / "jitsu.yaml"
        top, _, _ = yaml.read_text().partition("vms:")
        yaml.write_text(f"{top}vms:\n  - {{name: other, dns: other.jitsu.test, ip: 10.99.0.99, backend: memory}}\n")
        jitsu.start()
        self.assertIn("the configuration has it no more", " ".join(jitsu.vm()["problems"]))
        self.until(lambda: not self.qemus())
        self.until(lambda: [vm["name"] for vm in jitsu.vms()] == ["other"])
