"""`jitsuctl doctor` as a user runs it, with and without a Jitsu; where more is wrong, in `test.e2e.test_doctor`."""

from __future__ import annotations

import json
from typing import Any

from test.programs.test_tap import BIN, HOST, VMS, ProcessTestCase


class DoctorTests(ProcessTestCase):
    """Runs doctor in a folder with a configuration."""

    def doctor(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """Run doctor; return its exit status and its findings."""
        run = self.run_to_end(BIN / "jitsuctl", "doctor", "--json", *arguments)
        self.assertEqual("", run.stderr)
        return run.returncode, json.loads(run.stdout)

    def of(self, check: str, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
        """Return level and text of the findings of *check*."""
        return [(row["level"], row["finding"]) for row in rows if row["check"] == check]

    def test_running(self) -> None:
        """A Jitsu that runs and serves is found, by its configuration alone; its port is not counted as taken."""
        process = self.serve("--persistdb=state.git", configuration=VMS)
        status, rows = self.doctor()
        self.assertEqual(0, status, rows)
        self.assertEqual(
            [("ok", "Jitsu runs, and answers at its control endpoint"),
             ("ok", f"{HOST} port {self.port} answers for jitsu.test, serial 1")], self.of("service", rows))
        self.assertEqual([("ok", f"{HOST} port {self.port}: Jitsu listens there (process {process.pid})")],
                         self.of("ports", rows))

    def test_not_running(self) -> None:
        """Without a Jitsu that is one warning; its port is free."""
        self.configure(VMS)
        status, rows = self.doctor()
        self.assertEqual(0, status, rows)
        ((level, text),) = self.of("service", rows)
        self.assertEqual("warning", level)
        self.assertIn(f"no Jitsu answers at {self.place}", text)
        self.assertEqual([("ok", f"{HOST} port {self.port} is free")], self.of("ports", rows))
        self.assertEqual([], self.of("resolver", rows))

    def test_bad_configuration(self) -> None:
        """Each mistake of a configuration is a problem; this machine is looked at all the same."""
        self.configure("idle: soon\nttl: long\n")
        status, rows = self.doctor("--config", "jitsu.yaml")
        self.assertEqual(1, status)
        self.assertEqual(["problem"] * 2, [level for level, _ in self.of("config", rows)])
        self.assertIn("clock", {row["check"] for row in rows})

    def test_other_state(self) -> None:
        """A state that another Jitsu uses, with another control endpoint, is a warning with its process."""
        process = self.serve("--persistdb=state.git", configuration=VMS)
        (self.folder / "other.yaml").write_text(
            f"persistdb: state.git\nlisten: {self.control}\nbackend: memory\ncontrol: unix:{self.folder}/other\n{VMS}"
        )
        _, rows = self.doctor("--config", "other.yaml")
        self.assertIn(f"is in use by process {process.pid}, which does not answer", self.of("state", rows)[0][1])

    def test_text(self) -> None:
        """For people a finding is a line, with its remedy below; without a configuration that is the first warning."""
        run = self.run_to_end(BIN / "jitsuctl", "--control", f"unix:{self.folder}/none", "doctor")
        lines = run.stdout.splitlines()
        self.assertEqual("WARNING  config       there is no configuration here", lines[0])
        self.assertTrue(lines[1].startswith(f"{'':21} -> name it with --config"), lines)
        self.assertIn(f"no Jitsu answers at unix:{self.folder}/none", run.stdout)

    def configure(self, configuration: str) -> None:
        """Write the configuration that `serve` would."""
        (self.folder / "jitsu.yaml").write_text(
            f"listen: {self.port}\ncontrol: [{self.place}]\nbackend: memory\n{configuration}"
        )

    def test_advice(self) -> None:
        """What the files that define VMs lack is a warning, once for all of them, with its remedy."""
        vms = "connect: qemu+unix:///system?socket=/nonexistent\nvms:\n"
        for number in (1, 2):
            (self.folder / f"vm{number}.xml").write_text(
                f"<domain type='kvm'><name>vm{number}</name><os><type>hvm</type></os></domain>"
            )
            one = f"name: vm{number}, dns: vm{number}.jitsu.test, ip: 10.0.0.{number}, define: vm{number}.xml"
            vms += f"  - {{{one}}}\n"
        (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\ncontrol: {self.place}\n{vms}")
        _, rows = self.doctor()
        (found,) = (row for row in rows if row["finding"].startswith("vm1, vm2: nothing ends QEMU"))
        self.assertEqual(("config", "warning"), (found["check"], found["level"]))
        self.assertIn("isa-debug-exit", found["remedy"])
