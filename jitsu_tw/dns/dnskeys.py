"""
Key pairs of zones in BIND's files, ``K<zone>.+013+<tag>.key`` and ``.private``, and signatures by them.

A key is a combined signing key (flags 257): it signs all RRsets of its zone. A file that is damaged, that has another
kind of key, or that others may read is an error with its path and the remedy, never a key that is silently left out.
All functions that take a directory block.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
from base64 import b64decode, b64encode
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs
import dns.exception
import dns.zonefile
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jitsu_tw.dns.keytimes import Times
from jitsu_tw.dns.wire import ROOT, key_tag, to_text
from jitsu_tw.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping
    from pathlib import Path

#: The algorithms (RFC 6605; RFC 8080), with BIND's names.
ECDSAP256SHA256: Final = 13
ED25519: Final = 15
ALGORITHMS: Final = {ECDSAP256SHA256: "ECDSAP256SHA256", ED25519: "ED25519"}

#: The flags of a key at the apex that the parent may know (RFC 4034, 2.1.1: ZONE and SEP), and the protocol (2.1.2).
FLAGS: Final = 257
PROTOCOL: Final = 3

#: The digest of DS and CDS records: SHA-256 (RFC 4509).
SHA_256: Final = 2

#: Octets of the largest file that is read; those that are written have less than 1,000.
LARGEST: Final = 4096

#: Characters of the longest name of a file without what follows the zone's name: Linux has 255 octets for all.
LONGEST_STEM: Final = 255 - len(".+013+12345.private.new")

#: The most key pairs of one zone.
MOST_KEYS: Final = 32

#: The lines of a private file that have times, in BIND's order, and the fields of `Times`.
_TIMES: Final = {
    "Created": "created", "Publish": "publish", "Activate": "activate", "Inactive": "inactive", "Delete": "delete",
    "SyncPublish": "sync_publish", "SyncDelete": "sync_delete",
}  # fmt: skip
_TIME: Final = "%Y%m%d%H%M%S"

_NAME: Final = re.compile(r"(K.*\.)\+(\d{3})\+(\d{5})\.(key|private)")
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


class KeyFileError(ConfigError):
    """A key that cannot be used, or directory of keys: one line with the path and the remedy."""


class DamagedKeyError(KeyFileError):
    """A key of which a file is missing, damaged, or that of another key; the remedy is added to the message."""

    def __init__(self, message: str, path: Path) -> None:
        """Tell what is wrong with the file at *path*."""
        remedy = "restore it, or if there is no copy, end Jitsu, and: jitsuctl dnssec init --lost"
        super().__init__(f"{message}; {remedy}", path)


@attrs.frozen
class Key:
    """
    A key pair.

    Attributes:
        zone: its name, in lower case.
        algorithm: 13 or 15.
        public: the public key, as in its DNSKEY record.
        times: when it does what.
        private: the private key.
    """

    zone: bytes
    algorithm: int
    public: bytes
    times: Times
    private: EllipticCurvePrivateKey | Ed25519PrivateKey = attrs.field(repr=False, eq=False)

    @classmethod
    def of(
        cls, zone: bytes, algorithm: int, private: EllipticCurvePrivateKey | Ed25519PrivateKey, times: Times
    ) -> Key:
        """Return the pair of a *private* key."""
        if isinstance(private, Ed25519PrivateKey):
            public = private.public_key().public_bytes_raw()
        else:  # without the octet that says that it is not compressed (SEC 1, 2.3.3)
            public = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        return cls(zone, algorithm, public, times, private)

    @classmethod
    def made(cls, zone: bytes, algorithm: int, times: Times) -> Key:
        """Return a new pair."""
        if algorithm == ED25519:
            return cls.of(zone, algorithm, Ed25519PrivateKey.generate(), times)
        return cls.of(zone, algorithm, generate_private_key(SECP256R1()), times)

    @property
    def dnskey(self) -> bytes:
        """The data of its DNSKEY record (RFC 4034, 2.1)."""
        return FLAGS.to_bytes(2) + bytes([PROTOCOL, self.algorithm]) + self.public

    @property
    def tag(self) -> int:
        """The key tag (RFC 4034, appendix B)."""
        return key_tag(self.dnskey)

    @property
    def ds(self) -> bytes:
        """The data of its DS record (RFC 4034, 5.1.4), and of its CDS record (RFC 7344, 3.1)."""
        digest = hashlib.sha256(self.zone + self.dnskey).digest()
        return self.tag.to_bytes(2) + bytes([self.algorithm, SHA_256]) + digest

    @property
    def stem(self) -> str:
        """The name of its files, without ``.key`` and ``.private``."""
        return f"{stem(self.zone)}+{self.algorithm:03}+{self.tag:05}"

    def sign(self, octets: bytes) -> bytes:
        """Return the signature of *octets*, as RRSIG records have it (RFC 6605, 4; RFC 8080, 4)."""
        if isinstance(self.private, Ed25519PrivateKey):
            return self.private.sign(octets)
        r, s = decode_dss_signature(self.private.sign(octets, ECDSA(SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    def texts(self) -> tuple[str, str]:
        """Return what is in its private file, and in its public one, as ``dnssec-keygen`` writes them."""
        if isinstance(self.private, Ed25519PrivateKey):
            secret = self.private.private_bytes_raw()
        else:
            secret = self.private.private_numbers().private_value.to_bytes(32)
        times = {label: at for label, field in _TIMES.items() if (at := getattr(self.times, field)) is not None}
        name = to_text(self.zone).removesuffix(".") + "."
        private = [
            "Private-key-format: v1.3",
            f"Algorithm: {self.algorithm} ({ALGORITHMS[self.algorithm]})",
            f"PrivateKey: {b64encode(secret).decode()}",
            *(f"{label}: {datetime.fromtimestamp(at, UTC):{_TIME}}" for label, at in times.items()),
        ]
        public = [
            f"; This is a key-signing key, keyid {self.tag}, for {name}",
            *(
                f"; {label}: {moment:{_TIME}} ({moment:%a %b %e %H:%M:%S %Y})"
                for label, at in times.items()
                for moment in [datetime.fromtimestamp(at, UTC)]
            ),
            f"{name} IN DNSKEY {FLAGS} {PROTOCOL} {self.algorithm} {b64encode(self.public).decode()}",
        ]
        return "\n".join([*private, ""]), "\n".join([*public, ""])


def stem(zone: bytes) -> str:
    """Return how the names of the files of *zone*'s keys begin: ``Kexample.org.``, other octets as ``%2F``."""
    text, at = "K", 0
    while size := zone[at]:
        label = zone[at + 1 : at + 1 + size].lower()
        text += "".join(chr(octet) if octet in _PLAIN else f"%{octet:02X}" for octet in label) + "."
        at += size + 1
    return text if zone != ROOT else "K."


# Reading


def read(directory: Path, zones: Iterable[bytes]) -> dict[bytes, tuple[Key, ...] | KeyFileError]:
    """
    Return the keys of each of *zones* in *directory*, or the error if one of the zone's cannot be used.

    Raises:
        KeyFileError: the directory cannot be read.
    """
    return {zone: _pairs(directory, zone, found) for zone, found in _halves(directory, zones).items()}


def _halves(directory: Path, zones: Iterable[bytes]) -> dict[bytes, dict[str, set[str]]]:
    """Return for each of *zones* the names of its keys in *directory*, without the suffixes, and their suffixes."""
    wanted = {stem(zone): zone for zone in zones}
    halves: dict[bytes, dict[str, set[str]]] = {zone: {} for zone in wanted.values()}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                zone = wanted.get(match[1]) if match is not None else None
                if match is None or zone is None:
                    continue
                halves[zone].setdefault(entry.name.removesuffix(f".{match[4]}"), set()).add(match[4])
    except OSError as error:
        message = f"the directory of keys cannot be read: {error.strerror}; make it, or give Jitsu its rights"
        raise KeyFileError(message, directory) from error
    return halves


def _pairs(directory: Path, zone: bytes, halves: Mapping[str, set[str]]) -> tuple[Key, ...] | KeyFileError:
    """Return the keys of *zone*, of which *halves* has the names and the halves that are there; or what is wrong."""
    if len(halves) > MOST_KEYS:
        message = f"more than {MOST_KEYS} keys of {to_text(zone)}: move those elsewhere that are not used"
        return KeyFileError(message, directory)
    try:
        return tuple(_pair(directory / name, zone, halves[name]) for name in sorted(halves))
    except KeyFileError as error:
        return error


def seen(directory: Path) -> object:
    """Return what differs after each change of the key files in *directory*; None if it cannot be read."""
    try:
        with os.scandir(directory) as entries:
            names = [entry for entry in entries if _NAME.fullmatch(entry.name)]
            return frozenset((one.name, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                             for one in names for about in [one.stat()])  # fmt: skip
    except OSError:
        return None


def _pair(path: Path, zone: bytes, halves: set[str]) -> Key:
    """Return the key of *zone* whose files are at *path*, without the suffixes, of which *halves* are there."""
    public, private = path.with_name(f"{path.name}.key"), path.with_name(f"{path.name}.private")
    for half, there, other in (("private", private, public), ("key", public, private)):
        if half not in halves:
            message = f"is missing; move {other.name} elsewhere as well if the zone has the key no more"
            raise DamagedKeyError(message, there)
    algorithm, tag = (int(part) for part in path.name.rsplit("+", 2)[1:])
    if algorithm not in ALGORITHMS:
        known = ", ".join(f"{number} ({name})" for number, name in ALGORITHMS.items())
        raise KeyFileError(f"a key of algorithm {algorithm}: Jitsu signs with {known}; move it elsewhere", public)
    dnskey = _dnskey(public, zone, algorithm)
    key = _private(private, zone, algorithm)
    if dnskey != key.public:
        raise DamagedKeyError(f"is not the private half of {public.name}", private)
    if key.tag != tag:
        raise DamagedKeyError(f"its name says key {tag}, but it is key {key.tag}", public)
    return key


def _dnskey(path: Path, zone: bytes, algorithm: int) -> bytes:
    """Return the public key in the file at *path*, which must be one of *zone*."""
    text = _text(path, private=False)
    try:
        (rrset,) = dns.zonefile.read_rrsets(text, rdclass=None, default_ttl=0, relativize=False)
        (record,) = rrset
        owner, fields = rrset.name.to_wire(), (record.flags, record.protocol, record.algorithm)
        public: bytes = record.key
    except (dns.exception.DNSException, ValueError, AttributeError) as error:
        raise DamagedKeyError("is damaged: it should have one DNSKEY record", path) from error
    if owner is None or owner.lower() != zone:
        raise DamagedKeyError(f"is not a key of {to_text(zone)}", path)
    if fields[0] == FLAGS - 1:
        message = "is a zone signing key (flags 256): Jitsu signs with one combined key (257); move the pair elsewhere"
        raise KeyFileError(message, path)
    if fields != (FLAGS, PROTOCOL, algorithm):
        raise DamagedKeyError(f"flags, protocol and algorithm should be {FLAGS} {PROTOCOL} {algorithm}", path)
    return public


def _private(path: Path, zone: bytes, algorithm: int) -> Key:
    """Return the key of *zone* whose private file is at *path*."""
    fields: dict[str, str] = {}
    for line in _text(path, private=True).splitlines():
        label, colon, value = line.partition(": ")
        if not colon or label in fields:
            raise DamagedKeyError(f"is damaged at {line[:20]!r}", path)
        fields[label] = value.strip()
    form, kind, secret = (fields.pop(label, "") for label in ("Private-key-format", "Algorithm", "PrivateKey"))
    if form not in {"v1.2", "v1.3"} or kind.split(" ")[0] != str(algorithm) or not secret:
        raise DamagedKeyError(f"should be a private key of algorithm {algorithm} in the format v1.3", path)
    if unknown := fields.keys() - _TIMES.keys():
        message = f"has {min(unknown)}, which Jitsu does not know: remove that, for a time with dnssec-settime"
        raise KeyFileError(message, path)
    try:
        times = Times(**{_TIMES[label]: _seconds(text) for label, text in fields.items()})
        octets = b64decode(secret, validate=True)
        if len(octets) > 32 or (len(octets) < 32 and algorithm == ED25519):  # BIND leaves out ECDSA's leading zeros
            raise ValueError(f"{len(octets)} octets")  # noqa: TRY301 -- as the library does for its own errors
        if algorithm == ED25519:
            return Key.of(zone, algorithm, Ed25519PrivateKey.from_private_bytes(octets), times)
        return Key.of(zone, algorithm, derive_private_key(int.from_bytes(octets), SECP256R1()), times)
    except ValueError as error:
        raise DamagedKeyError(f"is damaged ({error})", path) from error


def _text(path: Path, *, private: bool) -> str:
    """Return the text of a key's file; one that is large, or *private* and open to others, is not read."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise DamagedKeyError("is no regular file", path)
            if private and about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise KeyFileError("others than its owner may read the private key: chmod 600 it", path)
            octets = file.read(LARGEST + 1)
    except OSError as error:
        raise KeyFileError(f"cannot be read: {error.strerror}", path) from error
    if len(octets) > LARGEST:
        raise DamagedKeyError(f"is larger than {LARGEST} octets, so it is no key", path)
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError as error:
        raise DamagedKeyError("is damaged: it is not ASCII", path) from error


def _at_once(path: str, flags: int) -> int:
    """Open a file, and do not wait for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _seconds(text: str) -> int:
    return int(datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp())


# Writing


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """
    Keep other processes that use this from changing the keys in *directory*, which is made if it is missing.

    Raises:
        KeyFileError: the directory cannot be written to.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileExistsError, NotADirectoryError) as error:
        raise KeyFileError("is no directory: name one for the keys by dnssec.keys", directory) from error
    except OSError as error:
        message = f"keys cannot be kept here: {error.strerror}; make the directory, or give Jitsu its rights"
        raise KeyFileError(message, directory) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def make(directory: Path, zone: bytes, algorithm: int, times: Times, taken: Iterable[int] = ()) -> Key:
    """
    Make a new key of *zone*, and write its files; the directory is `locked`.

    Args:
        directory: of the keys.
        zone: its name.
        algorithm: 13 or 15.
        times: of the key.
        taken: tags of other keys of the zone, which the new key's is unlike.

    Raises:
        KeyFileError: it cannot be written, the zone's name is too long, or the zone has `MOST_KEYS` already.
    """
    if len(stem(zone)) > LONGEST_STEM:
        message = f"{to_text(zone)} has too long a name for the files of keys: have dnssec.zones name other zones alone"
        raise KeyFileError(message, directory)
    others = set(taken)
    if len(others) >= MOST_KEYS:
        message = f"{MOST_KEYS} keys of {to_text(zone)}: move those elsewhere that were removed from the zone"
        raise KeyFileError(message, directory)
    while (key := Key.made(zone.lower(), algorithm, times)).tag in others:
        pass
    write(directory, key, new=True)
    return key


def finish(directory: Path, zone: bytes, known: Container[str]) -> None:
    """
    Write the public files of new keys of *zone* that a process did not come to write; the directory is `locked`.

    Args:
        directory: of the keys.
        zone: its name.
        known: the algorithms and tags, as ``013+12345``, of the keys whose public file must be there.

    Raises:
        KeyFileError: a private file cannot be used, or a public one not be written.
    """
    for private in directory.glob(f"{stem(zone)}+*.private"):
        match, public = _NAME.fullmatch(private.name), private.with_suffix(".key")
        if match is None or public.exists() or f"{match[2]}+{match[3]}" in known or int(match[2]) not in ALGORITHMS:
            continue
        key = _private(private, zone, int(match[2]))
        if key.stem == private.name.removesuffix(".private"):
            write(directory, key)


def salvage(directory: Path, zone: bytes) -> list[str]:
    """
    Keep what is left of the keys of *zone* of which a file is missing or damaged; the directory is `locked`.

    Where the private file is whole, the public one is written again. What cannot be used gets the suffix ``.lost``.

    Returns:
        what was done, as lines.

    Raises:
        KeyFileError: a private file is open to others, or a file cannot be read, renamed or written.
    """
    lines = []
    for stem_, halves in sorted(_halves(directory, [zone])[zone].items()):
        path = directory / stem_
        try:
            _pair(path, zone, halves)
        except DamagedKeyError:
            key = _left(path, zone) if "private" in halves else None
            for half in sorted(halves if key is None else halves - {"private"}):
                _set_aside(directory / f"{stem_}.{half}")
            if key is None:
                lines.append(f"gave the files of the key {stem_}, which cannot be used, the suffix .lost")
            else:
                write(directory, key)
                lines.append(f"wrote {stem_}.key again: its private half is whole")
    return lines


def _left(path: Path, zone: bytes) -> Key | None:
    """Return the key of *zone* in the private file at *path*, without the suffix; None if that is damaged."""
    try:
        key = _private(path.with_name(f"{path.name}.private"), zone, int(path.name.split("+")[-2]))
    except DamagedKeyError:
        return None
    return key if key.stem == path.name else None


def _set_aside(path: Path) -> None:
    """Give the file at *path* the suffix ``.lost``, unless there is such a file."""
    try:
        os.link(path, path.with_name(f"{path.name}.lost"))
        path.unlink()
    except OSError as error:
        raise KeyFileError(f"cannot get the suffix .lost: {error.strerror}; move it elsewhere", path) from error


def write(directory: Path, key: Key, *, new: bool = False) -> None:
    """
    Write the files of *key*, the private one first; those that are there are replaced, unless it is *new*.

    Raises:
        KeyFileError: that cannot be done; each file is what it was before, or new.
    """
    private, public = key.texts()
    done: list[Path] = []
    for suffix, mode, text in (("private", 0o600, private), ("key", 0o644, public)):
        path = directory / f"{key.stem}.{suffix}"
        try:
            _replace(path, mode, text, os.link if new else os.replace)
        except OSError as error:
            for one in done if new else ():
                one.unlink(missing_ok=True)
            raise KeyFileError(f"cannot be written: {error.strerror}", path) from error
        done.append(path)


def _replace(path: Path, mode: int, text: str, put: Callable[[Path, Path], None]) -> None:
    """Write *text* to the file at *path* by way of another one, so that it is never there in part."""
    part = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        part.unlink()  # of a process that was killed
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            with os.fdopen(file, "w", encoding="ascii", closefd=False) as stream:
                stream.write(text)
            os.fsync(file)
        finally:
            os.close(file)
        put(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put(directory: Path, keys: Iterable[Key], times: Mapping[int, Times]) -> None:
    """
    Write those of *keys* again whose tags have new *times*; the directory is `locked`.

    Raises:
        KeyFileError: a file cannot be written.
    """
    for key in keys:
        if key.tag in times:
            write(directory, attrs.evolve(key, times=times[key.tag]))
