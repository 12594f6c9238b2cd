"""Fill a data channel with a shipped sample data set, by running the entrypoints' own fetcher as a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orchestrator import bundled
from orchestrator.errors import BadInput


def fetch(name: str) -> Path:
    """The folder of sample *name*, downloaded by pinned hash where it is not cached. Progress goes to stderr.

    Raises BadInput with the fetcher's own last line where it cannot be had.
    """
    return _asked(name)


def place_of(name: str) -> Path:
    """The folder in which sample *name* lies, or would: nothing is fetched. Its name tells its content. Raises BadInput."""
    return _asked(name, "--where")


def _asked(name: str, *flags: str) -> Path:
    command = [sys.executable, str(bundled.samples_file()), name, *flags]
    fetching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert fetching.stderr is not None
    last = f"cannot fetch the sample {name!r}"
    fault = {"error: ": "", "  try: ": "--data training=FOLDER"}
    for line in fetching.stderr:
        start = next((start for start in fault if line.startswith(start)), None)
        if start is None:
            sys.stderr.write(line)
            last = line.strip() or last
        else:
            fault[start] = line.removeprefix(start).strip()
    out, _ = fetching.communicate()
    if fetching.returncode == 0:
        return Path(out.strip().splitlines()[-1])
    raise BadInput(fault["error: "] or last, hint=fault["  try: "])
