"""
Copy-on-write layers: the disks of the VMs of a template (`settings.Layer`). Every function here blocks.

A layer is of no use without its base, as that was when the layer was made. So a note beside the layer has the path, the
size and the time of the base, and of the files that the base backs on, in a line each. No guest is started from a layer
when one of these files has changed: the guest would find two disks mixed.

The owner of a layer's file changes: libvirt gives the file to QEMU's user when a VM starts, and back when the VM is
off (virSecurityDACSetImageLabel in its source), so Jitsu may be unable to read the layer meanwhile. libvirt gives the
base to QEMU's user, too, for good; so the base should be readable for all.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from jitsu_tw.backends import backing, qcow2
from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jitsu_tw.settings import Layer

#: The mode of a directory of layers that is made: QEMU's user reaches what is in it, other users see no names.
_DIRECTORY_MODE: Final = 0o711

#: Seconds after which a file that was to become a layer is taken for one whose maker has died. It takes milliseconds.
MADE_WITHIN: Final = 60.0

#: What is in a note.
_NOTE: Final = re.compile(r"(?:[0-9]+ [0-9]+ [^\n\0]+\n)+")


def make(layer: Layer) -> bool:
    """
    Make *layer*, unless it is there, and return whether it was made: a layer that is there has a guest's data.

    Raises:
        BackendError: the layer cannot be made; nothing is left of it.
    """
    if layer.path.exists():
        return False
    try:
        length, parts, note = _planned(layer.base)
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
            _sync(file)
        with _note(layer).open("wb") as file:
            file.write(os.fsencode(note))
            _sync(file)
        os.link(new, layer.path)  # unlike a rename, never in place of one that another process has made meanwhile
        _sync_folder(layer.path.parent)
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
    Check that *layer* is there, and that its base is as it was when the layer was made; without a note, only the first.

    Raises:
        BackendError: a guest must not be started from it; the message has the remedy.
    """
    remedy = "or forget the VM (jitsuctl forget), which begins anew then"
    if not layer.path.exists():
        raise BackendError(f"its disk {layer.path} is not there; put it there, {remedy}")
    try:
        noted = os.fsdecode(_note(layer).read_bytes())
    except FileNotFoundError:  # another program has made the layer
        return
    except OSError as error:
        raise BackendError(f"{_note(layer)}, a note about its disk, cannot be read: {error.strerror}") from error
    if _NOTE.fullmatch(noted) is None:
        raise BackendError(f"{_note(layer)}, a note about its disk, is damaged; put it back as it was, {remedy}")
    for line in noted.removesuffix("\n").split("\n"):
        name = line.split(" ", 2)[2]
        try:
            if _state(Path(name)) == f"{line}\n":
                continue
            what = "has changed since"
        except OSError as error:
            what = f"({error.strerror}) was another one when"
        message = f"{name}, the base of its disk, {what} {layer.path} was made, which is of no use without it; "
        raise BackendError(f"{message}put the base back as it was, with its time, {remedy}")


def check_base(layer: Layer) -> None:
    """
    Check that layers like *layer* can be made of its base; nothing is made.

    Raises:
        BackendError: they cannot.
    """
    try:
        _planned(layer.base)
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


def _planned(base: Path) -> tuple[int, Mapping[int, bytes], str]:
    """
    Return the length of a layer above *base*, its parts by their offsets (`qcow2.layer`), and the note about the base.

    Raises:
        OSError: the base, or a file that it backs on, cannot be read.
        ValueError: there can be no layer above it.
    """
    kind, size = _format_and_size(base)
    note = "".join(_state(Path(one)) for one in backing.chain(base, kind.decode()))
    if _NOTE.fullmatch(note) is None:
        raise ValueError("it backs on a file whose name has a line break")
    return *qcow2.layer(os.fsencode(base), kind, size), note


def _state(base: Path) -> str:
    """Return the line of a note about *base*: its size, its time in ns, its path. A device of the host has no time."""
    status = base.stat()
    is_file = stat.S_ISREG(status.st_mode)
    return f"{status.st_size} {status.st_mtime_ns if is_file else 0} {base}\n"


def _format_and_size(base: Path) -> tuple[bytes, int]:
    """
    Return the format of *base*, as QEMU calls it, and the octets of the disk in it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file and no block device, or damaged.
    """
    mode = base.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):  # to open a named pipe could take for ever
        raise ValueError("it is no file and no block device")
    with base.open("rb") as file:
        size = qcow2.disk_size(file.read(qcow2.SIZED))
        return (b"raw", file.seek(0, os.SEEK_END)) if size is None else (b"qcow2", size)


def _prefix(layer: Layer) -> str:
    return f".{layer.path.name}."


def _unfinished(layer: Layer, before: float | None = None) -> Iterator[Path]:
    """Yield the files that were to become *layer*; with *before*, in seconds since 1970, only those that are older."""
    for one in layer.path.parent.glob(f"{_prefix(layer)}*"):
        with contextlib.suppress(FileNotFoundError):
            if before is None or one.stat().st_mtime < before:
                yield one


def _make_directory(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True)
        path.chmod(_DIRECTORY_MODE)  # whatever the mask for new files is


def _sync(file: IO[bytes]) -> None:
    """Write what is in *file* to the medium: after a crash, a layer that is there is whole, and has its note."""
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
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
