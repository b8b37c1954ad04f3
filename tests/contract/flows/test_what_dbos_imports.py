"""DBOS as it is installed can do with what `vmkeep.flows.durable` defers."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vmkeep.flows.durable import DBOS, DEFERRED, FOR_OTHERS, GIVEN, QUEUES

# Modules that flows on SQLite never load, each for another way to use DBOS.
OF_OTHER_USES = {"_datasource_postgres", "_sys_db_postgres", "_docker_pg_helper", "cli/cli", "cli/_github_init"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield the modules of DBOS by name, but those of other uses."""
    found = importlib.util.find_spec("dbos")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    for path in sorted(folder.rglob("*.py")):
        name = str(path.relative_to(folder).with_suffix(""))
        if name not in OF_OTHER_USES and not name.startswith("_templates"):
            yield name, ast.parse(path.read_text("utf-8"))


def names_taken(tree: ast.Module) -> set[str]:
    """Return the names that a module has from what is deferred."""
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in DEFERRED:
            taken |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            taken |= {alias.asname or alias.name for alias in node.names if alias.name in DEFERRED}
    return taken


def stands_in(node: ast.expr, taken: set[str]) -> bool:
    """Return whether what is written there is deferred, and nothing was given for it."""
    while isinstance(node, ast.Subscript):
        node = node.value
    written = ast.unparse(node)
    module, _, name = written.rpartition(".")
    if name in GIVEN.get(module, {}):
        return False
    return any(written == each or written.startswith(f"{each}.") for each in taken)


def test_what_is_deferred_is_taken_by_dbos_and_is_never_a_base_or_caught() -> None:
    taken_anywhere: set[str] = set()
    for name, tree in sources():
        taken = names_taken(tree)
        taken_anywhere |= taken
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                assert not any(stands_in(base, taken) for base in node.bases), (name, node.name)
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                # What a module itself is asked for when an error was raised is its own.
                named = [each for each in caught if not ast.unparse(each).startswith("asyncio.")]
                assert not any(stands_in(each, taken) for each in named), (name, node.lineno)
    names = {
        "psycopg",
        "pg_errors",
        "croniter",
        "isoparse",
        "yaml",
        "Session",
        "click",
        "importlib.metadata",
        "asyncio",
    }
    assert names <= taken_anywhere


def test_dbos_starts_threads_for_what_is_left_out_by_the_names_that_are_replaced() -> None:
    started = set(DBOS._launch.__code__.co_names)
    assert {QUEUES, *FOR_OTHERS} <= started
    assert {"create_application_version", "get_latest_application_version"} <= started


def test_flow_that_is_a_coroutine_runs_all_the_same(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _COROUTINE, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "not loaded\nended\nended\ncancelled\n", "")


_COROUTINE = """
import sys
from vmkeep.flows.durable import DBOS, launching

database = f"sqlite:///{sys.argv[1]}/flows.sqlite"
DBOS(config={"name": "of-a-test", "system_database_url": database, "log_level": "CRITICAL"})

async def step():
    return "ended"

@DBOS.workflow()
def flow_of_threads():
    return DBOS.run_step({"name": "step"}, step)

@DBOS.workflow()
async def flow():
    import asyncio
    told = await DBOS.run_step_async({"name": "step"}, step)
    asyncio.current_task().cancel()
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        return told, "cancelled"

with launching():
    DBOS.launch()
print("loaded" if "asyncio" in sys.modules else "not loaded")
print(flow_of_threads())
import asyncio
print(*asyncio.run(flow()), sep="\\n")
DBOS.destroy()
"""


def test_dbos_is_loaded_without_them() -> None:
    probe = f"import sys, vmkeep.flows.durable; sys.exit(', '.join(set({DEFERRED!r}) & set(sys.modules)) or None)"
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stderr) == (0, "")
