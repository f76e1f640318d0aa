"""Which VMs templates have made, and which addresses are taken."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.vm.members import Members
from test.support import World, vm


class MembersTests(SynchronousTestCase):
    """`Members`, of a fleet."""

    def test_fleet(self) -> None:
        """A VM belongs to the template that made it, while it is there; one of the file to none."""
        world = World(vm("www"), vm("alice.site", template="site"), vm("bob.site", template="site"))
        members = world.fleet.members
        self.assertEqual(({"alice.site", "bob.site"}, 2), (members.of("site"), members.count("site")))
        self.assertEqual((frozenset(), 0), (members.of("more"), members.count("more")))
        world.fleet.dismiss(world.machine("bob.site"), "test")
        self.assertEqual({"alice.site"}, members.of("site"))
        world.fleet.dismiss(world.machine("alice.site"), "test")
        self.assertEqual((0, {}), (members.count("site"), members._of))

    def test_addresses(self) -> None:
        """An address is taken while a VM has it, also when the VM has others, and is that of the first that has it."""
        world = World(vm("www", ip=(ip_address("10.0.0.1"),)), vm("db", ip=(ip_address("10.0.0.2"),)))
        addresses = world.fleet.members.addresses
        self.assertEqual({"10.0.0.1": "www", "10.0.0.2": "db"}, {str(ip): name for ip, name in addresses.items()})
        world.fleet.enlist(vm("www", ip=(ip_address("10.0.0.3"),)))
        self.assertEqual({"10.0.0.2", "10.0.0.3"}, set(map(str, addresses)))
        world.fleet.dismiss(world.machine("db"), "test")
        self.assertEqual({"10.0.0.3"}, set(map(str, addresses)))

    def test_reserved(self) -> None:
        """An address can be kept for a VM that is not there; when it comes, and goes, the address is free."""
        members = Members(())
        members.reserve([ip_address("10.0.0.1")], "alice.site")
        members.reserve([ip_address("10.0.0.1")], "other")
        self.assertEqual("alice.site", members.addresses[ip_address("10.0.0.1")])

    def test_removal(self) -> None:
        """While a VM is removed from its hypervisor, that is known."""
        members = Members(())
        members.begin_removal("alice.site")
        self.assertTrue(members.is_removed("alice.site"))
        members.end_removal("alice.site")
        self.assertFalse(members.is_removed("alice.site"))
