"""What the command of a job printed, as the record of its run has it."""

from __future__ import annotations

import json

import pytest

from vmkeep.errors import IntegrityError, OperationFailed, VmBusy
from vmkeep.flows.scheduled_run import ended_run
from vmkeep.planning.schedule import Job, Run, VmFailure

BEGAN, ENDED = "2026-11-30T02:30:00.000000+00:00", "2026-11-30T02:31:00.000000+00:00"
RUN = Run("a" * 32, Job.BACKUP, BEGAN)


def said(error: Exception) -> str:
    return json.dumps({"error": error.as_dict(), "notices": ["more"]})  # type: ignore[attr-defined]  # one of ours


def test_points_of_vms_are_what_was_done() -> None:
    out = json.dumps({"points": [{"vm": "a", "id": "1"}, {"vm": "b", "id": "2"}], "failed": [], "skipped": []})
    run, error = ended_run(RUN, 0, out, "", ENDED)
    assert error is None
    assert (run.ended, run.status, run.succeeded, run.vms, run.failures) == (ENDED, 0, True, ("a", "b"), ())


def test_vms_that_failed_are_told_each() -> None:
    failed = {"vm": "b", "error": VmBusy("it is held", vm="b").as_dict()}
    out = json.dumps({"points": [{"vm": "a"}], "failed": [failed], "skipped": []})
    run, error = ended_run(RUN, 37, out, said(OperationFailed("1 of 2")), ENDED)
    assert isinstance(error, OperationFailed)
    assert (run.status, run.code, run.failures) == (37, "incomplete", (VmFailure("b", "vm-busy", "it is held"),))


def test_points_that_are_not_sound_are_harmed() -> None:
    verified = [{"point": "1", "vm": "a", "ok": True}, {"point": "2", "vm": "a", "ok": False}, {"point": "3", "ok": 1}]
    out = json.dumps({"verified": verified, "ok": False})
    run, _ = ended_run(RUN, 20, out, said(IntegrityError("damage")), ENDED)
    assert (run.vms, run.harmed) == (("a",), ("2", "3"))
    assert [failure.vm for failure in run.failures] == ["a", "3"]


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40")])
def test_command_that_was_killed_is_told_by_its_signal(number: int, name: str) -> None:
    run, error = ended_run(RUN, -number, "", "", ENDED)
    assert run.status == 128 + number
    assert error is not None
    assert name in error.message


@pytest.mark.parametrize("out", ["", "[]", "nonsense", '{"points": 7, "failed": [null]}', "[" * 100_000])
@pytest.mark.parametrize("err", ["", "Traceback\n  boom\n", '{"error": 7}'])
def test_what_is_no_json_of_vmkeeps_is_a_failure_with_its_last_word(out: str, err: str) -> None:
    run, error = ended_run(RUN, 1, out, err, ENDED)
    assert error is not None
    assert not run.succeeded
    assert (err.strip().splitlines() or ["it said nothing"])[-1].strip() in run.message


def test_message_without_end_is_cut() -> None:
    run, _ = ended_run(RUN, 35, "", said(OperationFailed("x" * 100_000)), ENDED)
    assert len(run.message) == 500
