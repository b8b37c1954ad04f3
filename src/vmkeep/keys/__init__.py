"""Key providers: what wraps and unwraps the keys of a repository's keyring."""

from __future__ import annotations

from vmkeep.keys.armor import SealedKey, export_key, import_key, seal_key
from vmkeep.keys.keyfile import KeyFile
from vmkeep.keys.material import KeyMaterial
from vmkeep.keys.passphrase import Passphrase

__all__ = ["KeyFile", "KeyMaterial", "Passphrase", "SealedKey", "export_key", "import_key", "seal_key"]
