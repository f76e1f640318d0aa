"""jitsuctl against a server that is hostile or broken: one line, a status, and a bounded share of memory and time."""

from __future__ import annotations

import ast
import functools
import json
import socket
import threading
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import ctl
from jitsu_tw.ctl import client

HOST: Final = "127.0.0.1"

VM: Final = {
    "name": "www", "state": "up", "held": False, "needed": False, "lease_left": 1.0, "last_request_ts": 1.0,
    "total_starts": 1, "total_requests": 1, "origin": None, "template": None, "problems": [],
}  # fmt: skip

#: What each command asks for first is answered by it.
COMMANDS: Final = (
    ("status",), ("why", "www"), ("events",), ("dry-run",), ("standins",), ("nodes",), ("hosts",), ("start", "www"),
    ("start", "www", "--wait"), ("stop", "www"), ("hold", "www"), ("release", "www"), ("move", "www", "left"),
    ("drain", "left"), ("status", "--json"), ("events", "--json"), ("status", "www"), ("status", "--all"),
    ("templates",), ("forget", "www"), ("forget", "--template", "site"),
)  # fmt: skip

EVIL: Final = "\x1b]0;evil\x07\x9b2J\u202eten\r\nforged: line"


class Hostile:
    """
    A server that answers each connection with the same octets.

    Attributes:
        place: where it is.
        sent: how many octets it has sent again.
    """

    def __init__(self, octets: bytes, *, trickles: bool = False, again: bytes = b"") -> None:
        """Answer with *octets*, then with *again* as long as they are read; or with one octet now and then."""
        self._octets, self._again, self._trickles = octets, again, trickles
        self._listening = socket.create_server((HOST, 0))
        self._ended = threading.Event()
        self.sent = 0
        self.place = f"{HOST}:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def end(self) -> None:
        """End."""
        self._ended.set()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        with one:
            try:
                one.recv(65536)
                if self._trickles:
                    for octet in self._octets:
                        one.sendall(bytes([octet]))
                        if self._ended.wait(0.01):
                            return
                else:
                    one.sendall(self._octets)
                while self._again and not self._ended.is_set():
                    one.sendall(self._again)
                    self.sent += len(self._again)
            except OSError:
                pass


def http(body: object, status: str = "200 OK", headers: str = "") -> bytes:
    """Return an answer of HTTP whose body is *body*, as JSON unless it is octets."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n".encode() + octets


def stream(*events: object) -> bytes:
    """Return a stream of events."""
    return http(b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in events))


class HostileTests(SynchronousTestCase):
    """Answers of a server."""

    def run_ctl(self, octets: bytes, *arguments: str, **more: Any) -> Result:
        """Run jitsuctl against a server with this answer."""
        self.server = Hostile(octets, **more)
        self.addCleanup(self.server.end)
        return CliRunner().invoke(ctl.main, ["--control", self.server.place, *arguments])

    def refused(self, octets: bytes, words: str, *arguments: str, status: int = 1, **more: Any) -> None:
        """Check that it ends with one line that contains *words*."""
        run = self.run_ctl(octets, *(arguments or ("status",)), **more)
        self.assertEqual((status, 1, ""), (run.exit_code, run.stderr.count("\n"), run.stdout), (arguments, run.output))
        self.assertRegex(run.stderr, f"^jitsuctl: .*{words}")
        self.assertTrue(run.stderr.removesuffix("\n").isprintable(), run.stderr)
        self.assertIsInstance(run.exception, SystemExit)

    def test_no_json(self) -> None:
        """An answer that is no JSON, or another kind of server's, is an error that shows it."""
        understands = "what answers at .* is no Jitsu that this jitsuctl understands: "
        for octets, words in (
            (http(b"<html>"), "no JSON"), (http(b""), "no JSON"), (http(b"\xff\xfe"), "no JSON"),
            (http(b"[" * 200_000), "no JSON"), (http(b"9" * 5000), "no JSON"), (http(b'{"a":' * 100_000), "no JSON"),
            (http(b"", "302 Found", "Location: file:///etc/passwd\r\n"), "status 302"),
            (http(b"", "204 No Content"), "status 204"), (http(b"nope", "500 Oops"), "no JSON"),
        ):  # fmt: skip
            self.refused(octets, understands + words)
            self.refused(octets, understands + words, "status", "--json")

    def test_no_http(self) -> None:
        """What is not HTTP, or ends too soon, is no Jitsu."""
        for octets in (b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", b"\x15\x03\x01",
                       b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
                       b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):  # fmt: skip
            self.refused(octets, "no Jitsu answers at ", status=3)

    def test_refusal(self) -> None:
        """A refusal is shown as text, whatever is in it; a further line of it is indented."""
        run = self.run_ctl(http({"error": EVIL}, "409 Conflict"), "status")
        self.assertEqual("jitsuctl: \\x1b]0;evil\\x07\\x9b2J\\u202eten\\r\n  forged: line\n", run.stderr)
        said: object
        for said in ([], "x", {"error": {"a": [EVIL]}}, {"other": 1}, None):
            self.refused(http(said, "409 Conflict"), "")

    def test_wrong_types(self) -> None:
        """JSON of another shape than it should have is one line, for each command."""
        said: object
        for said in (None, True, 1, 1.5, "x", [1], ["x"], [None], [[]], {"name": "x"}, [{"name": 1}],
                     [{**VM, "lease_left": "x"}], [{**VM, "last_request_ts": 1e999}], [{**VM, "problems": 5}],
                     {"standins": 5, "error": None, "configured": True}):  # fmt: skip
            for arguments in COMMANDS:
                if arguments[0] == "events":
                    continue
                run = self.run_ctl(http(said), *arguments)
                self.assertIn(run.exit_code, {0, 1}, (said, arguments))
                self.assertIsInstance(run.exception, SystemExit | None, (said, arguments))
                self.assertLessEqual(run.stderr.count("\n"), 1)
        self.refused(http({"name": "x"}), "understands: ", "status")
        event: object
        for event in (None, 1, [], {}, {"kind": []}, {"kind": "state", "at": 1e300, "vm": "x", "old": 1, "state": 2}):
            self.refused(stream(event), "understands: ", "events")

    def test_new_event(self) -> None:
        """A kind of event that a newer Jitsu has is shown by its name."""
        run = self.run_ctl(stream({"kind": "newer", "at": 1.0, "vm": "www"}), "events")
        self.assertRegex(run.stdout, r"  www: newer\n$")

    def test_gigabytes(self) -> None:
        """An answer that does not end is not kept."""
        self.patch(client, "LONGEST", 4_000_000)
        for octets in (http(b"["), http(b'["'), b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n["):
            self.refused(octets, "an answer of more than 4000000 octets", again=b"1," * 30_000)
            self.assertLess(self.server.sent, 30_000_000)
        for octets, words, *arguments in ((http(b"", "500 Oops"), "an answer of more than 65536 octets"),
                                          (http(b"data: "), "an event that is too long", "events")):  # fmt: skip
            self.refused(octets, words, *arguments, again=b" " * 30_000)
            self.assertLess(self.server.sent, 30_000_000)

    def test_slow(self) -> None:
        """An answer that trickles in has a time for all of it."""
        self.patch(client, "Control", functools.partial(client.Control, patience=0.3))
        for octets in (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, http(b" " * 100_000)):
            self.refused(octets, "no whole answer within 0.3 s", status=3, trickles=True)
        self.refused(http(b":" * 100_000), "no whole answer within 0.3 s", "events", status=3, trickles=True)

    def test_escaped(self) -> None:
        """A server's text is shown without the characters that a terminal interprets; names of all languages stay."""
        evil = "[red]" + EVIL
        kinds = ("state", "refused", "lost", "made", "forgotten", evil)
        vm = {**VM, "name": evil, "state": evil, "origin": evil, "problems": [evil], "why": [evil], "decisions": [
            {"kind": kind, "at": 1.0, "vm": evil, "asker": evil, "reason": evil, "times": evil, "backend": evil,
             "old": evil, "state": evil, "template": evil} for kind in kinds]}  # fmt: skip
        template = {"name": evil, "vms": evil, "max": evil, "states": {}, "pool": {"free": evil}, "wildcards": [evil],
                    "problems": [evil]}  # fmt: skip
        standins = {"configured": True, "error": evil, "counters": {evil: 1}, "standins": [
            dict.fromkeys(("ip", "mac", "state", "handover", "held"), evil)]}  # fmt: skip
        member = {"name": evil, "vms": evil, "drained": False, "problem": evil}
        starts = {"name": evil, "network": evil, "type": evil, "starts": 1}
        for said, *arguments in (
            ([vm], "status"), (vm, "why", "x"), ([starts], "dry-run"), (standins, "standins"), ([member], "nodes"),
            ([member], "hosts"), (vm, "stop", "x"), ([vm], "status", "--json"), (vm, "why", "x", "--json"),
            ([{**vm, "template": evil}] * 20, "status"), ([template], "templates"),
        ):  # fmt: skip
            run = self.run_ctl(http(said), *arguments)
            shown = (run.stdout + run.stderr).replace("\n", "")
            self.assertTrue(shown.isprintable(), (arguments, shown))
            self.assertIn("[red]", run.stdout, arguments)
            self.assertNotIn("\nforged", run.stdout)
        run = self.run_ctl(http({**VM, "name": "žofie-日本-👩‍💻"}), "stop", "x")
        self.assertEqual("žofie-日本-👩‍💻: up\n", run.stdout)

    def test_one_place(self) -> None:
        """Nothing in `jitsu_tw.ctl` prints but `show`, and what prints the script of a shell."""
        folder = Path(ctl.__file__).parent
        for path in sorted(folder.glob("*.py")):
            calls = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            prints = [one for one in calls if one.startswith(("click.echo", "print(", "Console().print", "sys.std"))]
            if path.name != "show.py":
                self.assertEqual([], [one for one in prints if ".source()" not in one], path.name)
