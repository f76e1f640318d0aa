"""A short soak: what `bench/soak.py` does for ten minutes, for some seconds, always the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent


class SoakTests(SynchronousTestCase):
    """Faults, kills, strangers and people, on a fast clock, and a ledger with the rules."""

    def test_rules_hold(self) -> None:
        """In the half hour of their world for which twenty VMs are soaked, each of the rules holds all the time."""
        for seed in ("1", "2"):
            command = [sys.executable, "-m", "bench.soak", "--vms", "20", "--minutes", "0.04", "--seed", seed]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            self.assertEqual(0, ended.returncode, ended.stdout + ended.stderr)
            self.assertIn("all held", ended.stdout)
