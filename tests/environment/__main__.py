"""`python -m tests.environment`: every command fails at each kind of its calls, with every error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["VMKEEP_FAULT_ALL"] = "1"
    sys.exit(pytest.main([str(Path(__file__).with_name("test_walk.py")), "-p", "no:cacheprovider", *sys.argv[1:]]))
