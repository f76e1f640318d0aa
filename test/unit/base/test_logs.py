"""The log as one JSON object a line, and what must never stand in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import syslog
from io import StringIO
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.logger import FileLogObserver, ILogObserver, Logger, LogLevel, LogPublisher, textFileLogObserver
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.syslog import SyslogObserver
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import provider

from jitsu_tw import logs
from test.programs.test_tap import BIN, HOST, VMS, ProcessTestCase

if TYPE_CHECKING:
    from twisted.logger import LogEvent


class LineTests(SynchronousTestCase):
    """One line."""

    def logged(self, method: str, *words: Any, **values: Any) -> dict[str, Any]:
        """Return the fields of a line."""
        out = StringIO()
        observer = FileLogObserver(out, logs.line)
        getattr(Logger("a.room", observer=LogPublisher(observer)), method)(*words, **values)
        (line,) = out.getvalue().splitlines()
        said: dict[str, Any] = json.loads(line)
        return said

    def test_values(self) -> None:
        """It has the time, the level, the namespace, the message, and its values unchanged."""
        said = self.logged("info", "{name}: up after {ms} ms\nor so", name="www", ms=12.5, thing=object(), none=None)
        self.assertRegex(said.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
        self.assertEqual({"level": "info", "room": "a.room", "message": "www: up after 12.5 ms\nor so",
                          "values": {"name": "www", "ms": 12.5, "none": None}}, said)

    def test_failure(self) -> None:
        """A fault has its traceback."""
        said = self.logged("failure", "unexpected", Failure(ZeroDivisionError("oh")))
        self.assertEqual(("critical", "unexpected"), (said["level"], said["message"]))
        self.assertIn("ZeroDivisionError: oh", said["traceback"])

    def test_nothing(self) -> None:
        """An event without a message is no line."""
        self.assertIsNone(logs.line({"log_time": 1.0, "log_level": None}))


class EscapedTests(SynchronousTestCase):
    """The log as text."""

    def logged(self, method: str, *words: Any, **values: Any) -> list[str]:
        """Return the lines that are written of one event."""
        out = StringIO()

        @provider(ILogObserver)
        def write(event: LogEvent) -> None:
            textFileLogObserver(out)(logs.escaped(event))

        getattr(Logger("a.room", observer=LogPublisher(write)), method)(*words, **values)
        return out.getvalue().split("\n")[:-1]

    def test_escapes(self) -> None:
        """What comes from outside can neither steer a terminal nor make up a line; names of all languages stay."""
        for value, expected in (
            ("\x1b]0;x\x07", r"\x1b]0;x\x07"), ("x\n2026-01-01T00:00:00+0000 [jitsu#info] y",
            r"x\n2026-01-01T00:00:00+0000 [jitsu#info] y"), ("\u202ex", r"\u202ex"), ("Žofie 日本", "Žofie 日本"),
            ("\x9b31m\r", r"\x9b31m\r"), ("\udcff", r"\udcff"), ("{name} {0}", "{name} {0}"),
        ):  # fmt: skip
            (line,) = self.logged("warn", "{name}: refused", name=value)
            self.assertTrue(line.endswith(f"[a.room#warn] {expected}: refused"), line)
            (line,) = self.logged("warn", "{error}", error=ValueError(value))
            self.assertTrue(line.endswith(expected), line)

    def test_long(self) -> None:
        """A message has a greatest length, as text and in JSON."""
        (line,) = self.logged("info", "{name}", name="x" * 10 * logs.LONGEST)
        self.assertLess(len(line), logs.LONGEST + 100)
        event = {"log_time": 0.0, "log_level": LogLevel.info, "log_format": "{x}", "x": object(), "y": "z"}
        self.assertLess(len(logs.line({**event, "log_format": "x" * 10 * logs.LONGEST}) or ""), logs.LONGEST + 200)

    def test_long_values(self) -> None:
        """Values in JSON are bounded, and JSON, whatever they are; so are tracebacks."""
        event = {"log_time": 0.0, "log_level": LogLevel.info, "log_format": "x", "y": "z" * 10 * logs.LONGEST, "n": inf}
        said = json.loads(logs.line(event) or "", parse_constant=self.fail)
        self.assertEqual(("inf", "z" * logs.LONGEST), (said["values"]["n"], said["values"]["y"]))
        failure = Failure(ValueError("x" * 10 * logs.LONGEST_TRACEBACK))
        self.assertLess(len(logs.line({**event, "log_failure": failure}) or ""), 2 * logs.LONGEST_TRACEBACK)
        self.assertLess(len(logs.escaped({"log_failure": failure})["log_words"]), 2 * logs.LONGEST_TRACEBACK)

    def test_repeated(self) -> None:
        """Twisted's messages that peers can cause are logged `MOST_REPEATED` times a minute; all others always."""
        said: list[str] = []
        write = logs.bounded(lambda event: said.append(event["log_format"]))  # type: ignore[arg-type]
        for second in (0.0, 1.0, 61.0, 0.0):
            before = len(said)
            for number in range(100):
                event = "EMFILE recovery: x", "{cls} connection lost (x)"
                write({"log_time": second, "log_format": event[number % 2]})
            self.assertEqual(0 if second == 1.0 else logs.MOST_REPEATED, len(said) - before)
            write({"log_time": second, "log_format": "www: up"})
        write({"log_time": 2.0, "log_format": None})
        self.assertTrue(said[logs.MOST_REPEATED - 1].endswith(" (further such lines are not logged for a minute)"))
        self.assertEqual(4, said.count("www: up"))

    def test_failure(self) -> None:
        """A traceback has its lines, each of them escaped and indented, and is an alert for syslog."""
        _, *lines = self.logged("failure", "unexpected", Failure(ZeroDivisionError("oh\x1b[2J\n[a.room#info] no")))
        self.assertIn(r"oh\x1b[2J", "".join(lines))
        self.assertEqual([], [line for line in lines if not line.startswith("\t")])
        self.assertEqual(syslog.LOG_ALERT, logs.escaped({"log_failure": Failure(ValueError())})["syslogPriority"])

    def test_places(self) -> None:
        """The log is where twistd would have it, and another logger is left alone."""
        path = self.mktemp()
        write = logs.observer({"logfile": path, "nodaemon": True}, as_json=False)
        write({"log_format": "one\x07", "log_time": 0.0, "log_level": LogLevel.info})
        self.assertIn(r"one\x07", Path(path).read_text())
        sent: list[Any] = []
        self.patch(SyslogObserver, "syslog", lambda _, *what: sent.append(what))
        self.patch(SyslogObserver, "openlog", lambda *_: None)
        write = logs.observer({"syslog": True, "prefix": ""}, as_json=False)
        write({"log_format": "two\x07", "log_time": 0.0, "log_level": LogLevel.info, "log_failure": Failure(OSError())})
        priority, text = sent[0]
        self.assertEqual(syslog.LOG_ALERT, priority)
        self.assertIn(r"two\x07", text)
        application = Componentized()
        logs.set_up(application, {"logger": "a.logger"})
        logs.set_up(application, None)
        self.assertIsNone(application.getComponent(ILogObserver, None))


class ProcessTests(ProcessTestCase):
    """A server that logs so."""

    def test_text(self) -> None:
        """Neither service's log steers a terminal by what comes from outside, here the name of its Python."""
        python = self.folder / "\x1b[2Jpython"
        python.symlink_to(sys.executable)
        (self.folder / "jitsu.yaml").write_text(f"listen: {self.port}\ncontrol: off\nbackend: memory\n{VMS}")
        for service in (("jitsu", "--config", "jitsu.yaml"), ("synjitsu", "-i", "lo", "--listen", "unix:socket")):
            with (self.folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [python, BIN / "twistd", "-n", "--pidfile=", *service], cwd=self.folder, stdout=log, stderr=log,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            self.addCleanup(self.end, process)
            self.until_logged(r"/\x1b[2Jpython")
            self.assertEqual([], [one for one in self.log() if not one.isprintable() and one not in "\n\t"])
            self.end(process)

    def lines(self, text: str) -> list[dict[str, Any]]:
        """Return each line's fields; each line is JSON."""
        return [json.loads(line) for line in text.splitlines()]

    def test_activation(self) -> None:
        """An activation is one line, with its values."""
        self.serve("--zone", "jitsu.zone", "--log-json", configuration=VMS)
        self.ask("www.jitsu.test")
        (line,) = [one for one in self.lines(self.log()) if "www: up after" in one["message"]]
        self.assertEqual(("info", "jitsu_tw.vm.machine.Machine"), (line["level"], line["room"]))
        self.assertEqual(("www", "up", "127.0.0.1, A www.jitsu.test", 1),
                         tuple(line["values"][key] for key in ("name", "how", "asker", "clients")))

    def test_file(self) -> None:
        """The log is written to twistd's log file; so it is with the key of the file."""
        self.serve("--zone", "jitsu.zone", twistd=("--logfile", "own.log"), configuration=f"log_json: true\n{VMS}")
        self.assertIn("serving 3 names", self.lines((self.folder / "own.log").read_text())[-1]["message"])

    def test_no_tracebacks(self) -> None:
        """Malformed requests to the control endpoint cause no traceback in the log."""
        self.serve("--zone", "jitsu.zone", "--log-json", configuration=VMS)
        begin = f"Host: {HOST}\r\n"
        for octets in (
            b"", b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n",
            f"GET /v1/events HTTP/1.1\r\n{begin}\r\n".encode(),
            f"GET /v1/vms HTTP/1.1\r\n{begin}Content-Length: x\r\n\r\n".encode(),
            f"POST /v1/vms/slow/start HTTP/1.1\r\n{begin}\r\n".encode(),
            f"POST /v1/vms/www/start HTTP/1.1\r\n{begin}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
            f"POST /v1/vms/www/start HTTP/1.1\r\n{begin}Content-Length: 9999999\r\n\r\n".encode() + b"x" * 200_000,
            f"GET /metrics HTTP/1.1\r\n{begin}Accept: text/plain; version=..\r\n\r\n".encode(),
            f"GET /v1/vms/{'%ff' * 2000} HTTP/1.1\r\n{begin}\r\n".encode(),
        ):  # fmt: skip
            for linger in (True, False):
                with socket.create_connection((HOST, self.control)) as one:
                    one.settimeout(2)
                    try:
                        one.sendall(octets)
                        one.recv(10 if linger else 1)
                    except OSError:
                        pass
        with socket.create_connection((HOST, self.control)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.sendall(f"GET /v1/events?last=1000 HTTP/1.1\r\n{begin}\r\n".encode())
            for _ in range(30):
                self.ask("www.jitsu.test")
        self.assertEqual("10.0.0.1", self.ask("www.jitsu.test").answer[0][0].to_text())
        bad = [one for one in self.lines(self.log()) if "traceback" in one or one["level"] in {"error", "critical"}]
        self.assertEqual([], bad)
