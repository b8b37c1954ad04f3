"""What is kept of a snapshot on this host from before its instant until repository and catalogue have it.

A directory of its own, which only its owner can enter: ``plan.json`` says what was begun, and is durable before the
guest is touched. The state files of the instant are written while the guest stands still, and ``states.json``, with
their hashes, last: without it, or when a hash differs, they are not whole. They are not made durable before the guest
runs again, so that no slow disk holds it; after a kill of vmkeep they are there all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from vmkeep.filesystem import file_error, sync_directory
from vmkeep.host.records.unended import entries
from vmkeep.statefiles.capture import CapturedState
from vmkeep.values import dataclass

_PLAN, _STATES = "plan.json", "states.json"


@dataclass(frozen=True, slots=True)
class KeptSource:
    """A state file that is read at the instant, as ``vmkeep.host.vm.states.StateSource``."""

    kind: str
    path: str
    file: str
    format: str = "raw"


@dataclass(frozen=True, slots=True)
class KeptOverlay:
    """A disk of the snapshot: its target, the image that stays as it was, and the overlay that is put on it."""

    target: str
    image: str
    image_format: str
    overlay: str
    overlay_format: str


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot that was begun. ``begun`` is in seconds since 1970; ``kind`` is disks, memory or internal.

    ``checkpoints`` are the names and definitions of all checkpoints of a VM that is off, parents first: libvirt makes
    no snapshot of it while it lists any. ``memory_file`` is where the memory goes, or empty. ``quiesced``: the guest's
    file systems may have been frozen. ``reused``: the overlays were there before.
    """

    operation: str
    uri: str
    vm: str
    vm_uuid: str
    name: str
    begun: int
    kind: str
    was_running: bool
    stopped: bool
    sources: tuple[KeptSource, ...]
    overlays: tuple[KeptOverlay, ...] = ()
    checkpoints: tuple[tuple[str, str], ...] = ()
    memory_file: str = ""
    quiesced: bool = False
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reused: bool = False

    def save(self, directory: Path) -> None:
        """Make the directory of this snapshot below ``directory`` and the plan in it, durably."""
        place = directory / self.operation
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.mkdir(mode=0o700)
            _write(place / _PLAN, json.dumps(dataclasses.asdict(self)).encode(), durable=True)
            sync_directory(place)
            sync_directory(directory)
        except OSError as error:
            raise file_error(error, place) from error

    @classmethod
    def load(cls, place: Path) -> SnapshotRecord:
        """Read the plan in a snapshot's directory; raises FileNotFoundError, and ValueError when it cannot be read."""
        try:
            value = json.loads((place / _PLAN).read_text(encoding="utf-8"))
            value["sources"] = tuple(KeptSource(**source) for source in value["sources"])
            value["overlays"] = tuple(KeptOverlay(**overlay) for overlay in value["overlays"])
            value["checkpoints"] = tuple((name, xml) for name, xml in value["checkpoints"])
            value["warnings"] = tuple(value["warnings"])
            value["left_out"] = tuple(value["left_out"])
            return cls(**value)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{place / _PLAN} is not the plan of a snapshot: {error}") from error


@dataclass(frozen=True, slots=True)
class KeptStates:
    """The state files of a snapshot's instant: when that was, and how long the guest stood still for it."""

    created: str
    pause_ms: float
    states: tuple[CapturedState, ...]


def keep_states(place: Path, kept: KeptStates) -> None:
    """Write the state files into a snapshot's directory; what is there is replaced when all is written."""
    about = [
        {
            **{field: getattr(state, field) for field in ("kind", "file", "owner", "group", "mode", "source")},
            "sha256": state.sha256,
        }
        for state in kept.states
    ]
    try:
        for state in kept.states:
            _write(place / state.kind, state.content)
        document = {"created": kept.created, "pause_ms": kept.pause_ms, "states": about}
        _write(place / _STATES, json.dumps(document).encode())
    except OSError as error:
        raise file_error(error, place) from error


def kept_states(place: Path) -> KeptStates | None:
    """Return the state files of the instant; None when they were not written whole."""
    try:
        document = json.loads((place / _STATES).read_text(encoding="utf-8"))
        states = []
        for about in document["states"]:
            digest = about.pop("sha256")
            content = (place / about["kind"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                return None
            states.append(CapturedState(content=content, **about))
        return KeptStates(document["created"], float(document["pause_ms"]), tuple(states))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def drop_states(place: Path) -> None:
    """The state files that are kept are not of the instant after all."""
    (place / _STATES).unlink(missing_ok=True)


def make_states_durable(place: Path) -> None:
    """Let the state files survive a crash of the host as well."""
    try:
        for path in place.iterdir():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(place)
    except OSError as error:
        raise file_error(error, place) from error


def remove_keepsake(place: Path) -> None:
    """Remove a snapshot's directory, the plan last: what it says is needed as long as anything else is there."""
    for path in sorted(entries(place), key=lambda path: path.name == _PLAN):
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        place.rmdir()


def _write(path: Path, content: bytes, *, durable: bool = False) -> None:
    beside = path.with_name(f".{path.name}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
    beside.replace(path)
