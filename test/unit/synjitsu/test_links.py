"""How the interfaces of this host are read."""

from __future__ import annotations

import errno
import json
import sys
from unittest import mock

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from synjitsu_tw.links import Links

#: Prints the interfaces of a namespace, and the ports of its bridge.
READ = """\
import attrs, json, os
from synjitsu_tw.links import Links
links = Links()
named = [links.called(name) for name in os.listdir("/sys/class/net")]
(bridge,) = (one for one in named if one.kind == "bridge")
ports = sorted(port.name for port in links.ports(bridge.index))
print(json.dumps([[attrs.asdict(one) | {"mac": one.mac.hex(":")} for one in named], ports]))
"""


class LinksTests(SynchronousTestCase):
    """`Links`."""

    def test_none(self) -> None:
        """An interface that is not there is an error of the system, and the next one is read after it."""
        links = Links()
        self.addCleanup(links.close)
        for ask in (lambda: links.called("no-such"), lambda: links.at(1 << 30)):
            self.assertEqual(errno.ENODEV, self.assertRaises(OSError, ask).errno)
        self.assertEqual(links.called("lo"), links.at(links.called("lo").index))
        self.assertEqual([], links.ports(links.called("lo").index))

    def test_late(self) -> None:
        """An answer that comes when nobody waits for it any more is passed over."""
        links = Links()
        self.addCleanup(links.close)
        links._socket.settimeout(0)
        with mock.patch.object(links, "_receive", side_effect=TimeoutError):
            self.assertRaises(OSError, links.at, 1)
            self.assertRaises(OSError, links.ports, 1)
        links._socket.settimeout(10)
        self.assertEqual("lo", links.called("lo").name)
        self.assertRaises(OSError, links.called, "no-such")

    def test_same(self) -> None:
        """What is read is what ip(8) says."""
        try:
            network = lab.Network()
        except lab.NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        with network:
            network.run("host", ["sh", "-ec", f"""
                for port in one two; do
                    ip link add $port type veth peer name $port-far
                    ip link set $port master {lab.BRIDGE} up
                done
                for number in $(seq 60); do
                    echo "link add many$number master {lab.BRIDGE} type veth peer name far$number"
                done | ip -batch -
                ip link set one-far up
                ip link set two mtu 1400
                ip link set {lab.BRIDGE} type bridge stp_state 1
            """])
            said = json.loads(network.run("host", ["ip", "-json", "-details", "link", "show"]).stdout)
            found, ports = json.loads(network.run("host", [sys.executable, "-c", READ]).stdout)
        self.assertLessEqual({"one", "two"}, set(ports))
        self.assertEqual(ports, sorted(one["ifname"] for one in said if one.get("master") == lab.BRIDGE))
        numbers = {one["ifname"]: one["ifindex"] for one in said}
        wanted = [
            {
                "index": one["ifindex"], "name": one["ifname"], "kind": one.get("linkinfo", {}).get("info_kind", ""),
                "mac": one["address"], "mtu": one["mtu"], "master": numbers.get(one.get("master"), 0),
                "up": {"UP", "LOWER_UP"} <= set(one["flags"]),
                "stp": one.get("linkinfo", {}).get("info_data", {}).get("stp_state") == 1,
            }
            for one in said
        ]  # fmt: skip
        states = {one["ifname"]: one.get("linkinfo", {}).get("info_slave_data", {}).get("state") for one in said}
        self.assertEqual(states.keys(), {one["name"] for one in found})
        for one in found:
            self.assertEqual(one.pop("forwards"), states[one["name"]] == "forwarding")
        self.assertEqual(*(sorted(all_of, key=lambda one: one["index"]) for all_of in (wanted, found)))
