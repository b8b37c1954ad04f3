"""Key files and their printed form."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from vmkeep.errors import InvalidRequest, KeyMissing, TargetExists, WrongKey
from vmkeep.keys import KeyFile, export_key, import_key, keyfile

PASSPHRASE = "Füße und Räder"  # noqa: S105  (of keys made in these tests)


def test_generated_key_is_found_again_and_is_for_the_owner_only(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path / "keys")
    assert key.path is not None
    assert KeyFile.find(tmp_path / "keys", key.key_id) == key == KeyFile.load(key.path)
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert list((tmp_path / "keys").iterdir()) == [key.path]


def test_key_file_is_never_written_over(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path)
    assert key.path is not None
    key.path.write_text("mine")
    with pytest.raises(TargetExists):
        key.save(tmp_path)
    assert key.path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [key.path]


def test_missing_foreign_and_damaged_key_files_are_told_apart(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path)
    assert key.path is not None
    with pytest.raises(KeyMissing):
        KeyFile.find(tmp_path, "ab" * 16)
    with pytest.raises(KeyMissing):
        KeyFile.load(tmp_path / "absent")
    with pytest.raises(InvalidRequest):
        KeyFile.find(tmp_path, "../../etc/passwd")
    text = key.path.read_text()
    other = tmp_path / f"{'ab' * 16}.key"
    other.write_text(text)
    with pytest.raises(WrongKey):
        KeyFile.find(tmp_path, "ab" * 16)
    digit = "0" if key.secret.hex()[0] != "0" else "1"
    key.path.write_text(text.replace(key.secret.hex(), digit + key.secret.hex()[1:]))
    with pytest.raises(InvalidRequest, match="damaged"):
        KeyFile.load(key.path)
    key.path.write_text("[]")
    with pytest.raises(InvalidRequest):
        KeyFile.load(key.path)


def test_wrapped_secret_opens_only_with_the_same_key_and_data(tmp_path: Path) -> None:
    key, other = KeyFile.generate(tmp_path), KeyFile.generate(tmp_path)
    wrapped = key.wrap(b"s" * 32, b"here")
    assert b"s" * 8 not in wrapped
    assert key.unwrap(wrapped, b"here") == b"s" * 32
    attempts = [(key, wrapped, b"there"), (other, wrapped, b"here"), (key, wrapped[:-1], b"here"), (key, b"", b"here")]
    for used, sealed, associated_data in attempts:
        with pytest.raises(WrongKey):
            used.unwrap(sealed, associated_data)


def test_secret_is_in_no_repr(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path)
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)


def test_exported_key_comes_back_through_a_printer(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path)
    text = export_key(key, PASSPHRASE)
    lines = text.splitlines()
    assert lines[0] == "-----BEGIN VMKEEP KEY-----"
    assert lines[-1] == "-----END VMKEEP KEY-----"
    assert f"Key: {key.key_id}" in lines
    assert max(map(len, lines)) <= 64
    assert key.secret.hex() not in text
    typed = "Kept in the safe:\r\n\r\n" + text.replace("\n", "  \r\n") + "\r\nbye"
    back = import_key(typed, PASSPHRASE)
    assert (back.key_id, back.secret, back.path) == (key.key_id, key.secret, None)


def test_wrong_passphrase_and_damaged_text_are_told_apart(tmp_path: Path) -> None:
    key = KeyFile.generate(tmp_path)
    text = export_key(key, PASSPHRASE)
    with pytest.raises(WrongKey, match="passphrase"):
        import_key(text, "another")
    lines = text.splitlines()
    letter = "A" if lines[3][5] != "A" else "B"
    damaged = [
        "\n".join(lines[1:]),
        "\n".join(lines[:-1]),
        "\n".join(lines[:4] + lines[5:]),
        text.replace(lines[3], lines[3][:5] + letter + lines[3][6:]),
        text.replace(lines[3], lines[3][:5] + "!" + lines[3][6:]),
        text.replace(key.key_id, "ab" * 16),
        "",
    ]
    for broken in damaged:
        with pytest.raises(InvalidRequest):
            import_key(broken, PASSPHRASE)
    with pytest.raises(InvalidRequest):
        export_key(key, "")


def test_key_id_tells_nothing_but_is_pinned() -> None:
    # Pinned: a key id is in every repository's keyring.
    assert keyfile.key_id_of(bytes(range(32))) == "41a0f87d53c3bdfda78fa21626bc13cd"


@pytest.mark.parametrize(
    "line", ["Key: \udc80d53c3bd", "Key: ../../etc/passwd", "Key: " + "a" * 31, "Key:", "Key: " + "é" * 32]
)
def test_key_line_that_names_no_key_is_miscopied(line: str) -> None:
    """Found by fuzzing: the first one cannot be written as UTF-8, which the checksum wants."""
    key = KeyFile.draw()
    text = export_key(key, "passphrase").replace(f"Key: {key.key_id}", line)
    with pytest.raises(InvalidRequest, match="line Key:"):
        import_key(text, "passphrase")


def test_passphrase_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        export_key(KeyFile.draw(), "\udc80")
