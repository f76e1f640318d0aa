"""
Master files (RFC 1035, 5; RFC 2308, 4) as a stream of records, each with the line that it begins on.

dnspython reads each line; the walk from line to line is here, for what dnspython's does not do: it tells the line of a
record, looks for an included file beside the file that includes it, and sees a relative name that nothing completes.
Whether the records make a zone is not known here: that is `zone`'s.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dns.exception
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.tokenizer
import dns.ttl
import dns.zonefile

from jitsu_tw.errors import ZoneError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How deep files may include each other; a file that includes itself ends here.
MAX_DEPTH: Final = 10

#: Completes relative names where nothing else does, so that they can be told.
_NOWHERE: Final = dns.name.Name((b"\0no origin", b""))
_NOWHERE_WIRE: Final = _NOWHERE.to_wire() or b""


class Entry(NamedTuple):
    """One record and where it stands; names are wire octets in the case of the file."""

    owner: bytes
    type: int
    ttl: int
    rdata: bytes
    path: str
    line: int


def read(path: str | Path, origin: str | None = None) -> Iterator[Entry]:
    """
    Yield the records of the file *path* and of the files that it includes, in the order of the text.

    Args:
        path: the file, UTF-8.
        origin: completes relative names until the first ``$ORIGIN``. Where neither is, the owner of the SOA record
            does from then on; it has to be absolute.

    Raises:
        ZoneError: the file cannot be read, is not text, or breaks the syntax; a relative name has no origin.
    """
    start = _NOWHERE
    if origin is not None:
        try:
            start = dns.name.from_text(origin)
        except dns.exception.DNSException as error:
            raise ZoneError(f"the origin {origin!r} is not a domain name: {_reason(error)}", path) from error
    return _Reader(_open(str(path)), start).entries()


def _open(path: str) -> dns.tokenizer.Tokenizer:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ZoneError(f"cannot read the zone file: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ZoneError("not text in UTF-8; a zone file is an RFC 1035 master file", path, line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ZoneError("not text (a NUL octet); a zone file is an RFC 1035 master file", path, line)
    return dns.tokenizer.Tokenizer(text, path)


def _reason(error: BaseException) -> str:
    """Return dnspython's words for *error*, without the Python in them."""
    words = re.sub(r"caught exception <class '[\w.]+'>: ", "", str(error))
    return " ".join(words.split()).rstrip(".") or type(error).__name__


class _Sink:
    """What a dnspython reader takes for a transaction and its manager; it keeps what it is given."""

    def __init__(self) -> None:
        self.manager = self
        self.added: list[tuple[dns.name.Name, int, Any]] = []

    def origin_information(self) -> tuple[dns.name.Name, bool, dns.name.Name]:
        """Make the reader take any name: that a record is outside the zone is for the zone to say."""
        return dns.name.root, False, dns.name.root

    def check_put_rdataset(self, check: object) -> None:
        """Decline dnspython's own check, which knows no lines."""

    def add(self, name: dns.name.Name, ttl: int, rdata: Any) -> None:
        self.added.append((name, ttl, rdata))


class _Reader(dns.zonefile.Reader):
    """dnspython's reader of one line, and our walk over the lines of one file."""

    depth = 0

    def __init__(self, tok: dns.tokenizer.Tokenizer, origin: dns.name.Name) -> None:
        sink: Any = _Sink()
        super().__init__(tok, dns.rdataclass.IN, sink)
        self.sink = sink
        self.current_origin = origin
        self.last_name = None

    def entries(self) -> Iterator[Entry]:
        """Yield the records of this file, and of those that it includes."""
        while True:
            line = self.tok.line_number
            try:
                token = self.tok.get(want_leading=True, want_comment=True)
                if token.is_eof():
                    return
                if token.is_eol():
                    continue
                if token.is_comment():
                    self.tok.get_eol()
                elif token.is_identifier() and token.value.startswith("$"):
                    yield from self._directive(token.value.upper(), line)
                else:
                    self.tok.unget(token)
                    self._rr_line()
            except (dns.exception.DNSException, UnicodeError) as error:
                raise ZoneError(_reason(error), self.tok.filename, line) from error
            yield from self._added(line)

    def _added(self, line: int) -> Iterator[Entry]:
        """Yield what the line that began at *line* has added."""
        for name, ttl, rdata in self.sink.added:
            owner: bytes = name.to_wire() or b""
            entry = Entry(owner, int(rdata.rdtype), ttl, rdata.to_wire(), self.tok.filename, line)
            if owner.endswith(_NOWHERE_WIRE) or _NOWHERE_WIRE in entry.rdata:
                raise ZoneError(
                    "a relative name, and nothing says relative to what: put '$ORIGIN example.org.' at the top "
                    "(your zone's name, with the final dot)",
                    *entry[4:],
                )
            if dns.rdatatype.is_metatype(rdata.rdtype):
                text = dns.rdatatype.to_text(rdata.rdtype)
                raise ZoneError(f"{text} is a type for questions: no record can have it", *entry[4:])
            if rdata.rdtype == dns.rdatatype.SOA and self.current_origin == _NOWHERE:
                self.current_origin = name
            yield entry
        self.sink.added.clear()

    def _directive(self, word: str, line: int) -> Iterator[Entry]:
        """Do as the directive *word* says (RFC 1035, 5.1; $TTL: RFC 2308, 4; $GENERATE: BIND)."""
        if word == "$ORIGIN":
            self.current_origin = self.tok.get_name(self.current_origin)
            self.tok.get_eol()
        elif word == "$TTL":
            self.default_ttl = self.tok.get_ttl()
            self.default_ttl_known = True
            self.default_ttl_from_soa = False
            self.tok.get_eol()
        elif word == "$INCLUDE":
            yield from self._include(line)
        elif word == "$GENERATE":
            self._generate_line()
        else:
            message = f"no such directive: {word}; there are $ORIGIN, $TTL, $INCLUDE and $GENERATE"
            raise ZoneError(message, self.tok.filename, line)

    def _include(self, line: int) -> Iterator[Entry]:
        """Yield the records of the file named next; neither its origin nor its last owner comes back out of it."""
        here = self.tok.filename
        path = str(Path(here).parent / self.tok.get_string())
        inner = copy.copy(self)
        token = self.tok.get()
        if not token.is_eol_or_eof():
            inner.current_origin = self.tok.as_name(token, self.current_origin)
            self.tok.get_eol()
        inner.depth += 1
        if inner.depth > MAX_DEPTH:
            raise ZoneError(f"$INCLUDE is nested more than {MAX_DEPTH} deep: does {path} include itself?", here, line)
        try:
            inner.tok = _open(path)
        except ZoneError as error:
            if error.line is not None:
                raise
            raise ZoneError(f"$INCLUDE {path}: {error.message}", here, line) from error
        yield from inner.entries()
