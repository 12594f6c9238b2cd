"""`list --sync`: runs that were launched from elsewhere, found by their tags, and gone on with from here."""

from __future__ import annotations

import dataclasses
import secrets

import pytest

from tests.conftest import wait_until
from tests.rehearsal.conftest import training_request, wait_for_end
from tests.sagemaker.conftest import REGION, REHEARSED, Cloud, Shell, training

pytestmark = pytest.mark.slow
SYNC = ("list", "--sync", "--rehearse", "--json")


@pytest.fixture
def elsewhere(shell: Shell, cloud: Cloud) -> Shell:
    """Another person's shell: another state folder, the same cloud."""
    home = shell.project.parent / "elsewhere"
    home.mkdir(mode=0o700)
    (home / "rehearsal").symlink_to(cloud.folder)
    return dataclasses.replace(shell, home=home, environment={**shell.environment, "ORCHESTRATE_HOME": str(home)})


def test_another_state_folder_sees_the_runs_and_their_results(shell: Shell, elsewhere: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED).code == 0
    run = shell.run()
    answer = elsewhere(*SYNC)
    assert answer.code == 0, answer.err
    (row,) = [row for row in answer.json if row["id"] == run.id]
    assert row["state"] == "succeeded"
    assert f"note: {run.id} was made elsewhere" in answer.err
    again = elsewhere(*SYNC)
    assert "made elsewhere" not in again.err
    assert len(again.json) == len(answer.json)
    assert "hello" in elsewhere("logs", run.id).out
    told = elsewhere.status(run.id)
    assert told["billable_seconds"] == run.billable_seconds
    assert told["metrics"] == {"epoch": 0.0, "loss": 0.5}
    fetched = elsewhere("artifacts", run.id, "--to", "out")
    assert fetched.code == 0, fetched.err
    assert (shell.project / "out/model/model.txt").read_text() == "weights"
    shown = elsewhere("status", run.id)
    assert shown.code == 0, shown.err
    assert "train.py" in shown.out


def test_jobs_that_are_not_ours_are_left_out(shell: Shell, elsewhere: Shell, cloud: Cloud) -> None:
    suffix = secrets.token_hex(5)
    names = (f"somebody-{suffix}", f"orc-somebody-{suffix}")
    for name in names:
        cloud.client("sagemaker").create_training_job(
            **training_request(name, "true", Environment={"ORCHESTRATE_LAUNCH_ID": suffix})
        )
        wait_for_end(cloud.client("sagemaker"), name)
    answer = elsewhere(*SYNC)
    assert answer.code == 0, answer.err
    assert not set(names) & {run.remote_id for run in elsewhere.runs()}


def test_a_run_from_elsewhere_can_be_followed_and_stopped(patient: Shell, elsewhere: Shell, cloud: Cloud) -> None:
    assert patient(*REHEARSED, "--detach", "--", str(patient.gate)).code == 0
    training(cloud)
    run = patient.run()
    assert elsewhere(*SYNC).code == 0
    typed = elsewhere.start("resume", run.id)
    typed.says("line 1")
    assert elsewhere.status(run.id)["state"] == "running"
    stopped = elsewhere("cancel", run.id)
    assert stopped.code == 0, stopped.err
    answer = typed.end()
    assert "saved" in answer.out
    assert [job["status"] for job in cloud.jobs()] == ["Stopped"]
    wait_until(lambda: patient("status", run.id, "--json").json["state"] == "stopped", what="the same from here")


def test_a_run_from_elsewhere_can_be_gone_on_from(shell: Shell, elsewhere: Shell, cloud: Cloud) -> None:
    shell.write("import os, pathlib\npathlib.Path(os.environ['AIP_CHECKPOINT_DIR'], 'step-1.pt').write_text('1')\n")
    assert shell(*REHEARSED).code == 0
    run = shell.run()
    assert elsewhere(*SYNC).code == 0
    shell.write(
        "import os, pathlib\n"
        "print('found', sorted(path.name for path in pathlib.Path(os.environ['AIP_CHECKPOINT_DIR']).iterdir()))\n"
    )
    answer = elsewhere(*REHEARSED, "--resume-from", run.id)
    assert answer.code == 0, answer.err
    assert "found ['step-1.pt']" in answer.out


def test_two_syncs_at_once_bring_each_run_in_once(shell: Shell, elsewhere: Shell, cloud: Cloud) -> None:
    assert shell(*REHEARSED, "--detach").code == 0
    answers = elsewhere.together(list(SYNC), list(SYNC), list(SYNC))
    assert [answer.code for answer in answers] == [0, 0, 0], answers
    ids = [run.id for run in elsewhere.runs()]
    assert len(ids) == len(set(ids))
    assert shell.run().id in ids


def test_a_run_from_elsewhere_has_a_price_though_its_tags_may_not_be_read(
    shell: Shell, elsewhere: Shell, cloud: Cloud
) -> None:
    assert shell(*REHEARSED).code == 0
    cloud.arm("denied:ListTags:rate=1")
    answer = elsewhere(*SYNC)
    assert answer.code == 0, answer.err
    assert f"note: looked in {REGION}: " in answer.err
    (run,) = [run for run in elsewhere.runs() if run.id == shell.run().id]
    assert run.plan["price"] == shell.run().plan["price"]
    assert run.script == "?"


def test_without_a_region_nothing_is_looked_for_where_the_runs_may_not_be(shell: Shell, cloud: Cloud) -> None:
    answer = shell("list", "--sync")
    assert answer.code == 2
    assert "no region: neither --region nor $AWS_REGION" in answer.err
