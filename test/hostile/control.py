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
    Row("a length of 5000 digits", b"POST /v1/vms/www/stop HTTP/1.1\r\n" + _HOST + b"Content-Length: " + b"9" * 5000
        + b"\r\n\r\n", "400"),
    Row("a body of a gigabyte", b"POST /v1/vms/www/stop HTTP/1.1\r\n" + _HOST + b"Content-Length: 1000000000\r\n\r\n",
        "413"),
    Row("a body in chunks that do not end", b"POST /v1/vms/www/stop HTTP/1.1\r\n" + _HOST
        + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 100, "413|"),
    Row("a chunk without a size", b"POST /v1/vms/www/stop HTTP/1.1\r\n" + _HOST
        + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "400"),
    Row("100000 headers", b"GET / HTTP/1.1\r\n" + _HOST + b"X: y\r\n" * 100_000 + b"\r\n", "400|"),
    Row("an action without a token", b"POST /v1/vms/www/start HTTP/1.1\r\n" + _HOST + b"\r\n", "403"),
    Row("HEAD of an action", b"HEAD /v1/vms/www/start HTTP/1.1\r\n" + _HOST + b"\r\n", "405"),
    Row("an origin that is no URL", b"GET / HTTP/1.1\r\n" + _HOST + b"Origin: http://[\r\n\r\n", "403"),
    Row("an origin that is no text", b"GET / HTTP/1.1\r\n" + _HOST + b"Origin: \xff\r\n\r\n", "403"),
    Row("a host that is no text", b"GET / HTTP/1.1\r\nHost: \xff[\r\n\r\n", "403"),
    Row("a token that is no text", b"GET / HTTP/1.1\r\n" + _HOST + b"Authorization: Bearer \xff\r\n\r\n", "200"),
    Row("an event whose number is no digit of ASCII", b"GET /v1/events?follow=0 HTTP/1.1\r\n" + _HOST
        + b"Last-Event-ID: \xb2\r\n\r\n", "200"),
    Row("a kind of answer that is no text", b"GET /metrics HTTP/1.1\r\n" + _HOST + b"Accept: \xff\r\n\r\n", "200"),
    Row("a count that is out of range", b"GET /v1/events?last=99999 HTTP/1.1\r\n" + _HOST + b"\r\n", "400"),
    Row("a form that is none", b"POST /v1/vms/www/stop HTTP/1.1\r\n" + _HOST + b"Content-Length: 2\r\n"
        b"Content-Type: multipart/form-data; boundary=\xff\r\n\r\n--", "403"),
    Row("HTTP 1.0", b"GET /healthz HTTP/1.0\r\n\r\n", "200"),
    Row("a line that does not end", b"GET /" + b"a" * 100_000, "400|"),
)
