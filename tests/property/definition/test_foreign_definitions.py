"""A definition from anywhere (a point, a snapshot, an editor): each reader of it gives data or says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.foreign import damaged, forged_xml
from tests.unit.fitting.hosts import NEWER_VM, OLDER
from tests.unit.fitting.test_hostparts import OWN
from vmkeep.definition import DefinitionError, DiskPlacement, Remap, parse_definition, remap
from vmkeep.definition.parking import is_parked, park, unpark
from vmkeep.definition.reading import read_domain
from vmkeep.definition.repointing import Placed, leave_chains_to_images, repoint, restand, sliced_disks
from vmkeep.fitting import StoredVariables, Wish, fit, host_parts, reaching, strip_host_parts
from vmkeep.moments import MomentError, domain_disks
from vmkeep.xmltext import serialise_xml

T = TypeVar("T")
_GOLDEN = Path(__file__).parents[2] / "unit"
_FITTING = _GOLDEN / "fitting" / "golden" / "bookworm"
GOOD = [
    *((_GOLDEN / "definition" / "golden" / f"{name}.in.xml").read_text() for name in ("bios", "live", "windows")),
    *((_FITTING / f"definition-{name}.xml").read_text() for name in ("linux", "win")),
    NEWER_VM,
]
_MOST_WORDS = 4000


def outcome(call: Callable[[], T]) -> T | None:
    """Return the data; None for an error that its callers translate. Anything else fails the test."""
    try:
        return call()
    except (DefinitionError, MomentError) as error:
        told = str(error)
    assert told
    assert len(told) < _MOST_WORDS
    return None


def use(xml: str) -> None:
    """Do with a definition what everybody does with one."""
    definition = outcome(lambda: parse_definition(xml))
    outcome(lambda: domain_disks(xml))
    if definition is None:
        return
    targets = [disk.target for disk in definition.disks]
    placed = {target: DiskPlacement(f"/images/{number}", "qcow2") for number, target in enumerate(targets)}
    changes = Remap(name="new", uuid="4dea22b3-1d52-d8f3-2516-782e98ab3fa0", disks=placed, nvram="/nvram/new.fd")
    mapped = outcome(lambda: remap(xml, changes))
    if mapped is not None:
        assert parse_definition(mapped).name == "new"
    outcome(lambda: remap(xml, Remap(removed=frozenset(targets[:1]), default_tpm_place=True, new_genid=True)))
    parked = outcome(lambda: park(xml, "/nowhere/parked"))
    if parked is not None:
        assert is_parked(parked.definition, "/nowhere/parked")
        assert unpark(parked.definition, "/nowhere/parked", parked.target, parked.element) is not None
    outcome(lambda: repoint(xml, dict.fromkeys(targets, "/images/x")))
    outcome(lambda: restand(xml, (targets or ["vda"])[0], Placed("/images/x", "raw", block=True)))
    outcome(lambda: leave_chains_to_images(xml, targets))
    outcome(lambda: sliced_disks(xml))


def judge(xml: str) -> None:
    """Hold a definition against a host, as a restore does."""
    root = outcome(lambda: read_domain(xml))
    if root is None:
        return
    assert all(hash(place.key) is not None for place in reaching(root, OWN))
    parts = list(host_parts(root, OWN))
    for part in parts:
        assert len(part.part) + len(part.what) + len(part.value) < _MOST_WORDS
    strip_host_parts(parts)
    read_domain(serialise_xml(root))
    fitted = outcome(lambda: fit(xml, OLDER, Wish(adapt=True), variables=StoredVariables(size_bytes=528 * 1024)))
    if fitted is not None:
        read_domain(fitted.definition)


@given(st.sampled_from(GOOD).flatmap(forged_xml))
def test_definition_with_other_parts(xml: str) -> None:
    use(xml)


@given(st.sampled_from(GOOD).flatmap(forged_xml))
def test_definition_with_other_parts_is_judged(xml: str) -> None:
    judge(xml)


@given(st.sampled_from(GOOD).map(str.encode).flatmap(damaged))
def test_definition_that_is_damaged(content: bytes) -> None:
    xml = content.decode(errors="surrogateescape")
    use(xml)
    judge(xml)


@pytest.mark.parametrize("xml", GOOD)
def test_what_is_changed_is_good_before(xml: str) -> None:
    assert parse_definition(xml).disks
