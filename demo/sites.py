"""
``make demo-sites``: a template of one stanza, and a virtual machine for each name that a client asks for.

A client asks for five names, and five machines say theirs; a name that does not exist makes nothing; the idle machines
are stopped, one is asked for again, and forgotten. All of it is real, as in ``make demo``. The last line is ``OK: ``
and the figures, or ``FAILED: `` and the reason, with exit status 1. Run it as::

    python -m demo.sites
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from demo import lab, unikernel
from demo.__main__ import console, perform, prepare, step
from demo.server import PATIENCE, Jitsu

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Emulated guests may boot in seconds: the demo's answer waits for them longer than a resolver would.
CONFIGURATION: Final = """\
bind: {server}
listen: {port}
connect: {uri}
persistdb: state.git
answer_by: 30
ttl: 2
idle: {idle}
{top}
"""
TEMPLATE: Final = """\
templates:
  - name: site
    dns: "*.sites.jitsu.test"
    pool: 10.99.0.100-10.99.0.199
    define: site.xml
    exists: [{exists}]
    {ready}
"""

#: The labels that exist; that of a name which does not.
LABELS: Final = ("alice", "bob", "carol", "dave", "erin")
MISSING: Final = "mallory"

#: The same without namespaces: a machine can be reached at 127.0.99.LABEL, where QEMU itself listens.
NUMBERS: Final = ("11", "12", "13", "14", "15")
VIA: Final = "127.0.99."


def visit(network: lab.Network | None, place: dict[str, Any], labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """
    Run clients that ask for the names of *labels* at once, and fetch the pages; return their results and times.

    Raises:
        RuntimeError: a client has failed.
    """
    running = {}
    for label in labels:
        program = [sys.executable, str(Path(__file__).with_name("client.py")), place["server"], str(place["port"]),
                   f"{label}.sites.jitsu.test", str(place["http"])]  # fmt: skip
        command = network.command("client", program) if network is not None else [*program, f"{VIA}{label}"]
        running[label] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = {}
    for label, client in running.items():
        printed, trouble = client.communicate()
        if client.returncode:
            raise RuntimeError(trouble.strip().splitlines()[-1])
        seen[label] = json.loads(printed)
    return seen


def served(network: lab.Network | None, place: dict[str, Any], labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """
    Do as `visit`; each of *labels* has a page.

    Raises:
        RuntimeError: one has none.
    """
    seen = visit(network, place, labels)
    for label, one in seen.items():
        if "page" not in one:
            raise RuntimeError(f"{label}: the answer was {one['rcode']} {'; '.join(one['remarks'])}")
    return seen


def took(seen: dict[str, Any]) -> float:
    """Return the milliseconds from a client's query to the first octet of its page."""
    return float(seen["first octet"] - seen["query"]) * 1000


def name_in(page: str) -> str:
    """Return the name that a guest says in its *page*."""
    return next(line.removeprefix("name: ") for line in page.splitlines() if line.startswith("name: "))


def show(seen: dict[str, dict[str, Any]], memory: dict[str, float]) -> None:
    """Print what each client has seen, and the *memory* of each machine in MiB."""
    table = Table(box=None, pad_edge=False)
    table.add_column("asked for")
    table.add_column("address")
    table.add_column("the page says")
    table.add_column("query to page", justify="right")
    table.add_column("memory", justify="right")
    for label, one in seen.items():
        name = name_in(one["page"])
        table.add_row(f"[bold]{label}.sites.jitsu.test[/]", one["address"], f"[green]name: {name}[/]",
                      f"{took(one):.0f} ms", f"{memory.get(name, 0):.0f} MiB")  # fmt: skip
    console.print()
    console.print(table)
    console.print()


def configure(network: lab.Network | None, directory: Path) -> tuple[str, dict[str, Any]]:
    """Write the definition; return the configuration, and where server and pages are, and the labels that exist."""
    where: dict[str, Any]
    if network is not None:
        place: dict[str, Any] = {"server": lab.HOST_IP, "port": 53, "http": 80, "idle": 5, "top": "", "labels": LABELS}
        where, ready = {"bridge": lab.BRIDGE}, "wait_for_port: 80"
    else:  # as `demo.__main__.configure` explains
        place = {"server": lab.LOOPBACK, "port": lab.free_port(), "http": lab.free_port(), "idle": 20}
        place |= {"top": "evidence: queries", "labels": NUMBERS}
        where, ready = {"forward": (place["http"], 80), "via": f"{VIA}${{label}}"}, "response_delay: 0.5"
    definition = unikernel.domain_xml("${name}", "${ip}", "${mac}", uuid="${uuid}", **where)
    (directory / "site.xml").write_text(definition)
    stanza = TEMPLATE.format(exists=", ".join(place["labels"]), ready=ready)
    console.print(f"\n{stanza}", style="dim", markup=False)
    return CONFIGURATION.format(uri=lab.embed_root(directory / "libvirt"), **place) + stanza, place


def wait_until_off(jitsu: Jitsu) -> None:
    """
    Wait until no machine runs.

    Raises:
        TimeoutError: one still does.
    """
    end = time.monotonic() + PATIENCE
    while any(vm["state"] != "off" for vm in jitsu.vms()):
        if time.monotonic() > end:
            raise TimeoutError("a machine that nobody uses is not stopped")
        time.sleep(0.1)


def run(network: lab.Network | None, directory: Path) -> str:
    """Show a template, with files in *directory*; return the figures."""
    prepare("unikernel")
    configuration, place = configure(network, directory)
    with step("finding out what QEMU can do"):
        lab.learn(directory / "libvirt", network)
    jitsu = Jitsu(directory, configuration, place["server"], network)
    try:
        with step("starting Jitsu: the template has no machine"):
            jitsu.start()
        return tour(jitsu, network, place)
    except (TimeoutError, RuntimeError, subprocess.SubprocessError):
        console.print(f"[dim]Jitsu's log ends:\n{jitsu.log()[-1500:]}[/]", markup=True)
        raise
    finally:
        jitsu.stop()
        lab.stop_qemus(directory / "libvirt")


def tour(jitsu: Jitsu, network: lab.Network | None, place: dict[str, Any]) -> str:
    """Show the life of the machines of *jitsu*; return the figures."""
    labels = place["labels"]
    first = labels[0]
    with step(f"asking for {len(labels)} names at once, and fetching their pages"):
        seen = served(network, place, labels)
    memory = lab.memory(jitsu.directory / "libvirt")
    show(seen, memory)
    with step(f"asking for {MISSING}.sites.jitsu.test, which does not exist"):
        missing = visit(network, place, [MISSING])[MISSING]["rcode"]
    check(missing == "NXDOMAIN" and len(jitsu.vms()) == len(labels), f"{MISSING} does not exist, but is {missing}")
    console.print(f"  the answer is [bold]{missing}[/], and nothing was made")
    with step("no more queries: waiting until all machines are stopped"):
        wait_until_off(jitsu)
    with step(f"asking for {first}.sites.jitsu.test again"):
        again = served(network, place, [first])[first]
    check(again["address"] == seen[first]["address"], f"{first} has another address now")
    console.print(f"  it has its address still, [bold]{again['address']}[/]: {took(again):.0f} ms to its page")
    with step(f"forgetting {first}: its machine, its definition, its name"):
        jitsu.control.ask("POST", f"/v1/vms/{first}.site/forget")
    left = sorted(vm["name"] for vm in jitsu.vms())
    check(f"{first}.site" not in left, f"{first} is not forgotten")
    console.print(f"  there are {', '.join(left)} still")
    console.print("  for machines of your own: docs/how-to/templates.md, conf/sites.yaml, conf/site.xml\n")
    middle = statistics.median(map(took, seen.values()))
    return (
        f"{len(labels)} names, {len(labels)} machines of {statistics.median(memory.values()):.0f} MiB; query to page"
        f" {middle:.0f} ms (median) when all are asked for at once, {took(again):.0f} ms when one is"
    )


def check(holds: object, otherwise: str) -> None:
    """
    Check that something holds.

    Raises:
        RuntimeError: it does not; the message is *otherwise*.
    """
    if not holds:
        raise RuntimeError(otherwise)


if __name__ == "__main__":
    sys.exit(perform("a virtual machine for each name", run))
