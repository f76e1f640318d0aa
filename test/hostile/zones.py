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
    Row("a device", GOOD + "$INCLUDE /dev/zero\n", ":6: .*ordinary file$"),
    Row("a line without an end", GOOD + "a TXT " + "x" * 2**21, ":6: a line of 2,097,158 characters"),
    Row("a bracket around a thousand lines", GOOD + "a TXT (\n" + "x\n" * 2**18, ":6: the parenthesis that opens here"),
    Row("a thousand brackets", GOOD + "a TXT " + "(" * 1000 + "x" + ")" * 1000 + "\n", ""),
    Row("a million lines", GOOD + "\n" * 2**20, ": a zone may have 1,000,000 lines"),
    Row("a thousand million records", GOOD + "$GENERATE 1-1000000000 a$ NS b\n", ":6: .*makes 1,000,000,000 records"),
    Row("a TTL of a thousand digits", GOOD + "a " + "9" * 1000 + " A 192.0.2.1\n", ":6: .*too long a TTL"),
    Row("a number of ten thousand digits", GOOD + "a MX " + "9" * 10000 + " b\n", ":6: MX: '9+…' is no number"),
    Row("a record of 65,535 octets", GOOD + f"a TYPE65280 \\# 65535 {'00' * 65535}\n", ":6: .*room for 60,000"),
    Row("an RRset of 70,000 octets", GOOD + "".join(f"a TXT {n:0>250}\n" for n in range(265)), ":234: [^\n]*$"),
    Row("a thousand mistakes", GOOD + "a A x\n" * 5000, "(?s):6: .*and 980 more mistakes\nthe rest was not read$"),
    Row("an escape that is no octet", GOOD + "a\\999 A 192.0.2.1\n", ":6: .*three digits up to 255"),
    Row("a colour for the terminal", GOOD + "a A \x1b[31m\n", r":6: A: \\x1b\[31m is no IPv4 address"),
    Row("letters that are two names", GOOD + "straße A 192.0.2.1\n", ":6: .*write xn--"),
    Row("a blank that is none", GOOD + "a\u00a0A 192.0.2.1\n", ":6: "),
    Row("a string that grows", GOOD + f'$GENERATE 1-900000 a TXT "{"x" * 2**17}"\n', ":6: TXT: a string of 131,072"),
)
