"""Laws of fitting, of any definition: nothing else changes, what was adapted fits, and every refusal is heard."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.unit.fitting.hosts import NEWER_VM, OLDER
from vmkeep.fitting import MachineType, StoredVariables, Vocabulary, Wish, candidates, fit

MOVED = Wish(adapt=True, machine="pc-q35-7.2")
VARIABLES = StoredVariables(size_bytes=528 * 1024)
NAMES = st.sampled_from(["acme", "x-y", "watchdog", "driver", "metadata", "loader"])
FAMILIES = st.sampled_from(["pc-q35", "pc-i440fx", "virt", "pseries"])
versions = st.tuples(st.integers(0, 12), st.integers(0, 12))


@st.composite
def strange(draw: st.DrawFn) -> etree._Element:
    element = etree.Element(draw(NAMES), dict.fromkeys(draw(st.lists(NAMES, unique=True, max_size=2)), "v"))
    for _ in range(draw(st.integers(0, 2))):
        etree.SubElement(element, draw(NAMES))
    return element


@st.composite
def definitions(draw: st.DrawFn) -> str:
    """Return the newer host's VM with strange elements and attributes in it, also where they are allowed."""
    root = etree.fromstring(NEWER_VM)
    places = [each for each in root.iter() if isinstance(each.tag, str) and each.tag not in ("name", "uuid")]
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.sampled_from(places))
        if draw(st.booleans()):
            place.append(draw(strange()))
        else:
            place.set("strange", "v")
    return etree.tostring(root, encoding="unicode")


def _parts(xml: str) -> list[str]:
    tree = etree.fromstring(xml).getroottree()
    return [tree.getelementpath(each) for each in tree.iter()]


@given(definitions())
def test_what_was_adapted_fits_and_is_not_changed_again(xml: str) -> None:
    result = fit(xml, OLDER, MOVED, variables=VARIABLES)
    again = fit(result.definition, OLDER, Wish(), variables=VARIABLES)
    assert again.misfits == ()
    assert again.definition == result.definition


@given(definitions())
def test_every_change_is_named_and_nothing_else_is_changed(xml: str) -> None:
    """What is gone was named, or was in what was named."""
    result = fit(xml, OLDER, MOVED, variables=VARIABLES)
    before, after = etree.fromstring(xml), etree.fromstring(result.definition)
    gone = sum(1 for _ in before.iter()) - sum(1 for _ in after.iter())
    assert gone >= 0
    if not result.misfits:
        assert result.definition == xml
    for element in ("name", "uuid", "memory", "devices/tpm", "devices/disk/source"):
        old, new = before.find(element), after.find(element)
        if old is not None and "strange" not in old.attrib and len(old) == 0:
            assert new is not None
            assert (new.text, dict(new.attrib)) == (old.text, dict(old.attrib))
    known = {name for each in result.misfits for name in re.findall(r"[\w.-]+", each.part)}
    assert {each.tag for each in before.iter()} - {each.tag for each in after.iter()} <= known | NAMES_SET


NAMES_SET = {"acme", "x-y", "watchdog", "driver", "metadata", "loader"}


@given(st.sets(st.sampled_from(["disk", "tpm", "watchdog", "video", "acpi", "smm", "cpu"])))
def test_every_refusal_is_heard_although_each_hides_the_next(poisoned: set[str]) -> None:
    def trial(xml: str) -> str | None:
        root = etree.fromstring(xml)
        return next((f"no {tag}" for tag in sorted(poisoned) if root.find(f".//{tag}") is not None), None)

    left = fit(NEWER_VM, OLDER, MOVED, variables=VARIABLES, trial=trial).left_open(MOVED)
    told = {each.what.rpartition(": no ")[2] for each in left}
    assert told == poisoned - {"watchdog"}  # taken out before libvirt is asked


@given(st.lists(st.tuples(FAMILIES, versions), unique=True), FAMILIES, versions)
def test_best_candidate_is_the_nearest_below(
    there: list[tuple[str, tuple[int, int]]], family: str, version: tuple[int, int]
) -> None:
    machines = [MachineType(name=f"{name}-{major}.{minor}") for name, (major, minor) in there]
    offered = candidates(machines, f"{family}-{version[0]}.{version[1]}")
    of_family = {found for name, found in there if name == family}
    assert {tuple(map(int, each.rpartition("-")[2].split("."))) for each in offered} == of_family
    older = [found for found in of_family if found <= version]
    if offered:
        best = max(older) if older else min(of_family)
        assert offered[0] == f"{family}-{best[0]}.{best[1]}"


@given(definitions())
def test_vocabulary_of_everything_knows_everything(xml: str) -> None:
    everything = (
        '<grammar xmlns="http://relaxng.org/ns/structure/1.0"><define name="domain"><element name="domain">'
        "<zeroOrMore><attribute><anyName/></attribute><element><anyName/><text/></element></zeroOrMore>"
        "</element></define></grammar>"
    )
    assert Vocabulary.of({"domain.rng": everything}).unknown(etree.fromstring(xml)) == []
