"""
Programs from Debian, unpacked into a cache: nothing is installed, no service is started, root is not needed.

Installing a name server from Debian starts it, as a service and on port 53; a bench wants only the program. So what apt
would install for a package is downloaded and unpacked instead. Programs that are all installed are used where they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "jitsu" / "programs"

#: apt gives up root for downloads, and then may not write where root asked it to.
AS_WE_ARE: Final = ("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()


class UnavailableError(Exception):
    """A program cannot be had; the argument is why, and what to do."""


@functools.cache
def unpacked(*packages: str) -> Path:
    """
    Return a directory, laid out as / is, that has all of *packages*: / itself if they are installed.

    If one is missing, the others are unpacked beside it even if they are installed, as a program may look for its files
    beside itself: name every package that it finds so. What they depend on is unpacked only where it is missing.

    Raises:
        UnavailableError: apt is missing, does not know a package, or cannot download it.
    """
    if not packages:
        return Path("/")
    try:
        missing = _missing("--no-upgrade", *packages)
    except UnavailableError:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
        _run("apt-get", "-qq", "update")
        missing = _missing("--no-upgrade", *packages)
    if not missing:
        return Path("/")
    wanted = _missing("--reinstall", *packages)
    root = CACHE / hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "lock"):
        if not root.exists():
            _unpack([line.split()[1] for line in wanted], root)
    return root


def _missing(*words: str) -> list[str]:
    """Return apt's lines about what it would install, each with a package's name and version."""
    said = _run("apt-get", "--simulate", "install", "--no-install-recommends", *words)
    return sorted(line for line in said.splitlines() if line.startswith("Inst "))


def _unpack(packages: list[str], root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        _run("apt-get", "-qq", *AS_WE_ARE, "download", *packages, folder=work)
        out = Path(work, "out")
        out.mkdir()
        for package in Path(work).glob("*.deb"):
            _run("dpkg", "-x", str(package), str(out))
        out.rename(root)


def _run(*command: str, folder: str | None = None) -> str:
    try:
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError as error:
        message = f"there is no {command[0]} here"
        raise UnavailableError(message) from error
    if run.returncode:
        lines = run.stderr.splitlines() or ["it says nothing"]
        message = f"{command[0]} fails: {lines[-1].removeprefix('E: ')}; 'apt-get update' may help"
        raise UnavailableError(message)
    return run.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment(root: Path) -> Mapping[str, str]:
    """Return the environment in which the programs under *root* find each other and their libraries."""
    found = [str(root / "usr/sbin"), str(root / "usr/bin"), os.environ.get("PATH", ""), "/usr/sbin"]
    result = {**os.environ, "PATH": ":".join(found)}
    if root != Path("/"):
        # One of pulseaudio's libraries is in a folder of its own.
        kinds = ("usr/lib/*-linux-*", "usr/lib/*-linux-*/pulseaudio")
        result["LD_LIBRARY_PATH"] = ":".join(str(path) for kind in kinds for path in root.glob(kind))
        if (root / "etc/fonts").exists():
            result["FONTCONFIG_SYSROOT"] = str(root)
    return result
