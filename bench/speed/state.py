"""
What a state with many VMs costs: the time until Jitsu serves from it, and until a pushed request is answered from.

One Jitsu with VMs of the memory backend begins with an empty state; while that is written, and afterwards, one VM after
the other is asked for, which starts it. The turns of the reactor meanwhile are recorded (`bench.speed.turns`). Jitsu
ends, and begins again; then a clone changes one VM's TTL on a branch, pushes it, and asks until the answer has it; and
so on. Run it as::

    python -m bench.speed.state [--vms 10000] [--requests 5] [--json FILE]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import dns.exception
import dns.message
import dns.query

from bench.figures import json_option, write
from demo.lab import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST: Final = "127.0.0.1"

#: Seconds that anything may take.
PATIENCE: Final = 300.0

#: The size of a VM's entry in the folder of all VMs, in octets.
ENTRY: Final = 63

#: Seconds between two starts of VMs, and for which VMs are started after all is written.
EVERY: Final = 0.05
STEADY: Final = 5.0

#: The file that has the report on the turns of the reactor.
REPORT: Final = "turns.json"


def configuration(folder: Path, number: int, port: int) -> None:
    """Write a configuration of so many VMs."""
    lines = [f"bind: {HOST}", f"listen: {port}", "control: off", "backend: memory", "persistdb: state.git", "delay: 0",
             "starts_per_minute: 1000000",
             "vms:"]
    for one in range(number):
        address = f"10.{one >> 16}.{one >> 8 & 255}.{one & 255}"
        lines.append(f"  - {{name: vm{one}, dns: vm{one}.bench.test, ip: {address}, ttl: 60, idle: 3600}}")
    (folder / "jitsu.yaml").write_text("\n".join(lines), encoding="ascii")


@contextlib.contextmanager
def jitsu(folder: Path, port: int) -> Iterator[float]:
    """Run Jitsu; yield the seconds from the start of the process to its first answer."""
    begin = time.monotonic()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.speed.turns", REPORT, "-n", "--pidfile=", "jitsu", "--config", "jitsu.yaml"],
            cwd=folder, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    try:
        while ttl(port, "nobody") is None and time.monotonic() < begin + PATIENCE and process.poll() is None:
            time.sleep(0.02)
        yield time.monotonic() - begin
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def ttl(port: int, name: str) -> int | None:
    """Return the TTL of a name's address, 0 for a name that is not there; None if nobody answers."""
    try:
        query = dns.message.make_query(f"{name}.bench.test", "A")
        answer = dns.query.udp(query, HOST, timeout=0.2, port=port).answer
    except (OSError, dns.exception.Timeout):
        return None
    return answer[0].ttl if answer else 0


def git(folder: Path, *arguments: str) -> str:
    """Run git; return what it says."""
    command = ["git", "-C", str(folder), "-c", "user.name=Bench", "-c", "user.email=bench@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def size(path: Path) -> dict[str, int]:
    """Return what git counts in the repository: loose objects, packs, KiB."""
    lines = dict(line.split(": ") for line in git(path, "count-objects", "-v").splitlines())
    return {"loose objects": int(lines["count"]), "packs": int(lines["packs"]),
            "KiB": int(lines["size"]) + int(lines["size-pack"])}


def is_written(path: Path, number: int) -> bool:
    """Return whether the state has the configuration of so many VMs."""
    found = subprocess.run(
        ["git", "-C", str(path), "cat-file", "-s", "main:jitsu/vm"], check=False, capture_output=True, text=True
    )
    return found.stdout.strip() == str(number * ENTRY)


def starts(port: int, first: int, until: Callable[[], bool]) -> list[float]:
    """Ask for one VM after the other, from *first* on, until *until* is true; return the seconds of each answer."""
    took: list[float] = []
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (not took or not until()):
        begin = time.monotonic()
        while ttl(port, f"vm{first + len(took)}") is None and time.monotonic() < end:
            time.sleep(0.001)
        took.append(time.monotonic() - begin)
        time.sleep(EVERY)
    return took


def longest(path: Path, begin: float, end: float, what: str) -> dict[str, float]:
    """Return the longest turns of the reactor between two times."""
    found = [turn for turn in json.loads(path.read_text(encoding="utf-8"))["turns"] if begin <= turn["began"] < end]
    return {f"longest turn {what}, {how}": max((turn[key] for turn in found), default=0.0)
            for key, how in (("cpu", "CPU time"), ("wall", "by the clock"))}


def measure(number: int, requests: int) -> dict[str, Any]:
    """Return all figures, in seconds."""
    figures: dict[str, Any] = {"VMs": number}
    with tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        state, clone = folder / "state.git", folder / "clone"
        configuration(folder, number, port)
        with jitsu(folder, port) as served:
            figures["first start, until it serves"] = served
            begin = time.monotonic()
            first = starts(port, 0, lambda: is_written(state, number))
            written = time.monotonic()
            figures["and until all is written"] = written - begin
            figures["a VM's start meanwhile (median)"] = statistics.median(first)
            figures["the same (longest)"] = max(first)
            later = starts(port, len(first), lambda: time.monotonic() > written + STEADY)
            figures["a VM's start afterwards (median)"] = statistics.median(later)
            figures["and the same (longest)"] = max(later)
            end = time.monotonic()
        figures |= longest(folder / REPORT, begin, written, "while all is written")
        figures |= longest(folder / REPORT, written, end, "afterwards")
        with jitsu(folder, port) as served:
            figures["start, until it serves"] = served
            time.sleep(1)
            begin = time.monotonic()
            git(folder, "clone", "-q", str(state), str(clone))
            figures["git clone"] = time.monotonic() - begin
            file = next(clone.glob("jitsu/vm/*/dns/vm7.bench.test/ttl"))
            took, pushed = [], []
            for turn in range(requests):
                file.write_text(f"{turn + 1}\n", encoding="ascii")
                git(clone, "commit", "-qam", f"vm7: a TTL of {turn + 1}")
                begin = time.monotonic()
                push = subprocess.Popen(
                    ["git", "-C", str(clone), "push", "-q", "origin", f"HEAD:refs/heads/request/{turn}"],
                    stderr=subprocess.DEVNULL,
                )
                while not (state / "refs/heads/request" / str(turn)).exists() and push.poll() is None:
                    time.sleep(0.002)
                arrived = time.monotonic()
                while ttl(port, "vm7") != turn + 1 and time.monotonic() < begin + PATIENCE:
                    time.sleep(0.002)
                took.append(time.monotonic() - arrived)
                push.wait()
                pushed.append(time.monotonic() - begin)
            figures["request, from its arrival to the answer (median)"] = statistics.median(took)
            figures["the same (longest)"] = max(took)
            figures["git push, with the word on what became of it (median)"] = statistics.median(pushed)
            figures |= size(state)
        git(state, "fsck", "--strict")
    return figures


@click.command()
@click.option("--vms", "number", default=10_000, show_default=True)
@click.option("--requests", default=5, show_default=True, help="Pushed one after the other.")
@json_option
def main(number: int, requests: int, path: Path | None) -> None:
    """Measure what a state with many VMs costs."""
    figures = measure(number, requests)
    write(path, figures)
    for what, figure in figures.items():
        print(f"{what:55} {figure:10,.2f} s" if isinstance(figure, float) else f"{what:55} {figure:10,}")


if __name__ == "__main__":
    main()
