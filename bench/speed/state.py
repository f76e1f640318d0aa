"""
What a state with many VMs costs: the time until Jitsu serves from it, and until a pushed request is answered from.

One Jitsu with VMs of the memory backend begins with an empty state, ends, and begins again; then a clone changes one
VM's TTL on a branch, pushes it, and asks until the answer has it; and so on. Run it as::

    python -m bench.speed.state [--vms 10000] [--requests 5] [--json FILE]
"""

from __future__ import annotations

import contextlib
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
    from collections.abc import Iterator

HOST: Final = "127.0.0.1"

#: Seconds that anything may take.
PATIENCE: Final = 300.0


def configuration(folder: Path, number: int, port: int) -> None:
    """Write a configuration of so many VMs."""
    lines = [f"bind: {HOST}", f"listen: {port}", "control: off", "backend: memory", "persistdb: state.git", "delay: 0",
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
            [Path(sys.executable).parent / "twistd", "-n", "--pidfile=", "jitsu", "--config", "jitsu.yaml"],
            cwd=folder, stdout=log, stderr=log,
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


def until_written(path: Path, number: int) -> float:
    """Return the seconds until the state has the configuration of so many VMs."""
    begin = time.monotonic()
    while time.monotonic() < begin + PATIENCE:
        listed = subprocess.run(
            ["git", "-C", str(path), "ls-tree", "main:jitsu/vm"], check=False, capture_output=True, text=True
        )
        if len(listed.stdout.splitlines()) == number:
            break
        time.sleep(0.1)
    return time.monotonic() - begin


def measure(number: int, requests: int) -> dict[str, Any]:
    """Return all figures, in seconds."""
    figures: dict[str, Any] = {"VMs": number}
    with tempfile.TemporaryDirectory(prefix="jitsu-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        state, clone = folder / "state.git", folder / "clone"
        configuration(folder, number, port)
        with jitsu(folder, port) as served:
            figures["first start, until it serves"] = served
            figures["and until all is written"] = until_written(state, number)
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
