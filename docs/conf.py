"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

from jitsu_tw import __version__  # noqa: E402

project = "Jitsu"
author = "Jitsu's authors"
copyright = "Jitsu's authors, ISC licence"  # noqa: A001
version = release = __version__

extensions = ["myst_parser", "sphinx_click", "declared", "manual"]
exclude_patterns = ["_ext"]
root_doc = "index"
nitpicky = True
smartquotes = False  # of commands, too

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"Jitsu {release}"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
highlight_language = "none"

man_pages = [
    ("reference/jitsu", "jitsu", "an authoritative DNS server that boots virtual machines on demand", author, 8),
    ("reference/synjitsu", "synjitsu", "stands in for virtual machines that boot or are off", author, 8),
    ("reference/jitsuctl", "jitsuctl", "show and control a running Jitsu", author, 1),
    ("reference/configuration", "jitsu.yaml", "the configuration of jitsu", author, 5),
]
