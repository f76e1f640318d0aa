"""Copy-on-write layers: the disks of the VMs of a template (`settings.Layer`). Every function here blocks."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

from jitsu_tw.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    from jitsu_tw.settings import Layer

#: What an image in QEMU's format begins with (docs/interop/qcow2.txt in its source); another one is raw.
QCOW2: Final = b"QFI\xfb"

#: Seconds that qemu-img may take: it writes some 200 KB.
MADE_WITHIN: Final = 20.0


def make(layer: Layer) -> None:
    """
    Make *layer*, if it is not there.

    Raises:
        BackendError: that cannot be done; nothing is left of it.
    """
    if layer.path.exists():
        return
    new = layer.path.with_name(f".{layer.path.name}.{os.getpid()}")
    try:
        layer.path.parent.mkdir(parents=True, exist_ok=True)
        create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", _format(layer.base), "-b", str(layer.base), str(new))
        subprocess.run(create, check=True, capture_output=True, text=True, timeout=MADE_WITHIN)  # noqa: S603
        new.replace(layer.path)
    except FileNotFoundError as error:
        if error.filename != "qemu-img":
            raise BackendError(f"the disk {layer.path} cannot be made: {error.strerror}: {error.filename}") from error
        raise BackendError("qemu-img, which makes disks, is not installed; install qemu-utils") from error
    except OSError as error:
        raise BackendError(f"the disk {layer.path} cannot be made: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"the disk {layer.path} was not made within {MADE_WITHIN:g} s") from error
    except subprocess.CalledProcessError as error:
        raise BackendError(f"the disk {layer.path} cannot be made: {error.stderr.strip()}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _format(image: Path) -> str:
    """Return the format of an image, as QEMU calls it."""
    with image.open("rb") as file:
        return "qcow2" if file.read(len(QCOW2)) == QCOW2 else "raw"


def remove(layer: Layer) -> None:
    """
    Remove *layer*; one that is not there is no error.

    Raises:
        BackendError: it cannot be removed.
    """
    try:
        layer.path.unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"the disk {layer.path} cannot be removed: {error.strerror}") from error
