"""UNIX sockets: the default path of Jitsu's control endpoint, and the users that may connect."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The control socket of a Jitsu that runs as a service of this machine.
SYSTEM: Final = "/run/jitsu/control.sock"

#: The group whose members may control Jitsu.
GROUP: Final = "jitsu"


def control_socket() -> str:
    """
    Return the path of the control socket of a Jitsu that this user starts.

    It is in the folder that systemd makes for a service (systemd.exec(5), RuntimeDirectory); else, for root, it is
    `SYSTEM`; else it is in the user's folder of the session (XDG Base Directory Specification), or in the home.
    """
    folders = os.environ.get("RUNTIME_DIRECTORY")
    if folders:
        return f"{folders.partition(':')[0]}/control.sock"
    if os.geteuid() == 0:
        return SYSTEM
    session = os.environ.get("XDG_RUNTIME_DIR")
    return f"{session}/jitsu/control.sock" if session else os.path.expanduser("~/.jitsu/control.sock")  # noqa: PTH111


def find_control() -> str:
    """Return jitsuctl's default endpoint: that of the user's own Jitsu, if there is one, else that of the machine."""
    own = control_socket()
    return f"unix:{own if os.path.exists(own) or not Path(SYSTEM).parent.is_dir() else SYSTEM}"  # noqa: PTH110


def make_way(path: Path) -> None:
    """
    Make the folder of a UNIX socket, and remove an old socket on which no process listens any more.

    Raises:
        OSError: a process listens there, there is another file, it is not allowed, or other users could replace the
            socket by their own.
    """
    with umask(0o022):  # whatever umask Jitsu has: the group can reach the socket, no other user can replace it
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        raise OSError(errno.EPERM, f"any user may replace a socket in {path.parent}: chmod o-w {path.parent}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link"}
        kind = kinds.get(stat.S_IFMT(mode), "something")
        raise OSError(errno.EEXIST, f"there is {kind} that is no socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as tries:
        tries.settimeout(0)  # a process that hangs listens as well
        try:
            tries.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
        raise OSError(errno.EADDRINUSE, "another process listens there; end it, or choose another path")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the umask of this process to *mask* within a ``with`` block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def listen(path: Path, factory: Any, reactor: Any) -> Any:
    """
    Listen at *path* for *factory*, for the owner and, if Jitsu may set that, for the members of `GROUP`.

    Returns:
        the port.

    Raises:
        OSError, CannotListenError: it is not possible; see `make_way`.
    """
    make_way(path)
    with umask(0o177):  # until its mode is set
        port = reactor.listenUNIX(str(path), factory, mode=0o600)
    with contextlib.suppress(KeyError, PermissionError):
        group = grp.getgrnam(GROUP).gr_gid
        if path.stat().st_gid != group:
            os.chown(path, -1, group)
        path.chmod(0o660)
    return port
