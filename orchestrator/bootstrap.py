"""Start a run's script the same way everywhere: on a laptop, on SageMaker, in a rehearsal.

One file, standard library only, Python 3.9 and up, copied beside the package and started there. It reads what to start
from job.json, unpacks and verifies the package, installs what its requirements.txt misses, starts the script in the
environment that SageMaker's and Vertex AI's own tools would give it, passes signals and output on, and leaves the exit
code and, on failure, the script's last error lines: docs/design.md, "One contract, three places".

    $ORCHESTRATE_ROOT           the folder of input/, code/, model/, checkpoints/, output/; else /opt/ml on SageMaker
    $ORCHESTRATE_JOB            the job.json to use; else ROOT/input/data/job/job.json
    $ORCHESTRATE_LIFELINE_FD    read end of a pipe: its end counts as SIGTERM, a byte `k` means "kill now"
    exit code                   the script's; 128 + n if signal n ended it; 2 if not started (see ROOT/output/failure)
    ROOT/output/stopped         the signal that was passed on to stop the script, however that then ended; else no file
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
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
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Tuple

SAGEMAKER_ROOT = Path("/opt/ml")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
MOST_MEMBERS, MOST_RATIO, MOST_BYTES_ANYWAY = 100_000, 200, 1024**3  # a package that unpacks to more is a bomb
FAILURE_CHARACTERS = 1024  # SageMaker shows the first 1024 of the failure file
TAIL_BYTES = 64 * 1024  # of stderr: room for each rank's traceback before what torchrun adds
STRAGGLER_SECONDS = 5.0  # from SIGTERM to SIGKILL, for pip and for what a script left running

Job = Dict[str, Any]  # job.json, checked against JOB_FIELDS
Outcome = NamedTuple("Outcome", [("code", int), ("stderr", str), ("stopped_by", int)])  # of a command; 0: nothing
compact = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode  # as sagemaker-training writes JSON


class NotStarted(Exception):
    """Why the script was not started, in one line; further lines are for the failure file only."""


def main() -> int:
    """Do the work in a child process, so that whatever ends this one ends all that it started.

    This process, whose id others know, passes signals on and waits. Its child, the keeper, is in a session of its own
    and starts the script in yet another: kill -9 of this process, or of its group, reaches neither but ends the guard
    pipe, and then the keeper kills all below it, even what left the script's group as torchrun's workers do: it is their
    subreaper (on Linux; elsewhere only the group is found). If the keeper is killed, this process does the same.
    """
    while os.open(os.devnull, os.O_RDWR) < 2:  # else a pipe of ours would stand where a closed stdout or stderr was
        pass
    guard, guarded = os.pipe()
    lifelines = [int(number) for number in [os.environ.get("ORCHESTRATE_LIFELINE_FD")] if number]
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    keeper = os.fork()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if keeper == 0:
        os.close(guarded)
        os.setsid()
        return keep(Orders({guard: signal.SIGKILL, **dict.fromkeys(lifelines, signal.SIGTERM)}))
    orders = Orders({})
    while (code := reap(keeper)) is None:
        os.kill(keeper, orders.wait())
    end_all(keeper, 0, orders)
    return code


def keep(orders: Orders) -> int:
    """The keeper's life, from finding the run to the exit code; a failure is told in one line and in ROOT/output."""
    root = None
    try:
        root, in_container = find_root()
        for folder in ("model", "checkpoints", "output/data"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in ("failure", "stopped"):
            (root / "output" / name).unlink(missing_ok=True)
        code, problem, order = run(root, in_container, orders)
    except (NotStarted, OSError, subprocess.SubprocessError) as error:
        code, problem, order = 128 + orders.latest if orders.latest else 2, str(error), orders.latest
        say("error: " + problem.split("\n")[0])
    for name, text in (("failure", problem), ("stopped", signal.Signals(order).name if order else "")):
        with contextlib.suppress(OSError):  # a full disk: stderr has it
            if root and text:
                beside = root / f"output/{name}.tmp"
                beside.write_text(printable(text)[:FAILURE_CHARACTERS], encoding="utf-8")
                beside.replace(root / "output" / name)
    return code


def run(root: Path, in_container: bool, orders: Orders) -> tuple[int, str, int]:
    """Start and await the script; returns exit code, last error ("" for code 0), stop signal. Raises NotStarted, OSError."""
    job = read_fields(Path(os.environ.get("ORCHESTRATE_JOB") or root / "input/data/job/job.json"), JOB_FIELDS)
    resources = read_fields(root / "input/config/resourceconfig.json", {"hosts": TEXTS, "current_host": TEXT})
    channels = read_fields(root / "input/config/inputdataconfig.json", {})
    unpack_verified(root, job)
    environment = script_environment(root, job, resources, channels)
    python = python_with_requirements(root, in_container, environment, orders)
    environment["PATH"] = f"{os.path.dirname(python)}:{environment.get('PATH', '/usr/bin:/bin')}"
    command = script_command(python, job, resources, environment)
    machine = f"({environment['SM_NUM_CPUS']} CPUs, {environment['SM_NUM_GPUS']} GPUs)"
    say(f"starting {job['script']}: {shlex.join(['python', *command[1:]])} {machine}")
    outcome = supervise(command, orders, root / "code", environment, job["grace_seconds"])
    if command[2:4] == ["-m", "torch.distributed.run"]:
        outcome = without_torchrun(outcome, resources["hosts"].index(resources["current_host"]) * job["processes"])
    return outcome.code, failure_text(job["script"], outcome) if outcome.code else "", outcome.stopped_by


def find_root() -> tuple[Path, bool]:
    """The root folder, and whether its Python is a container's, there for this run only. Raises NotStarted."""
    named = os.environ.get("ORCHESTRATE_ROOT", "")
    if os.path.isdir(named):
        return Path(named).absolute(), False
    if not named and (SAGEMAKER_ROOT / "input/config/resourceconfig.json").is_file():
        return SAGEMAKER_ROOT, True
    if "CLUSTER_SPEC" in os.environ or "AIP_MODEL_DIR" in os.environ:
        raise NotStarted("this is Vertex AI ($CLUSTER_SPEC or $AIP_MODEL_DIR is set), which is not supported yet")
    raise NotStarted(f"no run here: $ORCHESTRATE_ROOT is {named!r}, not a folder, and {SAGEMAKER_ROOT} not SageMaker's")


def is_text(value: Any, pattern: str = "(?s).*") -> bool:
    """Whether *value* is a string that an argument list can carry (no NUL, all of it has bytes) and matches *pattern*."""
    carried = isinstance(value, str) and not re.search("[\0\ud800-\udc7f\udd00-\udfff]", value)
    return carried and bool(re.fullmatch(pattern, value))


def are_texts(value: Any, name_pattern: str) -> bool:
    return isinstance(value, dict) and all(is_text(name, name_pattern) and is_text(value[name]) for name in value)


INSIDE = r"(?!/)((^|/)(?!\.\.?(/|\Z))[^/\0]+)+"  # a relative path with neither '', '.' nor '..' in it
NOT_OURS = "(?!SM_|AIP_|ORCHESTRATE_)[A-Za-z_][A-Za-z0-9_]*"
Field = Tuple[str, Callable[[Any], bool]]  # what a value must be, in words and as a test
TEXT: Field = ("a text", lambda it: is_text(it, "(?s).+"))
TEXTS: Field = ("a list of texts", lambda it: isinstance(it, list) and all(map(is_text, it)))
JOB_FIELDS: dict[str, Field] = {
    "version": ("1", lambda it: type(it) is int and it == 1),
    "run_id": TEXT,
    "script": ("a path inside the package", lambda it: is_text(it, INSIDE)),
    "arguments": TEXTS,
    "hyperparameters": ("texts by name", lambda it: are_texts(it, r"[^-=\s][^=\s]*")),
    "environment": ("texts by name, not SM_*, AIP_* or ORCHESTRATE_*", lambda it: are_texts(it, NOT_OURS)),
    "package_digest": ("64 hex digits", lambda it: is_text(it, "[0-9a-f]{64}")),
    "processes": ("a whole number from 1 to 1024", lambda it: type(it) is int and 1 <= it <= 1024),
    "grace_seconds": ("seconds, up to a day", lambda it: type(it) in (int, float) and 0 <= it <= 86_400),
}


def read_fields(path: Path, known: dict[str, Field]) -> dict[str, Any]:
    """The JSON object in *path*. Raises NotStarted with a known field that is missing or wrong."""
    try:
        fields: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError, RecursionError) as error:
        raise NotStarted(f"{path} does not hold a JSON object: {error}") from error
    for name, (expected, holds) in known.items():
        if not holds(fields.get(name)):
            given = json.dumps(fields[name])[:200] if name in fields else "missing"
            raise NotStarted(f"{path}: {name!r} must be {expected}, and is {given}")
    return fields


def unpack_verified(root: Path, job: Job) -> None:
    """Unpack the package into ROOT/code, anew on every start. Raises NotStarted unless it has the job's digest."""
    code, beside = root / "code", root / "code.tmp"
    for old in filter(os.path.lexists, (beside, code)):
        shutil.rmtree(old)
    if (digest := unpack(root / "input/data/code/package.tar.gz", beside)) != job["package_digest"]:
        raise NotStarted(f"the package is not the one submitted: its digest is {digest}, not {job['package_digest']}")
    beside.rename(code)


def unpack(archive: Path, folder: Path) -> str:
    """Unpack *archive* (.tar.gz) into the new *folder*; returns the SHA-256 of its manifest. Raises NotStarted.

    Files of mode 644 or 755 and folders, each once, by names inside it. No link is ever made: nothing lands elsewhere.
    """
    folder.mkdir()
    lines: dict[bytes, bytes] = {}
    try:
        left = max(MOST_BYTES_ANYWAY, MOST_RATIO * archive.stat().st_size)
        # As a stream, in one pass: no offset in a hostile archive can make the reader go round in circles.
        with tarfile.open(archive, "r|gz", encoding="utf-8", errors="surrogateescape") as tar:
            for count, member in enumerate(tar, 1):
                left -= member.size
                if left < 0 or count > MOST_MEMBERS:
                    raise NotStarted(f"the package has over {MOST_MEMBERS} files, or is {MOST_RATIO} times its archive")
                unpack_member(tar, member, folder, lines)
    except (tarfile.TarError, EOFError, AttributeError, LookupError, TypeError, ValueError) as error:  # of tarfile
        raise NotStarted(f"{archive} is not a whole .tar.gz: {error}") from error
    manifest = [b"%b %d:%b\n" % (lines[path], len(path), path) for path in sorted(lines)]
    return hashlib.sha256(b"".join([b"orchestrate package 1\n", *manifest])).hexdigest()


def unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, lines: dict[bytes, bytes]) -> None:
    """Make one file or folder, and put `<mode> <SHA-256>` of a file into *lines* under its path."""
    if not is_text(member.name, INSIDE):
        raise NotStarted(f"the package's {member.name!r} is not a name inside it")
    target = os.path.join(folder, member.name)
    try:
        if member.isdir():
            os.makedirs(target)
            return
        source = tar.extractfile(member) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
        if source is None or member.issparse() or member.mode not in (0o644, 0o755):
            raise NotStarted(f"the package's {member.name!r} is neither a folder nor a file of mode 644 or 755")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        digest = hashlib.sha256()
        with open(target, "xb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                file.write(block)
            os.fchmod(file.fileno(), member.mode)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotStarted(f"the package's {member.name!r} is in it twice, or is a file and a folder") from error
    lines[os.fsencode(member.name)] = f"{member.mode:o} {digest.hexdigest()}".encode()


def script_arguments(job: Job) -> list[str]:
    """`--NAME VALUE`, or `--NAME=VALUE` where argparse would see an option, in order; then the arguments, which win."""
    pairs = [[f"--{n}={v}"] if v.startswith("-") else [f"--{n}", v] for n, v in job["hyperparameters"].items()]
    return [*(word for pair in pairs for word in pair), *job["arguments"]]


def script_environment(root: Path, job: Job, resources: dict[str, Any], channels: dict[str, Any]) -> dict[str, str]:
    """What this process has, then the job's variables, then the uniform ones, formatted as sagemaker-training does."""
    data = sorted(name for name in channels if name not in ("code", "job"))  # which carry the package and job.json
    folders = ("model", "output", "output/data", "input", "input/config")  # SM_MODEL_DIR … SM_INPUT_CONFIG_DIR
    uniform = {
        **{f"SM_{path.replace('/', '_')}_DIR": f"{root}/{path}" for path in folders},
        "SM_CHANNELS": compact(data),
        **{f"SM_CHANNEL_{name}": f"{root}/input/data/{name}" for name in data},
        "SM_NUM_CPUS": str(cpu_count()),
        "SM_NUM_GPUS": str(gpu_count()),
        "SM_HOSTS": compact(resources["hosts"]),
        "SM_CURRENT_HOST": resources["current_host"],
        "SM_NETWORK_INTERFACE_NAME": str(resources.get("network_interface_name", "")),
        "SM_HPS": "{" + ",".join(f"{compact(n)}:{as_json(v)}" for n, v in sorted(job["hyperparameters"].items())) + "}",
        **{f"SM_HP_{name}": value for name, value in job["hyperparameters"].items()},
        "SM_USER_ARGS": compact(script_arguments(job)),
        "SM_USER_ENTRY_POINT": job["script"],
        "SM_RESOURCE_CONFIG": compact(resources),
        "SM_INPUT_DATA_CONFIG": compact(channels),
        "AIP_MODEL_DIR": f"{root}/model/",  # Vertex AI's end with a slash, and scripts append names to them
        "AIP_CHECKPOINT_DIR": f"{root}/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": f"{root}/output/data/tensorboard/",
        "ORCHESTRATE_RUN_ID": job["run_id"],
    }
    # Not passed on: another run's values, and what would mislead another bootstrap.py below this one.
    foreign = ("SM_CHANNEL_", "SM_HP_", "ORCHESTRATE_ROOT", "ORCHESTRATE_JOB", "ORCHESTRATE_LIFELINE_FD")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**inherited, **job["environment"], **{re.sub("[-.]", "_", name).upper(): uniform[name] for name in uniform}}


def as_json(text: str) -> str:
    """*text* if it is JSON, digit for digit, else as a JSON string: what SM_HPS has for a hyperparameter's value."""
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text)
        return text
    return compact(text)


def cpu_count(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: the least of affinity and the control group's quota (version 2 or 1), at least 1."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
            quota, period = map(int, " ".join((cgroups / name).read_text() for name in names).split())
            count = min(count, -(-quota // period)) if quota > 0 else count
    return max(1, count)


def gpu_count() -> int:
    """NVIDIA GPUs of this machine, found without importing torch."""
    program = shutil.which("nvidia-smi")
    answer = subprocess.run([program, "-L"], capture_output=True, timeout=60).stdout if program else b""
    return len(re.findall(rb"(?m)^GPU \d+:", answer))


def python_with_requirements(root: Path, in_container: bool, environment: dict[str, str], orders: Orders) -> str:
    """A Python with what the package's requirements.txt asks for: this one if nothing is missing, or in a container.

    Else ROOT/venv's, which sees this one's packages: a run never changes a user's environment. Raises NotStarted.
    """
    requirements = root / "code/requirements.txt"
    if not requirements.is_file():
        return sys.executable
    python = sys.executable if in_container else make_overlay(root / "venv")
    environment = {n: v for n, v in environment.items() if n not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    say("installing what is missing of requirements.txt")
    outcome = supervise([*install, "-r", str(requirements)], orders, root / "code", environment, STRAGGLER_SECONDS)
    orders.allow_start()
    if outcome.code:
        raise NotStarted(f"cannot install requirements.txt\n{last_error(outcome.stderr)}")
    return python if any(root.glob("venv/lib/*/site-packages/*.dist-info")) else sys.executable


def make_overlay(folder: Path) -> str:
    """Make a virtual environment that also sees this one's packages, among them its pip; returns its Python."""
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=not importlib.util.find_spec("pip")).create(folder)
    seen = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in seen)  # follows their .pth files too
    next(folder.glob("lib/python*/site-packages")).joinpath("parent.pth").write_text(lines, encoding="utf-8")
    return str(folder / "bin/python")


def script_command(python: str, job: Job, resources: dict[str, Any], environment: dict[str, str]) -> list[str]:
    """`python -u SCRIPT …`, under torchrun, and *environment* fit for it, where there are several processes or hosts."""
    script = [re.sub(r"\A-", "./-", job["script"]), *script_arguments(job)]
    hosts, host, processes = resources["hosts"], resources["current_host"], job["processes"]
    if host not in hosts:
        raise NotStarted(f"this host, {host!r}, is not among the hosts {hosts}")
    if processes == len(hosts) == 1:
        return [python, "-u", *script]
    address, port, interface = hosts[0], 7777, str(resources.get("network_interface_name", "eth0"))
    if len(hosts) == 1:
        # This machine's own name is not looked up, which takes minutes where it does not resolve.
        interface = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address, port = probe.getsockname()
    environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, int(environment["SM_NUM_CPUS"]) // processes)))
    # Else torchrun kills the workers 30 s after it passed SIGTERM on. (A torch that does not know it still does.)
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(job["grace_seconds"]) + 1))
    place = [f"--nnodes={len(hosts)}", f"--node-rank={hosts.index(host)}", f"--nproc-per-node={processes}"]
    place += [f"--master-addr={address}", f"--master-port={port}"]
    return [python, "-u", "-m", "torch.distributed.run", *place, *script]


class Orders:
    """What others want of the run: read from signals, and from pipes whose end stands for a signal."""

    def __init__(self, ends: dict[int, signal.Signals]) -> None:
        self.ends, self.latest = ends, 0
        self.signals, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(signum, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def wait(self, seconds: float = 3600.0) -> int:
        """The signal that is asked for, SIGKILL before others; 0 after *seconds*, or when a child may have ended."""
        wanted = [0]
        for source in select.select([self.signals, *self.ends], [], [], seconds)[0]:
            data = os.read(source, 64)
            if source == self.signals:
                wanted += [signum for signum in data if signum in STOP_SIGNALS]
            elif not data:
                wanted.append(self.ends.pop(source))
            elif b"k" in data:
                wanted.append(signal.SIGKILL)
        order = signal.SIGKILL if signal.SIGKILL in wanted else max(wanted)
        self.latest = order or self.latest
        return order

    def allow_start(self) -> None:
        """Raises NotStarted once there was an order."""
        if self.wait(0) or self.latest:
            raise NotStarted(f"stopped by {signal.Signals(self.latest).name} before the start")


def supervise(words: list[str], orders: Orders, place: Path, env: dict[str, str], grace_seconds: float) -> Outcome:
    """Run a command in *place* to its end, and to the end of all that it started; its output is passed on.

    The first order goes to the command alone, which then has *grace_seconds*; SIGKILL goes to all. Raises NotStarted.
    """
    orders.allow_start()
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen(words, cwd=place, env=env, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True)
    tail, readers = bytearray(), []
    for streams in ((process.stdout, 1, bytearray()), (process.stderr, 2, tail)):
        readers.append(threading.Thread(target=pass_on, args=streams, daemon=True))
        readers[-1].start()
    stopped_by, deadline = 0, float("inf")
    while (code := reap(process.pid)) is None:
        order = orders.wait(min(3600.0, max(0.0, deadline - time.monotonic())))
        if order == signal.SIGKILL or time.monotonic() >= deadline:
            stopped_by, deadline = signal.SIGKILL, time.monotonic() + 1
            send_below(process.pid, signal.SIGKILL)
        elif order and not stopped_by:
            stopped_by, deadline = order, time.monotonic() + grace_seconds
            os.kill(process.pid, order)
    process.returncode = code
    end_all(process.pid, 0 if stopped_by == signal.SIGKILL else STRAGGLER_SECONDS, orders)
    deadline = time.monotonic() + STRAGGLER_SECONDS  # not for ever: whoever reads our output may be stuck
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    return Outcome(code, tail.decode("utf-8", "replace"), stopped_by)


def pass_on(source: Any, target: int, tail: bytearray) -> None:
    """Write what comes from the pipe *source* to *target* at once, whoever still listens, and keep its end in *tail*."""
    with source:
        while block := source.read1(65536):
            tail += block
            del tail[:-TAIL_BYTES]
            with contextlib.suppress(OSError):
                while block:
                    select.select([], [target], [])  # a terminal may be in non-blocking mode
                    block = block[os.write(target, block) :]


def reap(pid: int) -> int | None:
    """Collect all children that have ended; returns the exit code of *pid*, 128 + n for signal n, if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(ended[1]) if ended[0] == pid else code
    return 128 - code if code and code < 0 else code


def send_below(group: int, signum: int) -> bool:
    """Send *signum* to all descendants (without a /proc: to *group*); returns whether there is any."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
            parents[int(stat.parent.name)] = int(parent) if state not in (b"Z", b"X") else 0
    found = [os.getpid()] if parents else [0, -group]
    for pid in found:  # grows as it is read
        found += [child for child, parent in parents.items() if parent == pid]
    reached = False
    for target in found[1:]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target, signum)
            reached = True
    return reached


def end_all(group: int, patience_seconds: float, orders: Orders) -> None:
    """End what a command, leader of *group*, left running: SIGTERM, and SIGKILL after *patience_seconds*."""
    deadline = time.monotonic() + patience_seconds
    signum: int = signal.SIGTERM if patience_seconds else signal.SIGKILL
    while send_below(group, signum):
        orders.wait(0.05)
        reap(group)
        signum = signal.SIGKILL if orders.latest == signal.SIGKILL or time.monotonic() >= deadline else 0


def without_torchrun(outcome: Outcome, first_rank: int) -> Outcome:
    """*outcome* as the worker that failed first left it: its exit code and its error, not what torchrun says of it."""
    code, stderr, stopped_by = outcome
    told = re.split(r"(?m)^.*(?:Received \w+ death|Sending process \d|failed \(exitcode)", stderr, maxsplit=1)[0]
    failed = re.search(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) ", stderr)
    if not failed:  # torchrun ends with 1 when it is stopped, whatever its workers do
        return Outcome(128 + stopped_by if stopped_by and code else code, told, stopped_by)
    code = int(failed[1])
    marked = re.findall(rf"(?m)^\[rank{first_rank + int(failed[2])}\]: ?(.*)", told)
    return Outcome(code if code >= 0 else 128 - code, "\n".join(marked) or told, stopped_by)


def failure_text(script: str, outcome: Outcome) -> str:
    """The script's last error, after how it ended where that is not told by it."""
    how = {128 + signum: f"was ended by {signum.name}" for signum in signal.Signals}
    if outcome.stopped_by:
        how[outcome.code] = f"was stopped by {signal.Signals(outcome.stopped_by).name}"
    if outcome.code not in how and outcome.stderr.strip():
        return last_error(outcome.stderr)
    first = f"{script} {how.get(outcome.code, f'ended with exit code {outcome.code}')}\n"
    return (first + last_error(outcome.stderr, FAILURE_CHARACTERS - len(first))).strip()


def last_error(text: str, most: int = FAILURE_CHARACTERS) -> str:
    """The last traceback in *text*, else its last lines: at most *most* characters, frames left out before the message."""
    lines = re.split(r"\r\n|\r|\n", text.strip())
    starts = [n for n, line in enumerate(lines) if re.match(r"(  \+ Exception Group )?Traceback \(most recent", line)]
    if not starts:
        return "\n".join(lines)[-most:]
    text = "\n".join(lines[starts[-1] :])
    while len(text) > most and re.match(r"[ +]|Traceback \(", text) and "\n" in text:
        text = text.partition("\n")[2]
    return text[:most]


def say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, "[orchestrate] {}\n".format(printable(line).replace("\n", "\\n")).encode())


def printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8":  # so that no locale changes an argument
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])  # noqa: S606 (no shell is the point)
    sys.exit(main())
