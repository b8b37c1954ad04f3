"""UEFI variables in words: for people, and as JSON. Never a content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vmkeep.cli.console import size_text
from vmkeep.cli.state_words import certificate_document, certificate_text, signatures_document, signatures_text

if TYPE_CHECKING:
    from vmkeep.custody.bootentries import BootEntry
    from vmkeep.custody.nvram import NvramTold
    from vmkeep.flows.requests import NvramReplaced
    from vmkeep.flows.show_nvram import NvramShown

SEALED = (
    "What its guest sealed to PCR 7 (BitLocker with Secure Boot, systemd-cryptenroll) does not open at its next start"
)
"""What is said of a change of UEFI variables, before and after it."""
_SECURE_BOOT = {"on": "on", "off": "off, with a platform key", "not-set-up": "off: no platform key (setup mode)"}


def secure_boot_text(told: NvramTold) -> str:
    """Return how Secure Boot stands."""
    return "unknown" if told.secure_boot is None else _SECURE_BOOT[told.secure_boot]


def microsoft_text(told: NvramTold) -> str:
    """Return of which years Microsoft's certificates are, and which of 2023 are lacking."""
    if told.microsoft is None:
        return "unknown"
    lacking = told.microsoft.lacking
    generation = str(told.microsoft.generation)
    return f"{generation}, without {', '.join(lacking)}" if lacking and generation == "both" else generation


def expiry_text(told: NvramTold) -> str:
    """Return when the time of the first certificate ends, or ended."""
    return "" if told.first_expiry is None else certificate_text(told.first_expiry)


def nvram_facts(shown: NvramShown) -> Iterator[tuple[str, str]]:
    """Yield what is told of a VM's variables."""
    where = "" if shown.running is None else ", running: as they are at this moment" if shown.running else ", off"
    yield "VM", f"{shown.vm} ({shown.vm_uuid}){where}"
    if shown.path:
        yield "file", shown.path
    if shown.version is not None:
        yield "version", str(shown.version)
    if shown.point is not None:
        yield "point", shown.point
    told = shown.told
    if told is None:
        yield "variables", shown.problem
        return
    yield "SHA-256", f"{shown.sha256[:16]}, {size_text(shown.size_bytes)}"
    if told.problem is not None:
        yield "", f"not all of it could be read: {told.problem}"
    yield "Secure Boot", secure_boot_text(told)
    yield "Microsoft", microsoft_text(told)
    yield from ((each.name, signatures_text(each.signatures)) for each in told.databases)
    yield "boots", "\n".join(_boot_lines(told)) or "nothing of its own: the firmware looks for it"
    marks = [f"{mark.name} ({mark.vendor_name}): {mark.what}" for mark in told.marks if not mark.lasting]
    yield "next start", "\n".join(marks) or "nothing is marked for it"
    yield from ((mark.name, mark.what) for mark in told.marks if mark.lasting)
    room = f"{size_text(told.used_bytes)} of {size_text(told.room_bytes)} used, {size_text(told.blank_bytes)} blank"
    yield "variables", f"{told.variables}; {room}"


def nvram_document(shown: NvramShown) -> dict[str, Any]:
    """Return a VM's variables as JSON."""
    told = shown.told
    document: dict[str, Any] = {
        "vm": shown.vm,
        "vm_uuid": shown.vm_uuid,
        "running": shown.running,
        "path": shown.path or None,
        "version": shown.version,
        "point": shown.point,
        "sha256": shown.sha256 or None,
        "size_bytes": shown.size_bytes,
        "problem": shown.problem or None,
        "content": None,
    }
    if told is not None:
        document["problem"] = told.problem
        document["content"] = {
            **_outline(told),
            "databases": {each.name: signatures_document(each.signatures) for each in told.databases},
            "boot": {
                "order": list(told.booting.order),
                "next": told.booting.next,
                "entries": [_entry_document(entry) for entry in told.booting.entries],
            },
            "marks": [
                {"name": mark.name, "vendor_name": mark.vendor_name, "what": mark.what, "lasting": mark.lasting}
                for mark in told.marks
            ],
            "variables": told.variables,
            "room_bytes": told.room_bytes,
            "used_bytes": told.used_bytes,
            "blank_bytes": told.blank_bytes,
        }
    return document


def nvram_row(shown: NvramShown) -> tuple[str, ...]:
    """Return a VM's line in a list of all."""
    told = shown.told
    if told is None:
        return shown.vm, "", "", "", shown.problem
    lacking = () if told.microsoft is None else told.microsoft.lacking
    note = told.problem or (f"`vmkeep nvram enroll` adds {len(lacking)} of 2023" if lacking else "")
    generation = "unknown" if told.microsoft is None else str(told.microsoft.generation)
    return shown.vm, _short(told), generation, expiry_text(told), note


def row_document(shown: NvramShown) -> dict[str, Any]:
    """Return a VM's line in a list of all as JSON."""
    told = shown.told
    return {
        "vm": shown.vm,
        "vm_uuid": shown.vm_uuid,
        "running": shown.running,
        "path": shown.path or None,
        "problem": shown.problem or (None if told is None else told.problem),
        **({"secure_boot": None, "microsoft": None, "first_expiry": None} if told is None else _outline(told)),
    }


def replaced_document(replaced: NvramReplaced) -> dict[str, Any]:
    """Return what became of a VM's variables as JSON."""
    kept, now = replaced.kept, replaced.now
    return {
        "vm": replaced.name,
        "vm_uuid": replaced.uuid,
        "how": replaced.how,
        "changed": replaced.changed,
        "path": replaced.path,
        "kept": None if kept is None else {"version": kept, "sha256": replaced.kept_sha256},
        "tpm_kept": replaced.tpm_kept,
        "now": {"version": now, "sha256": replaced.sha256},
        "template": replaced.template or None,
        "added": list(replaced.added),
        "present": list(replaced.present),
        "left": list(replaced.left),
        "aside": replaced.aside or None,
        "way_back": replaced.way_back or None,
        "warnings": list(replaced_warnings(replaced)),
    }


def replaced_warnings(replaced: NvramReplaced) -> Iterator[str]:
    """Yield what somebody must know of a change that was made."""
    yield from replaced.warnings
    if replaced.changed:
        yield f"{SEALED}, unless the variables are those that it was sealed with."


def replaced_text(replaced: NvramReplaced) -> Iterator[str]:
    """Yield what became of a VM's variables."""
    yield from (f"added: {told}" for told in replaced.added)
    yield from (f"already there: {told}" for told in replaced.present)
    if not replaced.changed:
        yield f"the UEFI variables of VM {replaced.name} are as they were: nothing was to be changed"
        return
    of = f", made of {replaced.template}" if replaced.template else ""
    now = f"version {replaced.now}" if replaced.now is not None else f"SHA-256 {replaced.sha256[:16]}"
    yield f"the UEFI variables of VM {replaced.name} are {now} now{of}"
    if replaced.kept is not None:
        tpm = f", and its TPM state as version {replaced.tpm_kept}" if replaced.tpm_kept is not None else ""
        yield f"what lay there is kept as version {replaced.kept}{tpm}"
    if replaced.way_back:
        yield f"to go back, with the VM off: {replaced.way_back}"


def _short(told: NvramTold) -> str:
    return "unknown" if told.secure_boot is None else str(told.secure_boot)


def _outline(told: NvramTold) -> dict[str, Any]:
    keys, first = told.microsoft, told.first_expiry
    return {
        "secure_boot": None if told.secure_boot is None else str(told.secure_boot),
        "microsoft": None if keys is None else {"generation": str(keys.generation), "lacking": list(keys.lacking)},
        "first_expiry": None if first is None else certificate_document(first),
    }


def _boot_lines(told: NvramTold) -> Iterator[str]:
    booting = told.booting
    if booting.next is not None:
        yield f"next, once: {booting.next}"
    there = {entry.number for entry in booting.entries}
    for entry in booting.entries:
        words = [] if entry.number in booting.order else ["not in the order"]
        words += ["inactive"] * (not entry.active) + ["hidden"] * entry.hidden
        words += [entry.problem] if entry.problem else []
        told_of = f" ({', '.join(words)})" if words else ""
        yield f"{entry.number} {entry.description.strip() or '-'}{told_of}: {entry.target or '-'}"
    yield from (f"{number} is in the order, and is not there" for number in booting.order if number not in there)


def _entry_document(entry: BootEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "description": entry.description,
        "target": entry.target,
        "active": entry.active,
        "hidden": entry.hidden,
        "problem": entry.problem,
    }
