"""TSIG: `jitsu_tw.dns.tsig`, with dnspython as the client that signs and checks."""

from __future__ import annotations

import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any, cast

import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.tsig
from dns.rdataclass import ANY, IN
from dns.rdatatype import TSIG
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.message import FIXED, FORMERR, Query, parse
from jitsu_tw.dns.reply import Reply, udp_limit, write
from jitsu_tw.dns.tsig import (
    ALGORITHMS,
    BADKEY,
    BADSIG,
    BADTIME,
    BADTRUNC,
    NOTAUTH,
    BadSignature,
    Key,
    Keyring,
    Signed,
)
from jitsu_tw.dns.wire import RR, from_text
from test.support.packets import bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from dns.rdtypes.ANY.TSIG import TSIG as Record  # noqa: N811 - a class

SECRET = b64encode(bytes(range(32))).decode()
KEY = Key.parse(f"transfer.example:{SECRET}")
KEYS = Keyring([KEY])


def signed_query(
    key: dns.tsig.Key = KEY, name: str = "www.example.org", **of: Any
) -> tuple[dns.message.Message, bytes]:
    """Return a query that dnspython has signed now, and its octets."""
    query = dns.message.make_query(name, "A", **of)
    query.use_tsig(key)
    return query, query.to_wire() or b""


def understood(octets: bytes) -> Query:
    """Return what *octets* ask."""
    query = parse(octets)
    assert isinstance(query, Query), query
    return query


def verify(octets: bytes, keys: Keyring = KEYS, later: float = 0.0) -> Signed | BadSignature:
    """Verify *octets*, as if it were *seconds* later."""
    return keys.verify(octets, understood(octets), time.time() + later)


def record_of(octets: bytes) -> Record:
    """Return the data of the TSIG record of a message that ends with it."""
    message = dns.message.from_wire(octets, keyring=False)
    assert message.tsig is not None
    return cast("Record", message.tsig[0])


def changed(octets: bytes, cls: int = ANY, ttl: int = 0, owner: dns.name.Name = KEY.name, **changes: Any) -> bytes:
    """Return the signed query *octets* with another TSIG record; data of a record may be given as octets."""
    start = understood(octets).tsig
    data = changes.pop("data", None) or record_of(octets).replace(**changes).to_digestable()
    return octets[:start] + owner.to_digestable() + FIXED.pack(TSIG, cls, ttl, len(data)) + data


def cut(count: int) -> Callable[[bytes], bytes]:
    """Return what cuts a MAC to its first *count* octets."""
    return lambda octets: changed(octets, mac=record_of(octets).mac[:count])


def reply_to(octets: bytes, verdict: Signed | BadSignature, now: float) -> bytes:
    """Return the reply that goes out, as the server makes it."""
    query = understood(octets)
    rcode = verdict.rcode if isinstance(verdict, BadSignature) else 0
    packet = write(query, Reply(rcode), udp_limit(query) - verdict.room)
    return verdict.sign(packet, now)


class GoodTests(SynchronousTestCase):
    """Good signatures of clients and of the server."""

    def test_algorithms(self) -> None:
        """With each algorithm dnspython's signature is verified here, and the server's by dnspython."""
        for algorithm in ALGORITHMS:
            key = Key("k.example", b"secret", algorithm)
            query, octets = signed_query(key)
            verdict = verify(octets, Keyring([key]))
            self.assertEqual(Signed(key, record_of(octets).mac), verdict)
            reply = dns.message.from_wire(reply_to(octets, verdict, time.time()), keyring=key, request_mac=query.mac)
            self.assertTrue(reply.had_tsig, algorithm)
            self.assertTrue(query.is_response(reply))

    def test_with_edns(self) -> None:
        """The TSIG record stands behind the OPT record."""
        query, octets = signed_query(use_edns=0)
        reply = dns.message.from_wire(reply_to(octets, verify(octets), time.time()), keyring=KEY, request_mac=query.mac)
        self.assertEqual((0, True), (reply.edns, reply.had_tsig))

    def test_not_for_another_query(self) -> None:
        """A reply's signature is for the query that it answers."""
        octets = signed_query()[1]
        packet = reply_to(octets, verify(octets), time.time())
        mac = record_of(octets).mac
        other = bytes([mac[0] ^ 1]) + mac[1:]
        with self.assertRaises(dns.tsig.BadSignature):
            dns.message.from_wire(packet, keyring=KEY, request_mac=other)

    def test_case_of_names(self) -> None:
        """Keys and algorithms are names: their case does not matter."""
        shout = dns.tsig.Key("TRANSFER.Example", KEY.secret, "HMAC-SHA256")
        verdict = verify(signed_query(shout)[1])
        assert isinstance(verdict, Signed)
        self.assertEqual(from_text("transfer.example"), verdict.key.wire)

    def test_forwarded(self) -> None:
        """A forwarder may change the id: the record has the original one (RFC 8945, 4.2)."""
        octets = signed_query()[1]
        self.assertIsInstance(verify(b"\0\0" + octets[2:]), Signed)

    def test_fudge(self) -> None:
        """Clocks may differ by as much as the client's TSIG record allows, either way."""
        octets = signed_query()[1]
        when = record_of(octets).time_signed
        for off, good in ((300, True), (301, False), (-300, True), (-301, False)):
            verdict = KEYS.verify(octets, understood(octets), float(when + off))
            self.assertEqual(good, isinstance(verdict, Signed), off)

    def test_room(self) -> None:
        """A signature takes no more octets than `room`, whatever the key."""
        for name in ("k", "a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 61):
            for algorithm in ALGORITHMS:
                key = Key(name, b"secret", algorithm)
                octets = signed_query(key)[1]
                verdict = verify(octets, Keyring([key]))
                self.assertEqual(verdict.room - 6, len(verdict.sign(bytes(12), 0.0)) - 12)  # 6: BADTIME's


#: What is wrong, what makes it so of a good query, and how much later it comes; the rcode and error of the reply, and
#: whether that is signed (RFC 8945, 5.2 and 5.3.2).
BAD: tuple[tuple[str, Callable[[bytes], bytes], float, tuple[int, int, bool]], ...] = (
    ("an unknown key", lambda o: changed(o, owner=dns.name.from_text("other.example")), 0, (NOTAUTH, BADKEY, False)),
    ("another algorithm", lambda o: changed(o, algorithm=dns.tsig.HMAC_SHA512), 0, (NOTAUTH, BADKEY, False)),
    ("MD5", lambda o: changed(o, algorithm=dns.tsig.HMAC_MD5), 0, (NOTAUTH, BADKEY, False)),
    ("another question", lambda o: o.replace(b"\3www", b"\3wWw"), 0, (NOTAUTH, BADSIG, False)),
    ("another flag", lambda o: o[:2] + b"\0" + o[3:], 0, (NOTAUTH, BADSIG, False)),
    ("another time", lambda o: changed(o, time_signed=record_of(o).time_signed + 1), 0, (NOTAUTH, BADSIG, False)),
    ("another fudge", lambda o: changed(o, fudge=301), 0, (NOTAUTH, BADSIG, False)),
    ("other data", lambda o: changed(o, other=b"123456"), 0, (NOTAUTH, BADSIG, False)),
    ("another MAC", lambda o: changed(o, mac=bytes(32)), 0, (NOTAUTH, BADSIG, False)),
    ("another MAC, late", lambda o: changed(o, mac=bytes(32)), 1000, (NOTAUTH, BADSIG, False)),
    ("another MAC, cut", lambda o: changed(o, mac=bytes(16)), 0, (NOTAUTH, BADSIG, False)),
    ("late", lambda o: o, 302, (NOTAUTH, BADTIME, True)),
    ("early", lambda o: o, -302, (NOTAUTH, BADTIME, True)),
    ("cut", cut(31), 0, (NOTAUTH, BADTRUNC, True)),
    ("cut to the half", cut(16), 0, (NOTAUTH, BADTRUNC, True)),
    ("cut and late", cut(16), 302, (NOTAUTH, BADTIME, True)),
    ("cut to less", cut(15), 0, (FORMERR, 0, False)),
    ("no MAC", cut(0), 0, (FORMERR, 0, False)),
    ("a MAC too long", lambda o: changed(o, mac=bytes(33)), 0, (FORMERR, 0, False)),
    ("class IN", lambda o: changed(o, cls=IN), 0, (FORMERR, 0, False)),
    ("a TTL", lambda o: changed(o, ttl=1), 0, (FORMERR, 0, False)),
    ("an error", lambda o: changed(o, error=BADKEY), 0, (FORMERR, 0, False)),
    ("no data", lambda o: changed(o, data=b"\0"), 0, (FORMERR, 0, False)),
    ("data cut short", lambda o: changed(o, data=record_of(o).to_digestable()[:-1]), 0, (FORMERR, 0, False)),
    ("data and more", lambda o: changed(o, data=record_of(o).to_digestable() + b"x"), 0, (FORMERR, 0, False)),
)


class BadTests(SynchronousTestCase):
    """Signatures that are not good."""

    def test_rows(self) -> None:
        """Each fault is answered with its rcode and error; signed only where the client has proven the key."""
        for what, spoil, later, (rcode, error, signed) in BAD:
            octets = spoil(signed_query()[1])
            verdict = verify(octets, later=later)
            assert isinstance(verdict, BadSignature), what
            self.assertEqual((rcode, error), (verdict.rcode, verdict.error), f"{what}: {verdict.reason}")
            now = time.time() + later
            packet = reply_to(octets, verdict, now)
            reply = dns.message.from_wire(packet, keyring=False)
            self.assertEqual((rcode, error != 0), (reply.rcode(), reply.had_tsig), what)
            if not error:
                continue
            record, theirs = record_of(packet), record_of(octets)
            self.assertEqual((error, signed, reply.id, theirs.algorithm),
                             (record.error, bool(record.mac), record.original_id, record.algorithm), what)
            if error == BADTIME:
                self.assertEqual((int(now).to_bytes(6), theirs.time_signed), (record.other, record.time_signed), what)
            else:
                self.assertEqual((b"", int(now)), (record.other, record.time_signed), what)
            if signed:
                self.check_mac(packet, theirs.mac)

    def check_mac(self, packet: bytes, request_mac: bytes) -> None:
        """Check the signature of a reply that reports an error, which dnspython does not verify."""
        message = dns.message.from_wire(packet, keyring=False)
        record = record_of(packet)
        assert message.tsig is not None
        end = len(packet) - len(message.tsig.name.to_digestable()) - FIXED.size - len(record.to_digestable())
        bare = packet[:10] + (int.from_bytes(packet[10:12]) - 1).to_bytes(2) + packet[12:end]
        right, _ = dns.tsig.sign(bare, KEY, record, record.time_signed, request_mac)
        self.assertEqual(right.mac, record.mac)

    def test_what_dnspython_says(self) -> None:
        """dnspython, as a client, understands each error."""
        for key, later, fault in (
            (Key("other.example", KEY.secret), 0, dns.tsig.PeerBadKey),
            (Key("transfer.example", b"guess"), 0, dns.tsig.PeerBadSignature),
            (KEY, 1000, dns.tsig.PeerBadTime),
        ):
            query, octets = signed_query(key)
            packet = reply_to(octets, verify(octets, later=later), time.time() + later)
            with self.assertRaises(fault):
                dns.message.from_wire(packet, keyring=key, request_mac=query.mac)

    def test_no_keys(self) -> None:
        """A keyring without keys finds none."""
        verdict = verify(signed_query()[1], Keyring())
        assert isinstance(verdict, BadSignature)
        self.assertEqual(BADKEY, verdict.error)

    def test_long_names(self) -> None:
        """Long names of unknown keys, which might not fit into the reply, are not echoed."""
        long = ".".join("x" * 63 for _ in range(3)) + "." + "y" * 61
        octets = signed_query(name=long)[1]
        octets = changed(octets, owner=dns.name.from_text(long), algorithm=dns.name.from_text(long))
        verdict = verify(octets)
        packet = reply_to(octets, verdict, 0.0)
        self.assertEqual((0, dns.rcode.NOTAUTH), (verdict.room, dns.message.from_wire(packet).rcode()))
        self.assertLessEqual(len(packet), 512)

    @given(st.data())
    @bounded
    def test_never_raises(self, data: st.DataObject) -> None:
        """Whatever is done to a signed query, it is verified or refused, and the reply can be read."""
        octets = bytearray(signed_query()[1])
        for _ in range(data.draw(st.integers(1, 3))):
            octets[data.draw(st.integers(12, len(octets) - 1))] = data.draw(st.integers(0, 255))
        query = parse(bytes(octets))
        if not isinstance(query, Query) or query.tsig is None:
            return
        verdict = KEYS.verify(bytes(octets), query, time.time())
        packet = reply_to(bytes(octets), verdict, time.time())
        self.assertEqual(query.id, dns.message.from_wire(packet, keyring=False).id)
        self.assertLessEqual(len(packet), udp_limit(query))


class StreamTests(SynchronousTestCase):
    """Answers of several packets (RFC 8945, 5.3.1)."""

    def stream(self) -> tuple[dns.message.Message, list[bytes]]:
        """Return a query and the four signed packets of its answer, at the times 1000, 1001, ... from now."""
        query, octets = signed_query()
        verdict = verify(octets)
        assert isinstance(verdict, Signed)
        owner = from_text("www.example.org")
        packets = [write(understood(octets), Reply(answer=[RR(owner, 1, 1, bytes([10, 0, 0, n]))]), None)
                   for n in range(4)]
        clock = iter(range(int(time.time()), 2**32))
        packets[1:1] = packets[4:4] = [b""]
        signed = list(verdict.sign_stream(packets, lambda: float(next(clock))))
        self.assertEqual([1, 4], [n for n, packet in enumerate(signed) if not packet])
        return query, [packet for packet in signed if packet]

    def read(self, query: dns.message.Message, packets: list[bytes]) -> list[dns.message.Message]:
        """Return what dnspython makes of *packets*, which it checks one after the other."""
        context, messages = None, []
        for packet in packets:
            message = dns.message.from_wire(packet, keyring=KEY, request_mac=query.mac, multi=True, tsig_ctx=context)
            context = message.tsig_ctx
            messages.append(message)
        return messages

    def test_signed(self) -> None:
        """Each packet is signed, with its time, so that the next proves the order."""
        query, packets = self.stream()
        messages = self.read(query, packets)
        self.assertEqual([True] * 4, [message.had_tsig for message in messages])
        times = [record_of(packet).time_signed for packet in packets]
        self.assertEqual([times[0] + n for n in range(4)], times)

    def test_order(self) -> None:
        """A packet that is left out, or comes too early, is noticed."""
        query, packets = self.stream()
        for wrong in (packets[1:], [packets[0], packets[2]], [packets[0], packets[2], packets[1]]):
            with self.assertRaises(dns.tsig.BadSignature):
                self.read(query, wrong)


class KeyTests(SynchronousTestCase):
    """Keys as the configuration writes them."""

    def test_parse(self) -> None:
        """A key is what dig's -y takes."""
        for text, name, algorithm in (
            (f"k.example:{SECRET}", "k.example.", "hmac-sha256."),
            (f"hmac-sha512:k:{SECRET}", "k.", "hmac-sha512."),
            (f"HMAC-SHA384-192:K.:{SECRET}", "K.", "hmac-sha384-192."),
        ):
            key = Key.parse(text)
            self.assertEqual((name, algorithm, bytes(range(32))), (str(key.name), str(key.algorithm), key.secret))

    def test_wrong(self) -> None:
        """A malformed key is a ValueError whose message has the remedy, and nothing of the secret."""
        for text, what in (
            ("", "write one like"),
            ("k.example", "write one like"),
            ("k.example:", "write one like"),
            (f":{SECRET}", "write one like"),
            (f"a:b:c:{SECRET}", "write one like"),
            (f"hmac-md5:k:{SECRET}", "hmac-sha256"),
            (f"hmac-md5.sig-alg.reg.int:k:{SECRET}", "hmac-sha256"),
            (f"gss-tsig:k:{SECRET}", "hmac-sha256"),
            (f"k..example:{SECRET}", "is not a domain name"),
            (f"{'x' * 64}:{SECRET}", "is not a domain name"),
            (f"k:{SECRET[:-3]}", "base64"),
            ("k:Zm9v!Zm9v", "base64"),
        ):
            error = self.assertRaises(ValueError, Key.parse, text)
            self.assertIn(what, str(error), text)
            self.assertNotIn(SECRET[:8], str(error))

    def test_hidden(self) -> None:
        """A key does not show its secret, wherever it is logged."""
        verdict = verify(signed_query()[1])
        for shown in (repr(KEY), str(KEY), repr(verdict), repr(verify(signed_query()[1], later=1000))):
            self.assertNotIn(SECRET[:8], shown)
            self.assertIn("transfer.example", shown)

    def test_keyring(self) -> None:
        """Keys are found by name in whatever case; one name has one key."""
        self.assertIs(KEY, KEYS.get(from_text("Transfer.EXAMPLE")))
        self.assertIsNone(KEYS.get(from_text("other.example")))
        error = self.assertRaises(ValueError, Keyring, [KEY, Key("TRANSFER.example", b"x", "hmac-sha512")])
        self.assertIn("two keys", str(error))
