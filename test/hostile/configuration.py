"""
Configurations that cannot be meant.

`Row.input` is the text of ``jitsu.yaml``, or its octets; `Row.expected` is a regular expression for the error, which
begins behind the name of the file. `GOOD` is read after each of them.
"""

from __future__ import annotations

from typing import Final

from test.hostile import Row

GOOD: Final = "backend: memory\nvms:\n  - {name: www, dns: www.example.org, ip: 10.0.0.1}\n"

ROWS: Final = (
    Row("no text", b"\xff\xfe\0", "is not text in UTF-8"),
    Row("no YAML", "vms: [", ":[12]: is not YAML"),
    Row("a control character", "bind: '\x01'", "is not YAML"),
    Row("a control character behind others", "# \u00e9\u00e9\u00e9\u00e9\nbind: \u00e9\x01\n", ":2: .*#x0001"),
    Row("a list at the top", "- vms\n", ':1: should be lines of the form "key: value"'),
    Row("a key twice", "listen: 53\nlisten: 54\n", ":2: listen: is there twice"),
    Row("an alias of itself", "vms: &a\n  - *a\n", r"vms\[0\]"),
    Row("a tag of Python", "listen: !!python/object/apply:os.system [id]\n", ":1: listen: takes one value"),
    Row("a key as long as a book", f"{'a' * 100_000}: 1\n", ":1: a+: no such key|is not YAML"),
    Row("a number of 5000 digits", GOOD + f"listen: {'9' * 5000}\n", ":4: listen: "),
    Row("a place that is an equals sign", GOOD + "synjitsu: =\n", ":4: synjitsu: '=' is no place to connect to"),
    Row("a place that ends in a backslash", GOOD + "synjitsu: 'unix:x\\'\n", ":4: synjitsu: .* is no place to"),
    Row("a time that is not a number", GOOD + "answer_by: nan\n", ":4: answer_by: "),
    Row("a VM without a name", "vms:\n  - {dns: a.example.org, ip: 10.0.0.1}\n", ":2: .*name.* is missing"),
    Row("a name of 300 octets", GOOD + f"  - {{name: b, dns: {'a.' * 150}org, ip: 10.0.0.2}}\n", ":4: .*dns"),
    Row("a top level domain", GOOD + "  - {name: b, dns: www, ip: 10.0.0.2}\n", ":4: .*would answer for all of"),
    Row("a URL for a name", GOOD + "  - {name: b, dns: 'http://b.org/', ip: 10.0.0.2}\n", ":4: .*is a URL"),
    Row("two names in one", GOOD + "  - {name: b, dns: b.org c.org, ip: 10.0.0.2}\n", ":4: .*has a blank"),
    Row("a loopback address", GOOD + "  - {name: b, dns: b.org, ip: 127.0.0.2}\n", ":4: .*loopback"),
    Row("an address of Jitsu itself", "bind: 10.0.0.1\n" + GOOD, ":4: .*what Jitsu serves at"),
    Row("a limit below another", "min_up: 9\nmax_up: 8\n" + GOOD, ":2: .*is below min_up"),
    Row("lists in lists", "bind: " + "[" * 100_000, ":1: is not YAML: exceeded"),
    Row("a key with an escape sequence", '"a\\e[2J": 1\n' + GOOD, r":1: a\\x1b\[2J: no such key"),
    Row("a bomb of aliases", f"notify: &a [{'127.0.0.1, ' * 5000}]\n{GOOD}"
        + "".join(f"  - {{name: v{number}, dns: v.org, ip: 10.1.0.1, needs: *a}}\n" for number in range(1000)),
        "is that of VM v0|values"),
    Row("a VM wrong in each line", GOOD + "  - {}\n" * 1000, r":4: vms\[1\]: says nothing.*(\n.*){49}$"),
    Row("an address that is none", GOOD + "  - {name: b, dns: b.example.org, ip: 10.0.0.300}\n", ":4: .*10.0.0.300"),
)
