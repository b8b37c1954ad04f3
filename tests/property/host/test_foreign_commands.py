"""What an agent believes of a command: a task with the types that its class declares, or an error of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.host import test_wire as test_wire  # which tells hypothesis how values are made
from vmkeep.errors import InvalidRequest
from vmkeep.host.tasks.commands import MOST_BYTES, Command, read_command, write_command
from vmkeep.host.tasks.locks import WhoHoldsVm
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.wire import task_classes

TASKS = st.sampled_from(task_classes()).flatmap(lambda kind: st.from_type(kind))
_COUNTS = st.integers(0, 2**63 - 1)
COMMANDS: st.SearchStrategy[Command] = st.builds(Command, st.sampled_from(["one", "0" * 32]), _COUNTS, _COUNTS, TASKS)
_WORDS = st.sampled_from(["$value", "$enum", "$tuple", "$set", "$bytes", "$error", "$fault", "fields", "value", "vm"])
_NAMES = st.sampled_from([kind.__name__ for kind in task_classes()] + ["Codec", "os", "", "Command"])
_ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=8,
)
SAFE = Command("one", 1, 2, WhoHoldsVm("uuid"))


@given(command=COMMANDS)
@settings(max_examples=25, deadline=None)
def test_command_reads_back_as_it_was_written(command: Command) -> None:
    assert read_command(write_command(command)) == command


@given(raw=st.binary(max_size=200) | _ODD.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None)
def test_foreign_bytes_are_refused_with_an_error_of_ours(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_command(raw)
    assert refused.value.hint


@given(command=COMMANDS, odd=_ODD, data=st.data())
@settings(max_examples=25, deadline=None)
def test_command_with_another_field_is_of_declared_types_or_refused(
    command: Command, odd: Any, data: st.DataObject
) -> None:
    told = json.loads(write_command(command))
    places: list[Any] = [told, told["task"], told["task"]["fields"]]
    place = data.draw(st.sampled_from([each for each in places if each]))
    place[data.draw(st.sampled_from(sorted(place)))] = odd
    try:
        read = read_command(json.dumps(told).encode())
    except InvalidRequest:
        return
    assert isinstance(read.task, Task)
    assert read_command(write_command(read)) == read


@pytest.mark.parametrize("vm", [None, True, 3, ["uuid"], {"$bytes": "00"}, {"$tuple": ["uuid"]}])
def test_field_of_another_type_is_refused(vm: Any) -> None:
    told = json.loads(write_command(SAFE))
    [name] = list(told["task"]["fields"])
    told["task"]["fields"][name] = vm
    with pytest.raises(InvalidRequest, match="refused"):
        read_command(json.dumps(told).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("operation", value) for value in ("", "../x", ".x", "a/b", "x" * 65, 3, None, "é", "one\n")),
        *((count, value) for count in ("epoch", "order") for value in (-1, 2**63, True, 1.0, "1", None)),
    ],
)
def test_place_of_a_command_that_cannot_be_meant_is_refused(field: str, value: Any) -> None:
    told = {**json.loads(write_command(SAFE)), field: value}
    with pytest.raises(InvalidRequest, match="refused"):
        read_command(json.dumps(told).encode())


@pytest.mark.parametrize("raw", [b" " * (MOST_BYTES + 1), b"[" * 100_000, b"9" * 10_000, b"NaN", b"\xff\xfe"])
def test_bytes_made_to_exhaust_the_reader_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_command(raw)


def test_class_that_is_no_task_is_not_carried_out() -> None:
    told = json.loads(write_command(SAFE))
    others: list[Any] = [{"$value": "VmLock", "fields": {}}, {"$fault": "x"}, {"$error": {}}, "WhoHoldsVm"]
    for other in others:
        with pytest.raises(InvalidRequest, match="refused"):
            read_command(json.dumps({**told, "task": other}).encode())
