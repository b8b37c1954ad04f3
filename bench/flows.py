"""How many changes of a TPM are done in a second when the host takes no time: what the records of a flow cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from bench.measuring import Figures
from tests.property.flows.tpm_twin import NAME, VM, TpmTwin, Truth, element_with, state_of
from tests.rig import Host
from vmkeep.config import load_settings
from vmkeep.custody.states import ChosenVersion
from vmkeep.flows.engine import Engine
from vmkeep.flows.installation import Premises
from vmkeep.flows.requests import THIS_HOST, AddTpm, RemoveTpm, ResetTpm
from vmkeep.host.tasks.survey import Progress

SECONDS = 5.0
_DISK = Path("/var/tmp")  # noqa: S108 -- mkdtemp makes the names; it is no file system in memory


def measure(host: Host, runs: int) -> Figures:
    """Return removals and additions, and resets, per second, one after the other, each with all its syncs."""
    del host
    moved, reset = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=_DISK) as directory:
            settings = load_settings(home=str(Path(directory) / "home"), environ={})
            premises = Premises(settings)
            premises.ensure()
            twin = TpmTwin(lambda premises=premises: premises.repository, Truth(element_with(""), state_of(1, "")))  # type: ignore[misc]
            with Engine(premises, {THIS_HOST: twin}) as engine:
                engine.remove_tpm(RemoveTpm(NAME), _unwatched)
                (version,) = premises.catalog.states_of_vm(VM)
                back = AddTpm(NAME, VM, "tpm-crb", version=ChosenVersion("tpm", version.id, version.sha256))
                began, done = time.monotonic(), 0
                while time.monotonic() < began + SECONDS:
                    engine.add_tpm(back, _unwatched)
                    engine.remove_tpm(RemoveTpm(NAME), _unwatched)
                    done += 2
                moved.append(done / (time.monotonic() - began))
                engine.add_tpm(back, _unwatched)
                began, done = time.monotonic(), 0
                while time.monotonic() < began + SECONDS:
                    engine.reset_tpm(ResetTpm(NAME), _unwatched)
                    twin.truth.content = state_of(2 + done, "")
                    done += 1
                reset.append(done / (time.monotonic() - began))
            premises.close()
    return {
        "removals_and_additions_per_second": statistics.median(moved),
        "resets_per_second": statistics.median(reset),
    }


def _unwatched(_progress: Progress) -> None:
    return
