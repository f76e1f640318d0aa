"""The words of the product: docstrings begin in the imperative, and no private metaphor stands for a part of it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]

#: The folders and files whose words have been revised; the others are to follow.
DONE: Final = (
    "jitsu_tw", "synjitsu_tw", "demo", "docs", "test/contract", "test/e2e", "test/fuzz", "test/hostile",
    "test/programs", "test/structure", "test/support", "test/unit/base", "test/unit/ctl", "test/unit/dns",
    "test/unit/store", "test/unit/synjitsu", "test/xenlab",
)  # fmt: skip

#: A docstring's first line says what the function does: "Return", "Start", "Handle a lost connection".
FIRST_LINE: Final = re.compile(r"(Hear|Say whether|Have|Let|Know|Be)\b")

#: Metaphors for parts of the program, pronouns in place of what is meant, and counts in place of a parameter's name.
RIDDLE: Final = re.compile(
    r"\b(houses?|rooms?(?! for\b)|floors?|doors?|sayings?|whoever|who asks|who has it|somebody|news"
    r"|so many (seconds|octets)|(so|how) many-th|turns? of the reactor)\b",
    re.IGNORECASE,
)

#: Names of arguments, code and quotations are no words of a sentence.
CODE: Final = re.compile(r"``.*?``|`[^`]*`|\*[\w, ]+\*|\"[^\"]*\"")


def sources() -> Iterator[Path]:
    """Yield the files that are done."""
    for name in DONE:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = ast.get_docstring(node, clean=False)
            if words is not None:
                yield node.body[0].lineno, words


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def strange(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of each forbidden form in the source *text*."""
    for line, words in docstrings(text):
        if found := FIRST_LINE.match(words.strip()):
            yield line, f"begins with {found[0]!r}"
    for line, words in (*docstrings(text), *comments(text)):
        for number, part in enumerate(words.split("\n")):
            for found in RIDDLE.finditer(CODE.sub("", part)):
                yield line + number, repr(found[0])


class WordsTests(SynchronousTestCase):
    """Reads docstrings and comments."""

    def test_plain(self) -> None:
        """No docstring and no comment of the folders that are done has a forbidden form."""
        wrong = [
            f"{path.relative_to(ROOT)}:{line}: {what}" for path in sources() for line, what in strange(path.read_text())
        ]
        self.assertEqual([], wrong, "\n" + "\n".join(wrong))

    def test_finds(self) -> None:
        """Each forbidden form is found, in docstrings and comments; names of arguments and quotations are none."""
        for text in ('"""Hear that it ended."""', '"""Return the room\'s door."""', "x = 1  # so many seconds",
                     'def f():\n    """Let it run."""', 'class A:\n    """One.\n\n    Whoever asks.\n    """'):
            self.assertTrue(list(strange(text)), text)
        for text in ('"""Return the *room* that is left, and ``room``; there is room for it."""', '"""Begin."""'):
            self.assertEqual([], list(strange(text)), text)
