"""Text from outside, as a terminal and a log get it."""

from __future__ import annotations

import sys
import unicodedata

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import BackendError, BackendLost
from jitsu_tw.text import printable


class PrintableTests(SynchronousTestCase):
    """`printable`."""

    def test_escapes(self) -> None:
        """What a terminal or a log acts on is spelt out."""
        for text, expected in (
            ("\x1b[31mred\x07", r"\x1b[31mred\x07"), ("two\nlines\r", r"two\nlines\r"), ("\x9b2J", r"\x9b2J"),
            ("www\u202etxt", r"www\u202etxt"), ("\u2066x\u2069", r"\u2066x\u2069"), ("\u2028", r"\u2028"),
            ("\udcff", r"\udcff"), ("zero\u200bwidth", r"zero\u200bwidth"), ("\0", r"\x00"), ("\t", r"\t"),
            ("\U000e0041", r"\U000e0041"),
        ):
            self.assertEqual(expected, printable(text))

    def test_names(self) -> None:
        """Names of people and machines in any script stay as they are."""
        for text in ("Ann <ann@example.org>", "Žofie Müller", "日本語 ホスト", "می‌خواهم", "क्‍ष", "👩‍💻 host", "a\u00a0b",
                     "e\u0301", "\\x1b", "[red]"):  # fmt: skip
            self.assertEqual(text, printable(text))

    def test_every_control(self) -> None:
        """No character that moves a cursor, ends a line or changes the direction passes, and all output is UTF-8."""
        dangerous = {"B", "S", "WS", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        for number in range(sys.maxunicode + 1):
            shown = printable(chr(number))
            shown.encode()
            if unicodedata.bidirectional(chr(number)) in dangerous and unicodedata.category(chr(number)) != "Zs":
                self.assertTrue(shown.isascii(), hex(number))


class BackendErrorTests(SynchronousTestCase):
    """Messages of hypervisors."""

    def test_long(self) -> None:
        """Of a message of megabytes the beginning and the end are kept, whatever kind of error it is."""
        for kind in (BackendError, BackendLost):
            kept = str(kind(f"first {'x' * 3_000_000} last"))
            self.assertEqual((kind.LONGEST + 1, "first", "last"), (len(kept), kept[:5], kept[-4:]))
            self.assertEqual("no", str(kind("no")))
