"""
Zone files that are broken, or more than a zone can be.

`Row.input` is the text of the file, or its octets; `Row.expected` is a regular expression for the error, which begins
behind the name of the file; empty where the zone is served. `GOOD` is read after each of them.
"""

from __future__ import annotations

from typing import Final

from test.hostile import Row

GOOD: Final = "$ORIGIN example.org.\n$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n"

ROWS: Final = (
    Row("no text", b"\xff\xfe@ SOA", ":1: not text in UTF-8"),
    Row("a NUL", GOOD + "a\0 A 192.0.2.1\n", ":6: not text"),
    Row("nothing", "", "SOA"),
    Row("a bracket that stays open", GOOD + "a A ( 192.0.2.1\n", ":6:"),
    Row("a quotation mark that stays open", GOOD + 'a TXT "\n', ":6:"),
    Row("a label of 64 octets", GOOD + "a" * 64 + " A 192.0.2.1\n", ":6: "),
    Row("a name of 256 octets", GOOD + "a." * 128 + " A 192.0.2.1\n", ":6: "),
    Row("a record outside the zone", GOOD + "example.net. A 192.0.2.1\n", ":6: "),
    Row("a directive that there is not", GOOD + "$EXEC id\n", ":6: no such directive"),
    Row("a file that is not there", GOOD + "$INCLUDE /nonexistent/x\n", ":6: .*/nonexistent/x"),
    Row("a file that includes itself", GOOD + "$INCLUDE a.zone\n", ":6: .*include itself"),
    Row("a type for questions", GOOD + "a AXFR 1\n", ":6: "),
    Row("a TTL that is no time", GOOD + "a 5x A 192.0.2.1\n", ":6: "),
    Row("a CNAME beside data", GOOD + "ns CNAME a\n", ":[56]: .*CNAME"),
    Row("a wildcard in the middle", GOOD + "a.*.b A 192.0.2.1\n", ""),
)
