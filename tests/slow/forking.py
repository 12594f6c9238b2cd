"""A process that has everything loaded and forks the command line from it, so that hundreds of submits take minutes, not hours.

Each line on stdin is `{"commands": [{"words": […], "env": {…}, "crash_at": null}], "folder": …, "timeout": …}`; all commands
of a line run at once, each in a process of its own. The answer is a line `[{"code": …, "out": …, "err": …}]`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOADED = (
    "botocore.loaders", "boto3", "s3transfer", "rich.table", "pathspec", "platformdirs", "psutil",
    "orchestrator.cli", "orchestrator.submit_command", "orchestrator.backends.sagemaker", "orchestrator.aws.rules",
    "orchestrator.aws.request", "orchestrator.aws.syncing", "orchestrator.rehearsal.control",
)  # fmt: skip


class Forks:
    """The same, for a test."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.slow.forking"],
            cwd=root,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *commands: list[str], folder: Path, crash_at: str | None = None, timeout: float = 120, env: Any = None
    ) -> list[dict[str, Any]]:
        """Run *commands* at once; a code of -9 is a process that was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = [{"words": words, "crash_at": crash_at, "env": env or {}} for words in commands]
        self._process.stdin.write(json.dumps({"commands": asked, "folder": str(folder), "timeout": timeout}) + "\n")
        self._process.stdin.flush()
        answers: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return answers

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    for name in LOADED:
        importlib.import_module(name)
    _load_models()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryDirectory() as outputs:
            # All are there before the first begins: who is started after another has ended asks for another run.
            gate, opener = os.pipe()
            pids = [
                _forked(one, asked["folder"], f"{outputs}/{n}", gate, opener) for n, one in enumerate(asked["commands"])
            ]
            os.close(gate)
            os.close(opener)
            codes = _codes(pids, asked["timeout"])
            told = [
                {"code": code, **{name: Path(f"{outputs}/{n}.{name}").read_text("utf-8", "replace") for name in ("out", "err")}}
                for n, code in enumerate(codes)
            ]  # fmt: skip
        answers.write(json.dumps(told) + "\n")
        answers.flush()


def _load_models() -> None:
    """Read botocore's service models once, for all that is forked from here."""
    import botocore.loaders

    from orchestrator.aws import model

    loader = botocore.loaders.create_loader()
    for service in ("sagemaker", "s3", "sts", "logs"):
        loader.load_service_model(service, "service-2")
    loader.load_data("endpoints")
    botocore.loaders.create_loader = lambda *_, **__: loader
    model.violations("CreateTrainingJob", {})


def _forked(asked: dict[str, Any], folder: str, output: str, gate: int, opener: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.close(opener)
        os.read(gate, 1)  # until the last one has been forked and the parent has closed its end
        os.close(gate)
        os.setsid()
        os.chdir(folder)
        os.environ.update(asked["env"])
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from orchestrator import crashpoints
        from orchestrator.cli import main as orchestrate

        crashpoints._CRASH_AT = asked["crash_at"]
        crashpoints._RECORD = asked["env"].get("ORCHESTRATE_CRASH_RECORD")
        try:
            orchestrate(asked["words"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _codes(pids: list[int], timeout: float) -> list[int]:
    deadline, codes = time.monotonic() + timeout, dict[int, int]()
    while len(codes) < len(pids):
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            codes[ended] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.005)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    main()
