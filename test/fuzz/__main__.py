"""Run the fuzzers: each target in a process of its own, two at a time."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import atheris

TARGETS: Final = ("message", "zone", "configuration", "requests", "frames", "amp")

#: Targets that are fuzzed at the same time.
LANES: Final = 2

#: Seconds that one input may take on a machine that does other things as well, and MiB that a process may take.
LONGEST: Final = 10
MEMORY: Final = 1024

#: Octets of one input.
SIZE: Final = 4096

#: Seconds until a process has loaded what it is to fuzz, and ended, on a slow machine.
SPARE: Final = 120


def load(name: str) -> Any:
    """Return a target whose branches guide the fuzzer."""
    with atheris.instrument_imports(include=["jitsu_tw", "synjitsu_tw"]):
        return importlib.import_module(f"test.fuzz.{name}")


def fuzz(name: str, seconds: int, seed: int, artifacts: str) -> None:
    """Fuzz one target in this process, which ends here."""
    target = load(name)
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, octets in enumerate(target.SEEDS):
            (corpus / str(number)).write_bytes(octets)
        escaped = ("".join(f"\\x{octet:02x}" for octet in word) for word in target.WORDS)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        limits = (f"-seed={seed}", f"-max_total_time={seconds}", f"-max_len={SIZE}",
                  f"-timeout={LONGEST}", f"-rss_limit_mb={MEMORY}")  # fmt: skip
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={artifacts}/{name}-", f"-dict={words}", str(corpus)],
                      target.one)  # fmt: skip
        atheris.Fuzz()


def found(name: str, artifacts: str, begun: float) -> list[Path]:
    """Return the inputs that have shown a fault of a target since *begun*, in seconds since 1970."""
    return [path for path in Path(artifacts).glob(f"{name}-*-*") if path.stat().st_mtime >= begun - 1]


def main() -> int:
    """Divide the time among the targets, and print the faults."""
    parser = argparse.ArgumentParser(prog="python -m test.fuzz", description="Fuzz what reads input from outside.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs for the same number; 0: others each time")
    parser.add_argument("--artifacts", default=tempfile.gettempdir(), help="where an input is left that shows a fault")
    parser.add_argument("--input", type=Path, help="give this one input to the one TARGET, and do not fuzz")
    parser.add_argument("--here", action="store_true", help="fuzz the one TARGET in this process")
    options = parser.parse_args()
    targets = options.targets or TARGETS
    if not set(targets) <= set(TARGETS) or ((options.input or options.here) and len(targets) != 1):
        parser.error(f"the targets are {', '.join(TARGETS)}")
    if options.input:
        load(targets[0]).one(options.input.read_bytes())
        return 0
    if options.here:
        fuzz(targets[0], options.seconds, options.seed, options.artifacts)
    Path(options.artifacts).mkdir(parents=True, exist_ok=True)
    each, status, begun = max(1, options.seconds * LANES // max(LANES, len(targets))), 0, time.time()
    for lane in (targets[first : first + LANES] for first in range(0, len(targets), LANES)):
        logs = [tempfile.TemporaryFile("w+") for _ in lane]  # noqa: SIM115 -- closed below
        run = [sys.executable, "-m", "test.fuzz", f"--seconds={each}", f"--seed={options.seed}"]
        run += [f"--artifacts={options.artifacts}", "--here"]
        hashes = {**os.environ, "PYTHONHASHSEED": str(options.seed or "random")}
        processes = [subprocess.Popen([*run, name], stdout=log, stderr=log, env=hashes)
                     for name, log in zip(lane, logs, strict=True)]  # fmt: skip
        for name, log, process in zip(lane, logs, processes, strict=True):
            failed = process.wait(each + SPARE)
            log.seek(0)
            said = log.read().splitlines()
            done = next((line for line in reversed(said) if line.startswith("Done ")), "")
            print(f"{name}: {done or 'ended'}" if not failed else "\n".join([*said[-60:], f"{name}: a fault"]))
            for path in found(name, options.artifacts, begun) if failed else ():
                print(f"{name}: again with: python -m test.fuzz {name} --input {path}")
            status |= bool(failed)
            log.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
