"""The rehearsal as a process of its own: started once, found again, ended by itself, by us, or by kill -9."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput, StateError
from orchestrator.rehearsal import control
from tests.conftest import REPOSITORY, processes_of, wait_until
from tests.rehearsal.conftest import client, close_clients, spot, training_request, wait_for_end, wait_for_secondary

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a rehearsal, which is stopped after the test, however that ended."""
    folder = tmp_path / "rehearsal"
    yield folder
    close_clients()
    standing = control.find(folder)
    if standing is not None:
        os.kill(standing.pid, signal.SIGKILL)
        wait_until(lambda: control.find(folder) is None, what="the rehearsal's end")


def started_in_the_foreground(folder: Path, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.rehearsal", "--folder", str(folder), *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: control.find(folder) or process.poll() is not None, what="the rehearsal's start")
    return process


def test_a_rehearsal_is_started_once_and_found_again(folder: Path) -> None:
    assert control.find(folder) is None
    first = control.ensure(folder)
    assert control.ensure(folder) == first == control.find(folder)
    told = control.status(folder)
    assert told is not None
    assert told["pid"] == first.pid
    assert control.stop(folder)
    assert control.find(folder) is None
    assert not control.stop(folder)
    assert control.status(folder) is None


@pytest.mark.slow
def test_commands_at_once_start_one_server(folder: Path) -> None:
    code = (
        "import sys, pathlib; from orchestrator.rehearsal import control;"
        " print(control.ensure(pathlib.Path(sys.argv[1])).pid)"
    )
    commands = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = {command.communicate(timeout=120)[0] for command in commands}
    assert len(answers) == 1
    assert int(answers.pop()) == control.ensure(folder).pid


def test_a_file_that_a_killed_server_left_is_not_believed(folder: Path) -> None:
    first = control.ensure(folder)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: control.find(folder) is None, what="its end")
    assert (folder / "server.json").exists()
    second = control.ensure(folder)
    assert second.pid != first.pid
    assert control.call(second.url, "GET", "state")["jobs"] == []


def test_who_looks_for_a_server_is_not_taken_for_one_and_keeps_none_from_starting(folder: Path) -> None:
    folder.mkdir()
    with (folder / control.ALIVE).open("wb") as looked_at:
        (folder / "server.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1}')
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        assert control.find(folder) is None
        threading.Timer(0.1, fcntl.flock, (looked_at, fcntl.LOCK_UN)).start()
        lock = control.hold(folder)
    assert lock is not None
    assert control.find(folder) is not None
    assert control.hold(folder) is None
    os.close(lock)


def test_faults_go_to_the_server_that_runs(folder: Path) -> None:
    first = control.ensure(folder, faults=["throttle:ListTrainingJobs"])
    control.ensure(folder, faults=["capacity"])
    assert control.call(first.url, "GET", "state")["faults"] == ["throttle:ListTrainingJobs", "capacity"]
    with pytest.raises(BadInput, match="there is no fault"):
        control.ensure(folder, faults=["explode"])


@pytest.mark.slow
def test_an_idle_server_ends_and_one_with_a_job_does_not(folder: Path) -> None:
    standing = control.ensure(folder, idle_seconds=1, grace_seconds=2)
    sagemaker = client(standing.url, "sagemaker")
    sagemaker.create_training_job(**training_request(script="exec sleep 4"))
    time.sleep(2.5)  # longer than it waits for calls
    assert control.find(folder) == standing
    assert sagemaker.describe_training_job(TrainingJobName="job-1")["TrainingJobStatus"] == "InProgress"
    wait_for_end(sagemaker, "job-1")
    wait_until(lambda: control.find(folder) is None, what="its end")
    assert not (folder / "server.json").exists()


def test_a_server_that_cannot_start_is_told_with_its_last_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "START_SECONDS", 30.0)
    with pytest.raises(StateError, match="could not be started") as caught:
        control.ensure(folder, quotas={"": 1})
    assert str(folder / "server.log") in str(caught.value.hint)
    (folder / "file").write_text("")
    with pytest.raises(StateError, match="cannot use"):
        control.ensure(folder / "file")


def test_the_server_sees_nothing_of_this_shells_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as shell:
        shell.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
        shell.setenv("AWS_PROFILE", "no-such-profile")
        standing = control.ensure(folder)
    assert b"very secret" not in Path(f"/proc/{standing.pid}/environ").read_bytes()
    sagemaker = client(standing.url, "sagemaker")
    sagemaker.create_training_job(**training_request())
    assert wait_for_end(sagemaker, "job-1")["TrainingJobStatus"] == "Completed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_server_says_what_to_export_and_ends_its_jobs(folder: Path, number: signal.Signals) -> None:
    process = started_in_the_foreground(folder, "--grace-seconds", "1", "--region", "eu-west-1")
    try:
        standing = control.find(folder)
        assert standing is not None
        sagemaker = client(standing.url, "sagemaker")
        sagemaker.create_training_job(**training_request(script="exec sleep 98765"))
        wait_for_secondary(sagemaker, "job-1", "Training")
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, said
    assert f"export AWS_ENDPOINT_URL={standing.url}\n" in said
    assert "export AWS_ACCESS_KEY_ID=rehearsal\n" in said
    assert "export AWS_DEFAULT_REGION=eu-west-1\n" in said
    assert "its training jobs with it: job-1" in said
    assert control.find(folder) is None
    wait_until(lambda: not processes_of(folder), what="the end of the job's processes")


def test_a_second_server_of_the_same_folder_is_refused(folder: Path) -> None:
    standing = control.ensure(folder)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.rehearsal", "--folder", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert f"is already running at {standing.url}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fault", "explode"), "there is no fault 'explode'"),
        (("--quota", "ml.p3.2xlarge"), "a quota is INSTANCE_TYPE=N"),
        (("--port", "99999"), "there is no port 99999"),
    ],
)
def test_what_is_typed_wrong_is_told_in_one_line(folder: Path, words: tuple[str, ...], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.rehearsal", "--folder", str(folder), *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_kill_minus_nine_leaves_no_process_of_a_job(folder: Path) -> None:
    standing = control.ensure(folder)
    sagemaker = client(standing.url, "sagemaker")
    sagemaker.create_training_job(**training_request(script="sleep 98765 & sleep 98765"))
    wait_for_secondary(sagemaker, "job-1", "Training")
    wait_until(lambda: len(processes_of(folder)) > 2, what="the job's processes")
    os.kill(standing.pid, signal.SIGKILL)
    wait_until(lambda: not processes_of(folder), what="the end of them all")


def test_many_clients_at_once_are_served(folder: Path) -> None:
    standing = control.ensure(folder, quotas={"ml.m5.large": 3})
    sagemaker = client(standing.url, "sagemaker")
    codes: list[str] = []

    def create(number: int) -> None:
        from botocore.exceptions import ClientError

        try:
            sagemaker.create_training_job(**training_request(f"job-{number % 10}", "sleep 5"))
            codes.append("")
        except ClientError as error:
            codes.append(error.response["Error"]["Code"])

    threads = [threading.Thread(target=create, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count("") == 3
    assert set(codes) == {"", "ResourceInUse", "ResourceLimitExceeded"}
    jobs: list[dict[str, Any]] = control.call(standing.url, "GET", "state")["jobs"]
    assert len({job["name"] for job in jobs}) == len(jobs) == 3


@pytest.mark.slow
def test_a_spot_job_survives_a_reclaim_on_the_standing_server(folder: Path) -> None:
    standing = control.ensure(folder, faults=["reclaim:after=0.3"], grace_seconds=1)
    sagemaker = client(standing.url, "sagemaker")
    script = "cd /opt/ml/checkpoints; [ -e been ] && exit 0; touch been; exec sleep 60"
    sagemaker.create_training_job(**training_request(script=script, **spot()))
    assert wait_for_end(sagemaker, "job-1")["TrainingJobStatus"] == "Completed"
    told = json.loads((folder / "faults.jsonl").read_text().splitlines()[0])
    assert told["fault"] == "reclaim:after=0.3"
