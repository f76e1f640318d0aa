"""Manual pages without the targets of links inside the documentation, which docutils 0.22 prints behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes  # type: ignore[import-untyped]
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class PlainReferences(SphinxPostTransform):
    """Replaces links to other pages by their text, when all references are resolved."""

    default_priority = 900
    builders = ("man",)

    def run(self, **_: Any) -> None:
        """Replace them."""
        for link in list(self.document.findall(nodes.reference)):
            if not link.get("refuri", "").startswith("http"):
                link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the transform."""
    app.add_post_transform(PlainReferences)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
