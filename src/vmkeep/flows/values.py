"""How the values of flows are stored: JSON with the name of the value's class, and never pickle.

Only classes named here are made again when a flow is read, so the flow database cannot bring in others. DBOS itself
would read each row as the row says that it was written, by pickle as well (3.4), so ``refuse_pickle`` takes that away.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from types import ModuleType
from typing import Any, Final

from vmkeep.errors import StoreError
from vmkeep.flows.durable import Serializer, _serialization
from vmkeep.host.tasks.wire import Codec
from vmkeep.planning.model import KnownDisk, KnownPoint

SERIALIZATION: Final = "vmkeep-json-1"
_PICKLED_NOTHING: Final = "Ti4="  # as base64, which is how DBOS has it
_MODULES: Final = (
    "vmkeep.custody.orphans",
    "vmkeep.custody.states",
    "vmkeep.custody.wanted",
    "vmkeep.flows.clone_requests",
    "vmkeep.flows.requests",
    "vmkeep.host.tasks.clones",
    "vmkeep.host.tasks.nvram",
    "vmkeep.host.tasks.points",
    "vmkeep.host.tasks.restores",
    "vmkeep.host.tasks.reverts",
    "vmkeep.host.tasks.snapshots",
    "vmkeep.host.tasks.tpms",
    "vmkeep.host.tasks.unfinished",
)
"""Those whose classes may be in a flow, all of them."""


def codec() -> Codec:
    """Return the codec for all that may be in a flow."""
    modules = tuple([importlib.import_module(name) for name in _MODULES])
    _codec_of.cache_clear()  # a module may have been in the middle of its import when one was made of it
    return _codec_of(modules)


def _loaded() -> tuple[ModuleType, ...]:
    return tuple([module for name in _MODULES if (module := sys.modules.get(name)) is not None])


@functools.cache
def _codec_of(modules: tuple[ModuleType, ...]) -> Codec:
    kinds = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    ]
    return Codec([*kinds, KnownDisk, KnownPoint])


class FlowSerializer(Serializer):
    """Stores requests, results of steps and errors of flows."""

    def serialize(self, data: Any) -> str:
        # An instance says that its module is loaded; those that are not have nothing in it.
        try:
            encoded = _codec_of(_loaded()).encode(data)
        except TypeError:
            encoded = codec().encode(data)
        return json.dumps(encoded, separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> Any:
        written = json.loads(serialized_data)
        try:
            return _codec_of(_loaded()).decode(written)
        except KeyError:  # of a class whose module is not loaded yet, or of none
            return codec().decode(written)

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
