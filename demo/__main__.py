"""`python -m demo`.

Exit status: 0 when every proof holds, 1 when one fails, 2 when it cannot run here, 130 on Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from demo.narration import Narration
from demo.story import Demo
from tests.rig import Host, RigError, missing_requirements


def main() -> int:
    narration = Narration()
    missing = missing_requirements()
    if missing:
        narration.say(f"The demo cannot run here; missing: {', '.join(missing)}. Run `make demo`, which installs them.")
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    narration.say(
        "vmkeep's demo runs on a libvirt host of its own, in namespaces; VMs of this machine are not touched."
    )
    try:
        with Host("demo") as host:
            Demo(host, narration).run()
    except KeyboardInterrupt:
        narration.say("Interrupted; the host and everything on it is removed.")
        return 130
    except RigError as error:
        narration.say(f"The demo failed: {error}")
        return 1
    narration.summary()
    return 1 if narration.failures else 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
