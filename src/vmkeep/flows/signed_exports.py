"""Files of checkpoints and snapshots, signed by the installation that writes them, and believed by whose they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmkeep.config import Settings
from vmkeep.errors import VmkeepError
from vmkeep.keys.signing import SigningKey, is_signed
from vmkeep.moments import BundleSignature

if TYPE_CHECKING:
    from vmkeep.catalog import Catalog  # which takes a tenth of a second to import


def is_trusted_export(settings: Settings, catalog: Callable[[], Catalog], signature: BundleSignature | None) -> bool:
    """Return whether this installation wrote a file of moments, or one whose key somebody here has trusted.

    ``catalog`` opens the catalogue; it is called only when there is one.
    """
    if signature is None or not is_signed(signature.key, signature.statement, signature.value):
        return False
    own = _own_key(settings)
    if own is not None and own.public_key == signature.key:
        return True
    if not settings.catalog_path.exists():
        return False
    return any(known.key == signature.key.hex() and known.trust.is_proved for known in catalog().host_keys())


def export_signer(settings: Settings) -> Callable[[bytes], tuple[bytes, bytes]] | None:
    """Return what signs a file of moments in the name of this installation; None where it has no key yet."""
    own = _own_key(settings)
    return None if own is None else lambda text: (own.public_key, own.sign(text))


def _own_key(settings: Settings) -> SigningKey | None:
    """Return the key of this installation. None where there is none that can be read: it is made with a point."""
    try:
        return SigningKey.load(settings.signing_key_path)
    except VmkeepError:
        return None
