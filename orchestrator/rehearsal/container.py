"""Run the containers of one rehearsed training job: a program of its own, which runner.py starts and talks to.

Standard library only, started as `python -I -S container.py FD`, single-threaded, because only such a process may make a
user namespace. It is three generations, so that whatever is killed takes all below it along:

    launcher    one a job: the user (and network) namespace, the socket FD to the runner
    keeper      one a host: the mount, pid and host name namespace; passes signals on, knows the exit code
    container   the host's first process: PID 1 where there are namespaces; runs the request's entry point

FD is a socket. The runner writes one line of JSON (Orders), then bytes: `T` for SIGTERM to each host's first process, `K`
for SIGKILL to everything. Its end counts as `K`, so that a killed runner leaves nothing. The answers are lines of JSON:
{"started": true} (with a listening socket, where one was asked for), {"host": 0, "code": 143}, {"error": "…"}.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SAGEMAKER_ROOT = "/opt/ml"
NAMESPACES, FOLDER = "namespaces", "folder"
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 1 << 26, 1 << 28, 1 << 29, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
STOP, KILL = b"T", b"K"
NOT_FOUND, NOT_EXECUTABLE, NOT_STARTED = 127, 126, 255

Orders = dict[str, Any]  # level, own_network, forward_port, protected, hidden, hosts: [Host]
Host = dict[str, Any]  # name, root, private, environment, command, output (descriptor), read_only


class NotRunning(Exception):
    """The containers could not be started, or are gone without a word."""


def main(descriptor: int) -> int:
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    orders: Orders = json.loads(read_line(control))
    for host in orders["hosts"]:
        os.set_inheritable(host["output"], False)
    try:
        passed = enter_namespaces(orders) if orders["level"] == NAMESPACES else []
    except OSError as error:
        answer(control, {"error": f"cannot make namespaces: {error.strerror}"})
        return 1
    waker = wake_on_children()
    # A keeper is signalled only when it is ready: it unblocks these itself.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    keepers, problems = {}, []
    for number, host in enumerate(orders["hosts"]):
        keeper, problem = start_keeper(host, orders, control)
        keepers[keeper] = number
        problems.append(problem)
    with contextlib.suppress(OSError):
        socket.send_fds(control, [b'{"started": true}\n'], [sock.fileno() for sock in passed])
    while keepers:
        ready = select.select([control.fileno(), waker], [], [])[0]
        if waker in ready:
            os.read(waker, 4096)
        for keeper, code in ended_children():
            if keeper in keepers:
                number = keepers.pop(keeper)
                answer(control, ending(number, code, os.read(problems[number], 4096)))
        if control.fileno() in ready:
            for order in read_orders(control):
                for keeper in keepers:
                    os.kill(keeper, signal.SIGTERM if order == STOP[0] else signal.SIGUSR1)
    return 0


def ending(number: int, code: int, problem: bytes) -> dict[str, Any]:
    return {"error": problem.decode("utf-8", "replace")} if problem else {"host": number, "code": code}


def answer(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the runner is gone: its end is read as an order
        control.sendall(json.dumps(message).encode() + b"\n")


def read_line(control: socket.socket) -> bytes:
    """Up to the first newline, byte by byte: what follows it are orders."""
    line = b""
    while not line.endswith(b"\n"):
        byte = control.recv(1)
        if not byte:
            sys.exit(1)
        line += byte
    return line


def read_orders(control: socket.socket) -> bytes:
    try:
        data = control.recv(64)
    except OSError:
        data = b""
    if not data:  # not to be asked again: from now on only children wake this process
        os.dup2(os.pipe()[0], control.fileno(), inheritable=False)
        return KILL
    return data


def wake_on_children() -> int:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def ended_children() -> list[tuple[int, int]]:
    """(pid, exit code; 128 + n for signal n) of all children that have ended."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], shell_code(os.waitstatus_to_exitcode(ended[1]))))
    return found


def shell_code(code: int) -> int:
    return 128 - code if code < 0 else code


# ── the keeper ──────────────────────────────────────────────────────────────────────────────────────────────────────


def start_keeper(host: Host, orders: Orders, control: socket.socket) -> tuple[int, int]:
    """Fork the keeper of *host*; returns its id and a pipe that tells, once it has ended, why it started nothing."""
    problem, writer = os.pipe()
    launcher = os.getpid()
    keeper = os.fork()
    if keeper:
        os.close(writer)
        os.close(host["output"])
        return keeper, problem
    code = NOT_STARTED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for other in orders["hosts"]:
            if other["output"] != host["output"]:
                with contextlib.suppress(OSError):  # an earlier host's is closed already
                    os.close(other["output"])
        die_with_parent(launcher)
        code = keep(host, orders, writer)
    except OSError as error:
        os.write(writer, f"{host['name']}: {error.filename or ''} {error.strerror}".encode())
    finally:
        os._exit(code)


def keep(host: Host, orders: Orders, problem: int) -> int:
    """Start the container and await its end; returns its exit code, 128 + n if signal n ended it."""
    isolated = orders["level"] == NAMESPACES
    if isolated:
        unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID)
    elif sys.platform == "linux":
        libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = os.getpid()
    first = os.fork()
    if first == 0:
        become_container(host, orders, problem, keeper)
    os.close(problem)
    signal.signal(signal.SIGTERM, lambda *_: send_stop(first, isolated))
    signal.signal(signal.SIGUSR1, lambda *_: send_kill(first))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
    if hasattr(os, "waitid"):  # which macOS has from Python 3.13 on
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # not reaped while a handler may yet signal that number
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    code = shell_code(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
    if not isolated:
        kill_rest(first)
    return code


def send_stop(first: int, isolated: bool) -> None:
    """SIGTERM to the container's first process, under the rule for PID 1: it gets only what it has a handler for.

    The kernel holds that rule in a pid namespace. Elsewhere it is looked up, for otherwise a shell that does not `exec`
    would die here, and so seem to stop, where in the cloud it stays deaf until it is killed.
    """
    with contextlib.suppress(OSError):
        if not isolated and sys.platform == "linux":
            status = Path(f"/proc/{first}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split()[0], 16)
            if not caught & 1 << (signal.SIGTERM - 1):
                return
        os.kill(first, signal.SIGTERM)


def send_kill(first: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(first, signal.SIGKILL)


def kill_rest(group: int) -> None:
    """SIGKILL what a container left running: on Linux all below this subreaper, elsewhere the process group."""
    if sys.platform != "linux":
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        return
    while below := descendants():
        for pid in below:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
            ended_children()


def descendants() -> list[int]:
    """The processes below this one that have not ended."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                parents[int(stat.parent.name)] = int(parent)
    found = [os.getpid()]
    for pid in found:  # grows as it is read
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


# ── the container ───────────────────────────────────────────────────────────────────────────────────────────────────


def become_container(host: Host, orders: Orders, problem: int, keeper: int) -> NoReturn:
    """Turn this process into the host's first one. What fails before its command is started is told to *problem*."""
    try:
        os.setsid()
        if orders["level"] == NAMESPACES:
            libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # its parent's number cannot be seen from inside
            build_view(host, orders)
        else:
            die_with_parent(keeper)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (host["output"], 1), (host["output"], 2)):
            os.dup2(source, target)
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir("/")
    except OSError as error:
        os.write(problem, f"{host['name']}: {error.filename or ''} {error.strerror}".encode())
        os._exit(NOT_STARTED)
    command = host["command"]
    try:
        os.execvpe(command[0], command, host["environment"])  # noqa: S606 (no shell is the point)
    except (OSError, ValueError) as error:  # ValueError: what no argument list can carry
        os.write(2, f"cannot start {command[0]!r}: {getattr(error, 'strerror', error)}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def enter_namespaces(orders: Orders) -> list[socket.socket]:
    """A user namespace in which the caller is root, and, if asked for, a network of nothing but a loopback.

    Returns the socket that listens in that network where the loopback AWS stands outside of it.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | (CLONE_NEWNET if orders["own_network"] else 0))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    if not orders["own_network"]:
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP_RUNNING))
    if orders["forward_port"] is None:
        return []
    return [socket.create_server(("127.0.0.1", orders["forward_port"]), backlog=64)]


def build_view(host: Host, orders: Orders) -> None:
    """Make this mount namespace look like the container: /opt/ml, /etc/hosts, /proc, its name."""
    private = Path(host["private"])
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    for folder in orders["hidden"]:
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
    for number, folder in enumerate(orders["protected"]):
        protect(folder, private / f"layer-{number}")
    for folder in host["read_only"]:
        read_only(folder)
    mount_root(host["root"], private / "opt")
    mount(str(private / "hosts"), "/etc/hosts", flags=MS_BIND)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    socket.sethostname(host["name"])


def mount_root(root: str, scratch: Path) -> None:
    """Mount *root* as /opt/ml, and keep what else is in /opt. *scratch* is made, and used inside only."""
    if Path(SAGEMAKER_ROOT).is_dir():
        mount(root, SAGEMAKER_ROOT, flags=MS_BIND | MS_REC)
        return
    opt = Path(SAGEMAKER_ROOT).parent
    scratch.mkdir(exist_ok=True)
    mount("tmpfs", str(scratch), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for old in opt.iterdir():
        new = scratch / old.name
        if old.is_symlink():
            new.symlink_to(old.readlink())
            continue
        new.mkdir() if old.is_dir() else new.touch()
        mount(str(old), str(new), flags=MS_BIND | MS_REC)
    (scratch / "ml").mkdir()
    mount(root, str(scratch / "ml"), flags=MS_BIND | MS_REC)
    mount(str(scratch), str(opt), flags=MS_BIND | MS_REC)


def protect(folder: str, layer: Path) -> None:
    """Let the container write to *folder* without changing it: a pip install goes away with the container.

    The changes go to *layer*, or to memory where its file system cannot hold an overlay's upper layer (as an overlay's own
    cannot); where the kernel lets no user make overlays, *folder* becomes read-only.
    """
    layer.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        overlay(folder, layer)
        return
    with contextlib.suppress(OSError):
        mount("tmpfs", str(layer), "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
        overlay(folder, layer)
        return
    read_only(folder)


def overlay(folder: str, layer: Path) -> None:
    upper, work = layer / "upper", layer / "work"
    for made in (upper, work):
        made.mkdir(exist_ok=True)
    parts = {"lowerdir": folder, "upperdir": str(upper), "workdir": str(work)}
    options = ",".join(f"{name}={escaped(path)}" for name, path in parts.items())
    mount("overlay", folder, "overlay", 0, options + ",userxattr")


def escaped(path: str) -> str:
    """*path* as an option of overlayfs, in which `,` and `:` part values."""
    return "".join("\\" + char if char in ",:\\" else char for char in path)


def read_only(folder: str) -> None:
    mount(folder, folder, flags=MS_BIND | MS_REC)
    kept = os.statvfs(folder).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)  # a user may not take these away
    mount("none", folder, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


# ── the kernel ──────────────────────────────────────────────────────────────────────────────────────────────────────


def libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when *parent* ends (on Linux)."""
    if sys.platform == "linux":
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def unshare(flags: int) -> None:
    if libc().unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    words = [os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags)]
    if libc().mount(*words, os.fsencode(data) or None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", target)


# ── the runner's side ────────────────────────────────────────────────────────────────────────────────────────────────


class Containers:
    """The running containers of one job. Leaving the block kills what is left of them."""

    def __init__(self, orders: Orders, address: tuple[str, int], folder: Path) -> None:
        self._address = address
        self._forwarded: socket.socket | None = None
        self._received = b""
        import subprocess

        pipes = [os.pipe() for _ in orders["hosts"]]
        self.outputs = [reader for reader, _ in pipes]  # each to be read, and closed, by whoever follows it
        described = [{**host, "output": writer} for host, (_, writer) in zip(orders["hosts"], pipes, strict=True)]
        self._control, theirs = socket.socketpair()
        try:
            with (folder / "launcher.log").open("wb") as errors:
                self._launcher = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno(), *(writer for _, writer in pipes)],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    cwd="/",
                    env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                    start_new_session=True,
                )
        finally:
            theirs.close()
            for _, writer in pipes:
                os.close(writer)
        self.send(json.dumps({**orders, "hosts": described}).encode() + b"\n")

    def __enter__(self) -> Containers:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(KILL)
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        self._launcher.wait()
        self._control.close()
        if self._forwarded is not None:
            with contextlib.suppress(OSError):
                self._forwarded.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which closes it

    def send(self, order: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended: ended() tells
            self._control.sendall(order)

    def ended(self, seconds: float) -> Iterator[tuple[int, int]]:
        """(host's number, exit code) of those that end within *seconds*. Raises NotRunning if they could not be started."""
        self._control.settimeout(seconds)
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        except TimeoutError:
            return
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            self._forwarded = socket.socket(fileno=descriptor)
            threading.Thread(target=forward, args=(self._forwarded, self._address), daemon=True).start()
        if not data:
            raise NotRunning("the process that holds the rehearsal's containers was killed")
        *lines, self._received = (self._received + data).split(b"\n")
        for message in map(json.loads, lines):
            if "error" in message:
                raise NotRunning(f"no container: {message['error']}")
            if "host" in message:
                yield message["host"], message["code"]


def forward(listener: socket.socket, address: tuple[str, int]) -> None:
    """Pass each connection to *listener*, which is in another network namespace, on to *address* in this one."""
    with listener:
        while True:
            try:
                inside, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=relay, args=(inside, address), daemon=True).start()


def relay(inside: socket.socket, address: tuple[str, int]) -> None:
    with inside, contextlib.suppress(OSError), socket.create_connection(address) as outside:
        back = threading.Thread(target=pump, args=(outside, inside), daemon=True)
        back.start()
        pump(inside, outside)
        back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
