"""While a job trains: its lines and how it stands, Ctrl-C, a closed terminal, a lost login, a second reader, cancel."""

from __future__ import annotations

import re
import signal

import pytest

from tests.conftest import wait_until
from tests.sagemaker.conftest import NAMED, REHEARSED, Cloud, Shell, explained, faulty, training

pytestmark = pytest.mark.slow
TWO_HOSTS = """
import json, os, pathlib
host = json.loads(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "resourceconfig.json").read_text())["current_host"]
for number in range(300):
    print("of", os.environ["SM_CURRENT_HOST"], number, flush=True)
if os.environ.get("RANK", "0") == "0":
    print("[metrics] epoch=7 loss=0.25", flush=True)
"""


def numbers(out: str) -> list[int]:
    """The numbers of PATIENT's lines, in the order in which they came."""
    return [int(number) for number in re.findall(r"(?m)^line (\d+)$", out)]


def in_order(out: str) -> bool:
    """Is no line of PATIENT's lost or there twice?"""
    found = numbers(out)
    return found == list(range(1, len(found) + 1)) and out.count("[metrics]") == 1


def test_ctrl_c_leaves_the_job_running_and_says_what_it_costs(patient: Shell, cloud: Cloud) -> None:
    typed = patient.start(*NAMED, "--", str(patient.gate), **cloud.environment)
    typed.says("line 1")
    typed.signal(signal.SIGINT)
    run = patient.run()
    typed.says(f"{run.id} goes on in the cloud")
    assert "$0.1150 an hour" in typed.err
    assert "stopped by SageMaker at" in typed.err
    assert f"orchestrate cancel {run.id}" in typed.err
    already = len(numbers(typed.out))
    wait_until(lambda: len(numbers(typed.out)) > already, what="more lines: the first Ctrl-C leaves nothing")
    typed.signal(signal.SIGINT)
    answer = typed.end()
    assert answer.code == 130, answer.err
    assert f"{run.id} goes on" in answer.err
    assert training(cloud)["status"] == "InProgress"
    assert "Traceback" not in answer.err
    patient.go()
    joined = patient(*NAMED, "--", str(patient.gate), **cloud.environment)
    assert joined.code == 0, joined.err
    assert f"{run.id} is the same submit" in joined.err
    assert in_order(joined.out)
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_ctrl_c_before_anything_was_sent_says_that_nothing_runs(shell: Shell, cloud: Cloud) -> None:
    before = cloud.calls()["PutObject"]
    typed = shell.start(*REHEARSED, *faulty("slow:PutObject:seconds=5"))
    wait_until(lambda: cloud.calls()["PutObject"] > before, what="the upload")
    typed.signal(signal.SIGINT)
    answer = typed.end()
    assert answer.code == 130, answer.err
    run = shell.run()
    assert f"{run.id} had not been sent yet: nothing runs" in answer.err
    assert f"orchestrate resume {run.id}" in answer.err
    assert not cloud.jobs()
    resumed = shell("resume", run.id)
    assert resumed.code == 0, resumed.err
    assert len(cloud.jobs()) == 1


def test_ctrl_c_while_the_create_call_is_out_says_that_the_job_may_run(shell: Shell, cloud: Cloud) -> None:
    typed = shell.start(*REHEARSED, *faulty("hang-after:CreateTrainingJob:seconds=10"))
    wait_until(cloud.jobs, what="the job")
    typed.signal(signal.SIGINT)
    answer = typed.end()
    assert answer.code == 130, answer.err
    run = shell.run()
    assert f"{run.id} was being sent and may run in the cloud" in answer.err
    assert "an hour" in answer.err
    assert f"orchestrate cancel {run.id}" in answer.err
    resumed = shell("resume", run.id)
    assert resumed.code == 0, resumed.err
    assert [job["status"] for job in cloud.jobs()] == ["Completed"]


def test_cancel_on_interrupt_makes_ctrl_c_stop_the_job(patient: Shell, cloud: Cloud) -> None:
    typed = patient.start(*REHEARSED, "--cancel-on-interrupt", "--", str(patient.gate))
    typed.says("line 1")
    typed.signal(signal.SIGINT)
    answer = typed.end()
    assert answer.code == 130, answer.err
    assert "saved" in answer.out
    assert [job["status"] for job in cloud.jobs()] == ["Stopped"]
    run = patient.run()
    assert run.state == "stopped"
    assert run.reason == "Ctrl-C"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_closed_terminal_leaves_the_job_and_the_same_command_joins_it(
    patient: Shell, cloud: Cloud, number: signal.Signals
) -> None:
    typed = patient.start(*REHEARSED, "--", str(patient.gate))
    typed.says("line 1")
    typed.signal(number)
    assert typed.end().code != 0
    assert training(cloud)["status"] == "InProgress"
    patient.go()
    joined = patient(*REHEARSED, "--", str(patient.gate))
    assert joined.code == 0, joined.err
    assert in_order(joined.out)
    assert joined.out.count("done") == 1
    assert len(cloud.jobs()) == 1


def test_a_login_that_runs_out_is_said_and_the_run_goes_on_after(patient: Shell, cloud: Cloud) -> None:
    typed = patient.start(*REHEARSED, "--", str(patient.gate))
    typed.says("line 1")
    cloud.arm("expired:DescribeTrainingJob:rate=1", "expired:GetLogEvents:rate=1", "expired:DescribeLogStreams:rate=1")
    typed.says("your AWS login has expired")
    assert "goes on in the cloud" in typed.err
    assert "aws sso login" in typed.err
    other = patient("status")
    assert other.code == 0
    assert "is shown as it was last known" in other.err
    assert typed.process.poll() is None
    cloud.clear()
    typed.says("AWS answers again")
    patient.go()
    answer = typed.end()
    assert answer.code == 0, answer.err
    assert in_order(answer.out)
    assert answer.err.count("your AWS login has expired") == 1


def test_a_laptop_that_slept_misses_nothing(patient: Shell, cloud: Cloud) -> None:
    typed = patient.start(*REHEARSED, "--", str(patient.gate))
    typed.says("line 1")
    typed.signal(signal.SIGSTOP)
    slept = len(numbers(typed.out))
    wait_until(lambda: len(numbers(cloud_log(patient, cloud))) > slept + 5, what="lines that nobody followed")
    patient.go()
    wait_until(lambda: cloud.jobs()[0]["status"] == "Completed", what="the end")
    typed.signal(signal.SIGCONT)
    answer = typed.end()
    assert answer.code == 0, answer.err
    assert in_order(answer.out)
    assert len(numbers(answer.out)) > slept + 5
    assert answer.out.count("done") == 1


def cloud_log(shell: Shell, cloud: Cloud) -> str:
    """The lines of the only run, as CloudWatch has them."""
    group, prefix = "/aws/sagemaker/TrainingJobs", f"{shell.run().remote_id}/"
    logs = cloud.client("logs")
    (stream,) = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=prefix)["logStreams"]
    events, token = [], None
    while True:
        more = {"nextToken": token} if token else {"startFromHead": True}
        page = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], **more)
        events += [event["message"] for event in page["events"]]
        if page["nextForwardToken"] == token:
            return "\n".join(events)
        token = page["nextForwardToken"]


def test_lines_of_several_hosts_are_marked_and_none_is_lost_or_repeated(shell: Shell, cloud: Cloud) -> None:
    shell.write(TWO_HOSTS)
    followed = shell(*REHEARSED, "--count", "2")
    assert followed.code == 0, followed.err
    for out in (followed.out, shell("logs").out):
        lines = out.splitlines()
        for host in ("algo-1", "algo-2"):
            marked = [line.removeprefix(f"{host} | ") for line in lines if line.startswith(f"{host} | of ")]
            assert [int(line.split()[-1]) for line in marked] == list(range(300)), host
    told = shell.status()
    assert told["metrics"] == {"epoch": 7.0, "loss": 0.25}


def test_two_followers_at_once_both_see_every_line(patient: Shell, cloud: Cloud) -> None:
    submit = patient.start(*REHEARSED, "--", str(patient.gate))
    submit.says("line 1")
    first, second = patient.start("logs", "--follow"), patient.start("logs", "--follow")
    first.says("line 3")
    second.says("line 3")
    submit.signal(signal.SIGKILL)  # who fetched is gone: another takes over
    submit.end()
    before = len(numbers(first.out))
    wait_until(lambda: len(numbers(first.out)) > before + 2, what="lines after the takeover")
    during = patient("logs")
    assert in_order(during.out)
    patient.go()
    for typed in (first, second):
        answer = typed.end()
        assert answer.code == 0, answer.err
        assert in_order(answer.out)
        assert answer.out.count("done") == 1
    after = patient("logs")
    assert after.out == first.out == second.out


def test_ctrl_c_in_logs_leaves_the_run_alone(patient: Shell, cloud: Cloud) -> None:
    assert patient(*REHEARSED, "--detach", "--", str(patient.gate)).code == 0
    typed = patient.start("logs", "--follow")
    typed.says("line 1")
    typed.signal(signal.SIGINT)
    answer = typed.end()
    assert answer.code == 130
    assert f"{patient.run().id} goes on" in answer.err
    assert training(cloud)["status"] == "InProgress"


def test_cancel_reaches_the_script_which_saves_and_is_no_fault_twice(patient: Shell, cloud: Cloud) -> None:
    assert patient(*REHEARSED, "--detach", "--", str(patient.gate)).code == 0
    training(cloud)
    wait_until(lambda: "line 1" in patient("logs").out, what="the first line")
    both = patient.together(["cancel"], ["cancel"])
    assert [answer.code for answer in both] == [0, 0], both
    run = patient.run()
    assert run.state == "stopped"
    assert run.reason == "cancelled by orchestrate cancel"
    assert [job["status"] for job in cloud.jobs()] == ["Stopped"]
    again = patient("cancel", run.id)
    assert again.code == 0
    assert f"{run.id} stopped" in again.out
    assert "saved" in patient("logs").out
    assert patient("artifacts", "--to", "out").code == 0
    assert (patient.project / "out/model/saved.txt").read_text() == "on SIGTERM"


def test_cancel_of_a_run_that_has_ended_changes_nothing(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED).code == 0
    before = cloud.calls()
    answer = shell("cancel")
    assert answer.code == 0
    assert f"{shell.run().id} succeeded" in answer.out
    assert cloud.calls() == before


def test_a_run_that_was_followed_by_nobody_is_told_of_by_list(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED, "--detach").code == 0
    wait_until(lambda: cloud.jobs()[0]["status"] == "Completed", what="the end")
    listed = shell("list", "--json").json
    assert [row["state"] for row in listed] == ["succeeded"]
    assert shell("logs").out.count("hello") == 1
    assert shell.status()["metrics"] == {"epoch": 0.0, "loss": 0.5}


FAILS = """
print("[metrics] epoch=1 loss=1.5", flush=True)
raise FileNotFoundError("no table of numbers")
"""


def test_the_status_of_a_run_that_nobody_followed_tells_why_it_failed(shell: Shell, cloud: Cloud) -> None:
    shell.write(FAILS)
    assert shell(*REHEARSED, "--detach").code == 0
    wait_until(lambda: cloud.jobs()[0]["status"] == "Failed", what="the end")
    answer = shell("status")
    assert answer.code == 0, answer.err
    assert "FileNotFoundError: no table of numbers" in answer.out
    assert "no table of numbers" in str(explained(shell.run()))
    assert shell.status()["metrics"] == {"epoch": 1.0, "loss": 1.5}


def test_metrics_are_shown_though_the_lines_may_not_be_read(shell: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED, "--detach").code == 0
    wait_until(lambda: cloud.jobs()[0]["status"] == "Completed", what="the end")
    cloud.arm("denied:DescribeLogStreams:rate=1")
    answer = shell("status", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["loss"] == 0.5
    assert "its last lines could not be fetched" in answer.err
    cloud.clear()
    assert shell.status()["metrics"] == {"epoch": 0.0, "loss": 0.5}


def test_the_status_of_a_run_has_its_newest_metrics(patient: Shell, cloud: Cloud) -> None:
    assert patient(*REHEARSED, "--detach", "--", str(patient.gate)).code == 0
    training(cloud)
    wait_until(lambda: patient.status()["metrics"] == {"epoch": 0.0, "loss": 0.5}, what="the first metrics")
