"""What goes wrong at the end of the catalogue's connections is no text for people."""

from __future__ import annotations

import subprocess
import sys


def test_failed_close_prints_no_traceback() -> None:
    """A Ctrl-C is raised wherever Python is just then, also in the close that SQLAlchemy logs the failure of."""
    program = (
        "import sqlalchemy, vmkeep.catalog.database\n"
        "engine = sqlalchemy.create_engine('sqlite://', poolclass=sqlalchemy.NullPool)\n"
        "def interrupted(_connection): raise InterruptedError('Interrupted by Ctrl-C')\n"
        "engine.dialect.do_close = interrupted\n"
        "engine.connect().close()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
