"""
VMs in the state whose template is not in the configuration: they are not served, and keep their addresses.

They are served again when the configuration has the template again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jitsu_tw.networks import parsed
from jitsu_tw.store.layout import NAME, TEMPLATE_OF
from jitsu_tw.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.vm.members import Members


class Orphans:
    """The VMs whose template is missing. It owns, and nobody else writes: which VMs these are."""

    def __init__(self, members: Members) -> None:
        """Begin with none; *members* are to know that their addresses are taken."""
        self._members = members
        self._of: dict[str, dict[str, Mapping[str, str]]] = {}

    def add(self, uuid: str, files: Mapping[str, str]) -> None:
        """Add the VM with that *uuid*, whose folder in the state has these *files*."""
        self._of.setdefault(files[TEMPLATE_OF], {})[uuid] = files
        self._members.reserve(parsed(files.get("ip", "")), files.get(NAME, uuid))

    def take(self, template: str) -> Mapping[str, Mapping[str, str]]:
        """Remove the VMs of *template*, which is there again; return their files, by uuid."""
        return self._of.pop(template, {})

    def problems(self) -> dict[str, str]:
        """Return what an operator should know, by the template's name."""
        return {
            template: f"it is not in the configuration, so what it has made, {counted(len(vms), 'VM')}, is not served;"
            " put it back, and then, if its VMs are not wanted, forget them:"
            f" jitsuctl forget --template {template} --all"
            for template, vms in self._of.items()
        }
