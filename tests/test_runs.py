"""The ledger keeps every run, whoever else is writing and whatever is wrong with the disk."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, NotInCatalog, StateError
from orchestrator.runs import Ledger, Run, RunState, utc_now
from tests.conftest import REPOSITORY


def a_run(run_id: str, **changes: object) -> Run:
    values: dict[str, object] = {
        "id": run_id, "name": "mlp", "backend": "local", "state": RunState.CREATED, "script": "mlp.py",
        "script_key": "shipped:mlp", "created_at": utc_now(), "spec": {"arguments": []}, "plan": {}, "run_dir": "/nowhere",
    }  # fmt: skip
    return Run(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


def test_a_run_comes_back_as_it_was_written(path: Path) -> None:
    run = a_run("r-1", spec={"name": "ünï\n'\"", "arguments": ["--x"]}, request={"a": [1, None]}, estimated_usd="0.10")
    with Ledger.open(path) as ledger:
        ledger.insert(run)
    with Ledger.open(path) as ledger:
        assert ledger.get("r-1") == run


def test_the_ledger_and_its_folder_are_readable_by_their_owner_alone(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file
    assert path.parent.stat().st_mode & 0o077 == 0


def test_each_state_is_kept_with_its_time_and_the_first_end_is_the_last_word(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        assert ledger.move("r-1", RunState.RUNNING, pid=7)
        assert ledger.move("r-1", RunState.FAILED, note="ValueError: no", exit_code=1)
        assert not ledger.move("r-1", RunState.SUCCEEDED)
        run = ledger.get("r-1")
        assert (run.state, run.pid, run.exit_code, run.reason) == ("failed", 7, 1, "ValueError: no")
        assert [(event.state, event.note) for event in ledger.events("r-1")] == [
            ("created", None),
            ("running", None),
            ("failed", "ValueError: no"),
        ]
        assert run.started_at is not None
        assert run.ended_at is not None
        assert run.started_at <= run.ended_at


def test_a_commit_is_on_the_disk_before_the_next_step(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert tuple(ledger._connection.execute("PRAGMA synchronous").fetchone()) == (2,)
        assert tuple(ledger._connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)


def test_metric_lines_are_kept_once_each_however_often_they_are_told(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        lines = [(0, utc_now(), {"epoch": 1.0, "loss": 0.5}), (1, utc_now(), {"epoch": 2.0, "loss": float("nan")})]
        ledger.add_metrics("r-1", lines)
        ledger.add_metrics("r-1", lines)
        assert len(ledger.metrics("r-1")) == 2
        assert ledger.last_metrics("r-1")["epoch"] == 2.0


def test_a_run_is_found_by_the_beginning_of_its_id(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for run_id in ("r-12", "r-123", "r-9%_"):
            ledger.insert(a_run(run_id))
        assert ledger.get("r-12").id == "r-12"
        assert ledger.get("r-123").id == "r-123"
        assert ledger.get("r-9").id == "r-9%_"
        assert ledger.get(None).id == "r-9%_"
        with pytest.raises(BadInput, match="matches 2 runs"):
            ledger.get("r-1")
        for unknown in ("r-4", "%", "", "R-12"):
            with pytest.raises(NotInCatalog):
                ledger.get(unknown)


def test_earlier_seconds_come_from_the_same_script_with_the_same_arguments(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1", spec={"arguments": ["--epochs", "3"]}))
        ledger.move("r-1", RunState.RUNNING, started_at="2026-01-01T00:00:00+00:00")
        ledger.move("r-1", RunState.SUCCEEDED, ended_at="2026-01-01T00:01:30+00:00")
        assert ledger.earlier_seconds("shipped:mlp", {"arguments": ["--epochs", "3"]}) == 90.0
        assert ledger.earlier_seconds("shipped:mlp", {"arguments": []}) is None
        assert ledger.earlier_seconds("/other.py", {"arguments": ["--epochs", "3"]}) is None


def test_earlier_seconds_of_a_rehearsal_and_of_another_backend_count_for_their_own_kind(path: Path) -> None:
    def finished(run_id: str, seconds: int, **changes: object) -> None:
        ledger.insert(a_run(run_id, **changes))
        ledger.move(run_id, RunState.RUNNING, started_at="2026-01-01T00:00:00+00:00")
        ledger.move(run_id, RunState.SUCCEEDED, ended_at=f"2026-01-01T00:00:{seconds}+00:00")

    sagemaker = {"arguments": [], "backend": "sagemaker", "instance": "ml.m5.xlarge"}
    with Ledger.open(path) as ledger:
        finished("r-1", 11, spec={"arguments": [], "backend": "local"})
        finished("r-2", 22, backend="sagemaker", spec=sagemaker)
        finished("r-3", 33, backend="sagemaker", spec=sagemaker, rehearsed=True)
        finished("r-4", 44, backend="sagemaker", spec={**sagemaker, "instance": "ml.g5.2xlarge"})
        assert ledger.earlier_seconds("shipped:mlp", {"arguments": []}) == 11.0
        assert ledger.earlier_seconds("shipped:mlp", {"arguments": [], "backend": "local"}) == 11.0
        assert ledger.earlier_seconds("shipped:mlp", sagemaker) == 22.0
        assert ledger.earlier_seconds("shipped:mlp", sagemaker, rehearsed=True) == 33.0
        assert ledger.earlier_seconds("shipped:mlp", {"arguments": []}, rehearsed=True) is None


def test_the_same_launch_is_found_until_it_has_ended_and_somebody_was_told(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.same(["k"]) is None
        for number, end in enumerate((RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)):
            run_id, key = f"r-{number}", f"k{number}"
            ledger.insert(a_run(run_id, launch_key=key))
            for state in (RunState.UPLOADED, RunState.STARTING, RunState.ACCEPTED, RunState.RUNNING, end):
                ledger.move(run_id, state)
                found = ledger.same(["another", key])
                assert found is not None
                assert (found.id, found.state) == (run_id, state)
            assert ledger.same(["another"]) is None
            ledger.mark_told(run_id)
            assert ledger.get(run_id).told is True
            assert ledger.same([key]) is None
        assert ledger.same([]) is None


def test_a_run_whose_launch_was_told_stands_for_the_same_as_long_as_it_runs(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1", launch_key="k"))
        ledger.mark_told("r-1")
        assert ledger.same(["k"]) is not None
        ledger.move("r-1", RunState.SUCCEEDED)
        assert ledger.same(["k"]) is None


def test_a_run_that_never_began_stands_for_nothing_and_the_newest_goes_first(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for run_id in ("r-1", "r-2", "r-3"):
            ledger.insert(a_run(run_id, launch_key="k"))
        ledger.move("r-3", RunState.ABANDONED)
        found = ledger.same({"k"})
        assert found is not None
        assert found.id == "r-2"


def test_the_state_that_a_run_has_already_is_no_event_unless_there_is_something_to_say(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        for note in (None, None, "reclaimed; it begins again", None):
            assert ledger.move("r-1", RunState.ACCEPTED, note=note, remote_status=f"status {note}")
        assert [(event.state, event.note) for event in ledger.events("r-1")] == [
            ("created", None),
            ("accepted", None),
            ("accepted", "reclaimed; it begins again"),
        ]
        assert ledger.get("r-1").remote_status == "status None"


def test_a_run_that_is_reclaimed_and_runs_again_has_started_when_it_first_ran(path: Path) -> None:
    began = "2026-01-01T00:00:00+00:00"
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        ledger.move("r-1", RunState.RUNNING, started_at=began)
        ledger.move("r-1", RunState.ACCEPTED)
        ledger.move("r-1", RunState.RUNNING)
        assert ledger.get("r-1").started_at == began


def test_what_a_run_cost_can_be_learned_after_its_end_but_its_state_stays(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        ledger.move("r-1", RunState.FAILED, note="no")
        ledger.set("r-1", billable_seconds=31, actual_usd="0.0329", remote_status="Failed")
        run = ledger.get("r-1")
        assert (run.state, run.billable_seconds, run.actual_usd, run.remote_status) == (
            "failed",
            31,
            "0.0329",
            "Failed",
        )
        assert len(ledger.events("r-1")) == 2
        for changes in ({"state": "succeeded"}, {"id": "r-2"}, {"name = 'x' --": "y"}):
            with pytest.raises(ValueError, match=r"state|column"):
                ledger.set("r-1", **changes)
        ledger.set("r-1")
        assert ledger.get("r-1") == run


def test_news_is_told_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
        ledger.move("r-1", RunState.STOPPED, note="killed", untold=True)
        assert ledger.take_untold() == [("r-1", "killed")]
        assert ledger.take_untold() == []


def test_reading_where_there_is_no_ledger_makes_none(path: Path) -> None:
    with Ledger.open_to_read(path) as ledger:
        assert ledger.newest() == []
    assert not path.parent.exists()


def test_a_ledger_of_a_newer_version_is_left_alone(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="newer orchestrate"):
        Ledger.open(path)


def test_a_file_that_is_no_ledger_is_told_and_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all, and long enough to look at " * 100)
    with pytest.raises(StateError, match="is damaged"):
        Ledger.open(path)
    assert path.read_bytes().startswith(b"not a database")


def _write_many(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        with Ledger.open(path) as ledger:
            ledger.insert(a_run(f"r-{writer}-{number}"))
            ledger.move(f"r-{writer}-{number}", RunState.RUNNING)


@pytest.mark.slow
def test_many_commands_at_once_lose_nothing(path: Path) -> None:
    """Also the very first ones, which all make the ledger and switch it to WAL at the same moment."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, writer, 10)) for writer in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 6
    with Ledger.open(path) as ledger:
        assert len(ledger.newest()) == 60
        assert {run.state for run in ledger.newest()} == {"running"}


def without_root_powers(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a process that must keep to file modes, even where the tests run as root."""
    drop = (
        "import ctypes, os, sys\n"
        "if os.geteuid() == 0:\n"
        "    libc = ctypes.CDLL(None, use_errno=True)\n"
        "    for capability in (1, 2):\n"  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        "        assert libc.prctl(24, capability, 0, 0, 0) == 0\n"  # PR_CAPBSET_DROP
        "os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", drop, textwrap.dedent(code), *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="drops capabilities as Linux knows them")


@linux_only
def test_a_read_only_folder_can_still_be_read(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.insert(a_run("r-1"))
    path.chmod(0o400)
    path.parent.chmod(0o500)
    code = """
        import sys
        from pathlib import Path
        from orchestrator.errors import StateError
        from orchestrator.runs import Ledger
        path = Path(sys.argv[1])
        with Ledger.open_to_read(path) as ledger:
            assert [run.id for run in ledger.newest()] == ["r-1"]
            assert not ledger.writable
        try:
            Ledger.open(path)
        except StateError as error:
            assert "ORCHESTRATE_HOME" in error.hint, error.hint
        else:
            raise SystemExit("it was opened for writing")
    """
    done = without_root_powers(code, str(path))
    path.parent.chmod(0o700)
    assert done.returncode == 0, done.stderr


@linux_only
def test_a_full_disk_is_told_in_one_line_and_what_was_written_stays(path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from orchestrator.errors import StateError
        from orchestrator.runs import Ledger, Run, utc_now
        from tests.test_runs import a_run
        path = Path(sys.argv[1])
        with Ledger.open(path) as ledger:
            ledger.insert(a_run("r-kept"))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            size = max(file.stat().st_size for file in path.parent.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                for number in range(1000):
                    ledger.insert(a_run(f"r-{number}", spec={"text": "x" * 5000}))
            except StateError as error:
                assert "full" in error.what or "disk I/O" in error.what, error.what
            else:
                raise SystemExit("the disk was never full")
    """
    done = without_root_powers(code, str(path))
    assert done.returncode == 0, done.stderr
    with Ledger.open(path) as ledger:
        assert ledger.get("r-kept").id == "r-kept"
        assert tuple(ledger._connection.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
