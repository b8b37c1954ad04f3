"""An ext4 file system on the guest's disk, and what can be seen of it in the disk's image."""

from __future__ import annotations

from tests.guest.guest import LinuxGuest

# Of the superblock, which begins at 1024 (Linux, Documentation/filesystems/ext4/globals): the magic number, and the
# feature "needs recovery", which is set while the file system is mounted and cleared while it is frozen.
_SUPERBLOCK = 1024
_MAGIC = (_SUPERBLOCK + 0x38, b"\x53\xef")
_INCOMPATIBLE_FEATURES = _SUPERBLOCK + 0x60
_NEEDS_RECOVERY = 0x4


def make_file_system(guest: LinuxGuest, target: str = "vda") -> None:
    """Make an ext4 file system on a disk and mount it at /mnt."""
    # By its path, because the shell takes its own mke2fs before any other: that of busybox knows ext2 only.
    guest.run(f"/sbin/mke2fs -q -t ext4 /dev/{target} && mount /dev/{target} /mnt")


def needs_recovery(image: bytes) -> bool:
    """Return whether the journal must be replayed before the file system in an image is whole."""
    start, magic = _MAGIC
    assert image[start : start + len(magic)] == magic, "no ext4 file system"
    features = int.from_bytes(image[_INCOMPATIBLE_FEATURES : _INCOMPATIBLE_FEATURES + 4], "little")
    return features & _NEEDS_RECOVERY != 0
