"""Who opens the repository: recipients of its keyring added, removed, and put in another's place.

One object is written, which is the commit: a death before it changes nothing. So this is no durable flow. A key file
that is made for it is stored before that, and taken away again when nothing came of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vmkeep.config import prepare_home
from vmkeep.errors import InvalidRequest, KeyMissing, VmkeepError
from vmkeep.flows.installation import Premises
from vmkeep.keys import KeyFile
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.flows.keychain import HeldKey


@dataclass(frozen=True, slots=True)
class Recipients:
    """What was changed: the keys that came and went, and the generation of the keyring that is in force now.

    ``path`` is the file of a key that was made, None for one that was there or that a provider holds.
    """

    generation: int
    added: str | None = None
    removed: str | None = None
    path: str | None = None
    new_data_key: bool = False


def add_recipient(premises: Premises, named: str | None) -> Recipients:
    """Let a key that is at hand open the repository too, or a new key file when none is named.

    Raises InvalidRequest for one that does already, and what its provider raises; then nothing was changed.
    """
    with _key(premises, named) as (key, made):
        premises.repository.rewrite_keyring(proof=key, add=key)
    return Recipients(premises.repository.keyring.generation, added=key.key_id, path=made)


def remove_recipient(premises: Premises, key_id: str, *, new_data_key: bool) -> Recipients:
    """Let a key open no later keyring. One that stays must be at hand, and is proved first.

    ``new_data_key``: seal what is written from now on with another data key, for which all that stay must be at hand.
    Raises InvalidRequest for the last recipient or for none, KeyMissing, and what providers raise.
    """
    repository = premises.repository
    repository.follow_keyring()
    staying = [each.key_id for each in repository.keyring.recipients if each.key_id != key_id]
    repository.keyring.without_recipient(key_id)  # what it refuses is told before a key is looked for
    keys = premises.keychain.require(staying) if new_data_key else []
    try:
        proof = premises.keychain.find(staying)
    except KeyMissing as error:
        raise KeyMissing(
            f"none of the keys that would go on opening the repository is at hand: {', '.join(staying)}",
            path=str(premises.keychain.directory),
            hint="Bring one of them here for as long as that takes: it is proved before the other one goes.",
        ) from error
    repository.rewrite_keyring(proof=proof, remove=key_id, new_data_key_for=keys)
    return Recipients(repository.keyring.generation, removed=key_id, new_data_key=new_data_key)


def rewrap(premises: Premises, named: str | None, *, instead_of: str | None, new_data_key: bool) -> Recipients:
    """Put a key in the place of another one, or of the one in use when none is said: a new key file if none is named.

    Raises as adding and removing does; then nothing was changed.
    """
    repository = premises.repository
    repository.follow_keyring()
    former = recipient_named(premises, instead_of) if instead_of is not None else premises.key.key_id
    staying = [each.key_id for each in repository.keyring.recipients if each.key_id != former]
    others = premises.keychain.require(staying) if new_data_key else []
    with _key(premises, named) as (key, made):
        keys = (key, *others) if new_data_key else ()
        repository.rewrite_keyring(proof=key, add=key, remove=former, new_data_key_for=keys)
    generation = repository.keyring.generation
    return Recipients(generation, added=key.key_id, removed=former, path=made, new_data_key=new_data_key)


def recipient_named(premises: Premises, text: str) -> str:
    """Return the id of the recipient that a person means: by the beginning of it, or the name in the settings.

    Raises InvalidRequest.
    """
    ids = {each.key_id for each in premises.repository.keyring.recipients}
    named = {each.key_id for each in premises.keychain.providers if each.name == text} & ids
    found = named or {key_id for key_id in ids if len(text) >= 8 and key_id.startswith(text.lower())}
    if len(found) != 1:
        raise InvalidRequest(
            f"{text!r} names no key that opens the repository",
            hint="`vmkeep key recipients list` shows them; 8 characters of an id or more are enough.",
        )
    return found.pop()


@contextlib.contextmanager
def _key(premises: Premises, named: str | None) -> Iterator[tuple[HeldKey, str | None]]:
    """Yield the key that is meant, or a new key file and its path, which goes again when nothing comes of it."""
    if named is not None:
        yield premises.keychain.named(named), None
        return
    prepare_home(premises.settings)
    key = KeyFile.generate(premises.keychain.directory)
    try:
        yield key, str(key.path)
    except BaseException:
        if not _opens(premises, key):
            with contextlib.suppress(OSError):
                Path(str(key.path)).unlink()
        raise


def _opens(premises: Premises, key: KeyFile) -> bool:
    """Return whether the keyring in force may be for a key; true where that cannot be found out."""
    try:
        return key.key_id in {each.key_id for each in premises.repository.recipients_since()}
    except VmkeepError:
        return True
