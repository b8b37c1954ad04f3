"""Whatever is put into an ordinary definition, an unknown name or a path, is told as reaching into the host."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.unit.fitting.test_hostparts import (
    HOSTILE_DEVICES,
    HOSTILE_PARTS,
    ORDINARY_DEVICES,
    ORDINARY_PARTS,
    OWN,
    domain,
)
from vmkeep.definition.reading import read_domain
from vmkeep.fitting import host_parts, strip_host_parts
from vmkeep.fitting.allowed import Allowed, allowed_domain

ORDINARY = domain("".join(ORDINARY_DEVICES.values()), "".join(ORDINARY_PARTS.values()))
_FREE = ("metadata", "address")
_names = st.from_regex(r"[a-z][a-zA-Z_]{3,12}", fullmatch=True)
_paths = st.from_regex(r"(\.\.)?/[a-z]{1,8}(/[a-z.]{1,8}){0,3}", fullmatch=True)


def _elements() -> list[etree._Element]:
    """Return the elements of an ordinary definition, a new one each time; not those that may hold anything."""
    found = read_domain(ORDINARY).iter(etree.Element)
    return [each for each in found if not any(line.tag in _FREE for line in (each, *each.iterancestors()))]


def _rule(element: etree._Element) -> Allowed:
    at = allowed_domain()
    for step in [*reversed(list(element.iterancestors())), element][1:]:
        at = at.children[str(step.tag)]
    return at


def test_the_ordinary_definition_is_ordinary() -> None:
    assert list(host_parts(_elements()[0], OWN)) == []


@given(st.data(), _names)
def test_name_that_is_not_known_is_told_wherever_it_stands(data: st.DataObject, name: str) -> None:
    elements = _elements()
    at = elements[data.draw(st.integers(0, len(elements) - 1))]
    as_child = data.draw(st.booleans())
    if as_child:
        at.append(etree.Element(name))
    else:
        at.set(name, "x")
    known = {*_rule(at).children} if as_child else {*_rule(at).attributes}
    assert bool(list(host_parts(elements[0], OWN))) is (name not in known)


@given(st.data(), _paths)
def test_path_is_told_wherever_it_stands(data: st.DataObject, path: str) -> None:
    elements = _elements()
    at = elements[data.draw(st.integers(0, len(elements) - 1))]
    rule = _rule(at)
    free = {name for name, each in rule.attributes.items() if each == "~text"}
    names = sorted({*map(str, at.attrib), *rule.attributes} - free)
    chosen = data.draw(st.integers(-1, len(names) - 1))
    if chosen >= 0:
        at.set(names[chosen], path)
    elif rule.text != "~text":
        at.text = path
    else:
        return
    assert list(host_parts(elements[0], OWN)) != []


@given(st.sets(st.sampled_from([*HOSTILE_DEVICES])), st.sets(st.sampled_from([*HOSTILE_PARTS])))
def test_what_is_left_after_stripping_reaches_nowhere(devices: set[str], more: set[str]) -> None:
    xml = domain(
        "".join(HOSTILE_DEVICES[name][0] for name in devices), "".join(HOSTILE_PARTS[name][0] for name in more)
    )
    root = read_domain(xml)
    strip_host_parts(list(host_parts(root, OWN)))
    assert list(host_parts(root, OWN)) == []
    # Nothing of this host's own had to go.
    assert root.findtext("devices/emulator") == "/usr/bin/qemu-system-x86_64"
    assert root.find("devices/disk/source") is not None


def test_nothing_passes_that_the_host_does_not_name() -> None:
    found = list(host_parts(read_domain(ORDINARY), replace(OWN, emulators=frozenset(), images={})))
    assert [part.part for part in found] == ["devices/emulator", "devices/disk[vda]"]
