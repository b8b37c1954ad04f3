"""Modules that are loaded when something of them is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vmkeep import catalog, moments, planning
from vmkeep.deferral import deferred


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `heavy` with a module, which no process has loaded."""
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy/__init__.py").write_text(
        "class Thing:\n    made = 3\n    kind = 'heavy'\n\ndef double(number):\n    return 2 * number\n"
    )
    (tmp_path / "heavy/errors.py").write_text("class Broken(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "heavy"
    for name in ("heavy", "heavy.errors"):
        sys.modules.pop(name, None)


def user(code: str) -> Any:
    """Return a module of this code, as it was imported while `heavy` was deferred."""
    module = ModuleType("user")
    with deferred("heavy", "heavy.errors"):
        exec(code, module.__dict__)  # noqa: S102  it is this test's own
    return module


@pytest.mark.usefixtures("package")
def test_module_that_is_deferred_is_loaded_by_its_use() -> None:
    using = user(
        "import heavy\nfrom heavy import Thing, double\nfrom heavy.errors import Broken\nfrom heavy import errors"
    )
    assert "heavy" not in sys.modules
    assert using.double(4) == 8
    assert "heavy" in sys.modules
    assert using.Thing.made == 3
    assert isinstance(using.Thing(), importlib.import_module("heavy").Thing)
    assert isinstance(using.errors.Broken(), importlib.import_module("heavy.errors").Broken)


@pytest.mark.usefixtures("package")
def test_function_that_asks_the_module_itself_after_the_block_has_the_real_thing() -> None:
    using = user(
        "from heavy import errors\n"
        "def caught(call):\n    try:\n        call()\n    except errors.Broken:\n        return True\n"
    )

    def fail() -> None:
        raise importlib.import_module("heavy.errors").Broken

    assert using.caught(fail)


@pytest.mark.usefixtures("package")
def test_asking_for_an_exception_that_nothing_can_have_raised_loads_nothing() -> None:
    module = ModuleType("user")
    with deferred("heavy.errors", raised={"heavy.errors": ("Broken",)}):
        exec("from heavy import errors", module.__dict__)  # noqa: S102  it is this test's own
    assert not isinstance(ValueError(), module.errors.Broken)
    assert "heavy.errors" not in sys.modules
    broken = importlib.import_module("heavy.errors").Broken
    assert module.errors.Broken is broken


@pytest.mark.usefixtures("package")
def test_nothing_is_an_instance_of_what_was_not_loaded_and_asking_loads_nothing() -> None:
    using = user("from heavy.errors import Broken")
    assert not isinstance(ValueError(), using.Broken)
    assert "heavy.errors" not in sys.modules
    broken = importlib.import_module("heavy.errors").Broken()
    assert isinstance(broken, using.Broken)


@pytest.mark.usefixtures("package")
def test_what_is_made_within_the_block_is_made_when_it_is_used() -> None:
    using = user("import heavy\nfrom heavy import Thing, double\ntext = Thing().kind.upper()\nkind = Thing.made.real")
    using_module = user("import heavy\ntwice = heavy.double(4)")
    assert "heavy" not in sys.modules
    assert using.text.lower() == "heavy"
    assert using.kind.bit_length() == 2
    assert using_module.twice.bit_length() == 4
    assert "heavy" in sys.modules


@pytest.mark.usefixtures("package")
def test_name_can_be_given_as_something_else() -> None:
    with deferred("heavy", given={"heavy": {"Thing": int}}):
        from heavy import Thing, double  # type: ignore[import-not-found]  # this test's own
    assert Thing is int
    assert "heavy" not in sys.modules
    assert double(2) == 4


@pytest.mark.usefixtures("package")
def test_module_of_a_package_that_is_loaded_is_found_in_it_within_the_block_and_real_afterwards() -> None:
    heavy = importlib.import_module("heavy")
    using = ModuleType("user")
    with deferred("heavy.errors", given={"heavy.errors": {"release": "unknown"}}):
        exec("import heavy.errors\nrelease = heavy.errors.release", using.__dict__)  # noqa: S102  it is this test's own
    assert using.release == "unknown"
    assert not hasattr(heavy, "errors")
    assert issubclass(importlib.import_module("heavy.errors").Broken, Exception)
    assert heavy.errors is importlib.import_module("heavy.errors")


@pytest.mark.usefixtures("package")
def test_annotations_with_it_load_nothing() -> None:
    user("from typing import Optional\nfrom heavy import Thing\ndef use(a: Optional[Thing], b: Thing[int] | None): ...")
    assert "heavy" not in sys.modules


@pytest.mark.usefixtures("package")
def test_others_get_the_real_module_afterwards_and_one_that_is_loaded_is_left_as_it_is() -> None:
    user("import heavy")
    real = importlib.import_module("heavy")
    assert real.double(1) == 2
    assert user("import heavy").heavy is real


@pytest.mark.parametrize("package_of_names", [catalog, moments, planning])
def test_package_shows_all_its_names(package_of_names: ModuleType) -> None:
    for name in package_of_names.__all__:
        assert getattr(package_of_names, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package_of_names.nothing  # noqa: B018
