"""Start a run's script the same way everywhere: on a laptop, on SageMaker, in a rehearsal.

One file, standard library only, Python 3.9 and up, copied beside the package and started as `python bootstrap.py`. It reads
what to start from job.json, unpacks and verifies the package, installs what its requirements.txt misses, starts the script in
the environment that SageMaker's and Vertex AI's own tools would give it, passes signals on, and leaves the exit code and, on
failure, the script's last error lines. It keeps to docs/design.md, "One contract, three places".

    $ORCHESTRATE_ROOT           the folder that holds input/, code/, model/, checkpoints/, output/; else /opt/ml on SageMaker
    $ORCHESTRATE_JOB            the job.json to use; else ROOT/input/data/job/job.json
    $ORCHESTRATE_LIFELINE_FD    read end of a pipe: its end counts as SIGTERM, a byte `k` means "kill now"

Exit code: the script's own; 128 + n if signal n ended it; 2 if it was never started, and why is in ROOT/output/failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import json
import math
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import venv
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Sequence

SAGEMAKER_ROOT = Path("/opt/ml")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
OUR_VARIABLES = ("SM_", "AIP_", "ORCHESTRATE_")
OUR_CHANNELS = ("code", "job")  # they carry the package and job.json, not the script's data

MOST_MEMBERS, MOST_RATIO, MOST_BYTES_ANYWAY = 100_000, 200, 1024**3  # of a package; one that unpacks to more is a bomb
FAILURE_CHARACTERS = 1024  # SageMaker shows the first 1024 of the failure file
TAIL_BYTES = 64 * 1024  # of stderr: room for each rank's traceback before torchrun's own 3 KiB
STRAGGLER_SECONDS = 5.0  # from SIGTERM to SIGKILL, for what a script left running

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

Environment = Dict[bytes, bytes]  # bytes, so that no locale changes a value


class Refused(Exception):
    """The script cannot be started: why, in one line; further lines are for the failure file only."""


class Stopped(Exception):
    """A signal asked for the end before the script was started."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} before the script was started")
        self.signum = signum


@dataclass(frozen=True)
class Job:
    """job.json, checked."""

    run_id: str
    script: str
    arguments: list[str]
    hyperparameters: dict[str, str]
    environment: dict[str, str]
    package_digest: str
    processes: int
    grace_seconds: float

    @property
    def script_arguments(self) -> list[str]:
        """`--NAME VALUE` for each hyperparameter in the file's order, then the arguments, which therefore win.

        `--NAME=VALUE` where the value begins with '-': argparse would take it for an option otherwise.
        """
        words: list[str] = []
        for name, value in self.hyperparameters.items():
            words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
        return words + self.arguments


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (128 + n for signal n), the end of its stderr, what stopped it (0: nothing)."""

    code: int
    stderr: str
    stopped_by: int


def main() -> int:
    """Do the work in a child process, so that whatever ends this one ends all that it started.

    This process, whose id others know, only passes signals on and waits. Its child, the keeper, is in a session of its own and
    starts the script in yet another: kill -9 of this process or of its group reaches neither, but ends the guard pipe, and
    then the keeper kills all that is below it. Being their subreaper, it finds even those that left the script's group, as
    torchrun's workers do. If the keeper is killed, this process does the same. As PID 1 it reaps. (Without Linux's subreaper
    only the script's group is reached.)
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard, guarded = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    keeper = os.fork()
    if keeper == 0:
        os.close(guarded)
        os.setsid()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        return keep(guard)

    def pass_on(signum: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signum)

    for signum in STOP_SIGNALS:
        signal.signal(signum, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    dead, status = os.wait()
    while dead != keeper:
        dead, status = os.wait()
    end_all(keeper, patience_seconds=0)
    return exit_code(status)


def keep(guard: int) -> int:
    """The keeper's life: find the run, start its script, and say in one line why if that cannot be."""
    root = None
    try:
        orders = Orders(guard, os.environ.get("ORCHESTRATE_LIFELINE_FD", ""))
        root, in_container = find_root(os.environ)
        with contextlib.suppress(FileNotFoundError):
            (root / "output/failure").unlink()
        return run(root, in_container, orders)
    except Stopped as stop:
        problem, code = str(stop), 128 + stop.signum
    except Refused as refusal:
        problem, code = str(refusal), 2
    except OSError as error:
        problem, code = f"cannot prepare the run: {error}", 2
    say("error: " + problem.split("\n")[0])
    if root:
        write_failure(root, problem)
    return code


def run(root: Path, in_container: bool, orders: Orders) -> int:
    """Prepare, start and await the script; returns the exit code.

    Raises Refused if it cannot be started, Stopped if the end was asked for before, OSError (disk full, read-only).
    """
    job = read_job(Path(os.environ.get("ORCHESTRATE_JOB") or root / "input/data/job/job.json"))
    resources, channels = read_resources(root), read_object(root / "input/config/inputdataconfig.json")
    for folder in ("model", "checkpoints", "output/data"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    unpack_verified(root, job)
    environment = script_environment(root, job, resources, channels)
    python = python_with_requirements(root, in_container, environment, orders)
    command = script_command(python, job, resources, environment)
    machine = b"(%b CPUs, %b GPUs)" % (environment[b"SM_NUM_CPUS"], environment[b"SM_NUM_GPUS"])
    say(f"starting {job.script}: {shlex.join(['python', *command[1:]])} {machine.decode()}")
    outcome = supervise(command, orders, root / "code", environment, grace_seconds=job.grace_seconds)
    if "torch.distributed.run" in command:
        outcome = without_torchrun(outcome)
    if outcome.code:
        write_failure(root, failure_text(job.script, outcome))
    return outcome.code


def find_root(environ: Mapping[str, str]) -> tuple[Path, bool]:
    """The root folder, and whether its Python is a container's, there for this run only. Raises Refused where there is none."""
    named = environ.get("ORCHESTRATE_ROOT")
    if named:
        root = Path(named).absolute()
        if not root.is_dir():
            raise Refused(f"$ORCHESTRATE_ROOT is not a folder: {named!r}")
        return root, False
    if (SAGEMAKER_ROOT / "input/config/resourceconfig.json").is_file():
        return SAGEMAKER_ROOT, True
    for name in ("CLUSTER_SPEC", "AIP_MODEL_DIR"):
        if name in environ:
            raise Refused(f"this is Vertex AI (${name} is set), which bootstrap.py does not support yet")
    raise Refused(f"no run to start: $ORCHESTRATE_ROOT is not set, and {SAGEMAKER_ROOT} is not SageMaker's")


def is_text(value: object) -> bool:
    """Whether an argument list can carry *value*: a string without NUL that has bytes."""
    try:
        return isinstance(value, str) and "\0" not in value and bool(encoded(value) or True)
    except UnicodeEncodeError:
        return False


def is_inside(path: str) -> bool:
    return is_text(path) and all(part not in ("", ".", "..") for part in path.split("/"))


def are_texts(value: Any, name_pattern: str) -> bool:
    return isinstance(value, dict) and all(
        is_text(n) and is_text(v) and re.fullmatch(name_pattern, n) for n, v in value.items()
    )


def is_number(value: Any, low: int, high: int, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


JOB_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "version": ("1", lambda value: is_number(value, 1, 1, int)),
    "run_id": ("a text", lambda value: is_text(value) and value != ""),
    "script": ("a path inside the package", lambda value: isinstance(value, str) and is_inside(value)),
    "arguments": ("a list of texts", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "hyperparameters": ("names with texts", lambda value: are_texts(value, r"[^-=\s][^=\s]*")),
    "environment": (
        "variables with texts, and none of " + ", ".join(f"{prefix}*" for prefix in OUR_VARIABLES),
        lambda value: are_texts(value, rf"(?!{'|'.join(OUR_VARIABLES)})[A-Za-z_][A-Za-z0-9_]*"),
    ),
    "package_digest": ("64 hex digits", lambda value: is_text(value) and bool(re.fullmatch("[0-9a-f]{64}", value))),
    "processes": ("a whole number from 1 to 1024", lambda value: is_number(value, 1, 1024, int)),
    "grace_seconds": ("seconds, at most a day", lambda value: is_number(value, 0, 86_400, int, float)),
}


def read_job(path: Path) -> Job:
    """job.json, checked. Raises Refused with the first field that is unknown, missing or wrong."""
    fields = read_object(path)
    for name in [*fields, *JOB_FIELDS]:
        if name not in JOB_FIELDS:
            raise Refused(f"{path}: unknown field {name!r}")
        if name not in fields:
            raise Refused(f"{path}: {name!r} is missing")
        expected, holds = JOB_FIELDS[name]
        if not holds(fields[name]):
            raise Refused(f"{path}: {name!r} must be {expected}, not {json.dumps(fields[name])[:200]}")
    return Job(**{name: value for name, value in fields.items() if name != "version"})


def read_resources(root: Path) -> dict[str, Any]:
    """resourceconfig.json: hosts, current_host, network_interface_name. Raises Refused if this host is not among the hosts."""
    path = root / "input/config/resourceconfig.json"
    resources = read_object(path)
    hosts = resources.get("hosts")
    if not isinstance(hosts, list) or not all(map(is_text, hosts)) or resources.get("current_host") not in hosts:
        raise Refused(f"{path}: 'current_host' must be one of 'hosts'")
    return resources


def read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Refused(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"{path} must hold a JSON object")
    return value


def unpack_verified(root: Path, job: Job) -> None:
    """Unpack the package into ROOT/code, anew on every start. Raises Refused unless its manifest has the job's digest."""
    code, beside = root / "code", root / "code.tmp"
    for old in filter(os.path.lexists, (beside, code)):
        shutil.rmtree(old)
    try:
        digest = unpack(root / "input/data/code/package.tar.gz", beside)
        if digest != job.package_digest:
            raise Refused(
                f"the package is not the one that was submitted: its digest is {digest}, not {job.package_digest}"
            )
        if not (beside / job.script).is_file():
            raise Refused(f"the package does not hold the script {job.script!r}")
    except Refused:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    beside.rename(code)


def unpack(archive: Path, folder: Path) -> str:
    """Unpack *archive* (.tar.gz) into the new *folder*; returns the SHA-256 of its manifest, in hex.

    Takes files of mode 644 or 755 and folders, each once, by a relative name without '..': nothing can land outside *folder*,
    as no link is ever made in it. Raises Refused for all else.
    """
    folder.mkdir()
    lines: dict[bytes, str] = {}
    try:
        left = max(MOST_BYTES_ANYWAY, MOST_RATIO * archive.stat().st_size)
        # As a stream, in one pass: no offset in a hostile archive can make the reader go round in circles.
        with tarfile.open(archive, "r|gz", encoding="utf-8", errors="surrogateescape") as tar:
            for count, member in enumerate(tar, 1):
                left -= member.size
                if left < 0 or count > MOST_MEMBERS:
                    raise Refused(
                        f"the package unpacks to more than {MOST_MEMBERS} files or {MOST_RATIO} times its size"
                    )
                unpack_member(tar, member, folder, lines)
    except FileNotFoundError as error:
        raise Refused(f"{archive} is missing") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise Refused(f"{archive} is not a whole .tar.gz: {error}") from error
    digest = hashlib.sha256(b"orchestrate package 1\n")
    for path in sorted(lines):
        digest.update(f"{lines[path]} {len(path)}:".encode() + path + b"\n")
    return digest.hexdigest()


def unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, lines: dict[bytes, str]) -> None:
    """Make one file or folder, and add `<mode> <SHA-256>` of a file to *lines*."""
    if not is_inside(member.name):
        raise Refused(f"the package's {member.name!r} is not a name inside it")
    path = encoded(member.name)
    target = os.path.join(os.fsencode(folder), path)
    try:
        if member.isdir():
            os.makedirs(target)
            return
        if (
            member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)
            or member.issparse()
            or member.mode not in (0o644, 0o755)
        ):
            raise Refused(f"the package's {member.name!r} is neither a folder nor a plain file of mode 644 or 755")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        source, digest = tar.extractfile(member), hashlib.sha256()
        assert source is not None, "a regular file has contents"
        with open(target, "xb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
            os.fchmod(file.fileno(), member.mode)
    except (FileExistsError, NotADirectoryError) as error:
        raise Refused(f"the package's {member.name!r} is in it twice, or is a file and a folder") from error
    lines[path] = f"{member.mode:o} {digest.hexdigest()}"


def script_environment(root: Path, job: Job, resources: dict[str, Any], input_data: dict[str, Any]) -> Environment:
    """What this process has, then the job's variables, then the uniform ones.

    Formatted as sagemaker-training does: names in upper case, JSON sorted and without spaces. In SM_HPS a value that reads as
    JSON is that JSON, digit for digit, and any other a string.
    """
    channels = sorted(name for name in input_data if name not in OUR_CHANNELS)
    folders = {
        "SM_MODEL_DIR": "model",
        "SM_OUTPUT_DIR": "output",
        "SM_OUTPUT_DATA_DIR": "output/data",
        "SM_INPUT_DIR": "input",
        "SM_INPUT_CONFIG_DIR": "input/config",
        # Vertex AI's end with a slash, and scripts append names to them.
        "AIP_MODEL_DIR": "model/",
        "AIP_CHECKPOINT_DIR": "checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": "output/data/tensorboard/",
        **{variable("SM_CHANNEL_", name): f"input/data/{name}" for name in channels},
    }
    texts = {
        "SM_CHANNELS": compact(channels),
        "SM_NUM_CPUS": str(cpu_count()),
        "SM_HOSTS": compact(resources["hosts"]),
        "SM_CURRENT_HOST": resources["current_host"],
        "SM_HPS": "{%s}" % ",".join(f"{compact(n)}:{as_json(v)}" for n, v in sorted(job.hyperparameters.items())),
        "SM_USER_ARGS": compact(job.script_arguments),
        "SM_USER_ENTRY_POINT": job.script,
        "SM_NETWORK_INTERFACE_NAME": str(resources.get("network_interface_name", "")),
        "SM_RESOURCE_CONFIG": compact(resources),
        "SM_INPUT_DATA_CONFIG": compact(input_data),
        "ORCHESTRATE_RUN_ID": job.run_id,
        **{variable("SM_HP_", name): value for name, value in job.hyperparameters.items()},
    }
    # Another run's values, and what would mislead another bootstrap.py below this one, are not passed on.
    foreign = (b"SM_CHANNEL_", b"SM_HP_", b"ORCHESTRATE_ROOT", b"ORCHESTRATE_JOB", b"ORCHESTRATE_LIFELINE_FD")
    environment = {name: value for name, value in os.environb.items() if not name.startswith(foreign)}
    environment.update({encoded(name): encoded(value) for name, value in {**job.environment, **texts}.items()})
    environment.update(
        {encoded(name): os.path.join(os.fsencode(root), encoded(path)) for name, path in folders.items()}
    )
    environment[b"SM_NUM_GPUS"] = b"%d" % gpu_count(environment.get(b"CUDA_VISIBLE_DEVICES"))
    return environment


def variable(prefix: str, name: str) -> str:
    return prefix + re.sub("[-.]", "_", name).upper()


def compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_json(text: str) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text)
        return text
    return compact(text)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def cpu_count() -> int:
    """CPUs this process may use: the least of affinity and the control group's quota (version 2, then 1), at least 1."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # no such file; "max" CPUs
            quota, period = " ".join((CGROUP / name).read_text() for name in files).split()
            return max(1, min(count, math.ceil(int(quota) / int(period)))) if int(quota) > 0 else count
    return count


def gpu_count(visible: bytes | None) -> int:
    """This machine's NVIDIA GPUs, at most as many as $CUDA_VISIBLE_DEVICES (*visible*) names."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
        count = sum(line.startswith(b"GPU ") for line in answer.stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired):
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return count if visible is None else min(count, len(re.findall(rb"[^,\s]+", visible)))


def python_with_requirements(root: Path, in_container: bool, environment: Environment, orders: Orders) -> str:
    """A Python that has what the package's requirements.txt asks for.

    This one if nothing is missing. Else the packages go into this one's environment in a container, and elsewhere into
    ROOT/venv, which sees the packages of this one and adds to them: a run never changes a user's environment.

    Raises Refused with pip's last lines.
    """
    requirements, report = root / "code/requirements.txt", root / "requirements.json"
    if not requirements.is_file():
        return sys.executable
    environment = {
        name: value for name, value in environment.items() if name not in (b"PIP_TARGET", b"PIP_PREFIX", b"PIP_ROOT")
    }
    environment.update(
        {b"PIP_USER": b"0", b"PIP_DISABLE_PIP_VERSION_CHECK": b"1", b"PIP_NO_INPUT": b"1", b"PIP_NO_COLOR": b"1"}
    )
    pip = ["-m", "pip", "install", "-r", str(requirements)]
    dry_run = [sys.executable, *pip, "--dry-run", "--no-index", "--quiet", "--report", str(report)]
    report.unlink(missing_ok=True)
    if supervise(dry_run, orders, root / "code", environment, quiet=True).code == 0 and not read_object(report).get(
        "install"
    ):
        return sys.executable
    python = sys.executable if in_container else make_overlay(root / "venv", environment)
    say(f"installing requirements.txt with {python}")
    outcome = supervise([python, *pip], orders, root / "code", environment, stdout=2)
    if outcome.stopped_by:
        raise Stopped(outcome.stopped_by)
    if outcome.code:
        raise Refused(f"cannot install requirements.txt (pip ended with {outcome.code})\n{last_error(outcome.stderr)}")
    return python


def make_overlay(folder: Path) -> str:
    """A new virtual environment that also sees this one's packages; returns its Python. Raises Refused if it has no pip."""
    # The parent's pip is among the packages that it sees, so that ensurepip's seconds are only spent where there is none.
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=not importlib.util.find_spec("pip")).create(folder)
    except subprocess.CalledProcessError as error:
        raise Refused(f"cannot install requirements.txt: {sys.executable} has neither pip nor ensurepip") from error
    seen = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    # addsitedir, unlike a bare path, also follows the .pth files there: editable installs.
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in seen)
    next(folder.glob("lib/python*/site-packages")).joinpath("parent.pth").write_text(lines, encoding="utf-8")
    return str(folder / "bin/python")


def script_command(python: str, job: Job, resources: dict[str, Any], environment: Environment) -> list[str]:
    """`python -u SCRIPT …`, or torchrun's module before it where there is more than one process or host.

    Sets in *environment* what torchrun needs: OMP_NUM_THREADS, so that the processes share the CPUs, and time to stop.
    """
    script = [f"./{job.script}" if job.script.startswith("-") else job.script, *job.script_arguments]
    hosts, processes = resources["hosts"], job.processes
    if processes == len(hosts) == 1:
        return [python, "-u", *script]
    # One host: no name is looked up, which can take minutes where names do not resolve.
    address, port = ("127.0.0.1", free_port()) if len(hosts) == 1 else (hosts[0], 7777)
    interface = loopback_interface() if len(hosts) == 1 else resources.get("network_interface_name", "")
    environment.setdefault(b"GLOO_SOCKET_IFNAME", encoded(interface))
    environment.setdefault(b"OMP_NUM_THREADS", b"%d" % max(1, int(environment[b"SM_NUM_CPUS"]) // processes))
    # torchrun would kill after 30 s; older than 2.9 it does.
    environment.setdefault(b"TORCH_ELASTIC_SHUTDOWN_TIMEOUT", b"%d" % math.ceil(job.grace_seconds + 1))
    where = [
        f"--nnodes={len(hosts)}",
        f"--node-rank={hosts.index(resources['current_host'])}",
        f"--nproc-per-node={processes}",
    ]
    return [
        python,
        "-u",
        "-m",
        "torch.distributed.run",
        *where,
        f"--master-addr={address}",
        f"--master-port={port}",
        *script,
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Orders:
    """What others want of the run, read from signals, the guard's pipe and the lifeline."""

    def __init__(self, guard: int, lifeline: str) -> None:
        self.signals, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(signum, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self.ends = {guard: signal.SIGKILL}  # what the end of each pipe means
        if lifeline:
            try:
                os.set_inheritable(int(lifeline), False)
            except (ValueError, OverflowError, OSError) as error:
                raise Refused(f"$ORCHESTRATE_LIFELINE_FD is not an open file descriptor: {lifeline!r}") from error
            self.ends[int(lifeline)] = signal.SIGTERM

    def wait(self, seconds: float | None) -> int:
        """The signal that was asked for, SIGKILL before others; 0 after *seconds*, or as soon as a child has ended."""
        wanted = [0]
        for source in select.select([self.signals, *self.ends], [], [], seconds)[0]:
            data = os.read(source, 64)
            if source == self.signals:
                wanted += [signum for signum in data if signum in STOP_SIGNALS]
            elif not data:
                wanted.append(self.ends.pop(source))
            elif b"k" in data:
                wanted.append(signal.SIGKILL)
        return signal.SIGKILL if signal.SIGKILL in wanted else max(wanted)


def supervise(
    command: list[str],
    orders: Orders,
    folder: Path,
    environment: Environment,
    *,
    grace_seconds: float = 10.0,
    stdout: int | None = None,
    quiet: bool = False,
) -> Outcome:
    """Run *command* in *folder* to its end and to the end of all that it started; stdout is its own, stderr is passed on.

    The first order to stop is passed on to the command itself, which has *grace_seconds* from then on; SIGKILL goes to all.
    Raises Stopped if the order came before the start.
    """
    stopped_by = orders.wait(0)
    if stopped_by:
        raise Stopped(stopped_by)
    process = subprocess.Popen(
        [encoded(word) for word in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout if not quiet else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=functools.partial(die_with, os.getpid()),
    )
    assert process.stderr is not None
    tail = bytearray()
    reader = threading.Thread(target=pass_on, args=(process.stderr.fileno(), tail, quiet), daemon=True)
    reader.start()
    status, deadline = None, None
    while status is None:
        order = orders.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if order == signal.SIGKILL or (deadline is not None and time.monotonic() >= deadline):
            stopped_by, deadline = signal.SIGKILL, time.monotonic() + 1
            send_all(signal.SIGKILL, process.pid)
        elif order and not stopped_by:
            stopped_by, deadline = order, time.monotonic() + grace_seconds
            os.kill(process.pid, order)
        status = reap(process.pid)
    process.returncode = exit_code(status)
    end_all(...)
    reader.join(STRAGGLER_SECONDS)
    return Outcome(process.returncode, tail.decode(), stopped_by)
