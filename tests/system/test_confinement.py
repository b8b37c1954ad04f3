"""Where stock AppArmor profiles let the QEMU of a VM go: sockets and scratch of a backup are there.

Nothing is enforced on the tests' hosts. The rules are those that libvirt's own helper writes for the VM, and they are
compared with the paths of a real backup job.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lxml import etree

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from tests.system.held import held_in_its_copy

pytestmark = pytest.mark.system

_HELPER = Path("/usr/lib/libvirt/virt-aa-helper")
_TEMPLATE = Path("/etc/apparmor.d/abstractions/libvirt-qemu")
_RULE = re.compile(r'^\s*(?:owner )?"?(/[^"]*?)"? ([rwkmixp]+),$', re.MULTILINE)


def rules(host: Host, vm: Vm, *options: str | Path) -> list[tuple[str, str]]:
    """Return the paths and permissions of the profile that libvirt makes for a running VM."""
    command = [_HELPER, "-d", "-r", "-u", f"libvirt-{vm.uuid}", *options]
    return _RULE.findall(host.run(command, check=True, input=vm.xml()).stderr)


def allows(found: list[tuple[str, str]], path: str, permissions: str) -> bool:
    """Whether a rule lets QEMU at the path: ``**`` stands for anything, ``*`` for what has no slash."""
    for pattern, allowed in found:
        parts = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("**"))
        if re.fullmatch(".*".join(parts), path) and set(permissions) <= set(allowed):
            return True
    return False


def test_stock_profile_lets_qemu_make_the_socket_and_the_scratch_of_a_backup(host: Host, vmkeep: Vmkeep) -> None:
    if not _HELPER.exists():
        pytest.skip("libvirt is built without AppArmor here")
    vm = host.define("a name that is longer than libvirt's own", disks=[Disk("vda", 32 * MiB)])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    with held_in_its_copy(vm, vmkeep) as process:
        job = etree.fromstring(vm.domain.backupGetXMLDesc())
        socket, scratch = str(job.xpath("string(server/@socket)")), str(job.xpath("string(//scratch/@file)"))
        stock = [*rules(host, vm), *_RULE.findall(_TEMPLATE.read_text())]
        assert allows(stock, socket, "rw"), socket
        # Scratch is given to the profile when the job begins, by its path.
        assert (scratch, "rwk") in rules(host, vm, "-F", scratch)
        assert host.path(socket).is_socket()
        assert host.path(socket).parent.stat().st_mode & 0o007 == 0
        # What this test would say of a place that is not allowed.
        assert not allows(stock, "/run/vmkeep/0123456789ab/nbd", "w")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, (output, errors)
    assert not host.path(socket).exists()
