"""The keys that this installation has at hand: files in its home, and those that its settings say how to reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vmkeep.config import Settings
from vmkeep.errors import InvalidRequest, KeyMissing, VmkeepError
from vmkeep.filesystem import file_error, replace_file
from vmkeep.keys.keyfile import KeyFile

if TYPE_CHECKING:
    from vmkeep.keys.provider import KeyProvider, ProviderKey

ENDING = ".key"
_EXPORTED = ".exported"
HeldKey: TypeAlias = "KeyFile | ProviderKey"


class Keychain:
    """Finds keys by their ids. Files count before providers, because they answer always."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.directory = settings.keys_dir

    @cached_property
    def providers(self) -> tuple[ProviderKey, ...]:
        """The keys that the settings name, in the order of the settings; none of them is asked for anything."""
        if not self._settings.providers:
            return ()
        from vmkeep.keys.provider import ProviderKey

        return tuple(ProviderKey(each) for each in self._settings.providers)

    def file(self, key_id: str) -> KeyFile:
        """Return the key file of that id; raises as ``KeyFile.find``, and for one with a passphrase what that needs."""
        return KeyFile.find(self.directory, key_id, self.passphrase)

    def file_ids(self) -> tuple[str, ...]:
        """Return the ids of the key files that are here, by their names."""
        with suppress(OSError):
            return tuple(sorted(path.name.removesuffix(ENDING) for path in self.directory.glob("*" + ENDING)))
        return ()

    def passphrase(self) -> str:
        """Return the passphrase of key files, which the setting ``key_passphrase_file`` names a file for.

        Raises InvalidRequest without the setting, and as ``first_line``.
        """
        from vmkeep.keys.provider import first_line

        path = self._settings.key_passphrase_file
        if path is None:
            raise InvalidRequest(
                "a key file has a passphrase, and no file is known that holds it",
                path=str(self._settings.settings_path),
                hint="Name the file in the setting key_passphrase_file.",
            )
        return first_line(path, "key_passphrase_file")

    def find(self, recipients: Sequence[str]) -> HeldKey:
        """Return the first key at hand that has one of these ids; of several providers the first that answers.

        Raises KeyMissing when there is none, and else what the first one raised that is there and does not work.
        """
        problems: list[VmkeepError] = []
        for key_id in recipients:
            try:
                return self.file(key_id)
            except KeyMissing:
                continue
            except VmkeepError as error:
                problems.append(error)
        held = [each for each in self.providers if each.key_id in recipients]
        if len(held) == 1 and not problems:
            return held[0]  # whoever uses it is told when it does not answer
        for each in held:
            try:
                each.check()
            except VmkeepError as error:
                problems.append(error)
            else:
                return each
        raise self._not_found(recipients, problems)

    def named(self, text: str) -> HeldKey:
        """Return the key that a person means: by the name of its table in the settings, or by the id of a key file.

        Raises InvalidRequest for neither, and as ``file``.
        """
        for each in self.providers:
            if text in (each.name, each.key_id):
                return each
        found = [key_id for key_id in self.file_ids() if len(text) >= 8 and key_id.startswith(text.lower())]
        if len(found) == 1:
            return self.file(found[0])
        names = ", ".join(each.name for each in self.providers) or "none"
        raise InvalidRequest(
            f"{text!r} names no key that is at hand",
            path=str(self._settings.settings_path),
            hint=f"The settings name these ([key.NAME]): {names}. A key file is named by its id, 8 characters or more.",
        )

    def require(self, key_ids: Sequence[str]) -> list[KeyProvider]:
        """Return the key of each id; raises KeyMissing for one that is not at hand, and as ``file``."""
        by_id = {each.key_id: each for each in self.providers}
        return [by_id[key_id] if key_id in by_id else self.file(key_id) for key_id in key_ids]

    def note_export(self, key_id: str) -> None:
        """Remember that a key was exported, beside it. Raises PermissionRefused, NoSpace or StoreError."""
        path = self.directory / f"{key_id}{_EXPORTED}"
        text = json.dumps({"exported": datetime.now(UTC).isoformat(timespec="seconds")})
        try:
            replace_file(path, text.encode() + b"\n")
        except OSError as error:
            raise file_error(error, path) from error

    def exported(self, key_id: str) -> str | None:
        """Return when a key was exported here last; None when that is not known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            text = str(json.loads((self.directory / f"{key_id}{_EXPORTED}").read_text("utf-8"))["exported"])
            datetime.fromisoformat(text)
            return text
        return None

    def close(self) -> None:
        """Let go of the connections to providers."""
        for each in self.__dict__.get("providers", ()):
            each.close()

    def _not_found(self, recipients: Sequence[str], problems: Sequence[VmkeepError]) -> VmkeepError:
        if not problems:
            return KeyMissing(
                f"None of the keys that open the repository is on this host: {', '.join(recipients)}",
                path=str(self.directory),
                hint="Import it with `vmkeep key import FILE`; it was printed by `vmkeep key export`. Or name in the "
                "settings what holds it ([key.NAME]; `vmkeep key providers` tells the ids).",
            )
        first, *others = problems
        for each in others:
            first.add_note(each.message)
        return first


def path_of(key: HeldKey) -> Path | None:
    """Return the file of a key; None for one that a provider holds."""
    return key.path if isinstance(key, KeyFile) else None
