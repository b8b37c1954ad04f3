"""An error of libvirt's keeps its code and text, whatever Python's garbage collector frees meanwhile."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from vmkeep.errors import VmNotFound
from vmkeep.hypervisor import Hypervisor, answers


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    opened = Hypervisor.connect("test:///default")
    yield opened
    opened.close()


@pytest.fixture
def collected_after_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python collects garbage at the worst time: the call has failed, and libvirt was not yet asked for the error."""
    module = libvirt.libvirtmod  # type: ignore[attr-defined]
    ask = module.virGetLastError

    def collect_and_ask() -> object:
        gc.collect()
        return ask()

    monkeypatch.setattr(module, "virGetLastError", collect_and_ask)


class _Cycle:
    """Holds a VM until the collector finds out that nobody has it."""

    def __init__(self, vm: Any) -> None:
        self.vm = vm
        self.itself = self


def _look_up(hypervisor: Hypervisor, told: list[object]) -> None:
    gc.disable()
    try:
        _Cycle(hypervisor.domain("test"))
        hypervisor.domain("none such")
    except Exception as error:
        told.append(error)
    finally:
        gc.enable()


@pytest.mark.usefixtures("collected_after_the_call")
@pytest.mark.parametrize("beside", [False, True], ids=["main thread", "another thread"])
def test_error_survives_what_is_freed_after_the_call(hypervisor: Hypervisor, beside: bool) -> None:
    told: list[object] = []
    if beside:
        thread = threading.Thread(target=_look_up, args=(hypervisor, told))
        thread.start()
        thread.join()
    else:
        _look_up(hypervisor, told)
    assert [type(error) for error in told] == [VmNotFound]


def test_what_nobody_uses_is_freed_before_the_next_call() -> None:
    connection: Any = answers.connected(libvirt.open, "test:///default")[0]
    vm = connection.lookupByName("test")._thing
    freed = weakref.ref(vm)
    del vm
    gc.collect()
    connection.getLibVersion()
    assert freed() is None
