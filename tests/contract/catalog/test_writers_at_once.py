"""Several writers at once: each version is accepted once and none is lost, each operation has one owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TypeVar

from tests.integration.catalog.examples import WEB, WIN11, example_point, example_state, number
from vmkeep.catalog import Catalog, CatalogSnapshot, OperationState, PassedPoint
from vmkeep.errors import CatalogError

WRITERS = 6
ROUNDS = 5
T = TypeVar("T")


def at_once(work: Callable[[int], T]) -> list[T]:
    """Return what each of the writers, which begin together, comes to."""
    barrier = Barrier(WRITERS)

    def begin(writer: int) -> T:
        barrier.wait(60)
        return work(writer)

    with ThreadPoolExecutor(WRITERS) as threads:
        return list(threads.map(begin, range(WRITERS)))


def done(ask: Callable[[], object]) -> bool:
    try:
        return ask() is not False
    except CatalogError:
        return False


def test_one_of_those_who_claim_a_generation_gets_it(catalog: Catalog) -> None:
    catalog.see_vm(WIN11, "win11")
    for generation in range(1, ROUNDS + 1):
        states = [example_state(f"{generation} of {writer}", generation) for writer in range(WRITERS)]
        accepted = at_once(lambda writer, states=states: done(lambda: catalog.accept_states([states[writer]])))  # type: ignore[misc]
        assert accepted.count(True) == 1
        assert catalog.newest_state(WIN11, "tpm") == states[accepted.index(True)]


def test_every_capture_becomes_one_version_however_many_are_made_at_once(catalog: Catalog) -> None:
    for vm in (WIN11, WEB):
        catalog.see_vm(vm, vm)

    def capture(writer: int) -> None:
        vm = (WIN11, WEB)[writer % 2]
        for turn in range(ROUNDS):
            state = example_state(f"{writer} {turn}", 1, vm=vm)
            while not done(lambda state=state: catalog.accept_states([state])):  # type: ignore[misc]
                newest = catalog.newest_state(vm, "tpm")
                assert newest is not None
                state = replace(state, generation=newest.generation + 1)

    at_once(capture)
    for vm in (WIN11, WEB):
        kept = catalog.states_of_vm(vm)
        assert [state.generation for state in kept] == list(range(ROUNDS * WRITERS // 2, 0, -1))
        assert len({state.id for state in kept}) == len(kept)


def test_points_and_snapshots_and_captures_of_one_vm_share_their_numbers(catalog: Catalog) -> None:
    catalog.record_point(example_point("first", sequence=1))

    def keep(writer: int) -> None:
        for turn in range(ROUNDS):
            name = f"{writer} {turn}"
            while not done(lambda name=name: _keep(catalog, writer, name)):  # type: ignore[misc]
                pass

    at_once(keep)
    generations = [state.generation for state in catalog.states_of_vm(WIN11)]
    assert generations == list(range(ROUNDS * WRITERS, 0, -1))
    assert len(catalog.points()) == 1 + ROUNDS * WRITERS // 3
    assert len(catalog.snapshots_of_vm(WIN11)) == ROUNDS * WRITERS // 3
    assert all(catalog.pins(state.id) for state in catalog.states_of_vm(WIN11) if state.id not in _captured())


def _captured() -> set[str]:
    return {number(f"{writer} {turn}") for writer in range(2, WRITERS, 3) for turn in range(ROUNDS)}


def _keep(catalog: Catalog, writer: int, name: str) -> None:
    newest = catalog.newest_state(WIN11, "tpm")
    state = example_state(name, 1 if newest is None else newest.generation + 1)
    if writer % 3 == 0:
        catalog.record_point(example_point(name, sequence=catalog.next_sequence(WIN11)), [state])
    elif writer % 3 == 1:
        catalog.record_snapshot(CatalogSnapshot(number(name), WIN11, name, 1, None, "2026", (state,)))
    else:
        catalog.accept_states([state])


def test_what_is_written_once_may_be_written_by_all_at_once(catalog: Catalog) -> None:
    point, state = example_point("p1"), example_state("v", 1)

    def write(_writer: int) -> bool:
        catalog.see_host("h", "host1")
        catalog.see_vm(WIN11, "win11", "h")
        catalog.use_repository("r", "/mnt")
        catalog.pass_points([PassedPoint("x", WEB, "web")])
        catalog.adopt([(point, [state])])
        catalog.record_point(point, [state])
        return True

    assert all(at_once(write))
    assert (catalog.points(), catalog.pins(state.id)) == ((point,), (point.id,))


def test_a_dead_owners_operation_is_taken_over_by_one(catalog: Catalog) -> None:
    for turn in range(ROUNDS):
        catalog.begin_operation(f"op{turn}", "take", None, "dead", {})
        taken = at_once(lambda writer, turn=turn: catalog.take_over_operation(f"op{turn}", "dead", f"server{writer}"))  # type: ignore[misc]
        assert Counter(taken)[True] == 1
        assert catalog.operation(f"op{turn}").owner == f"server{taken.index(True)}"


def test_an_operation_ends_once(catalog: Catalog) -> None:
    ends = (OperationState.DONE, OperationState.FAILED)
    for turn in range(ROUNDS):
        catalog.begin_operation(f"op{turn}", "take", None, "me", {})
        ended = at_once(
            lambda writer, turn=turn: done(lambda: catalog.move_operation(f"op{turn}", "me", ends[writer % 2]))  # type: ignore[misc]
        )
        assert Counter(ended)[True] == 1
        assert catalog.operation(f"op{turn}").state is ends[ended.index(True) % 2]
