"""What the programs that measure have in common: tables, and a file with all figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

json_option: Final = click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write all figures to this file."
)


def write(path: Path | None, figures: object) -> None:
    """Write *figures* to the file at *path*, if one is named."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2))


def table(texts: Iterable[str], numbers: Iterable[str]) -> Table:
    """Return a table without rows: the titles of its columns of text, and of those of numbers behind them."""
    made = Table(box=None, pad_edge=False)
    for title in texts:
        made.add_column(title)
    for title in numbers:
        made.add_column(title, justify="right")
    return made
