"""The key of this installation: made at first use, made anew when it is lost, and given up for another one.

What is to be told of it is returned as sentences: that others must trust a new key, and that this home was copied with
its host, as far as that shows (docs/adr/0026-points-are-signed.md).
"""

from __future__ import annotations

import socket
from pathlib import Path

from vmkeep.catalog import Catalog, KnownHostKey, Trust
from vmkeep.config import Settings, prepare_home
from vmkeep.errors import InvalidRequest, KeyMissing, TargetExists, VmkeepError
from vmkeep.filesystem import file_error
from vmkeep.keys.signing import SigningKey, is_same_machine, keep_aside, put_aside, this_machine
from vmkeep.logs import get_logger
from vmkeep.values import dataclass

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OwnKey:
    """The key, and what a person must hear of it."""

    key: SigningKey
    told: tuple[str, ...] = ()


def own_key(settings: Settings, catalog: Catalog) -> OwnKey:
    """Return the key of this installation for signing, which is made if there is none, and pin it in the catalogue.

    Raises PermissionRefused, NoSpace or StoreError when it can be neither read nor made, and what the catalogue raises.
    """
    told: list[str] = []
    key = _loaded(settings, told)
    if key is None:
        key = _made(settings, catalog, told)
    machine = this_machine()
    if not is_same_machine(key.machine, machine):
        told.append(
            f"this home was used on host {key.host} before, and is on another machine now. If a copy of it is at work "
            "there still, both sign as one and the same installation: run `vmkeep host renew` on one of them"
        )
    elif _is_twin(key, settings):
        told.append(
            f"this home was copied: {key.home} holds the same signing key. If both are at work, both sign as one and "
            "the same installation: run `vmkeep host renew` on one of them"
        )
    home = _home(settings)
    if (key.machine, key.home) != (machine, home):
        key = key.used_on(machine, socket.gethostname(), home)
    _pin(catalog, key)
    return OwnKey(key, tuple(told))


def pin_own_key(settings: Settings, catalog: Catalog) -> None:
    """Make the key known to a catalogue that is new, if there is one and it can be read."""
    key = _found(settings)
    if key is not None:
        _pin(catalog, key)


def _pin(catalog: Catalog, key: SigningKey) -> None:
    """Let the catalogue know the key, and give up those of the installation that this home was before.

    In this order: a renewal that is killed in between is finished by whoever signs next.
    """
    known = {each.fingerprint: each for each in catalog.host_keys()}
    if key.fingerprint not in known:
        for each in known.values():
            if each.trust is Trust.OWN and each.installation != key.installation:
                catalog.retire_own_key(each.fingerprint)
    if not known_key(key).is_known_as(known.get(key.fingerprint)):
        catalog.see_host_key(known_key(key))


def renew_own_key(settings: Settings, catalog: Catalog) -> SigningKey:
    """Make this home another installation, with another key. The former is kept aside; what it signed stays proved."""
    former = _found(settings)
    prepare_home(settings)
    key = SigningKey.draw(machine=this_machine(), host=socket.gethostname(), home=_home(settings))
    if former is None:
        key = _saved(settings, key)
    else:
        catalog.see_host_key(known_key(former))
        try:
            keep_aside(settings.signing_key_path, "former")
        except OSError as error:
            raise file_error(error, settings.signing_key_path) from error
        key = key.replace(settings.signing_key_path)
    _pin(catalog, key)
    return key


def known_key(key: SigningKey) -> KnownHostKey:
    """Return a key of one's own as the catalogue keeps it."""
    return KnownHostKey(
        key.fingerprint, key.public_key.hex(), key.installation, key.host, Trust.OWN, machine=key.machine
    )


def _home(settings: Settings) -> str:
    return str(settings.home.resolve())


def _is_twin(key: SigningKey, settings: Settings) -> bool:
    """Return whether the folder that the key was used in last is another one, and holds the key still."""
    if not key.home or key.home == _home(settings):
        return False
    other = Path(key.home) / settings.signing_key_path.name
    try:
        return not other.samefile(settings.signing_key_path) and SigningKey.load(other).public_key == key.public_key
    except (VmkeepError, OSError):
        return False  # it was moved


def _found(settings: Settings) -> SigningKey | None:
    try:
        return SigningKey.load(settings.signing_key_path)
    except (KeyMissing, InvalidRequest):
        return None


def _loaded(settings: Settings, told: list[str]) -> SigningKey | None:
    try:
        return SigningKey.load(settings.signing_key_path)
    except KeyMissing:
        return None
    except InvalidRequest as error:
        aside = _put_aside(settings, "damaged")
        told.append(f"{error.message}; it is {aside} now")
        return None


def _put_aside(settings: Settings, ending: str) -> str:
    try:
        return str(put_aside(settings.signing_key_path, ending))
    except OSError as error:
        raise file_error(error, settings.signing_key_path) from error


def _made(settings: Settings, catalog: Catalog, told: list[str]) -> SigningKey:
    prepare_home(settings)
    lost = [known for known in catalog.host_keys() if known.trust is Trust.OWN]
    installation = lost[-1].installation if lost else None
    drawn = SigningKey.draw(
        machine=this_machine(), host=socket.gethostname(), home=_home(settings), installation=installation
    )
    key = _saved(settings, drawn)
    if lost and key.fingerprint not in {known.fingerprint for known in lost}:
        told.append(
            f"the key with which this installation signed its points, {lost[-1].fingerprint}, is gone. A new one was "
            f"made, {key.fingerprint}: hosts that use the same repository must trust it (`vmkeep host trust`)"
        )
    return key


def _saved(settings: Settings, key: SigningKey) -> SigningKey:
    try:
        return key.save(settings.signing_key_path)
    except TargetExists:
        _log.info("another process made the signing key first")
        return SigningKey.load(settings.signing_key_path)
