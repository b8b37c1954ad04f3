"""Storage that fails while the repository is made: whatever was begun, the same command makes it another time."""

from __future__ import annotations

import shutil

import pytest

from tests.crash.bed import Zygote
from tests.environment.injector import FOREVER, Fault, Injector
from tests.environment.walk import EVERY, MOST, Faulty, walked
from tests.rig import Host
from tests.rig.cli import NO_LIBVIRT

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600 if EVERY or MOST else 300)]


def test_repository_whose_making_fails_is_made_by_the_next_attempt(
    session_host: Host, zygote: Zygote, injector: Injector
) -> None:
    """A key that was thrown away with the error left a keyring that nothing opened, and a place that was not empty."""
    home, store = session_host.dir / "work" / "first-home", session_host.dir / "work" / "first-store"
    environment = {**NO_LIBVIRT, "VMKEEP_HOME": str(home)}
    words = ("--json", "init", "--repository", store)

    def fresh() -> None:
        for directory in (home, store):
            shutil.rmtree(directory, ignore_errors=True)

    fresh()
    counting = Fault((store, home))
    assert zygote.command(*words, env={**environment, **injector.environment(counting)}).status == 0
    faults = walked([call for call in injector.calls() if call.path.startswith(str(store))], counting, MOST or 16)
    assert len(faults) >= 16
    for fault in faults:
        fresh()
        printed = zygote.command(*words, env={**environment, **injector.environment(fault)})
        failed = Faulty(printed, fault, "")
        failed.assert_told()
        told = f"{fault}: {printed.err}"
        if fault.times == FOREVER and not failed.done:
            looked = zygote.command("--json", "points", env=environment)
            assert "internal-error" not in looked.err, f"{told} {looked.err}"
        again = zygote.command(*words, env=environment)
        assert again.status == 0, f"{told} {again.err}"
        assert len(list((home / "keys").iterdir())) == 1, told
        assert zygote.command("--json", "verify", "--all", env=environment).status == 0, told
    fresh()
