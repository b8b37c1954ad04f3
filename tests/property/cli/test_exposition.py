"""The file for the node exporter holds what it says, whatever VMs are called."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from vmkeep.cli.exposition import exposition
from vmkeep.flows.show_status import Status
from vmkeep.planning.protection import ProtectedVm, Protection

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (-?[0-9.e+]+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')
_MEANS = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def status(*vms: ProtectedVm) -> Status:
    moment = "2026-11-30T12:00:00.000000+00:00"
    return Status(moment, vms, (), "stands", "watching", None, None, (), None, None)


@given(st.text(alphabet=st.characters(), max_size=20))
@example('a"b\\c\nd')
@example("} 1\nvmkeep_vms 7")
@example("\udcff")
@example("a\u2028b\x85c\rd")
def test_names_of_vms_come_back_out_of_their_labels(name: str) -> None:
    created = "2026-11-30T02:30:00.000000+00:00"
    text = exposition(status(ProtectedVm(name, "u", "running", Protection.GOOD, "p", created, 60.0, 93600)))
    text.encode()
    lines = text.removesuffix("\n").split("\n")
    samples = [_SAMPLE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(samples)
    named = [match for match in samples if match and match[1] == "vmkeep_point_last_success_timestamp_seconds"]
    (match,) = named
    labels = {
        label: re.sub(r'\\[\\"n]', lambda found: _MEANS[found[0]], value) for label, value in _LABEL.findall(match[2])
    }
    assert labels == {"vm": name.encode("utf-8", "replace").decode(), "uuid": "u"}
    assert float(match[3]) == 1796005800


def test_time_that_is_not_known_is_left_out() -> None:
    text = exposition(status(ProtectedVm("a", "u", "off", Protection.NONE)))
    assert "last_success" not in text
    assert 'vmkeep_vm_protected{vm="a",uuid="u"} 0\n' in text
    assert 'vmkeep_vms{protection="none"} 1\n' in text


def test_vm_that_is_skipped_is_neither_protected_nor_not() -> None:
    assert "vmkeep_vm_protected" not in exposition(status(ProtectedVm("a", "u", "off", Protection.SKIPPED)))
