"""Key pairs in BIND's files: BIND's programs are the oracle, and every damaged file is an error with a remedy."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import dns.dnssec
import dns.rdata
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from dns.dnssecalgs import get_algorithm_cls_from_dnskey
from dns.rdtypes.ANY.DNSKEY import DNSKEY
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns import dnskeys
from jitsu_tw.dns.dnskeys import (
    ECDSAP256SHA256,
    ED25519,
    LARGEST,
    LONGEST_STEM,
    MOST_KEYS,
    Key,
    KeyFileError,
    finish,
    locked,
    make,
    put,
    read,
    salvage,
    seen,
    stem,
    write,
)
from jitsu_tw.dns.keytimes import Times
from jitsu_tw.dns.wire import ROOT, from_text

ZONE = from_text("example.org")
TIMES = Times(created=1_800_000_000, publish=1_800_000_000, activate=1_800_000_000, sync_publish=1_800_003_600)


def run(*command: str | Path) -> str:
    """Return the output of a program, which must end well."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


class KeyTestCase(SynchronousTestCase):
    """Has an empty directory for keys."""

    def setUp(self) -> None:
        """Make it."""
        self.path = Path(self.mktemp())
        self.path.mkdir(mode=0o700)

    def keys(self, zone: bytes = ZONE) -> tuple[Key, ...]:
        """Return the keys of *zone*."""
        found = read(self.path, [zone])[zone]
        if isinstance(found, KeyFileError):
            raise found
        return found

    def generated(self, *options: str, name: str = "example.org") -> Path:
        """Return the path of the public file of a key that BIND has made."""
        stem_ = run("dnssec-keygen", "-q", "-K", self.path, *options, name).strip()
        return self.path / f"{stem_}.key"


class BindTests(KeyTestCase):
    """Reads what `dnssec-keygen` writes, and has BIND's programs read what Jitsu writes."""

    def test_read(self) -> None:
        """A key of BIND's is read: names with octets that need escapes, the root, both algorithms, and all times."""
        for algorithm, name in ((13, "Example.org"), (15, r"a\.b/c_*.example.org"), (13, ".")):
            with self.subTest(name):
                path = self.generated("-a", str(algorithm), "-f", "KSK", "-P", "20300102030405", "-A", "20300102030406",
                                      "-I", "20300102030407", "-D", "20300102030408", "-P", "sync", "20300102030409",
                                      "-D", "sync", "20300102030410", name=name)  # fmt: skip
                (key,) = self.keys(from_text(name).lower())
                self.assertEqual((path.stem, algorithm), (key.stem, key.algorithm))
                at = int(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp())
                times = Times(key.times.created, at, at + 1, at + 2, at + 3, at + 4, at + 5)
                self.assertEqual(times, key.times)
                ds = run("dnssec-dsfromkey", "-2", path).split(" DS ")[1]
                self.assertEqual(dns.rdata.from_text("IN", "DS", ds).to_wire(), key.ds)

    def test_write(self) -> None:
        """BIND's programs take a key that Jitsu has made, know its times, and sign a zone by it."""
        for algorithm in (ECDSAP256SHA256, ED25519):
            with self.subTest(algorithm):
                key = make(self.path, ZONE, algorithm, TIMES)
                path = self.path / f"{key.stem}.key"
                ds = run("dnssec-dsfromkey", "-2", path).split(" DS ")[1]
                self.assertEqual(dns.rdata.from_text("IN", "DS", ds).to_wire(), key.ds)
                told = run("dnssec-settime", "-up", "all", path).splitlines()
                self.assertIn("Activate: 1800000000", told)
                self.assertIn("SYNC Publish: 1800003600", told)
                self.assertIn("Delete: UNSET", told)
                zone = self.path / "zone"
                text = "$TTL 60\n@ SOA ns hostmaster 1 60 60 600 60\n NS ns\nns A 192.0.2.1\n"
                zone.write_text(f"{text}{path.read_text()}")
                run("dnssec-signzone", "-z", "-d", self.path, "-o", "example.org", "-f", f"{zone}.signed", zone, path)
                run("dnssec-verify", "-z", "-o", "example.org", f"{zone}.signed")

    def test_leading_zero(self) -> None:
        """A private value that begins with zeros is read as BIND writes it, without them; BIND reads it with them."""
        key = Key.of(ZONE, ECDSAP256SHA256, derive_private_key(2**240 + 1, SECP256R1()), TIMES)
        write(self.path, key)
        path = self.path / f"{key.stem}.private"
        text = path.read_text()
        value = next(line for line in text.splitlines() if line.startswith("PrivateKey"))
        self.assertEqual(32, len(b64decode(value.split()[1])))
        zone = self.path / "zone"
        zone.write_text("$TTL 60\n@ SOA ns hostmaster 1 60 60 600 60\n NS ns\nns A 192.0.2.1\n"
                        f"{path.with_suffix('.key').read_text()}")  # fmt: skip
        run("dnssec-signzone", "-z", "-d", self.path, "-o", "example.org", "-f", f"{zone}.signed", zone,
            path.with_suffix(".key"))  # fmt: skip
        path.write_text(text.replace(value, f"PrivateKey: {b64encode((2**240 + 1).to_bytes(31)).decode()}"))
        self.assertEqual((key,), self.keys())

    def test_settime(self) -> None:
        """A time that the operator changes with BIND's program is read."""
        key = make(self.path, ZONE, ECDSAP256SHA256, TIMES)
        run("dnssec-settime", "-D", "20300102030405", self.path / key.stem)
        self.assertEqual(int(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()), self.keys()[0].times.delete)


class FilesTests(KeyTestCase):
    """Writes and reads key pairs."""

    def test_round(self) -> None:
        """A key is read as it was written; the private half belongs to its owner alone; no other file is left."""
        for algorithm in (ECDSAP256SHA256, ED25519):
            made = make(self.path, ZONE, algorithm, TIMES)
            private = self.path / f"{made.stem}.private"
            self.assertEqual(0o600, private.stat().st_mode & 0o777)
            self.assertIn(made, self.keys())
        self.assertEqual(4, len(list(self.path.iterdir())))
        self.assertEqual((), self.keys(from_text("example.net")))

    def test_signature(self) -> None:
        """A key that was read signs as the one that was made: dnspython verifies it (RFC 6605, RFC 8080)."""
        for algorithm in (ECDSAP256SHA256, ED25519):
            make(self.path, ZONE, algorithm, TIMES)
        for key in self.keys():
            record = dns.rdata.from_wire("IN", "DNSKEY", key.dnskey, 0, len(key.dnskey))
            assert isinstance(record, DNSKEY)
            self.assertEqual(key.tag, dns.dnssec.key_id(record))
            public = get_algorithm_cls_from_dnskey(record).public_cls.from_dnskey(record)
            public.verify(key.sign(b"octets"), b"octets")

    def test_most(self) -> None:
        """No key is made that would be one too many to be read."""
        with self.assertRaisesRegex(KeyFileError, "32 keys of example.org: move those elsewhere that were removed"):
            make(self.path, ZONE, ED25519, TIMES, range(MOST_KEYS))
        self.assertEqual([], list(self.path.iterdir()))

    def test_long(self) -> None:
        """The files of a zone with a long name are written, and where the name is too long that is told first."""
        for name in (f"{'a' * 63}." * 3 + "b" * (LONGEST_STEM - 3 * 64 - 2), "\\000" * 63 + "." + "b" * 40):
            make(self.path, from_text(name), ED25519, TIMES)
            self.assertEqual(LONGEST_STEM, len(stem(from_text(name))))
            with self.assertRaisesRegex(KeyFileError, "has too long a name .* have dnssec.zones name other"):
                make(self.path, from_text(name + "b"), ED25519, TIMES)

    def test_tags(self) -> None:
        """A new key never has the tag of another one of the zone."""
        first = Key.made(ZONE, ED25519, TIMES)
        second = Key.made(ZONE, ED25519, TIMES)
        made = iter([first, first, second])
        self.patch(Key, "made", lambda *_: next(made))
        self.assertEqual(second, make(self.path, ZONE, ED25519, TIMES, [first.tag]))

    def test_times(self) -> None:
        """New times of a key replace the old ones in both files, and nothing else changes."""
        made = make(self.path, ZONE, ECDSAP256SHA256, TIMES)
        put(self.path, self.keys(), {made.tag: attrs.evolve(TIMES, delete=1_900_000_000)})
        (key,) = self.keys()
        self.assertEqual(attrs.evolve(made, times=attrs.evolve(TIMES, delete=1_900_000_000)), key)
        self.assertIn("; Delete: 2030", (self.path / f"{made.stem}.key").read_text())

    def test_killed(self) -> None:
        """What a killed process left of a file is replaced; it does not harm the next write."""
        made = make(self.path, ZONE, ED25519, TIMES)
        (self.path / f".{made.stem}.private.new").write_text("half")
        write(self.path, made)
        self.assertEqual((made,), self.keys())

    def test_finished(self) -> None:
        """A key whose public file was never written gets it, unless it is one that must be there."""
        made = make(self.path, ZONE, ED25519, TIMES)
        public = self.path / f"{made.stem}.key"
        text = public.read_text()
        public.unlink()
        finish(self.path, ZONE, [f"015+{made.tag:05}"])
        self.assertFalse(public.exists())
        finish(self.path, ZONE, [])
        self.assertEqual((text, (made,)), (public.read_text(), self.keys()))

    def test_disk_full(self) -> None:
        """Of a new key of which one file cannot be written, nothing is left."""
        replace = dnskeys._replace

        def full(path: Path, *more: Any) -> None:
            if path.suffix == ".key":
                raise OSError(28, "No space left on device")
            replace(path, *more)

        self.patch(dnskeys, "_replace", full)
        with self.assertRaisesRegex(KeyFileError, "key: cannot be written: No space left on device"):
            make(self.path, ZONE, ED25519, TIMES)
        self.assertEqual([], list(self.path.iterdir()))

    def test_new(self) -> None:
        """A new key never replaces files that are there."""
        made = make(self.path, ZONE, ED25519, TIMES)
        with self.assertRaisesRegex(KeyFileError, "cannot be written: File exists"):
            write(self.path, made, new=True)

    def test_directory(self) -> None:
        """A directory is made for its owner alone; one that cannot be made or read is an error with the remedy."""
        with locked(self.path / "new"):
            self.assertEqual(0o700, (self.path / "new").stat().st_mode & 0o777)
        words = "there/new: keys cannot be kept here: No such file"
        with self.assertRaisesRegex(KeyFileError, words), locked(self.path / "there/new"):
            pass
        (self.path / "file").write_text("")
        (self.path / "link").symlink_to("none")
        for name in ("file", "link"):
            words = f"{name}: is no directory: name one for the keys by dnssec.keys"
            with self.assertRaisesRegex(KeyFileError, words), locked(self.path / name):
                pass
        with self.assertRaisesRegex(KeyFileError, "none: the directory of keys cannot be read: No such file"):
            read(self.path / "none", [ZONE])

    def test_locked(self) -> None:
        """Only one process changes the keys in a directory at a time."""
        with locked(self.path):
            file = os.open(self.path / ".lock", os.O_RDWR)
            self.addCleanup(os.close, file)
            with self.assertRaises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_seen(self) -> None:
        """Each change of a key's files shows: its content, its rights, its end; the lock and other files do not."""
        key = make(self.path, ZONE, ECDSAP256SHA256, TIMES)
        path, was = self.path / f"{key.stem}.private", seen(self.path)
        with locked(self.path):
            self.assertEqual(was, seen(self.path))
        for change in (lambda: write(self.path, key), lambda: path.chmod(0o640), path.unlink):
            change()
            self.assertNotEqual(was, now := seen(self.path))
            was = now
        self.assertIsNone(seen(self.path / "none"))

    def test_names(self) -> None:
        """The name of a file has the zone's as BIND writes it."""
        for name, expected in (("Example.ORG", "Kexample.org."), ("a\\.b/c.x", "Ka%2Eb%2Fc.x."), (".", "K.")):
            self.assertEqual(expected, stem(from_text(name)))
        self.assertEqual("K.", stem(ROOT))


class DamagedTests(KeyTestCase):
    """Keys that cannot be used."""

    def setUp(self) -> None:
        """Make a key."""
        super().setUp()
        self.key = make(self.path, ZONE, ECDSAP256SHA256, TIMES)
        self.public, self.private = (self.path / f"{self.key.stem}.{suffix}" for suffix in ("key", "private"))

    def check(self, words: str) -> None:
        """Reading the keys is an error with *words*."""
        with self.assertRaisesRegex(KeyFileError, words):
            self.keys()

    def test_half(self) -> None:
        """A missing half is an error that names it."""
        for path in (self.private, self.public):
            text = path.read_text()
            path.unlink()
            self.check(rf"{path.suffix}: is missing; move K.* elsewhere as well if .*; restore it")
            path.write_text(text)
            path.chmod(0o600)

    def test_fifo(self) -> None:
        """What is no regular file is an error at once: nothing is waited for."""
        for make_, words in ((os.mkfifo, "is no regular file"), (os.mkdir, "cannot be read: Is a directory")):
            self.public.unlink()
            make_(self.public)
            self.check(words)
            if not self.public.is_dir():
                self.assertIn("again: its private half is whole", str(salvage(self.path, ZONE)))
                self.assertFalse(Path(f"{self.private}.lost").exists())

    def test_open(self) -> None:
        """A private key that others may read is an error, and is not read."""
        for mode in (0o640, 0o604, 0o660):
            self.private.chmod(mode)
            self.check("others than its owner may read the private key: chmod 600 it")

    def test_differ(self) -> None:
        """Halves of different keys are an error, and so is a key under the name of another one."""
        other = make(self.path, ZONE, ECDSAP256SHA256, TIMES, [self.key.tag])
        self.private.write_bytes((self.path / f"{other.stem}.private").read_bytes())
        self.check(r"private: is not the private half of Kexample\.org")
        self.public.write_bytes((self.path / f"{other.stem}.key").read_bytes())
        self.check(f"its name says key {self.key.tag}, but it is key {other.tag}")

    def test_kinds(self) -> None:
        """RSA keys, zone signing keys and keys of another zone are errors with the remedy."""
        path = self.generated("-a", "8", "-f", "KSK")
        self.check("a key of algorithm 8: Jitsu signs with 13 .ECDSAP256SHA256., 15 .ED25519.; move it elsewhere")
        for half in (path, path.with_suffix(".private")):
            half.unlink()
        path = self.generated("-a", "13")
        self.check("is a zone signing key .flags 256.: Jitsu signs with one combined key .257.; move the pair")
        for half in (path, path.with_suffix(".private")):
            half.unlink()
        self.public.write_text(self.public.read_text().replace("example.org. IN", "example.net. IN"))
        self.check("is not a key of example.org; restore it")

    def test_damaged(self) -> None:
        """No change of a file is read as another key: each is an error that names the file."""
        good = self.private.read_text()
        secret = good.splitlines()[2]
        for bad, words in (
            ("", "in the format v1.3"), (good.replace("v1.3", "v9"), "in the format v1.3"),
            (good.replace(secret, "PrivateKey: AAAA"), "is damaged"), (good.replace(secret, ""), "is damaged"),
            (good.replace(secret, f"PrivateKey: {'A' * 43}="), "is damaged"), (good + "Publish: x\n", "is damaged"),
            (good + "Inactive: x\n", "is damaged"), (good + "Revoke: 20300102030405\n", "has Revoke, which"),
            (good.replace("Algorithm: 13", "Algorithm: 15"), "algorithm 13"), (good + "\u20ac", "it is not ASCII"),
            (good + " " * LARGEST, "is larger than 4096 octets"),
        ):
            with self.subTest(bad):
                self.private.write_text(bad)
                self.check(rf"private: .*{words}")
        self.private.write_text(good)
        good = self.public.read_text()
        for bad in ("", good + good.replace("257", "256"), good.replace("DNSKEY", "A"), good[:-5],
                    good.replace("3 13", "3 15")):  # fmt: skip
            with self.subTest(bad):
                self.public.write_text(bad)
                self.check(r"key[:;] ")

    def test_salvaged(self) -> None:
        """Of a key that cannot be used all is kept, and what is whole stays; a file that was set aside is not lost."""
        other = make(self.path, ZONE, ED25519, TIMES)
        self.assertEqual([], salvage(self.path, ZONE))
        self.private.write_bytes((self.path / f"{other.stem}.private").read_bytes())
        text = self.public.read_text()
        self.assertEqual(1, len(salvage(self.path, ZONE)))
        self.assertEqual((other,), self.keys())
        self.assertEqual(text, (self.path / f"{self.key.stem}.key.lost").read_text())
        self.public.write_text("?")
        with self.assertRaisesRegex(KeyFileError, "cannot get the suffix .lost: File exists; move it elsewhere"):
            salvage(self.path, ZONE)
        self.assertEqual("?", self.public.read_text())

    def test_renamed(self) -> None:
        """A private file under the name of another key does not make that key's public file."""
        other = make(self.path, ZONE, ECDSAP256SHA256, TIMES, [self.key.tag])
        self.private.write_bytes((self.path / f"{other.stem}.private").read_bytes())
        self.assertIn("suffix .lost", str(salvage(self.path, ZONE)))
        self.assertEqual((other,), self.keys())

    def test_many(self) -> None:
        """More keys of a zone than are ever needed are an error; those of other zones do not count."""
        for number in range(MOST_KEYS + 1):
            for suffix in ("key", "private"):
                shutil.copy(self.private, self.path / f"Kexample.net.+013+{number:05}.{suffix}")
        self.assertEqual((self.key,), self.keys())
        with self.assertRaisesRegex(KeyFileError, "more than 32 keys of example.net: move"):
            self.keys(from_text("example.net"))
