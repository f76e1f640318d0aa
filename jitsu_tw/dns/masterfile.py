"""
Read master files (RFC 1035, 5; RFC 2308, 4) as a stream of records, each with the line that it begins on.

The text is split into records here, so that a mistake has a line number, ends its own record only, and costs no more
than the limits below allow. dnspython parses the data of each record by its type. `zone` checks whether the records
make a zone.
"""

from __future__ import annotations

import copy
import difflib
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.RP
import dns.rdtypes.nsbase
import dns.tokenizer
import dns.ttl

from jitsu_tw.dns.wire import PLAIN, parse_name, shown
from jitsu_tw.errors import ZoneError
from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The most octets in all files of a zone, lines in them, and files. The records of $GENERATE count, too.
MAX_OCTETS: Final = 128 * 2**20
MAX_LINES: Final = 1_000_000
MAX_FILES: Final = 1000
#: The most characters of one record in the file; 60,000 octets, each written as \DDD in quotes, need fewer.
MAX_RECORD: Final = 2**18
#: The longest TTL, in seconds (RFC 2181, 8).
MAX_TTL: Final = 2**31 - 1
#: How deep files may include each other.
MAX_DEPTH: Final = 10
#: How many mistakes, and how many warnings, are listed; after how many mistakes reading stops.
MOST_LISTED: Final = 20
MOST_MISTAKES: Final = 1000

IDENTIFIER, QUOTED, EOL = dns.tokenizer.IDENTIFIER, dns.tokenizer.QUOTED_STRING, dns.tokenizer.EOL

#: Characters of lines that are more than words separated by blanks.
_SPECIAL: Final = re.compile(r'["();\\]')
_WORD: Final = re.compile(r"[^ \t]+")
#: The parts of a line: blanks, a comment, a quoted string and its end, a parenthesis, a word, or another character.
_PARTS: Final = re.compile(
    r"""([ \t]+) | (;.*) | "([^"\\]*(?:\\.[^"\\]*)*)("?) | ([()])
        | ([^ \t"();\\]*(?:\\.[^ \t"();\\]*)+ | [^ \t"();\\]+) | .""",
    re.VERBOSE,
)
_BLANK, _COMMENT, _QUOTED, _QUOTE, _PARENTHESIS, _BARE = range(1, 7)

_RANGE: Final = re.compile(r"(\d{1,10})-(\d{1,10})(?:/(\d{1,10}))?", re.ASCII)
#: In the owner and the data of $GENERATE: an escape, a dollar sign, and the number with or without a format.
_NUMBER: Final = re.compile(r"(\\.)|\$(\$)|\$(\{[^}]*\}?)?")
_FORMAT: Final = re.compile(r"\{([+-]?\d{1,10})(?:,(\d{1,3})(?:,([doxXnN]))?)?\}", re.ASCII)
#: BIND formats a number into 128 octets.
_WIDEST: Final = 127

_A, _MX, _TXT, _AAAA, _SRV, _SPF = 1, 15, 16, 28, 33, 99
#: Examples of the data of the commonest types.
_EXAMPLES: Final = {
    _A: "A 192.0.2.1", _AAAA: "AAAA 2001:db8::1", 2: "NS ns", 5: "CNAME www", 12: "PTR www", _MX: "MX 10 mail",
    6: "SOA ns hostmaster 1 1h 15m 2w 1m", _TXT: 'TXT "text"', _SRV: "SRV 0 5 5060 sip", 64: "SVCB 1 .",
    65: "HTTPS 1 . alpn=h2", 257: 'CAA 0 issue "ca.example"',
}  # fmt: skip
#: NID and L64: their data end with four groups of hexadecimal digits (RFC 6742, 2.1.2 and 2.3.2). BIND writes these
#: without leading zeros, which dnspython needs.
_GROUPS: Final = frozenset({104, 106})
#: Types with a host's name at the end, where an address is a mistake.
_HOSTS: Final = frozenset({2, 5, _MX, _SRV})

#: Types of RFC 1035, 3.3 that dnspython has no class for; each is registered with a class of the same format.
_LIKE: Final = {3: "MD", 4: "MF", 7: "MB", 8: "MG", 9: "MR", 14: "MINFO"}
for _type, _text in _LIKE.items():
    if dns.rdata.get_rdata_class(dns.rdataclass.IN, _type) is dns.rdata.GenericRdata:
        _class = dns.rdtypes.ANY.RP.RP if _text == "MINFO" else dns.rdtypes.nsbase.NSBase
        dns.rdata.register_type(_class, _type, _text)


class Entry(NamedTuple):
    """One record, with its file and line; names are wire octets in the case of the file."""

    owner: bytes
    type: int
    ttl: int
    rdata: bytes
    path: str
    line: int


class Report:
    """
    The mistakes and the warnings of a zone: the first ones in full, and the number of the others.

    Attributes:
        mistakes: why the zone cannot be served.
        wants_soa: whether a record with a mistake, or in an unread file, may be the SOA record.
    """

    def __init__(self) -> None:
        """Begin with no mistake and no warning."""
        self.mistakes: list[ZoneError] = []
        self.wants_soa = False
        self._warnings: list[str] = []
        self._count = 0

    def mistake(self, error: ZoneError) -> None:
        """Add *error*."""
        self.mistakes.append(error)

    @property
    def full(self) -> bool:
        """Whether there are so many mistakes that reading should stop."""
        return len(self.mistakes) >= MOST_MISTAKES

    def warn(self, text: str, path: str | Path | None = None, line: int | None = None) -> None:
        """Add the warning *text*."""
        self._count += 1
        if self._count <= MOST_LISTED:
            self._warnings.append(str(ZoneError(text, path, line)))

    @property
    def warnings(self) -> list[str]:
        """The warnings, one line each."""
        return listed(self._warnings, self._count, "warnings")

    def check(self) -> None:
        """
        Return if there is no mistake.

        Raises:
            ZoneError: all mistakes, one line each, by file and line; it has the file and the line of the first.
        """
        if not self.mistakes:
            return
        paths = list(dict.fromkeys(str(error.path) for error in self.mistakes))
        first, *others = sorted(self.mistakes, key=lambda error: (paths.index(str(error.path)), error.line or 0))
        lines = listed([first.message, *map(str, others)], len(self.mistakes), "mistakes")
        if self.full:
            lines.append("the rest was not read")
        raise ZoneError("\n".join(lines), first.path, first.line)


def listed(lines: list[str], count: int, what: str) -> list[str]:
    """Return the first of *lines*, and a line with how many of *count* are left out."""
    return lines[:MOST_LISTED] + [f"and {count - MOST_LISTED:,} more {what}"] * (count > MOST_LISTED)


class _TooMuchError(ZoneError):
    """A mistake after which reading stops."""


class _RecordError(dns.exception.SyntaxError):
    """A mistake in one record, with a message of this module; dnspython lets it pass."""


class _Token(dns.tokenizer.Token):
    """A word or a quoted string, and whether there is a blank before it."""

    def __init__(self, ttype: int, value: str, spaced: bool = True) -> None:  # noqa: FBT001, FBT002 - as a tuple's field
        self.ttype, self.value, self.spaced = ttype, value, spaced
        self.has_escape, self.comment = "\\" in value, None


_END: Final = _Token(EOL, "\n")
_SPACE: Final = _Token(dns.tokenizer.WHITESPACE, " ")


class _Record(dns.tokenizer.Tokenizer):
    """
    The tokens of one record (or directive), for dnspython's parsers of data.

    Attributes:
        line: the line that it begins on.
        tokens: its words and quoted strings, without parentheses and comments.
        leading: whether it begins with a blank: then its owner is the one of the record before.
        cut: whether a comment begins in the middle of a word.
        fault: what is wrong with its parentheses and quotes, and the line of that.
        odd: warnings: what can be served but is probably a mistake.
    """

    def __init__(self, line: int, *, leading: bool, tokens: list[_Token]) -> None:
        """Begin before the first of *tokens*. dnspython's own initialiser is for reading a file."""
        self.line, self.leading, self.tokens = line, leading, tokens
        self.at = 0
        self.cut = False
        self.fault: tuple[str, int] | None = None
        self.odd: list[str] = []
        self.tails: tuple[str, ...] = ()

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:  # noqa: ARG002, FBT001, FBT002
        """Return the next token; after the last one, the end of the line."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else _END
        if want_leading and token.spaced:
            return _SPACE
        self.at += 1
        return token

    def unget(self, token: dns.tokenizer.Token) -> None:
        """Return *token*, the last one that `get` returned, to the tokens to read."""
        self.at -= token is not _SPACE

    @property
    def last(self) -> str:
        """The token that was read last, for a message; "" at the end of the line."""
        return shown(self.tokens[self.at - 1].value) if 0 < self.at <= len(self.tokens) else ""

    def get_ttl(self) -> int:
        """Return the next token, a time in the data of SOA (RFC 1035, 3.3.13), in seconds."""
        return _seconds(self.get_identifier(), 2**32 - 1)

    def get_eol_as_token(self) -> dns.tokenizer.Token:
        """Return the end of the line, which must be next."""
        token = self.get()
        if not token.is_eol():
            raise _RecordError(f"{self.last} is one word too many")
        return token

    def as_identifier(self, token: dns.tokenizer.Token) -> str:
        """Return the text of *token*, which must be a word."""
        self._check_word(token)
        return str(token.value)

    def as_int(self, token: dns.tokenizer.Token, base: int = 10) -> int:
        """Return *token* as a number."""
        self._check_word(token)
        try:
            return super().as_int(token, base)
        except (dns.exception.DNSException, ValueError):
            raise _RecordError(f"{self.last} is no number") from None

    def as_name(
        self,
        token: dns.tokenizer.Token,
        origin: dns.name.Name | None = None,
        relativize: bool = False,  # noqa: ARG002, FBT001, FBT002
        relativize_to: dns.name.Name | None = None,  # noqa: ARG002
    ) -> dns.name.Name:
        """Return *token* as an absolute name; a relative one is completed with *origin*."""
        self._check_word(token)
        value = token.value
        plain = PLAIN.fullmatch(value) is not None
        try:
            if plain and value.endswith("."):
                return dns.name.Name(value.encode().split(b"."))
            if value == "@" and origin is not None:
                return origin
            name = None if plain else parse_name(value, None)
            if name is not None and "@" in value and "\\@" not in value:
                what = "has an @ in a name: a mailbox is written with a dot, as hostmaster.example.org."
                self.odd.append(f"{shown(value)} {what}")
            if name is not None and name.is_absolute():
                return name
            if origin is None:
                raise _RecordError(
                    "a relative name, and there is no origin to complete it: put '$ORIGIN example.org.' at the top "
                    "(your zone's name, with the final dot)"
                )
            if f".{value.lower()}".endswith(self.tails):
                self.odd.append(f"{shown(value)} has no final dot, so it is {shown(f'{value}.{origin}')}")
            if plain:
                return dns.name.Name((*value.encode().split(b"."), *origin.labels))
            assert name is not None
            return name.concatenate(origin)
        except dns.name.NameTooLong:
            raise _RecordError(f"{shown(value)} makes a name of more than 255 octets") from None
        except ValueError as error:
            raise _RecordError(str(error)) from error

    def get_word(self) -> str:
        """Return the next token, a word, with its escapes."""
        token = self.get()
        self._check_word(token)
        return str(token.value)

    def _check_word(self, token: dns.tokenizer.Token) -> None:
        if token.is_quoted_string():
            raise _RecordError(f'"{self.last[1:-1]}" must stand without quotes')
        if not token.is_identifier():
            raise _RecordError("the line is not complete")


def read(path: str | Path, origin: str | None = None, report: Report | None = None) -> Iterator[Entry]:
    """
    Yield the records of the file *path* and of the files that it includes, in the order of the text.

    Args:
        path: the file, UTF-8.
        origin: completes relative names until the first ``$ORIGIN``. Without either, the owner of the SOA record
            completes them from there on; it has to be absolute.
        report: gets the mistakes (the file cannot be read, is not text, is too long, or breaks the syntax) and the
            warnings.

    Raises:
        ZoneError: without *report*: the mistakes, when all has been read.
    """
    found = Report() if report is None else report
    try:
        start = dns.name.from_text(origin) if origin is not None else None
    except dns.exception.DNSException as error:
        found.mistake(ZoneError(f"the origin {origin!r} is not a domain name: {error}", path))
    else:
        try:
            reader = _Reader(found, start)
            reader.open(str(path))
            yield from reader.entries()
        except ZoneError as error:
            found.mistake(error)
            found.wants_soa = True
    if report is None:
        found.check()


class _Reader:
    """
    Reads one file, and those that it includes.

    Attributes:
        left: how many octets, lines and files the zone may still have; one list for all files.
        within: the files that include this one, and this one.
        path, text: of the file.
        line: the line that the present record begins on; None before the first.
    """

    def __init__(self, report: Report, origin: dns.name.Name | None) -> None:
        """Begin without a file."""
        self.report = report
        self.left = [MAX_OCTETS, MAX_LINES, MAX_FILES]
        self.within: tuple[tuple[int, int], ...] = ()
        self.path = self.text = ""
        self.line: int | None = None
        self.owner: dns.name.Name | None = None
        self.default_ttl: int | None = None
        self.last_ttl: int | None = None
        self.set_origin(origin)

    def set_origin(self, origin: dns.name.Name | None) -> None:
        """Complete relative names with *origin* from now on."""
        self.origin = origin
        labels = [] if origin in {None, dns.name.root} else str(origin).lower().split(".")[:-1]
        # A relative name that ends with the origin, or with a name above it (but a top-level domain), is odd.
        self.tails = tuple(f".{'.'.join(labels[at:])}" for at in range(len(labels)) if at == 0 or at < len(labels) - 1)

    def open(self, path: str) -> None:
        """
        Read the file *path*, within the limits.

        Raises:
            ZoneError: it cannot be read, is not text, or is too large.
        """
        self.path, self.line = path, None
        self._take("files", 1)
        try:
            status = Path(path).stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise ZoneError("a device, a pipe or a socket; a zone file must be an ordinary file", path)
            if (status.st_dev, status.st_ino) in self.within:
                raise ZoneError("does the file include itself? It is being read", path)
            self._take("octets", status.st_size)
            with Path(path).open("rb") as file:
                octets = file.read(status.st_size)
        except OSError as error:
            raise ZoneError(f"cannot read the zone file: {error.strerror}", path) from error
        self.within = (*self.within, (status.st_dev, status.st_ino))
        try:
            text = octets.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ZoneError("not text in UTF-8; a zone file is an RFC 1035 master file", path, line) from error
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise ZoneError("not text (a NUL octet); a zone file is an RFC 1035 master file", path, line)
        self.text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
        self._take("lines", self.text.count("\n"))

    def _take(self, what: str, count: int) -> None:
        """
        Count *count* "octets", "lines" or "files" against the limits of the zone.

        Raises:
            _TooMuchError: the zone has too many.
        """
        kind, most = {"octets": (0, MAX_OCTETS), "lines": (1, MAX_LINES), "files": (2, MAX_FILES)}[what]
        self.left[kind] -= count
        if self.left[kind] < 0:
            message = f"a zone may have {most:,} {what} in all, and this is more: split it"
            raise _TooMuchError(message, self.path, self.line)

    def entries(self) -> Iterator[Entry]:
        """Yield the records of this file, and of those that it includes; report mistakes and go on after them."""
        for record in _records(self.text):
            if self.report.full:
                return
            self.line = record.line
            if record.fault:
                self._mistake(record, record.fault[0], record.fault[1])
                continue
            first = record.tokens[0]
            try:
                if first.ttype == IDENTIFIER and first.value.startswith("$") and not record.leading:
                    yield from self._directive(record)
                else:
                    yield self._entry(record)
            except _TooMuchError:
                raise
            except ZoneError as error:  # an included file that cannot be read
                self.report.mistake(error)
                self.report.wants_soa = True
            except Exception as error:  # noqa: BLE001 - whatever dnspython raises, the other records are read
                self._mistake(record, _words(error), record.line)
            self._warn(record)

    def _warn(self, record: _Record) -> None:
        for text in record.odd:
            self.report.warn(text, self.path, record.line)

    def _mistake(self, record: _Record, text: str, line: int) -> None:
        self.report.wants_soa |= any(token.value.upper() == "SOA" for token in record.tokens)
        self.report.mistake(ZoneError(text, self.path, line))

    def _entry(self, record: _Record) -> Entry:
        """Return the entry that the tokens of *record* make."""
        record.tails = self.tails
        if not record.leading:
            self.owner = None  # if this is no name, the next record must not have an earlier owner
            self.owner = record.get_name(self.origin)
        if self.owner is None:
            raise _RecordError("no owner: a line that begins with a blank continues the owner of the one before")
        ttl, rtype = self._head(record)
        rdata = self._data(record, rtype)
        if ttl is None:
            ttl = self.default_ttl if self.default_ttl is not None else self.last_ttl
        if rtype == dns.rdatatype.SOA:
            if self.last_ttl is None and self.default_ttl is None:
                minimum = int.from_bytes(rdata[-4:])  # formerly the default TTL (RFC 2308, 4)
                self.last_ttl = minimum if minimum <= MAX_TTL else 0  # RFC 2181, 8
                ttl = self.last_ttl if ttl is None else ttl
            if self.origin is None:
                self.set_origin(self.owner)
        if ttl is None:
            raise _RecordError("no TTL: put '$TTL 1h' at the top")
        return Entry(self.owner.to_wire() or b"", rtype, ttl, rdata, self.path, record.line)

    def _head(self, record: _Record) -> tuple[int | None, int]:
        """Return the TTL, if there is one, and the type; the class may come before or after the TTL."""
        ttl, has_class = None, False
        while True:
            token = record.get()
            if not token.is_identifier():
                before = f" before {record.last}" if record.last else ""
                raise _RecordError(f"a type is missing{before}: 'www A 192.0.2.1'")
            word = token.value.upper()
            rtype = _type_of(word)
            if rtype is not None:
                break
            if ttl is None and word[0].isdigit() and not _is_address(word):
                ttl = self.last_ttl = _ttl(token.value)
            elif not has_class and _is_class(word):
                has_class = True
            else:
                raise _RecordError(_no_type(record, word))
        if dns.rdatatype.is_metatype(rtype) or not rtype:
            raise _RecordError(f"{dns.rdatatype.to_text(rtype)} is a type for questions: no record can have it")
        return ttl, rtype

    def _data(self, record: _Record, rtype: int) -> bytes:
        """Return the data of *record*, which begin with the next token."""
        start = record.at
        if rtype in _GROUPS and len(record.tokens) == start + 2:
            last = record.tokens[-1]
            last.value = ":".join(group.zfill(4) for group in last.value.split(":"))
        try:
            kind = dns.rdatatype.RdataType.make(rtype)
            rdata = dns.rdata.from_text(dns.rdataclass.IN, kind, record, self.origin, relativize=False).to_wire()
        except Exception as error:
            words = [token.value for token in record.tokens[start:]]
            raise _RecordError(_why(record, rtype, words, error)) from error
        if record.cut and rtype in {_TXT, _SPF}:
            record.odd.append("the text ends at the ';', which begins a comment: put it in quotes if it belongs to it")
        if rtype in _HOSTS and _is_address(word := record.tokens[-1].value.removesuffix(".")):
            record.odd.append(f"{word} is an address where a name belongs: name the host, and give that an A record")
        return rdata or b""

    def _directive(self, record: _Record) -> Iterator[Entry]:
        """Carry out a directive (RFC 1035, 5.1; $TTL: RFC 2308, 4; $GENERATE: BIND)."""
        word = record.get_identifier().upper()
        if word == "$ORIGIN":
            self.set_origin(record.get_name(self.origin))
            record.get_eol()
        elif word == "$TTL":
            self.default_ttl = _ttl(record.get_word())
            record.get_eol()
        elif word == "$INCLUDE":
            yield from self._include(record)
        elif word == "$GENERATE":
            yield from self._generate(record)
        else:
            raise _RecordError(f"no such directive: {shown(word)}; there are $ORIGIN, $TTL, $INCLUDE and $GENERATE")

    def _include(self, record: _Record) -> Iterator[Entry]:
        """Yield the records of the included file; its TTLs stay in force after it, its origin and last owner do not."""
        if len(record.tokens) < 2:
            raise _RecordError("$INCLUDE needs a file: '$INCLUDE hosts.zone'")
        path = str(Path(self.path).parent / record.get_string())
        inner = copy.copy(self)
        if not (token := record.get()).is_eol():
            inner.set_origin(record.as_name(token, self.origin))
            record.get_eol()
        if len(self.within) > MAX_DEPTH:
            raise _RecordError(f"$INCLUDE is nested more than {MAX_DEPTH} deep")
        try:
            inner.open(path)
        except ZoneError as error:
            if error.line is not None:
                raise
            raise type(error)(f"$INCLUDE {printable(path)[:300]}: {error.message}", self.path, record.line) from error
        yield from inner.entries()
        self.default_ttl, self.last_ttl = inner.default_ttl, inner.last_ttl

    def _generate(self, record: _Record) -> Iterator[Entry]:
        """Yield the records of ``$GENERATE start-stop[/step] owner [TTL] [class] type data``."""
        match = _RANGE.fullmatch(record.get_word())
        start, stop, step = (int(number or 1) for number in match.groups()) if match else (1, 0, 0)
        if start > stop or not step:
            raise _RecordError("$GENERATE begins with a range, as 1-10 or 0-100/5, then come owner, type and data")
        count = (stop - start) // step + 1
        if count > self.left[1]:
            raise _RecordError(f"$GENERATE makes {count:,} records; a zone may have {MAX_LINES:,} lines with these")
        self._take("lines", count)
        owner = record.get_word()
        head = [record.get_word()]
        while _type_of(head[-1].upper()) is None and len(head) < 3:
            head.append(record.get_word())
        rest = record.tokens[record.at :]
        if len(rest) == 1 and rest[0].ttype == QUOTED:  # BIND's form for data with blanks
            data = rest[0].value.replace('\\"', '"')
        else:
            data = "".join(" " * token.spaced + _written(token) for token in rest)
        before = self.owner
        for number in range(start, stop + 1, step):
            line = f"{_numbered(owner, number)} {' '.join(head)} {_numbered(data, number)}"
            self._take("octets", len(line))
            one = next(_records(line), None)
            if one is None or one.fault:
                raise _RecordError(f"{shown(line)}: {one.fault[0] if one is not None and one.fault else 'nothing'}")
            one.line = record.line
            yield self._entry(one)
            self._warn(one)
        self.owner = before


def _records(text: str) -> Iterator[_Record]:
    """Yield the records of *text*, each of which may have several lines; empty lines are skipped."""
    at, line, size = 0, 0, len(text)
    while at < size:
        start, at = at, _line_end(text, at)
        line += 1
        leading = text[start] in " \t"
        if at - start > MAX_RECORD:
            record = _Record(line, leading=leading, tokens=[])
            record.fault = f"a line of {at - start:,} characters; a record has {MAX_RECORD:,} at most", line
        elif _SPECIAL.search(text, start, at) is None:
            record = _Record(
                line, leading=leading, tokens=[_Token(IDENTIFIER, word) for word in _WORD.findall(text, start, at)]
            )
        else:
            record = _Record(line, leading=leading, tokens=[])
            opened: list[int] = []
            _split(record, text, start, at, opened, line)
            while opened and at < size and at - start <= MAX_RECORD:
                line += 1
                before, at = at + 1, _line_end(text, at + 1)
                _split(record, text, before, at, opened, line)
            if opened:
                what = "the parenthesis that opens here is not closed; what follows was not read"
                what += "; perhaps a ';' hides its end" * record.cut
                record.fault, at = (what, opened[0]), size
        at += 1
        if record.tokens or record.fault:
            yield record


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _split(record: _Record, text: str, start: int, end: int, opened: list[int], line: int) -> None:
    """
    Append the tokens of one line to *record*.

    Args:
        record: gets the tokens, and what is wrong with them.
        text: the file.
        start: the offset of the line in it.
        end: the offset of its end.
        opened: the line numbers of the open parentheses; the function updates them.
        line: the line's number.
    """
    spaced = True
    for match in _PARTS.finditer(text, start, end):
        kind = match.lastindex
        if kind == _BLANK:
            spaced = True
            continue
        if kind == _BARE:
            record.tokens.append(_Token(IDENTIFIER, match[_BARE], spaced))
        elif kind == _QUOTE and match[_QUOTE]:
            record.tokens.append(_Token(QUOTED, match[_QUOTED], spaced))
        elif kind == _COMMENT:
            record.cut |= not spaced and record.tokens[-1].ttype == IDENTIFIER
        elif kind == _PARENTHESIS and match[0] == "(":
            opened.append(line)
        elif kind == _PARENTHESIS and opened:
            opened.pop()
        elif record.fault is None:
            what = {_QUOTE: "the quote that opens here is not closed in its line", _PARENTHESIS: "a ')' without a '('"}
            record.fault = what.get(kind or 0, "a backslash at the end of the line"), line
        spaced = kind == _PARENTHESIS


def _written(token: _Token) -> str:
    return f'"{token.value}"' if token.ttype == QUOTED else token.value


def _numbered(template: str, number: int) -> str:
    """Return *template* of $GENERATE with *number* filled in, as BIND does it."""

    def put(match: re.Match[str]) -> str:
        if match[1] or match[2]:
            return match[1] or match[2]
        if match[3] is None:
            return str(number)
        form = _FORMAT.fullmatch(match[3])
        if form is None or int(form[2] or 0) > _WIDEST:
            raise _RecordError(f"{shown(match[3])} is no format: ${{offset,width,base}}, the base one of d o x X n N")
        value, width, base = number + int(form[1]), int(form[2] or 0), form[3] or "d"
        if base not in "nN":
            return format(value, base).zfill(width)
        if value < 0:
            raise _RecordError(f"{value} has no nibbles: the offset makes it negative")
        # BIND counts the dots, too, and ends with one if the width is even
        digits = format(value, "x" if base == "n" else "X").zfill((width + 1) // 2)
        return ".".join(reversed(digits)) + "." * (len(digits) * 2 == width)

    return _NUMBER.sub(put, template)


def _ttl(text: str) -> int:
    """Return the TTL *text* in seconds (RFC 2181, 8)."""
    return _seconds(text, MAX_TTL)


def _seconds(text: str, most: int) -> int:
    """Return the time *text* in seconds, at most *most* (units: BIND)."""
    try:
        seconds = int(text[:11]) if text.isascii() and text.isdigit() else dns.ttl.from_text(text[:32])
    except dns.exception.DNSException:
        what = "is no TTL: seconds, or numbers with w, d, h, m and s behind them, as 1h30m"
        raise _RecordError(f"{shown(text)} {what}") from None
    if seconds > most:
        raise _RecordError(f"{shown(text)} is too long a TTL: {most} seconds at most (RFC 2181, 8)")
    return seconds


@lru_cache(maxsize=256)
def _type_of(word: str) -> dns.rdatatype.RdataType | None:
    """Return the type called *word*; None if there is none."""
    try:
        return dns.rdatatype.from_text(word)
    except (dns.exception.DNSException, ValueError):
        return None


def _is_class(word: str) -> bool:
    """Return whether *word* is the class IN; no other can be served."""
    try:
        number = dns.rdataclass.from_text(word)
    except (dns.exception.DNSException, ValueError):
        return False
    if number != dns.rdataclass.IN:
        raise _RecordError(f"class {shown(word)[1:-1]}: only records of class IN are served; remove it")
    return True


def _is_address(word: str) -> bool:
    """Return whether *word* looks like an IPv4 address, valid or not, or like an IPv6 one."""
    return ":" in word or (word.count(".") == 3 and word.replace(".", "").isdigit())


def _no_type(record: _Record, word: str) -> str:
    """Return what is wrong with *word*, which should be a type."""
    if _is_address(word):
        return f"a type is missing before {record.last}: 'www A 192.0.2.1'"
    common = [each.split()[0] for each in _EXAMPLES.values()]
    names = difflib.get_close_matches(word[:20], common, cutoff=0.5)
    names = names or difflib.get_close_matches(word[:20], [each.name for each in dns.rdatatype.RdataType])
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    if record.leading and record.at == 1:
        hint += "If it is the owner, remove the blank before it. "
    return f"unknown type {record.last}: {hint}Types without a name are written as TYPE65280 \\# 2 abcd (RFC 3597)"


def _why(record: _Record, rtype: int, words: list[str], error: Exception) -> str:
    """Return what is wrong with the data *words*, which dnspython refuses for *rtype*, and the remedy."""
    name = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rtype))
    example = _EXAMPLES.get(rtype)
    reason = _words(error)
    if record.at > len(record.tokens):
        reason = "the data are not complete"
    elif isinstance(error.__cause__ or error, _RecordError):
        pass
    elif rtype == _A and words:
        reason = f"{shown(words[0])[1:-1]} is no IPv4 address: four numbers from 0 to 255 with dots between"
        if ":" in words[0]:
            reason, example = f"{shown(words[0])[1:-1]} is no IPv4 address", f"AAAA {words[0][:40]}"
    elif rtype == _AAAA and words:
        reason = f"{shown(words[0])[1:-1]} is no IPv6 address: up to eight numbers from 0 to ffff with colons between"
    elif reason == "string too long":
        size = max(map(len, words))
        reason = f"a string of {size:,} octets, and 255 are the most: write it as several strings, each in quotes"
    elif "generic rdata does not start" in reason:
        reason = f"data of this type are written as '{name} \\# 2 abcd', the length and the octets in hex (RFC 3597, 5)"
    elif reason == _words(dns.exception.SyntaxError()):
        reason = f"{record.last} is wrong"
    return f"{name}: {reason}" + (f"; write it like '{example}'" if example else "")


def _words(error: BaseException) -> str:
    """Return dnspython's message for *error*, in one line."""
    return shown(" ".join(str(error).split()).rstrip("."), 300)[1:-1] or type(error).__name__


