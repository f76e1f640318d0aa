"""The definition of a template whose VMs can be clones (`boot_from: snapshot`): the demo's Linux guest."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from demo import lab

#: What the guest needs for it: the channel by which it tells that it waits; its name, address and gateway for fw_cfg,
#: of which the image knows nothing; a machine into which a network card can be plugged while it runs (pc, or q35 with a
#: port for it); and nothing of its own on the kernel's command line. Its firmware is SeaBIOS: qboot halts
#: at a generation id.
DEFINITION: Final = """\
<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>${{name}}</name>
  <uuid>${{uuid}}</uuid>
  <genid/>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <sysinfo type='fwcfg'>
    <entry name='opt/jitsu/name'>${{name}}</entry>
    <entry name='opt/jitsu/ip'>${{ip}}/24</entry>
    <entry name='opt/jitsu/gw'>{gateway}</entry>
  </sysinfo>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{options} jitsu.fwcfg</cmdline>
  </os>
  <features><acpi/><vmport state='off'/></features>
  {cpu}
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <channel type='unix'><target type='virtio' name='jitsu.ready'/></channel>
    {interface}
  </devices>
  <qemu:capabilities><qemu:del capability='cpu-unavailable-features'/></qemu:capabilities>
</domain>
"""

#: Interfaces: on a bridge, and, without privileges, QEMU's own network.
BRIDGED: Final = """\
<interface type='bridge'>
      <source bridge='{bridge}'/>
      <mac address='${{mac}}'/>
      <model type='virtio-non-transitional'/>
      <rom enabled='no'/>
    </interface>"""
USER: Final = """\
<interface type='user'>
      <ip family='ipv4' address='10.99.0.0' prefix='24'/>
      <mac address='${mac}'/>
      <model type='virtio-non-transitional'/>
      <rom enabled='no'/>
    </interface>"""


def definition(bridge: str | None = None, *, kvm: bool | None = None) -> str:
    """Return it, with an interface on a *bridge*, or on QEMU's own network; *kvm*: as it works here, if not given."""
    files = lab.guest()
    if kvm is None:
        kvm = lab.kvm_works()
    cpu = "<cpu mode='host-passthrough'/>" if kvm else "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"
    return DEFINITION.format(
        kind="kvm" if kvm else "qemu", memory=files.memory_mib, gateway=lab.HOST_IP,
        kernel=escape(str(files.kernel)), initrd=escape(str(files.initrd)), options=escape(files.options), cpu=cpu,
        interface=USER if bridge is None else BRIDGED.format(bridge=bridge),
    )  # fmt: skip
