"""jitsuctl's commands that change a VM by its name, with a Jitsu that runs: ``set``, ``unset``, ``add``, and so on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from test.programs.test_reload import ReloadTestCase
from test.programs.test_tap import BIN, ProcessTestCase

if TYPE_CHECKING:
    import subprocess

VMS: Final = """
persistdb: state.git
vms:
  - {name: www, dns: www.jitsu.test, ip: 10.0.0.1, idle: 5m}
  - {name: db, dns: db.jitsu.test, ip: 10.0.0.2}
"""

#: An editor that keeps what it was shown, and does what a script of sed says; a file changes within one second.
EDITOR: Final = """#!/bin/sh
cat "$1" >> seen
echo === >> seen
sed -i "$SCRIPT" "$1"
touch -d '+2 seconds' "$1"
"""


class FirstTests(ReloadTestCase):
    """A server that has never had a VM."""

    def test_add(self) -> None:
        """It takes its first one."""
        self.serve("--zone", "jitsu.zone", "--persistdb", "state.git", configuration="")
        self.until_logged("serving 0 names")
        added = ("add", "new", "dns=new.jitsu.test", "ip=10.0.0.3", "--state", str(self.folder / "state.git"))
        run = self.jitsuctl(*added)
        self.assertEqual((0, ""), (run.returncode, run.stderr))
        self.assertEqual("10.0.0.3 60", self.address("new"))


class EditingTestCase(ProcessTestCase):
    """Changes what a Jitsu has."""

    def change(self, *arguments: str, script: str = "") -> subprocess.CompletedProcess[str]:
        """Run jitsuctl with the state, and with an editor that runs *script*."""
        editor = self.folder / "editor"
        editor.write_text(EDITOR)
        editor.chmod(0o700)
        state = str(self.folder / "state.git")
        environment = os.environ | {"JITSU_STATE": state, "VISUAL": str(editor), "SCRIPT": script}
        return self.run_to_end(BIN / "jitsuctl", "--control", self.place, *arguments, env=environment)


class EditTests(EditingTestCase, ReloadTestCase):
    """A server with a state."""

    def setUp(self) -> None:
        """Start it."""
        super().setUp()
        self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.until_logged("serving")

    def done(self, *arguments: str, script: str = "") -> list[str]:
        """Run jitsuctl, which must go well; return the lines that it prints."""
        run = self.change(*arguments, script=script)
        self.assertEqual((0, ""), (run.returncode, run.stderr))
        return run.stdout.splitlines()

    def refused(self, *arguments: str, script: str = "") -> str:
        """Run jitsuctl, which must be refused with one line; return it."""
        run = self.change(*arguments, script=script)
        self.assertEqual((1, ""), (run.returncode, run.stdout))
        (line,) = run.stderr.splitlines()
        return line

    def test_set_and_undo(self) -> None:
        """A value is another one at once, is in the history, and is undone by what the command prints."""
        merged, undo, hint = self.done("set", "www", "ttl", "5m")
        self.assertEqual("merged; changed: www", merged)
        self.assertIn("jitsu.yaml has this VM, too", hint)
        self.assertEqual("10.0.0.1 300", self.address("www"))
        self.assertIn("www: set ttl to 5m", "\n".join(self.done("log", "www")))
        self.done(*undo.removeprefix("undo it with: jitsuctl ").split())
        self.assertEqual("10.0.0.1 60", self.address("www"))
        self.done("set", "www", "ip", "10.0.0.7", "2001:db8::7")
        self.assertEqual("10.0.0.7 60", self.address("www"))
        self.done("revert")
        self.assertEqual("10.0.0.1 60", self.address("www"))
        self.done("set", "www", "dns", "www.jitsu.test", "W2.jitsu.test")
        self.assertEqual("10.0.0.1 60", self.address("w2"))

    def test_unset(self) -> None:
        """A key that is removed is as the top of the file has it, the TTL as well; the state has seconds."""
        self.done("set", "www", "ttl", "5m")
        self.done("set", "www", "min_up", "1h30m")
        self.assertIn("5400", "\n".join(self.done("tree")))
        self.done("unset", "www", "ttl")
        self.assertEqual("10.0.0.1 60", self.address("www"))
        self.done("unset", "www", "min_up")
        self.assertEqual("jitsuctl: min_up: is not set", self.refused("unset", "www", "min_up"))
        self.assertIn("every VM needs it", self.refused("unset", "www", "ip"))

    def test_refused(self) -> None:
        """What is wrong is one line, from the command itself or from Jitsu; nothing has changed."""
        for arguments, why in (
            (("set", "www", "ttl", "1.5h"), "ttl: '1.5h' is no TTL"),
            (("set", "www", "tttl", "5"), "tttl: no such key; did you mean ttl?"),
            (("set", "www", "ttl", "5", "6"), "ttl: takes one value"),
            (("set", "ww", "ttl", "5"), "the state has no VM ww, only those that Jitsu has found; did you mean www?"),
            (("set", "www", "ip", "10.0.0.2"), "10.0.0.2 is that of VM db already"),
            (("set", "www", "needs", "nobody"), "there is no VM 'nobody'"),
            (("unset", "www", "tttl"), "tttl: no such key; did you mean ttl?"),
            (("add", "new", "dns=new.jitsu.test", "10.0.0.3"), "'10.0.0.3' is not of the form key=value"),
            (("add", "new", "dns=new.jitsu.test"), "ip: is missing"),
            (("add", "www", "dns=new.jitsu.test", "ip=10.0.0.3"), "name: www is that of another VM"),
        ):
            self.assertIn(why, self.refused(*arguments))
        self.assertEqual(["nothing has changed"], self.done("set", "www", "idle", "300"))
        self.assertEqual(["10.0.0.1 60", ""], [self.address("www"), self.address("new")])

    def test_add_and_remove(self) -> None:
        """A VM comes by its name alone, with its hypervisor's uuid, and goes; a reload leaves that as it is."""
        self.done("add", "new", "dns=new.jitsu.test", "dns=n.jitsu.test", "ip=10.0.0.3", "idle=10m")
        self.assertEqual(["10.0.0.3 60"] * 2, [self.address("new"), self.address("n")])
        self.done("remove", "db")
        self.assertEqual("", self.address("db"))
        self.assertEqual("reloaded\n", self.jitsuctl("reload").stdout)
        self.assertEqual(["10.0.0.3 60", ""], [self.address("new"), self.address("db")])
        self.assertIn("the state has no VM db", self.refused("remove", "db"))
        self.done("revert")
        self.assertEqual("10.0.0.2 60", self.address("db"))

    def test_remove_commands(self) -> None:
        """A VM whose commands only the file may give is not brought back by a request, and none is named for that."""
        commands = "backend: command, commands: {start: 'true', state: echo off}"
        self.write(f"{VMS}  - {{name: own, dns: own.jitsu.test, ip: 10.0.0.4, {commands}}}\n")
        self.assertEqual("reloaded\nadded: own\n", self.jitsuctl("reload").stdout)
        _, hint = self.done("remove", "own")
        self.assertIn("a restart of Jitsu has it again, while jitsu.yaml has it", hint)
        self.assertIn("a request may not set commands", self.refused("revert"))

    def test_conflict_with_reload(self) -> None:
        """A reload keeps what was set, until the file says something else of it."""
        self.done("set", "www", "ttl", "5m")
        self.write(VMS.replace("10.0.0.1", "10.0.0.9"))
        self.assertEqual("reloaded\nchanged: www\n", self.jitsuctl("reload").stdout)
        self.assertEqual("10.0.0.9 300", self.address("www"))
        self.write(VMS.replace("10.0.0.1", "10.0.0.9").replace("idle: 5m", "idle: 5m, ttl: 7"))
        run = self.jitsuctl("reload")
        self.assertIn("dns/www.jitsu.test/ttl is '7' as the file says, no longer '300' as a request said", run.stdout)
        self.assertEqual("10.0.0.9 7", self.address("www"))

    def test_edit(self) -> None:
        """All keys of a VM are there as YAML; what is wrong is told in the editor, which is opened again."""
        self.assertEqual(["nothing has changed"], self.done("edit", "www"))
        script = "s/^ttl: never.*/ttl: 1h/;s/^ttl: 60.*/ttl: never/"
        self.assertEqual("merged; changed: www", self.done("edit", "www", script=script)[0])
        self.assertEqual("10.0.0.1 3600", self.address("www"))
        self.assertIn("#! www.yaml:7: ttl: 'never' is no TTL", (self.folder / "seen").read_text())
        self.assertIn("is no IP address", self.refused("edit", "www", script="s/^ip: .*/ip: here/"))
        self.assertIn("10.0.0.2 is that of VM db", self.refused("edit", "www", script="s/^ip: .*/ip: 10.0.0.2/"))
        self.assertIn("ip: is missing", self.refused("edit", "www", script="/^ip:/d"))

    def test_bad_editor(self) -> None:
        """An editor that fails, removes its file or leaves no text changes nothing; the line is about the editor."""
        editor = self.folder / "bad-editor"
        for script, reason in (
            ("exit 1", "Editing failed"), ('rm "$1"', "No such file"),
            ('printf "\\377" > "$1"; touch -d "+2 seconds" "$1"', "codec can't decode"),
        ):  # fmt: skip
            editor.write_text(f"#!/bin/sh\n{script}\n")
            editor.chmod(0o700)
            run = self.run_to_end(BIN / "jitsuctl", "edit", "www", "--state", "state.git",
                                  env=os.environ | {"VISUAL": str(editor)})  # fmt: skip
            self.assertEqual((1, 1), (run.returncode, len(run.stderr.splitlines())), run.stderr)
            self.assertRegex(run.stderr, f"^jitsuctl: the editor has failed, so nothing is changed: .*{reason}")

    def test_two_names(self) -> None:
        """A VM is not added by another name than the one that is given first."""
        self.assertIn("name: takes one value", self.refused("add", "a", "name=b", "dns=a.jitsu.test", "ip=10.0.0.8"))

    def test_no_state(self) -> None:
        """Without a state there is no history, and nothing to change; that is said."""
        line = self.refused("set", "www", "ttl", "5", "--state", "nowhere")
        self.assertIn("name Jitsu's persistdb with --state", line)


class LibvirtTests(ReloadTestCase):
    """A server with libvirt's test driver, which has one VM."""

    def test_add(self) -> None:
        """A VM that is added by its name gets the uuid that libvirt has for it; another one is refused."""
        self.serve("--zone", "jitsu.zone", configuration=(
            "persistdb: state.git\nvms:\n  - {name: a, dns: a.jitsu.test, ip: 10.0.0.1}\n"
            "  - {name: b, dns: b.jitsu.test, ip: 10.0.0.2, backend: libvirt, connect: 'test:///default'}\n"
        ))  # fmt: skip
        self.until_logged("b: Domain not found")
        for name, number in (("test", 0), ("nobody", 1)):
            run = self.jitsuctl("add", name, f"dns={name}.jitsu.test", f"ip=10.0.0.{3 + number}", "backend=libvirt",
                                "connect=test:///default", "--state", "state.git")  # fmt: skip
            self.assertEqual(number, run.returncode, run.stderr)
        self.assertIn("libvirt does not tell the uuid of VM nobody: Domain not found", run.stderr)
        tree = self.jitsuctl("tree", "--state", "state.git").stdout
        self.assertIn("6695eb01-f6a4-8304-79aa-97f2502e193f", tree)
        self.assertNotIn("00000000-0000", tree)
