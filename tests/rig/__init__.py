"""Real libvirt hosts in namespaces, with small UEFI guests that need no operating system.

Tests, the demo and the benchmarks stand on it. Nothing here uses vmkeep's own code, so that what it says about
a disk, a vTPM or UEFI variables is a second opinion.

    with Host("alpha") as host:
        vm = host.define("win11", disks=[Disk("vda", 64 * MiB)])
        vm.start()
        vm.write("vda", start=1 * MiB, length=64 * KiB, pattern=0xAA)
        result = host.run(["vmkeep", "backup", "win11"])
"""

from tests.rig.domain_xml import DirectBoot, Secret
from tests.rig.errors import RigError
from tests.rig.host import Host, missing_requirements
from tests.rig.images import assert_images_equal, assert_sparse_files_equal, random_bytes, read_offline_image, sha256
from tests.rig.tpm import NvIndexMissingError, SoftwareTpm
from tests.rig.vm import Disk, Vm, VmState

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

__all__ = [
    "DirectBoot",
    "Disk",
    "GiB",
    "Host",
    "KiB",
    "MiB",
    "NvIndexMissingError",
    "RigError",
    "Secret",
    "SoftwareTpm",
    "Vm",
    "VmState",
    "assert_images_equal",
    "assert_sparse_files_equal",
    "missing_requirements",
    "random_bytes",
    "read_offline_image",
    "sha256",
]
