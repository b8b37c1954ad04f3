"""The key on a page for a printer, written, read again, and proved by opening the repository with what was read."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from vmkeep.errors import StoreError, TargetExists, VmkeepError
from vmkeep.filesystem import file_error, write_new_file
from vmkeep.flows.installation import Premises
from vmkeep.keys import KeyFile, import_key, seal_key
from vmkeep.keys.paper import page, typed_lines


def export_on_paper(premises: Premises, key: KeyFile, passphrase: str, path: Path) -> None:
    """Write a key to a new file (0600): a page of HTML, or its lines alone for a name that ends with ``.txt``.

    What was written is read again, and must open the repository; else the file is removed. Raises InvalidRequest for an
    empty passphrase, TargetExists, NoSpace, PermissionRefused and StoreError.
    """
    sealed = seal_key(key, passphrase)
    typed = typed_lines(sealed.key_id, sealed.content)
    text = typed if path.suffix == ".txt" else page(typed, sealed.armored, _facts(premises, key))
    try:
        write_new_file(path, text.encode())
    except FileExistsError as error:
        raise TargetExists(f"{path} is there already", path=str(path), hint="Choose another file.") from error
    except OSError as error:
        raise file_error(error, path) from error
    try:
        read = import_key(path.read_text("utf-8"), passphrase)
        premises.repository.require_opened_by(read)
    except (VmkeepError, OSError, UnicodeDecodeError) as error:
        with suppress(OSError):
            path.unlink()
        reason = error.message if isinstance(error, VmkeepError) else str(error)
        raise StoreError(
            f"the page that was written to {path} does not open the repository, and was removed: {reason}",
            path=str(path),
            hint="Write it to another file system.",
        ) from error


def _facts(premises: Premises, key: KeyFile) -> list[tuple[str, str]]:
    repository = premises.repository
    return [
        ("repository", repository.id),
        ("where", repository.location),
        ("key", key.key_id),
        ("printed", datetime.now(UTC).isoformat(timespec="minutes")),
        ("host", os.uname().nodename),
    ]
