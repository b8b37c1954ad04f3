"""`make fuzz`: the properties about foreign bytes, with other examples, for as long as is asked.

    python -m tests.property.fuzzing MINUTES [SEED]

It ends at the first example that is neither data nor an error of ours, prints it with its seed, and exits with 1. Such
an example belongs into a test of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

_HERE = Path(__file__).parent
_READERS = (
    _HERE / "keys" / "test_foreign_keys.py",
    _HERE / "repository" / "test_bucket_answers.py",
    _HERE / "repository" / "test_foreign_bytes.py",
    _HERE / "repository" / "test_foreign_bundles.py",
    _HERE / "repository" / "test_foreign_deletions.py",
    _HERE / "repository" / "test_foreign_marks.py",
    _HERE / "custody" / "test_foreign_variables.py",
    _HERE / "custody" / "test_rewritten_variables.py",
    _HERE / "definition" / "test_foreign_definitions.py",
    _HERE / "flows" / "test_foreign_steps.py",
    _HERE / "host" / "test_foreign_commands.py",
    _HERE / "host" / "test_hostile_qemu.py",
    _HERE / "identity" / "test_foreign_identities.py",
    _HERE / "moments" / "test_foreign_moments.py",
    _HERE / "moments" / "test_moment_texts.py",
    _HERE / "transfer" / "test_hostile_images.py",
    _HERE / "transfer" / "test_image_headers.py",
)


def main() -> int:
    minutes, *rest = sys.argv[1:]
    seed = int(rest[0]) if rest else int(time.time())
    end = time.monotonic() + float(minutes) * 60
    while time.monotonic() < end:
        words = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
        done = subprocess.run([sys.executable, "-m", "pytest", *words, *map(str, _READERS)], check=False)
        if done.returncode != 0:
            print(f"found with seed {seed}")
            return 1
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
