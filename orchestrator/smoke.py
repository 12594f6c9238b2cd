"""A few steps of the script on this machine before any launch, so that a typo never costs a machine's start."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator import package, state
from orchestrator.backends import local, process, supervisor
from orchestrator.backends.process import Child, Stop
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import BadInput, ScriptFailed
from orchestrator.preparing import Prepared

SECONDS = 60.0
LONGEST_SECONDS = 600.0  # of a smoke run that the script itself describes
TAIL_BYTES = 4000
_PREFIX = "smoke-"
_ASKED_TO_STOP = (0, 130, 137, 143)  # how a script may end that has been stopped


def run(prepared: Prepared, say: Callable[[str], None] = lambda _: None) -> None:
    """Start the script as a submit would, in a scratch folder that is removed again.

    A script whose PEP 723 block has `[tool.orchestrate] smoke = ["--smoke"]` is given these arguments too and must end well.
    Any other is stopped at its first metric line, or after 60 seconds: it passes if it has not failed by then.

    Raises ScriptFailed with the script's last lines, StateError where there is no room for the scratch folder.
    """
    found = prepared.plan.entrypoint
    if len(prepared.channels) < len(prepared.plan.channels):
        hint = "leave --smoke out, or rehearse: --rehearse with a small folder as --data"
        raise BadInput("--smoke runs here, and some of the data is in S3", hint=hint)
    state.make_private(state.home())
    _sweep()
    with state.explained(state.home()), tempfile.TemporaryDirectory(prefix=_PREFIX, dir=state.home()) as folder:
        lock = state.hold_lock(Path(folder) / state.RUN_LOCK)
        assert lock is not None, "a new folder belongs to nobody else"
        scratch = _scratch_request(local.LocalBackend().request(prepared.plan), Path(folder) / "root", found)
        built = package.build(prepared.manifest, state.packages_dir())
        local.lay_root(scratch, built.path, prepared.channels)
        say("smoke run: a few steps in a scratch folder")
        output = bytearray()
        outcome = _few_steps(scratch, output, to_its_end=found.smoke_arguments is not None)
        os.close(lock)
        stop, code = outcome.stop, outcome.exit_code
        if (stop.failed or code not in _ASKED_TO_STOP) if stop else code != 0:
            failed = stop is not None and stop.failed
            reason = stop.reason if stop and failed else supervisor.failure_reason(Path(scratch["root"]), code)
            tail = bytes(output).decode("utf-8", "replace").strip()
            raise ScriptFailed(f"the smoke run of {found.script} failed: {reason}\n{tail}", hint="nothing was launched")
    say("smoke run passed")


def _sweep() -> None:
    """Remove the scratch folders of smoke runs that were killed."""
    for folder in state.home().glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > SECONDS and not local.held(folder):
                shutil.rmtree(folder)


def _scratch_request(request: Mapping[str, Any], root: Path, found: Entrypoint) -> dict[str, Any]:
    job = dict(request["files"]["input/data/job/job.json"])
    job["arguments"] = [*job["arguments"], *(found.smoke_arguments or ())]
    return {
        **request,
        "root": str(root),
        "command": [*request["command"][:-1], str(root / "input/data/code/bootstrap.py")],
        "environment": {**request["environment"], "ORCHESTRATE_ROOT": str(root)},
        "files": {**request["files"], "input/data/job/job.json": job},
    }


def _few_steps(request: Mapping[str, Any], output: bytearray, *, to_its_end: bool) -> process.Outcome:
    started = time.monotonic()
    enough: list[Stop] = []

    def keep(data: bytes) -> None:
        output.extend(data)
        del output[:-TAIL_BYTES]

    def measured(_: dict[str, float]) -> None:
        if not to_its_end and not enough:
            enough.append(Stop("it has made its first steps", 5.0))

    def asked() -> Stop | None:
        if to_its_end and time.monotonic() - started > LONGEST_SECONDS:
            return Stop(f"it did not end within {LONGEST_SECONDS:.0f} s", 5.0, failed=True)
        if not to_its_end and time.monotonic() - started > SECONDS:
            return Stop(f"it has run for {SECONDS:.0f} s without a fault", 5.0)
        return enough[0] if enough else None

    return Child(request).watch(keep, measured, asked)
