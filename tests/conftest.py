"""Fixtures that every kind of test may use: the rig's hosts."""

from __future__ import annotations

import compileall
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

import vmkeep
from tests.examples import examples
from tests.rig import Host, Vm, missing_requirements
from tests.turns import DAY, EVERY, skip_all_but_sampled

if TYPE_CHECKING:
    from tests.rig.database import Cluster

# Each worker imports all tests, whose assertions pytest rewrites for 8 s of a processor unless it keeps what it made.
sys.dont_write_bytecode = False

# A busy machine is no reason to fail: examples are limited by number, not by time.
hypothesis.settings.register_profile("vmkeep", deadline=None, max_examples=examples())
# Of `make fuzz`, which begins anew with another seed until its minutes are over.
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=1_000, database=None)
hypothesis.settings.load_profile("vmkeep")


# Files are given out in this order, those that take minutes first: at the end no worker waits for the other's last one.
_ORDER = ("soak", "zoo", "crash", "environment", "attack", "system", "contract", "integration", "property", "unit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the directories; within one of them everything stays where it is. And give each test its turn."""

    def place(item: pytest.Item) -> int:
        directory = item.path.relative_to(config.rootpath / "tests").parts[0]
        return _ORDER.index(directory) if directory in _ORDER else 0

    items.sort(key=place)
    skip_all_but_sampled(items)


def pytest_report_header() -> str:
    return "in turn: all" if EVERY else f"in turn: VMKEEP_CRASH_DAY={DAY} (VMKEEP_CRASH_ALL=1 for all)"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:  # noqa: ARG001 -- xdist's names
    """One more than there are processors: a test waits a third of its time, for syncs and for firmware."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Compile vmkeep once. Where nobody may write bytecode, each of a thousand commands would do so for itself."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(vmkeep.__path__[0]), quiet=2)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``system`` where no host can be started; in CI that is a failure, not a skip."""
    if item.get_closest_marker("system") is None:
        return
    missing = missing_requirements()
    if missing:
        reason = f"no libvirt host can be started here, missing: {', '.join(missing)} (make setup)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _no_libvirt_is_left_to_ask() -> Iterator[None]:
    """What a test asked in this process is not asked by the next one: its host may be gone (vmkeep.host.vm.grounds)."""
    yield
    if "vmkeep.transfer.imagegrounds" in sys.modules:
        from vmkeep.transfer.imagegrounds import Unasked, ask

        ask(Unasked())


@pytest.fixture(scope="session")
def session_host() -> Iterator[Host]:
    """The host of the whole session, for fixtures of a wider scope than one test; ``host`` is what tests want.

    Its UEFI halts at once. A file whose promise needs one that works, or a guest with a system that it starts, has
    ``booting_session_host`` in its place.
    """
    with Host("alpha", idle_firmware=True) as host:
        yield host


@pytest.fixture(scope="session")
def booting_session_host() -> Iterator[Host]:
    """A host whose UEFI boots, writes its variables and measures into the TPM, for 6 s of a processor each time."""
    with Host("alpha") as host:
        yield host


@pytest.fixture(scope="session")
def second_session_host() -> Iterator[Host]:
    with Host("beta", idle_firmware=True) as host:
        yield host


@pytest.fixture
def host(session_host: Host) -> Iterator[Host]:
    """A libvirt host; its VMs, disks and VMKEEP_HOME are gone after the test."""
    yield session_host
    session_host.clear()


@pytest.fixture
def booting_host(booting_session_host: Host) -> Iterator[Host]:
    """Another one, for the tests that need its firmware; emptied like ``host``."""
    yield booting_session_host
    booting_session_host.clear()


@pytest.fixture
def second_host(second_session_host: Host) -> Iterator[Host]:
    """Another libvirt host on this machine, started when the first test asks for it; emptied like ``host``."""
    yield second_session_host
    second_session_host.clear()


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A server of PostgreSQL; in CI it must be there, elsewhere its tests are skipped without it."""
    from tests.rig.database import postgres_programs, shared_cluster  # few tests need the driver

    if postgres_programs() is None and os.environ.get("CI") != "true":
        pytest.skip("PostgreSQL is not installed (make dev)")
    return shared_cluster()


@pytest.fixture
def vm(host: Host) -> Vm:
    """A running UEFI VM with a vTPM and one qcow2 disk, ``vda`` of 64 MiB."""
    vm = host.define("guest")
    vm.start()
    return vm


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let a worker send the report of a failure that quotes a name which is no UTF-8: it would end with it instead."""
    return _written((yield))


def _written(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_written(key): _written(each) for key, each in value.items()}
    return type(value)(map(_written, value)) if isinstance(value, list | tuple) else value
