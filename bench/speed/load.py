"""
dnsperf against one server, on cores of their own: the rate and the latencies that come out, and whose work they were.

A rate is only right where all was answered, so a loss or a wrong response code is shown, never left out.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from bench.debian import environment, unpacked
from bench.speed.server import HOST, LOAD_CORES

if TYPE_CHECKING:
    from bench.speed.server import Server

#: Sockets that dnsperf asks from, and questions that wait for an answer in all: enough to keep a core busy through
#: short stalls of another, few enough for a socket's receive buffer as Linux has it (212,992 octets: 256 queries, of
#: which a quarter may be read and not yet given back).
CLIENTS: Final = 20
OUTSTANDING: Final = 150

#: Seconds that dnsperf waits for an answer.
TIMEOUT: Final = 5.0

#: A busy machine may lose an answer.
WARM_UPS: Final = 3


@attrs.frozen
class Load:
    """
    What one run of dnsperf showed.

    Attributes:
        rate: answers a second.
        seconds: that it took.
        lost: questions without an answer.
        codes: how many answers had which response code.
        size: octets of an answer, the mean.
        server: the share of a core that the server's processes had.
        others: the same of all who are neither server nor dnsperf.
    """

    rate: float
    seconds: float
    lost: int
    codes: dict[str, int]
    size: int
    server: float
    others: float

    def bad(self) -> int:
        """Return how many questions had no answer or a wrong one."""
        return self.lost + sum(self.codes.values()) - self.codes.get("NOERROR", 0)

    def cost(self) -> float:
        """Return the server's work for one answer, in microseconds."""
        return self.server / self.rate * 1e6 if self.rate else 0.0


def measure(server: Server, questions: Path, seconds: float, *options: str) -> Load:
    """Ask as fast as the server answers, for *seconds*, with more *options* of dnsperf."""
    return _measured(server, questions, "-l", f"{seconds:g}", *options)


def warm_up(server: Server, questions: Path, *options: str) -> float:
    """Ask each question until all are answered; return the seconds of the first time. A SystemExit says what is not."""
    seconds = 0.0
    for _ in range(WARM_UPS):
        load = _measured(server, questions, "-n", "1", *options)
        seconds = seconds or load.seconds
        if not load.bad():
            return seconds
    raise SystemExit(f"not all is answered as it should be: {load.lost} are lost, the others are {load.codes}")


def _measured(server: Server, questions: Path, *options: str) -> Load:
    begin, server_before, ours_before, all_before = time.monotonic(), server.cpu(), _children(), _machine()
    said = _dnsperf(server, questions, *options)
    took = time.monotonic() - begin
    of_server, of_us, of_all = server.cpu() - server_before, _children() - ours_before, _machine() - all_before
    # Not `took`: where a query was lost, dnsperf waits for it before it ends.
    seconds = float(_said(r"Run time \(s\): +([\d.]+)", said))
    return Load(
        float(_said(r"Queries per second: +([\d.]+)", said)),
        seconds,
        int(_said(r"Queries lost: +(\d+)", said)),
        {code: int(count) for code, count in re.findall(r"([A-Z]\w+) (\d+)", _said(r"Response codes: +(.*)", said))},
        int(_said(r"response (\d+)", said)),
        of_server / seconds,
        max(0.0, of_all - of_server - of_us) / took,
    )


def latencies(server: Server, questions: Path, seconds: float, rate: float) -> list[float]:
    """
    Ask at a steady *rate*, for so long; return the seconds that each answer took, in order.

    A server that stalls is asked on: else the questions that nobody sent would be missing from what it was late for.
    What it never answers took as long as dnsperf waits.
    """
    options = ["-l", f"{seconds:g}", "-Q", f"{rate:.0f}", "-q", f"{rate * TIMEOUT:.0f}", "-v"]
    lines = [line for line in _dnsperf(server, questions, *options).splitlines() if line.startswith("> ")]
    return sorted(TIMEOUT if line.startswith("> T ") else float(line.rpartition(" ")[2]) for line in lines)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which *share* of the sorted *values* are; 0 where there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def _dnsperf(server: Server, questions: Path, *options: str) -> str:
    command = ["taskset", "-c", LOAD_CORES, "dnsperf", "-s", HOST, "-p", str(server.port), "-d", str(questions), "-e"]
    command += ["-c", str(CLIENTS), "-q", str(OUTSTANDING), "-t", f"{TIMEOUT:g}", "-W", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(unpacked("dnsperf")))
    if run.returncode:
        raise SystemExit(f"dnsperf fails: {run.stdout[-500:]}{run.stderr[-500:]}")
    return run.stdout


def _said(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"this dnsperf does not say {pattern!r}:\n{text[-1000:]}")
    return found[1]


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine() -> float:
    """Return the seconds that all cores have worked (proc(5); the fourth and fifth are rest)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
