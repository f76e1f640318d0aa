"""Tests of the structure: layers, sizes, and who calls whom."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    """Return the file of each module of the product, by its name."""
    found = {}
    for package in ("jitsu_tw", "synjitsu_tw"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found
