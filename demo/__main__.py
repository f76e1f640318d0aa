"""
``make demo``: a DNS query boots a virtual machine, and nobody sees that it was off.

A client asks Jitsu for www.jitsu.test and fetches its page; then nobody asks any more, and the machine is stopped. All
of it is real: libvirt, QEMU, a Linux guest, a bridge, in network namespaces of their own. The last line is ``OK: `` and
the figures, or ``FAILED: `` and the reason, with exit status 1.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from demo import lab
from demo.server import Jitsu, JitsuEndedError

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST_IP: Final = "10.99.0.10"
GUEST_MAC: Final = "52:54:00:99:00:10"

#: Emulated guests boot in seconds: the demo's answer waits for them longer than a resolver would.
CONFIGURATION: Final = """\
bind: {server}
listen: {port}
connect: {uri}
persistdb: state.git
answer_by: 30
ttl: 2
vms:
  - name: www
    dns: www.jitsu.test
    ip: {ip}
    define: www.xml
    {more}
"""

#: The steps of a visit, in their order, each with the source of its time.
STEPS: Final = (
    ("query", "client", "the client asks for www.jitsu.test"),
    ("start", "jitsu", "Jitsu calls the hypervisor"),
    ("started", "jitsu", "QEMU runs"),
    ("ready", "jitsu", "{ready}"),
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


def visit(network: lab.Network | None, place: dict[str, Any]) -> dict[str, Any]:
    """Run a client that asks for the address and fetches the page; return its results and times."""
    program = [sys.executable, str(Path(__file__).with_name("client.py")), place["server"], str(place["port"]),
               "www.jitsu.test", str(place["http"]), *([] if network is not None else [lab.LOOPBACK])]
    command = network.command("client", program) if network is not None else program
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1])
    seen: dict[str, Any] = json.loads(run.stdout)
    if "page" not in seen:
        raise RuntimeError(f"the answer was {seen['rcode']} {'; '.join(seen['remarks'])}")
    return seen


def timeline(seen: dict[str, Any], vm: dict[str, Any]) -> dict[str, float]:
    """Return when each step happened, in milliseconds after the query."""
    jitsu = vm["activation_ms"] | {"idle": vm["activation_ms"]["stop"]}
    client = {name: (seen[name] - seen["query"]) * 1000 for name in ("query", "answered", "connected", "first octet")}
    return {name: {"client": client, "jitsu": jitsu}[who][name] for name, who, _ in STEPS}


def show(times: dict[str, float], page: str, place: dict[str, Any]) -> None:
    """Print the timeline."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (("", "left"), ("ms", "right"), ("", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for name, _, words in STEPS:
        table.add_row(f"[bold]{name}[/]", f"{times[name]:.0f}", f"[dim]{words.format(**place)}[/]")
    console.print()
    console.print(table)
    console.print(f"\nThe page said: [green]{page}[/]\n")


def run(network: lab.Network | None, directory: Path) -> str:
    """Run the demo in *directory*; return the figures."""
    with step("building the guest: a Debian kernel and busybox (once; it is kept)"):
        files = lab.guest()
    with step("finding out whether KVM works here"):
        kvm = lab.kvm_works()
    console.print(f"  {'KVM works' if kvm else 'KVM does not work here: QEMU emulates, and boots take seconds'}")
    uri = lab.embed_root(directory / "libvirt")
    if network is not None:
        place: dict[str, Any] = {"server": lab.HOST_IP, "port": 53, "http": 80, "ip": GUEST_IP, "idle": 4}
        place |= {"ready": "the guest's port answers", "more": "wait_for_port: 80"}
        xml = lab.domain_xml("www", GUEST_IP, GUEST_MAC, files, bridge=lab.BRIDGE, kvm=kvm)
    else:
        # QEMU itself accepts connections to the guest, long before the guest does: so its port is no sign of readiness,
        # and its TCP tries a lost SYN again after six seconds. Nothing counts the guest's packets.
        place = {"server": lab.LOOPBACK, "port": lab.free_port(), "http": lab.free_port(), "ip": GUEST_IP}
        place["idle"] = 20
        place |= {"ready": "QEMU's own network: no better sign", "more": "idle: 20\n    evidence: queries"}
        xml = lab.domain_xml("www", GUEST_IP, GUEST_MAC, files, forward=(place["http"], 80), kvm=kvm)
    (directory / "www.xml").write_text(xml)
    jitsu = Jitsu(directory, CONFIGURATION.format(uri=uri, **place), place["server"], network)
    try:
        with step("starting Jitsu; no machine is running"):
            jitsu.start()
            jitsu.wait("off")
        with step("asking for www.jitsu.test, fetching http://www.jitsu.test/"):
            seen = visit(network, place)
        with step("no more queries: waiting until the machine is stopped"):
            vm = jitsu.wait("off")
    except (TimeoutError, RuntimeError, subprocess.SubprocessError):
        console.print(f"[dim]Jitsu's log ends:\n{jitsu.log()[-1500:]}[/]", markup=True)
        raise
    finally:
        jitsu.stop()
        lab.stop_qemus(directory / "libvirt")
    times = timeline(seen, vm)
    show(times, seen["page"], place)
    bare = f", of which the hypervisor and the guest took {times['ready'] - times['start']:.0f}" if network else ""
    stopped = f"stopped when idle after {times['stopped'] / 1000:.1f} s"
    return f"cold query to page {times['first octet']:.0f} ms{bare}; {stopped}"


def main() -> int:
    """Run the demo; return the exit status."""
    console.print("[bold]Jitsu: a DNS query boots a virtual machine[/]\n")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    stack = contextlib.ExitStack()
    try:
        directory = Path(stack.enter_context(lab.directory()))
        network: lab.Network | None = None
        try:
            network = stack.enter_context(lab.Network())
        except lab.NetworkUnavailableError as error:
            console.print(f"  no network namespaces here ({error}): using QEMU's own network, on loopback")
        figures = run(network, directory)
    except KeyboardInterrupt:
        print("FAILED: interrupted; everything is cleaned up")
        return 1
    except SystemExit:
        print("FAILED: told to end; everything is cleaned up")
        return 1
    except (JitsuEndedError, RuntimeError, TimeoutError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED: {error}")
        return 1
    finally:
        with lab.undisturbed():
            stack.close()
    print(f"OK: {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
