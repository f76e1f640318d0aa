"""
The mutants: each is a fault that a reader could make, or a guard that is gone.

Whoever changes a line that a row names changes the row, too; `test.structure.test_mutants` says which. A row whose
guard has gone for good goes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@attrs.frozen
class Mutant:
    """
    One fault.

    Attributes:
        kind: what part of the product it is in; each of a guard of the cluster must be caught.
        file: of the product.
        old: text that the file has exactly once.
        new: what is put in its place.
        tests: modules or classes of tests of which one must fail.
        fault: what the product does wrong then.
    """

    kind: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    fault: str


_REQUESTS: Final = "test.unit.sync.test_requests"
_BOUNDS: Final = "test.unit.sync.test_requests_bounds"

#: The kind of those that must all be caught.
CLUSTER: Final = "cluster guards"

#: By kind, file and tests: the old text, the new text, the fault.
_ROWS: Final[Mapping[tuple[str, str, str], tuple[tuple[str, str, str], ...]]] = {
    ("dns", "jitsu_tw/dns/message.py", "test.unit.dns.test_message"): (
        ("    if flags & QR:", "    if False:", "answers responses, so two servers answer each other for ever"),
        ("HEADER.size <= target < start", "HEADER.size <= target <= start", "takes a pointer to itself for a name"),
        ("nscount and (qtype != IXFR or nscount > 1)", "nscount and qtype != IXFR", "takes two SOA records of an IXFR"),
        ("if edns is not None:\n                    return", "if False:\n                    return",
         "takes two OPT records"),
        ("if size != 8 and not 16 <= size <= 40:", "if size != 8 and not 16 <= size:", "takes a cookie of any length"),
        ("at != len(octets)", "at > len(octets)", "takes octets behind the last record"),
    ),
    ("dns", "jitsu_tw/dns/lookup.py", "test.unit.dns.test_lookup"): (
        ("qtype == DS and zone is not None", "qtype == NS and zone is not None",
         "answers DS from the child's zone, though the parent's is here"),
        ("or key in seen or len(seen) > MAX_CHAIN", "or len(seen) > MAX_CHAIN", "follows a circle of CNAMEs"),
        ("None if node is None or node.vm is not None else node", "node",
         "gives a VM's address away in the additional section, where nothing starts the VM"),
        ("(glue if below in ancestors(target) else additional)", "(additional if below in ancestors(target) else glue)",
         "leaves glue out without TC"),
        ("if len(target) > MAX_NAME:", "if len(target) > MAX_NAME + 1:", "makes a name of 256 octets by a DNAME"),
    ),
    ("dns", "jitsu_tw/dns/zone.py", "test.unit.dns.test_zone test.unit.dns.test_lookup"): (
        ("found.type == DNAME or qtype == DS", "found.type == DNAME", "refers the DS of a delegation to the child"),
        ('return nodes.get(b"\\1*" + key)', 'node = nodes.get(b"\\1*" + key)',
         "lets a wildcard answer below a name that exists"),
        ("while not (node.rrsets or node.vm or node.below):", "while not (node.rrsets or node.vm):",
         "forgets the names below a VM's name that goes"),
    ),
    ("dns", "jitsu_tw/dns/reply.py", "test.unit.dns.test_reply"): (
        ("if lost or packet.truncated:", "if packet.truncated:", "drops an extended error without TC"),
        ("elif target < MOST_HOPS * _HOP:", "else:", "makes chains of compression pointers without end"),
        ("min(max(query.edns.size, UDP_SIZE_PLAIN), UDP_SIZE)", "max(query.edns.size, UDP_SIZE_PLAIN)",
         "sends as much by UDP as a forger asks for"),
    ),
    ("dns", "jitsu_tw/dns/cookies.py", "test.unit.dns.test_cookies"): (
        ("siphash(secret, signed + address)", "siphash(secret, signed)", "takes one client's cookie from any address"),
        ("if LIFETIME < age < _SERIAL - AHEAD:", "if LIFETIME < age < _SERIAL - 2 * AHEAD:",
         "takes a cookie from the future"),
        ("age <= RENEWED or", "age <= LIFETIME or", "renews no cookie before it is stale"),
    ),
    ("dns", "jitsu_tw/dns/rrl.py", "test.unit.dns.test_rrl"): (
        ("if source.proven or not self._one:", "if not self._one:", "limits clients that have proven their address"),
        ("return Decision.DROP if suppressed else Decision.SLIP", "return Decision.DROP",
         "tells no client of a flooded network to come by TCP"),
        ("kind + key + network(address)", "kind + network(address)", "limits a network's names together"),
    ),
    ("dns", "jitsu_tw/dns/tsig.py", "test.unit.dns.test_tsig"): (
        ("abs(now - record.time_signed) > record.fudge", "now - record.time_signed > record.fudge",
         "takes a signature from the future"),
        ("if not least <= given <= whole:", "if given > whole:", "takes a MAC of one octet"),
        ("key is None or key.algorithm != record.algorithm", "key is None", "lets the client choose the algorithm"),
    ),
    ("dns", "jitsu_tw/dns/transfer.py", "test.unit.dns.test_transfer"): (
        ("if not allowed.permit(source, signed):", "if False:", "transfers zones to everybody"),
        ("% 2**32 < 2**31", "% 2**32 <= 2**31", "takes a serial that is neither later nor earlier for current"),
    ),
    ("dns", "jitsu_tw/dns/warm.py", "test.unit.dns.test_server"): (
        ("query.tsig is not None\n            or", "False\n            or", "keeps a signed answer for other clients"),
        ("if asked != answer.last:", "if True:", "counts retransmissions"),
        ("or (query.edns is not None and query.edns.options)", "", "keeps an answer with a client's cookie for others"),
    ),
    ("lease, policy, admission", "jitsu_tw/vm/leases.py", "test.unit.vm.test_leases test.unit.vm.test_admission"): (
        ("        if can and lease.used == used:", "        if can:", "stops a VM that was used meanwhile"),
        ("self._keep(machine, lease, JUST_USED).until <= self._now()", "True", "makes room by VMs that are in use"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/lease.py", "test.unit.rules.test_lease test.unit.vm.test_leases"): (
        ("total - self.total if total >= self.total else total", "total - self.total",
         "takes no packet after a counter began anew for use"),
        ("or lease.planned != when", "", "looks at a lease twice that was given again"),
        ("self.level = -GREETING if self.per_minute else 0.0", "self.level = 0.0",
         "takes the packets of a guest that boots for use"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/keep.py", "test.unit.rules.test_keep"): (
        ("(lease.started + lease.min_up, Why.MIN_UP),", "", "stops a VM before its `min_up`"),
        ("(lease.seen_from, Why.UNSEEN),", "", "stops a VM whose use cannot be seen"),
        ("if is_held:", "if False:", "stops a VM that an operator holds up"),
        ("if not is_own:", "if False:", "stops a VM that another node owns"),
        ("if is_needed and now + idle >= until:", "if False:", "stops a VM that another one needs"),
        ("if last <= now:", "if False:", "gives the wrong reason for a stop by `max_up`"),
        ("    until = min(until, last)\n", "", "keeps a VM that is used beyond its `max_up`"),
        ("lease.stop_again_at > max(now, until)", "False", "tries a stop that failed again at once"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/policy.py", "test.unit.rules.test_policy"): (
        ("if self.verify_source and not source.proven:", "if False:", "starts VMs for forgers with `verify_source`"),
        ("running >= int(self.max_running * _UNPROVEN_RUNNING)", "running > int(self.max_running * _UNPROVEN_RUNNING)",
         "lets forgers fill one place of honest clients"),
        ("self._spend(network(address), now, most)", "self._spend(address, now, most)",
         "gives each address a budget, not each network"),
        ("_UNPROVEN_STARTS: Final = Fraction(1, 2)", "_UNPROVEN_STARTS: Final = Fraction(1)",
         "lets forgers use up a network's budget"),
        ("if free:\n            return Verdict.ADMITTED", "if False:\n            return Verdict.ADMITTED",
         "charges for a start that is none"),
        ("if address not in self._inside:", "if False:", "starts VMs for clients outside `summon_from`"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/schedule.py", "test.unit.rules.test_schedule"): (
        ("day % 7 for day", "day for day", "knows no Monday after a Sunday"),
        ("span.end <= span.begin", "span.end < span.begin", "ends a window of 24 hours when it begins"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/fair_queue.py", "test.unit.rules.test_fair_queue"): (
        ("del self._place[waiter], lines[whose], self._groups[group]", "del self._place[waiter], lines[whose]",
         "serves one group until it is empty"),
        ("del self._place[waiter], lines[whose], self._groups[group]\n        if line:",
         "del self._place[waiter], self._groups[group]\n        if line:", "serves one network until it is empty"),
    ),
    ("VM life", "jitsu_tw/rules/lifecycle.py", "test.unit.rules.test_lifecycle"): (
        ("_S.UNKNOWN: _row(_S.UNKNOWN, _SEEN)", "_S.UNKNOWN: _row(_S.UNKNOWN, {**_SEEN, _E.SUMMON: _S.QUEUED})",
         "starts a VM that may run already"),
        ("{_E.STARTED: _S.STOPPING, _E.READY: _S.STOPPING, _E.FAIL: _S.FAILED}",
         "{_E.STARTED: _S.WAITING, _E.READY: _S.STOPPING, _E.FAIL: _S.FAILED}", "forgets that a VM is to be stopped"),
        ("_E.STOP_FAILED: _S.UP,", "_E.STOP_FAILED: _S.OFF,", "takes a VM that could not be stopped for off"),
    ),
    ("VM life", "jitsu_tw/rules/life.py", "test.unit.vm.test_fleet"): (
        ("2.0 ** (failures - 2)) if failures > 1", "2.0 ** (failures - 2)) if failures > 2",
         "does not rest after a second failure"),
        ("and not is_second else", "else", "tries a broken VM again without end"),
        ("and self.reason not in IN_ORDER", "", "takes a guest that has done its work for a failure"),
        ("if self.fault not in BLAMELESS:", "if True:", "lets a VM rest because its host is full"),
        ("then = Start(cold=self.next.cold)\n", "then = Start()\n", "forgets that the next start must boot"),
    ),
    ("VM life", "jitsu_tw/rules/vitals.py", "test.unit.rules.test_vitals"): (
        ("min(ANSWERS * one.tries, MOST_ANSWERS)", "ANSWERS * one.tries", "hides any traffic behind many tries"),
        ("a.packets <= b.packets", "True", "takes a counter that began anew for silence"),
    ),
    ("Synjitsu", "synjitsu_tw/standins.py", "test.unit.synjitsu.test_standins"): (
        ("standin.proven = standin.macs[0], False", "standin.proven = standin.macs[-1], False",
         "hands over to the wrong interface"),
        ("if frame is None or frame.src == link.mac:", "if frame is None:", "answers its own frames"),
        ("and content.sport == standin.probe_port and", "and", "takes any SYN-ACK for the sign that a guest listens"),
        ("if not asleep and was is not State.BOOTING:", "if not asleep:", "tells peers anew of each announcement"),
        ("standin.state is State.ASLEEP and not wakes", "False", "holds packets for ports that nothing listens on"),
        ("if standin.mac not in standin.seen_on:\n            if handed:",
         "if False:\n            if handed:", "sends packets to a guest before it is there"),
        ("not standin.is_guest(message.mac):\n            if not self._look_ups",
         "False:\n            if not self._look_ups", "answers the guest's duplicate check: its address is taken"),
        ("if packet.takes_back(one.packet):", "if True:", "lets a forged RST end the hand-over of a SYN"),
        (">= ADVERTISE_EVERY", ">= 0", "floods a peer with announcements"),
    ),
    ("Synjitsu", "synjitsu_tw/syns.py", "test.unit.synjitsu.test_syns test.unit.synjitsu.test_standins"): (
        ("held.proven = before is not None and now - before >= AGAIN", "held.proven = before is not None",
         "takes two SYNs at once for a client that waits"),
        ("if vm.share(source) >= limits.per_network:", "if False:", "lets one network take all places of a VM"),
        ("held is None or not packet.takes_back(held.packet)", "held is None", "lets a forged RST drop a held SYN"),
        ("self._limits, held.packet.src\n", "self._limits, held.packet.dst\n", "counts shares by the wrong address"),
        ("or self.octets + held.octets > limits.octets", "", "holds octets without limit"),
    ),
    ("Synjitsu", "synjitsu_tw/packets.py", "test.unit.synjitsu.test_packets test.unit.synjitsu.test_standins"): (
        ("& (SYN | ACK | RST) == SYN", "& (SYN | RST) == SYN", "takes a SYN-ACK for an opening"),
        ("in {1, 1 + syn.length}", "in {0, 1, 1 + syn.length}", "takes a RST of another connection"),
        ("if hops != _HOPS or", "if", "believes neighbour messages from beyond a router (RFC 4861, 7.1)"),
    ),
    ("Synjitsu", "synjitsu_tw/conversation.py", "test.unit.synjitsu.test_conversation"): (
        ('elif not compare_digest(box.get(b"secret", b""), self.factory.secret.encode()):', "elif False:",
         "takes commands without the secret"),
        ("if box[amp.COMMAND] != _HELLO:", "if False:", "takes commands before `Hello`"),
    ),
    ("store and requests", "jitsu_tw/store/merge.py", f"test.unit.sync.test_remote {_REQUESTS}"): (
        ("if other in {was, mine}:", "if other == mine:", "undoes our own change by a request that leaves it alone"),
        ("if mine != was:\n", "if False:\n", "merges over a conflict"),
    ),
    ("store and requests", "jitsu_tw/store/bounds.py", f"{_BOUNDS} {_REQUESTS}"): (
        ("if size > LONGEST_VALUE:", "if False:", "reads values of any length"),
        ("self._files > MOST_FILES_TOGETHER", "False", "reads any number of files in many VMs"),
        ("depth <= DEEPEST", "depth <= DEEPEST + 100", "follows folders without end"),
        ("elif not depth or mode not in _PLAIN:", "elif not depth:", "takes a symbolic link for a value"),
        ("for one in new:\n            self._only_vms", "for one in new[:1]:\n            self._only_vms",
         "looks at a request's last commit only"),
        ("if canonical != uuid:", "if not canonical:", "takes two names of one uuid for two VMs"),
    ),
    ("store and requests", "jitsu_tw/store/requests.py", f"{_REQUESTS} {_BOUNDS}"): (
        ("if _target(references[branch]) == request.commit:", "if True:",
         "removes a request that was pushed while another was read"),
        ("if path in was}", "}", "cannot remove a VM that Jitsu has added a value to"),
    ),
    ("store and requests", "jitsu_tw/sync/permissions.py", f"test.unit.sync.test_permissions {_REQUESTS}"): (
        ("if name != guest or not", "if not", "lets a guest change another VM"),
        ("if is_here(str(address)):", "if False:", "lets a guest take an address of the host"),
        ("(node is not None and node.rrsets)", "False", "lets a guest take a name of the zone's file"),
        ("if full_at - now > _MINUTE:", "if False:", "takes any number of requests of a guest"),
        ("key not in VM_KEYS or VM_KEYS[key].own is None", "False", "lets a guest change any key"),
    ),
    ("store and requests", "jitsu_tw/store/push.py", "test.programs.test_push.RefusalTests"): (
        ("if vm and not own:", "if False:", "lets a guest push to another's branches"),
        ('if branch == "refs/heads/main":', "if False:", "lets anybody push to main"),
    ),
}


def mutants() -> Iterator[Mutant]:
    """Yield all mutants, by kind."""
    for (kind, file, tests), rows in _ROWS.items():
        for old, new, fault in rows:
            yield Mutant(kind, file, old, new, tuple(tests.split()), fault)
