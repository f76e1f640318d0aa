"""jitsuctl with templates, and a Jitsu that runs: what they have made, the end of a VM, and changes by git."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from typing import TYPE_CHECKING, Final

import dns.rcode

from test.programs.test_ctl import ControlTestCase
from test.programs.test_edit import EditingTestCase
from test.programs.test_tap import BIN, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable

TEMPLATE: Final = """
persistdb: state.git
vms:
  - {name: www, dns: www.jitsu.test, ip: 10.0.0.1}
templates:
  - {name: site, dns: "*.sites.jitsu.test", pool: 10.1.0.0/24, exists: ["a*", ./names],
     new_per_minute: 0, idle: 5m}
"""


class TemplateTestCase(ControlTestCase):
    """Has a Jitsu with a template."""

    def setUp(self) -> None:
        """Start it."""
        super().setUp()
        (self.folder / "names").write_text("bob\ncarol\n")
        self.jitsu = self.serve("--zone", "jitsu.zone", configuration=TEMPLATE)
        self.until_logged("serving")

    def make(self, labels: Iterable[str], above: str = "sites") -> None:
        """Ask for names of a template, each of which has an address then."""
        for label in labels:
            answer = self.ask(f"{label}.{above}.jitsu.test")
            self.assertEqual(1, len(answer.answer), answer)

    def rows(self, *arguments: str) -> list[str]:
        """Return the lines of a table that jitsuctl prints, without the head."""
        return self.run_ctl(*arguments).output.splitlines()[1:]


class SeenTests(TemplateTestCase):
    """What is shown."""

    def test_status(self) -> None:
        """A template with many VMs has one row; each VM has its own with --all, or where one of both is named."""
        self.assertEqual(["www"], [line.split()[0] for line in self.rows("status")])
        self.make(f"a{number}" for number in range(10))
        self.assertEqual(11, len(self.rows("status")))
        self.make(["a10"])
        www, others = self.rows("status")
        self.assertTrue(www.startswith("www "), www)
        self.assertRegex(others, r"^11 of site +.*\d+ up.* - +11 +11 +\d s ago *$")
        self.assertEqual(12, len(self.rows("status", "--all")))
        self.assertEqual(11, len(self.rows("status", "site")))
        (row,) = self.rows("status", "a3.site")
        self.assertIn("template site", row)
        self.assertEqual(12, len(json.loads(self.run_ctl("status", "--json").output)))
        refused = self.run_ctl("status", "nobody")
        self.assertEqual((1, "jitsuctl: there is no VM, and no template with VMs, of the name nobody\n"),
                         (refused.exit_code, refused.output))

    def test_templates(self) -> None:
        """A template is shown with its VMs, what is left for it, and what is wrong with it."""
        self.make(["bob"])
        (row,) = self.rows("templates")
        self.assertRegex(row, r"^site +1 +100 +[01] +253 +\*\.sites\.jitsu\.test *$")
        (one,) = json.loads(self.run_ctl("templates", "--json").output)
        self.assertEqual(["*.sites.jitsu.test"], one["wildcards"])

    def test_why(self) -> None:
        """A VM of a template says who has made it, for whom, and until when it is kept."""
        self.make(["bob"])
        told = self.run_ctl("why", "bob.site").output
        self.assertRegex(told, r"The template site made it for 127\.0\.0\.1, [0-9.]+ s ago\.")
        self.assertIn("Its name and its address are kept until 30 d after its last use (forget_after).", told)
        self.assertRegex(told, r"bob\.site: made by the template site for 127\.0\.0\.1")

    def test_completion(self) -> None:
        """Shells complete the VMs that can be forgotten, and the templates."""
        self.make(["bob"])

        def completed(*words: str) -> list[str]:
            environment = {"_JITSUCTL_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words)),
                           "COMP_WORDS": " ".join(("jitsuctl", *words)), "JITSU_CONTROL": self.place}
            run = self.run_to_end(BIN / "jitsuctl", env={**os.environ, **environment})
            return [line.partition(",")[2] for line in run.stdout.splitlines()]

        self.assertEqual(["bob.site"], completed("forget", ""))
        self.assertEqual(["site"], completed("forget", "--template", ""))
        self.assertEqual(["site", "www", "bob.site"], completed("status", ""))



class SerialTests(TemplateTestCase):
    """What secondaries go by."""

    def test_killed(self) -> None:
        """A Jitsu that begins after a kill has a later serial than the one before."""
        self.make(["bob", "carol"])
        (before,) = self.ask("jitsu.test", "SOA").answer[0]
        while "serial" not in self.jitsuctl("tree", "jitsu", "--state", "state.git").stdout:
            time.sleep(0.1)
        self.jitsu.kill()
        self.jitsu.wait()
        self.serve("--zone", "jitsu.zone", configuration=TEMPLATE)
        self.until_logged("serving")
        (after,) = self.ask("jitsu.test", "SOA").answer[0]
        self.assertGreater(after.serial, before.serial)


class ForgetTests(TemplateTestCase):
    """``jitsuctl forget``."""

    def test_names(self) -> None:
        """VMs are forgotten by their names; what cannot be is told, and keeps no other VM."""
        self.make(["bob", "carol"])
        run = self.jitsuctl("forget", "bob.site", "www", "nobody", "carol.site")
        self.assertEqual((1, "bob.site: forgotten\ncarol.site: forgotten\n"), (run.returncode, run.stdout))
        self.assertIn("www: was not made by a template", run.stderr)
        self.assertIn("nobody: no VM of that name", run.stderr)
        self.assertEqual(["www"], [line.split()[0] for line in self.rows("status")])
        self.assertNotIn("bob", self.jitsuctl("tree", "--state", "state.git").stdout)
        self.make(["bob"])

    def test_template(self) -> None:
        """Of a template, the VMs that are down are forgotten, or all."""
        self.make(["bob", "carol"])
        for name in ("bob.site", "carol.site"):
            self.assertEqual(0, self.run_ctl("start", name).exit_code)
        refused = self.run_ctl("forget", "--template", "site")
        self.assertEqual((1, True), (refused.exit_code, "no VM of site is down; --all forgets" in refused.output))
        self.run_ctl("stop", "bob.site")
        self.assertEqual("bob.site: forgotten\n", self.run_ctl("forget", "--template", "site").output)
        forgotten = json.loads(self.run_ctl("forget", "--template", "site", "--all", "--json").output)
        self.assertEqual([{"name": "carol.site", "forgotten": True, "error": None}], forgotten)
        refused = self.run_ctl("forget", "--template", "site", "--all")
        self.assertIn("there is no template site, or it has no VMs", refused.output)

    def test_usage(self) -> None:
        """What is to be forgotten is said once."""
        for arguments in ((), ("--all",), ("a", "--template", "site"), ("a", "--all")):
            self.assertEqual(2, self.run_ctl("forget", *arguments).exit_code, arguments)

    def test_asks(self) -> None:
        """On a terminal it asks first; without a yes nothing is done."""
        self.make(["bob"])
        for answer, left in ((b"n\n", 2), (b"y\n", 1)):
            ours, theirs = pty.openpty()
            command = [str(BIN / "jitsuctl"), "--control", self.place, "forget", "bob.site"]
            with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
                os.write(ours, answer)
                said, _ = process.communicate(timeout=PATIENCE)
            self.assertIn(b"Forget bob.site, with what it has on disk? [y/N]", said)
            self.assertEqual(left, len(self.rows("status")), said)
            os.close(ours)
            os.close(theirs)


class EditTests(EditingTestCase, TemplateTestCase):
    """Changes of a template, and of one of its VMs, by git."""

    def done(self, *arguments: str, script: str = "") -> str:
        """Run jitsuctl, which must go well; return what it prints first."""
        run = self.change(*arguments, script=script)
        self.assertEqual((0, ""), (run.returncode, run.stderr))
        return run.stdout.partition("\n")[0]

    def refused(self, *arguments: str, script: str = "") -> str:
        """Run jitsuctl, which must be refused; return why."""
        run = self.change(*arguments, script=script)
        self.assertEqual((1, ""), (run.returncode, run.stdout))
        return run.stderr

    def configured(self, name: str) -> dict[str, str]:
        """Return the keys of a VM that are set."""
        vm = json.loads(self.run_ctl("why", name, "--json").output)
        return {one["key"]: one["value"] for one in vm["configuration"]}

    def test_template(self) -> None:
        """A key of a template is set, and its VMs follow, but for those that have the key themselves; and undone."""
        self.make(["bob", "carol"])
        self.assertEqual("merged; changed: bob.site", self.done("set", "bob.site", "idle", "7m"))
        self.assertEqual("merged; changed: carol.site, site", self.done("set", "site", "idle", "6m"))
        self.assertEqual(["420", "360"], [self.configured(name)["idle"] for name in ("bob.site", "carol.site")])
        self.done("set", "site", "max", "3")
        self.make(["alice"])
        self.assertEqual(dns.rcode.SERVFAIL, self.ask("anna.sites.jitsu.test").rcode())
        self.assertNotIn("removed", self.done("revert"), "not the making of alice.site")
        self.make(["anna"])
        self.done("unset", "bob.site", "idle")
        self.assertEqual("360", self.configured("bob.site")["idle"])

    def test_exists(self) -> None:
        """A file that says which names exist is found from where the command is run."""
        (self.folder / "other").write_text("dave\n")
        self.done("set", "site", "exists", "./other")
        self.assertIn(f"{self.folder}/other", self.change("tree").stdout)
        self.make(["dave"])
        self.assertEqual(dns.rcode.NXDOMAIN, self.ask("bob.sites.jitsu.test").rcode())

    def test_add_and_remove(self) -> None:
        """A template is added with its own keys, makes VMs at once, and is removed when it has none any more."""
        self.assertEqual("merged; added: shop", self.done(
            "add", "shop", "dns=*.shops.jitsu.test", "pool=10.2.0.0/24", "exists=b*", "backend=memory"))
        self.make(["bob"], "shops")
        self.assertIn("shop: has 1 VM; forget them first", self.refused("remove", "shop"))
        self.assertEqual("bob.shop: forgotten", self.done("forget", "--template", "shop", "--all"))
        self.assertEqual("merged; removed: shop", self.done("remove", "shop"))
        self.assertEqual(dns.rcode.NXDOMAIN, self.ask("bob.shops.jitsu.test").rcode())

    def test_edit(self) -> None:
        """A template is edited with all of its keys, and one of its VMs with what is its own."""
        self.make(["bob"])
        self.done("edit", "site", script="s/^# max: .*/max: 3/")
        self.assertEqual(3, json.loads(self.run_ctl("templates", "--json").output)[0]["max"])
        self.assertEqual("merged; changed: bob.site", self.done("edit", "bob.site", script="s/^# idle: .*/idle: 8m/"))
        template, vm = (self.folder / "seen").read_text().split("===\n")[:2]
        for line in ('dns: "*.sites.jitsu.test"', "pool: 10.1.0.0/24", f'exists: ["a*", {self.folder}/names]'):
            self.assertIn(line, template)
        self.assertIn("# The VM bob.site of the template site, which has what is not here.", vm)
        self.assertNotRegex(vm, "(?m)^(# )?(dns|template|pool):")
        self.assertEqual("480", self.configured("bob.site")["idle"])
        self.make(["bob"])
        words = "pool: is missing; every template needs its pool"
        self.assertIn(words, self.refused("edit", "site", script="/^pool:/d"))

    def test_refused(self) -> None:
        """What is wrong is told; nothing has changed."""
        self.make(["bob"])
        for arguments, why in (
            (("set", "site", "ip", "10.1.0.1"), "ip: no key of a template"),
            (("set", "site", "maxx", "1"), "maxx: no such key; did you mean max?"),
            (("set", "bob.site", "pool", "10.1.0.0/8"), "pool: no key of a VM of a template"),
            (("set", "bob.site", "dns", "x.jitsu.test"), "dns: is the same for all VMs of the template"),
            (("unset", "bob.site", "dns"), "dns: is the same for all VMs of the template"),
            (("unset", "site", "exists"), "exists: every template needs it"),
            (("add", "x", "dns=*.x.jitsu.test", "pool=10.2.0.0/24"), "exists: is missing; every template needs its"),
            (("add", "x", "dns=x.jitsu.test", "ip=10.0.0.9", "template=site"), "template: no such key"),
        ):
            self.assertIn(why, self.refused(*arguments))
        self.assertEqual("nothing has changed", self.done("set", "site", "idle", "300"))
