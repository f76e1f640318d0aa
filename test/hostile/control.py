"""
HTTP to the control endpoint, and what is none.

`Row.input` is all that the client sends; `Row.expected` is the status of the answer, or statuses with ``|`` between
them, empty where the connection is closed without one.
"""

from __future__ import annotations

from typing import Final

from test.hostile import Row

_HOST: Final = b"Host: 127.0.0.1\r\n"

ROWS: Final = (
    Row("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\r\n\r\n", "400"),
    Row("a version that there is not", b"GET / HTTP/9.9\r\n\r\n", "400|505"),
    Row("a page from elsewhere", b"GET /v1/vms HTTP/1.1\r\n" + _HOST + b"Origin: http://evil.example\r\n\r\n", "403"),
    Row("a name for this host", b"GET /v1/vms HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
    Row("a method that there is not", b"BREW /v1/vms HTTP/1.1\r\n" + _HOST + b"\r\n", "405"),
    Row("a path with octets that are no text", b"GET /v1/vms/\xff%ff%00 HTTP/1.1\r\n" + _HOST + b"\r\n", "400|404"),
    Row("a path that leads up", b"GET /../../etc/passwd HTTP/1.1\r\n" + _HOST + b"\r\n", "404"),
    Row("a length that is no number", b"POST /v1/vms/www/stop HTTP/1.1\r\n" + _HOST + b"Content-Length: x\r\n\r\n",
        "400"),
    Row("a line that does not end", b"GET /" + b"a" * 100_000, "400|"),
)
