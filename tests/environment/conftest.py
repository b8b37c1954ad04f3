"""What the tests of faults work with: the injector, and vmkeep forked with it in its process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.bed import Zygote
from tests.environment.injector import Injector
from tests.environment.preloaded import Preloaded
from tests.environment.stage import Stage, made_stage
from tests.rig import Host


@pytest.fixture(scope="session")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Injector:
    directory = tmp_path_factory.mktemp("injector")
    directory.chmod(0o755)  # what runs as another user loads it too
    return Injector(directory)


@pytest.fixture(scope="module")
def zygote(session_host: Host, injector: Injector) -> Iterator[Zygote]:
    """Runs commands in the host, forked, with the injector in them."""
    process = Zygote(Preloaded(session_host, injector), session_host.dir / "home")  # type: ignore[arg-type] # as a host
    yield process
    process.close()


@pytest.fixture(scope="package")
def stage(injector: Injector) -> Iterator[Stage]:
    """A running VM with two points; its start costs seconds, so the tests of faults share it."""
    with made_stage(injector) as stage:
        yield stage
