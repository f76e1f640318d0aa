"""The tables of README and the pages of ``man/`` agree with the declarations of the keys."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.config.schema import BACKEND_KEYS, CLUSTER_KEYS, HOST_KEYS, INHERITED, KEYS, VM_KEYS
from jitsu_tw.keys import keys_of
from jitsu_tw.readiness import READINESS
from jitsu_tw.settings import VM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.keys import Key

ROOT: Final = Path(__file__).parents[3]

#: Groups, which are in the table of keys as well.
GROUPS: Final = {"cluster", "hosts"}

#: How the defaults are shown of keys that are not set.
NO_DEFAULT: Final = {"none", "nothing", "false"}


def table(head: str) -> dict[str, list[str]]:
    """Return README's table below *head*: by each key in the first column, the other columns."""
    text = (ROOT / "README.md").read_text()
    rows: dict[str, list[str]] = {}
    for line in text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]:
        keys, *columns = (column.strip() for column in line.strip("|").split("|"))
        rows |= dict.fromkeys(re.findall("`(.*?)`", keys), columns)
    return rows


class DocumentationTests(SynchronousTestCase):
    """Each key is documented as it is declared."""

    def check_defaults(self, keys: Mapping[str, Key], shown: Mapping[str, str]) -> None:
        """Check the defaults that are *shown*: each begins with the declared one."""
        self.assertEqual(keys.keys(), shown.keys())
        for name, key in keys.items():
            self.assertTrue(f"{shown[name]}: ".startswith(f"{key.shown}: "), f"{name}: {key.shown}, {shown[name]}")

    def test_keys(self) -> None:
        """Of a key of the top, README has the option, the default, and whether a VM may have it as well."""
        rows = {name: row for name, row in table("key | option").items() if name not in GROUPS}
        self.check_defaults(KEYS, {name: row[1] for name, row in rows.items()})
        for name, key in KEYS.items():
            long = f"--{name.replace('_', '-').removesuffix('s' if name == 'zones' else '')}"
            letter = {"zones": "z"}.get(name, key.option)
            option = "" if letter is None else f"`-{letter} {long}`" if letter else f"`{long}`"
            self.assertEqual(option, rows[name][0], name)
            self.assertEqual(name in INHERITED, rows[name][2].endswith("also for one VM"), name)

    def test_vm_keys(self) -> None:
        """README has each key that only a VM has; each declaration of a key says what the key is for."""
        rows = table("key of a VM").keys()
        self.assertEqual(set(), keys_of(VM).keys() - INHERITED.keys() - rows)
        self.assertEqual(set(), rows - VM_KEYS.keys())
        self.assertEqual([], [name for name, key in VM_KEYS.items() if not key.doc])

    def test_reference(self) -> None:
        """Each declaration says what the key takes, and has an example that it takes."""
        for keys in (KEYS, VM_KEYS, CLUSTER_KEYS, HOST_KEYS, *BACKEND_KEYS.values()):
            for name, key in keys.items():
                self.assertTrue(key.kind and key.example and key.doc, name)
                key.parse(key.example)
        self.assertEqual("list of: DNS name", VM_KEYS["dns"].kind)
        self.assertEqual(("duration", "seconds", "true or false"),
                         (VM_KEYS["idle"].kind, VM_KEYS["idle"].unit, VM_KEYS["prepare"].kind))

    def test_one_declaration(self) -> None:
        """No backend and no strategy takes a name that is a key already, but for the MACs, which libxl needs too."""
        names = [*keys_of(VM).keys() | INHERITED.keys(), *READINESS, *chain.from_iterable(BACKEND_KEYS.values())]
        self.assertEqual({"mac"}, {name for name in names if names.count(name) > 1})

    def test_groups(self) -> None:
        """README has each key of the groups `cluster` and `hosts`."""
        rows = table("key of `cluster`")
        self.check_defaults(CLUSTER_KEYS, {name: row[0] for name, row in rows.items()})
        self.assertEqual(HOST_KEYS.keys(), table("key of a host").keys())

    def test_manual(self) -> None:
        """The manual page has each option, and the default if there is one."""
        page = (ROOT / "man" / "jitsu.8").read_text().replace("\\-", "-")
        options = {entry.partition("\n")[0]: entry for entry in page.split(".TP\n")}
        for name, key in KEYS.items():
            if key.option is not None:
                long = rf"--{name.replace('_', '-')}(?![a-z-])"
                (entry,) = (entry for head, entry in options.items() if re.search(long, head))
                letter = re.match(r"\.BI? -(\w) ", entry)
                self.assertEqual(key.option, letter[1] if letter else "", name)
                if key.shown not in NO_DEFAULT:
                    self.assertIn(key.shown, entry, name)
