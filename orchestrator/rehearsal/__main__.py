"""`python -m orchestrator.rehearsal --folder F`: a loopback AWS in the foreground, until Ctrl-C, SIGTERM or nobody calls."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator import state
from orchestrator.errors import BadInput, Conflict, OrchestrateError, shown
from orchestrator.rehearsal import control

GRACE_SECONDS = 120.0
LOOK_SECONDS = 0.5


def serve(
    folder: Path,
    *,
    port: int = 0,
    faults: Sequence[str] = (),
    quotas: Mapping[str, int] | None = None,
    idle_seconds: float | None = None,
    grace_seconds: float = GRACE_SECONDS,
    level: str | None = None,
    region: str = "us-east-1",
    say: Callable[[str], None] = print,
) -> None:
    """Run a rehearsal here until it is told to stop; its jobs end with it.

    *idle_seconds*: it also ends when nobody called for so long and no job runs. Raises Conflict where the folder has one.
    """
    from orchestrator.rehearsal.server import Rehearsal

    told = threading.Event()
    with state.explained(folder):
        cloud = Rehearsal(
            folder, port=port, faults=faults, quotas=quotas, grace_seconds=grace_seconds, level=level, stop_asked=told
        )
        lock = control.hold(folder)
    if lock is None:
        standing = control.find(folder)
        at = "" if standing is None else f" at {standing.url} (process {standing.pid})"
        raise Conflict(f"a rehearsal of {folder} is already running{at}", hint="use that one, or stop it first")
    before = _on_signals(told)
    try:
        cloud.start()
        known = {"url": cloud.url, "pid": os.getpid()}
        state.write_whole(folder / control.ADDRESS, json.dumps(known).encode())
        _greet(cloud.url, region, say)
        while not told.wait(LOOK_SECONDS):
            if idle_seconds is not None and cloud.idle_seconds > idle_seconds:
                say(f"nobody called for {idle_seconds:g} s")
                break
        running = [job["name"] for job in cloud.state()["jobs"] if job["status"] in ("InProgress", "Stopping")]
        if running:
            say(f"the rehearsal ends, and its training jobs with it: {', '.join(running)}")
    finally:
        late = cloud.stop()
        if late:
            say(f"killed, for they did not end in time: {', '.join(late)}")
        (folder / control.ADDRESS).unlink(missing_ok=True)
        os.close(lock)
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signals(told: threading.Event) -> dict[int, Any]:
    """Let SIGINT and SIGTERM set *told*; a second one ends the process. Where this is no main thread, nothing."""

    def note(number: int, _frame: FrameType | None) -> None:
        if told.is_set():
            os._exit(128 + number)  # the jobs' processes end with this one, whatever ends it
        told.set()

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}


def _greet(url: str, region: str, say: Callable[[str], None]) -> None:
    say(f"a loopback AWS answers at {url}; any AWS client, in another terminal:")
    for name, value in control.environment(url, region).items():
        say(f"  export {name}={shlex.quote(value)}")
    say(f"role {control.role_arn(region)}, bucket {control.bucket_of(region)} (one in each region)")
    say(
        "SageMaker training jobs are really run, with your rights; S3, STS, IAM and CloudWatch Logs are moto's, in memory."
    )
    say("Nothing else is imitated: no GPU, no image, no prices, no permissions. Ctrl-C ends it and its jobs.")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.rehearsal", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where jobs run and faults are written down")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND[:OPERATION][:key=value…]")
    parser.add_argument("--quota", action="append", default=[], metavar="INSTANCE_TYPE=N")
    parser.add_argument("--idle-seconds", type=float, help="end when nobody calls for so long and no job runs")
    parser.add_argument("--grace-seconds", type=float, default=GRACE_SECONDS, help="between SIGTERM and SIGKILL")
    parser.add_argument("--level", choices=("namespaces", "folder"), help="default: the best that works here")
    parser.add_argument("--region", default="us-east-1", help="the one to print; all of them answer")
    return parser


def quotas_of(texts: Sequence[str]) -> dict[str, int]:
    """Raises BadInput for what is no `INSTANCE_TYPE=N`."""
    quotas = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdecimal():
            raise BadInput(f"a quota is INSTANCE_TYPE=N, not {shown(text)}", hint="--quota ml.p3.2xlarge=0")
        quotas[name] = int(number)
    return quotas


def main(words: Sequence[str] | None = None) -> int:
    given = parser().parse_args(words)
    try:
        serve(
            given.folder,
            port=given.port,
            faults=given.fault,
            quotas=quotas_of(given.quota),
            idle_seconds=given.idle_seconds,
            grace_seconds=given.grace_seconds,
            level=given.level,
            region=given.region,
            say=lambda text: print(text, flush=True),
        )
    except OrchestrateError as error:
        print(f"error: {error.what}" + (f"\n  try: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
