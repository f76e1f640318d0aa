"""SYNs in Xenstore: their exact format, and which guest may read them when."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.errors import BackendLost
from synjitsu_tw import records
from synjitsu_tw.handover import XenstoreHandover
from synjitsu_tw.packets import Packet
from synjitsu_tw.syns import Held
from synjitsu_tw.table import Handover, Standin
from test.support.fakexenstore import FakeXenstore
from test.unit.synjitsu.test_packets import CLIENT, VM, read, tcp_frame, understood

#: MSS 1460, SACK, timestamp 1 0, no-op, window scale 7: Linux's.
LINUX = bytes.fromhex("020405b4 0402 080a 00000001 00000000 01 030307")


class RecordTests(SynchronousTestCase):
    """The text of a record."""

    def test_options(self) -> None:
        """An s-expression in OCaml's shortest form, with a space only between plain atoms."""
        cases = (
            (b"", "()"),
            (LINUX, "((MSS 1460)SACK_ok(Timestamp 1 0)Noop(Window_size_shift 7))"),
            (b"\4\2\1\1", "(SACK_ok Noop Noop)"),
            (b"\1\0\2\4\5\xb4", "(Noop)"),
            (bytes.fromhex("080affffffff80000000"), "((Timestamp -1 -2147483648))"),
            (bytes.fromhex("050a0000000100000002"), "((SACK((1 2))))"),
            (bytes.fromhex("2202"), '((Unknown 34""))'),
            (bytes.fromhex("2206") + b"abcd", "((Unknown 34 abcd))"),
            (bytes.fromhex("2206") + b'a"\xff\n', '((Unknown 34"a\\"\\255\\n"))'),
            (b"\2\4\5", "()"),
            (b"\x22\1", "()"),
            (b"\2\3\5\1", '((Unknown 2"\\005")Noop)'),
        )
        for octets, expected in cases:
            self.assertEqual(expected, records.options(octets), octets)

    def test_record(self) -> None:
        """Paths with dashes, numbers in decimal, the sequence number signed."""
        packet = Packet(CLIENT, VM, 6, 4711, 80, 2, 2**31 + 5, 64240, LINUX)
        base = "/ip/10-0-0-10/80/10-0-0-2/4711/syn"
        expected = {
            f"{base}/tx_wnd": "64240",
            f"{base}/sequence": "-2147483643",
            f"{base}/options": "((MSS 1460)SACK_ok(Timestamp 1 0)Noop(Window_size_shift 7))",
            f"{base}/tx_isn": str(0x1AFE1234),
            f"{base}/rx_wnd": "65535",
            f"{base}/rx_wnd_scaleoffer": "2",
        }
        self.assertEqual(expected, records.record(packet, 0x1234))

    def test_address(self) -> None:
        """The address of a path; none where it is no address's."""
        for path, expected in (("/ip/10-0-0-10", VM), ("/ip/10-0-0-10/80", VM), ("/ip/x", None), ("/ip", None)):
            self.assertEqual(expected, records.address(path))


class XenstoreTests(SynchronousTestCase):
    """The tree, as a guest and its daemon see it."""

    def setUp(self) -> None:
        """Begin with leftover nodes."""
        self.store = FakeXenstore()
        self.store.write("/ip/10-0-0-10", "managed")
        self.store.write("/ip/10-0-0-9/80/x", "old")
        self.store.permissions["/ip"] = ["b0"]  # as the first Synjitsu's instructions have it
        self.managed: list[bytes] = []
        self.reconnected: list[None] = []
        self.handover = XenstoreHandover(
            self.store, self.managed.append, lambda: self.reconnected.append(None), lambda: 0x1234
        )
        self.handover.start()
        self.standin = Standin(VM, handover=Handover.XENSTORE, domid=5)
        self.held = self.syn()

    @staticmethod
    def syn(**changes: Any) -> Held:
        """Return a held SYN."""
        octets = tcp_frame(**changes)
        packet = understood(octets)
        assert isinstance(packet, Packet)
        return Held("br0", read(octets), packet, 0.0)

    def below(self) -> dict[str, str]:
        """Return what is below the VM's node and has a value."""
        return {path: value for path, value in self.store.nodes.items() if path.startswith("/ip/10-0-0-10/") and value}

    def test_cleaned(self) -> None:
        """Leftover nodes are removed at the start and after each reconnection; then all is announced again."""
        self.assertEqual({"/ip": ""}, self.store.nodes)
        self.assertEqual(["n0"], self.store.permissions["/ip"])
        self.assertTrue(self.reconnected)
        self.handover.announce(self.standin, [self.held])
        before = len(self.reconnected)
        self.handover._changed("/ip")
        self.assertEqual(({"/ip": ""}, before + 1), (self.store.nodes, len(self.reconnected)))

    def test_only_its_guest(self) -> None:
        """The address's node is for its guest alone, for dom0 while there is none; other nodes are not touched."""
        self.handover.announce(self.standin, [])
        self.assertEqual(["n0", "b5"], self.store.permissions["/ip/10-0-0-10"])
        self.standin.domid = None
        self.handover.announce(self.standin, [])
        self.assertEqual(["n0"], self.store.permissions["/ip/10-0-0-10"])

    def test_recorded(self) -> None:
        """A SYN is written in one transaction."""
        self.handover.announce(self.standin, [])
        before = self.store.transactions
        self.handover.record(self.held)
        self.assertEqual(before + 1, self.store.transactions)
        self.assertEqual(records.record(self.held.packet, 0x1234), self.below())

    def test_announced_with_what_is_held(self) -> None:
        """When the guest is known, the SYNs held before are written again, so that it may read them."""
        self.handover.announce(self.standin, [self.held, self.syn(sport=5)])
        self.assertEqual(12, len(self.below()))

    def test_managed(self) -> None:
        """When the guest has set its node to managed, its SYNs are no longer written."""
        self.handover.announce(self.standin, [])
        self.store.write("/ip/10-0-0-10", "managed")
        self.assertEqual([VM], self.managed)
        self.handover.record(self.held)
        self.assertEqual({}, self.below())

    def test_not_announced(self) -> None:
        """Nothing is written for an address that has no node."""
        self.handover.record(self.held)
        self.assertEqual({}, self.below())

    def test_erased(self) -> None:
        """A SYN that was dropped is taken back, with what is empty then; others stay."""
        self.handover.announce(self.standin, [self.held, self.syn(dport=443)])
        self.handover.erase(self.held)
        self.assertEqual(6, len(self.below()))
        self.assertNotIn("/ip/10-0-0-10/80", self.store.nodes)
        self.assertIn("/ip/10-0-0-10", self.store.nodes)
        self.handover.forget(VM)
        self.assertNotIn("/ip/10-0-0-10", self.store.nodes)

    def test_lost(self) -> None:
        """Without a daemon nothing is written, and that causes no traceback."""

        async def lost(change: Any) -> None:  # noqa: ARG001
            raise BackendLost("no Xenstore")

        self.store.transaction = lost  # type: ignore[method-assign]
        self.handover.record(self.held)
        self.assertEqual([], self.flushLoggedErrors())
