"""What is an orphan: never what a VM has or names, never an operation's, and all else that libvirt would have made."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.custody.orphans import (
    Claims,
    Entry,
    Keeping,
    KeptContent,
    Orphan,
    OrphanFile,
    judge_orphan,
    names_in_work,
    orphaned_entries,
    orphaned_secrets,
)

_ROOT = "/var/lib/libvirt/some"
_UUIDS = st.integers(0, 5).map(lambda number: str(UUID(int=number << 64)))
_OTHER_NAMES = st.text(st.characters(exclude_characters="/\0", codec=None), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
_OPERATIONS = st.sampled_from(["0123456789ab", "ffffffffffff"])
_IN_WORK = st.builds(
    lambda name, operation, kind: f".{name}.{operation}.{kind}",
    _UUIDS | _OTHER_NAMES,
    _OPERATIONS,
    st.sampled_from(["partial", "replaced", "published"]),
)
_NAMES = _UUIDS | _UUIDS.map(str.upper) | _OTHER_NAMES | _IN_WORK
_IDENTITIES = st.tuples(st.just(1), st.integers(0, 20))
_ENTRIES = st.lists(st.builds(Entry, _NAMES, _IDENTITIES, st.booleans()), max_size=8, unique_by=lambda each: each.name)
_BELOW = st.sampled_from(["", "/tpm2", "/tpm2/tpm2-00.permall"])
_CLAIMS = st.builds(
    Claims,
    vms=st.frozensets(_UUIDS, max_size=3),
    paths=st.frozensets(st.builds(lambda name, below: f"{_ROOT}/{name}{below}", _NAMES, _BELOW), max_size=3),
    identities=st.frozensets(_IDENTITIES, max_size=3),
    secrets=st.frozensets(_UUIDS, max_size=3),
    doubts=st.sampled_from([(), ("a definition could not be read",)]),
)
_KINDS = st.sampled_from(["tpm", "nvram"])


@given(_KINDS, _ENTRIES, _CLAIMS)
def test_nothing_that_a_vm_has_or_names_or_an_operation_works_on_is_an_orphan(
    kind: str, entries: list[Entry], claims: Claims
) -> None:
    orphans = orphaned_entries(kind, _ROOT, entries, claims)
    for entry in orphans:
        place = f"{_ROOT}/{entry.name}"
        assert not (kind == "tpm" and entry.name in claims.vms)
        assert entry.identity not in claims.identities
        assert not any(path == place or path.startswith(f"{place}/") for path in claims.paths)
        assert not any(
            other.name.startswith(f".{entry.name}.")
            and other.name.endswith((".partial", ".replaced", ".published"))
            and len(other.name) - len(entry.name) in (22, 23, 24)
            and other.name[len(entry.name) + 2 :][:12] in ("0123456789ab", "ffffffffffff")
            for other in entries
        )
        assert entry.is_directory == (kind == "tpm")
        assert not entry.name.startswith(".")
    if claims.doubts:
        assert orphans == ()


@given(_KINDS, _ENTRIES, _CLAIMS)
def test_all_else_that_libvirt_would_have_made_is_an_orphan(kind: str, entries: list[Entry], claims: Claims) -> None:
    nothing = Claims(frozenset())
    lone = orphaned_entries(kind, _ROOT, entries, nothing)
    expected = {
        entry.name
        for entry in entries
        if entry.name not in names_in_work(each.name for each in entries)
        and (
            entry.is_directory and len(entry.name) == 36 and _is_canonical(entry.name)
            if kind == "tpm"
            else not entry.is_directory and entry.name[0] != "."
        )
    }
    assert {entry.name for entry in lone} == expected
    # A claim takes away, and never adds.
    assert set(orphaned_entries(kind, _ROOT, entries, claims)) <= set(lone)


def _is_canonical(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


@given(_KINDS, _ENTRIES, _CLAIMS)
def test_order_of_the_names_does_not_matter(kind: str, entries: list[Entry], claims: Claims) -> None:
    assert orphaned_entries(kind, _ROOT, entries, claims) == orphaned_entries(kind, _ROOT, entries[::-1], claims)


@given(st.dictionaries(_UUIDS, st.text(max_size=5), max_size=4), _CLAIMS)
def test_secret_that_is_named_is_no_orphan(secrets: dict[str, str], claims: Claims) -> None:
    found = {secret.uuid: secret.usage for secret in orphaned_secrets(secrets, claims)}
    named = {} if claims.doubts else {uuid: usage for uuid, usage in secrets.items() if uuid not in claims.secrets}
    assert found == named


_HASHES = st.sampled_from(["a" * 64, "b" * 64, "c" * 64])
_FILES = st.builds(
    OrphanFile,
    name=st.sampled_from(["tpm2/tpm2-00.permall", "tpm2/tpm2-00.permall.bak", "tpm2/.lock"]),
    size_bytes=st.sampled_from([0, 1, 6000]),
    modified=st.just(""),
    mark=st.just(""),
    sha256=st.none() | _HASHES,
)
_VERSIONS = st.builds(
    KeptContent,
    version_id=st.text("0123456789abcdef", min_size=4, max_size=4),
    vm_uuid=_UUIDS,
    kind=_KINDS,
    generation=st.integers(1, 4),
    sha256=_HASHES,
    newest=st.booleans(),
    conflict=st.booleans(),
)


@given(st.lists(_FILES, max_size=3), st.lists(_VERSIONS, max_size=5), st.lists(_UUIDS, max_size=2))
def test_content_is_kept_only_when_a_version_of_its_kind_has_this_very_content(
    files: list[OrphanFile], versions: list[KeptContent], owners: list[str]
) -> None:
    orphan = Orphan("tpm", f"{_ROOT}/x", "x", tuple(files))
    for judged in judge_orphan(orphan, versions, owners):
        holding = [each for each in versions if each.kind == "tpm" and each.sha256 == judged.file.sha256]
        if judged.file.size_bytes == 0 or Path(judged.file.name).name == ".lock":
            assert judged.keeping is Keeping.EMPTY
        elif not holding:
            assert (judged.keeping, judged.version) == (Keeping.NOT_KEPT, None)
        else:
            assert judged.version in holding
            own = [each for each in holding if each.vm_uuid in owners]
            assert judged.version.vm_uuid in owners or not own
