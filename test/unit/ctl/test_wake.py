"""`jitsuctl wake`."""

from __future__ import annotations

import socket

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import ctl
from jitsu_tw.ctl import wake


class WakeTests(SynchronousTestCase):
    """Sends to loopback."""

    def test_sent(self) -> None:
        """The packet is six octets of ones and the MAC sixteen times, whatever its case."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
            card.bind(("127.0.0.1", 0))
            card.settimeout(10)
            self.patch(wake, "DISCARD", card.getsockname()[1])
            run = CliRunner().invoke(ctl.main, ["wake", "52:54:00:AB:CD:EF", "--broadcast", "127.0.0.1"])
            self.assertEqual((0, ""), (run.exit_code, run.output))
            self.assertEqual(b"\xff" * 6 + 16 * b"\x52\x54\x00\xab\xcd\xef", card.recv(1000))

    def test_wrong(self) -> None:
        """What is no MAC, or no address, is refused with what would be right."""
        for words, said in ((["52:54:00"], "write one like 00:16:3e:00:00:01"),
                            (["52:54:00:ab:cd:ef", "--broadcast", "10.0.0"], "'10.0.0'")):
            run = CliRunner().invoke(ctl.main, ["wake", *words])
            self.assertEqual(2, run.exit_code)
            self.assertIn(said, run.output)
