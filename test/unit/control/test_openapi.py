"""The description of the control endpoint, and whether the endpoint does as it says, by schemathesis."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import __version__
from jitsu_tw.control.files import PAGE, openapi
from jitsu_tw.rules.lifecycle import State
from test.programs.test_tap import BIN, HOST, TOKEN, VMS, ProcessTestCase
from test.support import vm
from test.support.control import Desk

ROOT: Final = Path(__file__).parents[3]


class OpenAPITests(ProcessTestCase):
    """``/v1/openapi.json``."""

    def test_schemathesis(self) -> None:
        """Requests made up from the description, good and bad, are answered as it says; none is a fault of ours."""
        token = f"control_token: {self.write_token()}\n"
        self.serve("--zone", "jitsu.zone", configuration=token + VMS.replace("boot_time: 30", "boot_time: 0.1"))
        run = self.run_to_end(
            BIN / "schemathesis", "run", f"http://{HOST}:{self.control}/v1/openapi.json", "--checks", "all",
            "--max-examples", "15", "--exclude-path", "/v1/events", "--suppress-health-check", "all", "--seed", "1",
            "--no-color", "--header", f"Authorization: Bearer {TOKEN}",
        )
        self.assertEqual(0, run.returncode, run.stdout + run.stderr)
        self.assertNotIn("Traceback", self.log())
        self.assertNotIn("unexpected", self.log())


class DescriptionTests(SynchronousTestCase):
    """What the description has."""

    def test_complete(self) -> None:
        """It describes every page that there is, and every state; its version is ours."""
        said = json.loads(openapi())
        desk = Desk(vm())
        files = {"/", "/v1/openapi.json", *(f"/{name}" for name in PAGE)}
        pages = {re.sub("{.*}", "{name}", path) for _, path, _ in desk.endpoint.routes if path not in files}
        self.assertEqual(pages, set(said["paths"]))
        self.assertEqual({state.shown for state in State}, set(said["components"]["schemas"]["State"]["enum"]))
        self.assertEqual(__version__, said["info"]["version"])
        self.assertEqual(said, desk.ask("/v1/openapi.json").value)

    def test_kinds(self) -> None:
        """It names every kind of event that the journal has."""
        kinds = set(json.loads(openapi())["components"]["schemas"]["Event"]["properties"]["kind"]["enum"])
        source = (ROOT / "jitsu_tw/vm/journal.py").read_text()
        found = set(re.findall(r'_(?:tell|note)\("(\w+)"', source)) | {"hold", "release", "lost", "connected"}
        self.assertEqual(kinds, found)
