"""Configurations: refused with `ConfigError`, or VMs that are the same when they are read from the state again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import atheris
import attrs

from jitsu_tw.config import build
from jitsu_tw.config.schema import CLUSTER_KEYS, DNSSEC_KEYS, HOST_KEYS, KEYS, VM_KEYS
from jitsu_tw.errors import ConfigError
from jitsu_tw.store.layout import vm_files
from jitsu_tw.sync.folders import vm_of
from test.hostile import configuration

if TYPE_CHECKING:
    from jitsu_tw.settings import VM, Settings

#: The first octet of an input that is no text, but is to be made into one.
_MADE: Final = b"\xff"

SEEDS: Final = [
    Path("conf/jitsu.yaml").read_bytes(),
    *(row.input if isinstance(row.input, bytes) else row.input.encode()[:4000] for row in configuration.ROWS),
    *(_MADE + bytes(range(number, number + 60)) for number in range(0, 180, 20)),
]

_VALUES: Final = (
    "1", "0", "-1", "1.5", "nan", "1e999", "9" * 400, "true", "off", "memory", "10.0.0.1", "10.0.0.300", "::1",
    "fe80::1%eth0", "10.0.0.0/8", "*.a.example.org", "a.example.org", "example.org.", "www", "80", "65536",
    "http://[::1", "52:54:00:00:00:10", "52:54", "hmac-sha256:a:AAAA", "key a", "mon-fri 08:00-18:00", "save",
    "wire", "snapshot", "unix:/x", "[]", "{}", "~", "&a [*a]", "!!binary AA==", "'\\0'", "\u00e9", "a b", "\u202e",
)  # fmt: skip

WORDS: Final = [
    *(word.encode() for word in {*KEYS, *VM_KEYS, *HOST_KEYS, *CLUSTER_KEYS, *DNSSEC_KEYS,
                                          *_VALUES, "vms", "hosts", "cluster", "dnssec"}),
    b": ", b"- ", b"\n  ", b", ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"<<: *a", b"!!str ", b"|\n", b">\n", b"# ",
]  # fmt: skip

_PATH: Final = Path(tempfile.mkdtemp()) / "jitsu.yaml"
_UUID: Final = "00000000-0000-4000-8000-000000000001"


def _made(octets: bytes) -> bytes:
    """Return a configuration that is made of keys that there are, most of the time."""
    data = atheris.FuzzedDataProvider(octets)

    def value() -> str:
        found: str = data.PickValueInList(list(_VALUES))
        return found if data.ConsumeBool() else data.ConsumeUnicodeNoSurrogates(12)

    def pairs(keys: Any) -> list[str]:
        return [f"{data.PickValueInList(list(keys))}: {value()}" for _ in range(data.ConsumeIntInRange(0, 6))]

    lines = ["backend: memory", *pairs(KEYS)]
    if data.ConsumeIntInRange(0, 7) == 0:
        lines += ["hosts:", *(f"  - {{{', '.join(['name: h', *pairs(HOST_KEYS)])}}}" for _ in range(2))]
    lines.append("vms:")
    for number in range(data.ConsumeIntInRange(0, 3)):
        named = [f"name: n{number}", f"dns: n{number}.example.org", f"ip: 10.0.0.{number + 1}"]
        lines.append(f"  - {{{', '.join([*named, *pairs(VM_KEYS)])}}}")
    return "\n".join(lines).encode()


def one(octets: bytes) -> None:
    """Read a configuration; take each VM through the state and back."""
    text = _made(octets[1:]) if octets.startswith(_MADE) else octets
    if b"/dev" in text or b"/proc" in text:
        return  # an operator may name any file of the machine, a device as well
    _PATH.write_bytes(text)
    try:
        settings, _ = build.load({"persistdb": "state.git"}, (), _PATH)
    except ConfigError:
        return
    for vm in settings.vms[:10]:
        _through_the_state(vm, settings)


def _through_the_state(vm: VM, settings: Settings) -> None:
    """Check that *vm* is understood alike from the file and from the state."""
    files = vm_files(vm)
    try:
        again, _ = vm_of(_UUID, files, {}, settings)
    except ConfigError as error:
        # The state has whole paths and uuids of its own; what the file says is beside the file.
        assert any(words in str(error) for words in ("whole path", "name of the folder")), (str(error), files)
        return
    same: dict[str, Any] = {"raw": {}, "place": None, "dns_place": None, "uuid": None}
    assert attrs.evolve(again, **same) == attrs.evolve(vm, **same), files
