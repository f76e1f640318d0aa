"""
``make demo``: a DNS query boots a virtual machine, and nobody sees that it was off.

A client asks Jitsu for a VM's name and fetches its page; then nobody asks any more, and the machine is stopped. The
second visit finds a guest that was made ready before: the unikernel booted and paused (`prepare`), Linux in an image
(`boot_from: snapshot`). All of it is real: libvirt, QEMU, the guest, a bridge, in network namespaces of their own. The
last line is ``OK: `` and the figures, or ``FAILED: `` and the reason, with exit status 1. Run it as::

    python -m demo [unikernel | linux]
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from demo import lab, unikernel
from demo.server import PATIENCE, Jitsu, JitsuEndedError
from jitsu_tw.ctl.show import FailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Emulated guests may boot in seconds: the demo's answer waits for them longer than a resolver would.
CONFIGURATION: Final = """\
bind: {server}
listen: {port}
connect: {uri}
persistdb: state.git
images: images
answer_by: 30
ttl: 2
idle: {idle}
{top}
vms:
"""
VM: Final = """\
  - name: {name}
    dns: {name}.jitsu.test
    ip: {ip}
    define: {name}.xml
    {ready}
    {more}
"""


@dataclass(frozen=True)
class Plan:
    """
    What is shown: a guest, and two visits to VMs that boot it.

    Attributes:
        second: how the VM of the second visit starts; that of the first visit boots.
        vms: the name of each VM, and its own line of the configuration.
        delay: seconds until the guest is taken for ready where nothing shows that it is.
    """

    second: str
    vms: dict[str, str]
    delay: float


#: By the name of the guest. The image of the Linux guest is made from a second boot, after its first visit.
PLANS: Final = {
    "unikernel": Plan("prepared", {"www": "prepare: false", "prepared": "prepare: true"}, 0.5),
    "linux": Plan("restored", {"www": "boot_from: snapshot"}, 10),
}

#: The steps of a visit, in their order, each with the source of its time.
STEPS: Final = (
    ("query", "client", "the client asks for the VM's name"),
    ("start", "jitsu", "Jitsu calls the hypervisor"),
    ("started", "jitsu", "QEMU runs"),
    ("ready", "jitsu", "{sign}"),
    ("answered", "client", "the client has the address"),
    ("connected", "client", "its first connection succeeds"),
    ("first octet", "client", "the page begins"),
    ("idle", "jitsu", "no query for {idle} s"),
    ("stopped", "jitsu", "the machine is off"),
)

console = Console(highlight=False)


@contextlib.contextmanager
def step(words: str) -> Iterator[None]:
    """Print *words* while the body runs, and then how long it took."""
    begin = time.monotonic()
    with console.status(f"{words} ..."):
        yield
    console.print(f"  {words} [dim]({time.monotonic() - begin:.1f} s)[/]")


def visit(network: lab.Network | None, place: dict[str, Any], name: str) -> dict[str, Any]:
    """Run a client that asks for a VM's address and fetches its page; return its results and times."""
    program = [sys.executable, str(Path(__file__).with_name("client.py")), place["server"], str(place["port"]),
               f"{name}.jitsu.test", str(place["http"][name]), *([] if network is not None else [lab.LOOPBACK])]
    command = network.command("client", program) if network is not None else program
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1])
    seen: dict[str, Any] = json.loads(run.stdout)
    if "page" not in seen:
        raise RuntimeError(f"the answer was {seen['rcode']} {'; '.join(seen['remarks'])}")
    return seen


def timeline(seen: dict[str, Any], vm: dict[str, Any]) -> dict[str, float]:
    """Return when each step happened that the client has *seen* or *vm* has, in milliseconds after the query."""
    jitsu = dict(vm["activation_ms"])
    if "stop" in jitsu:
        jitsu["idle"] = jitsu["stop"]
    client = {name: (seen[name] - seen["query"]) * 1000 for name in ("query", "answered", "connected", "first octet")}
    times = {name: {"client": client, "jitsu": jitsu}[who].get(name) for name, who, _ in STEPS}
    return {name: when for name, when in times.items() if when is not None}


def show(starts: dict[str, dict[str, float]], page: str, place: dict[str, Any]) -> None:
    """Print the timelines of the *starts*, side by side."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for title in starts:
        table.add_column(title, justify="right")
    table.add_column("")
    for name, _, words in STEPS:
        cells = (f"{times[name]:.0f}" if name in times else "" for times in starts.values())
        table.add_row(f"[bold]{name}[/]", *cells, f"[dim]{words.format(**place)}[/]")
    console.print()
    console.print(table)
    console.print(f"\nThe page said: [green]{page.splitlines()[0]}[/]\n")


def definition(guest: str, name: str, ip: str, mac: str, where: dict[str, Any]) -> str:
    """Return the XML of a VM that boots a *guest*, on the network that *where* names for `demo.lab.domain_xml`."""
    if guest == "linux":
        return lab.domain_xml(name, ip, mac, lab.guest(), **where)
    return unikernel.domain_xml(name, ip, mac, **where)


def prepare(guest: str) -> None:
    """Build the *guest*, and print what it runs on."""
    if guest != "linux":
        with step("building the guest: a unikernel, in C (once; it is kept)"):
            unikernel.guest()
        console.print("  QEMU emulates: KVM would gain nothing for a guest that boots so soon")
        return
    with step("building the guest: a Debian kernel and busybox (once; it is kept)"):
        lab.guest()
    with step("finding out whether KVM works here"):
        kvm = lab.kvm_works()
    console.print(f"  {'KVM works' if kvm else 'KVM does not work here: QEMU emulates, and boots take seconds'}")


def configure(guest: str, network: lab.Network | None, directory: Path) -> tuple[str, dict[str, Any]]:
    """Write the definitions of the VMs; return the configuration, and where server and pages are."""
    plan = PLANS[guest]
    if network is not None:
        place: dict[str, Any] = {"server": lab.HOST_IP, "port": 53, "idle": 4, "top": ""}
        place |= {"sign": "the guest's port answers", "ready": "wait_for_port: 80"}
    else:
        # QEMU itself accepts connections to the guest, long before the guest does: so its port is no sign of readiness,
        # and its TCP tries a lost SYN again after six seconds. Nothing counts the guest's packets.
        place = {"server": lab.LOOPBACK, "port": lab.free_port(), "idle": 20, "top": "evidence: queries"}
        place |= {"sign": f"{plan.delay} s later: no better sign", "ready": f"response_delay: {plan.delay}"}
    place["http"] = {name: 80 if network is not None else lab.free_port() for name in plan.vms}
    configuration = CONFIGURATION.format(uri=lab.embed_root(directory / "libvirt"), **place)
    for number, (name, more) in enumerate(plan.vms.items(), start=10):
        ip, mac = f"10.99.0.{number}", f"52:54:00:99:00:{number}"
        where = {"bridge": lab.BRIDGE} if network is not None else {"forward": (place["http"][name], 80)}
        (directory / f"{name}.xml").write_text(definition(guest, name, ip, mac, where))
        configuration += VM.format(name=name, ip=ip, ready=place["ready"], more=more)
    return configuration, place


def wait_for_image(jitsu: Jitsu, directory: Path) -> None:
    """
    Wait until the image of the guest is made, and nothing runs.

    Raises:
        TimeoutError: there is no image.
    """
    end = time.monotonic() + PATIENCE
    while not list((directory / "images").glob("*.image")):
        if time.monotonic() > end:
            raise TimeoutError("no image was made of the guest")
        time.sleep(0.1)
    jitsu.wait("off")


def run(guest: str, network: lab.Network | None, directory: Path) -> str:
    """Show a *guest*, with files in *directory*; return the figures."""
    prepare(guest)
    plan = PLANS[guest]
    configuration, place = configure(guest, network, directory)
    jitsu = Jitsu(directory, configuration, place["server"], network)
    second = list(plan.vms)[-1]
    try:
        with step("starting Jitsu; no machine is running"):
            jitsu.start()
            jitsu.wait("off")
        if guest == "unikernel":
            with step("waiting until another machine is prepared: booted, and paused"):
                jitsu.wait("prepared", second)
        with step("asking for www.jitsu.test, fetching http://www.jitsu.test/"):
            seen = visit(network, place, "www")
        with step("no more queries: waiting until the machine is stopped"):
            starts = {"cold": timeline(seen, jitsu.wait("off"))}
        if guest == "linux":
            with step("waiting for an image of the guest, from a second boot"):
                wait_for_image(jitsu, directory)
        with step(f"asking for {second}.jitsu.test, fetching http://{second}.jitsu.test/"):
            seen = visit(network, place, second)
        starts[plan.second] = timeline(seen, jitsu.vm(second))
    except (TimeoutError, RuntimeError, subprocess.SubprocessError):
        console.print(f"[dim]Jitsu's log ends:\n{jitsu.log()[-1500:]}[/]", markup=True)
        raise
    finally:
        jitsu.stop()
        lab.stop_qemus(directory / "libvirt")
    show(starts, seen["page"], place)
    cold = starts["cold"]
    bare = f", of which the hypervisor and the guest took {cold['ready'] - cold['start']:.0f}" if network else ""
    return (
        f"cold query to page {cold['first octet']:.0f} ms{bare}; {plan.second} {starts[plan.second]['first octet']:.0f}"
        f" ms; stopped when idle after {cold['stopped'] / 1000:.1f} s"
    )


def perform(title: str, show: Callable[[lab.Network | None, Path], str]) -> int:
    """Print *title*, and *show* something in a laboratory of its own; print its figures, and return the exit status."""
    console.print(f"[bold]Jitsu: {title}[/]\n")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    stack = contextlib.ExitStack()
    try:
        directory = Path(stack.enter_context(lab.directory()))
        network: lab.Network | None = None
        try:
            network = stack.enter_context(lab.Network())
        except lab.NetworkUnavailableError as error:
            console.print(f"  no network namespaces here ({error}): using QEMU's own network, on loopback")
        figures = show(network, directory)
    except KeyboardInterrupt:
        print("FAILED: interrupted; everything is cleaned up")
        return 1
    except SystemExit:
        print("FAILED: told to end; everything is cleaned up")
        return 1
    except (JitsuEndedError, FailedError, RuntimeError, TimeoutError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED: {error}")
        return 1
    finally:
        with lab.undisturbed():
            stack.close()
    print(f"OK: {figures}")
    return 0


def main(guest: str) -> int:
    """Run the demo with a *guest*; return the exit status."""
    if guest not in PLANS:
        print(f"FAILED: there is no guest {guest}, only {' and '.join(PLANS)}")
        return 1
    return perform("a DNS query boots a virtual machine", partial(run, guest))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or ["unikernel"]))
