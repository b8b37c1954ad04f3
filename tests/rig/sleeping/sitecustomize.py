"""Python's sleep for processes under libfaketime (0.9.10), which ends its clock_nanosleep with EINVAL.

Found by Python through PYTHONPATH, before the command begins.
"""

import select
import time
from typing import Any


def _sleep(seconds: Any) -> None:
    select.select((), (), (), seconds)


time.sleep = _sleep
