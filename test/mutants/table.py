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
_RELOADS: Final = "test.unit.sync.test_reload"

#: The kind of those that must all be caught.
CLUSTER: Final = "cluster guards"

_GUARDS: Final = "test.unit.cluster.test_claims_guards test.unit.cluster.test_stop_notice test.unit.cluster.test_claims"

#: Of the VMs that templates make in a cluster.
_MADE: Final = "test.unit.cluster.test_reservations"

_LEASES: Final = "test.unit.vm.test_leases test.unit.vm.test_evidence test.unit.vm.test_admission"
_GUESTS: Final = "test.unit.control.test_guests test.programs.test_hostile.GuestTests"

#: Of `UDPPort.doRead`.
_WARM: Final = "            self._datagrams.send(replies)\n"
_OTHERS: Final = """\
            if others:
                self._cold.extend((packets[at], clients[at], route) for at, route in zip(others, routes, strict=True))
                self._look()
"""

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
    ("dns", "jitsu_tw/dns/server.py", "test.unit.dns.test_server"): (
        ("self.limiter is not None and not pending.source.proven:", "self.limiter is not None:",
         "limits clients that have proven their address"),
    ),
    ("dns", "jitsu_tw/dns/datagrams.py", "test.unit.dns.test_udp"): (
        ("READ: Final = LONGEST + 1", "READ: Final = LONGEST", "answers a query that it has cut"),
    ),
    ("dns", "jitsu_tw/dns/wire.py", "test.unit.dns.test_udp"): (
        ("else unmapped(client[6:22])", "else client[6:22]", "takes an IPv4 client on an IPv6 socket for another"),
    ),
    ("dns", "jitsu_tw/dns/udp.py", "test.unit.dns.test_udp"): (
        ("        except Exception:", "        except ZeroDivisionError:", "closes the port at a fault"),
        ("if others or len(packets) < BATCH:", "if len(packets) < BATCH:", "works on cold queries for too long"),
        ("range(0 if self._cold else ROUNDS)", "range(ROUNDS + 1)", "answers warm queries for too long"),
        ("min(COLD, len(self._cold))", "len(self._cold)", "works on cold queries for too long"),
        ("        if self.connected:\n", "        if True:\n", "fails where a reply comes after the end"),
        ("(ImportError, AttributeError, OSError)", "ImportError", "does not serve where the kernel has no recvmmsg"),
        ("(ImportError, AttributeError, OSError)", "OSError", "does not serve where there is no cffi"),
        ("Batched(made, wildcard=self._wildcard)", "Batched(made, wildcard=False)",
         "replies from another address than was asked"),
        (_WARM + _OTHERS, _OTHERS + _WARM,
         "lets warm answers wait for cold queries"),
    ),
    ("dns", "jitsu_tw/dns/mmsg.py", "test.unit.dns.test_udp"): (
        ("if count <= 0:", "if count == 0:", "takes old datagrams for new ones when the kernel reports an error"),
        ("done += max(sent, 1)", "done = count", "loses the replies behind one that cannot be sent"),
        ("self._slots[self._clients[index]]\n", "self._slots[self._clients[to]]\n", "sends a reply to another client"),
        ("octets[index * step : (index + 1) * step]", "octets[to * step : (to + 1) * step]",
         "replies from an address that another asked"),
        ("self._spaces[:count] = self._whole[:count]", "pass", "does not ask again for the address that was asked"),
        ("self._from[:count] = self._to[:count]", "pass", "answers broadcasts"),
        ("interfaces[:count] = _NO_INTERFACES[:count]", "pass", "sends each reply back by the query's interface"),
        (" if octet == _LINK_LOCAL}", " if octet < 0}", "forgets the interface of a link-local address"),
        ("scope = int.from_bytes(client[22:26], sys.byteorder)", "scope = 0", "cannot reply to link-local clients"),
        ("if _RECEIVE(self._descriptor, _NULL, 0, _DO_NOT_WAIT, _NULL) < 0:", "if False:",
         "reads nothing where the kernel does not allow recvmmsg"),
    ),
    ("dns", "jitsu_tw/dns/warm.py", "test.unit.dns.test_server"): (
        ("query.tsig is not None\n            or", "False\n            or", "keeps a signed answer for other clients"),
        ("if client != answer.last:", "if True:", "counts retransmissions"),
        ("if limiter is not None and (", "if False and (", "limits no warm answers"),
        ("if now >= lease.check_at:", "if False:", "never sees whether a VM in use is alive"),
        ("if keepers is None or address_of(client) in keepers:", "if True:", "lets all clients keep VMs up"),
        ("or (query.edns is not None and query.edns.options)", "", "keeps an answer with a client's cookie for others"),
    ),
    ("dns", "jitsu_tw/dns/warm.py", "test.unit.dns.test_counters"): (
        ("self._count(answer, count)", "pass", "does not count warm answers for the metrics"),
        ("self._count(answer, 1)", "pass", "does not count answers to retransmissions"),
        ("truncated=bool(answer.rest[0] & TC >> 8)", "truncated=False", "counts no warm answers with TC as truncated"),
    ),
    ("dns", "jitsu_tw/dns/querylog.py", "test.unit.dns.test_querylog"): (
        (" | os.O_NONBLOCK", "", "waits for ever for a reader of a pipe"),
        ("if len(self._lines) >= MOST_WAITING:", "if False:", "keeps lines without end for a disk that hangs"),
        ("printable(to_text(question.asked))", "question.asked.decode('latin-1')", "lets a name make lines of its own"),
        ('("\\n" * self._torn + ', "(", "appends a line to the rest of a torn one"),
    ),
    ("control", "jitsu_tw/bounded_web.py", "test.unit.control.test_webhooks"): (
        ("if self._received > LONGEST_ANSWER:", "if False:", "keeps an answer without end"),
    ),
    ("templates shown", "jitsu_tw/control/templates.py", "test.unit.control.test_templates"): (
        ("and free < template.max - made:", "and True:", "warns of a pool from which nothing more is wanted"),
        ("if free <= LEAST_FREE * whole", "if free <= 0", "warns of a pool when it is empty"),
        ("if any(one.overlaps(another)", "if other is template and any(one.overlaps(another)",
         "counts addresses for free that another template has taken"),
        ("for name in sorted(told.keys() - fleet.templates.keys()):", "for name in ():",
         "does not tell that a template is missing"),
    ),
    ("templates shown", "jitsu_tw/control/metrics.py", "test.unit.control.test_templates"): (
        ("if one.vm.template is None)", "if True)", "has series that come and go with the VMs of templates"),
    ),
    ("templates shown", "jitsu_tw/control/describe.py", "test.unit.control.test_templates"): (
        ("and machine.state in DOWN\n", "\n", "tells when a VM that is up is forgotten"),
        ("    if not template.forget_after:\n", "    if False:\n", "tells that a VM is kept for 0 s"),
    ),
    ("templates shown", "jitsu_tw/control/configured.py", "test.unit.control.test_templates"): (
        ("elif template is not None and key in template.raw:", "elif False:",
         "does not tell what a VM has from its template"),
    ),
    ("templates shown", "jitsu_tw/ctl/running.py", "test.programs.test_templates.ForgetTests"): (
        ("    if not yes:\n", "    if False:\n", "removes disks without a question"),
        ('if also_up or vm["state"] in show.DOWN', "", "stops VMs that are to be left alone"),
        ('if vm["template"] == template]', "]", "forgets the VMs of other templates"),
    ),
    ("templates shown", "jitsu_tw/ctl/edit.py", "test.programs.test_templates.EditTests"): (
        ("    if TEMPLATE in keys:\n", "    if False:\n", "takes names for a VM whose template has them"),
        ("files_of({**kept, **texts})", "files_of(texts)", "cuts an edited VM off from its template"),
        ("is_path = declared.path or ", "is_path = declared.path and ", "looks for a list where the server runs"),
    ),
    ("templates shown", "jitsu_tw/ctl/diagnosis/templates.py", "test.unit.ctl.test_templates"): (
        ("if path.is_file() and os.access(path, os.X_OK):", "if False:", "takes a program for a list"),
        ("if any(one.overlaps(other) for other in template.pool)", "if True", "warns of all DHCP servers"),
    ),
    ("control", "jitsu_tw/control/outbox.py", "test.unit.control.test_webhooks"): (
        ("url=self._server, why=reason", "url=self._url, why=reason", "logs a URL that is a secret"),
        ("if len(self._waiting) >= MOST_WAITING:", "if False:", "keeps documents without end for a dead server"),
        (".addTimeout(ANSWERS_WITHIN, self._reactor)", "", "waits for ever for a server that does not answer"),
    ),
    ("lease, policy, admission", "jitsu_tw/vm/leases.py", _LEASES): (
        ("if idle is None else self._keep(machine, lease, idle).until <= self._now()", "if idle is None else True",
         "stops a VM that was used meanwhile"),
        ("if idle is None else self._keep(machine, lease, idle).until <= self._now()", "",
         "never stops a busy VM for its `max_up`"),
        ("for _, name in sorted(idle):", "for _, name in sorted(idle, reverse=True):",
         "stops the VM that was used last to make room"),
        ("self._keep(machine, lease, JUST_USED).until <= self._now()", "True", "makes room by VMs that are in use"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/lease.py", "test.unit.rules.test_lease test.unit.vm.test_leases"): (
        ("total - self.total if total >= self.total else total", "total - self.total",
         "takes no packet after a counter began anew for use"),
        ("or lease.planned != when", "", "looks at a lease twice that was given again"),
        ("self.level = -self.greeting if self.per_minute else 0.0", "self.level = 0.0",
         "takes the packets of a guest that boots for use"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/keep.py", "test.unit.rules.test_keep"): (
        ("(lease.started + lease.min_up, Why.MIN_UP),", "", "stops a VM before its `min_up`"),
        ("(lease.seen_from, Why.UNSEEN),", "", "stops a VM whose use cannot be seen"),
        ("(lease.connected_until(), Why.CONNECTED),", "", "stops a VM with an open connection"),
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
        ("self._spend(network(source.address), now, most)", "self._spend(source.address, now, most)",
         "gives each address a budget, not each network"),
        ("_UNPROVEN_STARTS: Final = Fraction(1, 2)", "_UNPROVEN_STARTS: Final = Fraction(1)",
         "lets forgers use up a network's budget"),
        ("if free:\n            return Verdict.ADMITTED", "if False:\n            return Verdict.ADMITTED",
         "charges for a start that is none"),
        ("if source.address not in self._inside:", "if False:", "starts VMs for clients outside `summon_from`"),
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
        ("{_E.STARTED: _S.STOPPING, _E.PREPARED:", "{_E.STARTED: _S.WAITING, _E.PREPARED:",
         "forgets that a VM is to be stopped"),
        ("_E.STOP_FAILED: _S.UP,", "_E.STOP_FAILED: _S.OFF,", "takes a VM that could not be stopped for off"),
    ),
    ("prepared VMs", "jitsu_tw/rules/prepare.py", "test.unit.vm.test_preparation test.unit.vm.test_fleet"): (
        ("if len(prepared) > most:", "if False:", "keeps more VMs prepared than it may"),
        ("if oldest is not None and prepared[oldest] < waiting[newest]:", "if False:", "never prepares a newer VM"),
        ("memory.needed * (1 + SPARE) <= memory.free", "memory.needed <= memory.free", "takes the memory of starts"),
        ("if state in IDLE and old not in PREPARES and vm", "if state in IDLE and vm", "makes an image time and again"),
        ("if self.rests.get(name, NO_REST).until <= now", "if True", "boots a broken guest again and again"),
    ),
    ("prepared VMs", "jitsu_tw/vm/preparation.py", "test.unit.vm.test_preparation"): (
        ("self._is_running and self._current is None and not self._chooses", "self._is_running and not self._chooses",
         "prepares two VMs at once"),
        ("if unwanted := self._unwanted():", "if unwanted := None:", "keeps what nobody wants prepared"),
        ('current.stop(f"{name} is started for a client")', "pass", "gives no way to a client"),
        ("if why and machine.state is State.PREPARED:", "if False:", "keeps an old guest"),
        ("other.backend is machine.backend and ", "", "gives up VMs of another hypervisor"),
        ("not self._ownership.is_others(machine) and not self._dependencies.down(machine)", "True",
         "boots a VM without what it needs"),
    ),
    ("clones", "jitsu_tw/rules/prepare.py", "test.unit.vm.test_preparation"): (
        ("if alike not in self.cloned and vm.layer", "if vm.layer", "starts each clone once for nobody"),
        (" and vm.layer is None:", ":", "starts a VM for an image that its disk rules out"),
        ('"define" not in vm.raw', "True", "makes the image of a template after a VM that is defined otherwise"),
        ("if now >= self.rests.get(name, NO_REST).until", "if True", "makes an image without end that cannot be"),
    ),
    ("clones", "jitsu_tw/vm/preparation.py", "test.unit.vm.test_preparation"): (
        ("if self._ownership.is_own(machine):", "if True:", "makes the image of a template after another node's VM"),
    ),
    ("clones", "jitsu_tw/backends/libvirt.py", "test.unit.backends.test_clone"): (
        ("    if seed:\n", "    if False:\n", "starts clones that are not ready again and again"),
        ("if any(other.template == vm.template for other in self._vms.values()):", "if False:",
         "removes an image that other VMs start from"),
    ),
    ("clones", "jitsu_tw/backends/clone.py", "test.unit.backends.test_clone"): (
        ("        if not _is(kept, sum_):\n", "        if False:\n", "starts clones of a kernel that has changed"),
        ("if (where := domain_xml.difference(first, other)) is not None:", "if where := None:",
         "starts clones that have another VM's address"),
        ("        if domain.isActive():\n", "        if False:\n", "leaves a clone without its network running"),
        ("        prepared.add_unfinished(own)\n", "", "serves a clone without its network, as Jitsu was killed"),
        ("if size > _LONGEST:", "if False:", "fills the disk by a number in a damaged image"),
        ("    return [*disks, *interfaces]", "    return [*interfaces, *disks]",
         "plugs in the sign that all is there before the disk"),
        ("    file.touch(mode=0o600)\n", "", "shows a guest's memory to all users of the host"),
        ("    finally:\n        _destroy(connection, own)\n", "    finally:\n", "leaves the guest of an image running"),
    ),
    ("prepared VMs", "jitsu_tw/backends/prepared.py", "test.unit.backends.test_qemu"): (
        ("if boot != image.made_of(domain, writable=False):", "if False:", "keeps an old kernel's guest"),
        ("if mark.files != image.made_of(domain, writable=True):", "if False:", "starts an old kernel's guest"),
        ("if cpu > mark.cpu + CPU_TICKS or packets != mark.packets:", "if False:", "keeps a guest that has run"),
        ("domain.setMetadata(_KIND, None, PREFIX, NAMESPACE, _LIVE)", "pass", "takes a paused guest for clean"),
    ),
    ("templates", "jitsu_tw/backends/layer.py", "test.unit.backends.test_layer"): (
        ("os.link(new, layer.path)", "new.replace(layer.path)",
         "puts an empty layer in the place of one that a guest writes to"),
        ('if _state(Path(name)) == f"{line}\\n":', "if _state(Path(name)):",
         "lets a guest find two disks mixed, as a file below its disk has changed"),
        ("if before is None or one.stat().st_mtime < before:", "if one:",
         "breaks a layer that another process is making"),
    ),
    ("templates", "jitsu_tw/backends/domain.py", "test.unit.backends.test_backends"): (
        ("        if state(connection, vm.uuid) is Power.RUNNING:\n", "        if False:\n",
         "destroys a VM that runs to remove it"),
        ("if made and vm.layer is not None", "if vm.layer is not None",
         "removes a VM's data because its definition is refused"),
        ("and alive(connection):  # else it may have been defined", "and connection:",
         "takes the disk of a VM that was defined as the connection broke"),
        ("if vm.define is None or vm.removed:\n            remedy", "if vm.define is None:\n            remedy",
         "makes a VM again that is being removed"),
    ),
    ("prepared VMs", "jitsu_tw/backends/libvirt.py", "test.unit.backends.test_qemu"): (
        ("            self._prepared.discard(uuid)\n", "", "starts a guest that has run without a look"),
    ),
    ("prepared VMs", "jitsu_tw/vm/steps.py", "test.unit.vm.test_preparation"): (
        ('"" if machine.ready else "its guest is not known to be ready"', '""', "keeps a guest that is not ready"),
        ("if prepares or not await context.give_up_prepared(machine):", "if True:",
         "fails a start though prepared VMs have the memory"),
    ),
    ("prepared VMs", "jitsu_tw/vm/adoption.py", "test.unit.vm.test_preparation"): (
        ("if machine.state is not State.PREPARED:", "if True:", "forgets what is prepared of a VM that is removed"),
    ),
    ("VM life", "jitsu_tw/rules/life.py", "test.unit.rules.test_life test.unit.vm.test_fleet"): (
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
    ("VM life", "jitsu_tw/vm/steps.py", "test.unit.vm.test_steps test.unit.vm.test_fleet"): (
        ("    await remembered\n", "", "starts a VM before that is in the state"),
        ("while memory is not None and memory.shortage:", "while False:", "starts a VM without room for it"),
        ("        await machine.backend.drop_image(machine.uuid)\n", "        pass\n", "restores where it is to boot"),
        ("if power is Power.RUNNING:", "if False:", "takes a VM that goes on running for stopped"),
        ('signs.insert(0, fail(BackendError("it went down while it was starting")))', "pass",
         "takes a VM that went down while it started for up"),
    ),
    ("VM life", "jitsu_tw/vm/leases.py", "test.unit.vm.test_evidence test.unit.vm.test_leases"): (
        ("meter.fill()", "meter.level = 0.0", "stops a VM in use when Jitsu has been killed"),
        ("            await self._observe(machine, lease)\n        if self._leases.get",
         "            pass\n        if self._leases.get",
         "stops a VM whose guest was used while the hypervisor was asked"),
        ("                lease.use(self._now(), Use.KNOWN)  # while", "                pass  # while",
         "takes a VM whose packets cannot be counted for idle"),
    ),
    ("guest's word", "jitsu_tw/guests.py", _GUESTS): (
        ("if mac is None or mac not in {*guest.macs, *machine.vm.mac}:", "if False:",
         "takes the word of any neighbour that has a guest's address"),
        ("        self.check_page(request, by_name=False)\n", "", "takes the word of web pages"),
        ("        self._spend(request, self._named(request))\n", "", "lets a guest ask as often as it likes"),
        ("        return packed(peer.host)", "        return packed(peer.host)[:3]",
         "closes the connections of one guest for those of its neighbours"),
        ("and any(ip.packed == address for ip in machine.vm.ip)", "", "takes an address for the VM's that had it"),
        ("if machine is None and now - self._searched >= SEARCH_EVERY:", "if machine is None:",
         "searches all VMs for each stranger"),
        ('return b"" if gone.called else function(request, machine)', "return function(request, machine)",
         "listens for ever for a guest that is gone"),
        ("        if not seconds:", "        if False:", "takes a hold without an end"),
    ),
    ("guest's word", "jitsu_tw/vm/xenguests.py", "test.unit.vm.test_xenguests"): (
        ("words.isascii() and words.isdigit() and len(words) <= DIGITS", "words.isdigit()",
         "takes any digits for seconds"),
        ("                await deferLater(self._reactor, LOOK_EVERY)\n", "", "looks as often as a guest writes"),
        ("        await tree.remove(path)\n", "        pass\n", "leaves what a guest has asked for there"),
        ("        self._end(machine.vm.name)\n", "", "looks at the keys of a guest that does not run"),
    ),
    ("guest's word", "jitsu_tw/vm/guests.py", "test.unit.control.test_guests"): (
        ("if lease is None or not self._ownership.is_own(machine):", "if lease is None:",
         "holds a VM that another node owns"),
        ("min(held - self._wall(), LONGEST_HOLD)", "held - self._wall()",
         "holds a VM for months when the clock is set back"),
        ("        self._stats.hold(machine, until)\n", "", "forgets holds when it restarts"),
        ("or kept.why is Why.DONE:", "or False:", "loses time before a stop that the guest has asked for"),
        ("if not machine.vm.notify or name not in self._listeners", "if not machine.vm.notify",
         "loses time before a stop of which nobody is told"),
        ("        if self._told.pop(machine.vm.name, None) is not None:", "        if False:",
         "announces no second stop"),
    ),
    ("guest's word", "jitsu_tw/vm/stats.py", "test.unit.control.test_guests"): (
        ("        stats.held_ts = min(stats.held_ts, self._wall())\n", "",
         "holds a VM as its guest did in an earlier run"),
    ),
    ("guest's word", "jitsu_tw/rules/keep.py", "test.unit.rules.test_keep"): (
        ("            (lease.held_until, Why.GUEST),\n", "", "stops a VM that its guest holds"),
        ("idle = min(idle, JUST_USED)", "idle = 0", "stops a VM whose client is about to connect"),
    ),
    ("guest's word", "jitsu_tw/rules/lease.py", "test.unit.rules.test_lease"): (
        ("        if now - self.done_at >= DONE_FOR:", "        if False:", "puts a VM to sleep that is in use again"),
        ("self.asked() <= self.done_at and not", "not", "puts a VM to sleep that a client asked for since"),
        (" and not (self.flows.open and self.flows.last > self.done_at)", "",
         "puts a VM to sleep that a client has connected to since"),
    ),
    ("guest's word", "jitsu_tw/rules/lease.py", "test.unit.rules.test_lease test.unit.vm.test_evidence"): (
        ("        if now >= self.greets_until:", "        if False:", "takes a conversation for a guest that boots"),
        ("return max(self.flows.last, sent) +", "return self.flows.last +", "stops a VM whose connection is in use"),
        ("        if flows.open < self.flows.open:", "        if False:", "stops a VM when its connection closes"),
    ),
    ("VM life", "jitsu_tw/vm/evidence.py", "test.unit.vm.test_leases test.unit.vm.test_evidence"): (
        ("lease.seen_from = -inf if is_seen else inf", "lease.seen_from = -inf",
         "stops a VM whose packets cannot be counted"),
        ("elif (packets := await standins.packets(machine)) is not None:", "elif (packets := None) is not None:",
         "does not see what a guest receives"),
    ),
    ("VM life", "jitsu_tw/vm/adoption.py", "test.unit.vm.test_adoption test.unit.vm.test_fleet"): (
        ("elif name in self._unseen and self._store.stats.was_started(machine) and", "elif name in self._unseen and",
         "adopts a VM that Jitsu had not started"),
        ("if machine.state in DISOWNED and not machine.is_unsure:", "if machine.state in DISOWNED:",
         "gives up a VM that may run"),
        ("        elif machine.vm.name in self._unseen and (seconds :=", "        elif False and (seconds :=",
         "gives up a VM that a start call of an earlier Jitsu brings up"),
    ),
    ("lease, policy, admission", "jitsu_tw/vm/admission.py", "test.unit.vm.test_admission test.unit.vm.test_fleet"): (
        ("while self._queue and len(self._booting) < self._max_booting:", "while self._queue:",
         "boots all VMs at once"),
        ("if self._max_running and len(self._on_host) >= self._max_running:", "if False:",
         "runs more VMs than `max_running`"),
        ("if not self._makes_room:", "if False:", "stops a VM to make room though that is not allowed"),
    ),
    ("lease, policy, admission", "jitsu_tw/rules/admit.py", "test.unit.vm.test_fleet"): (
        ("return Answer() if is_up else refuse(verdict)", "return refuse(verdict)",
         "refuses a client of a VM that is up because of what that VM needs"),
        ("if not is_up and lost is not None:", "if lost is not None:",
         "refuses clients of a VM that is up while its hypervisor cannot be asked"),
    ),
    ("stand-ins", "jitsu_tw/vm/standins.py", "test.unit.vm.test_standins"): (
        ("tuple(dict.fromkeys((*vm.mac, *self._guests.get(vm.name, Guest()).macs)))",
         "tuple(dict.fromkeys((*vm.mac, *self._guests.get(vm.name, Guest()).macs)))[::-1]",
         "hands over to the last of several interfaces"),
        ("if self._observer.is_others(machine):\n            self._stop", "if False:\n            self._stop",
         "announces a VM that another node owns"),
        ("self._guests[machine.vm.name] = attrs.evolve(known, domid=None)", "pass",
         "hands over by the number of an earlier boot"),
        ("if machine.boots_again:", "if False:", "drops the packets of a VM that is started once more"),
        ("if self._by_ip.get(str(ip)) == machine.vm.name]", "]", "withdraws an address that another VM has now"),
    ),
    ("statistics", "jitsu_tw/vm/persistence.py", "test.unit.vm.test_persistence test.unit.vm.test_fleet"): (
        ("        if self.stats.stopped(machine):\n            self._save_at_once(machine)",
         "        self.stats.stopped(machine)", "writes a stop some seconds late"),
        ("            self._save_at_once(machine)\n        elif old", "        elif old",
         "writes a start some seconds late"),
        ("        elif old in {State.STARTING, State.PREPARING}:\n            self.stats.called(machine)\n", "",
         "takes a start call that has ended for one that may go on"),
        ("                self.stats.changed |= names | self._urgent\n", "", "forgets what could not be written"),
    ),
    ("statistics", "jitsu_tw/vm/stats.py", "test.unit.vm.test_persistence test.unit.vm.test_fleet"): (
        ("max(self._wall(), stats.stop_ts + _LATER)", "self._wall()",
         "takes a VM for stopped that was started while the clock was set back"),
        ("max(self._wall(), stats.start_ts, stats.last_request_ts)", "self._wall()",
         "takes a VM for started that was stopped while the clock was set back"),
    ),
    (CLUSTER, "jitsu_tw/vm/steps.py", _GUARDS): (
        ("    context.ownership.prove(machine)\n", "", "starts a VM that another node may have started by now"),
    ),
    (CLUSTER, "jitsu_tw/vm/admission.py", "test.unit.cluster.test_claims"): (
        ("if own and machine.state is State.QUEUED:", "if machine.state is State.QUEUED:",
         "boots a VM that another node has claimed"),
    ),
    (CLUSTER, "jitsu_tw/cluster/claims.py", _GUARDS): (
        ("if not self.is_own(machine):\n            raise", "if False:\n            raise",
         "proves a claim that is lost"),
        ("if not self.is_own(machine):\n            return inf", "if False:\n            return inf",
         "stops a VM that another node owns"),
        ("and self._clocks.now() >= self._state.connected_at + REUNION", "",
         "stops a VM before a node that was cut off, too, could tell that it is used"),
        ("if self.refusal:\n                raise", "if False:\n                raise",
         "claims VMs while it is drained"),
        ("if own and machine.state not in WANTED | PREPARES | {State.PREPARED}:", "if False:",
         "keeps a claim that nobody needs any more"),
        ("if machine.state is State.UP and await self.claim(machine):", "if await self.claim(machine):",
         "adopts a VM that is down"),
        ("and not self._hosts.is_blind(machine)", "", "adopts a VM that it cannot see"),
        ("DeferredSemaphore(ADOPTS_AT_ONCE)", "DeferredSemaphore(1000)", "looks at all VMs of a dead node at once"),
        ("and machine.state not in ACTIVATING | CALLING", "", "hands a VM over while it starts or stops it"),
        ("                self._notices.drop(machine)\n                begin", "                begin",
         "takes a notice of before for one of the next stop"),
        ("        self._notices.clear()\n", "", "takes a notice for given that no node may have heard"),
        ("            if machine.state not in DOWN:\n", "            if False:\n",
         "releases the claim of a VM that starts again"),
        ("and value is None and self.connected:", "and False:", "is unknown to the others after a restart"),
        ("            call.cancel()\n        self._tidying", "            pass\n        self._tidying",
         "goes on after its end"),
    ),
    (CLUSTER, "jitsu_tw/cluster/cluster_state.py", _GUARDS): (
        ("{claim: self._claim(phase, why)}, claim)", "{claim: self._claim(phase, why)})",
         "overwrites the claim of another node"),
        ('for kind in kinds}, key("claims", machine))', "for kind in kinds})", "removes the claim of another node"),
        ('json.dumps(fact)}, key("claims", machine))', "json.dumps(fact)})", "overwrites another node's start"),
    ),
    (CLUSTER, "jitsu_tw/cluster/facts.py", _GUARDS): (
        ('not self.lost and self.is_drained("nodes", self.node)', "False", "starts VMs while it is drained"),
        ('return self.coordinator.holds(key("claims", machine))',
         "return self.owner(machine) == self.node", "takes a claim for its own that may have run out"),
    ),
    (CLUSTER, "jitsu_tw/cluster/starts.py", _GUARDS): (
        ("machine.vm.name in self._own or", "True or", "forgets a start of a dead node that may succeed yet"),
        ("        self._own.discard(machine.vm.name)\n", "", "takes another node's start for its own of before"),
        ("and self._state.holds(machine) and", "and", "records another host of a VM that another node owns"),
        ("+ STARTS_WITHIN <=", "<=", "removes what is recorded of a start that may succeed yet"),
    ),
    (CLUSTER, "jitsu_tw/cluster/requests.py", _GUARDS): (
        ("if machine.state not in STOPS | {State.UP, State.WAITING}:", "if True:",
         "takes a VM for stopped that is not"),
    ),
    (CLUSTER, "jitsu_tw/cluster/membership.py", _GUARDS): (
        ("if machine is None or not self.ownership.is_own(machine):", "if machine is None:",
         "does what the owner of a VM is asked for"),
        ("            self.ownership.release(up(self._machines), self.ownership.refusal)", "            pass",
         "keeps its VMs when drained"),
    ),
    (CLUSTER, "jitsu_tw/rules/reservations.py", _MADE): (
        ("Step.NOTHING if here is None else Step.PUBLISH", "Step.NOTHING if here is None else Step.DROP",
         "forgets its VMs when etcd has lost its data"),
        ("return Step.NOTHING if set(here) == set(known.ips) else Step.REPLACE", "return Step.NOTHING",
         "keeps a VM with an address that is another VM's by now"),
    ),
    (CLUSTER, "jitsu_tw/cluster/reservations.py", _MADE): (
        ("expected={**own, **(expected or {})}", "expected={}", "gives one address to two VMs of two nodes"),
        ("expected={**own, **(expected or {})}", "expected=expected", "makes two VMs of one name at two nodes"),
        ("            if not {None, name}.issuperset(taken.values()):\n                return None\n", "",
         "takes an address away from another VM"),
        ("known.removed is not None or known.used >= before or any(map(self._fact, claim))",
         "known.removed is not None or any(map(self._fact, claim))", "forgets a VM that another node's clients use"),
        ("            if known.remover is not None and not self._removes(known):", "            if False:",
         "removes a VM at two nodes at once"),
        ('known.remover == self._state.node or self._fact(f"nodes/{known.remover}") is None',
         "known.remover == self._state.node", "leaves a VM half removed when the node that removes it is gone"),
        ("while name in self._machines and self._ownership.is_others(self._machines[name]):", "while False:",
         "removes the definition of a VM that its owner has not stopped"),
        ("for address in {*addresses, *known.ips}", "for address in addresses", "leaves an address taken for ever"),
        ("            self.release(name, addresses)\n        own", "            pass\n        own",
         "never frees an address if etcd is away when the VM is gone"),
        (("            for one in [one for one, remover in self._removers.items() if remover == name]:\n"
         "                self._events.made_changed(one)\n"), "            pass\n",
         "does not take over from a node that is gone"),
    ),
    (CLUSTER, "jitsu_tw/sync/shared_members.py", _MADE): (
        ("            machine = None  # of the configuration", "            pass  # of the configuration",
         "drops a VM of the configuration because other nodes know none"),
        ("            await self._running.lock.run(self._running.take_names, machine)\n", "",
         "answers for a VM whose address is another VM's"),
    ),
    (CLUSTER, "jitsu_tw/sync/forgetting.py", _MADE): (
        ("is_agreed = elsewhere or await reservations.retire(name, machine.vm.ip, before)", "is_agreed = True",
         "removes a VM without telling other nodes"),
        ("            if elsewhere:", "            if False:",
         "leaves a definition that it has made after the removal"),
    ),
    (CLUSTER, "jitsu_tw/vm/fleet.py", _MADE): (
        ("is_others(machine) or self.cluster.reservations.is_made(name)", "is_others(machine)",
         "removes a VM that other nodes have made anew"),
        ("        if not self.cluster.ownership.connected:", "        if False:",
         "removes a VM while it is cut off, though others may have made it anew"),
    ),
    (CLUSTER, "jitsu_tw/sync/templates.py", _MADE): (
        ("        if not is_new:", "        if False:", "makes a VM that another node has just made"),
    ),
    (CLUSTER, "jitsu_tw/cluster/coordinator/kv.py", "test.unit.cluster.test_coordinators"): (
        (" + [self._is(key, value) for key, value in expected.items()]", "", "changes facts that are not as expected"),
        ('                "failure": [self._get(key) for key in expected],\n', "",
         "does not know what was in the way of a change"),
    ),
    (CLUSTER, "jitsu_tw/cluster/stop_notice.py", "test.unit.cluster.test_stop_notice"): (
        ("if self._now() < begin + SWIFT:", "if True:", "counts a notice though etcd was away"),
        ("if is_dropped or not await", "if not await", "counts a notice that was taken back"),
        ("            await deferLater(self._reactor, NOTICE)\n", "", "gives the other nodes no time"),
        ("if is_dropped or not await self._state.tell(machine, Phase.ENDING):", "if is_dropped:",
         "stops a VM that it does not own any more"),
        ("while await self._state.tell(machine, Phase.ENDING):", "while True:",
         "gives notice of a VM that it does not own"),
    ),
    (CLUSTER, "jitsu_tw/cluster/usage_reports.py", "test.unit.cluster.test_usage_reports"): (
        ("if self._is_news(machine, stamp):", "if True:", "reports a use over a later one of another node"),
        ("stamp <= known <= self._wall()", "stamp <= known", "reports no use while another node's clock is ahead"),
        ("if machine.state in STOPS:\n                self.report()", "if False:\n                self.report()",
         "reports a use only when the VM is stopped"),
        ("                    self._used[name] = max(used[name], self._used.get(name, 0.0))\n",
         "                    pass\n",
         "forgets a use that could not be reported"),
    ),
    (CLUSTER, "jitsu_tw/cluster/fencing.py", "test.unit.cluster.test_claims"): (
        ("if self._state.is_reached(host):", "if False:", "fences a host that another node reaches"),
        ("if code == 0 and host in self._pool.unreachable:", "if host in self._pool.unreachable:",
         "takes a host for dead whose fencing has failed"),
        ("if code == 0 and host in self._pool.unreachable:", "if code == 0:",
         "takes a host for dead that is connected again"),
        ('if not await self._coordinator.claim(f"fences/{host}", self._state.node):', "if False:",
         "fences a host by several nodes at once"),
    ),
    (CLUSTER, "jitsu_tw/rules/claims.py", "test.unit.rules.test_claims"): (
        ("elif view.state in DOWN and not view.unsure:", "elif view.state in DOWN:", "releases a VM that may run"),
        ("if view.owner is Owner.NOBODY and view.known:", "if view.owner is Owner.NOBODY:", "adopts a stranger's VM"),
        ("if view.holds:\n            action", "if True:\n            action", "releases what another node owns"),
        ("if view.refuses:\n            yield Action.REL", "if False:\n            yield Action.REL",
         "keeps a VM at a node that is drained"),
        ("elif view.state is State.UP and view.holds:", "elif view.state is State.UP:", "speaks for another node's VM"),
        ("        yield Action.OWNER_SILENT\n        yield Action.OWNER_KEEPS\n", "        yield Action.OWNER_KEEPS\n",
         "waits for ever for a node that is gone"),
        ("        yield Action.REPORT_USE\n", "", "does not tell of a use before a stop"),
        ("        yield Action.REFUSE\n", "        pass\n", "starts a VM while it is cut off"),
    ),
    (CLUSTER, "jitsu_tw/rules/pool.py", "test.unit.rules.test_pool"): (
        ("return unknown or last_host == sighting.host or sighting.power is Power.RUNNING",
         "return unknown or last_host == sighting.host", "starts a VM a second time that ran on a lost host"),
        ("return unknown or last_host == sighting.host or", "return unknown or",
         "starts a VM a second time that was started on a lost host"),
        ("return unknown or last_host", "return last_host", "starts a VM a second time that may run on a lost host"),
        ("return Unsure(IN_DOUBT) if in_doubt else Located(*found)", "return Located(*found)",
         "starts a VM while a call of before may start it elsewhere"),
        ("return at or next((host for host in usable if host == last_host), None)", "return at",
         "starts a VM elsewhere than where a start was begun"),
        ("if one.lost and _may_run(one, last_host):", "if False:", "starts a VM that may run on a lost host"),
        (" or one.power is Power.RUNNING or one.lost]", "]", "starts a VM again that runs on a host it may not run on"),
    ),
    (CLUSTER, "jitsu_tw/backends/pool.py", "test.unit.backends.test_pool"): (
        ("if not await self._placement.claim_host(vm, name):", "if await self._placement.claim_host(vm, name) is None:",
         "starts a VM that another node owns by now"),
        ("        seen.pop(name, None)  # until", "        # until", "takes a VM for off whose start was begun"),
        ("            self._doubts[uuid] = self._now() + STARTS_WITHIN  # the call may go on\n", "",
         "starts a VM elsewhere while its start call may go on"),
        ("                if self._now() < doubt:\n", "                if False:\n",
         "starts a VM elsewhere while another node's call may go on"),
        ("not in unusable and not", "not in unusable or not", "starts VMs on drained hosts"),
    ),
    (CLUSTER, "jitsu_tw/cluster/coordinator/session.py", "test.unit.cluster.test_coordinators.SessionTests"): (
        ("ttl * (1 - MARGIN)", "ttl", "believes a lease that may have ended"),
        ('if read["header"]["raft_term"] == renewed["header"]["raft_term"]:', "if True:",
         "believes a leader that was deposed"),
        ("            sent = self._now()\n            try:", "            try:\n                sent = self._now() + 1",
         "counts a lease from the answer, not from the question"),
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
    ("Synjitsu flows", "synjitsu_tw/standins.py", "test.unit.synjitsu.test_sleep"): (
        ("if flow is not None and flow.stage is not Stage.OPENING:", "if flow is not None:",
         "wakes a guest for a segment of a flow that nobody has answered"),
        ("if packet.length and not packet.flags & RST and standin.state", "if standin.state",
         "wakes a guest for a FIN"),
        ("in standin.seen_on and not standin.memory:", "in standin.seen_on:", "passes scans on to a guest that sleeps"),
        ("if runs and not self.segments.has(packet):", "if runs:", "passes a segment on before those that are held"),
        ("before[0] == packet.sequence and", "", "acknowledges what the guest has not received"),
        (" and now - before[1] >= PROBED_AGAIN", "", "takes an ACK that came twice for a keep-alive probe"),
        ("if own != link.host and (", "if (", "takes the link that this host routes to for the VM's"),
        ("            self.flows.lose(ip, now)\n", "", "wakes a guest for flows that it has lost"),
        ("self.syns.release(ip) + self.segments.release(ip)", "self.syns.release(ip)", "delivers no held segment"),
        ("if packet.dport == PROBE_SOURCE_PORT and packet.dst in link.addresses:", "if False:",
         "takes the answer to a probe for a flow"),
        ("        if memory is not standin.memory:\n", "        if True:\n", "tells all peers at each announcement"),
    ),
    ("Synjitsu flows", "synjitsu_tw/flows.py", "test.unit.synjitsu.test_flows"): (
        ("if packet.flags & SYN and by_vm:", "if packet.flags & SYN:", "lets a flood of SYNs fill the table"),
        ("if flow.answers < ANSWERS else Stage.OPENING", "", "counts flows from forged addresses as open"),
        ("        if flow.stage is Stage.OPENING:\n            return False\n        picked", "        picked",
         "lets a flood of SYNs displace open flows"),
        ("return self._rank(other) >=", "return True or self._rank(other) >=", "lets one network displace the others"),
        ("flow.finished == 3", "flow.finished", "ends a flow that is half-closed"),
        ("or (stage is Stage.SILENT and flow.ip not in self._asleep)", "",
         "forgets a flow whose data it could not see"),
        ("if len(vm.flows) >= self._limits.per_vm:", "if False:", "lets one VM take all slots"),
        ("if len(peer.tags) > TAGS:", "if False:", "keeps any number of VLAN tags"),
        ("[flow for flow in self.of(ip) if flow.stage is Stage.LOST]", "list[TcpFlow]()",
         "refuses segments of a guest that is up again"),
    ),
    ("Synjitsu flows", "synjitsu_tw/segments.py", "test.unit.synjitsu.test_sleep"): (
        ("len(flow) + (old is None) <= limits.per_flow", "True", "holds any number of segments of a flow"),
        ("sum(one.octets for one in flow.values()) + more <= limits.flow_octets", "True", "holds any octets of a flow"),
        ("and vm.octets + more <= limits.vm_octets", "", "lets one VM's segments take everything"),
        ("and self.total + (old is None) <= limits.total", "", "holds any number of segments"),
        ("and self.octets + more <= limits.octets", "", "holds octets without limit"),
        ("segments.sort(", "list(segments).sort(", "delivers segments out of order"),
    ),
    ("Synjitsu flows", "synjitsu_tw/flowfile.py", "test.unit.synjitsu.test_flowfile"): (
        (" or _CHECKSUM.unpack(checksum)[0] != zlib.crc32(record)", "", "reads damaged records"),
        ("            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "", "writes another process's file"),
        (" | os.O_NOFOLLOW", "", "writes through a symbolic link"),
        ("+ boot).ljust", ").ljust", "reads the flows of an earlier boot"),
        ("SIZE * (slots + 1))", "1 << 24)", "reads a file of any size"),
    ),
    ("Synjitsu flows", "jitsu_tw/vm/standins.py", "test.unit.vm.test_standins"): (
        ("proven=flow)", "proven=False)", "leaves an open connection unanswered where starts need proof"),
        ("memory = _keeps_memory(machine) if reported else None", "memory = _keeps_memory(machine)",
         "says that the memory of a paused VM is gone whose start was given up"),
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
    ("uptime", "jitsu_tw/vm/uptime.py", "test.unit.vm.test_uptime"): (
        ("FREES: Final = DOWN - {State.PAUSED, State.PREPARED}", "FREES: Final = DOWN",
         "counts the memory of a paused VM as saved"),
        ("if self._machines.get(machine.vm.name) is not machine:", "if False:",
         "counts the memory of a VM that is not in the configuration any more"),
        ("if len(self._strips) > MOST_STRIPS:", "if False:", "keeps a strip of each VM that ever ran"),
        ("self._strips.move_to_end(name)", "pass", "drops the strip of a VM that has just changed"),
        ("while len(self._days) > DAYS:", "while False:", "keeps all days"),
        ("        if until > self.since:\n", "        if True:\n", "counts time twice when the clock is set back"),
        ("min(latest - self.number - 1, CHARACTERS) * (", "(latest - self.number - 1) * (",
         "makes a text as long as the clock is wrong"),
        ("if name in self._machines and len(self._strips)", "if len(self._strips)",
         "keeps strips of VMs that are not in the configuration any more"),
        ("            except ValueError:", "            except OverflowError:", "does not start with a bad line"),
        ("if self.number > latest + 1:", "if False:", "keeps a strip as it is for as long as the clock was ahead"),
        ("key=lambda number: abs(number - today)", "key=lambda number: -number", "forgets today after a wrong clock"),
        ("if not set(text) <= SIGNS:", "if False:", "shows any text of the state as a strip"),
        (" and int(text) <= most):", "):", "has dates and numbers that JSON and browsers do not have"),
    ),
    ("uptime", "jitsu_tw/vm/memory_sizes.py", "test.unit.vm.test_uptime"): (
        ("if self._waiting and self._next is None", "if self._waiting", "asks a hypervisor for many VMs at once"),
        ("if machine is None or machine.state not in FREES:", "if machine is None:", "asks for a VM that runs"),
        ("        except BackendError:\n            return", "        except AssertionError:\n            return",
         "takes a hypervisor that cannot tell for a fault"),
    ),
    ("uptime", "jitsu_tw/control/routes.py", "test.unit.control.test_api.PagesTests"): (
        ("if values is not None and len(values) > most:", "if False:", "looks for any number of VMs at once"),
        ('list(dict.fromkeys(value.decode(errors="replace") for value in values))',
         '[value.decode(errors="replace") for value in values]', "shows one VM many times"),
    ),
    ("configuration", "jitsu_tw/sync/reload.py", _RELOADS): (
        ("if new == was:", "if False:", "undoes what requests have changed"),
        ("elif now == was:", "elif True:", "takes a VM that a request has changed for that of the file"),
        ("merged, _ = three_way(before, here, there)", "merged = here", "drops the other values of a request"),
        ("if mine not in {old, other} and other != old:", "if False:", "does not tell a conflict"),
        ("elif why := self._why_pinned(new):", 'elif why := "":', "moves a VM to another hypervisor"),
        ("unique.add(vm, unread(vm))", "unread(vm)", "takes two VMs with one address"),
        ("check_needs(everybody,", "(lambda *_: None)(everybody,", "removes a VM that another one needs"),
        ("        if leaving := ", "        if leaving := set() and ", "adds a VM that is being stopped"),
        ("if not fleet.context.is_running:", "if False:", "changes the VMs while Jitsu ends"),
        ("            self._overruled.add(new.name)\n            if new != now:", "            if new != now:",
         "takes a VM of the file for one of a request after a restart"),
        ("getattr(new, name) for name in taken", "getattr(new, name) for name in differ",
         "takes keys for applied that need a restart"),
    ),
    ("configuration", "jitsu_tw/sync/reconfigure.py", _RELOADS): (
        ("zone.raise_to(before.serial ", "(lambda _: None)(before.serial ", "goes back to an earlier serial"),
        ("await self._fleet.store.save_configuration()", "pass", "leaves the state as it was"),
        ("            self._fleet.store.forget_others()", "            pass", "keeps removed VMs in the state"),
    ),
    ("configuration", "jitsu_tw/vm/stored_config.py", _RELOADS): (
        ("self._written.discard(uuid)  # the VM is removed", "pass  # the VM is removed",
         "does not write a VM that comes again"),
    ),
    ("configuration", "jitsu_tw/vm/inventory.py", _RELOADS): (
        ("if self._by_uuid.get(machine.uuid) is machine:", "if True:", "forgets the machine of a renamed VM"),
    ),
    ("configuration", "jitsu_tw/sync/change_requests.py", f"{_REQUESTS}.ChangeTests"): (
        ("if known is not None or uuid in request.changes:", "if False:", "gives one VM two names"),
        (".addTimeout(FOUND_WITHIN, self._reactor)\n            uuid = ", "\n            uuid = ",
         "waits for a silent hypervisor for ever"),
    ),
    ("templates", "jitsu_tw/sync/templates.py", "test.unit.sync.test_templates"): (
        ("if self._forgetting.has(name):\n                raise", "if False:\n                raise",
         "makes a VM that is being forgotten"),
        ("making = self._making.get(name)", "making = None", "makes a VM twice at one moment"),
        ("if number >= template.max:", "if False:", "makes more VMs than a template may have"),
        ("if not tally.budget.has(client, now):", "if False:", "lets a network make any number of VMs"),
        ("            await self._give_up(name, addresses)\n            raise", "            raise",
         "keeps the address of a VM that was not made"),
        ("                if not lost:\n", "                if True:\n",
         "removes a VM whose hypervisor was lost while it was made"),
        ("return Deferred.fromCoroutine(self._forgetting.retire(machine, reason, counts=False))", "return None",
         "keeps a VM whose first start has failed"),
        ("if failure.check(*_LOST) or", "if", "forgets a VM because its hypervisor was lost"),
        ("if taken := [", "if taken := set() and [", "gives one address to two VMs"),
        ("self._running.check_made(vm)", "pass", "makes a VM whose names the zones cannot have"),
        ('if whose := self._whose(uuid_of(name.partition(".")[0], template), name):', "if whose := '':",
         "makes a VM with the uuid, and so the disk, of another one"),
        ("in {None, self._mac, self._forgotten.get(address)}", "is None",
         "takes what the kernel remembers of a forgotten VM for a machine"),
        ("            probe(host)\n", "", "never finds out that a neighbour is gone"),
        ("if len(self._making) >= MOST_MAKING:", "if False:", "makes any number of VMs at once"),
        ("        await self._end_making(name)\n", "", "removes a VM before it is made"),
    ),
    ("templates", "jitsu_tw/sync/forgetting.py", "test.unit.sync.test_templates"): (
        ("            if name in self._fleet.machines:\n                continue", "            pass",
         "takes a VM out of the state that cannot be removed yet"),
        ("machine.state in DOWN and", "", "forgets VMs that are up"),
        ("used < since", "True", "forgets VMs that were used"),
        ("or not template.forget_after:", "or False:", "forgets what is to be kept for ever"),
        ("return min(self._clocks.wall(), self._began + self._clocks.now() - self._started)",
         "return self._clocks.wall()", "forgets all VMs when the clock is set forward"),
        ("return min(self._clocks.wall(), ", "return min(1e10, ", "forgets all VMs when the clock is set back"),
    ),
    ("templates", "jitsu_tw/sync/existence.py", "test.unit.sync.test_existence"): (
        ("if not (asked.waiters or asked.begun):", "if False:", "asks for names that no client waits for"),
        ("            if len(self._kept) > MOST_KEPT:", "            if False:", "keeps any number of answers"),
        ("self._reactor.callLater(0, self._slots.leave, asked, asked.client)",
         "self._slots.leave(asked, asked.client)", "answers those that wait by nested calls"),
        ("if len(octets) > LARGEST_LIST:", "if False:", "reads a list of any size"),
        ("        if not self._is_read:", "        if True:", "reads a list once for each question"),
        ("        if ended.code not in {0, 1}:", "        if False:", "takes a program that fails for a no"),
        ("if response.code in NOT_THERE:", "if response.code >= 300:", "takes a server that fails for a no"),
        ("within=ANSWERS_WITHIN, env=env", "within=1e6, env=env", "waits for a program for ever"),
    ),
    ("templates", "jitsu_tw/dns/ondemand.py", "test.unit.dns.test_ondemand"): (
        (".addTimeout(self._answer_by(), self._reactor, _late)", "", "lets a client wait for ever"),
        ("left = max(0.0, self._answer_by() - (self._reactor.seconds() - began))", "left = self._answer_by()",
         "answers after twice the time"),
        ('if name.startswith(b"\\1*"):', "if False:", "takes the wildcard for a name"),
    ),
    ("templates", "jitsu_tw/sync/change_requests.py", "test.unit.sync.test_template_requests"): (
        ("            if TEMPLATE_OF in change.files or TEMPLATE_OF in change.was:", "            if False:",
         "takes the names from a VM of a template"),
        ("        check_members(", "        (lambda *_: None)(", "removes a template that has VMs"),
        ("        changed += self._members(changed,", "        changed += (lambda *_: [])(changed,",
         "does not change the VMs of a template"),
        ("            and self._running.serves(name)\n", "",
         "answers for a VM again that is being forgotten"),
        ("            if is_made and not one.files:", "            if False:",
         "takes a VM out of the state before its hypervisor has forgotten it"),
    ),
    ("templates", "jitsu_tw/vm/fleet.py", "test.unit.sync.test_templates"): (
        ("            await self.inventory.looked_up(machine)\n", "", "removes a VM before it is defined"),
    ),
    ("templates", "jitsu_tw/vm/inventory.py", "test.unit.sync.test_templates"): (
        ("and not is_forgotten:", ":", "defines a VM again that was removed"),
    ),
    ("commands", "jitsu_tw/sync/permissions.py", "test.unit.sync.test_permissions.OperatorsTests"): (
        ("        if VM_KEYS[key].operator:", "        if False:", "lets a request run any program as Jitsu"),
        ("            if not by_request(backend, name):", "            if False:",
         "lets a request send any file to any server"),
    ),
    ("commands", "jitsu_tw/sync/change_requests.py", "test.unit.sync.test_permissions.OperatorsTests"): (
        ("            check_operators_keys(change, next(templates, settings.backend))\n", "",
         "lets a request run any program as Jitsu"),
    ),
    ("commands", "jitsu_tw/backends/preset.py", "test.unit.config.test_config test.unit.backends.test_command"): (
        ('    if parsers.text(text).startswith("-"):', "    if False:", "takes a value for an option"),
        ("            argv[name] = tuple(Text(word).substitute(values) for word in line)",
         '            argv[name] = tuple(" ".join(Text(word).substitute(values) for word in line).split())',
         "divides a value into several arguments"),
    ),
    ("commands", "jitsu_tw/backends/preset.py", "test.unit.backends.test_presets.VariablesTests"): (
        ("        if variable is not None and not re.fullmatch(", "        if False and not re.fullmatch(",
         "lets a request reach any URL of a server with the operator's token"),
    ),
    ("commands", "jitsu_tw/backends/foreground.py", "test.unit.backends.test_foreground"): (
        ("    return int(user) == os.getuid() and is_here", "    return is_here",
         "takes another user's process for a machine"),
        ("    return int(user) == os.getuid() and is_here", "    return int(user) == os.getuid()",
         "takes a process of a container for a machine"),
    ),
    ("commands", "jitsu_tw/backends/programs.py", "test.unit.backends.test_command.TroubleTests"): (
        ("most=LONGEST_OUTPUT, group=True,", "most=LONGEST_OUTPUT,", "ends a command and lets go on what it has begun"),
        ("most=LONGEST_OUTPUT, group=True,", "group=True,", "keeps as much as a command writes"),
        ("DeferredSemaphore(PROGRAMS)", "DeferredSemaphore(1)", "has one command that hangs hold up all machines"),
        ("self._slots[use].run(", 'self._slots["start"].run(', "has machines that end hold up those that start"),
    ),
    ("commands", "jitsu_tw/backends/programs.py", "test.unit.backends.test_command.EventTests"): (
        ("        self.transport.pauseProducing()\n", "", "is held up by a stream that writes without end"),
        ("self._late = self._reactor.callLater(OUTPUT_WITHIN, self.transport.loseConnection)", "pass",
         "waits for ever for the end of a stream whose child lives on"),
    ),
    ("commands", "jitsu_tw/processes.py", "test.unit.base.test_processes"): (
        ("        if self._late:\n            self._signal", "        if False:\n            self._signal",
         "lets go on what ignores SIGTERM when its leader has ended by it"),
    ),
    ("commands", "jitsu_tw/backends/bridge.py", "test.unit.backends.test_bridge"): (
        ("if macs == {mac} else", "if True else", "takes the packets of the whole LAN for those of a machine"),
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
