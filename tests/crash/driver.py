"""vmkeep in processes that die, or wait, at a named place of their own code.

Runs inside a host. It imports vmkeep once and forks for every request, so that a killed run costs no start of
Python: a line of JSON on standard input is a request, a line on standard output says how its process ended.

A place is ``[before|after|during] module:Name.attribute[#number]``: the number-th call of that function. With
``during`` the action comes ``delay_ms`` after the call began, from another thread. The action is ``kill`` (SIGKILL
to the own process: nothing of vmkeep gets to run any more), ``hold`` (make the file ``reached`` and wait for the
file ``go``), or ``count`` (nothing; calls are counted). Forked children get standard input and output of their own.

A request may also watch its run: all effects are counted at the system calls, and it dies at the n-th (effects.py). A
request with ``command`` runs a command line in place of acts, one with ``make_point`` makes a point without a VM in
that home.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Run as a script, the driver finds its neighbour only so.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.crash import effects

_calls: Counter[str] = Counter()
_counting = threading.Lock()


def main() -> None:
    import obstore  # noqa: F401  imported before the forks, for their speed, as all that follows

    import vmkeep.cli.main
    import vmkeep.flows.check_up
    import vmkeep.flows.durable
    import vmkeep.flows.engine
    import vmkeep.host.checkup.desk
    import vmkeep.host.points.desk
    import vmkeep.host.restores.desk
    import vmkeep.repository  # noqa: F401
    from vmkeep.cli.ondemand import ON_DEMAND

    for command in ON_DEMAND.values():  # a command by itself loads what it uses
        importlib.import_module(command.module)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        status = _watched(request) if "effects_file" in request else _plain(request)
        print(json.dumps({"status": status}), flush=True)


def _plain(request: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        _leave_the_streams(request)
        os._exit(_child(request))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _watched(request: dict[str, Any]) -> int:
    """Run a request whose effects are counted; the process between stays as long as what the run has left behind."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        try:
            _leave_the_streams(request)
            death = effects.Death(request["effect"], request["delay_ms"])
            _start_guardians()  # of forked ones none is under the filter
            effects.run_watched(
                lambda: _child(request),
                Path(request["effects_file"]),
                death,
                lambda status: os.close(writing) if os.write(writing, str(status).encode()) else None,
            )
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answer:
        status = int(answer.read())
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return status


def _start_guardians() -> None:
    """Let guardians be started as on any host, not forked as tests/rig/forking.py does."""
    importlib.import_module("vmkeep.host.guard.standby").subprocess = subprocess  # type: ignore[attr-defined]


def _leave_the_streams(request: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.environ.update(request.get("env", {}))


def _child(request: dict[str, Any]) -> int:
    Path(request["pid_file"]).write_text(str(os.getpid()))
    if "VMKEEP_FAULT_RECORD" in os.environ:  # the injector of tests/environment, loaded when the driver was started
        ctypes.CDLL(None).vmkeep_fault_start()
    result: dict[str, Any] = {}
    for trap in request.get("traps", ()):
        if "guardian" in trap["place"]:
            _start_guardians()  # while it comes up is a time to die as well
        _set_trap(trap)
    if "command" in request:
        return _command(request)
    if "make_point" in request:
        from tests.integration.cli.test_catch_up import make

        make(Path(request["make_point"]), os.urandom(64))
        return 0
    try:
        result["acts"] = _act(request["acts"], result)
        status = 0
    except Exception as error:
        as_dict = getattr(error, "as_dict", None)
        result["error"] = as_dict() if as_dict is not None else {"code": "fault", "message": traceback.format_exc()}
        result["notes"] = getattr(error, "__notes__", [])
        status = 1
    result["calls"] = dict(_calls)
    Path(request["result_file"]).write_text(json.dumps(result))
    return status


def _command(request: dict[str, Any]) -> int:
    """Run a command line, with what it prints in two files."""
    from vmkeep.cli.main import main as run_command

    for stream, name in ((1, "out"), (2, "err")):
        made = os.open(f"{request['result_file']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(made, stream)
        os.close(made)
    sys.argv = ["vmkeep", *request["command"]]
    status = run_command(request["command"])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _act(acts: list[list[Any]], result: dict[str, Any]) -> list[Any]:
    """Carry out the acts with one engine, as a command does, and return what each answered."""
    from vmkeep.config import load_settings
    from vmkeep.flows.engine import Engine
    from vmkeep.flows.installation import Premises
    from vmkeep.flows.point_requests import DeletePoint
    from vmkeep.flows.requests import THIS_HOST, TakePoint, TakeSnapshot
    from vmkeep.host.local import LocalHost

    answers: list[Any] = []
    with Premises(load_settings()) as premises:
        premises.ensure()
        host = LocalHost(premises.settings, lambda: premises.repository)
        with contextlib.closing(host), Engine(premises, {THIS_HOST: host}) as engine:
            result["recovered"] = engine.recovered
            for kind, *words in acts:
                if kind == "backup":
                    asked = TakePoint(words[0], full="full" in words[1:], quiesce="quiesce" in words[1:])
                    taken = engine.take_point(asked, lambda _: None)
                    answers.append({"point": taken.point, "warnings": taken.warnings})
                elif kind.startswith(("restore", "state_", "tpm_", "nvram_")):
                    answers.append(_bring_back(kind, words, engine, premises, host))
                elif kind == "revert":
                    answers.append(_revert(words, engine))
                elif kind == "delete":
                    engine.delete_point(DeletePoint(words[0], grace_seconds=0), lambda _: None)
                    answers.append(None)
                elif kind == "verify":
                    report = premises.repository.verify_all()
                    answers.append([str(finding) for finding in report.findings])
                elif kind == "snapshot":
                    snapshot = f"<domainsnapshot><name>{words[1]}</name>{''.join(words[2:])}</domainsnapshot>"
                    asked_for = TakeSnapshot(words[0], snapshot.replace("quiesce", ""), quiesce="quiesce" in words[2:])
                    made = engine.take_snapshot(asked_for, lambda _: None)
                    answers.append({"snapshot": made.snapshot, "warnings": made.warnings})
                elif kind == "kept":
                    answers.append(_kept(words[0], premises))
                elif kind == "look":
                    unfinished = [operation.id for operation in premises.catalog.unfinished_operations()]
                    points = sorted(premises.catalog.point_ids())
                    answers.append([unfinished, points, sorted(premises.repository.point_ids())])
                else:
                    raise ValueError(kind)
    return answers


def _kept(vm: str, premises: Any) -> dict[str, dict[str, str]]:
    """Return the state files that are kept with each snapshot of a VM, in hexadecimal, by kind."""
    return {
        snapshot.name: {state.kind: premises.repository.state(state.id)[1].hex() for state in snapshot.states}
        for snapshot in premises.catalog.snapshots_of_vm(vm)
    }


def _bring_back(kind: str, words: list[Any], engine: Any, premises: Any, host: Any) -> Any:
    if kind.startswith("tpm_"):
        return _change_tpm(kind, words, engine, premises, host)
    if kind == "nvram_enroll":
        from vmkeep.flows.requests import NewNvram, ReplaceNvram

        return engine.replace_nvram(ReplaceNvram(words[0], NewNvram.ENROL, of_2023=True), lambda _: None).uuid
    if kind == "state_restore":
        return _restore_state(words, engine, premises, host)
    return _restore(kind, words, engine, premises)


def _restore(kind: str, words: list[Any], engine: Any, premises: Any) -> Any:
    from vmkeep.flows.requests import ImageFormat, RestoreFiles, RestoreInPlace, RestoreVm, TpmChoice

    def unwatched(_progress: object) -> None:
        return

    if kind == "restore":
        return engine.restore_files(
            RestoreFiles(words[0], words[1], ImageFormat.RAW, force=len(words) > 2), unwatched
        ).files
    if kind == "restore_all":
        for point in premises.catalog.point_ids():
            engine.restore_files(RestoreFiles(point, str(Path(words[0]) / point), ImageFormat.RAW), unwatched)
        return premises.catalog.point_ids()
    if kind == "restore_vm":
        tpm = TpmChoice(words[2]) if len(words) > 2 else None
        return engine.restore_vm(RestoreVm(words[0], words[1], tpm), unwatched).files
    # In place: the safety point is taken first, unless there is one that the VM is at already.
    request = RestoreInPlace(words[0], words[1], tuple(words[3:]), safety=words[2])
    if request.safety is None:
        request, _ = engine.take_safety_point(request, unwatched)
    restored = engine.restore_in_place(request, unwatched)
    return {"safety": restored.safety, "warnings": restored.warnings}


def _restore_state(words: list[Any], engine: Any, premises: Any, host: Any) -> Any:
    """Put versions of a VM's state back: (name, kind or None, version or None)."""
    from vmkeep.flows.restore_states import request_for
    from vmkeep.flows.vm_states import versions_asked_for

    kept = versions_asked_for(premises.catalog, *words)
    request = request_for(premises, host, [each.version for each in kept])
    return engine.restore_states(request, lambda _: None).kinds


def _change_tpm(kind: str, words: list[Any], engine: Any, premises: Any, host: Any) -> Any:
    """Take a VM's TPM out, or put one in with the state of the version or point that is named."""
    from vmkeep.flows.choose_tpm import choose_tpm
    from vmkeep.flows.requests import RekeyTpm, RemoveTpm, ResetTpm

    if kind == "tpm_remove":
        return engine.remove_tpm(RemoveTpm(words[0]), lambda _: None).uuid
    if kind == "tpm_reset":
        return engine.reset_tpm(ResetTpm(words[0]), lambda _: None).uuid
    if kind == "tpm_rekey":
        return engine.rekey_tpm(RekeyTpm(words[0]), lambda _: None).uuid
    request = choose_tpm(
        premises.catalog,
        lambda: premises.repository,
        host,
        words[0],
        model=None,
        state=words[1] if len(words) > 1 else None,
        secret=None,
        search=premises.catalog.find_point,
    )
    return engine.add_tpm(request, lambda _: None).uuid


def _revert(words: list[Any], engine: Any) -> Any:
    """Take a VM (name, snapshot, options of the request) back, without a safety point."""
    from vmkeep.flows.requests import RevertSnapshot, RunAfterwards, TpmChoice

    def unwatched(_progress: object) -> None:
        return

    options = dict(words[2])
    asked = RevertSnapshot(words[0], words[1], only=tuple(options.pop("only", ())))
    asked = dataclasses.replace(
        asked,
        run=RunAfterwards(options.pop("run", "then")),
        tpm=TpmChoice(options.pop("tpm", "same")),
        **options,
    )
    request, checked = engine.check_revert(asked, unwatched)
    if checked.running:
        engine.stop_for_revert(request, unwatched)
    reverted = engine.revert_snapshot(request, unwatched)
    return {"images": reverted.images, "state": reverted.state, "warnings": reverted.warnings}


# -- places ----------------------------------------------------------------------------------------------------


def _set_trap(trap: dict[str, Any]) -> None:
    name, _, number = trap["place"].partition("#")
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *way, attribute = path.split(".")
    for step in way:
        owner = getattr(owner, step)
    found = vars(owner)[attribute]
    plain = found.__func__ if isinstance(found, staticmethod | classmethod) else found
    wrapped: Any = _trapped(plain, name, int(number or "1"), trap)
    if isinstance(found, staticmethod | classmethod):
        wrapped = type(found)(wrapped)
    setattr(owner, attribute, wrapped)


def _trapped(function: Callable[..., Any], name: str, number: int, trap: dict[str, Any]) -> Callable[..., Any]:
    when, action = trap["when"], _action(trap)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _counting:
            _calls[name] += 1
            here = _calls[name] == number
        if here and when == "before":
            action()
        if here and when == "during":
            threading.Timer(trap.get("delay_ms", 0) / 1000, action).start()
        result = function(*args, **kwargs)
        if here and when in ("after", "during"):
            action()  # a call that was faster than the timer
        return result

    return run


def _action(trap: dict[str, Any]) -> Callable[[], None]:
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def hold() -> None:
        Path(trap["reached"]).touch()
        while not Path(trap["go"]).exists():
            time.sleep(0.005)

    def fail() -> None:
        from vmkeep.errors import NoSpace

        raise NoSpace("there is no room, because a test says so")

    actions: dict[str, Callable[[], None]] = {"kill": kill, "hold": hold, "count": lambda: None, "fail": fail}
    return actions[trap["action"]]


if __name__ == "__main__":
    main()
