"""The standing rehearsal, as commands use it: found where it runs, else started; told of faults; stopped.

Imports nothing heavy: moto is loaded by the server's own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import state
from orchestrator.errors import BadInput, OrchestrateError, StateError
from orchestrator.rehearsal.faults import parse_all

ACCOUNT = "123456789012"
ROLE_NAME = "orchestrate-rehearsal"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/{ROLE_NAME}"
ACCESS_KEY = SECRET_KEY = "rehearsal"  # noqa: S105 - they open nothing
IDLE_SECONDS = 1800
START_SECONDS = 60.0  # a loaded machine's patience; it takes about one
STOP_SECONDS = 30.0
LOOK_SECONDS = 0.5
ALIVE, STARTING, ADDRESS, LOG = "server.lock", "starting.lock", "server.json", "server.log"
# Of the caller's environment, what the server and its jobs never see.
PRIVATE = ("AWS_", "GOOGLE_", "CLOUDSDK_", "SAGEMAKER_", "MOTO_")


@dataclass(frozen=True)
class Standing:
    """A rehearsal that answers at *url*."""

    url: str
    pid: int


def bucket_of(region: str) -> str:
    """The bucket that every rehearsal has in *region*; a bucket has one region."""
    return f"orchestrate-rehearsal-{region}"


def role_arn(region: str) -> str:
    """The role that every rehearsal has, in the partition of *region*."""
    return f"arn:{partition(region)}:iam::{ACCOUNT}:role/{ROLE_NAME}"


def partition(region: str) -> str:
    parts = {"cn-": "aws-cn", "us-gov-": "aws-us-gov", "eusc-": "aws-eusc"}
    return next((name for start, name in parts.items() if region.startswith(start)), "aws")


def environment(url: str, region: str) -> dict[str, str]:
    """What points any AWS client at the rehearsal."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": region,
    }


def find(folder: Path) -> Standing | None:
    """The rehearsal of *folder*, if one runs: its lock tells, not the file that it left."""
    try:
        with (folder / ALIVE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look at once do not see each other
        return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        pass
    try:
        known = json.loads((folder / ADDRESS).read_bytes())
        return Standing(str(known["url"]), int(known["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is just starting


def ensure(
    folder: Path,
    *,
    faults: Sequence[str] = (),
    idle_seconds: float = IDLE_SECONDS,
    grace_seconds: float | None = None,
    level: str | None = None,
    quotas: Mapping[str, int] | None = None,
) -> Standing:
    """The standing rehearsal of *folder*, started where none runs, with *faults* armed on top of those it has.

    One that runs keeps the settings it was started with. Raises BadInput where a fault is none or the extra is not
    installed, StateError where it cannot be started.
    """
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise BadInput("a rehearsal needs moto", hint="pip install 'orchestrate-ml[rehearse]'")
    parse_all(faults)  # before anything is started
    with state.explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder / STARTING):
            standing = find(folder)
            if standing is None:
                options = [f"--idle-seconds={idle_seconds}"]
                options += [] if grace_seconds is None else [f"--grace-seconds={grace_seconds}"]
                options += [] if level is None else [f"--level={level}"]
                options += [f"--quota={name}={limit}" for name, limit in (quotas or {}).items()]
                standing = _start(folder, options)
    if faults:
        call(standing.url, "POST", "faults", list(faults))
    return standing


def hold(folder: Path) -> int | None:
    """Be the server of *folder* for as long as this process lives; None where another is."""
    deadline = time.monotonic() + LOOK_SECONDS
    while True:  # whoever looks whether there is a server holds the lock for a moment
        lock = state.hold_lock(folder / ALIVE)
        if lock is not None or time.monotonic() > deadline:
            return lock
        time.sleep(0.01)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold *path* against other commands: of two that start a server at once, the second finds the first one's."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(folder: Path, options: list[str]) -> Standing:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    (folder / ADDRESS).unlink(missing_ok=True)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.rehearsal", "--folder", str(folder.absolute()), *options],
            cwd=Path(__file__).resolve().parents[2],  # so that a checkout that is not installed works too
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        standing = find(folder)
        if standing is not None:
            process.returncode = 0  # it outlives this process on purpose: no ResourceWarning is due
            return standing
        time.sleep(0.02)
    process.kill()
    process.wait()
    lines = (folder / LOG).read_text("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else "no answer"
    raise StateError(f"the rehearsal could not be started: {said}", hint=f"see {folder / LOG}")


def call(url: str, method: str, what: str, value: object = None) -> Any:
    """Our own call *what* of the rehearsal at *url*. Raises its complaint, or StateError where nobody answers."""
    body = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(f"{url}/rehearsal/{what}", data=body, method=method)  # noqa: S310 - http, loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on the loopback
    try:
        with opener.open(request, timeout=START_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            told = json.loads(error.read() or b"{}")
        raise BadInput(told.get("what", f"the rehearsal refused {what}"), hint=told.get("hint")) from error
    except OSError as error:
        raise StateError(
            f"the rehearsal at {url} does not answer: {error}", hint="orchestrate rehearse-cloud"
        ) from error


def provision(url: str, *, role: str, bucket: str, region: str) -> str:
    """Make *role* and *bucket* be there, as they are in the user's own account, and answer where to call.

    That is *url* for the rehearsal's own account, and below it for another: the role's ARN tells whose part it plays.
    """
    told = call(url, "POST", "provide", {"role": role, "bucket": bucket, "region": region})
    return str(told["endpoint"])


def status(folder: Path) -> dict[str, Any] | None:
    """Jobs, calls and faults of the rehearsal of *folder*; None where none runs."""
    standing = find(folder)
    return None if standing is None else dict(call(standing.url, "GET", "state"))


def stop(folder: Path) -> bool:
    """End the rehearsal of *folder* and its jobs; False where none ran. Raises StateError where it does not end."""
    standing = find(folder)
    if standing is None:
        return False
    with contextlib.suppress(OrchestrateError):
        call(standing.url, "POST", "stop")
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if find(folder) is None:
            return True
        time.sleep(0.02)
    raise StateError(f"the rehearsal (process {standing.pid}) does not end", hint=f"kill -9 {standing.pid}")
