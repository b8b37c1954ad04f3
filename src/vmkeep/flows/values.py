"""How the values of flows are stored: JSON with the name of the value's class, and never pickle.

Only classes named here are made again when a flow is read, so the flow database cannot bring in others. DBOS itself
would read each row as the row says that it was written, by pickle as well (3.4), so ``refuse_pickle`` takes that away.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

from vmkeep.errors import StoreError, VmkeepError
from vmkeep.flows import requests
from vmkeep.flows.durable import Serializer, _serialization
from vmkeep.host import tasks

SERIALIZATION: Final = "vmkeep-json-1"
_PICKLED_NOTHING: Final = "Ti4="  # as base64, which is how DBOS has it
_CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for module in (requests, tasks)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
}


class FlowSerializer(Serializer):
    """Stores requests, results of steps and errors of flows."""

    def serialize(self, data: Any) -> str:
        return json.dumps(_encode(data), separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> Any:
        return _decode(json.loads(serialized_data))

    def name(self) -> str:
        return SERIALIZATION


def refuse_pickle() -> None:
    """Let DBOS unpickle nothing in this process, whatever a row of its database says. To be called before it starts.

    Raises AssertionError where that cannot be had, which is a DBOS that is built otherwise than the one known.
    """
    _serialization.DefaultSerializer.deserialize = _refuse  # type: ignore[assignment,method-assign]  # no setting does it
    pickled = _serialization.DefaultSerializer().name()
    for read in (
        _serialization.deserialize_value,
        _serialization.deserialize_args,
        _serialization.deserialize_exception,
    ):
        try:
            read(_PICKLED_NOTHING, pickled, FlowSerializer())
        except StoreError:
            continue
        raise AssertionError("DBOS would unpickle rows of its database")


def _refuse(_serializer: object, _text: str) -> Any:
    raise StoreError("a row of the flow database says that it is pickle, which is never read")


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        # A key that begins with the mark of ours would be taken for one.
        assert not any(str(key).startswith("$") for key in value), "a mapping of a flow has a key that begins with $"
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, VmkeepError):
        return {"$error": value.as_dict(), "code": value.code}
    if isinstance(value, BaseException):
        return {"$fault": f"{type(value).__name__}: {value}"}
    if dataclasses.is_dataclass(value) and type(value).__name__ in _CLASSES:
        fields = {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"$value": type(value).__name__, "fields": fields}
    raise TypeError(f"a {type(value).__name__} cannot be stored with a flow")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tuple" in value:
        return tuple(_decode(item) for item in value["$tuple"])
    if "$error" in value:
        return VmkeepError.from_dict(value["$error"])
    if "$fault" in value:
        return VmkeepError(value["$fault"])
    if "$value" in value:
        kind = _CLASSES[value["$value"]]
        # A flow may have been left by another release: fields that a class lost since are dropped, new ones have
        # defaults (docs/internals/flows.md, rules for changing a flow).
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: _decode(item) for name, item in value["fields"].items() if name in known})
    return {key: _decode(item) for key, item in value.items()}
