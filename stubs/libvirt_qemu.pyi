"""The part of libvirt-python's QEMU module that the rig uses; libvirt ships no types."""

import libvirt

VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP: int

def qemuMonitorCommand(domain: libvirt.virDomain, cmd: str, flags: int) -> str: ...
def qemuAgentCommand(domain: libvirt.virDomain, cmd: str, timeout: int, flags: int) -> str: ...
