"""
Copy-on-write layers: the disks of the VMs of a template (`settings.Layer`). Every function here blocks.

A layer is of no use without its base, as that was when the layer was made. So a note beside it has the base's path,
size and time, and a layer whose base has changed is not started from: its guest would find two disks mixed.

Who owns the file of a layer changes: libvirt gives it to QEMU's user when a VM starts, and back when it is off
(virSecurityDACSetImageLabel in its source), so that Jitsu may not read it meanwhile. The base is given to QEMU's user,
too, for good; so it should be readable for all.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jitsu_tw.backends import qcow2
from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitsu_tw.settings import Layer

#: The mode of a directory of layers that is made: QEMU's user reaches what is in it, other users see no names.
_DIRECTORY_MODE: Final = 0o711

#: Seconds after which a file that was to become a layer is taken for one whose maker has died. It takes milliseconds.
MADE_WITHIN: Final = 60.0


def make(layer: Layer) -> bool:
    """
    Make *layer*, if it is not there, and return whether it was made: one that is there has a guest's data.

    Raises:
        BackendError: that cannot be done; nothing is left of it.
    """
    if layer.path.exists():
        return False
    try:
        base = _state(layer.base)
        length, parts = qcow2.layer(os.fsencode(layer.base), *_format_and_size(layer.base))
        _make_directory(layer.path.parent)
    except (OSError, ValueError) as error:
        raise BackendError(f"the disk {layer.path} cannot be made: {_why(error, layer.base)}") from error
    new = None
    try:
        for old in _unfinished(layer, before=time.time() - MADE_WITHIN):
            old.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_prefix(layer), dir=layer.path.parent)
        new = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(length)
            for offset, octets in parts.items():
                file.seek(offset)
                file.write(octets)
            file.flush()
            os.fsync(descriptor)
        _note(layer).write_text(base)
        os.link(new, layer.path)  # unlike a rename, never in place of one that another process has made meanwhile
        _sync(layer.path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise BackendError(f"the disk {layer.path} cannot be made: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            if new is not None:
                new.unlink()
            if not layer.path.exists():
                _note(layer).unlink()
    return True


def check(layer: Layer) -> None:
    """
    Check that *layer* is there, and that its base is as it was when the layer was made, as far as that is known.

    Raises:
        BackendError: a guest must not be started from it; the message has the remedy.
    """
    remedy = "or forget the VM (jitsuctl forget), which begins anew then"
    if not layer.path.exists():
        raise BackendError(f"its disk {layer.path} is not there; put it there, {remedy}")
    try:
        noted = _note(layer).read_text()
    except FileNotFoundError:  # another program has made it
        return
    except (OSError, ValueError) as error:
        raise BackendError(f"{_note(layer)}, a note about its disk, cannot be read: {error}") from error
    base = Path(noted.partition(" ")[2].partition(" ")[2].rstrip("\n"))
    try:
        if _state(base) == noted:
            return
        what = "has changed since"
    except OSError as error:
        what = f"({error.strerror}) was another one when"
    message = f"{base}, the base of its disk, {what} {layer.path} was made, which is of no use without it; "
    raise BackendError(f"{message}put the base back as it was, with its time, {remedy}")


def check_base(layer: Layer) -> None:
    """
    Check that layers like *layer* can be made of its base; nothing is made.

    Raises:
        BackendError: they cannot.
    """
    try:
        qcow2.layer(os.fsencode(layer.base), *_format_and_size(layer.base))
    except (OSError, ValueError) as error:
        raise BackendError(f"no disk can be made of it: {_why(error, layer.base)}") from error


def remove(layer: Layer) -> None:
    """
    Remove *layer*; one that is not there is no error.

    Raises:
        BackendError: it cannot be removed.
    """
    try:
        for one in (layer.path, _note(layer), *_unfinished(layer)):
            one.unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"the disk {layer.path} cannot be removed: {error.strerror}") from error


def _note(layer: Layer) -> Path:
    """Return where the note about the base of *layer* is."""
    return layer.path.with_suffix(".base")


def _state(base: Path) -> str:
    """Return what a note says of *base*: its size, its time in ns, and its path. A device of the host has neither."""
    status = base.stat()
    is_file = stat.S_ISREG(status.st_mode)
    return f"{status.st_size} {status.st_mtime_ns if is_file else 0} {base}\n"


def _format_and_size(base: Path) -> tuple[bytes, int]:
    """Return the format of *base*, as QEMU calls it, and the octets of the disk in it."""
    with base.open("rb") as file:
        size = qcow2.disk_size(file.read(qcow2.SIZED))
        return (b"raw", file.seek(0, os.SEEK_END)) if size is None else (b"qcow2", size)


def _prefix(layer: Layer) -> str:
    return f".{layer.path.name}."


def _unfinished(layer: Layer, before: float | None = None) -> Iterator[Path]:
    """Yield the files that were to become *layer*, of those only the ones that are as old as *before*, if given."""
    for one in layer.path.parent.glob(f"{_prefix(layer)}*"):
        with contextlib.suppress(FileNotFoundError):
            if before is None or one.stat().st_mtime < before:
                yield one


def _make_directory(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True)
        path.chmod(_DIRECTORY_MODE)  # whatever the mask for new files is


def _sync(folder: Path) -> None:
    """Write what is in *folder* to the medium: after a crash, a domain that is defined has its disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why(error: Exception, base: Path) -> str:
    """Return what *error* tells of *base*, or of what it names itself, with the remedy where there is one."""
    if not isinstance(error, OSError):
        return f"{base}: {error}"
    hidden = isinstance(error, PermissionError) and error.filename == str(base)
    return f"{error.filename or base}: {error.strerror}{'; Jitsu and QEMU must be able to read it' * hidden}"
