"""How the values of flows are stored: JSON with the name of the value's class, and never pickle.

Only classes named here are made again when a flow is read, so the flow database cannot bring in others. DBOS itself
would read each row as the row says that it was written, by pickle as well (3.4), so ``refuse_pickle`` takes that away.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

from dbos import Serializer, _serialization

from vmkeep.custody import states
from vmkeep.errors import StoreError
from vmkeep.flows import requests
from vmkeep.host.tasks import points, restores, reverts, snapshots, unfinished
from vmkeep.host.tasks.wire import Codec
from vmkeep.planning.model import KnownDisk, KnownPoint

SERIALIZATION: Final = "vmkeep-json-1"
_PICKLED_NOTHING: Final = "Ti4="  # as base64, which is how DBOS has it
_CODEC: Final = Codec(
    [
        *(
            kind
            for module in (requests, points, restores, reverts, snapshots, states, unfinished)
            for kind in vars(module).values()
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
        ),
        KnownDisk,
        KnownPoint,
    ]
)


class FlowSerializer(Serializer):
    """Stores requests, results of steps and errors of flows."""

    def serialize(self, data: Any) -> str:
        return json.dumps(_CODEC.encode(data), separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> Any:
        return _CODEC.decode(json.loads(serialized_data))

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
