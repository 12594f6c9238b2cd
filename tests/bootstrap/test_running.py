"""How bootstrap.py starts a script, passes signals on, ends everything, and tells how it ended."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import psutil
import pytest

from .conftest import Place, until

IGNORES_SIGTERM = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready\\n", end="", flush=True)
    while True:
        time.sleep(60)
"""
# A child, and a grandchild in a session of its own; none of them ends when asked to.
FAMILY = """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready = "print('ready\\\\n', end='', flush=True)"  # in one write
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + ready + "; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", deaf])
    subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
    exec(ready)
    {end}
"""
STAYS = FAMILY.format(end="time.sleep(600)")
LEAVES_THEM = FAMILY.format(end="time.sleep(1)")


def stopped(place: Place) -> str | None:
    """What ROOT/output/stopped holds."""
    path = place.root / "output/stopped"
    return path.read_text() if path.exists() else None


def read_lines(process: Any, count: int) -> list[bytes]:
    return [process.stdout.readline() for _ in range(count)]


def test_every_argument_arrives_byte_for_byte_in_the_folder_of_the_code(place: Place) -> None:
    script = "import json, os, sys; print(json.dumps([sys.argv, os.getcwd(), sys.stdin.read()]))"
    words = ["--epochs", "3", "-", "--", "ü\n\"'$(touch x)", "\udcff"]
    ended = place.run({"train.py": script}, hyperparameters={"lr": "0.10", "beta": "-0.5", "x": ""}, arguments=words)
    argv = ["train.py", "--lr", "0.10", "--beta=-0.5", "--x", "", *words]
    assert (ended.code, ended.failure) == (0, None)
    assert json.loads(ended.out) == [argv, str(place.root / "code"), ""]
    for folder in ("model", "checkpoints", "output/data"):
        assert (place.root / folder).is_dir()


def test_a_locale_without_utf_8_changes_no_argument(place: Place) -> None:
    script = (
        "import os, sys; sys.stdout.buffer.write(b'|'.join(map(os.fsencode, [*sys.argv[1:], os.environ['SM_HP_X']])))"
    )
    place.lay_out({"train.py": script}, hyperparameters={"x": "ü"}, arguments=["é\udcff"])
    ended = place.ended(place.start(env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}))
    assert (ended.code, ended.out) == (0, "--x|ü|é".encode() + b"\xff|" + "ü".encode())


def test_a_negative_value_survives_argparse(place: Place) -> None:
    script = """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--name"); parser.add_argument("--lr", type=float); parser.add_argument("-1", dest="one")
        print(parser.parse_args())
    """
    ended = place.run({"train.py": script}, hyperparameters={"name": "--lr", "lr": "-1"})
    assert (ended.code, ended.out.decode().strip()) == (0, "Namespace(name='--lr', lr=-1.0, one=None)")


def test_one_line_at_the_start_says_what_is_started(place: Place) -> None:
    ended = place.run({"train.py": "pass"}, arguments=["--name", "two\nwords", "\x1b[31m\u202e"])
    (line,) = ended.err.splitlines()
    assert line.startswith(
        "[orchestrate] starting train.py: python -u train.py --name 'two\\nwords' '\\x1b[31m\\u202e' ("
    )
    assert line.endswith("GPUs)")


def test_stdout_is_passed_on_byte_for_byte(place: Place) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 40960)"
    ended = place.run({"train.py": script})
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert ended.out == bytes(range(256)) * 40960


def test_ten_megabytes_of_stderr_without_a_newline_arrive_and_their_end_is_told(place: Place) -> None:
    ended = place.run({"train.py": "import sys; sys.stderr.write('x' * 10_000_000 + 'end'); sys.exit(1)"})
    assert ended.code == 1
    assert ended.err.endswith("x" * 10_000_000 + "end")
    assert ended.failure == "x" * 1021 + "end"


def test_output_goes_on_when_nobody_reads_stderr_any_more(place: Place) -> None:
    script = """
        import sys
        for _ in range(100): print("x" * 10_000, file=sys.stderr, flush=True)
        raise ValueError("told in the file")
    """
    place.lay_out({"train.py": script})
    process = place.start()
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    ended = place.ended(process)
    assert ended.code == 1
    assert ended.failure is not None
    assert ended.failure.endswith("ValueError: told in the file")


@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
def test_output_is_passed_on_as_it_comes(place: Place, number: int) -> None:
    script = f"import os, time; os.write({number}, b'no newline, \\xff\\0'); time.sleep(600)"
    place.lay_out({"train.py": script})
    process = place.start()
    assert process.stdout is not None
    assert process.stderr is not None
    process.stderr.readline()
    assert os.read((process.stdout, process.stderr)[number - 1].fileno(), 100) == b"no newline, \xff\0"


SAVES = """
    import pathlib, signal, sys, time
    def save(*_):
        for _ in range(100): print("saving " * 1000, flush=True)
        pathlib.Path("../checkpoints/saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_script_that_prints_may_save_when_whoever_read_its_output_was_killed(place: Place) -> None:
    place.lay_out({"train.py": SAVES})
    process, write_end = start_with_lifeline(place)
    read_lines(process, 1)
    process.stdout.close()
    process.stderr.close()
    process.stdout = process.stderr = None
    os.close(write_end)
    ended = place.ended(process)
    assert (place.root / "checkpoints/saved").exists()
    assert (ended.code, ended.failure, stopped(place)) == (0, None, "SIGTERM")


def test_a_script_that_closes_its_output_goes_on(place: Place) -> None:
    script = "import os, pathlib; os.close(1); os.close(2); pathlib.Path('../model/done').touch()"
    ended = place.run({"train.py": script})
    assert (ended.code, ended.out, (place.root / "model/done").exists()) == (0, b"", True)


def test_what_is_written_by_a_daemon_that_keeps_the_output_open_is_passed_on_until_it_is_ended(place: Place) -> None:
    script = """
        import os, subprocess, sys
        read, write = os.pipe()
        code = f"import os, time; os.write(1, b'daemon'); os.write({write}, b'!'); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True, pass_fds=[write])
        os.read(read, 1)
    """
    ended = place.run({"train.py": script})
    assert (ended.code, ended.out, place.alive()) == (0, b"daemon", [])


def test_a_script_with_much_output_ends_where_stdout_was_closed_from_the_start(place: Place) -> None:
    place.lay_out({"train.py": "print('x' * 1_000_000)"})
    process = place.start(prefix=["sh", "-c", 'exec "$0" "$@" >&-'])
    assert place.ended(process).code == 0


@pytest.mark.parametrize("code", [1, 3, 170, 255])
def test_the_exit_code_is_the_scripts_own(place: Place, code: int) -> None:
    ended = place.run({"train.py": f"raise SystemExit({code})"})
    assert (ended.code, ended.failure) == (code, f"train.py ended with exit code {code}")


def test_a_script_ended_by_a_signal_gives_128_and_its_number(place: Place) -> None:
    ended = place.run({"train.py": "import os; os.kill(os.getpid(), 11)"})
    assert (ended.code, ended.failure, stopped(place)) == (139, "train.py was ended by SIGSEGV", None)


def test_the_failure_file_holds_the_last_traceback(place: Place) -> None:
    script = """
        import sys, traceback
        try: 1 / 0
        except ZeroDivisionError: traceback.print_exc()
        print("something else", file=sys.stderr)
        raise RuntimeError("the reason\\x1b[31m in\\ntwo lines")
    """
    ended = place.run({"train.py": script})
    assert ended.failure is not None
    assert ended.failure.startswith("Traceback (most recent call last):\n")
    assert ended.failure.endswith("RuntimeError: the reason\\x1b[31m in\ntwo lines")
    assert "ZeroDivisionError" not in ended.failure


def test_a_deep_traceback_loses_frames_and_not_its_message(place: Place) -> None:
    functions = "\n".join(f"def f{n}(): f{n + 1}()" for n in range(60))
    ended = place.run({"train.py": f"{functions}\ndef f60(): raise KeyError('the message')\nf0()"})
    assert ended.failure is not None
    assert len(ended.failure) <= 1024
    assert ended.failure.endswith("KeyError: 'the message'")
    assert "in f59" in ended.failure


def test_a_huge_message_is_cut_at_its_end(place: Place) -> None:
    ended = place.run({"train.py": "raise ValueError('begin' + 'x' * 5000)"})
    assert ended.failure is not None
    assert ended.failure.startswith("ValueError: beginxxx")
    assert len(ended.failure) == 1024


def test_what_an_earlier_start_left_does_not_outlive_a_success(place: Place) -> None:
    place.lay_out({"train.py": "pass"})
    (place.root / "output").mkdir()
    (place.root / "output/failure").write_text("old")
    (place.root / "output/stopped").write_text("SIGTERM")
    assert (place.ended(place.start()).failure, stopped(place)) == (None, None)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_script_once_and_it_may_save(place: Place, signum: signal.Signals) -> None:
    script = f"""
        import signal, sys, time
        got = []
        def save(*_):
            got.append(1)
            print(f"got {{len(got)}}\\n", end="", flush=True)
        signal.signal({int(signum)}, save)
        print("ready\\n", end="", flush=True)
        while not got: time.sleep(0.01)
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline: time.sleep(0.01)
        print("saved", flush=True)
    """
    place.lay_out({"train.py": script})
    process = place.start()
    assert read_lines(process, 1) == [b"ready\n"]
    process.send_signal(signum)
    assert read_lines(process, 1) == [b"got 1\n"]
    process.send_signal(signum)
    ended = place.ended(process)
    assert (ended.code, ended.out, ended.failure, stopped(place)) == (0, b"saved\n", None, signum.name)


def test_a_script_that_ends_by_the_signal_is_told_as_stopped(place: Place) -> None:
    place.lay_out({"train.py": "import time; print('ready', flush=True); time.sleep(600)"})
    process = place.start()
    read_lines(process, 1)
    process.terminate()
    ended = place.ended(process)
    assert (ended.code, ended.failure) == (143, "train.py was stopped by SIGTERM")


def test_after_the_grace_a_script_that_ignores_sigterm_is_killed(place: Place) -> None:
    place.lay_out({"train.py": IGNORES_SIGTERM}, grace_seconds=0.5)
    process = place.start()
    read_lines(process, 1)
    process.terminate()
    ended = place.ended(process)
    assert (ended.code, ended.failure, place.alive()) == (137, "train.py was stopped by SIGKILL", [])
    assert stopped(place) == "SIGKILL"


def test_after_the_grace_the_whole_family_is_killed(place: Place) -> None:
    place.lay_out({"train.py": STAYS}, grace_seconds=0.5)
    process = place.start()
    assert read_lines(process, 3) == [b"ready\n"] * 3
    assert len(place.alive()) == 3
    process.terminate()
    assert (place.ended(process).code, place.alive()) == (137, [])


@pytest.mark.slow
def test_what_a_script_left_running_is_ended_before_bootstrap_ends(place: Place) -> None:
    ended = place.run({"train.py": LEAVES_THEM})
    assert (ended.code, ended.failure, place.alive()) == (0, None, [])


@pytest.mark.parametrize("whole_group", [False, True])
def test_nothing_survives_when_bootstrap_is_killed(place: Place, whole_group: bool) -> None:
    place.lay_out({"train.py": STAYS})
    process = place.start()
    read_lines(process, 3)
    assert len(place.alive()) == 3
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    until(lambda: not place.alive())


def test_nothing_survives_when_the_keeper_is_killed(place: Place) -> None:
    place.lay_out({"train.py": STAYS})
    process = place.start()
    read_lines(process, 3)
    (script,) = [one for one in place.alive() if one.cmdline()[-1:] == ["train.py"]]
    keeper = script.parent()
    assert keeper is not None
    assert keeper.ppid() == process.pid
    keeper.kill()
    assert (place.ended(process).code, place.alive()) == (137, [])


def start_with_lifeline(place: Place) -> tuple[Any, int]:
    read_end, write_end = os.pipe()
    process = place.start(env={"ORCHESTRATE_LIFELINE_FD": str(read_end)}, pass_fds=(read_end,))
    os.close(read_end)
    return process, write_end


def test_the_end_of_the_lifeline_counts_as_sigterm(place: Place) -> None:
    script = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        names = [name for name in os.environ if name in ("ORCHESTRATE_LIFELINE_FD", "ORCHESTRATE_ROOT", "ORCHESTRATE_JOB")]
        print(names, sorted(os.listdir("/dev/fd"))[:3], len(os.listdir("/dev/fd")), flush=True)
        time.sleep(600)
    """
    place.lay_out({"train.py": script})
    process, write_end = start_with_lifeline(place)
    # 0, 1, 2 and the one that lists the folder
    assert read_lines(process, 1) == [b"[] ['0', '1', '2'] 4\n"]
    os.close(write_end)
    ended = place.ended(process)
    assert (ended.code, ended.failure) == (5, "train.py was stopped by SIGTERM")


def test_a_k_on_the_lifeline_kills_at_once(place: Place) -> None:
    place.lay_out({"train.py": STAYS}, grace_seconds=3600)
    process, write_end = start_with_lifeline(place)
    read_lines(process, 3)
    process.terminate()
    os.write(write_end, b"k")
    ended = place.ended(process)
    os.close(write_end)
    assert (ended.code, place.alive()) == (137, [])


def test_a_signal_before_the_start_prevents_it(place: Place) -> None:
    place.lay_out({"train.py": "print('ran')"})
    process, write_end = start_with_lifeline(place)
    os.close(write_end)
    ended = place.ended(process)
    assert ended.out == b""
    assert (ended.code, ended.failure) == (143, "stopped by SIGTERM before the start")
    assert stopped(place) == "SIGTERM"


def test_a_second_start_unpacks_anew(place: Place) -> None:
    script = "import pathlib; pathlib.Path('../checkpoints/c').touch(); print(pathlib.Path('junk').exists()); open('junk', 'w')"
    place.lay_out({"train.py": script})
    assert place.ended(place.start()).out == b"False\n"
    (place.root / "code/train.py").write_text("print('changed')")
    assert place.ended(place.start()).out == b"False\n"
    assert (place.root / "checkpoints/c").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2])
def test_two_processes_run_under_torchrun(place: Place, processes: int) -> None:
    script = """
        import os, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        print(f"{os.environ['RANK']} {int(total)} {os.environ['OMP_NUM_THREADS']} {os.environ['MASTER_ADDR']}\\n", end="")
        dist.destroy_process_group()
    """
    ended = place.run({"train.py": script}, processes=processes, environment={"OMP_NUM_THREADS": "1"})
    assert (ended.code, ended.failure) == (0, None), ended.err
    assert sorted(ended.out.splitlines()) == [b"0 2 1 127.0.0.1", b"1 2 1 127.0.0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True], ids=["before the group", "in the group"])
def test_under_torchrun_the_failure_is_the_workers_own(place: Place, grouped: bool) -> None:
    script = f"""
        import os, sys, time
        import torch.distributed as dist
        if {grouped}: dist.init_process_group("gloo")
        if os.environ["RANK"] == "1":
            if {grouped}: raise ValueError("the reason of rank 1")
            print("the reason of rank 1", file=sys.stderr); sys.exit(7)
        time.sleep(600)
    """
    ended = place.run({"train.py": script}, processes=2)
    assert ended.failure is not None
    assert ended.code == (1 if grouped else 7)
    assert ended.failure.endswith("the reason of rank 1")
    assert ended.failure.startswith("Traceback (most recent call last)") == grouped
    assert "torch.distributed" not in ended.failure


@pytest.mark.slow
def test_under_torchrun_sigterm_reaches_the_workers_and_nothing_survives(place: Place) -> None:
    script = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saved\\n", end="", flush=True), sys.exit(0)))
        print("ready\\n", end="", flush=True)
        time.sleep(600)
    """
    place.lay_out({"train.py": script}, processes=2)
    process = place.start()
    assert read_lines(process, 2) == [b"ready\n"] * 2
    process.terminate()
    ended = place.ended(process)
    assert (ended.out, ended.code, place.alive()) == (b"saved\nsaved\n", 143, [])
    assert ended.failure == "train.py was stopped by SIGTERM"


@pytest.mark.slow
def test_under_torchrun_nothing_survives_when_bootstrap_is_killed(place: Place) -> None:
    place.lay_out({"train.py": IGNORES_SIGTERM}, processes=2)
    process = place.start()
    read_lines(process, 2)
    assert len(place.alive()) == 3
    process.kill()
    until(lambda: not place.alive())


def test_as_pid_1_it_passes_sigterm_on_and_reaps_orphans(place: Place, namespaces: list[str]) -> None:
    script = """
        import os, subprocess, sys, time
        # The orphan outlives its parent, and ends after it.
        subprocess.run([sys.executable, "-c", "import subprocess; subprocess.Popen(['sleep', '0.2'])"])
        def states():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try: found.append(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0])
                except (FileNotFoundError, ProcessLookupError): pass
            return found
        while len(states()) > 3: time.sleep(0.01)
        print(len(states()), "Z" in states(), flush=True)
        time.sleep(600)
    """
    place.lay_out({"train.py": script})
    process = place.start(prefix=namespaces)
    assert read_lines(process, 1) == [b"3 False\n"]
    (first,) = psutil.Process(process.pid).children()
    first.terminate()
    assert place.ended(process).code == 143
