"""The arguments and options of `vmkeep checkpoint` and `vmkeep snapshot`, named as virsh names them.

``{kind}`` and ``{kept}`` in a text are filled in for the kind by ``cli/moment_verbs.py``, which leaves out what is
marked as the other kind's.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import typer

from vmkeep.cli.completion import complete_moment, complete_vm


class Only(NamedTuple):
    """A mark of what one kind has and the other has not. ``needed`` is a mark of what that kind cannot go without."""

    kind: str
    needed: bool = False


_OF_SNAPSHOTS: Final = Only("snapshot")
# libvirt calls no checkpoint the current one, so there is nothing that could stand for a name.
_NAMED_OF_CHECKPOINTS: Final = Only("checkpoint", needed=True)

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)]
NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="The {kind}'s name.", show_default=False, autocompletion=complete_moment),
    _NAMED_OF_CHECKPOINTS,
]
GivenName = Annotated[str, typer.Argument(metavar="NAME", help="The {kind}'s name.", autocompletion=complete_moment)]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The file; - is standard input.")]
OutputArgument = Annotated[str, typer.Argument(metavar="FILE", help="A new file; - is standard output.")]

# -- which are listed ------------------------------------------------------------------------------------------------

ParentOption = Annotated[bool, typer.Option("--parent", help="With the parent of each.")]
RootsOption = Annotated[bool, typer.Option("--roots", help="Only those without a parent.")]
LeavesOption = Annotated[bool, typer.Option("--leaves", help="Only those without children.")]
NoLeavesOption = Annotated[bool, typer.Option("--no-leaves", help="Only those with children.")]
RecordedOption = Annotated[
    bool, typer.Option("--metadata", help="Only those that libvirt has a record of."), _OF_SNAPSHOTS
]
UnrecordedOption = Annotated[
    bool, typer.Option("--no-metadata", help="Only those without a record: none."), _OF_SNAPSHOTS
]
InactiveOption = Annotated[
    bool, typer.Option("--inactive", help="Only those made while the VM was off."), _OF_SNAPSHOTS
]
ActiveOption = Annotated[
    bool, typer.Option("--active", help="Only those of a running VM, with its memory."), _OF_SNAPSHOTS
]
DiskOnlyOption = Annotated[bool, typer.Option("--disk-only", help="Only those of disks alone."), _OF_SNAPSHOTS]
InternalOption = Annotated[bool, typer.Option("--internal", help="Only those kept in the images."), _OF_SNAPSHOTS]
ExternalOption = Annotated[bool, typer.Option("--external", help="Only those with files of their own."), _OF_SNAPSHOTS]
TreeOption = Annotated[bool, typer.Option("--tree", help="Draw how they hang from each other.")]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="NAME",
        help="Only the children of this one.",
        show_default=False,
        autocompletion=complete_moment,
    ),
]
FromCurrentOption = Annotated[
    bool, typer.Option("--current", help="Only the children of the current one."), _OF_SNAPSHOTS
]
DescendantsOption = Annotated[bool, typer.Option("--descendants", help="With --from: all that descends from it.")]
NamesOption = Annotated[bool, typer.Option("--name", help="Print the names only.")]
TopologicalOption = Annotated[bool, typer.Option("--topological", help="Parents first, not by name.")]

# -- one of them -----------------------------------------------------------------------------------------------------

CurrentOption = Annotated[
    bool, typer.Option("--current", help="The current snapshot, in place of a name."), _OF_SNAPSHOTS
]
SecurityOption = Annotated[
    bool, typer.Option("--security-info", help="With the passwords that the VM's definition holds.")
]
NoDomainOption = Annotated[
    bool, typer.Option("--no-domain", help="Without the VM's definition in it."), Only("checkpoint")
]
SizeOption = Annotated[
    bool, typer.Option("--size", help="With the bytes that changed since, of a running VM."), Only("checkpoint")
]
XpathOption = Annotated[
    str | None,
    typer.Option("--xpath", metavar="XPATH", help="Print only what an XPath expression finds.", show_default=False),
]
WrapOption = Annotated[bool, typer.Option("--wrap", help="With --xpath: in one element <nodes>.")]

# -- what is done to them --------------------------------------------------------------------------------------------

EditedCurrentOption = Annotated[
    bool,
    typer.Option("--current", help="Without a name: the current one. With it: it becomes current."),
    _OF_SNAPSHOTS,
]
RenameOption = Annotated[bool, typer.Option("--rename", help="A new name may be given to it."), _OF_SNAPSHOTS]
CloneOption = Annotated[bool, typer.Option("--clone", help="Under a new name it is one more."), _OF_SNAPSHOTS]
MadeCurrentOption = Annotated[bool, typer.Option("--current", help="It becomes the current one."), _OF_SNAPSHOTS]
ValidateOption = Annotated[bool, typer.Option("--validate", help="Let libvirt prove it first.")]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-definition", help="Take what reaches into this host, and the VM does not have, as it is."),
]
ChildrenOption = Annotated[bool, typer.Option("--children", help="And all that descends from it.")]
ChildrenOnlyOption = Annotated[bool, typer.Option("--children-only", help="Only what descends from it.")]
RecordOption = Annotated[bool, typer.Option("--metadata", help="Only libvirt's record: {kept}.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Redefine those that are there and are not as the file has them.")
]
