"""What the programs that measure have in common: tables, and a file with all figures."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

json_option: Final = click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write all figures to this file."
)
plot_option: Final = click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="Draw them into this PNG."
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


def p90(values: Sequence[float]) -> float:
    """Return what nine tenths of *values* do not exceed."""
    return statistics.quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]


def pyplot() -> Any:
    """Return what draws pictures into files."""
    import matplotlib as mpl  # noqa: PLC0415 -- it takes a second, and few programs draw

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt
