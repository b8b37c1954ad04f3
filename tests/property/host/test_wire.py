"""Whatever a host can be asked, and answers, comes out of JSON as it went in."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkeep.host.tasks.checkup import Mend
from vmkeep.host.tasks.points import PointCopied
from vmkeep.host.tasks.snapshots import SnapshotStored
from vmkeep.host.tasks.wire import Codec, answer_of, codec_of_tasks, task_classes

CODEC = codec_of_tasks()
# A mapping whose key begins with the codec's own mark is refused, and has a test of its own.
_TEXTS = st.text(st.characters(exclude_characters="$"))
_PLAIN = st.none() | st.booleans() | st.integers() | _TEXTS
_DOCUMENTS = st.dictionaries(_TEXTS, st.recursive(_PLAIN, st.lists, max_leaves=4), max_size=4)
st.register_type_strategy(str, _TEXTS)
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(Mend, st.one_of(*(st.from_type(kind) for kind in task_classes() if issubclass(kind, Mend))))
st.register_type_strategy(
    PointCopied, st.builds(PointCopied, record=_DOCUMENTS, states=st.lists(_DOCUMENTS, max_size=2).map(tuple))
)
st.register_type_strategy(SnapshotStored, st.builds(SnapshotStored, states=st.lists(_DOCUMENTS, max_size=2).map(tuple)))


def _there_and_back(codec: Codec, value: Any) -> Any:
    return codec.decode(json.loads(json.dumps(codec.encode(value))))


@pytest.mark.parametrize("task", task_classes(), ids=lambda task: task.__name__)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_each_task_and_each_answer_crosses_the_door_unchanged(task: type[Any], data: st.DataObject) -> None:
    """One of each, made of nothing but the declared types of its fields: a class that cannot cross is found here."""
    for declared in (task, answer_of(task)):
        value = data.draw(st.from_type(declared)) if declared is not type(None) else None
        assert _there_and_back(CODEC, value) == value


def test_class_that_was_not_named_does_not_cross() -> None:
    @dataclasses.dataclass(frozen=True)
    class Strange:
        word: str

    with pytest.raises(TypeError, match="Strange"):
        CODEC.encode(Strange("x"))
    with pytest.raises(KeyError):
        CODEC.decode({"$value": "Strange", "fields": {"word": "x"}})


def test_mapping_that_looks_like_the_codecs_own_words_is_refused() -> None:
    with pytest.raises(AssertionError):
        CODEC.encode({"$value": "OpenPoint"})
