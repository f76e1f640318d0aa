"""
Requests to etcd about keys, its answers, and the facts that are known by these. Pure: no I/O and no clock.

The shapes are those of etcd's JSON gateway (etcd's api/etcdserverpb/rpc.proto): keys and values in base64, 64-bit
numbers as text, and whatever is 0 or empty left out. A fact's key there is the prefix, a slash, and its key here.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: A fact that changed: its key, its value now and its value before; None where there is none.
Change = tuple[str, str | None, str | None]

#: The most operations, and conditions, in one transaction: etcd's default (--max-txn-ops) is 128, and one more
#: condition is for the claim that is to be held.
OPERATIONS: Final = 127

#: The most facts in one answer.
PAGE: Final = 10_000


def encoded(text: str) -> str:
    """Return *text* as the gateway wants it."""
    return b64encode(text.encode("utf-8", "surrogateescape")).decode()


def decoded(octets: str) -> str:
    """Return the text of a value of the gateway's; what others wrote that is no UTF-8 survives."""
    return b64decode(octets).decode("utf-8", "surrogateescape")


@attrs.frozen
class Fact:
    """
    A fact as etcd has it.

    Attributes:
        key: without the prefix.
        value: None where the fact has been removed.
        lease: with which it ends; 0 for none.
        revision: of etcd's, since which it has been so.
    """

    key: str
    value: str | None
    lease: int
    revision: int


class Keys:
    """The requests and answers about the keys below a prefix."""

    def __init__(self, prefix: str) -> None:
        """Take the *prefix*, with or without a slash at its end."""
        self._start = f"{prefix.rstrip('/')}/"
        #: The first key that does not begin so: "0" comes after "/".
        self._end = f"{self._start[:-1]}0"

    def _key(self, key: str) -> str:
        return encoded(self._start + key)

    def page(self, after: str | None = None, revision: int = 0) -> dict[str, Any]:
        """Return the request for a page of all facts: the first, or the one after a key, at a revision; 0 for now."""
        start = self._start if after is None else f"{self._start}{after}\0"
        asked = {"key": encoded(start), "range_end": encoded(self._end), "limit": str(PAGE)}
        return {**asked, "revision": str(revision)} if revision else asked

    def nothing(self) -> dict[str, Any]:
        """Return a request for no key: the answer proves that a majority still follows etcd's leader."""
        return {"key": encoded(self._start), "keys_only": True}

    def watch(self, revision: int) -> dict[str, Any]:
        """Return the request for what changes from a revision on."""
        return {"key": encoded(self._start), "range_end": encoded(self._end), "start_revision": str(revision)}

    def fact(self, pair: Mapping[str, str], *, gone: bool = False) -> Fact:
        """Return the fact in one of etcd's key-value pairs."""
        key = decoded(pair["key"]).removeprefix(self._start)
        value = None if gone else decoded(pair.get("value", ""))
        return Fact(key, value, int(pair.get("lease", 0)), int(pair["mod_revision"]))

    def facts(self, answer: Mapping[str, Any]) -> list[Fact]:
        """Return the facts in the answer to a request of `page`."""
        return [self.fact(pair) for pair in answer.get("kvs", ())]

    def events(self, result: Mapping[str, Any]) -> list[Fact]:
        """Return the facts in a result of a watch."""
        return [self.fact(event["kv"], gone=event.get("type") == "DELETE") for event in result.get("events", ())]

    def claim(self, key: str, value: str, lease: int) -> dict[str, Any]:
        """Return the transaction that makes a fact which ends with *lease*, or reads it if it is there."""
        return {
            "compare": [self._is(key, None)],
            "success": [self._put(key, value, lease)],
            "failure": [self._get(key)],
        }

    def puts(
        self,
        facts: Mapping[str, str | None],
        ours: Iterable[str],
        lease: int,
        holding: str,
        expected: Mapping[str, str | None],
    ) -> Iterator[dict[str, Any]]:
        """
        Yield the transactions that change *facts*: one or, where there are too many, several.

        Each is done only if *holding*, if it is given, and those of *ours* that it changes end with *lease*; these
        still do afterwards. One with *expected* is done only if these facts are so, and reads them if it is not done.
        """
        ours = set(ours)
        items = list(facts.items())
        assert not expected or len(items) <= OPERATIONS, "this must be one transaction"
        for start in range(0, len(items) or 1, OPERATIONS):
            some = items[start : start + OPERATIONS]
            needed = {key for key, _ in some if key in ours} | ({holding} if holding else set())
            yield {
                "compare": [
                    {"key": self._key(key), "target": "LEASE", "result": "EQUAL", "lease": str(lease)}
                    for key in sorted(needed)
                ] + [self._is(key, value) for key, value in expected.items()],
                "success": [
                    {"request_delete_range": {"key": self._key(key)}}
                    if value is None
                    else self._put(key, value, lease if key in ours else 0)
                    for key, value in some
                ],
                "failure": [self._get(key) for key in expected],
            }

    def _is(self, key: str, value: str | None) -> dict[str, Any]:
        """Return the condition that a fact has this *value*; None: that it is not there."""
        if value is None:
            return {"key": self._key(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        return {"key": self._key(key), "target": "VALUE", "result": "EQUAL", "value": encoded(value)}

    def _get(self, key: str) -> dict[str, Any]:
        return {"request_range": {"key": self._key(key)}}

    def _put(self, key: str, value: str, lease: int) -> dict[str, Any]:
        return {"request_put": {"key": self._key(key), "value": encoded(value), "lease": str(lease)}}


def revision(answer: Mapping[str, Any]) -> int:
    """Return the revision from which on a transaction's answer holds; 0 if it neither changed nor found anything."""
    found = 0
    for response in answer.get("responses", ()):
        if "response_put" in response or int(response.get("response_delete_range", {}).get("deleted", 0)):
            found = int(answer["header"]["revision"])
        for pair in response.get("response_range", {}).get("kvs", ()):
            found = max(found, int(pair["mod_revision"]))
    return found


class Mirror:
    """
    What etcd has, as far as is known.

    Attributes:
        facts: values by key.
        leases: by key, of the facts that end with one.
        revision: of etcd's, up to which everything is known.
    """

    def __init__(self) -> None:
        """Begin without facts."""
        self.facts: dict[str, str] = {}
        self.leases: dict[str, int] = {}
        self.revision = 0

    def replace(self, facts: Iterable[Fact], revision: int) -> list[Change]:
        """Replace all facts by those at *revision*; return what has changed."""
        facts = list(facts)
        gone = self.facts.keys() - {fact.key for fact in facts}
        self.revision = 0  # of a younger etcd, it would be less than what was known of the older
        changes = self.learn([*(Fact(key, None, 0, revision) for key in sorted(gone)), *facts])
        self.revision = revision
        return changes

    def learn(self, facts: Iterable[Fact]) -> list[Change]:
        """Take *facts* that were written, in etcd's order; return what has changed."""
        changes: list[Change] = []
        for fact in facts:
            before = self.facts.get(fact.key)
            self.leases.pop(fact.key, None)
            if fact.value is None:
                self.facts.pop(fact.key, None)
            else:
                self.facts[fact.key] = fact.value
                if fact.lease:
                    self.leases[fact.key] = fact.lease
            if fact.value != before:
                changes.append((fact.key, fact.value, before))
            self.revision = max(self.revision, fact.revision)
        return changes
