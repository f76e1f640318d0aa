"""UNIX sockets: where Jitsu's control endpoint is by default, and who may connect."""

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

#: Where a Jitsu that is a service of this machine listens.
SYSTEM: Final = "/run/jitsu/control.sock"

#: Its members may control Jitsu.
GROUP: Final = "jitsu"


def control_socket() -> str:
    """
    Return the path of the control socket of a Jitsu that is started here.

    It is in the folder that systemd makes for a service (systemd.exec(5), RuntimeDirectory), in that of root, or in the
    user's own: of the session (XDG Base Directory Specification), else of the home.
    """
    folders = os.environ.get("RUNTIME_DIRECTORY")
    if folders:
        return f"{folders.partition(':')[0]}/control.sock"
    if os.geteuid() == 0:
        return SYSTEM
    session = os.environ.get("XDG_RUNTIME_DIR")
    return f"{session}/jitsu/control.sock" if session else os.path.expanduser("~/.jitsu/control.sock")  # noqa: PTH111


def find_control() -> str:
    """Return where jitsuctl asks by default: the user's own Jitsu, if there is one, else that of the machine."""
    own = control_socket()
    return f"unix:{own if os.path.exists(own) or not Path(SYSTEM).parent.is_dir() else SYSTEM}"  # noqa: PTH110


def make_way(path: Path) -> None:
    """
    Make the folder of a UNIX socket, and remove a socket on which no process listens any more.

    Raises:
        OSError: a process listens there, something else is there, or it is not allowed; or other users could replace
            the socket by one of theirs.
    """
    with umask(0o022):  # the group gets through the folder, no other user writes to it, whatever umask Jitsu has
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
        raise OSError(errno.EEXIST, f"there is {kind} that is no socket; remove it, or choose another place")
    with socket.socket(socket.AF_UNIX) as tries:
        tries.settimeout(0)  # a process that hangs listens as well
        try:
            tries.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
        raise OSError(errno.EADDRINUSE, "another process listens there; end it, or choose another place")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """While this is entered, what is made has not the permissions of *mask*."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def listen(path: Path, factory: Any, reactor: Any) -> Any:
    """
    Return a port that takes connections to *factory* at *path*, of its owner and, if we may, the members of `GROUP`.

    Raises:
        OSError, CannotListenError: that cannot be; see `make_way`.
    """
    make_way(path)
    with umask(0o177):  # it has no mode of its own yet
        port = reactor.listenUNIX(str(path), factory, mode=0o600)
    with contextlib.suppress(KeyError, PermissionError):
        group = grp.getgrnam(GROUP).gr_gid
        if path.stat().st_gid != group:
            os.chown(path, -1, group)
        path.chmod(0o660)
    return port
