"""What documentation is made of: the declarations of the keys."""

from __future__ import annotations

from itertools import chain

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.backends import BACKENDS
from jitsu_tw.config.schema import BACKEND_KEYS, CLUSTER_KEYS, DNSSEC_KEYS, HOST_KEYS, INHERITED, KEYS, VM_KEYS
from jitsu_tw.keys import keys_of
from jitsu_tw.readiness import READINESS
from jitsu_tw.settings import VM


class DocumentationTests(SynchronousTestCase):
    """Each key can be documented by its declaration."""

    def test_described(self) -> None:
        """Each declaration of a key says what the key is for."""
        for keys in (KEYS, VM_KEYS, CLUSTER_KEYS, DNSSEC_KEYS, HOST_KEYS):
            self.assertEqual([], [name for name, key in keys.items() if not key.doc])

    def test_reference(self) -> None:
        """Each declaration says what the key takes, and has an example that it takes."""
        for keys in (KEYS, VM_KEYS, CLUSTER_KEYS, DNSSEC_KEYS, HOST_KEYS, *BACKEND_KEYS.values()):
            for name, key in keys.items():
                self.assertTrue(key.kind and key.example and key.doc, name)
                key.parse(key.example)
        self.assertEqual("list of: DNS name", VM_KEYS["dns"].kind)
        self.assertEqual(("duration", "seconds", "true or false"),
                         (VM_KEYS["idle"].kind, VM_KEYS["idle"].unit, VM_KEYS["prepare"].kind))

    def test_one_declaration(self) -> None:
        """No backend and no strategy takes a name that is a key already, but for the MACs, which libxl needs too."""
        kinds = {one.settings for one in BACKENDS.values()}
        names = [*keys_of(VM).keys() | INHERITED.keys(), *READINESS, *chain.from_iterable(map(keys_of, kinds))]
        self.assertEqual({"mac"}, {name for name in names if names.count(name) > 1})
