"""Run on this machine, under the same contract as in the cloud: a root folder, bootstrap.py, signals and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator import bundled, crashpoints, state
from orchestrator.backends import Advance, Artifact, Interruption, Progress, kept_files, process
from orchestrator.backends.files import copy_artifacts
from orchestrator.errors import StateError
from orchestrator.metrics import MetricReader
from orchestrator.plan import Plan, job_file
from orchestrator.runs import Ledger, Run, RunState

HOST = "algo-1"  # what SageMaker calls the first machine of a training job
RUN_LOCK, SUBMIT_LOCK = state.RUN_LOCK, state.SUBMIT_LOCK
POLL_SECONDS = 0.05
START_SECONDS = 90.0  # longer than anyone waits for the ledger


class Attached:
    """A run whose supervisor listens to this command: it stops the run if this command dies without letting go."""

    def __init__(self, supervisor: subprocess.Popen[bytes], interrupt: Callable[[bool], Interruption]) -> None:
        self._supervisor = supervisor
        self._interrupt = interrupt

    def interrupted(self, times: int) -> Interruption:
        return self._interrupt(times > 1)

    def let_go(self) -> None:
        assert self._supervisor.stdin is not None
        with contextlib.suppress(OSError):
            self._supervisor.stdin.write(b"d")
            self._supervisor.stdin.flush()
            self._supervisor.stdin.close()
        self._supervisor.returncode = 0  # it outlives this process on purpose: no ResourceWarning is due

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.communicate(timeout=START_SECONDS)


class LocalBackend:
    """The Backend of this machine."""

    cancel_on_interrupt = True

    def request(self, plan: Plan) -> dict[str, Any]:
        """The whole of what a local start needs. `environment` comes on top of this shell's own."""
        root = plan.run_dir / "root"
        limits = _limits(plan)
        return {
            "backend": "local",
            "run_id": plan.run_id,
            "root": str(root),
            "ledger": str(plan.run_dir.parent.parent / "ledger.sqlite"),
            "command": [sys.executable, "-u", str(root / "input/data/code/bootstrap.py")],
            "environment": {"ORCHESTRATE_ROOT": str(root), **_thread_environment(limits["cpus"])},
            "package": {"digest": plan.package_digest, "size_bytes": plan.package_bytes},
            "channels": dict(plan.channels),
            "checkpoints_from": plan.checkpoints_from,
            "limits": limits,
            "files": _config_files(plan),
        }

    def submit(
        self,
        run: Run,
        request: Mapping[str, Any],
        archive: Path,
        channels: Mapping[str, Path],
        advance: Advance,
        progress: Progress | None = None,
    ) -> Attached:
        """Lay the root folder out and start the supervisor. Raises StateError where the disk does not allow it."""
        run_dir = Path(run.run_dir)
        advance(RunState.STARTING)
        crashpoints.reached("starting written")
        with state.explained(run_dir):
            lay_root(request, archive, channels)
            crashpoints.reached("root laid out")
            state.write_whole(run_dir / "request.json", json.dumps(request, indent=1).encode())
            crashpoints.reached("request written")
            with (run_dir / "supervisor.log").open("ab") as errors:
                supervisor = subprocess.Popen(
                    [sys.executable, "-m", "orchestrator.backends.supervisor", str(run_dir)],
                    cwd=Path(__file__).resolve().parents[2],  # so that a checkout that is not installed works too
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            crashpoints.reached("supervisor started")
            self._wait_for_start(run_dir, supervisor)
        return Attached(supervisor, lambda again: self._interrupt(run, again=again))

    def hold(self, run: Run) -> Attached:
        raise NotImplementedError("a local run ends with the command that started it, or goes on alone")

    def _interrupt(self, run: Run, *, again: bool) -> Interruption:
        grace_seconds = 0 if again else int(run.plan["limits"]["grace_seconds"])
        self.cancel(run, grace_seconds=grace_seconds, reason="Ctrl-C")
        if again:
            return Interruption(f"killing {run.id}")
        words = f"stopping {run.id}: SIGTERM sent, up to {grace_seconds} s to save; Ctrl-C again kills it"
        return Interruption(words)

    def _wait_for_start(self, run_dir: Path, supervisor: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (run_dir / "child.json").exists() or (run_dir / "exit.json").exists():
                return
            if supervisor.poll() is not None:
                break
            time.sleep(POLL_SECONDS / 5)
        supervisor.kill()
        supervisor.communicate()
        if supervisor.returncode in state.FULL:
            raise OSError(supervisor.returncode, os.strerror(supervisor.returncode))
        words = (run_dir / "supervisor.log").read_text("utf-8", "replace").strip().splitlines()
        raise StateError(f"the run could not be started: {words[-1] if words else 'no answer'}", hint=f"see {run_dir}")

    def refresh(self, run: Run, ledger: Ledger) -> Run:
        """The run as it stands. One whose supervisor is gone is concluded from what it left."""
        run_dir = Path(run.run_dir)
        # In this order: a submit holds its lock until the supervisor holds its own.
        if run.ended or held(run_dir, SUBMIT_LOCK) or held(run_dir):
            return ledger.get(run.id)
        run = ledger.get(run.id)  # as it is now that nobody is at it
        last = _last_word(run_dir)
        try:
            if last is not None:
                self._conclude(run, last, ledger)
            elif _alive(run_dir):
                note = "its supervisor was killed: the script is given time to save"
                ledger.move(run.id, RunState.STOPPING, note=note, unless=(RunState.STOPPING,))
            elif run.started_at is None:
                note = "its submit was killed before the script began: nothing ran; submit it again"
                ledger.move(run.id, RunState.ABANDONED, note=note, untold=True, unless=(RunState.RUNNING,))
            else:
                note = "its supervisor was killed; what the script had saved is kept"
                ledger.move(run.id, RunState.STOPPED, note=note, untold=True, actual_usd="0")
        except StateError:  # a full disk: say what is known, and write it down another time
            return (
                run
                if last is None
                else dataclasses.replace(run, **_changes(last), state=last["state"], reason=last["reason"])
            )
        return ledger.get(run.id)

    def _conclude(self, run: Run, last: Mapping[str, Any], ledger: Ledger) -> None:
        """Write down what the supervisor could not: the metrics, from the log, and the end."""
        reader = MetricReader()
        values = [line for data in self.logs(run, follow=False) for line in reader.feed(data)]
        ledger.add_metrics(run.id, [(number, last["ended_at"], line) for number, line in enumerate(values)])
        ledger.move(run.id, RunState(last["state"]), note=last["reason"], **_changes(last))

    def logs(self, run: Run, *, follow: bool) -> Iterator[bytes]:
        run_dir = Path(run.run_dir)
        path = run_dir / "log.txt"
        while follow and not path.exists() and held(run_dir):
            time.sleep(POLL_SECONDS)
        if not path.exists():
            return
        with path.open("rb") as log:
            while True:
                alive = follow and held(run_dir)  # asked before reading: what is written until then is read below
                while data := log.read(process.BLOCK_BYTES):
                    yield data
                if not alive:
                    return
                yield b""  # a chance for the reader to look up
                time.sleep(POLL_SECONDS)

    def artifacts(self, run: Run) -> list[Artifact]:
        return list(kept_files(Path(run.run_dir) / "root"))

    def collect(
        self, run: Run, folder: Path, *, checkpoints: bool = False, progress: Progress | None = None
    ) -> list[Path]:
        return copy_artifacts(self.artifacts(run), folder)

    def cancel(self, run: Run, *, grace_seconds: int, reason: str) -> None:
        run_dir = Path(run.run_dir)
        if not held(run_dir) and _alive(run_dir):
            _end_unsupervised(run_dir, grace_seconds)
            return
        with state.explained(run_dir):
            order = {"grace_seconds": grace_seconds, "reason": reason}
            state.write_whole(run_dir / "cancel.json", json.dumps(order).encode())


def _limits(plan: Plan) -> dict[str, Any]:
    machine, spec = plan.machine, plan.spec
    cpus = None if machine is None or machine.vcpus is None else min(machine.vcpus, _cpu_count())
    memory_gib = None if machine is None else machine.memory_gib
    return {
        "cpus": cpus,
        "memory_bytes": None if memory_gib is None else int(memory_gib * process.GIB),
        "memory_from": None if machine is None else machine.name,
        "max_seconds": None if spec.max_hours is None else float(spec.max_hours * 3600),
        "grace_seconds": spec.grace_seconds,
    }


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _thread_environment(cpus: int | None) -> dict[str, str]:
    if cpus is None:
        return {}
    return {name: str(cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def _config_files(plan: Plan) -> dict[str, Any]:
    """The files of the contract, as SageMaker lays them out, and our own job.json (docs/design.md)."""
    spec = plan.spec
    return {
        "input/config/resourceconfig.json": {
            "current_host": HOST,
            "current_instance_type": "local" if plan.machine is None else plan.machine.name,
            "hosts": [HOST],
            "network_interface_name": "lo",
        },
        "input/config/inputdataconfig.json": {name: {"TrainingInputMode": "File"} for name, _ in plan.channels},
        "input/config/hyperparameters.json": dict(spec.hyperparameters),
        "input/data/job/job.json": job_file(plan),
    }


def lay_root(request: Mapping[str, Any], archive: Path, channels: Mapping[str, Path]) -> None:
    """Make the root folder that *request* describes. Data folders are linked, not copied; so is the archive if it can be."""
    root = Path(request["root"])
    state.make_private(root)
    for place, content in request["files"].items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        state.write_whole(path, json.dumps(content, ensure_ascii=False, indent=1).encode())
    code = root / "input/data/code"
    code.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundled.bootstrap_file(), code / "bootstrap.py")
    try:
        os.link(archive, code / "package.tar.gz")
    except OSError:
        shutil.copyfile(archive, code / "package.tar.gz")
    if request["checkpoints_from"] is not None:
        shutil.copytree(request["checkpoints_from"], root / "checkpoints", dirs_exist_ok=True)
    for name, folder in channels.items():
        (root / "input/data" / name).symlink_to(folder, target_is_directory=True)


def held(run_dir: Path, lock: str = RUN_LOCK) -> bool:
    """Does a process live that holds this lock of the run: its supervisor, or (SUBMIT_LOCK) the submit that makes it?"""
    return state.is_held(run_dir / lock)


def _last_word(run_dir: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        last: dict[str, Any] = json.loads((run_dir / "exit.json").read_bytes())
        return last
    return None


def _changes(last: Mapping[str, Any]) -> dict[str, Any]:
    return {"exit_code": last["exit_code"], "ended_at": last["ended_at"], "actual_usd": "0"}


def _end_unsupervised(run_dir: Path, grace_seconds: int) -> None:
    """End a script whose supervisor is gone: what bootstrap.py is told, it does to all that it started."""
    pid = json.loads((run_dir / "child.json").read_bytes())["pid"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while _alive(run_dir) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if _alive(run_dir):
        process.kill_group(pid)


def _alive(run_dir: Path) -> bool:
    """Does the bootstrap that this run's supervisor started still live (for its grace time)?"""
    import psutil

    with contextlib.suppress(OSError, ValueError, psutil.Error):
        child = json.loads((run_dir / "child.json").read_bytes())
        found = psutil.Process(child["pid"])
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - child["created"]) < 1
    return False
