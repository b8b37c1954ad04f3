"""Whatever is captured, backed up, deleted and settled: a version keeps what opens it as long as it is kept itself."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.flows.test_kept_secrets import OTHER, SECRET, Safe
from tests.integration.flows.test_kept_versions import VM, place_at
from vmkeep.catalog import CatalogPoint, MemoryCatalog
from vmkeep.flows.secret_holders import secret_holders, values_in
from vmkeep.flows.settle_pins import needed_versions
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import PointSecret

_RULE = KeepRule(last=2)
_secrets = st.sampled_from([None, SECRET, OTHER])
_actions = st.one_of(
    st.tuples(st.just("capture"), _secrets),
    st.tuples(st.just("point"), _secrets),
    st.tuples(st.just("delete"), st.none()),
    st.tuples(st.just("settle"), st.none()),
)


def holds(safe: Safe, version: str, secret: PointSecret) -> bool:
    """Return whether an envelope that names the version has the value of its secret."""
    return any(
        secret in values_in(safe.repository, holder)
        for holder in secret_holders(safe.catalog, VM)
        if version in holder.versions and holder.uuid == secret.uuid
    )


def check(safe: Safe, opens: dict[str, PointSecret]) -> None:
    needed = needed_versions(safe.catalog, VM, _RULE, ())
    for version in needed.wanted | needed.held:
        if version in opens:
            assert holds(safe, version, opens[version]), version
        else:
            assert not any(version in holder.versions for holder in secret_holders(safe.catalog, VM))
    holders = {holder.id for holder in secret_holders(safe.catalog, VM)}
    assert safe.envelopes() == holders


@settings(max_examples=12)
@given(st.lists(_actions, min_size=2, max_size=9))
def test_version_keeps_what_opens_it_and_no_envelope_is_left(actions: list[tuple[str, PointSecret | None]]) -> None:
    with TemporaryDirectory() as directory:
        place = place_at(Path(directory) / "repository", MemoryCatalog())
        safe = Safe(place.catalog, place.repository, cache=Path(directory) / "cache")
        opens: dict[str, PointSecret] = {}
        points: list[CatalogPoint] = []
        for number, (what, secret) in enumerate(actions):
            newest = safe.catalog.newest_state(VM, "tpm")
            if what == "capture":
                # Of plain states nothing is guessed, so only what was sealed for a version opens it.
                state = safe.encrypted(number + 1, secret=secret, plain=True)
                opens |= {} if secret is None else {state.id: secret}
            elif what == "point" and newest is not None:
                holder = opens.get(newest.id, secret)
                points.append(safe.point(f"p{number}", newest, secret=holder if secret is not None else None))
                opens |= {} if secret is None or holder is None else {newest.id: holder}
            elif what == "delete" and points:
                point = points.pop(0)
                safe.keep(rule=_RULE, without=point.id)
                safe.repository.delete_point(point.id)
                safe.catalog.forget_point(point.id)
            safe.keep(rule=_RULE)
            if safe.catalog.vm(VM) is not None and (Path(directory) / "repository" / "envelopes").exists():
                check(safe, opens)
