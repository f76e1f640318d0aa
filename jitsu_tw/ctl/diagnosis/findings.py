"""
What `jitsuctl doctor` and `jitsuctl check --connect` conclude: observations come in, findings go out.

Everything here is pure; `machine`, `resolving` and `hypervisors` make the observations.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.sockets import GROUP
from jitsu_tw.text import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from jitsu_tw.networks import Address
    from jitsu_tw.settings import VM

#: How many names a sentence lists; it counts the others.
MOST_NAMES: Final = 5

#: Free octets below which a disk is a problem, and the share of free space below which it is a warning.
LEAST_FREE: Final = 100 * 1024**2
LEAST_SHARE: Final = 0.05

#: Seconds by which the last commit of the state may be in the future: clocks of other nodes differ a little.
AHEAD: Final = 60.0

#: What does not work for VMs whose network this host is not in.
NO_NETWORK: Final = "without one, Jitsu cannot wait for their ports, and Synjitsu cannot stand in for them"

#: The ends of names that no zone of the internet delegates: of homes (RFC 8375), and of other networks (ICANN).
LOCAL: Final = (".home.arpa", ".internal")

#: The wildcard address of each family.
WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@attrs.frozen
class Finding:
    """
    What a check has found.

    Attributes:
        level: how bad it is.
        text: a sentence, without its full stop.
        remedy: what the operator can do; empty where nothing need be done.
    """

    level: Level
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(Level.OK, text)


def warning(text: str, remedy: str) -> Finding:
    """Return a finding with which Jitsu works, but not for all clients, not at once, or not for long."""
    return Finding(Level.WARNING, text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Return a finding with which Jitsu, or one of its VMs, does not work."""
    return Finding(Level.PROBLEM, text, remedy)


def listed(names: Iterable[str]) -> str:
    """Return *names* as part of a sentence: the first `MOST_NAMES`, and how many more there are."""
    found = list(names)
    more = len(found) - MOST_NAMES
    return ", ".join(found[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def merged(found: Iterable[tuple[str, Finding]]) -> Iterator[Finding]:
    """Yield one finding for all names with the same one in *found*, whose texts go on after the names."""
    names: dict[Finding, list[str]] = {}
    for name, finding in found:
        names.setdefault(finding, []).append(name)
    for finding, alike in names.items():
        yield attrs.evolve(finding, text=f"{listed(alike)}: {finding.text}")


# Interfaces and bridges


@attrs.frozen
class Link:
    """
    A network interface of this host.

    Attributes:
        is_bridge: it is a Linux bridge.
        up: it is switched on.
        carrier: it has carrier; a bridge has it while one of its ports has.
        stp: it is a bridge that runs the spanning tree protocol itself.
        forward_delay: seconds that such a bridge listens at a new port, and then learns there for as long.
        changing_mac: the MAC of a bridge, if it is the lowest of its ports', so that another one may come with a port.
        addresses: its addresses, with the lengths of their prefixes.
    """

    name: str
    is_bridge: bool = False
    up: bool = True
    carrier: bool = True
    stp: bool = False
    forward_delay: float = 0.0
    changing_mac: str = ""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()


def link_of(address: Address, links: Iterable[Link]) -> Link | None:
    """Return the interface of *links* with the smallest network that *address* is in; None if it is in none."""
    found = [
        (one.network.prefixlen, link)
        for link in links
        for one in link.addresses
        if one.version == address.version and address in one.network
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def guests(vms: Iterable[VM], links: Collection[Link]) -> Iterator[Finding]:
    """Yield what is wrong with the addresses of *vms*, whose hypervisor is this host."""
    inside: dict[str, list[str]] = {}
    outside: list[str] = []
    own: list[tuple[str, Finding]] = []
    for vm in vms:
        for address in vm.ip:
            link = link_of(address, links)
            if link is None:
                outside.append(f"{vm.name} ({address})")
            elif any(address == one.ip for one in link.addresses):
                found = problem(f"this is the host's own address, on {link.name}",
                                "give the guest an address of its own, and write it as the VM's ip")  # fmt: skip
                own.append((f"{vm.name} ({address})", found))
            else:
                inside.setdefault(link.name, []).append(vm.name)
    yield from merged(own)
    for name, names in inside.items():
        yield ok(f"{counted(len(names), 'address')} of VMs in networks of {name}")
    if outside:
        yield warning(
            f"no interface of this host has a network with the address of {listed(outside)}",
            f"give the VMs' bridge an address of their network, or correct ip: {NO_NETWORK}",
        )


def bridges(used: Mapping[str, Sequence[VM]], links: Iterable[Link]) -> Iterator[Finding]:
    """Yield what is wrong with the bridges, by name, that VMs are plugged into."""
    known = {link.name: link for link in links}
    for name, vms in used.items():
        link = known.get(name)
        names = listed(vm.name for vm in vms)
        if link is None:
            yield problem(f"there is no bridge {name}, which {names} should be plugged into",
                          "make it (virsh net-start, or ip link add), or correct the VM's <interface>")  # fmt: skip
        elif not link.is_bridge:
            yield problem(f"{name}, which {names} should be plugged into, is no bridge",
                          "correct the VM's <interface>, or make a bridge of that name")  # fmt: skip
        elif not link.up:
            yield problem(f"the bridge {name} is down", f"ip link set {name} up")
        else:
            yield from _bridge(link, vms)


def _bridge(link: Link, vms: Sequence[VM]) -> Iterator[Finding]:
    """Yield what is wrong with the bridge *link*, which is there and up."""
    if link.stp:
        silent = 2 * link.forward_delay
        remedy = f"ip link set {link.name} type bridge stp_state 0; for a libvirt network: virsh net-edit, stp='off'"
        yield warning(f"the bridge {link.name} has STP on: each guest's network is silent for its first {silent:g} s",
                      remedy)  # fmt: skip
    if link.changing_mac:
        yield warning(f"the bridge {link.name} takes the lowest MAC of its ports: when a VM starts or stops, it may "
                      "change, and this host is out of reach for those that know the other one",
                      f"ip link set {link.name} address {link.changing_mac}")  # fmt: skip
    sleepers = [vm.name for vm in vms if vm.use_synjitsu and vm.wake_by_packet]
    if not link.carrier and sleepers:
        yield warning(
            f"the bridge {link.name} has no carrier: packets of this host do not reach Synjitsu, and wake nothing "
            f"({listed(sleepers)})",
            f"let Synjitsu run with -i {link.name}: it keeps a port of its own there",
        )
    elif not link.stp:
        yield ok(f"the bridge {link.name} is up{'' if link.carrier else ', without carrier while no VM runs'}")


def misplaced(plugged: Iterable[tuple[VM, Iterable[str]]], links: Collection[Link]) -> Iterator[Finding]:
    """Yield which VMs have an address that none of their bridges has; *plugged* is each VM with its bridges' names."""
    return merged(pair for vm, names in plugged for pair in _misplaced(vm, set(names), links))


def _misplaced(vm: VM, names: Collection[str], links: Iterable[Link]) -> Iterator[tuple[str, Finding]]:
    own = [link for link in links if link.name in names]
    networks = [one.network for link in own for one in link.addresses]
    for address in vm.ip:
        if any(one.version == address.version for one in networks) and link_of(address, own) is None:
            there = listed(str(one) for one in networks if not one.is_link_local)
            found = problem(f"not in the networks of its bridge ({there})",
                            "correct ip, or plug the VM into another bridge")  # fmt: skip
            yield f"{vm.name} ({address})", found


def nat(networks: Mapping[str, str], used: Mapping[str, Sequence[VM]]) -> Iterator[Finding]:
    """Yield a warning for each of libvirt's NAT *networks*, by their bridges, that VMs are *used* in."""
    for bridge, network in networks.items():
        if bridge in used:
            yield warning(
                f"libvirt's network {network} ({bridge}) is behind NAT: clients on other machines can ask Jitsu, but "
                f"the firewall rejects their connections to {listed(vm.name for vm in used[bridge])}",
                "use a bridge in the LAN, or <forward mode='open'/> (virsh net-edit) with a route to its network",
            )


# The addresses and ports of DNS


@attrs.frozen
class Held:
    """
    A socket that is bound on this host.

    Attributes:
        protocol: ``udp`` or ``tcp``.
        pid: the process that has it; 0 where this user may not know.
        process: the words of its command line.
    """

    protocol: str
    host: str
    port: int
    pid: int = 0
    process: tuple[str, ...] = ()

    @property
    def is_jitsu(self) -> bool:
        """Whether the process is a Jitsu, by its command line."""
        return is_jitsu(self.process)


def is_jitsu(process: Sequence[str]) -> bool:
    """Return whether the command line *process* is that of a Jitsu: ``jitsu …`` or ``python twistd … jitsu …``."""
    name = program(process)
    return name == "jitsu" or (name == "twistd" and "jitsu" in process)


def program(process: Sequence[str]) -> str:
    """Return the name of the program with the command line *process*: of Python's, of the file that it runs."""
    names = [word.rpartition("/")[2] for word in process[:2]] or ["?"]
    return names[-1] if names[0].startswith("python") else names[0]


def ports(bind: Iterable[str], port: int, held: Iterable[Held]) -> Iterator[Finding]:
    """Yield which processes have the *port* on the addresses *bind*, of all sockets that are *held*."""
    sockets = [one for one in held if one.port == port]
    for host in bind:
        version = ip_address(host).version
        there = [one for one in sockets if ip_address(one.host).version == version
                 and (one.host == host or host in WILDCARDS or one.host in WILDCARDS)]  # fmt: skip
        others = {one.pid: one for one in there if not one.is_jitsu and one.pid != 1}
        if not there:
            yield ok(f"{host} port {port} is free")
        elif not others:
            who = "Jitsu" if there[0].is_jitsu else "systemd, for a socket unit,"
            yield ok(f"{host} port {port}: {who} listens there (process {there[0].pid})")
        for pid, one in others.items():
            yield _taken(host, port, pid, one)


def _taken(host: str, port: int, pid: int, held: Held) -> Finding:
    """Return the finding of an address and port that another process has."""
    where = f"{held.protocol} port {port} of {host} is taken"
    if not pid:
        return warning(f"{where}; this user may not see by which process", "run jitsuctl doctor as root")
    name = program(held.process)
    remedy = "bind another address of this host, or end that process"
    whose = ""
    if "libvirt" in " ".join(held.process) and name == "dnsmasq":
        whose = " of a libvirt network"
        remedy = "bind another address of this host, or turn off that network's DNS: virsh net-edit, <dns enable='no'/>"
    elif name == "systemd-resolved":
        remedy = "bind an address of this host's network, not the wildcard address and not 127.0.0.53"
    return problem(f"{where} by {name} (process {pid}){whose}", remedy)


def missing(bind: Iterable[str], here: Collection[str]) -> Iterator[Finding]:
    """Yield the addresses *bind* that are not *here*."""
    for host in bind:
        if host not in here:
            yield problem(f"bind: {host} is no address of this host", "correct bind, or give the host that address")


def access(path: str, group: str, *, shared: bool) -> Finding:
    """Return who may use the control socket at *path*, which is of *group*; *shared* is whether that may use it."""
    if group == GROUP and shared:
        return ok(f"root, Jitsu's user and the group {GROUP} may use {path}")
    return warning(f"only root and Jitsu's user may use {path}",
                   f"make the group {GROUP} (groupadd --system {GROUP}), and start Jitsu again")  # fmt: skip


# Resolvers and delegation


@attrs.frozen
class Answer:
    """
    What a name server has answered to a question in a zone.

    Attributes:
        error: why there is no answer; empty if there is one.
        rcode: the response code, ``NOERROR``, ``NXDOMAIN``, ``SERVFAIL``.
        zone: the owner of the SOA record in it; empty for none.
        mname, serial: the SOA's.
    """

    error: str = ""
    rcode: str = ""
    zone: str = ""
    mname: str = ""
    serial: int = 0

    def __str__(self) -> str:
        """Return it in words."""
        if self.error:
            return self.error
        return f"{self.rcode}, from the zone {self.zone}" if self.zone else f"{self.rcode}, without an SOA record"


def service(zone: str, server: str, answer: Answer) -> Finding:
    """Return whether Jitsu, at *server*, serves *zone*, by its *answer*."""
    if answer.zone == zone:
        return ok(f"{server} answers for {zone}, serial {answer.serial}")
    return problem(f"{server} does not answer for {zone}: {answer}",
                   "start Jitsu, or read its log: journalctl -u jitsu")  # fmt: skip


def resolver(zone: str, mname: str, servers: Sequence[str], answer: Answer, forward_to: str) -> Finding:
    """
    Return whether the resolver of this machine asks Jitsu for *zone*.

    Args:
        zone: its apex.
        mname: the primary server in the zone's SOA record, as Jitsu serves it.
        servers: the resolver's addresses, of resolv.conf(5).
        answer: what it has answered to a question for a name in the zone that is not there.
        forward_to: Jitsu's address and port, as ``192.0.2.53 port 53``.
    """
    at = listed(servers) or "none"
    if (answer.zone, answer.mname) == (zone, mname):
        return ok(f"the resolver of this machine ({at}) asks Jitsu for {zone}")
    host, _, port = forward_to.partition(" port ")
    plain = port in {"", "53"}
    return warning(
        f"the resolver of this machine ({at}) does not ask Jitsu for {zone}: {answer}",
        f"forward the zone to {forward_to}: dnsmasq and Pi-hole: server=/{zone}/{host}{'' if plain else f'#{port}'}; "
        f"Unbound: stub-zone: name: {zone}, stub-addr: {host}{'' if plain else f'@{port}'}; or try with "
        f"dig @{host}{'' if plain else f' -p {port}'}",
    )


@attrs.frozen
class Delegation:
    """
    What the servers of a zone's parent say of the zone.

    Attributes:
        error: why they could not be asked; empty if they answered.
        servers: the names of the name servers to which they delegate it; empty if they do not.
        glue: the addresses of these, by their names, as far as the answer has them.
    """

    error: str = ""
    servers: tuple[str, ...] = ()
    glue: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


def delegation(zone: str, servers: Mapping[str, Collection[str]], found: Delegation) -> Finding:
    """
    Return whether the parent's delegation of *zone* leads to where the zone itself says.

    Args:
        zone: its apex.
        servers: the names in the zone's NS records, and those of their addresses that are in the zone.
        found: what the parent says.
    """
    if f".{zone}".endswith(LOCAL):
        return ok(f"{zone} is a zone of this network alone: only resolvers that forward it to Jitsu find it")
    if found.error:
        return ok(f"{zone}: its delegation was not looked at: {found.error}")
    if not found.servers:
        return ok(f"{zone} is not delegated by its parent zone: only resolvers that forward it to Jitsu find it")
    if set(found.servers) != set(servers):
        return warning(f"{zone} is delegated to {listed(found.servers)}, but its own NS records name {listed(servers)}",
                       "make both the same, in the zone or at the registrar of the parent zone")  # fmt: skip
    for name, addresses in found.glue.items():
        if servers[name] and set(addresses) != set(servers[name]):
            return warning(f"{zone}: the parent's address of {name} is {listed(addresses)}, the zone's own "
                           f"{listed(sorted(servers[name]))}", "make both the same")  # fmt: skip
    return ok(f"{zone} is delegated to {listed(found.servers)}")


# Hypervisors


@attrs.frozen
class Seen:
    """
    What a hypervisor says of a VM.

    Attributes:
        error: why it says nothing; empty if it knows the VM.
        is_lost: the error is of the connection, or of its time.
        advice: its sentences about the VM (`IBackend.advice`).
        macs: of the guest's interfaces; None if they are not known.
        bridges: of this host that these are plugged into.
        obstacle: why the VM cannot be stopped by its mode; empty if it can.
    """

    error: str = ""
    is_lost: bool = False
    advice: tuple[str, ...] = ()
    macs: tuple[str, ...] | None = None
    bridges: tuple[str, ...] = ()
    obstacle: str = ""


_GROUP: Final = "add Jitsu's user to the group libvirt: usermod -aG libvirt jitsu, and start Jitsu again"

#: What helps when a hypervisor cannot be asked, by words of the error in lower case: libvirt's and polkit's.
_REMEDIES: Final = {
    "-sock': no such file": "install libvirt (apt install libvirt-daemon-system), or start it: systemctl start "
    "libvirtd",
    "permission denied": _GROUP,
    "authenticat": _GROUP,
    "no answer": "its daemon hangs, or a host on the way is silent: try virsh with the same URI, or restart the daemon",
}


def remedy(error: str, other: str) -> str:
    """Return what helps against the *error* of a hypervisor; *other* where that is not known."""
    return next((text for words, text in _REMEDIES.items() if words in error.lower()), other)


def hypervisor(
    name: str, error: str, seen: Mapping[str, Seen], vms: Sequence[VM], *, network: bool
) -> Iterator[Finding]:
    """
    Yield what a hypervisor says of its *vms*.

    Args:
        name: the hypervisor's.
        error: why it cannot be asked; empty if it can.
        seen: what it says, by the VM's name.
        vms: all its VMs.
        network: whether its guests have a network.
    """
    if error:
        yield problem(f"{name} cannot be asked: {error}", remedy(error, "see that its daemon runs, and read its log"))
        return
    asked = [vm for vm in vms if vm.name in seen and not seen[vm.name].is_lost]
    known = [vm for vm in asked if not seen[vm.name].error]
    if late := [vm.name for vm in vms if vm.name not in seen or seen[vm.name].is_lost]:
        yield warning(f"{name} was too slow to tell anything of {listed(late)}",
                      "try again, or read its daemon's log")  # fmt: skip
    unknown = [vm.name for vm in asked if seen[vm.name].error and vm.define is None]
    if unknown:
        why = seen[unknown[0]].error.partition("; ")[0]
        yield problem(f"{name} cannot show {listed(unknown)}: {why}",
                      "correct name or uuid, define the VM there, or give define")  # fmt: skip
    yield from merged((vm.name, one) for vm in known for one in _seen(vm, seen[vm.name], network=network))
    if known or not vms:
        yield ok(f"{name} can be asked" + (f", and knows {len(known)} of {counted(len(vms), 'VM')}" if vms else ""))


def _seen(vm: VM, seen: Seen, *, network: bool) -> Iterator[Finding]:
    """Yield what the hypervisor says of one VM, without its name."""
    if network and seen.macs == () and not vm.mac:
        yield warning("it has no network interface there", "give it one, or its MAC by the key mac")
    if seen.obstacle:
        yield warning(f"it cannot be stopped by mode {vm.mode.value}: {seen.obstacle}", "choose another mode")
    for sentence in seen.advice:
        text, _, remedy = sentence.partition("; ")
        yield warning(text, remedy)


def kvm(*, present: bool, usable: bool, cpu: bool, session: bool) -> Finding:
    """
    Return whether guests of QEMU run on the processor itself.

    Args:
        present: /dev/kvm is there and makes a VM, which in some virtual machines does not run all the same.
        usable: this user may open it.
        cpu: the processor has vmx or svm, or is none of x86.
        session: QEMU runs as this user, as with qemu:///session; else as a user of libvirt's.
    """
    if not (present and cpu):
        in_firmware = "switch VT-x or AMD-V on, in the firmware, or, in a VM, at its hypervisor (nested virtualisation)"
        return warning("KVM cannot be used: guests are emulated, and start ten times slower",
                       "modprobe kvm_intel or kvm_amd" if cpu else in_firmware)  # fmt: skip
    if session and not usable:
        return warning("this user may not use /dev/kvm", "add the user to the group kvm, and log in again")
    return ok("KVM can be used")


# This machine


def clock(*, synchronised: bool, ahead: float | None) -> Iterator[Finding]:
    """
    Yield what is wrong with the clock.

    Args:
        synchronised: whether the kernel counts its clock as synchronised (adjtimex(2)).
        ahead: seconds by which the last commit of the state is in the future; None if there is no state.
    """
    if ahead is not None and ahead > AHEAD:
        yield warning(f"the last change of the state is {ahead:.0f} s in the future: the clock has been set back",
                      "correct the clock: leases of VMs that were up before count from then")  # fmt: skip
    if synchronised:
        yield ok("the clock is synchronised")
    else:
        yield warning("the kernel's clock is not synchronised",
                      "run an NTP client: timedatectl set-ntp true, or install chrony")  # fmt: skip


def disk(path: str, free: int, total: int) -> Finding:
    """Return whether the disk of *path* has space, in octets."""
    share = free / total if total else 0.0
    text = f"{path}: {free // 1024**2} MiB are free on its disk"
    if free < LEAST_FREE:
        return problem(text, "free some: Jitsu writes its state and images of guests there")
    return warning(text, "free some, before it is full") if share < LEAST_SHARE else ok(text)


def open_files(may: int, needed: int) -> Finding:
    """Return whether a process may open as many files as Jitsu and its clients need at most."""
    if may < needed:
        return warning(f"a process may open {may} files, and Jitsu with all its clients {needed}",
                       "raise the limit: LimitNOFILE= of systemd, or ulimit -n")  # fmt: skip
    return ok(f"a process may open {may} files")


def state(path: str, holder: int | None, *, answers: bool) -> Finding:
    """Return which process uses the state at *path*: *holder*, if any; *answers* is whether a Jitsu can be asked."""
    if holder is None:
        return ok(f"{path} is not in use")
    process = f"process {holder}" if holder else "a process of another namespace"
    if answers:
        return ok(f"{path} is in use by Jitsu ({process})")
    return warning(f"{path} is in use by {process}, which does not answer at the control endpoint",
                   "end that Jitsu before another one starts with this state, or name its --control")  # fmt: skip
