"""What goes on with a VM when a backup is asked for. Before and after it is an ordinary VM, and played as one."""

from __future__ import annotations

from tests.zoo.row import KEPT, Edit, Promise, Refused, Row

_PRESERVED = Edit("/domain", children=("<on_crash>preserve</on_crash>",))
_PANIC = ("<panic model='isa'/>",)

ROWS = (
    Row("paused", "paused by its user", condition="paused", promise=Promise(meanwhile=KEPT), sample=True),
    Row("started-paused", "started paused, never run", paused=True),
    Row(
        "other-backup",
        "a backup job of another tool",
        condition="another backup",
        promise=Promise(meanwhile=Refused("vm-busy", "job")),
        sample=True,
    ),
    Row(
        "block-copy",
        "a block job (`virsh blockcopy`)",
        condition="block copy",
        promise=Promise(meanwhile=Refused("vm-busy", "block")),
    ),
    Row(
        "definition-differs",
        "a definition that takes effect at the next start",
        condition="another definition",
        promise=Promise(meanwhile=KEPT),
    ),
    Row("transient", "a transient VM", condition="transient", promise=Promise(meanwhile=KEPT)),
    Row(
        "foreign-checkpoint",
        "a checkpoint of another tool",
        condition="foreign checkpoint",
        promise=Promise(meanwhile=KEPT),
    ),
    Row(
        "foreign-snapshot",
        "an external snapshot of `virsh`",
        condition="foreign snapshot",
        promise=Promise(meanwhile=KEPT),
    ),
    Row(
        "managed-save",
        "off, with saved memory (`virsh managedsave`)",
        condition="managed save",
        promise=Promise(meanwhile=KEPT),
    ),
    Row(
        "image-open",
        "off, and another program has an image open",
        condition="image open",
        promise=Promise(meanwhile=Refused("vm-busy", "vda")),
    ),
    Row(
        "image-missing",
        "off, and an image is missing",
        condition="image missing",
        promise=Promise(meanwhile=Refused("disk-unsupported", "vda")),
    ),
    Row(
        "image-corrupt",
        "off, and an image is marked corrupt",
        condition="image corrupt",
        promise=Promise(meanwhile=Refused("disk-unsupported", "corrupt")),
    ),
    Row(
        "crashed",
        "crashed, with `on_crash` preserve",
        condition="crashed",
        devices=_PANIC,
        edits=(_PRESERVED,),
        promise=Promise(meanwhile=KEPT),
    ),
)
