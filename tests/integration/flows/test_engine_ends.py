"""How an engine ends: what may stay behind it, and what may not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vmkeep.config import load_settings
from vmkeep.errors import GivenUp, Interrupted, StoreError
from vmkeep.flows.engine import Engine
from vmkeep.flows.installation import Premises
from vmkeep.flows.requests import THIS_HOST
from vmkeep.host.local import LocalHost


@pytest.mark.parametrize("failed", [GivenUp(StoreError("the storage hangs")), Interrupted("Ctrl-C")])
def test_engine_that_ends_with_an_error_leaves_no_thread_at_the_flow_database(
    tmp_path: Path, failed: BaseException
) -> None:
    """The process may be unable to end, in a call to a storage that hangs; a lock that a thread has then stays."""
    before = set(threading.enumerate())
    with Premises(load_settings(home=str(tmp_path), environ={})) as premises:
        premises.ensure()
        host = LocalHost(premises.settings)
        engine = Engine(premises, {THIS_HOST: host}, last=True)
        with pytest.raises(type(failed)):
            _fail(engine, failed, before)
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]


def _fail(engine: Engine, failed: BaseException, before: set[threading.Thread]) -> None:
    with engine:
        assert set(threading.enumerate()) > before  # which look for flows of other processes
        raise failed
