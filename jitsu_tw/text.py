"""Text from outside, made safe for a terminal and a log, and short enough for one line."""

from __future__ import annotations

import unicodedata
from typing import Final

#: Categories of Unicode that a terminal or a log interprets: controls, invisible formats (bidi), surrogates, line ends.
_ACTS: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

#: Formats that are kept: Persian and Indic names, and emoji, have joiners.
_JOINERS: Final = "\u200c\u200d"


def printable(text: str) -> str:
    r"""
    Return *text*, which comes from outside, made safe for a terminal or a log: ``\x1b``, ``\n``, ``\u202e`` as escapes.

    Letters of all languages, combining marks and emoji are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _ACTS and one not in _JOINERS else one
        for one in text
    )


def counted(number: int, noun: str) -> str:
    """Return how many things there are: ``1 VM``, ``2 VMs``, ``3 addresses``."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def abridged(text: str, most: int, mark: str = "…") -> str:
    """Return *text*, or, where it has more than *most* characters, its beginning and its end with *mark* between."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}{mark}{text[-half:]}"
