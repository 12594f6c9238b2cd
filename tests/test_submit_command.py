"""What `submit` knows about itself before it does anything."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

ASK = "import time; time.sleep(0.3); from orchestrator.submit_command import _typed_at; print(_typed_at())"


def test_when_a_command_was_typed_lies_between_what_came_before_it_and_its_first_step() -> None:
    """Of three commands in a row none was typed before the one ahead of it had ended."""
    for _ in range(3):
        before = datetime.now(UTC)
        told = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
        typed = datetime.fromisoformat(told.strip())
        # The kernel stamps starts in ticks of 10 ms, and milliseconds are cut off.
        assert before - timedelta(milliseconds=15) <= typed <= datetime.now(UTC) - timedelta(seconds=0.3)
