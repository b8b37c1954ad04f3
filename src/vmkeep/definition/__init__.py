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

__all__ = [
    "USAGE",
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
]
