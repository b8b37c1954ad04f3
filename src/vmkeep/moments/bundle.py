"""All moments of one kind of a VM as one file, from which another host, or the same VM made anew, gets them back.

The format is specified in docs/internals/moments-file.md. A file may come from anywhere and is read as if it were
hostile: its size and the number of its moments are limited, no key may stand twice, and each document goes through
the checks that libvirt's own go through.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from vmkeep.moments.documents import AnyMoment, parse_moment
from vmkeep.moments.errors import MomentError
from vmkeep.moments.tree import MomentKind, name_order
from vmkeep.values import dataclass

FORMAT: Final = "vmkeep-moments"
VERSION: Final = 1
MAX_CHARACTERS: Final = 256 * 1024 * 1024
MAX_MOMENTS: Final = 16_384
"""What libvirt gives over the wire in one list."""
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)


_SIGNED: Final = b"vmkeep moments signature v1\n"
_KEY: Final = re.compile("[0-9a-f]{64}", re.ASCII)
_VALUE: Final = re.compile("[0-9a-f]{128}", re.ASCII)


class BundleError(ValueError):
    """Text that is no file of moments, or one that cannot be read here; the message says why."""


@dataclass(frozen=True, slots=True)
class BundledMoment:
    """A moment, and its document exactly as it stands in the file."""

    moment: AnyMoment
    xml: str

    @property
    def name(self) -> str:
        return self.moment.name or ""


@dataclass(frozen=True, slots=True)
class BundleSignature:
    """An installation's signature of a file: ``key`` is its public key, ``statement`` what is signed of the file.

    Whether it is right, and whose key that is, is for others to see.
    """

    key: bytes
    value: bytes
    statement: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentBundle:
    """What one file holds. ``secure``: the documents hold passwords. ``current`` is the current snapshot's name.

    The moments may be in any order, and need not be a forest: whoever takes them in looks at that.
    """

    kind: MomentKind
    vm_name: str
    vm_uuid: str
    moments: tuple[BundledMoment, ...]
    current: str | None = None
    secure: bool = False
    signature: BundleSignature | None = None


def format_bundle(bundle: MomentBundle, sign: Callable[[bytes], tuple[bytes, bytes]] | None = None) -> str:
    """Return the text of a file; ``sign`` returns a public key, and the signature that its owner makes of a text."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": bundle.kind.value,
        "vm": {"name": bundle.vm_name, "uuid": bundle.vm_uuid},
        "security_info": bundle.secure,
        "current": bundle.current,
        "moments": [{"name": bundled.name, "xml": bundled.xml} for bundled in bundle.moments],
    }
    if sign is not None:
        key, value = sign(_statement(document))
        document["signature"] = {"key": key.hex(), "value": value.hex()}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _statement(document: Mapping[str, Any]) -> bytes:
    """Return what is signed: all of the file but the signature, whatever its layout."""
    signed = {name: value for name, value in document.items() if name != "signature"}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    return _SIGNED + hashlib.sha256(text.encode()).hexdigest().encode()


def _read_signature(document: Mapping[str, Any]) -> BundleSignature | None:
    found = document.get("signature")
    if found is None:
        return None
    key, value = (found.get("key"), found.get("value")) if isinstance(found, dict) else (None, None)
    if not isinstance(key, str) or not isinstance(value, str) or not (_KEY.fullmatch(key) and _VALUE.fullmatch(value)):
        raise BundleError('"signature" does not hold a "key" and a "value" of hexadecimal digits')
    return BundleSignature(bytes.fromhex(key), bytes.fromhex(value), _statement(document))


def parse_bundle(text: str) -> MomentBundle:
    """Return what a file holds. Raises BundleError."""
    document = _read_object(text)
    if document.get("format") != FORMAT:
        raise BundleError(f'this is no file of moments: its "format" is not "{FORMAT}"')
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError('"version" is not a number from 1')
    if version > VERSION:
        raise BundleError(f"the file has version {version} of the format, and this vmkeep reads {VERSION}")
    kind = document.get("kind")
    if kind not in tuple(MomentKind):
        raise BundleError(f'"kind" is not one of {", ".join(MomentKind)}')
    vm = document.get("vm")
    if not isinstance(vm, dict) or not isinstance(vm.get("name"), str) or not isinstance(vm.get("uuid"), str):
        raise BundleError('"vm" does not hold the VM\'s "name" and "uuid"')
    if _UUID.fullmatch(vm["uuid"]) is None:
        raise BundleError(f"{vm['uuid'][:60]!r} is not the UUID of a VM")
    secure = document.get("security_info", False)
    if not isinstance(secure, bool):
        raise BundleError('"security_info" is neither true nor false')
    moments = _read_moments(document.get("moments"), MomentKind(kind))
    current = document.get("current")
    if current is not None and current not in [bundled.name for bundled in moments]:
        raise BundleError(f'"current" is {current!r:.60}, which is not among the moments')
    return MomentBundle(
        kind=MomentKind(kind),
        vm_name=vm["name"],
        vm_uuid=vm["uuid"],
        moments=moments,
        current=current,
        secure=secure,
        signature=_read_signature(document),
    )


def _read_object(text: str) -> dict[str, Any]:
    if len(text) > MAX_CHARACTERS:
        raise BundleError(f"{len(text)} characters; the limit is {MAX_CHARACTERS}")
    try:
        document = json.loads(text, object_pairs_hook=_without_duplicates)
    except BundleError:
        raise
    except RecursionError as error:
        raise BundleError("the JSON of the file is nested too deep") from error
    except ValueError as error:
        raise BundleError(f"the file is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BundleError("the file is not a JSON object")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        raise BundleError(f"{twice!r:.60} stands twice in one object")
    return found


def _read_moments(listed: object, kind: MomentKind) -> tuple[BundledMoment, ...]:
    if not isinstance(listed, list):
        raise BundleError('"moments" is not a list')
    if len(listed) > MAX_MOMENTS:
        raise BundleError(f"{len(listed)} moments; the limit is {MAX_MOMENTS}")
    moments = tuple(_read_moment(entry, number, kind) for number, entry in enumerate(listed, start=1))
    names = Counter(bundled.name for bundled in moments)
    twice = sorted((name for name, number in names.items() if number > 1), key=name_order)
    if twice:
        raise BundleError(f"in the file twice: {', '.join(twice)}")
    return moments


def _read_moment(entry: object, number: int, kind: MomentKind) -> BundledMoment:
    name, xml = (entry.get("name"), entry.get("xml")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(xml, str):
        raise BundleError(f'moment {number} does not have a "name" and an "xml"')
    try:
        moment = parse_moment(kind, xml)
    except MomentError as error:
        raise BundleError(f"{kind} {name!r:.60}: {error}") from error
    if moment.name != name:
        raise BundleError(f"moment {number} is named {name!r:.60} and its document is of {moment.name!r:.60}")
    return BundledMoment(moment, xml)
