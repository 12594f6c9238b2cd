"""Named steps of a submit, at which a test can kill the process: what no one can reach, no one has tested.

Nothing happens here unless the environment asks for it. `ORCHESTRATE_CRASH_AT=name` sends SIGKILL to this process at that
step; `ORCHESTRATE_CRASH_RECORD=FILE` appends each step's name to FILE, so that a test can tell that it kills at all of them.
"""

from __future__ import annotations

import os
import signal

_CRASH_AT = os.environ.get("ORCHESTRATE_CRASH_AT")
_RECORD = os.environ.get("ORCHESTRATE_CRASH_RECORD")


def reached(step: str) -> None:
    """Say that *step* has been reached."""
    if _RECORD:
        with open(_RECORD, "a", encoding="utf-8") as record:  # noqa: PTH123 - no pathlib import for a no-op
            record.write(f"{step}\n")
    if step == _CRASH_AT:
        os.kill(os.getpid(), signal.SIGKILL)
