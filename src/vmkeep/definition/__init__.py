"""A domain's XML: what of it vmkeep must know, and the same XML made fit for another place."""

from __future__ import annotations

from vmkeep.definition.model import (
    USAGE,
    BackingLayer,
    DefinedBacking,
    DefinedDisk,
    Definition,
    DefinitionError,
    DiskEncryption,
    Firmware,
    FirmwareKind,
    Interface,
    SecurityLabel,
    SourceKind,
    TpmBackend,
    TpmDevice,
)
from vmkeep.definition.reading import parse_definition
from vmkeep.definition.remapping import DiskPlacement, Remap, remap
from vmkeep.definition.secrets import USAGE_ELEMENTS, secret_definition

__all__ = [
    "USAGE",
    "USAGE_ELEMENTS",
    "BackingLayer",
    "DefinedBacking",
    "DefinedDisk",
    "Definition",
    "DefinitionError",
    "DiskEncryption",
    "DiskPlacement",
    "Firmware",
    "FirmwareKind",
    "Interface",
    "Remap",
    "SecurityLabel",
    "SourceKind",
    "TpmBackend",
    "TpmDevice",
    "parse_definition",
    "remap",
    "secret_definition",
]
