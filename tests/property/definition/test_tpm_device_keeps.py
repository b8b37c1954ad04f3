"""A TPM taken out of any domain and put back leaves that domain, and between the two only the device is gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.property.definition.test_remap_keeps import domains, unknown, unknown_elements
from vmkeep.definition import DefinitionError
from vmkeep.definition.tpmdevice import put_tpm_in, take_tpm_out


def _tokens(xml: str) -> list[tuple[object, ...]]:
    """Return elements and comments in their order, with what is in them; white space between them is nobody's."""
    return [
        (str(each.tag), tuple(sorted(each.items())), (each.text or "").strip(), (each.tail or "").strip())
        for each in etree.fromstring(xml).iter()
    ]


@given(domains(), unknown_elements(), st.integers(0, 20), st.sampled_from(["", "\n    ", " "]))
def test_tpm_that_went_out_comes_back_and_nothing_else_changes(
    xml: str, within: etree._Element, place: int, space: str
) -> None:
    root = etree.fromstring(xml)
    devices = root.find("devices")
    assert devices is not None
    tpm = etree.Element("tpm", model="tpm-crb")
    tpm.append(etree.Element("backend", type="emulator", version="2.0"))
    tpm.append(within)
    tpm.tail = space
    devices.insert(min(place, len(devices)), tpm)
    before = etree.tostring(root, encoding="unicode")

    taken = take_tpm_out(before)
    assert taken is not None
    assert sorted(unknown(taken.definition) + unknown(taken.element)) == sorted(unknown(before))
    assert take_tpm_out(taken.definition) is None
    back = put_tpm_in(taken.definition, taken.element, taken.place)
    assert _tokens(back) == _tokens(before)


@given(domains(), st.text(max_size=200))
def test_whatever_is_put_in_is_a_tpm_or_refused(xml: str, element: str) -> None:
    try:
        made = put_tpm_in(xml, element)
    except DefinitionError:
        return
    assert take_tpm_out(made) is not None
