"""What a soak showed, as both soaks print it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from bench.figures import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console


@attrs.frozen
class Outcome:
    """
    What a soak showed.

    Attributes:
        seed: of it.
        wrong: the rules that were broken, with what led there.
        counts: how often what happened.
    """

    seed: int
    wrong: list[str]
    counts: Mapping[str, int]

    @property
    def verdict(self) -> str:
        """Whether all rules held, or how many did not."""
        return f"[bold]{'all held' if not self.wrong else f'{len(self.wrong)} broken rules'}[/]"

    def print_counts(self, console: Console) -> None:
        """Print how often what happened, as a table."""
        rows = table(["what"], ["how often"])
        for what, often in sorted(self.counts.items()):
            rows.add_row(what, f"{often:,}")
        console.print(rows)
