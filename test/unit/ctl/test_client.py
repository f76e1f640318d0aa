"""The errors of the control endpoint's client; what it does with hostile answers is in `test.programs`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.ctl import client
from jitsu_tw.ctl.client import Control
from jitsu_tw.ctl.diagnosis import checks
from jitsu_tw.ctl.show import NoAnswerError
from jitsu_tw.settings import Settings


class PermissionTests(SynchronousTestCase):
    """A user who may not connect to the socket."""

    def setUp(self) -> None:
        """Refuse as the kernel does."""

        def connect(_: object) -> None:
            raise PermissionError(13, "Permission denied")

        self.patch(client.UnixConnection, "connect", connect)
        self.control = Control("unix:/run/jitsu/control.sock")

    def test_remedy(self) -> None:
        """The error says who may use it, and how to become one of them."""
        error = self.assertRaises(NoAnswerError, self.control.ask, "GET", "/v1/vms")
        self.assertIn("no Jitsu answers at unix:/run/jitsu/control.sock ([Errno 13] Permission denied)", str(error))
        self.assertIn("the group jitsu: join that (usermod -aG jitsu USER, as root), and log in again", str(error))

    def test_doctor(self) -> None:
        """So does doctor, which does not tell such a user to start Jitsu."""
        health = checks._health(checks.Context(Settings(), control=self.control))
        self.assertNotIn("join", health.error)
        self.assertIn("usermod -aG jitsu USER", health.remedy)
