"""The words taken from this host's schema: its own definitions have no others, and the other Debian's have these."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import libvirt
import pytest
from lxml import etree

from vmkeep.fitting import Vocabulary
from vmkeep.xmltext import tag_name

UNIT: Final = Path(__file__).parents[2] / "unit"
SCHEMAS: Final = Path("/usr/share/libvirt/schemas")
DEFINITIONS: Final = sorted([*(UNIT / "fitting" / "golden").glob("*/definition-*.xml")])
GOLDEN: Final = sorted((UNIT / "definition" / "golden").glob("*.xml"))
# By the release of libvirt: what it does not know in definitions of Debian 13.
_FROM_TRIXIE: Final = {
    "9.0": {"nvram@format", "loader@format", "nvram@templateFormat", "watchdog@model"},
    "11.3": set[str](),
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of({path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.rng")})


def _unknown(vocabulary: Vocabulary, path: Path) -> set[str]:
    root = etree.fromstring(path.read_bytes())
    return {f"{tag_name(each.element)}@{each.attribute}" for each in vocabulary.unknown(root)}


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_words_that_this_libvirt_does_not_know(vocabulary: Vocabulary, path: Path) -> None:
    version = libvirt.getVersion()
    release = f"{version // 1_000_000}.{version // 1000 % 1000}"
    # A firmware that is named in full has a template without a format.
    without = {"nvram@templateFormat"} if path.stem == "definition-linux" else set()
    expected = _FROM_TRIXIE[release] - without if path.parent.name == "trixie" else set()
    assert _unknown(vocabulary, path) == expected


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_valid_definition_has_no_unknown_words(vocabulary: Vocabulary, path: Path) -> None:
    """tests/contract/definition holds the same files against the schema itself."""
    assert _unknown(vocabulary, path) == set()


def test_every_word_that_is_taken_out_of_a_valid_place_is_found(vocabulary: Vocabulary) -> None:
    root = etree.fromstring((UNIT / "definition" / "golden" / "windows.in.xml").read_bytes())
    elements = [each for each in root.iter() if isinstance(each.tag, str) and not each.tag.startswith("{")]
    for element in elements:
        if element.getparent() is not None and "metadata" in [a.tag for a in (element, *element.iterancestors())]:
            continue
        element.set("vmkeep-unknown", "1")
        found = vocabulary.unknown(root)
        del element.attrib["vmkeep-unknown"]
        assert [(each.element, each.attribute) for each in found] == [(element, "vmkeep-unknown")], element.tag
