"""The file of flows: what is in it after the end of a process, however that ended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from synjitsu_tw import flowfile
from synjitsu_tw.flowfile import SIZE, FlowFile
from synjitsu_tw.flows import Flows, Stage, TcpFlow
from synjitsu_tw.table import Peer

TAGGED: Final = Peer("a-long-bridge-1", b"\x81\0\0\7\x81\0\0\0", b"\2\0\0\0\0\1")
PLAIN: Final = Peer("br0", b"", b"\2\0\0\0\0\2")


def flow(number: int, **changes: Any) -> TcpFlow:
    """Return a flow, in the slot *number*."""
    values = {"ip": b"\x0a\0\0\0", "remote": b"\x0a\0\0\1", "remote_port": 60000 + number, "port": 0, "peer": PLAIN,
              "by_vm": False, "stage": Stage.OPEN, "at": 100.0, "since": 100.0, "slot": number}  # fmt: skip
    return TcpFlow(**{**values, **changes})


FLOWS: Final = {
    0: flow(0),
    3: flow(3, ip=bytes(15) + b"\1", remote=b"\xfd" + bytes(15), peer=TAGGED, by_vm=True),
    4: flow(4, stage=Stage.CLOSING, finished=2, peer=TAGGED),
    5: flow(5, stage=Stage.SILENT, at=1.0),
    7: flow(7, stage=Stage.LOST),
}


class FlowFileTests(SynchronousTestCase):
    """Files in a folder of the test's."""

    def setUp(self) -> None:
        """Begin with no file."""
        self.path = Path(self.mktemp())
        self.now = 200.0
        self.lines: list[str] = []
        log: Any = type("Log", (), {})()
        log.warn = log.info = lambda words, **values: self.lines.append(words.format(**values))
        self.patch(FlowFile, "log", log)

    def file(self) -> FlowFile:
        """Return the file, for one more process."""
        made = FlowFile(str(self.path), lambda: self.now)
        self.addCleanup(made.close)
        return made

    def written(self) -> dict[int, TcpFlow]:
        """Write `FLOWS` in one process, which ends without closing the file, and return what another one reads."""
        first = self.file()
        first.read()
        first.write(FLOWS)
        os.close(first._file)
        first._file = -1
        return self.read()

    def read(self) -> dict[int, TcpFlow]:
        """Return the flows that one more process reads."""
        file = self.file()
        flows = {one.slot: one for one in file.read()}
        file.close()
        return flows

    @staticmethod
    def parts(flows: dict[int, Any]) -> dict[int, list[Any]]:
        """Return flows in a form that can be compared; the times rounded, as the clock went on."""
        return {
            slot: [round(part) if isinstance(part, float) else part
                   for part in (getattr(one, name) for name in TcpFlow.__slots__ if name != "__weakref__")]
            for slot, one in flows.items()
        }  # fmt: skip

    def test_written(self) -> None:
        """What was written is read by the next process, and it is as old as it was."""
        self.assertEqual(self.parts(FLOWS), self.parts(self.written()))
        self.assertEqual(["5 open connections are known from before"], self.lines)
        self.assertEqual(0o600, self.path.stat().st_mode & 0o777)

    def test_clock(self) -> None:
        """The clock of another process may begin elsewhere."""
        self.written()
        self.now += 1000.0
        self.assertEqual({0: 1100.0, 3: 1100.0, 4: 1100.0, 5: 1001.0, 7: 1100.0},
                         {slot: round(one.at) for slot, one in self.read().items()})  # fmt: skip

    def test_free(self) -> None:
        """A slot that is free, or has never been used, has no flow."""
        self.written()
        file = self.file()
        file.read()
        file.write({3: None, 5: None})
        file.close()
        self.assertEqual({0, 4, 7}, self.read().keys())

    def test_damaged(self) -> None:
        """Records that are damaged, cut short, or from the future are ignored, in one log line; the others are read."""
        self.written()
        octets = bytearray(self.path.read_bytes())
        octets[SIZE * 1 + 30] ^= 1
        future = flowfile.pack(flow(9, at=100.0, since=10000.0), time.monotonic() - self.now)
        self.path.write_bytes(bytes(octets) + bytes(SIZE) + b"\xff" * SIZE + future + bytes(SIZE // 2))
        self.lines.clear()
        self.assertEqual({3, 4, 5, 7}, self.read().keys())
        self.assertEqual(
            [f"{self.path}: 4 connections are not known any more, as their records are damaged",
             "4 open connections are known from before"], self.lines,
        )  # fmt: skip

    def test_foreign(self) -> None:
        """A file of another format is written anew, with a log line; so is one of an earlier boot, without."""
        for octets, lines in ((b"#!/bin/sh\n" * 100, 1), (b"", 0), (bytes(10000), 1)):
            self.path.write_bytes(octets)
            self.lines.clear()
            self.assertEqual({}, self.read())
            self.assertEqual(lines, len(self.lines))
            self.assertEqual(SIZE, self.path.stat().st_size)
            self.assertEqual(FLOWS.keys(), self.written().keys())
        boot = Path(self.mktemp())
        boot.write_text("another boot\n")
        self.patch(flowfile, "_BOOT", boot)
        self.lines.clear()
        self.assertEqual(({}, []), (self.read(), self.lines))

    def test_used(self) -> None:
        """While one process uses the file, another one goes without, and changes nothing."""
        first, second = self.file(), self.file()
        first.read()
        first.write(FLOWS)
        self.assertEqual([], second.read())
        second.write({0: None})
        self.assertIn("another Synjitsu uses the file", "".join(self.lines))
        first.close()
        self.assertEqual(FLOWS.keys(), self.read().keys())

    def test_none(self) -> None:
        """Without a name, in a folder that there is not, or through a link, there is no file, and nothing fails."""
        link, aim = Path(self.mktemp()), Path(self.mktemp())
        aim.write_bytes(b"another's")
        link.symlink_to(aim.absolute())
        for path, lines in (("", 0), ("/nonexistent/flows", 1), (str(link), 1)):
            self.lines.clear()
            file = FlowFile(path, lambda: self.now)
            self.assertEqual([], file.read())
            file.write(FLOWS)
            file.close()
            self.assertEqual((lines, b"another's"), (len(self.lines), aim.read_bytes()))

    def test_full(self) -> None:
        """If the file cannot be written, that is logged once."""
        file = self.file()
        file.read()
        os.close(file._file)
        file._file = os.open("/dev/full", os.O_RDWR)
        file.write(FLOWS)
        file.write(FLOWS)
        self.assertEqual(1, len(self.lines))
        self.assertIn("No space left", self.lines[0])

    def test_size(self) -> None:
        """The file has at most a record for each slot; the rest of a longer one is not read."""
        self.written()
        with self.path.open("r+b") as longer:
            longer.truncate(1 << 40)
        file = self.file()
        self.assertEqual([0, 3], [one.slot for one in file.read(slots=4)])
        file.close()
        self.assertEqual(FLOWS.keys(), self.read().keys())
        flows = Flows()
        flows.restore(self.read().values())
        self.assertEqual(5, len(flows))
