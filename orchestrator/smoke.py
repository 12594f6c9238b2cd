"""A few steps of the script on this machine before any launch, so that a typo never costs a machine's start."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import package, state
from orchestrator.backends import local, process, supervisor
from orchestrator.backends.process import Child, Stop
from orchestrator.entrypoint import Entrypoint
from orchestrator.errors import ScriptFailed
from orchestrator.package import Manifest

SECONDS = 60.0
TAIL_BYTES = 4000


def run(request: Mapping[str, Any], manifest: Manifest, found: Entrypoint, channels: Mapping[str, Path]) -> None:
    """Start the script as *request* would, in a scratch folder that is removed again.

    A script whose PEP 723 block has `[tool.orchestrate] smoke = ["--smoke"]` is given these arguments too and must end well.
    Any other is stopped at its first metric line, or after 60 seconds: it passes if it has not failed by then.

    Raises ScriptFailed with the script's last lines.
    """
    with tempfile.TemporaryDirectory(prefix="smoke-", dir=state.make_private(state.home())) as folder:
        scratch = _scratch_request(request, Path(folder) / "root", found)
        built = package.build(manifest, state.packages_dir())
        local.lay_root(scratch, built.path, channels)
        output = bytearray()
        outcome = _few_steps(scratch, output, to_its_end=found.smoke_arguments is not None)
        if outcome.stop.failed if outcome.stop else outcome.exit_code != 0:
            reason = (
                outcome.stop.reason
                if outcome.stop
                else supervisor.failure_reason(Path(scratch["root"]), outcome.exit_code)
            )
            tail = bytes(output).decode("utf-8", "replace").strip()
            raise ScriptFailed(f"the smoke run of {found.script} failed: {reason}\n{tail}", hint="nothing was launched")
        shutil.rmtree(scratch["root"], ignore_errors=True)


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
        if not to_its_end and time.monotonic() - started > SECONDS:
            return Stop(f"it has run for {SECONDS:.0f} s without a fault", 5.0)
        return enough[0] if enough else None

    return Child(request).watch(keep, measured, asked)
