"""Hosts' identities in every kind of catalogue: what follows what, and that whoever is second is told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.integration.catalog.examples import make_tables
from tests.rig.database import Cluster
from tests.unit.identity.identities import at, certificate
from vmkeep.catalog import Catalog, MemoryCatalog, SqlCatalog
from vmkeep.errors import CatalogError, VmkeepError
from vmkeep.identity.hosts import STATES, STATUSES, CertificateState, HostEvent, HostIdentity, HostStatus, new_host

COUNTING = {CertificateState.ISSUED, CertificateState.CURRENT}
steps = st.tuples(
    st.sampled_from(["invite", "enrol", "renew", "use", "revoke", "forget", "rename", "note"]),
    st.integers(0, 5),
    st.integers(1, 40),
)


@pytest.fixture(scope="module")
def catalogs(cluster: Cluster) -> Iterator[list[Catalog]]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmkeep-hosts-")))
        opened: list[Catalog] = [
            MemoryCatalog(),
            SqlCatalog.open(place / "catalog.sqlite"),
            SqlCatalog.connect(stack.enter_context(cluster.database(make_tables))),
        ]
        for each in opened:
            stack.enter_context(closing(each))
        yield opened


def taken(host: HostIdentity, step: str, number: int, day: int, tag: str) -> HostIdentity:
    serial = f"{tag}{number}"
    new = replace(certificate(f"{tag}{day}{number}{host.revision}"), ends=at(min(day + 10, 50)))
    match step:
        case "invite":
            return host.invited(f"{number}" * 8 + tag * 2, at(day), at(1))
        case "enrol":
            return host.enrolled(host.invite if number else "0" * 64, new, at(day))
        case "renew":
            return host.renewed(_some(host, number, serial), new, at(day))
        case "use":
            return host.used(_some(host, number, serial), at(day))
        case "revoke":
            return host.revoked(at(day))
        case "forget":
            return host.forgotten(at(day))
        case "rename":
            return host.renamed(f"h{tag}{number}", at(day))
        case _:
            return host.noted(at(day))


def _some(host: HostIdentity, number: int, otherwise: str) -> str:
    return host.certificates[number % len(host.certificates)].serial if host.certificates else otherwise


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(steps, min_size=4, max_size=14))
def test_identity_goes_the_ways_of_its_table_and_all_catalogues_agree(
    catalogs: list[Catalog], chosen: list[tuple[str, int, int]]
) -> None:
    tag = uuid4().hex[:12]
    event = HostEvent("tried", "somebody", "c")
    host = new_host(uuid4().hex, f"h{tag}", "9" * 40 + tag * 2, at(20), at(1))
    for each in catalogs:
        each.move_host_identity(None, host, event)
    ended: set[str] = set()
    for step, number, day in chosen:
        try:
            after = taken(host, step, number, day, tag)
        except VmkeepError:
            continue
        if after is host:
            continue
        for each in catalogs:
            each.move_host_identity(host, after, event)
            with pytest.raises(CatalogError):  # of two who read the same, the second is told
                each.move_host_identity(host, after, event)
            assert each.host_identity(host.id) == after
            assert (after in each.host_identities()) == (after.status is not HostStatus.FORGOTTEN)
            if after.invite:
                assert each.invited_host(after.invite) == after
            assert each.host_events(host.id)[-1] == replace(event, revision=after.revision, at=after.changed_at)
        assert after.status in STATUSES[host.status]
        counting = [one for one in after.certificates if one.state in COUNTING]
        assert len({one.state for one in counting}) == len(counting)
        assert after.status is HostStatus.ENROLLED or not counting
        assert not ended & {one.serial for one in counting}
        ended |= {one.serial for one in host.certificates} - {one.serial for one in counting}
        host = after


def test_change_that_no_table_allows_is_refused_by_every_catalogue(catalogs: list[Catalog]) -> None:
    tag = uuid4().hex[:12]
    host = new_host(uuid4().hex, f"h{tag}", "", "", at(1))
    event = HostEvent("tried", "somebody")
    for each in catalogs:
        each.move_host_identity(None, host, event)
        for wrong in (
            replace(host, revision=2, status=HostStatus.REVOKED, certificates=(certificate(tag),)),
            replace(host, revision=2, status=HostStatus.ENROLLED, certificates=(certificate(tag), certificate("z"))),
            replace(host, revision=3),
        ):
            with pytest.raises(CatalogError):
                each.move_host_identity(host, wrong, event)
        with pytest.raises(CatalogError):
            each.move_host_identity(None, replace(host, id=uuid4().hex), event)  # of the same name
        assert each.host_identity(host.id) == host
        assert each.invited_host("") is None


def test_tables_say_of_every_status_and_state_what_may_follow() -> None:
    assert set(STATUSES) == set(HostStatus)
    assert set(STATES) == set(CertificateState)
    assert not STATUSES[HostStatus.FORGOTTEN]
    assert not STATES[CertificateState.REVOKED] & COUNTING
    assert not STATES[CertificateState.SUPERSEDED] & COUNTING
