"""
Hostile input, one module for each way in; `test.programs.test_hostile` makes one test of each row.

To add one: append a `Row` to the ``ROWS`` of the module for its way in. No other line is needed.
"""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class Row:
    """
    One hostile input.

    Attributes:
        name: a few words; the test's name is made of them.
        input: what the module says: octets, text, or a function that makes it.
        expected: what the module says: words of the refusal as a regular expression, a code, or nothing.
    """

    name: str
    input: Any
    expected: str
