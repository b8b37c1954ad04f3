"""The golden definitions are what libvirt's own schema allows, before and after they are remapped."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest
from lxml import etree

GOLDEN = Path(__file__).parents[2] / "unit" / "definition" / "golden"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.xml")), ids=lambda path: path.name)
def test_golden_definition_is_valid(schema: etree.RelaxNG, path: Path) -> None:
    schema.assertValid(etree.parse(path))


def test_remapped_definition_is_defined_by_libvirt() -> None:
    connection = libvirt.open("test:///default")
    try:
        domain = connection.defineXML((GOLDEN / "bios.out.xml").read_text(encoding="utf-8"))
        assert domain.name() == "plain again"
    finally:
        connection.close()
