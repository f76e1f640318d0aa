"""
The program that `fakexl` puts on the path: it keeps its domains in a file, and their nodes in a real xenstored.

Most calls need little of Python, so what is large is imported where it is used: a test makes a dozen calls.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that a domain which has shut down is still listed.
LINGERS: Final = 0.3

HEAD: Final = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label"  # noqa: E501
DOM0: Final = "Domain-0                                     0   512     1     r-----      16.5 00000000-0000-0000-0000-000000000000        -                -"  # noqa: E501

INFO: Final = """\
host                   : xenlab
total_memory           : 1279
free_memory            : {free}
xen_commandline        : console=com1 {dom0_mem}
"""


def _end(said: str, code: int = 1) -> NoReturn:
    sys.stderr.write(said)
    raise SystemExit(code)


class _Host:
    """The domains, from the file that they are in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = os.environ["XENSTORED_PATH"]

    def daemon(self) -> Any:
        """Return the xenstored that runs, to speak to it."""
        from test.xenlab.xenstored import Xenstored

        daemon = Xenstored.__new__(Xenstored)
        daemon.folder, daemon.path = Path(self.path).parent, self.path
        return daemon

    @contextmanager
    def domains(self) -> Iterator[dict[str, Any]]:
        """Load the domains, by number; changes are stored at the end."""
        with (self.folder / "domains").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            found = json.loads(file.read() or "{}")
            yield found
            file.seek(0)
            file.truncate()
            json.dump(found, file)

    def create(self, text: str, *, paused: bool) -> str:
        """Make a domain, with its nodes."""
        from test.xenlab.xenstored import FakeGuest, Tools

        def said(key: str, default: str = "") -> str:
            found = re.findall(rf'^{key} = "?([^"\n]*)', text, re.MULTILINE)
            return found[-1] if found else default

        with self.domains() as domains:
            if any(domain["name"] == said("name") for domain in domains.values()):
                _end(
                    'Parsing config from x.cfg\nlibxl: error: libxl_domain.c:81:libxl__domain_rename: Domain 2:Domain'
                    f' with name "{said("name")}" already exists.\nlibxl: error: libxl_create.c:1296:'
                    "initiate_domain_create: Domain 2:cannot make domain: -6\n",
                    3,
                )
            number = int((self.folder / "last").read_text()) + 1 if (self.folder / "last").exists() else 1
            (self.folder / "last").write_text(str(number))
            FakeGuest(self.daemon(), number, said("name")).create()
            with Tools(self.path) as tools:
                for index, mac in enumerate(re.findall(r"mac=([0-9a-f:]+)", text)):
                    tools.write(f"/local/domain/{number}/device/vif/{index}/mac", mac)
            domains[str(number)] = {
                "name": said("name"), "uuid": said("uuid"), "memory": said("memory", "128"), "text": text,
                "flags": "--p---" if paused else "-b----", "reason": "-",
            }
        return str(number)

    def destroy(self, number: str) -> None:
        """End a domain."""
        from test.xenlab.xenstored import VIRQ_PORT, Tools

        with self.domains() as domains:
            if domains.pop(number, None) is None:
                _end(
                    f"libxl: error: libxl_domain.c:1183:libxl__destroy_domid: Domain {number}:Non-existant domain\n"
                    "destroy failed (rc=-21)\n"
                )
        daemon = self.daemon()
        (daemon.folder / f"dom{number}.ring").unlink()
        daemon.event(VIRQ_PORT)
        with Tools(self.path) as tools:
            tools.remove(f"/local/domain/{number}")

    def flag(self, number: str, old: str, new: str) -> bool:
        """Change a domain's flags, if it has them; return whether it had."""
        with self.domains() as domains:
            if number not in domains or domains[number]["flags"] != old:
                return False
            domains[number]["flags"] = new
            return True


def _list(host: _Host) -> None:
    print(HEAD)  # noqa: T201
    print(DOM0)  # noqa: T201
    time_file = host.folder / "cpu-time"
    seconds = time_file.read_text() if time_file.exists() else "0.0"
    with host.domains() as domains:
        for number, one in domains.items():
            place = f"{one['name']:40} {number:>5} {one['memory']:>5}     1     {one['flags']} {seconds:>9}"
            print(f"{place} {one['uuid']} {one['reason']:>8} {'-':>16}")  # noqa: T201


def _shut_down(host: _Host, number: str) -> None:
    with host.domains() as domains:
        domains[number].update(flags="---s--", reason="0")
    sys.stderr.write(f"Shutting down domain {number}\n")
    if not (host.folder / "stays").exists() and not os.fork():
        for one in range(3):  # as xl's own monitor does
            os.close(one)
        time.sleep(LINGERS)
        host.destroy(number)
        os._exit(0)


def _save(host: _Host, options: list[str], number: str, path: str) -> None:
    with host.domains() as domains:
        if number not in domains:
            _end("libxl: error: libxl_dom.c:1216:libxl__userdata_path: unable to find domain info\n")
        Path(path).write_text(json.dumps({"magic": "xl", "text": domains[number]["text"]}))
        if "-p" in options:
            domains[number]["flags"] = "--p---"
    sys.stderr.write(f"Saving to {path} new xl format (info 0x3/0x0/1012)\nxc: info: Saving domain {number}\n")
    if not options:
        host.destroy(number)


def _restore(host: _Host, path: str) -> None:
    try:
        image = json.loads(Path(path).read_text())
    except ValueError:
        _end("File has wrong magic number - corrupt or for a different tool?\n")
    host.create(image["text"], paused=False)


def _main(verb: str, *arguments: str) -> None:
    host = _Host(Path(os.environ["FAKE_XL"]))
    with (host.folder / "calls").open("a") as calls:
        calls.write(json.dumps([verb, *arguments]) + "\n")
    options = [word for word in arguments if word.startswith("-")]
    words = [word for word in arguments if not word.startswith("-")]
    while (host.folder / f"hang-{verb}").exists():
        time.sleep(0.05)
    fault = host.folder / f"fail-{verb}"
    if fault.exists():
        _end(fault.read_text(), 0 if verb in {"pause", "unpause"} else 1)
    if verb == "list":
        _list(host)
    elif verb == "info":
        free = (host.folder / "free").read_text() if (host.folder / "free").exists() else "750"
        limit = "" if (host.folder / "unlimited").exists() else "dom0_mem=512M,max:512M"
        sys.stdout.write(INFO.format(free=free, dom0_mem=limit))
    elif verb == "create":
        text = Path(words[0]).read_text()
        (host.folder / "created.cfg").write_text(text)
        if "-n" not in options:
            host.create(text, paused="-p" in options)
    elif verb == "unpause":
        if not host.flag(words[0], "--p---", "-b----"):
            _end("libxl: error: libxl_domain.c:688:domain_unpause_done: Domain 1:Unpausing domain: Invalid argument", 0)
    elif verb == "pause":
        if not host.flag(words[0], "-b----", "--p---"):
            _end("libxl: error: libxl_domain.c:587:libxl_domain_pause: Domain 1:Pausing domain: No such process\n", 0)
    elif verb == "destroy":
        host.destroy(words[0])
    elif verb == "shutdown":
        _shut_down(host, words[0])
    elif verb == "save":
        _save(host, options, words[0], words[1])
    elif verb == "restore":
        _restore(host, words[0])


if __name__ == "__main__":
    _main(*sys.argv[1:])
