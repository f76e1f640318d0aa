"""The files that are served as they are: the dashboard, and the description of the endpoint."""

from __future__ import annotations

import json
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import yaml

from jitsu_tw import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.web.server import Request

    from jitsu_tw.control.routes import Route

#: The modules of the dashboard's program.
SCRIPTS: Final = ("dashboard", "view", "server", "place", "table", "actions", "details", "panels", "groups")

#: The dashboard's files, and their types.
PAGE: Final = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    **{f"{name}.js": "text/javascript; charset=utf-8" for name in SCRIPTS},
    "icon.svg": "image/svg+xml",
}


@cache
def openapi() -> bytes:
    """Return the description of the endpoint, OpenAPI 3.1."""
    described = yaml.safe_load(files("jitsu_tw.control").joinpath("openapi.yaml").read_text(encoding="utf-8"))
    described["info"]["version"] = __version__
    return json.dumps(described).encode()


def file_routes() -> Iterator[Route]:
    """Yield the routes of the dashboard, and of the description."""
    for name, kind in PAGE.items():
        octets = files("jitsu_tw.control").joinpath("page", name).read_bytes()
        yield "GET", "/" if name == "index.html" else f"/{name}", partial(_file, octets, kind)
    yield "GET", "/v1/openapi.json", partial(_file, openapi(), "application/json")


def _file(octets: bytes, kind: str, request: Request) -> bytes:
    """Return a file that is of that *kind* (RFC 9110, 8.3)."""
    request.setHeader("content-type", kind)
    return octets
