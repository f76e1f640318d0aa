"""The files that are shown as they are: the dashboard, and the description of the endpoint."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import yaml

from jitsu_tw import __version__
from jitsu_tw.control.web import Page

if TYPE_CHECKING:
    from twisted.web.resource import Resource
    from twisted.web.server import Request

#: The dashboard's files, and what they are.
PAGE: Final = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class File(Page):
    """A file."""

    isLeaf = True  # noqa: N815

    def __init__(self, octets: bytes, kind: str) -> None:
        """Show *octets*, which are of that *kind* (RFC 9110, 8.3)."""
        super().__init__()
        self._octets, self._kind = octets, kind

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """Show it."""
        request.setHeader("content-type", self._kind)
        return self._octets


@cache
def openapi() -> bytes:
    """Return the description of the endpoint, OpenAPI 3.1."""
    said = yaml.safe_load(files("jitsu_tw.control").joinpath("openapi.yaml").read_text(encoding="utf-8"))
    said["info"]["version"] = __version__
    return json.dumps(said).encode()


def add_files(top: Resource, version: Resource) -> None:
    """Show the dashboard at *top*, and the description below *version*."""
    for name, kind in PAGE.items():
        octets = files("jitsu_tw.control").joinpath("page", name).read_bytes()
        top.putChild(b"" if name == "index.html" else name.encode(), File(octets, kind))
    version.putChild(b"openapi.json", File(openapi(), "application/json"))
