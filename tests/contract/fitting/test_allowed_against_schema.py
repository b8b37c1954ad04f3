"""The allow-list against libvirt's own schema: a word in it that libvirt does not know lets nothing through."""

from __future__ import annotations

import pytest
from lxml import etree

from vmkeep.fitting.allowed import Allowed, allowed_domain
from vmkeep.fitting.vocabulary import Vocabulary
from vmkeep.host.restores.suitability import SCHEMAS

# What has come after libvirt 9.0, the oldest that is looked at here.
_NEWER = {
    "domain/hwuuid",
    "domain/throttlegroups",
    "domain/iothreadids/iothread/poll",
    "domain/features/ras",
    "domain/features/ps2",
    "domain/features/aia",
    "domain/features/async-teardown",
    "domain/features/hyperv/emsr_bitmap",
    "domain/features/hyperv/xmm_input",
    "domain/devices/disk/driver/iothreads",
    "domain/devices/disk/throttlefilters",
    "domain/devices/controller/driver/iothreads",
    "domain/devices/tpm/backend/profile",
    "domain/devices/memory/target/address",
    "domain/devices/crypto",
}
# Many devices share lines of the list; that one of them cannot have what another can does no harm.
_SHARED = {"alias", "address", "acpi", "boot", "rom", "driver", "direct", "extended", "model"}


def _unknown(path: str, element: etree._Element, allowed: Allowed, vocabulary: Vocabulary) -> set[str]:
    found = set()
    for name, below in allowed.children.items():
        child = etree.SubElement(element, name)
        if vocabulary.unknown(element.getroottree().getroot()):
            found.add(f"{path}/{name}")
        else:
            found |= _unknown(f"{path}/{name}", child, below, vocabulary)
        element.remove(child)
    return found


def test_every_element_of_the_allow_list_is_one_of_libvirts() -> None:
    if not SCHEMAS.is_dir():
        pytest.skip("libvirt's schemas are not installed")
    vocabulary = Vocabulary.of({path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.rng")})
    unknown = _unknown("domain", etree.Element("domain"), allowed_domain(), vocabulary)
    assert {path for path in unknown if path.rpartition("/")[2] not in _SHARED} <= _NEWER
