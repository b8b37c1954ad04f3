"""What is told of a VM's checkpoints or snapshots, and what can be ordered: frozen values, the same for both kinds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import MomentExists, MomentInvalid, MomentNotFound, VmkeepError
from vmkeep.host.tasks.task import Task
from vmkeep.moments import (
    AnyMoment,
    CheckpointDisk,
    DeleteMode,
    LibvirtError,
    MomentBundle,
    MomentError,
    MomentKind,
    MomentTree,
)
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VmMoments:
    """The moments of one kind that libvirt lists of a VM, in no order that means anything.

    ``current`` is the name of the current snapshot; libvirt tells of no checkpoint that it is the current one.
    """

    vm: str
    uuid: str
    kind: MomentKind
    running: bool
    moments: tuple[AnyMoment, ...]
    current: str | None = None

    def tree(self) -> MomentTree[AnyMoment]:
        """Return the forest of them, whole or not."""
        names = {moment.name for moment in self.moments}
        return MomentTree.build(self.kind, self.moments, current=self.current if self.current in names else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsChanged:
    """What was done. ``names`` are those created, deleted or redefined, in that order; ``kept`` were equal already.

    ``xml`` is what libvirt was asked for, of a checkpoint that is created. ``notices`` are sentences; of a repair, one
    for each of ``names``.
    """

    vm: str
    uuid: str
    names: tuple[str, ...]
    kept: tuple[str, ...] = ()
    xml: str | None = None
    notices: tuple[str, ...] = ()


class MomentChange(Task[MomentsChanged]):
    """An order to change a VM's checkpoints or snapshots. It is carried out under the VM's lock.

    Raises VmBusy while another operation of vmkeep's works on the VM, RestorePending while a restore of it in place is
    not finished.
    """

    __slots__ = ()
    kind: MomentKind
    vm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMoments(Task[VmMoments]):
    """Tell the checkpoints, or the snapshots, that libvirt lists of a VM; raises VmNotFound.

    ``domain``: with the VM's definition in checkpoints; ``secure``: with passwords.
    """

    kind: MomentKind
    vm: str
    secure: bool = False
    domain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMomentXml(Task[str]):
    """Tell one as libvirt writes it; raises MomentNotFound.

    ``sizes``: with the bytes dirtied since; raises VmOff while the VM is off.
    """

    kind: MomentKind
    vm: str
    name: str
    secure: bool = False
    domain: bool = True
    sizes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadDefinitions(Task[dict[str, str]]):
    """Tell all of a kind by name, as libvirt writes them and takes them again; ``secure``: with passwords."""

    kind: MomentKind
    vm: str
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCheckpoint(MomentChange):
    """Make a checkpoint. ``xml`` is a definition in place of ``name``, ``description`` and ``disks``.

    Without a disk, all take part that can hold a bitmap. ``dry``: only say what would be asked of libvirt.
    """

    vm: str
    name: str | None = None
    description: str | None = None
    disks: tuple[CheckpointDisk, ...] = ()
    xml: str | None = None
    dry: bool = False

    kind: MomentKind = MomentKind.CHECKPOINT


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteMoments(MomentChange):
    """Delete a moment, what descends from it, or both; ``metadata_only`` leaves bitmaps and images as they are.

    ``bases`` are the checkpoints of vmkeep's points that may go as well; others are refused.
    """

    kind: MomentKind
    vm: str
    name: str
    mode: DeleteMode = DeleteMode.ALONE
    metadata_only: bool = False
    bases: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RedefineMoment(MomentChange):
    """Make libvirt list a moment as ``xml`` says, in the place of one of that name.

    ``renamed`` is the snapshot that this one was made of; with ``clone`` it stays, else it goes and what hung from it
    hangs from the new one. ``was`` is the definition that was edited: nothing is done when it is another by now.
    ``trusted``: it may reach into this host, because somebody said so, or wrote it here.
    """

    kind: MomentKind
    vm: str
    xml: str
    validate: bool = False
    current: bool = False
    renamed: str | None = None
    clone: bool = False
    was: str | None = None
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportMoments(MomentChange):
    """Make libvirt list all moments of a file, or change nothing.

    ``replace``: those that are there already and are not equal are redefined too. ``validate`` and ``trusted`` as in
    RedefineMoment.
    """

    kind: MomentKind
    vm: str
    bundle: MomentBundle
    replace: bool = False
    validate: bool = False
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSnapshots(MomentChange):
    """Put right what libvirt's records of a VM's snapshots say of the images; ``dry``: only say what would be."""

    vm: str
    dry: bool = False

    kind: MomentKind = MomentKind.SNAPSHOT


def to_be_deleted(tree: MomentTree[AnyMoment], name: str, mode: DeleteMode) -> tuple[str, ...]:
    """Return the names that a deletion takes, each after all that descends from it. Raises MomentError."""
    moments: list[AnyMoment] = [] if mode is DeleteMode.ALONE else [*tree.descendants(name)][::-1]
    if mode is not DeleteMode.CHILDREN_ONLY:
        moments.append(tree.find(name))
    return tuple(moment.name or "" for moment in moments)


@contextmanager
def moment_errors(kind: MomentKind, vm: str, *, name: str | None = None, hint: str | None = None) -> Iterator[None]:
    """Raise an error of the tree that names VM and moment for MomentError."""
    try:
        yield
    except MomentError as error:
        raise moment_error(error, kind, vm, name=name, hint=hint) from error


_UNKNOWN_NAME: Final = re.compile("no domain [a-z]+ with matching name '(.*)'", re.DOTALL)


def moment_error(
    error: MomentError, kind: MomentKind, vm: str, *, name: str | None = None, hint: str | None = None
) -> VmkeepError:
    """Return our error for what the model refuses."""
    which = f"the {kind}s" if name is None else f"{kind} {name!r}"
    words = f"{which} of VM {vm!r}: {error.message}"
    if error.code in (LibvirtError.VIR_ERR_NO_DOMAIN_CHECKPOINT, LibvirtError.VIR_ERR_NO_DOMAIN_SNAPSHOT):
        if (unknown := _UNKNOWN_NAME.fullmatch(error.message)) is not None:
            words = f"VM {vm!r} has no {kind} {unknown[1]!r}"
        return MomentNotFound(words, vm=vm, hint=hint or f"`{command_line(f'vmkeep {kind} list', vm)}` shows them.")
    if error.code == LibvirtError.VIR_ERR_OPERATION_FAILED:
        return MomentExists(words, vm=vm, hint=hint)
    return MomentInvalid(words, vm=vm, hint=hint)


def named(names: Iterable[str]) -> str:
    """Return names for a sentence."""
    return ", ".join(repr(name) for name in names)
