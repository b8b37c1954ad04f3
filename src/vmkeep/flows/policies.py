"""Policies of the catalogue: which points are kept, of one VM, of all that have none of their own, or of a label."""

from __future__ import annotations

import os
from datetime import UTC, timedelta, tzinfo
from pathlib import Path
from typing import Final

from vmkeep.catalog import Catalog, Policy
from vmkeep.errors import InvalidRequest, VmNotFound
from vmkeep.flows.vm_states import the_vm_known
from vmkeep.planning.point_retention import ALL_VMS as ALL_VMS
from vmkeep.planning.point_retention import PointRule
from vmkeep.planning.retention import KeepRule

_LABEL: Final = "label:"


def subject_named(catalog: Catalog, text: str) -> str:
    """Return what a policy is of, by what a person writes: a VM, "all", "label:NAME" or "label:NAME=VALUE".

    Raises VmNotFound for a VM without points, and InvalidRequest for a name that several VMs have.
    """
    if text == ALL_VMS:
        return text
    if text.startswith(_LABEL):
        if text.removeprefix(_LABEL).partition("=")[0]:
            return text
        raise InvalidRequest(f"{text!r} names no label", hint="Write label:NAME, or label:NAME=VALUE.")
    return f"vm:{vm_with_points(catalog, text)}"


def vm_with_points(catalog: Catalog, vm: str) -> str:
    """Return the UUID of a VM that the catalogue knows. Raises VmNotFound, and InvalidRequest for one of several."""
    unknown = VmNotFound(
        f"no point of a VM {vm!r} is known",
        vm=vm,
        hint="`vmkeep points` lists the points. A policy of `all` holds for VMs that are still to come.",
    )
    return the_vm_known(catalog, vm, unknown)


def told_subject(catalog: Catalog, subject: str) -> str:
    """Return what a policy is of as people say it."""
    if not subject.startswith("vm:"):
        return "all other VMs" if subject == ALL_VMS else f"label {subject.removeprefix(_LABEL)}"
    uuid = subject.removeprefix("vm:")
    known = catalog.vm(uuid)
    return f"VM {uuid if known is None else known.name}"


def rule_of_policy(policy: Policy) -> PointRule:
    """Return the rule of a policy. Raises InvalidRequest for one that is none."""
    keep = KeepRule.parse(policy.keep) if policy.keep else KeepRule()
    return PointRule(keep, timedelta(seconds=policy.within_seconds))


def checked_policy(policy: Policy) -> Policy:
    """Return a policy that is about to be set. Raises InvalidRequest for one that keeps nothing, and for its zone."""
    rule = rule_of_policy(policy)
    if not str(rule):
        raise InvalidRequest(
            "a policy that keeps nothing is refused",
            hint="Say what it keeps: --keep-last, --keep-daily, --keep-within, for instance. "
            "`vmkeep policy drop` ends a policy; then nothing is removed by it.",
        )
    zone_named(policy.zone)
    return policy


def zone_named(name: str) -> tzinfo:
    """Return a time zone by its IANA name. Raises InvalidRequest for one that this host does not know."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # who keeps by UTC needs no data of zones

    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise InvalidRequest(
            f"this host does not know the time zone {name!r}",
            hint="Give one as `timedatectl list-timezones` has it, or UTC. Zones are in Debian's package tzdata.",
        ) from error


def local_zone() -> str:
    """Return the name of this host's time zone; UTC where it has none that can be named."""
    told = os.environ.get("TZ", "").removeprefix(":")
    linked = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")[2]
    for name in (told, linked):
        if name:
            try:
                zone_named(name)
            except InvalidRequest:
                continue
            return name
    return "UTC"
